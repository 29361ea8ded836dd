//! Making up for a drifted input: the weight whose outputs on the input `x` come closest to those that the given weight
//! had on the input `x̃ = x + d` of the original model.
//!
//! ```text
//! D      = Σ_t d_tᵀ x_t                     [width, width], summed by `accumulate`
//! W + C  = argmin ‖(W+C) X − W X̃‖² + λ‖C‖²  a ridge of the same λ that damps H
//! C      = f W D H⁻¹,  H⁻¹ = Uᵀ U           from (W+C) X Xᵀ − W X̃ Xᵀ + λC = 0, that is C (X Xᵀ + λ) = W D
//! ```
//!
//! with `f` what `H` was scaled by.

use crate::gemm::{Old, Strided, StridedMut, product};
use rayon::prelude::*;

/// Rows of the sums, or of the weight, that one task computes.
const PANEL: usize = 128;

/// Adds `dᵀ x` to `sums` (`[width, width]`); `d` and `x` are `[rows, width]`. Uses the current thread pool; the result
/// doesn't depend on its size.
pub fn accumulate(sums: &mut [f32], d: &[f32], x: &[f32], width: usize) {
    assert_eq!((sums.len(), d.len(), x.len() % width), (width * width, x.len(), 0), "shapes of sums, d and x");
    let rows = x.len() / width;
    if rows == 0 {
        return;
    }
    sums.par_chunks_mut(PANEL * width).enumerate().with_max_len(1).for_each(|(index, panel)| {
        product(
            [panel.len() / width, width, rows],
            StridedMut { data: panel, row: width, column: 1 },
            Old::Add,
            1.0,
            Strided { data: &d[index * PANEL..], row: 1, column: width },
            Strided { data: x, row: width, column: 1 },
        );
    });
}

/// `C` for `weight` (`[outputs, inputs]`) and the sums `drift`, which are multiplied by `factor` as `H` was. `upper` is
/// `U` with its columns in `order` (position → column).
pub fn correction(weight: &[f32], drift: &[f32], factor: f32, order: &[usize], upper: &[f32]) -> Vec<f32> {
    let width = order.len();
    assert_eq!(
        (drift.len(), upper.len(), weight.len() % width),
        (width * width, width * width, 0),
        "shapes of weight, drift and u"
    );
    let mut correction = vec![0.0; weight.len()];
    let chunks = correction.par_chunks_mut(PANEL * width).zip(weight.par_chunks(PANEL * width));
    chunks.for_each(|(correction, weight)| {
        let rows = weight.len() / width;
        let times = |a: &[f32], factor: f32, b: Strided<'_>| {
            let mut out = vec![0.0; a.len()];
            let a = Strided { data: a, row: width, column: 1 };
            product(
                [rows, width, width],
                StridedMut { data: &mut out, row: width, column: 1 },
                Old::Overwrite,
                factor,
                a,
                b,
            );
            out
        };
        let pull = times(weight, factor, Strided { data: drift, row: width, column: 1 });
        let ordered: Vec<f32> =
            pull.chunks_exact(width).flat_map(|row| order.iter().map(|&column| row[column])).collect();
        let half = times(&ordered, 1.0, Strided { data: upper, row: 1, column: width });
        let whole = times(&half, 1.0, Strided { data: upper, row: width, column: 1 });
        for (to, from) in correction.chunks_exact_mut(width).zip(whole.chunks_exact(width)) {
            order.iter().zip(from).for_each(|(&column, value)| to[column] = *value);
        }
    });
    correction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cholesky::{Precision, inverse_upper_factor};
    use crate::testing::{random, with_threads};

    /// Shapes: one column, one row, odd, below and above a panel.
    const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 3), (1, 7, 20), (5, 31, 80), (130, 40, 90), (3, 150, 400)];

    fn sums(d: &[f32], x: &[f32], width: usize) -> Vec<f64> {
        let mut sums = vec![0.0; width * width];
        for (d, x) in d.chunks_exact(width).zip(x.chunks_exact(width)) {
            for i in 0..width {
                for j in 0..width {
                    sums[i * width + j] += f64::from(d[i]) * f64::from(x[j]);
                }
            }
        }
        sums
    }

    #[test]
    fn sums_agree_with_the_triple_loop() {
        for (_, width, rows) in SHAPES {
            let (d, x) = (random(rows * width, 1), random(rows * width, 2));
            let start = random(width * width, 3);
            let mut fast = start.clone();
            accumulate(&mut fast, &d, &x, width);
            let slow = sums(&d, &x, width);
            for ((fast, slow), start) in fast.iter().zip(slow).zip(&start) {
                // n + 1 terms of at most 1 in float32.
                let bound = 2f64.powi(-24) * ((rows + 1) * (rows + 1)) as f64;
                assert!((f64::from(*fast) - f64::from(*start) - slow).abs() <= bound, "{fast} {slow}");
            }
            accumulate(&mut fast, &[], &[], width);
        }
    }

    /// By its definition: no small change of the corrected weight lowers `‖(W+C) X − W X̃‖² + λ‖C‖²`, that is its
    /// gradient in float64 is zero up to the rounding of float32, beside what it is without the correction.
    #[test]
    fn the_correction_is_where_the_objective_has_no_slope() {
        for (outputs, width, rows) in SHAPES {
            let (x, d) = (random(rows * width, 4), random(rows * width, 5));
            let weight = random(outputs * width, 6);
            let (factor, lambda) = (2.0 / rows as f32, 0.05f32);
            let gram = sums(&x, &x, width);
            let order: Vec<usize> = (0..width).rev().collect();
            let mut h: Vec<f32> = Vec::new();
            for &i in &order {
                h.extend(
                    order.iter().map(|&j| factor * gram[i * width + j] as f32 + if i == j { lambda } else { 0.0 }),
                );
            }
            let upper = inverse_upper_factor(&h, width, Precision::Double).unwrap();
            let mut drift = vec![0.0; width * width];
            accumulate(&mut drift, &d, &x, width);
            let found = correction(&weight, &drift, factor, &order, &upper);
            let slope = |c: &[f32]| -> Vec<f64> {
                let mut slopes = Vec::new();
                for (w, c) in weight.chunks_exact(width).zip(c.chunks_exact(width)) {
                    for j in 0..width {
                        let fit: f64 = (0..rows)
                            .map(|t| {
                                let at = |i: usize| t * width + i;
                                let missing: f64 = (0..width)
                                    .map(|i| {
                                        f64::from(c[i]) * f64::from(x[at(i)]) - f64::from(w[i]) * f64::from(d[at(i)])
                                    })
                                    .sum();
                                missing * f64::from(x[at(j)])
                            })
                            .sum();
                        slopes.push(f64::from(factor) * fit + f64::from(lambda) * f64::from(c[j]));
                    }
                }
                slopes
            };
            let largest = |slopes: &[f64]| slopes.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let before = largest(&slope(&vec![0.0; weight.len()]));
            let after = largest(&slope(&found));
            assert!(after <= 1e-4 * before, "{outputs} x {width}: {after} of {before}");
        }
    }

    #[test]
    fn threads_do_not_matter_and_no_drift_is_no_correction() {
        let (outputs, width, rows) = (300, 200, 50);
        let (x, d, weight) = (random(rows * width, 1), random(rows * width, 2), random(outputs * width, 3));
        let upper = random(width * width, 4);
        let order: Vec<usize> = (0..width).collect();
        let run = |threads| {
            with_threads(threads, || {
                let mut drift = vec![0.0; width * width];
                accumulate(&mut drift, &d, &x, width);
                correction(&weight, &drift, 0.5, &order, &upper)
            })
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(5));
        let none = correction(&weight, &vec![0.0; width * width], 0.5, &order, &upper);
        assert!(none.iter().all(|c| *c == 0.0));
    }
}
