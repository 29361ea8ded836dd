//! Root-mean-square norm: `out = x / sqrt(mean(x^2) + epsilon) * (offset + weight)`, row by row.

use crate::dispatch::vectorized;

/// Lanes of the sum of squares, which is kept in float64: the norm's own error stays below one unit of float32.
const LANES: usize = 8;

/// Normalizes each row of `x` (`[rows, weight.len()]`) into `out`. `offset` is 1 for Gemma, else 0.
pub fn rms_norm(x: &[f32], weight: &[f32], offset: f32, epsilon: f32, out: &mut [f32]) {
    assert_eq!((x.len(), x.len() % weight.len()), (out.len(), 0), "shapes of x, weight and out");
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let mean = sum_of_squares(x) / weight.len() as f64;
        let inverse = (1.0 / (mean + f64::from(epsilon)).sqrt()) as f32;
        scale(x, inverse, weight, offset, out);
    }
}

vectorized! {
    fn sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        rest.iter().map(|x| f64::from(*x) * f64::from(*x)).chain(lanes).sum()
    }

    fn scale(x: &[f32], inverse: f32, weight: &[f32], offset: f32, out: &mut [f32]) {
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * (offset + weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// Four roundings (inverse, two products, offset + weight) of half a unit of 2^-23 each.
    #[test]
    fn agrees_with_float64() {
        for width in [1, 3, 8, 17, 576, 896] {
            for offset in [0.0, 1.0] {
                let (x, weight) = (random(3 * width, 1), random(width, 2));
                let mut out = vec![0.0; 3 * width];
                rms_norm(&x, &weight, offset, 1e-5, &mut out);
                for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                    let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
                    for ((x, weight), out) in x.iter().zip(&weight).zip(out) {
                        let factor = f64::from(offset) + f64::from(*weight);
                        let expected = f64::from(*x) / (mean + f64::from(1e-5f32)).sqrt() * factor;
                        let scale = f64::from(*x).abs() / mean.sqrt() * (f64::from(offset) + f64::from(weight.abs()));
                        assert!((f64::from(*out) - expected).abs() <= 3e-7 * scale, "{out} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_zero_row_stays_zero() {
        let mut out = [1.0; 8];
        rms_norm(&[0.0; 8], &[2.0; 4], 0.0, 1e-6, &mut out);
        assert_eq!(out, [0.0; 8]);
    }
}
