//! The quantization grid of a group: finding it, rounding to it.
//!
//! Asymmetric: `scale = (max - min) / max_code` with `min <= 0 <= max`, `zero = round(-min / scale)`. Symmetric:
//! `scale = 2 max|w| / max_code`, `zero = (max_code + 1) / 2`. The scale is rounded to float16 before anything is
//! quantized with it. `code = clamp(round(w / scale) + zero, 0, max_code)`; halves go to the even code.
//!
//! Where the zero-point would fall below `smallest_zero`, it becomes `smallest_zero` and the scale grows to
//! `max / (max_code - smallest_zero)`, so that the largest weight stays inside the grid.
//!
//! Weights that are not finite take no part in the fit; a not-a-number gets the code of zero, an infinity the last code
//! on its side. A group without any other weight than zero gets the scale 1.

use crate::dispatch::vectorized;
use crate::exponential::{LANES, power_2_4, sum_lanes};
use crate::{QuantSpec, ScaleSearch};
use half::f16;

/// Scale and zero-point of one group of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// The step, as it will be stored.
    pub scale: f16,
    /// The code that stands for zero.
    pub zero: u8,
}

impl Grid {
    /// The grid for `weights` under `spec` (bits, symmetry, scale search, smallest zero-point).
    pub fn fit(weights: &[f32], spec: &QuantSpec) -> Self {
        let (min, max) = range(weights);
        let full = Self::spanning(min, max, spec);
        match spec.scale_search {
            ScaleSearch::MinMax => full,
            ScaleSearch::Mse => Self::search(weights, min, max, spec, full),
        }
    }

    /// The grid over `[min, max]`, `min <= 0 <= max`.
    fn spanning(min: f32, max: f32, spec: &QuantSpec) -> Self {
        let max_code = spec.max_code() as f32;
        if min == 0.0 && max == 0.0 {
            let zero = if spec.symmetric { max_code.midpoint(1.0) as u8 } else { spec.smallest_zero };
            return Self { scale: f16::ONE, zero };
        }
        if spec.symmetric {
            let scale = stored_scale(max.max(-min) / max_code * 2.0, max_code);
            return Self { scale, zero: max_code.midpoint(1.0) as u8 };
        }
        // Divided one by one, since the difference may overflow.
        let scale = stored_scale(max / max_code - min / max_code, max_code);
        let zero = (-min / scale.to_f32()).round_ties_even().min(max_code) as u8;
        if zero >= spec.smallest_zero {
            return Self { scale, zero };
        }
        let above = max_code - f32::from(spec.smallest_zero);
        Self { scale: stored_scale(max / above, above), zero: spec.smallest_zero }
    }

    /// The grid over the range of `weights`, both ends drawn in to `keep` of it; 1 is the whole range.
    pub fn over(weights: &[f32], keep: f32, spec: &QuantSpec) -> Self {
        let (min, max) = range(weights);
        Self::spanning(keep * min, keep * max, spec)
    }

    /// Puts `w - value(nearest code)` in the place of each weight.
    pub fn rounding_errors(self, weights: &mut [f32], max_code: u32) {
        nearest_errors(weights, self.steps(max_code));
    }

    /// The best of the grids over `[p min, p max]`, `p = 1, 0.99, .. 0.21`, by the sum of |error|^2.4 over the group.
    fn search(weights: &[f32], min: f32, max: f32, spec: &QuantSpec, full: Self) -> Self {
        let finite: Vec<f32> = weights.iter().copied().filter(|w| w.is_finite()).collect();
        let unit = full.scale.to_f32();
        let error = |grid: Self| summed_error(&finite, grid.steps(spec.max_code()), unit);
        let mut best = (error(full), full);
        for step in 1..80u8 {
            let keep = 1.0 - f32::from(step) / 100.0;
            let grid = Self::spanning(keep * min, keep * max, spec);
            let sum = error(grid);
            if sum < best.0 {
                best = (sum, grid);
            }
        }
        best.1
    }

    /// The nearest code.
    #[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
    #[inline(always)]
    pub fn code(&self, weight: f32, max_code: u32) -> u8 {
        (self.steps(max_code).nearest(weight) + f32::from(self.zero)) as u8
    }

    /// The nearest codes of `weights`.
    pub(crate) fn codes(self, weights: &[f32], max_code: u32, codes: &mut [u8]) {
        nearest_codes(weights, self.steps(max_code), f32::from(self.zero), codes);
    }

    #[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
    #[inline(always)]
    fn steps(self, max_code: u32) -> Steps {
        let zero = f32::from(self.zero);
        Steps { scale: self.scale.to_f32(), lowest: -zero, highest: max_code as f32 - zero }
    }

    /// The weight that `code` stands for.
    #[inline]
    pub fn value(&self, code: u8) -> f32 {
        self.scale.to_f32() * (f32::from(code) - f32::from(self.zero))
    }
}

/// A grid in float32: the codes, counted from the zero-point.
#[derive(Clone, Copy)]
struct Steps {
    scale: f32,
    lowest: f32,
    highest: f32,
}

impl Steps {
    /// The nearest code minus the zero-point.
    #[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
    #[inline(always)]
    fn nearest(self, weight: f32) -> f32 {
        let steps = weight / self.scale;
        let steps = if steps.is_nan() { 0.0 } else { steps };
        // Comparisons instead of `clamp`, whose check of its bounds would stand in the way of vectors.
        let steps = if steps < self.lowest { self.lowest } else { steps };
        let steps = if steps > self.highest { self.highest } else { steps };
        steps.round_ties_even()
    }
}

vectorized! {
    /// The least and the greatest finite weight, or zero where that is further out.
    fn range(weights: &[f32]) -> (f32, f32) {
        let (mut min, mut max) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (chunks, rest) = weights.as_chunks::<LANES>();
        for chunk in chunks {
            for ((min, max), w) in min.iter_mut().zip(&mut max).zip(chunk) {
                let w = if w.is_finite() { *w } else { 0.0 };
                *min = if w < *min { w } else { *min };
                *max = if w > *max { w } else { *max };
            }
        }
        for w in min.into_iter().chain(max).chain(rest.iter().copied()).filter(|w| w.is_finite()) {
            min[0] = w.min(min[0]);
            max[0] = w.max(max[0]);
        }
        (min[0], max[0])
    }

    fn nearest_codes(weights: &[f32], steps: Steps, zero: f32, codes: &mut [u8]) {
        for (code, weight) in codes.iter_mut().zip(weights) {
            *code = (steps.nearest(*weight) + zero) as u8;
        }
    }

    fn nearest_errors(weights: &mut [f32], steps: Steps) {
        for weight in weights {
            *weight -= steps.scale * steps.nearest(*weight);
        }
    }

    /// The sum of |error / unit|^2.4 of finite weights.
    fn summed_error(weights: &[f32], steps: Steps, unit: f32) -> f32 {
        let inverse = 1.0 / unit;
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = weights.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, w) in lanes.iter_mut().zip(chunk) {
                *lane += power_2_4((w - steps.scale * steps.nearest(*w)) * inverse);
            }
        }
        for (lane, w) in lanes.iter_mut().zip(rest) {
            *lane += power_2_4((w - steps.scale * steps.nearest(*w)) * inverse);
        }
        sum_lanes(lanes)
    }
}

/// `scale` as float16, never zero or infinite. Among subnormal numbers the nearest may be much smaller than `scale`:
/// where the ends of a grid of `steps` steps would miss by more than half a step, the next larger number is taken.
fn stored_scale(scale: f32, steps: f32) -> f16 {
    let nearest = f16::from_f32(scale.min(f16::MAX.to_f32())).max(f16::MIN_POSITIVE_SUBNORMAL);
    let short = steps * (scale - nearest.to_f32()) > 0.5 * nearest.to_f32();
    if short && nearest < f16::MAX { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ActOrder;
    use crate::testing::random;
    use proptest::prelude::*;

    fn spec(bits: u32, symmetric: bool, smallest_zero: u8) -> QuantSpec {
        QuantSpec {
            bits,
            group_size: None,
            symmetric,
            act_order: ActOrder::None,
            scale_search: ScaleSearch::MinMax,
            smallest_zero,
        }
    }

    #[test]
    fn by_hand() {
        let grid = Grid::fit(&[-1.0, 0.0, 2.0], &spec(2, false, 0));
        assert_eq!(grid, Grid { scale: f16::ONE, zero: 1 });
        assert_eq!([-1.0, 0.4, 0.6, 2.0, 9.0, -9.0].map(|w| grid.code(w, 3)), [0, 1, 2, 3, 3, 0]);
        let grid = Grid::fit(&[-7.5, 3.0], &spec(4, true, 0));
        assert_eq!(grid, Grid { scale: f16::ONE, zero: 8 });
        // A half goes to the even code: -0.5 and 0.5 to the code of zero, 1.5 to two above it.
        assert_eq!([-0.5, 0.5, 1.5].map(|w| grid.code(w, 15)), [8, 8, 10]);
        // The scale is rounded first: 1/15 is 0.066650390625 in float16.
        let grid = Grid::fit(&[0.0, 1.0], &spec(4, false, 0));
        assert_eq!((grid.scale.to_f32(), grid.zero), (0.066_650_39, 0));
        // A smallest zero-point of 1 leaves fourteen steps for the maximum.
        let grid = Grid::fit(&[0.0, 14.0], &spec(4, false, 1));
        assert_eq!(grid, Grid { scale: f16::ONE, zero: 1 });
        assert_eq!(grid.value(grid.code(14.0, 15)), 14.0);
    }

    #[test]
    fn groups_that_bite() {
        let huge = f16::MAX.to_f32();
        let tiny = f16::MIN_POSITIVE_SUBNORMAL.to_f32();
        for bits in [2, 3, 4, 8] {
            for (symmetric, smallest_zero) in [(true, 0), (true, 1), (false, 0), (false, 1)] {
                let spec = spec(bits, symmetric, smallest_zero);
                let fit = |weights: &[f32]| {
                    let grid = Grid::fit(weights, &spec);
                    assert!(grid.scale.is_finite() && grid.scale > f16::ZERO && grid.zero >= spec.smallest_zero);
                    let value = |w: &f32| {
                        let code = grid.code(*w, spec.max_code());
                        assert!(u32::from(code) <= spec.max_code());
                        assert!(grid.value(code).is_finite());
                        grid.value(code)
                    };
                    weights.iter().map(value).collect::<Vec<_>>()
                };
                assert_eq!(fit(&[]), [0.0; 0]);
                assert_eq!(fit(&[0.0; 9]), [0.0; 9], "dead group");
                assert_eq!(fit(&[f32::NAN; 3]), [0.0; 3], "not-a-number");
                assert_eq!(fit(&[f32::NAN, 1.0, -1.0])[0], 0.0, "not-a-number beside weights");
                assert!(fit(&[f32::INFINITY, 1.0, -1.0])[0] > 0.3, "infinity saturates at the grid's end");
                assert_eq!(fit(&[1e-12, -1e-12]), [0.0; 2], "below the smallest float16 scale");
                fit(&[f32::MIN_POSITIVE, f32::MIN, f32::MAX]);
                // A scale beyond float16 saturates: the outlier is cut, the rest is whatever the widest grid allows.
                let cut = fit(&[1e9, -1.0]);
                assert!(cut[0] >= huge && cut[0] <= 1e9);
                // A subnormal scale still spans the group: every error stays within a step.
                let small: Vec<f32> = (0u8..=200).map(|i| f32::from(i) * tiny * 1.45).collect();
                for (w, value) in small.iter().zip(fit(&small)) {
                    let grid = Grid::fit(&small, &spec);
                    assert!((w - value).abs() <= grid.scale.to_f32(), "{w} became {value}");
                }
            }
        }
    }

    #[test]
    fn search_never_does_worse_and_shrinks_around_outliers() {
        for bits in [2, 3, 4, 8] {
            for symmetric in [true, false] {
                let minmax = spec(bits, symmetric, 0);
                let searched = QuantSpec { scale_search: ScaleSearch::Mse, ..minmax };
                let mut weights = random(64, u64::from(bits));
                weights[5] = 2.5;
                let (wide, narrow) = (Grid::fit(&weights, &minmax), Grid::fit(&weights, &searched));
                assert!(slow_error(narrow, &weights, bits) <= slow_error(wide, &weights, bits) * (1.0 + 2e-4));
                assert!(narrow.scale <= wide.scale);
                assert!(bits > 3 || narrow.scale < wide.scale, "at few bits an outlier is worth cutting");
                assert_best_of_all(&weights, &searched, narrow);
            }
        }
    }

    fn slow_error(grid: Grid, weights: &[f32], bits: u32) -> f64 {
        let value = |w: f32| f64::from(grid.value(grid.code(w, (1 << bits) - 1)));
        weights.iter().map(|&w| (f64::from(w) - value(w)).abs().powf(2.4)).sum()
    }

    /// The grid found is as good as the best of the 80 candidates, up to the 1e-4 that the fast power may err.
    fn assert_best_of_all(weights: &[f32], spec: &QuantSpec, found: Grid) {
        let (min, max) = weights.iter().fold((0.0f32, 0.0f32), |(a, b), w| (a.min(*w), b.max(*w)));
        let errors = (0..80u8).map(|step| {
            let keep = 1.0 - f32::from(step) / 100.0;
            slow_error(Grid::spanning(keep * min, keep * max, spec), weights, spec.bits)
        });
        let best = errors.fold(f64::INFINITY, f64::min);
        assert!(slow_error(found, weights, spec.bits) <= best * (1.0 + 2e-4));
    }

    #[test]
    fn a_range_is_drawn_in_at_both_ends() {
        let weights = [-1.5, 0.25, 3.0];
        let spec = spec(2, false, 0);
        assert_eq!(Grid::over(&weights, 1.0, &spec), Grid::fit(&weights, &spec));
        // Half of [-1.5, 3] is [-0.75, 1.5]: three steps of 0.75, zero at code 1.
        let grid = Grid::over(&weights, 0.5, &spec);
        assert_eq!(grid, Grid { scale: f16::from_f32(0.75), zero: 1 });
        let mut errors = weights;
        grid.rounding_errors(&mut errors, 3);
        assert_eq!(errors, [-0.75, 0.25, 1.5]);
    }

    proptest! {
        /// Errors stay within half a step; at the ends the rounded zero-point and the rounded scale (2^-11 relative, over
        /// `max_code` steps) may take as much again, and float32 division a little.
        #[test]
        fn errors_stay_within_the_step(
            weights in prop::collection::vec(-3.0f32..3.0, 1..40),
            bits in prop::sample::select(vec![2u32, 3, 4, 8]),
            symmetric: bool,
            smallest_zero in 0u8..2,
        ) {
            let spec = spec(bits, symmetric, smallest_zero);
            let grid = Grid::fit(&weights, &spec);
            let scale = grid.scale.to_f32();
            prop_assert!(grid.zero >= smallest_zero);
            for w in weights {
                let code = grid.code(w, spec.max_code());
                prop_assert!(u32::from(code) <= spec.max_code());
                let bound = 0.5 + spec.max_code() as f32 * 2.0f32.powi(-11) + 1e-3;
                prop_assert!((w - grid.value(code)).abs() <= bound * scale, "{} became {}", w, grid.value(code));
            }
        }
    }
}
