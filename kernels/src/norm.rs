//! Root-mean-square norm: `out = x / sqrt(mean(x^2) + epsilon) * (offset + weight)`, row by row.

/// Normalizes each row of `x` (`[rows, weight.len()]`) into `out`. `offset` is 1 for Gemma, else 0.
pub fn rms_norm(x: &[f32], weight: &[f32], offset: f32, epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / width as f64;
        let inverse = (1.0 / (mean + f64::from(epsilon)).sqrt()) as f32;
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * (offset + weight);
        }
    }
}
