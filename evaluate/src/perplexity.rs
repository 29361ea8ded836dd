//! Perplexity: a text made ready for a protocol, and what its scores come to.
//!
//! ```text
//! log-perplexity = Σ sum_b / Σ weight_b                    over blocks (windows, or pages), see `protocol`
//! bits per byte  = log-perplexity · targets / (bytes · ln 2)
//! ```
//!
//! where `targets` are the distinct tokens scored and `bytes` the UTF-8 bytes of the text they stand for, so that
//! tokens scored twice don't count twice. With every target weighing the same it is the summed code length over the
//! bytes it encodes, and comparable across tokenizers. For word perplexity the bytes are those of the pages before
//! detokenizing, as lm-evaluation-harness has it.

use crate::{
    EvaluateError, Resolved,
    protocol::{Beginning, Reduction, TextHandling},
    python_random::PythonRandom,
    source::{Source, sha256},
    statistics::{self, Block, Bootstrap},
    stream::Stream,
    text,
    wikitext::Page,
    window::{self, Window},
};
use model::Checkpoint;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, hash_map::Entry};

/// Windows that protocols over C4 take at most.
const C4_WINDOWS: usize = 256;

/// A text cut into windows under a protocol, for one model's tokenizer.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What the user called the text.
    pub reference: String,
    /// The protocol with its numbers.
    pub resolved: Resolved,
    /// What is fed and scored.
    pub windows: Vec<Window>,
    /// What stands before the first target, in words.
    pub beginning: String,
    /// Tokens that windows were cut from.
    pub tokens: usize,
    /// SHA-256 of the text after the protocol's text handling.
    pub sha256: String,
    /// Its UTF-8 bytes.
    pub bytes: usize,
    streams: Vec<Stream>,
    /// (words, bytes) of each page before detokenizing.
    pages: Vec<(usize, usize)>,
}

impl Prepared {
    /// Reads nothing but `source`, tokenizes it with `checkpoint`'s tokenizer and cuts it.
    pub fn new(checkpoint: &Checkpoint, source: &Source, resolved: Resolved) -> Result<Self, EvaluateError> {
        let documents = text::documents(source, resolved.text);
        let all: String = documents.iter().map(|document| document.text.as_str()).collect();
        let mut prepared = Self {
            reference: source.reference.clone(),
            resolved,
            windows: Vec::new(),
            beginning: String::new(),
            tokens: 0,
            sha256: sha256(&all),
            bytes: all.len(),
            streams: Vec::new(),
            pages: documents.iter().map(|page| (page.words, page.bytes)).collect(),
        };
        match resolved.text {
            TextHandling::Pages => prepared.cut_pages(checkpoint, &documents)?,
            TextHandling::RandomSlices => prepared.cut_slices(checkpoint, &documents)?,
            _ => prepared.cut_stream(checkpoint, &documents[0].text)?,
        }
        if prepared.windows.is_empty() {
            return Err(prepared.too_short());
        }
        Ok(prepared)
    }

    fn cut_stream(&mut self, checkpoint: &Checkpoint, text: &str) -> Result<(), EvaluateError> {
        let resolved = self.resolved;
        let mut stream = Stream::tokenize(checkpoint, text, true)?;
        if resolved.text == TextHandling::FirstDocuments {
            stream.truncate(C4_WINDOWS.saturating_mul(resolved.window));
        }
        stream.truncate(resolved.max_tokens.unwrap_or(usize::MAX));
        let added = (stream.added > 0).then(|| stream.tokens[0]);
        let replaced = added.filter(|_| resolved.protocol.beginning == Beginning::Replaced);
        self.beginning = match (added, replaced) {
            (None, _) => "none: the tokenizer adds none".to_owned(),
            (_, Some(token)) => format!("{} in place of each window's first token", name_token(checkpoint, token)),
            (Some(token), None) => format!("{} before the whole text only", name_token(checkpoint, token)),
        };
        self.tokens = stream.tokens.len();
        self.windows = window::cut(&stream, resolved.protocol.scored, resolved.window, resolved.stride, replaced);
        self.streams = vec![stream];
        Ok(())
    }

    /// Whole pages, as many as `max_tokens` has room for.
    fn cut_pages(&mut self, checkpoint: &Checkpoint, documents: &[Page]) -> Result<(), EvaluateError> {
        let prefix = prefix_token(checkpoint).ok_or_else(|| EvaluateError::NoPrefix {
            model: checkpoint.reference.clone(),
            protocol: self.resolved.protocol.name,
        })?;
        self.beginning = format!("{} before each page", name_token(checkpoint, prefix));
        for (index, page) in documents.iter().enumerate() {
            let stream = Stream::tokenize(checkpoint, &page.text, false)?;
            if self.tokens + stream.tokens.len() > self.resolved.max_tokens.unwrap_or(usize::MAX) {
                break;
            }
            self.tokens += stream.tokens.len();
            self.windows.extend(window::rolling(&stream, index, prefix, self.resolved.window));
            self.streams.push(stream);
        }
        Ok(())
    }

    /// Random slices of random documents, drawn until they are longer than a window.
    fn cut_slices(&mut self, checkpoint: &Checkpoint, documents: &[Page]) -> Result<(), EvaluateError> {
        let length = self.resolved.window;
        let wanted = self.resolved.max_tokens.map_or(C4_WINDOWS, |tokens| (tokens / length).min(C4_WINDOWS));
        let mut random = PythonRandom::seed(0);
        let mut seen: HashMap<usize, Option<usize>> = HashMap::new();
        let mut added = false;
        while self.windows.len() < wanted {
            if seen.len() == documents.len() && seen.values().all(Option::is_none) {
                return Ok(());
            }
            let drawn = random.below(documents.len() as u32) as usize;
            let index = match seen.entry(drawn) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let stream = Stream::tokenize(checkpoint, &documents[drawn].text, true)?;
                    let index = (stream.tokens.len() > length).then_some(self.streams.len());
                    added |= stream.added > 0;
                    self.streams.extend(index.map(|_| stream));
                    *new.insert(index)
                }
            };
            let Some(index) = index else { continue };
            let stream = &self.streams[index];
            let start = random.below((stream.tokens.len() - length) as u32) as usize;
            let tokens = stream.tokens[start..start + length].to_vec();
            self.windows.push(Window { tokens, scored: 1..length, document: index, first_target: start + 1 });
        }
        self.tokens = wanted * length;
        let adds = "what the tokenizer adds before each document, seldom inside a slice";
        adds.clone_into(&mut self.beginning);
        if !added {
            "none: the tokenizer adds none".clone_into(&mut self.beginning);
        }
        Ok(())
    }

    fn too_short(&self) -> EvaluateError {
        let Resolved { protocol, window, text, max_tokens, .. } = self.resolved;
        let (needed, found) = match text {
            TextHandling::Pages => ("at least one whole page".to_owned(), format!("{} pages", self.pages.len())),
            TextHandling::RandomSlices if max_tokens.is_none_or(|tokens| tokens >= window) => (
                format!("a document of more than {window} tokens"),
                format!("{} documents, none so long", self.pages.len()),
            ),
            _ => (format!("at least one window of {window} tokens"), format!("{} tokens", self.tokens)),
        };
        let cut = max_tokens.map_or("", |_| "raise `--max-tokens`, ");
        let remedy = format!("{cut}give more text, or choose shorter windows: `--protocol hf-disjoint --window 256`");
        EvaluateError::TooShort { text: self.reference.clone(), protocol: protocol.name, needed, found, remedy }
    }

    /// Targets, those scored twice counted twice.
    pub fn tokens_scored(&self) -> usize {
        self.windows.iter().map(|window| window.scored.len()).sum()
    }

    /// Tokens that go through the model.
    pub fn tokens_fed(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len() - 1).sum()
    }

    /// SHA-256 of all that is fed and of what of it is scored, how it is reduced included: two models with equal ones are
    /// measured on the same targets after the same contexts.
    pub fn windows_sha256(&self) -> String {
        let mut bytes = format!("{:?}\n", self.resolved.protocol.reduction).into_bytes();
        for window in &self.windows {
            for number in [window.tokens.len(), window.scored.start, window.scored.end, window.document] {
                bytes.extend((number as u64).to_le_bytes());
            }
            bytes.extend(window.tokens.iter().flat_map(|token| token.to_le_bytes()));
        }
        sha256(&bytes)
    }

    /// The weight of each block of [`Prepared::blocks`].
    pub fn weights(&self) -> impl Iterator<Item = f64> + use<> {
        let unscored: Vec<Vec<f32>> = self.windows.iter().map(|window| vec![0.0; window.scored.len()]).collect();
        self.blocks(&unscored).into_iter().map(|block| block.weight)
    }

    /// Whether `other`, the same text for another model, feeds and scores exactly the same; else where they part.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.windows == other.windows {
            return None;
        }
        let ours = self.streams.iter().flat_map(|stream| &stream.tokens);
        let theirs = other.streams.iter().flat_map(|stream| &stream.tokens);
        let first = ours.zip(theirs).position(|(ours, theirs)| ours != theirs);
        Some(match first {
            Some(position) => format!("the first difference is at token {position}"),
            None => format!("{} tokens against {}", self.tokens, other.tokens),
        })
    }

    /// The contribution of each window, or of each page for word perplexity.
    pub fn blocks(&self, scores: &[Vec<f32>]) -> Vec<Block> {
        let sums = scores.iter().map(|scores| scores.iter().map(|&score| f64::from(score)).sum::<f64>());
        let counted = sums.zip(&self.windows).map(|(sum, window)| (sum, window.scored.len() as f64, window.document));
        match self.resolved.protocol.reduction {
            Reduction::WindowMeans => counted.map(|(sum, count, _)| Block { sum: sum / count, weight: 1.0 }).collect(),
            Reduction::Tokens => counted.map(|(sum, weight, _)| Block { sum, weight }).collect(),
            Reduction::Words => {
                let pages = &self.pages[..self.streams.len()];
                let mut blocks: Vec<Block> =
                    pages.iter().map(|&(words, _)| Block { sum: 0.0, weight: words as f64 }).collect();
                counted.for_each(|(sum, _, page)| blocks[page].sum += sum);
                blocks
            }
        }
    }

    /// The bootstrap that fits the windows: neighbours that share tokens are drawn together.
    pub fn bootstrap(&self, seed: u64) -> Bootstrap {
        let run = if self.resolved.protocol.reduction == Reduction::Words { 1 } else { self.resolved.overlap() };
        Bootstrap { seed, run }
    }

    /// What `scores`, made in `seconds`, come to.
    pub fn measure(&self, scores: &[Vec<f32>], seed: u64, seconds: f64) -> Measurement {
        let blocks = self.blocks(scores);
        let log_perplexity = statistics::ratio(blocks.iter().copied());
        let draws = self.bootstrap(seed).ratios(&blocks);
        let draws = draws.map(|draws| draws.into_iter().map(f64::exp).collect::<Vec<f64>>());
        let (unique, covered) = window::coverage(&self.windows, &self.streams);
        let words = self.resolved.protocol.reduction == Reduction::Words;
        let bytes = if words { self.pages[..self.streams.len()].iter().map(|page| page.1).sum() } else { covered };
        let nats = if words { blocks.iter().map(|block| block.sum).sum() } else { log_perplexity * unique as f64 };
        let nats_per_byte = (bytes > 0).then(|| nats / bytes as f64);
        Measurement {
            perplexity: log_perplexity.exp(),
            standard_error: draws.as_deref().map(statistics::standard_deviation),
            interval_95: draws.as_deref().map(statistics::interval_95),
            log_perplexity,
            bits_per_byte: nats_per_byte.map(|nats| nats / std::f64::consts::LN_2),
            byte_perplexity: nats_per_byte.map(f64::exp),
            bytes_scored: bytes,
            tokens_scored: self.tokens_scored(),
            unique_tokens_scored: unique,
            windows: self.windows.len(),
            seconds,
            tokens_per_second: self.tokens_fed() as f64 / seconds.max(f64::MIN_POSITIVE),
        }
    }
}

/// What lm-evaluation-harness puts before a page: BOS, else the first EOS.
fn prefix_token(checkpoint: &Checkpoint) -> Option<u32> {
    checkpoint.config.bos_token.or_else(|| checkpoint.config.eos_tokens.first().copied())
}

fn name_token(checkpoint: &Checkpoint, token: u32) -> String {
    match checkpoint.tokenizer.id_to_token(token) {
        Some(text) => format!("token {token} `{text}`"),
        None => format!("token {token}"),
    }
}

/// A perplexity and all that belongs beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// `exp(log_perplexity)`; of words for word perplexity.
    pub perplexity: f64,
    /// Of the perplexity, by block bootstrap; none with fewer than two blocks.
    pub standard_error: Option<f64>,
    /// Of the perplexity, by block bootstrap.
    pub interval_95: Option<[f64; 2]>,
    /// In nats a token, or a word for word perplexity.
    pub log_perplexity: f64,
    /// Code length over the bytes of the scored text.
    pub bits_per_byte: Option<f64>,
    /// `2^bits_per_byte`.
    pub byte_perplexity: Option<f64>,
    /// UTF-8 bytes that the scored tokens stand for.
    pub bytes_scored: usize,
    /// Targets, those scored twice counted twice.
    pub tokens_scored: usize,
    /// Distinct targets.
    pub unique_tokens_scored: usize,
    /// Windows.
    pub windows: usize,
    /// Wall time of scoring.
    pub seconds: f64,
    /// Tokens fed per second of wall time.
    pub tokens_per_second: f64,
}
