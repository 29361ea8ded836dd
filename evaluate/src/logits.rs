//! A baseline's next-token distributions in a file, so that many models are compared with it without running it again.
//!
//! Of every target's distribution the file holds the `top` likeliest tokens and what is left over. Little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `CALIPLP1` |
//! | 4 | `n`, the length of the header |
//! | `n` | the header, JSON: `tool`, `model`, `vocabulary`, `top`, `texts` (`text`, `windows_sha256`, `targets`) |
//! | `6 top + 12` a target | text by text, window by window, target by target: a record |
//! | 32 | SHA-256 of all before |
//!
//! A record:
//!
//! | bytes | what |
//! |---|---|
//! | `4 top` | ids of the likeliest tokens, from the likeliest down, of equals the smaller id first |
//! | `2 top` | their log-probabilities in nats, float16 |
//! | 4 | log-probability of the target, float32 |
//! | 4 | `P`, the probability of all tokens that are not listed, float32 |
//! | 4 | `S = Σ p ln p` over them, float32 |
//!
//! A comparison puts all that is not listed together as one token, of probability `P` here and `Q` in the model:
//!
//! ```text
//! KL      Σ_listed p̂ ln(p̂ / q) + P̂ ln(P̂ / Q)             p̂ and P̂ divided by their sum, so that they add up to one
//! tail    KL of the whole distributions is higher by at most S − P ln q_min − P ln(P / Q), q_min the least q not listed
//! float16 and differs from it by at most Σ p̂ ((e^ε − 1) |ln(p̂ / q)| + (e^ε − 1)²), |ln p − ln p̂| ≤ ε
//! ```
//!
//! `ε` is half the distance to the next float16, and the logarithm of the sum that was divided by. The second line follows
//! from `p = p̂ e^δ, |δ| ≤ ε`: `Σ (p − p̂) ln(p̂ / q)` is at most the first part, and `Σ p δ = KL(p || p̂) ≤ χ²` the second.

mod record;

use self::record::{Bounds, Record};
use crate::{
    EvaluateError, Prepared,
    divergence::{Joint, Truncation},
    report::{ModelReport, TOOL},
    score::{self, Step},
    window::Window,
};
use kernels::divergence::Divergence;
use model::{Checkpoint, decoder::Head};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::Mutex,
    time::Instant,
};

/// What such a file begins with.
pub const MAGIC: &[u8; 8] = b"CALIPLP1";
/// Tokens kept of each distribution unless told otherwise.
pub const DEFAULT_TOP: usize = 256;
/// The longest header that is read.
const LONGEST_HEADER: u64 = 16 << 20;
/// Bytes of the hash at the end.
const HASH: u64 = 32;
/// Rows of logits that are in memory together, for each thread.
const ROWS: usize = 16;

/// What a file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The tool that wrote it.
    pub tool: String,
    /// The model that was run.
    pub model: ModelReport,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Tokens that are listed of each distribution.
    pub top: usize,
    /// The texts, in their order in the file.
    pub texts: Vec<StoredText>,
}

/// A text in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredText {
    /// What the user called it.
    pub text: String,
    /// Its windows.
    pub windows_sha256: String,
    /// Its targets.
    pub targets: u64,
}

impl Header {
    /// The header of a file on the `texts`.
    pub fn new(checkpoint: &Checkpoint, model: ModelReport, top: usize, texts: &[&Prepared]) -> Self {
        let vocabulary = checkpoint.config.vocabulary;
        let text = |prepared: &&Prepared| StoredText {
            text: prepared.reference.clone(),
            windows_sha256: prepared.windows_sha256(),
            targets: prepared.tokens_scored() as u64,
        };
        Self {
            tool: TOOL.to_owned(),
            model,
            vocabulary,
            top: top.min(vocabulary),
            texts: texts.iter().map(text).collect(),
        }
    }

    fn record(&self) -> usize {
        6 * self.top + 12
    }
}

/// A file being written.
pub struct Writer<W> {
    out: W,
    hash: Sha256,
    header: Header,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(out: W, header: Header) -> Result<Self, EvaluateError> {
        let json = serde_json::to_vec(&header).map_err(|error| EvaluateError::Export(error.to_string()))?;
        let mut writer = Self { out, hash: Sha256::new(), header };
        writer.put(MAGIC)?;
        writer.put(&(json.len() as u32).to_le_bytes())?;
        writer.put(&json)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), EvaluateError> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(|error| EvaluateError::Export(error.to_string()))
    }

    /// Runs `checkpoint` over the windows of the next text; gives the targets' negative log-likelihoods.
    pub fn text(
        &mut self,
        checkpoint: &Checkpoint,
        windows: &[Window],
        memory: u64,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Vec<Vec<f32>>, EvaluateError> {
        let (width, layers, top) = (checkpoint.config.hidden_size, checkpoint.config.layers.len(), self.header.top);
        let mut scores = Vec::with_capacity(windows.len());
        for batch in score::batches(windows, width, memory) {
            let mut report = |layer| progress(Step { layer, layers, first: batch.start, end: batch.end });
            let windows = &windows[batch.clone()];
            let hidden = score::forward(checkpoint, windows, &mut report)?;
            let head = checkpoint.head()?;
            // As many windows at once as there are threads: their records are larger than their hidden states.
            for (windows, hidden) in windows.chunks(8).zip(hidden.chunks(8)) {
                let made = windows.par_iter().zip(hidden).with_max_len(1);
                let made: Vec<_> = made.map(|(window, hidden)| records(&head, window, hidden, width, top)).collect();
                for (likelihoods, bytes) in made {
                    self.put(&bytes)?;
                    scores.push(likelihoods);
                }
            }
            report(layers + 1);
        }
        score::check_finite(checkpoint, windows, &scores)?;
        Ok(scores)
    }

    /// Writes the hash; gives back what was written to.
    pub fn finish(mut self) -> Result<W, EvaluateError> {
        let hash = self.hash.finalize();
        self.out.write_all(&hash).map_err(|error| EvaluateError::Export(error.to_string()))?;
        Ok(self.out)
    }
}

/// The targets' negative log-likelihoods and the records of a window.
fn records(head: &Head, window: &Window, hidden: &[f32], width: usize, top: usize) -> (Vec<f32>, Vec<u8>) {
    let (mut scores, mut bytes) = (Vec::new(), Vec::new());
    let hidden = score::rows(window, width, hidden);
    for (hidden, targets) in hidden.chunks(ROWS * width).zip(window.targets().chunks(ROWS)) {
        let logits = head.logits(hidden);
        let vocabulary = logits.len() / targets.len();
        for (logits, target) in logits.chunks_exact(vocabulary).zip(targets) {
            let record = Record::of(logits, *target, top);
            scores.push(-record.target);
            record.write(&mut bytes);
        }
    }
    (scores, bytes)
}

/// A file of log-probabilities that was found sound.
pub struct StoredLogits {
    reference: String,
    /// What it holds.
    pub header: Header,
    /// Where the records begin.
    start: u64,
    file: Mutex<File>,
}

impl StoredLogits {
    /// Whether `path` is a file that begins like one.
    pub fn is_one(path: &Path) -> bool {
        let mut magic = [0; 8];
        path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *MAGIC
    }

    /// Opens the file and checks that it is whole.
    pub fn open(reference: &str) -> Result<Self, EvaluateError> {
        let wrong = |what: String| EvaluateError::StoredBaseline { file: reference.to_owned(), what };
        let failed = |error: io::Error| wrong(error.to_string());
        let mut file = File::open(reference).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut beginning = [0; 12];
        file.read_exact(&mut beginning).map_err(failed)?;
        let n = u64::from(u32::from_le_bytes([beginning[8], beginning[9], beginning[10], beginning[11]]));
        if beginning[..8] != *MAGIC || n > LONGEST_HEADER || 12 + n + HASH > length {
            return Err(wrong("it is not a whole file of `--save-logits`".to_owned()));
        }
        let mut json = vec![0; n as usize];
        file.read_exact(&mut json).map_err(failed)?;
        let header: Header =
            serde_json::from_slice(&json).map_err(|error| wrong(format!("its header can't be read: {error}")))?;
        if header.top == 0 || header.top > header.vocabulary || header.vocabulary > u32::MAX as usize {
            let (top, vocabulary) = (header.top, header.vocabulary);
            return Err(wrong(format!("its header lists {top} of {vocabulary} tokens, which can't be")));
        }
        let targets = header.texts.iter().try_fold(0_u64, |sum, text| sum.checked_add(text.targets));
        let records = targets.and_then(|targets| targets.checked_mul(header.record() as u64));
        let expected = records.and_then(|records| records.checked_add(12 + n + HASH));
        if expected != Some(length) {
            return Err(wrong(format!(
                "it has {length} bytes, and its header tells of another length: it was cut or changed"
            )));
        }
        if !check_hash(&mut file, length).map_err(failed)? {
            return Err(wrong("its hash is not that of its bytes: it was changed or damaged".to_owned()));
        }
        Ok(Self { reference: reference.to_owned(), header, start: 12 + n, file: Mutex::new(file) })
    }

    fn wrong(&self, what: String) -> EvaluateError {
        EvaluateError::StoredBaseline { file: self.reference.clone(), what }
    }

    /// Which text was cut into the windows of `prepared`.
    pub fn find(&self, prepared: &Prepared) -> Result<usize, EvaluateError> {
        let windows = prepared.windows_sha256();
        let found = self
            .header
            .texts
            .iter()
            .position(|text| text.windows_sha256 == windows && text.targets == prepared.tokens_scored() as u64);
        found.ok_or_else(|| {
            self.wrong(format!(
                "it has nothing on {} as it is cut here: the text, the protocol, `--max-tokens` or the tokenizer differ; \
                 save it again with these options",
                prepared.reference
            ))
        })
    }

    /// Runs `model` over the windows of `prepared` and compares it with what is stored.
    pub fn compare(
        &self,
        model: &Checkpoint,
        prepared: &Prepared,
        memory: u64,
        progress: &mut dyn FnMut(Step),
    ) -> Result<(Joint, Truncation), EvaluateError> {
        if model.config.vocabulary != self.header.vocabulary {
            return Err(EvaluateError::Vocabularies {
                model: model.reference.clone(),
                baseline: self.reference.clone(),
                sizes: [model.config.vocabulary, self.header.vocabulary],
            });
        }
        let text = self.find(prepared)?;
        let before: u64 = self.header.texts[..text].iter().map(|text| text.targets).sum();
        let mut place = self.start + before * self.header.record() as u64;
        let (windows, layers, width) = (&prepared.windows, model.config.layers.len(), model.config.hidden_size);
        let started = Instant::now();
        let (mut targets, mut sums) = (Vec::with_capacity(windows.len()), Bounds::default());
        for batch in score::batches(windows, width, memory) {
            let mut report = |layer| progress(Step { layer, layers, first: batch.start, end: batch.end });
            let windows = &windows[batch.clone()];
            let hidden = score::forward(model, windows, &mut report)?;
            let head = model.head()?;
            for (windows, hidden) in windows.chunks(8).zip(hidden.chunks(8)) {
                let read = windows.iter().map(|window| self.read(&mut place, window.targets().len()));
                let stored = read.collect::<Result<Vec<_>, _>>()?;
                let made = windows.par_iter().zip(hidden.par_iter().zip(&stored)).with_max_len(1);
                let made: Vec<_> =
                    made.map(|(window, (hidden, stored))| self.window(&head, window, hidden, stored)).collect();
                for made in made {
                    let (window, bounds) = made?;
                    targets.push(window);
                    // In the order of the windows, whatever the threads did.
                    for at in bounds {
                        sums.mass += at.mass;
                        sums.tail += at.tail;
                        sums.rounding += at.rounding;
                    }
                }
            }
            report(layers + 1);
        }
        let joint = Joint { targets, model_seconds: started.elapsed().as_secs_f64(), baseline_seconds: 0.0 };
        score::check_finite(model, windows, &joint.model_scores())?;
        let count = prepared.tokens_scored() as f64;
        let truncation = Truncation {
            top: self.header.top,
            tail_mass: sums.mass / count,
            rounding_bound: sums.rounding / count,
            tail_bound: sums.tail / count,
        };
        Ok((joint, truncation))
    }

    /// The records of `count` targets from `place` on, which moves behind them.
    fn read(&self, place: &mut u64, count: usize) -> Result<Vec<u8>, EvaluateError> {
        let mut bytes = vec![0; count * self.header.record()];
        let mut file = self.file.lock().map_err(|_| self.wrong("another thread failed while it read it".to_owned()))?;
        let read = file.seek(SeekFrom::Start(*place)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|error| self.wrong(error.to_string()))?;
        *place += bytes.len() as u64;
        Ok(bytes)
    }

    fn window(
        &self,
        head: &Head,
        window: &Window,
        hidden: &[f32],
        stored: &[u8],
    ) -> Result<(Vec<Divergence>, Vec<Bounds>), EvaluateError> {
        let (vocabulary, record) = (self.header.vocabulary, self.header.record());
        let width = hidden.len() / (window.tokens.len() - 1);
        let rows = score::rows(window, width, hidden);
        let mut listed = vec![false; vocabulary];
        let (mut divergences, mut bounds) = (Vec::new(), Vec::new());
        let chunks = rows.chunks(ROWS * width).zip(window.targets().chunks(ROWS)).zip(stored.chunks(ROWS * record));
        for ((hidden, targets), stored) in chunks {
            let logits = head.logits(hidden);
            let rows = logits.chunks_exact(vocabulary).zip(targets).zip(stored.chunks_exact(record));
            for ((logits, target), stored) in rows {
                let found = Record::read(stored, self.header.top, vocabulary)
                    .and_then(|record| record.compare(logits, *target, &mut listed));
                let (divergence, bound) = found.map_err(|what| {
                    let position = window.first_target + divergences.len();
                    self.wrong(format!("the record of the target at token {position} is wrong: {what}"))
                })?;
                divergences.push(divergence);
                bounds.push(bound);
            }
        }
        Ok((divergences, bounds))
    }
}

/// Whether the last bytes are the hash of those before.
fn check_hash(file: &mut File, length: u64) -> io::Result<bool> {
    file.seek(SeekFrom::Start(0))?;
    let (mut left, mut hash, mut buffer) = (length - HASH, Sha256::new(), vec![0; 1 << 20]);
    while left > 0 {
        let part = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..part])?;
        hash.update(&buffer[..part]);
        left -= part as u64;
    }
    let mut stored = [0; HASH as usize];
    file.read_exact(&mut stored)?;
    Ok(hash.finalize()[..] == stored)
}
