//! What is captured of a linear layer's input: additive, so that parts can be captured apart and merged.
//!
//! ```text
//! gram          G[i][j] = sum_t x[t][i] x[t][j]     float32, [width, width]; GPTQ's Hessian is 2/tokens times it
//! sum_absolute  a[i]    = sum_t |x[t][i]|           float64
//! sum_square    s[i]    = sum_t x[t][i]²            float64
//! drift         D[i][j] = sum_t d[t][i] x[t][j]     float32, [width, width]; only where two models are compared:
//!                                                   d = x̃ − x, x̃ the same input in the original model
//! ```
//!
//! All are plain sums over tokens: statistics of two texts are added by adding them ([`LayerStatistics::merge`]),
//! and a mixture of domains is their weighted sum ([`LayerStatistics::mixture`]).

use crate::CalibrationError;
use kernels::Compute;
use rayon::prelude::*;

/// Statistics of the input `x` (`[tokens, width]`) of the linears that share it.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    /// Width of the input.
    pub width: usize,
    /// Rows seen.
    pub tokens: usize,
    /// `XᵀX`, `[width, width]`, both triangles. GPTQ's Hessian is `2 / tokens` times this.
    pub gram: Vec<f32>,
    /// `sum |x|` per column, as AWQ wants it.
    pub sum_absolute: Vec<f64>,
    /// `sum x²` per column, as an importance matrix wants it.
    pub sum_square: Vec<f64>,
    /// `sum d x`, `[width, width]`, where the original model runs beside; it is not stored in statistics files.
    pub drift: Option<Vec<f32>>,
}

impl LayerStatistics {
    /// Statistics of no token at all.
    pub fn empty(width: usize) -> Self {
        Self {
            width,
            tokens: 0,
            gram: vec![0.0; width * width],
            sum_absolute: vec![0.0; width],
            sum_square: vec![0.0; width],
            drift: None,
        }
    }

    /// Adds the statistics of other tokens of the same layer.
    pub fn merge(&mut self, other: &Self) -> Result<(), CalibrationError> {
        self.add_scaled(other, 1.0)?;
        self.tokens += other.tokens;
        Ok(())
    }

    /// A mixture in which part `i` has the share `weight_i / sum of weights` of the tokens, however many it was captured
    /// from: `G = sum_i w_i T/T_i G_i` with `T` tokens in all, and the same for the column sums.
    pub fn mixture(parts: &[(f64, &Self)]) -> Result<Self, CalibrationError> {
        let (_, first) =
            parts.first().ok_or_else(|| CalibrationError::Option("a mixture needs at least one part".into()))?;
        let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
        let tokens: usize = parts.iter().map(|(_, part)| part.tokens).sum();
        let mut mixture = Self::empty(first.width);
        for &(weight, part) in parts {
            if !(weight > 0.0 && weight.is_finite()) || part.tokens == 0 {
                return Err(CalibrationError::Option(format!(
                    "a mixture's part has weight {weight} and {} tokens; both must be above zero",
                    part.tokens
                )));
            }
            mixture.add_scaled(part, weight / total * tokens as f64 / part.tokens as f64)?;
        }
        mixture.tokens = tokens;
        Ok(mixture)
    }

    /// The statistics of the input whose column `i` is divided by `factors[i]`, all above zero.
    pub fn divide_columns(&mut self, factors: &[f32]) {
        assert_eq!(factors.len(), self.width, "a factor for each column");
        for sums in [Some(&mut self.gram), self.drift.as_mut()].into_iter().flatten() {
            for (row, factor) in sums.chunks_exact_mut(self.width).zip(factors) {
                row.iter_mut().zip(factors).for_each(|(entry, other)| *entry /= factor * other);
            }
        }
        let columns = self.sum_absolute.iter_mut().zip(&mut self.sum_square).zip(factors);
        for ((absolute, square), factor) in columns {
            let factor = f64::from(*factor);
            *absolute /= factor;
            *square /= factor * factor;
        }
    }

    fn add_scaled(&mut self, other: &Self, factor: f64) -> Result<(), CalibrationError> {
        if self.width != other.width {
            return Err(CalibrationError::Option(format!(
                "statistics of inputs {} and {} wide can't be added: they belong to different layers",
                self.width, other.width
            )));
        }
        let add = |sums: &mut [f32], values: &[f32]| {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = (f64::from(*sum) + factor * f64::from(*value)) as f32;
            }
        };
        add(&mut self.gram, &other.gram);
        if let Some(drift) = &other.drift {
            let width = self.width;
            add(self.drift.get_or_insert_with(|| vec![0.0; width * width]), drift);
        }
        for (sum, value) in self.sum_absolute.iter_mut().zip(&other.sum_absolute) {
            *sum += factor * value;
        }
        for (sum, value) in self.sum_square.iter_mut().zip(&other.sum_square) {
            *sum += factor * value;
        }
        Ok(())
    }

    /// Whether every sum is a finite number. The column sums tell for the whole Gram matrix while it can't overflow:
    /// `|G[i][j]| <= (s[i] + s[j]) / 2`.
    pub fn is_finite(&self) -> bool {
        self.sum_square.iter().all(|sum| *sum < f64::from(f32::MAX))
            && self.drift.iter().flatten().all(|sum| sum.is_finite())
    }
}

/// Sums up the rows of an input; the Gram matrix has only its lower triangle until [`Accumulator::finish`].
pub struct Accumulator {
    sums: LayerStatistics,
    compute: Compute,
}

impl Accumulator {
    /// Sums for an input of `width` columns; `compute` is how the Gram matrix's products are taken.
    pub fn new(width: usize, compute: Compute) -> Self {
        Self { sums: LayerStatistics::empty(width), compute }
    }

    /// Adds rows `x` (`[rows, width]`). Uses the current thread pool; the result doesn't depend on its size, but, by the
    /// rounding of float32, on how rows are cut into calls.
    pub fn add(&mut self, x: &[f32]) {
        let sums = &mut self.sums;
        let width = sums.width;
        sums.tokens += x.len() / width;
        kernels::gram::accumulate_by(self.compute, &mut sums.gram, x, width);
        kernels::moments::accumulate(&mut sums.sum_absolute, &mut sums.sum_square, x);
    }

    /// [`Accumulator::add`]; where there are rows of the original model, also how far they are from `x`: `original` is as
    /// it was before its columns were divided by `divisors`.
    pub fn add_compared(&mut self, x: &[f32], original: Option<&[f32]>, divisors: Option<&[f32]>) {
        self.add(x);
        let Some(original) = original else { return };
        let width = self.sums.width;
        let mut d = original.to_vec();
        d.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(d, x)| {
            if let Some(divisors) = divisors {
                d.iter_mut().zip(divisors).for_each(|(d, by)| *d /= by);
            }
            d.iter_mut().zip(x).for_each(|(d, x)| *d -= x);
        });
        let drift = self.sums.drift.get_or_insert_with(|| vec![0.0; width * width]);
        kernels::drift::accumulate(drift, &d, x, width);
    }

    /// The statistics of all rows added.
    pub fn finish(mut self) -> LayerStatistics {
        kernels::gram::mirror(&mut self.sums.gram, self.sums.width);
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn captured(rows: &[f32], width: usize) -> LayerStatistics {
        let mut accumulator = Accumulator::new(width, Compute::F32);
        accumulator.add(rows);
        accumulator.finish()
    }

    /// `|a - b|` against the bound for float32 sums of `n` products of numbers below 4, `n 2^-24 * 16 n`, twice since
    /// both sides are such sums.
    fn assert_close(a: &LayerStatistics, b: &LayerStatistics) {
        assert_eq!((a.width, a.tokens), (b.width, b.tokens));
        let bound = 2.0 * 16.0 * (a.tokens * a.tokens) as f32 / (1 << 24) as f32;
        for (a, b) in a.gram.iter().zip(&b.gram) {
            assert!((a - b).abs() <= bound, "{a} and {b}, bound {bound}");
        }
        let sums = |s: &LayerStatistics| [s.sum_absolute.clone(), s.sum_square.clone()].concat();
        for (a, b) in sums(a).iter().zip(sums(b)) {
            assert!((a - b).abs() <= 1e-12 * (1.0 + a.abs()), "{a} and {b}");
        }
    }

    fn reference(rows: &[f32], width: usize) -> LayerStatistics {
        let mut sums = LayerStatistics::empty(width);
        sums.tokens = rows.len() / width;
        let mut gram = vec![0.0f64; width * width];
        for row in rows.chunks(width) {
            for i in 0..width {
                sums.sum_absolute[i] += f64::from(row[i].abs());
                sums.sum_square[i] += f64::from(row[i]) * f64::from(row[i]);
                for j in 0..width {
                    gram[i * width + j] += f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
        sums.gram = gram.into_iter().map(|value| value as f32).collect();
        sums
    }

    fn rows() -> impl Strategy<Value = (usize, Vec<f32>, Vec<f32>)> {
        (1usize..150).prop_flat_map(|width| {
            let rows = || (0usize..6).prop_flat_map(move |n| prop::collection::vec(-4.0f32..4.0, n * width));
            (Just(width), rows(), rows())
        })
    }

    proptest! {
        #[test]
        fn sums_equal_the_slow_reference((width, a, _) in rows()) {
            assert_close(&captured(&a, width), &reference(&a, width));
        }

        #[test]
        fn statistics_add_up((width, a, b) in rows()) {
            let mut merged = captured(&a, width);
            merged.merge(&captured(&b, width)).unwrap();
            assert_close(&merged, &captured(&[a.as_slice(), &b].concat(), width));
        }

        #[test]
        fn a_mixture_by_token_counts_is_the_sum((width, a, b) in rows()) {
            let (a, b) = (captured(&a, width), captured(&b, width));
            prop_assume!(a.tokens > 0 && b.tokens > 0);
            let mut merged = a.clone();
            merged.merge(&b).unwrap();
            assert_close(&LayerStatistics::mixture(&[(a.tokens as f64, &a), (b.tokens as f64, &b)]).unwrap(), &merged);
        }
    }

    #[test]
    fn a_mixture_weighs_domains_whatever_their_size() {
        let (a, b) = (captured(&[1.0], 1), captured(&[3.0, 3.0, 3.0], 1));
        let mixture = LayerStatistics::mixture(&[(1.0, &a), (1.0, &b)]).unwrap();
        // Half of the four tokens as in a, half as in b: 2 * 1 + 2 * 9.
        assert_eq!((mixture.tokens, mixture.gram[0], mixture.sum_absolute[0]), (4, 20.0, 8.0));
    }

    #[test]
    fn columns_divided_afterwards_are_as_if_they_had_been_captured_so() {
        let rows = [1.0, 2.0, -3.0, 4.0, 5.0, -6.0];
        let factors = [2.0, 0.5, 4.0]; // Powers of two, so that both ways are exact.
        let divided: Vec<f32> = rows.iter().zip(factors.iter().cycle()).map(|(x, factor)| x / factor).collect();
        let mut statistics = captured(&rows, 3);
        statistics.divide_columns(&factors);
        assert_eq!(statistics, captured(&divided, 3));
    }

    #[test]
    fn the_drift_of_an_input_is_summed_merged_and_divided_like_its_gram_matrix() {
        let (x, original) = ([1.0, 2.0, -3.0, 4.0], [1.5, 2.0, -2.0, 8.0]);
        let captured = |rows: std::ops::Range<usize>, divisors: Option<&[f32]>| {
            let mut accumulator = Accumulator::new(2, Compute::F32);
            accumulator.add_compared(&x[rows.clone()], Some(&original[rows]), divisors);
            accumulator.finish()
        };
        // d = (0.5, 0), (1, 4): D[i][j] = sum of d_i x_j.
        let mut whole = captured(0..4, None);
        assert_eq!(whole.drift.as_deref().unwrap(), [0.5 - 3.0, 1.0 + 4.0, -12.0, 16.0]);
        let mut parts = captured(0..2, None);
        parts.merge(&captured(2..4, None)).unwrap();
        assert_eq!(parts, whole);
        whole.divide_columns(&[2.0, 0.5]);
        assert_eq!(whole.drift.as_deref().unwrap(), [-2.5 / 4.0, 5.0, -12.0, 64.0]);
        // The same when rows that were divided meet the original's that were not: x / 2 and x · 2, d = (0.75 − x/2 ..).
        let mut accumulator = Accumulator::new(2, Compute::F32);
        accumulator.add_compared(&[0.5, 4.0, -1.5, 8.0], Some(&original), Some(&[2.0, 0.5]));
        assert_eq!(accumulator.finish(), whole);
        let mut overflown = captured(0..4, None);
        overflown.drift.as_mut().unwrap()[1] = f32::INFINITY;
        assert!(!overflown.is_finite());
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let (a, b) = (captured(&[1.0, 2.0], 2), captured(&[1.0, 2.0, 3.0], 3));
        assert!(a.clone().merge(&b).unwrap_err().to_string().contains("2 and 3"));
        assert!(LayerStatistics::mixture(&[]).is_err());
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(LayerStatistics::mixture(&[(weight, &a)]).is_err(), "{weight}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let rows: Vec<f32> = (0..300 * 200).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 300.0).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| captured(&rows, 200))
        };
        assert_eq!(on(1), on(2));
        assert_eq!(on(1), on(5));
    }

    #[test]
    fn overflow_is_noticed() {
        assert!(captured(&[1.0, 2.0], 2).is_finite());
        assert!(!captured(&[1.0, f32::NAN], 2).is_finite());
        assert!(!captured(&[f32::INFINITY, 1.0], 2).is_finite());
        assert!(!captured(&[1e20, 1.0], 2).is_finite());
    }
}
