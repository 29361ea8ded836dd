//! `study sample`: text that a model writes itself, to calibrate it on (Liu et al., LLM-QAT, 2023).
//!
//! ```text
//! text i   its first token is drawn evenly from the vocabulary without its special tokens, so that texts differ;
//!          each further one as the model would have it: p(v) ∝ exp(logit(v) / temperature)
//! ```
//!
//! A text ends where the model ends it, or at its longest. Texts depend on the seed and the model alone.

use crate::StudyError;
use calibration::plain_tokens;
use console::Progress;
use model::{
    Checkpoint,
    generate::{Generator, Request, Sampling},
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::path::PathBuf;

/// What to write.
pub struct Sample {
    /// The model that writes.
    pub model: String,
    /// Texts.
    pub texts: usize,
    /// The most tokens of each, at least one.
    pub length: usize,
    /// What logits are divided by.
    pub temperature: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// The file: a JSON object a line.
    pub out: PathBuf,
}

/// A line of the file.
#[derive(Debug, Serialize)]
struct Written<'a> {
    text: String,
    tokens: usize,
    model_sha256: &'a [String],
    temperature: f64,
    seed: u64,
    number: usize,
}

/// Has the model write, and keeps it; returns the tokens of all texts.
pub fn sample(what: &Sample) -> Result<usize, StudyError> {
    let checkpoint = Checkpoint::open(&what.model)?;
    let model_sha256: Vec<String> = checkpoint.source_files()?.into_iter().map(|file| file.sha256).collect();
    let firsts = plain_tokens(&checkpoint)?;
    let mut random = ChaCha8Rng::seed_from_u64(what.seed);
    let requests: Vec<Request> = (0..what.texts)
        .map(|_| Request {
            prompt: vec![firsts[random.random_range(0..firsts.len())]],
            longest: what.length - 1,
            sampling: Some(Sampling { temperature: what.temperature, top_p: 1.0, seed: random.random() }),
        })
        .collect();
    let mut progress = Progress::new("writing", what.texts as u64, 0);
    let generator = Generator::new(&checkpoint)?;
    let written = generator.generate(&requests, generator.batch(&requests), &|_, _| false, &mut |_, text| {
        progress.step(&format!("{} tokens", text.tokens.len()));
    })?;
    progress.finish();
    let mut lines = Vec::new();
    for (number, (request, added)) in requests.iter().zip(&written).enumerate() {
        let tokens: Vec<u32> = request.prompt.iter().chain(&added.tokens).copied().collect();
        let text = checkpoint.tokenizer.decode(&tokens, true).unwrap_or_default();
        let line = Written {
            text,
            tokens: tokens.len(),
            model_sha256: &model_sha256,
            temperature: what.temperature,
            seed: what.seed,
            number,
        };
        serde_json::to_writer(&mut lines, &line).expect("strings and numbers are JSON");
        lines.push(b'\n');
    }
    console::files::write_atomically(&what.out, &lines).map_err(StudyError::io(&what.out))?;
    Ok(written.iter().map(|text| text.tokens.len() + 1).sum())
}
