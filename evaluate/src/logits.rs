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

use crate::{
    EvaluateError, Prepared,
    divergence::{Joint, Truncation},
    report::{ModelReport, TOOL},
    score::{self, Step},
    window::Window,
};
use half::f16;
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

/// `ln Σ exp(logit)`.
fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// A distribution as it is stored.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    ids: Vec<u32>,
    log_probabilities: Vec<f16>,
    target: f32,
    tail: f32,
    tail_entropy: f32,
}

impl Record {
    fn of(logits: &[f32], target: u32, top: usize) -> Self {
        let total = log_sum(logits);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top < ids.len() {
            ids.select_nth_unstable_by(top, order);
        }
        let (listed, rest) = ids.split_at_mut(top);
        listed.sort_unstable_by(order);
        let log_p = |id: &u32| f64::from(logits[*id as usize]) - total;
        let (tail, tail_entropy) = rest.iter().map(log_p).fold((0.0, 0.0), |(mass, entropy), log_p| {
            let p = log_p.exp();
            (mass + p, entropy + if p > 0.0 { p * log_p } else { 0.0 })
        });
        Self {
            log_probabilities: listed.iter().map(|id| f16::from_f64(log_p(id).max(f16::MIN.to_f64()))).collect(),
            ids: listed.to_vec(),
            target: log_p(&target) as f32,
            tail: tail as f32,
            tail_entropy: tail_entropy as f32,
        }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(self.log_probabilities.iter().flat_map(|log_p| log_p.to_le_bytes()));
        bytes.extend([self.target, self.tail, self.tail_entropy].iter().flat_map(|number| number.to_le_bytes()));
    }

    /// The record in `bytes`, if it can be one.
    fn read(bytes: &[u8], top: usize, vocabulary: usize) -> Result<Self, &'static str> {
        let (ids, rest) = bytes.split_at(4 * top);
        let (log_probabilities, rest) = rest.split_at(2 * top);
        let float = |at: usize| f32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let record = Self {
            ids: ids.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect(),
            log_probabilities: log_probabilities.chunks_exact(2).map(|p| f16::from_le_bytes([p[0], p[1]])).collect(),
            target: float(0),
            tail: float(4),
            tail_entropy: float(8),
        };
        let sum: f64 = record.log_probabilities.iter().map(|log_p| log_p.to_f64().exp()).sum();
        if record.ids.iter().any(|id| *id as usize >= vocabulary) {
            return Err("a token is outside the vocabulary");
        }
        if record.log_probabilities.iter().any(|log_p| !log_p.is_finite() || log_p.to_f64() > 0.0) {
            return Err("a log-probability is not a number below zero");
        }
        if !(record.target.is_finite() && record.target <= 1e-6) {
            return Err("the target's log-probability is not a number below zero");
        }
        let tail = f64::from(record.tail);
        // float16 rounds a log-probability by less than 0.4 % where a probability matters.
        if !(tail >= 0.0 && (0.99..=1.01).contains(&(sum + tail))) {
            return Err("its probabilities don't add up to one");
        }
        if !(record.tail_entropy.is_finite() && record.tail_entropy <= 0.0) {
            return Err("the entropy of the rest is not a number below zero");
        }
        Ok(record)
    }

    /// How far `logits` are from the stored distribution, and what its truncation may hide. `listed` is all false, and is so
    /// again afterwards.
    fn compare(&self, logits: &[f32], target: u32, listed: &mut [bool]) -> Result<(Divergence, Bounds), &'static str> {
        let total = log_sum(logits);
        let log_q = |id: u32| f64::from(logits[id as usize]) - total;
        let twice = self.ids.iter().any(|id| std::mem::replace(&mut listed[*id as usize], true));
        let rest = || logits.iter().zip(&*listed).filter(|(_, listed)| !**listed).map(|(logit, _)| f64::from(*logit));
        let tail_q: f64 = rest().map(|logit| (logit - total).exp()).sum();
        let least = rest().fold(f64::INFINITY, f64::min) - total;
        self.ids.iter().for_each(|id| listed[*id as usize] = false);
        if twice {
            return Err("a token is listed twice");
        }
        let stored: Vec<f64> = self.log_probabilities.iter().map(|log_p| log_p.to_f64()).collect();
        let tail = f64::from(self.tail);
        let sum = (stored.iter().map(|log_p| log_p.exp()).sum::<f64>() + tail).ln();
        let mut bounds = Bounds { mass: tail, ..Bounds::default() };
        let mut kl = 0.0;
        for ((id, log_p), half) in self.ids.iter().zip(&stored).zip(&self.log_probabilities) {
            kl += bounds.term(log_p - sum, log_q(*id), half_step(*half) + sum.abs());
        }
        if tail > 0.0 {
            kl += bounds.term(tail.ln() - sum, tail_q.ln(), f64::from(f32::EPSILON) + sum.abs());
            let hidden = f64::from(self.tail_entropy) - tail * least - tail * (tail.ln() - tail_q.ln());
            bounds.tail = hidden.max(0.0);
        }
        let top = (0..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
        let divergence = Divergence {
            kl: if kl < 0.0 { 0.0 } else { kl },
            same_top: self.ids.first() == Some(&(top as u32)),
            baseline: -f64::from(self.target),
            model: -log_q(target),
        };
        Ok((divergence, bounds))
    }
}

/// Half the distance from `value` to the next float16 further from zero.
fn half_step(value: f16) -> f64 {
    let next = f16::from_bits(value.to_bits() + 1);
    if next.is_finite() { (next.to_f64() - value.to_f64()).abs() / 2.0 } else { 16.0 }
}

/// What truncation and rounding may hide at a target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bounds {
    /// Probability of what is not listed.
    mass: f64,
    /// How much higher the divergence may be for it.
    tail: f64,
    /// How far off it may be for float16.
    rounding: f64,
}

impl Bounds {
    /// `p ln(p / q)`; adds what an error of `error` in `ln p` may do.
    fn term(&mut self, log_p: f64, log_q: f64, error: f64) -> f64 {
        let (p, ratio) = (log_p.exp(), log_p - log_q);
        if p == 0.0 {
            return 0.0;
        }
        let factor = error.exp_m1();
        self.rounding += p * (factor * ratio.abs() + factor * factor);
        p * ratio
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn logits(seed: u64, spread: f32) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..500).map(|_| spread * random.random_range(-1.0_f32..1.0)).collect()
    }

    fn divergence(p: &[f32], q: &[f32]) -> f64 {
        let (a, b) = (log_sum(p), log_sum(q));
        p.iter().zip(q).map(|(p, q)| (f64::from(*p) - a).exp() * (f64::from(*p) - a - f64::from(*q) + b)).sum()
    }

    fn stored(p: &[f32], q: &[f32], top: usize) -> (Divergence, Bounds) {
        let mut bytes = Vec::new();
        Record::of(p, 7, top).write(&mut bytes);
        let mut listed = vec![false; p.len()];
        let found = Record::read(&bytes, top, p.len()).unwrap().compare(q, 7, &mut listed).unwrap();
        assert!(listed.iter().all(|listed| !listed));
        found
    }

    #[test]
    fn the_divergence_of_whole_distributions_lies_within_the_bounds() {
        for (seed, spread) in [(1, 1.0), (2, 8.0), (3, 30.0)] {
            for (top, noise) in [(1, 0.3), (16, 0.05), (16, 3.0), (499, 0.3), (500, 0.001)] {
                let p = logits(seed, spread);
                let q: Vec<f32> = p.iter().zip(logits(seed + 9, noise)).map(|(p, noise)| p + noise).collect();
                let (found, bounds) = stored(&p, &q, top);
                let exact = divergence(&p, &q);
                let low = found.kl - bounds.rounding - 1e-9;
                let high = found.kl + bounds.rounding + bounds.tail + 1e-9;
                assert!((low..=high).contains(&exact), "{spread} {top} {noise}: {exact} not in {low}..{high}");
                if top == 500 {
                    assert!(bounds.tail == 0.0 && bounds.mass == 0.0);
                }
                assert!((found.baseline + f64::from(p[7]) - log_sum(&p)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn equal_distributions_give_nothing_up_to_the_rounding() {
        for spread in [1.0, 10.0] {
            for top in [1, 8, 100, 500] {
                let p = logits(5, spread);
                let (found, bounds) = stored(&p, &p, top);
                assert!(found.kl <= bounds.rounding && found.kl < 1e-5 && found.same_top, "{found:?} {bounds:?}");
            }
        }
    }

    #[test]
    fn certainty_and_ties_are_kept() {
        let mut sure = vec![0.0; 500];
        sure[3] = 200.0;
        let (found, _) = stored(&sure, &sure, 4);
        assert_eq!((found.kl, found.same_top), (0.0, true));
        // All equal: the first are listed.
        assert_eq!(Record::of(&[1.0; 10], 0, 3).ids, [0, 1, 2]);
        let (found, bounds) = stored(&[1.0; 500], &[1.0; 500], 3);
        assert!(found.same_top && found.kl <= bounds.rounding);
    }

    #[test]
    fn records_that_cannot_be_are_refused() {
        let mut bytes = Vec::new();
        Record::of(&logits(1, 2.0), 7, 4).write(&mut bytes);
        let refused = |at: usize, new: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + new.len()].copy_from_slice(new);
            Record::read(&bytes, 4, 500).and_then(|r| r.compare(&logits(2, 1.0), 7, &mut [false; 500])).unwrap_err()
        };
        assert!(refused(0, &500_u32.to_le_bytes()).contains("outside the vocabulary"));
        assert!(refused(16, &f16::NAN.to_le_bytes()).contains("not a number"));
        assert!(refused(16, &f16::ONE.to_le_bytes()).contains("not a number"));
        assert!(refused(24, &f32::NAN.to_le_bytes()).contains("target"));
        assert!(refused(28, &2.0_f32.to_le_bytes()).contains("add up"));
        assert!(refused(28, &f32::NAN.to_le_bytes()).contains("add up"));
        assert!(refused(32, &f32::INFINITY.to_le_bytes()).contains("entropy"));
        let first = [bytes[0], bytes[1], bytes[2], bytes[3]];
        assert!(refused(4, &first).contains("twice"));
    }

    #[test]
    fn half_a_step_is_half_the_distance_of_neighbours() {
        assert_eq!(half_step(f16::from_f64(-1.0)), 2f64.powi(-11));
        assert_eq!(half_step(f16::from_f64(-8.5)), 2f64.powi(-8));
        assert_eq!(half_step(f16::MIN), 16.0);
    }
}
