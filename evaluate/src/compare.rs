//! A model against its baseline on identical windows.
//!
//! `log ratio = log-perplexity − log-perplexity of the baseline`, with a paired block bootstrap over windows: both models
//! meet the same hard and easy text, so the difference is known far better than either perplexity.

use crate::{
    EvaluateError, Prepared,
    bands::{Band, Verdict},
    statistics::{self, Block},
};
use model::Checkpoint;
use serde::Serialize;

/// How a model stands to its baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Perplexity over the baseline's perplexity.
    pub ratio: f64,
    /// Of the ratio.
    pub ratio_interval_95: Option<[f64; 2]>,
    /// Difference in log-perplexity, in nats.
    pub log_ratio: f64,
    /// Of the difference in log-perplexity.
    pub log_ratio_standard_error: Option<f64>,
    /// Of the difference in log-perplexity.
    pub log_ratio_interval_95: Option<[f64; 2]>,
    /// Where the ratio falls among what is expected; none where nothing is.
    pub verdict: Option<Verdict>,
}

/// Refuses models whose tokens differ.
pub fn same_tokens(
    checkpoint: &Checkpoint,
    prepared: &Prepared,
    baseline: &Checkpoint,
    base_prepared: &Prepared,
) -> Result<(), EvaluateError> {
    match prepared.difference(base_prepared) {
        None => Ok(()),
        Some(difference) => Err(EvaluateError::Tokenizers {
            model: checkpoint.reference.clone(),
            baseline: baseline.reference.clone(),
            text: prepared.reference.clone(),
            difference,
        }),
    }
}

/// Compares the blocks of a model with its baseline's.
pub fn compare(
    prepared: &Prepared,
    ours: &[Block],
    baseline: &[Block],
    seed: u64,
    band: Option<&'static Band>,
) -> Comparison {
    let log_ratio = statistics::ratio(ours.iter().copied()) - statistics::ratio(baseline.iter().copied());
    let draws = prepared.bootstrap(seed).differences(ours, baseline);
    let interval = draws.as_deref().map(statistics::interval_95);
    let ratio = log_ratio.exp();
    Comparison {
        ratio,
        ratio_interval_95: interval.map(|ends| ends.map(f64::exp)),
        log_ratio,
        log_ratio_standard_error: draws.as_deref().map(statistics::standard_deviation),
        log_ratio_interval_95: interval,
        verdict: band.map(|band| band.verdict(ratio)),
    }
}
