//! What the tests of several operations share.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `count` numbers uniform in [-1, 1).
pub(crate) fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A correlated Gram matrix `[n, n]` like a layer's Hessian: few strong directions, some spread of the diagonal, and a
/// damping of 1 % of the mean diagonal.
pub(crate) fn hessian(n: usize, seed: u64) -> Vec<f32> {
    let (tokens, noise) = (2 * n + 8, random((2 * n + 8) * n, seed));
    let shared = random(tokens * 3, seed + 1);
    let mix = random(3 * n, seed + 2);
    let spread: Vec<f32> = random(n, seed + 3).iter().map(|v| (1.5 * v).exp()).collect();
    let mut h = vec![0.0f64; n * n];
    for t in 0..tokens {
        let row: Vec<f64> = (0..n)
            .map(|i| {
                let common: f32 = (0..3).map(|c| shared[t * 3 + c] * mix[c * n + i]).sum();
                f64::from(spread[i] * (common + 0.5 * noise[t * n + i]))
            })
            .collect();
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] += row[i] * row[j];
            }
        }
    }
    let damping = 0.01 * (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
    for i in 0..n {
        h[i * n + i] += damping;
    }
    h.iter().map(|v| *v as f32).collect()
}

/// `out = x wᵀ + bias` but for the rounding: a float32 sum of n products errs by at most n u sum |terms|, the bias adds one.
pub(crate) fn assert_is_product(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &[f32]) {
    let outputs = w.len() / inputs;
    for (at, got) in out.iter().enumerate() {
        let (x, w) = (&x[at / outputs * inputs..][..inputs], &w[at % outputs * inputs..][..inputs]);
        let terms = || x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b));
        let bias = bias.map_or(0.0, |bias| f64::from(bias[at % outputs]));
        let expected = terms().sum::<f64>() + bias;
        let magnitude = terms().map(f64::abs).sum::<f64>() + bias.abs();
        let bound = 2f64.powi(-24) * (inputs as f64 + 1.0) * magnitude;
        assert!((f64::from(*got) - expected).abs() <= bound, "{outputs} {inputs}, at {at}: {got} {expected}");
    }
}

/// Runs `work` in a pool of its own.
pub(crate) fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small thread pool starts").install(work)
}
