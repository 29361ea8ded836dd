//! Perplexity of the model and of a unigram model over the same tokens.
//!
//! A text is cut into windows of the model's length that don't overlap; every token but a window's first is scored,
//! PPL = exp(mean NLL). The unigram model gives token t the probability (count(t) + 1) / (N + V), counted over the
//! training tokens.

use crate::network::Network;
use anyhow::{Result, ensure};

/// Windows scored at once.
const BATCH: usize = 8;

/// Perplexities over the same scored tokens.
pub(crate) struct Measured {
    pub(crate) scored: usize,
    pub(crate) model: f64,
    pub(crate) unigram: f64,
}

/// Measures `tokens` in windows of `length`, a short last one included.
pub(crate) fn measure(network: &Network, tokens: &[u32], length: usize, unigram: &[f64]) -> Result<Measured> {
    let windows: Vec<&[u32]> = tokens.chunks(length).filter(|window| window.len() > 1).collect();
    ensure!(!windows.is_empty(), "too short a text to measure");
    let (mut scored, mut model, mut plain) = (0, 0.0, 0.0);
    for batch in windows.chunk_by(|a, b| a.len() == b.len()).flat_map(|same| same.chunks(BATCH)) {
        let count = batch.len() * (batch[0].len() - 1);
        model += f64::from(network.loss(batch)?.to_scalar::<f32>()?) * count as f64;
        plain -= batch.iter().flat_map(|window| &window[1..]).map(|token| unigram[*token as usize]).sum::<f64>();
        scored += count;
    }
    let perplexity = |sum: f64| (sum / scored as f64).exp();
    Ok(Measured { scored, model: perplexity(model), unigram: perplexity(plain) })
}

/// Log-probabilities of the unigram model.
pub(crate) fn unigram<'a>(tokens: impl Iterator<Item = &'a u32>, vocabulary: usize) -> Vec<f64> {
    let mut counts = vec![1f64; vocabulary];
    tokens.for_each(|token| counts[*token as usize] += 1.0);
    let total: f64 = counts.iter().sum();
    counts.iter().map(|count| (count / total).ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unigram_probabilities_are_smoothed_and_sum_to_one() {
        let found = unigram([1, 1, 3].iter(), 4);
        let expected = [1.0, 3.0, 1.0, 2.0].map(|count: f64| (count / 7.0).ln());
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12));
    }
}
