//! What is captured of a linear layer's input: additive, so that parts can be captured apart and merged.
//!
//! ```text
//! gram          G[i][j] = sum_t x[t][i] x[t][j]     float32, [width, width]; GPTQ's Hessian is 2/tokens times it
//! sum_absolute  a[i]    = sum_t |x[t][i]|           float64
//! sum_square    s[i]    = sum_t x[t][i]²            float64
//! ```
//!
//! All three are plain sums over tokens: statistics of two texts are added by adding them ([`LayerStatistics::merge`]),
//! and a mixture of domains is their weighted sum ([`LayerStatistics::mixture`]).

use crate::CalibrationError;
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

    fn add_scaled(&mut self, other: &Self, factor: f64) -> Result<(), CalibrationError> {
        if self.width != other.width {
            return Err(CalibrationError::Option(format!(
                "statistics of inputs {} and {} wide can't be added: they belong to different layers",
                self.width, other.width
            )));
        }
        for (sum, value) in self.gram.iter_mut().zip(&other.gram) {
            *sum = (f64::from(*sum) + factor * f64::from(*value)) as f32;
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
    }
}

/// Columns that one task sums; short enough for two rows of sums to stay in the first-level cache.
const STRIP: usize = 64;

/// Sums up the rows of an input; the Gram matrix has only its lower triangle until [`Accumulator::finish`].
pub struct Accumulator(LayerStatistics);

impl Accumulator {
    /// Sums for an input of `width` columns.
    pub fn new(width: usize) -> Self {
        Self(LayerStatistics::empty(width))
    }

    /// Adds rows `x` (`[rows, width]`). Uses the current thread pool; the result doesn't depend on its size, but, by the
    /// rounding of float32, on how rows are cut into calls.
    pub fn add(&mut self, x: &[f32]) {
        let sums = &mut self.0;
        let width = sums.width;
        sums.tokens += x.len() / width;
        kernels::gram::accumulate(&mut sums.gram, x, width);
        let strips = sums.sum_absolute.par_chunks_mut(STRIP).zip(sums.sum_square.par_chunks_mut(STRIP));
        strips.enumerate().for_each(|(strip, (absolute, square))| {
            for row in x.chunks_exact(width) {
                let row = &row[strip * STRIP..][..absolute.len()];
                for ((absolute, square), value) in absolute.iter_mut().zip(square.iter_mut()).zip(row) {
                    let value = f64::from(*value);
                    *absolute += value.abs();
                    *square += value * value;
                }
            }
        });
    }

    /// The statistics of all rows added.
    pub fn finish(mut self) -> LayerStatistics {
        kernels::gram::mirror(&mut self.0.gram, self.0.width);
        self.0
    }
}
