//! How long a checkpoint takes for a token, timed here and now.
//!
//! ```text
//! reading   all windows of a text are scored                                            seconds / tokens fed
//! writing   the likeliest tokens after the first tokens of its windows, side by side    seconds / tokens written
//! ```
//!
//! Each is done once to warm up and then [`REPETITIONS`] times; a repetition is a block whose measure is the logarithm of
//! its seconds per token, so that two configurations are compared as perplexities are. Times hold for this machine and for this
//! program's own decoder, and other work on the machine gets into them.

use crate::{StudyError, measure::Measure};
use evaluate::{
    Prepared,
    score::{DEFAULT_MEMORY, score},
    statistics::Block,
};
use model::{
    Checkpoint,
    generate::{Generator, Request},
};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Timed repetitions.
const REPETITIONS: usize = 5;
/// Sequences written side by side.
const SEQUENCES: usize = 32;
/// Tokens of a window that a sequence begins with.
const PROMPT: usize = 16;
/// Tokens written after it at most.
const WRITTEN: usize = 32;

/// How often the text is gone through; for writing, which takes another number of tokens, a rough measure.
pub const RUNS: usize = 1 + REPETITIONS;

/// What was timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Tokens of a repetition.
    pub tokens: usize,
    /// Seconds of each repetition.
    pub seconds: Vec<f64>,
}

impl Timed {
    /// By the mean of the logarithms.
    pub fn tokens_per_second(&self) -> f64 {
        let mean = self.seconds.iter().map(|seconds| seconds.ln()).sum::<f64>() / self.seconds.len() as f64;
        self.tokens as f64 / mean.exp()
    }

    /// The logarithm of the seconds per token, a block a repetition.
    pub fn blocks(&self) -> Vec<Block> {
        self.seconds.iter().map(|seconds| Block { sum: (seconds / self.tokens as f64).ln(), weight: 1.0 }).collect()
    }
}

/// Times `checkpoint` on the windows of `prepared`.
pub fn timed(measure: Measure, checkpoint: &Checkpoint, prepared: &Prepared) -> Result<Timed, StudyError> {
    if measure == Measure::ReadingTime {
        return repeated(|| {
            score(checkpoint, &prepared.windows, DEFAULT_MEMORY, &mut |_| {})?;
            Ok(prepared.tokens_fed())
        });
    }
    let windows = prepared.windows.iter().cycle().take(SEQUENCES);
    let requests: Vec<Request> = windows
        .map(|window| Request {
            prompt: window.tokens[..PROMPT.min(window.tokens.len())].to_vec(),
            longest: WRITTEN,
            sampling: None,
        })
        .collect();
    let generator = Generator::new(checkpoint)?;
    repeated(|| {
        let written = generator.generate(&requests, SEQUENCES, &|_, _| false, &mut |_, _| {})?;
        // A sequence that the model ended at once has still taken a step.
        Ok(written.iter().map(|text| text.tokens.len().max(1)).sum())
    })
}

/// `work` returns its tokens, the same each time.
fn repeated(mut work: impl FnMut() -> Result<usize, StudyError>) -> Result<Timed, StudyError> {
    let (mut seconds, mut tokens) = (Vec::with_capacity(REPETITIONS), work()?);
    for _ in 0..REPETITIONS {
        let started = Instant::now();
        tokens = work()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(Timed { tokens, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_logarithms_of_seconds_per_token() {
        let timed = Timed { tokens: 10, seconds: vec![2.0, 8.0] };
        assert!((timed.tokens_per_second() - 2.5).abs() < 1e-12);
        let sums: Vec<f64> = timed.blocks().iter().map(|block| block.sum.exp()).collect();
        assert!((sums[0] - 0.2).abs() < 1e-12 && (sums[1] - 0.8).abs() < 1e-12);
    }
}
