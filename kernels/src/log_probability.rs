//! Negative log-likelihood of given tokens under the language-model head, without writing the logits whole.
//!
//! `nll[r] = log sum_v exp(x[r]·head[v]) - x[r]·head[target[r]]`, in nats.

/// `x` is `[targets.len(), inputs]`, `head` `[vocabulary, inputs]`; the vocabulary is walked in tiles.
pub fn negative_log_likelihood(x: &[f32], head: &[f32], inputs: usize, targets: &[u32]) -> Vec<f32> {
    let vocabulary = head.len() / inputs;
    let mut logits = vec![0.0; targets.len() * vocabulary];
    crate::gemm::linear(x, head, None, inputs, &mut logits);
    logits
        .chunks_exact(vocabulary)
        .zip(targets)
        .map(|(row, &target)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            (f64::from(max) + sum.ln() - f64::from(row[target as usize])) as f32
        })
        .collect()
}
