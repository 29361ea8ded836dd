//! How much of a layer's output a change of its weight costs: `‖ΔW X‖² / ‖W X‖² = tr(ΔW G ΔWᵀ) / tr(W G Wᵀ)`, `G = XᵀX`.
//!
//! Free of scale, of the number of tokens and of the width, so that layers and tools can be compared. Products are
//! float32, sums over a row and over rows float64, in an order fixed by the shape.

use crate::{Hessian, awq::Rounding};
use kernels::{
    Resident, block_solve,
    cuda::{self, Buffer, CudaError, Device},
    engine::Solution,
    gemm,
    kquant::{BlockMatrix, Weighting},
};
use model::Linear;
use rayon::prelude::*;

/// Rows multiplied at once by one thread: enough to make reading `G` cheap beside the products.
const ROWS_AT_ONCE: usize = 128;

/// `tr(A G Aᵀ) = ‖A X‖²` for `a` `[rows, width]` and the Gram matrix `gram` `[width, width]`, where that is.
pub fn output_energy(a: &[f32], gram: &Resident<'_>, width: usize) -> Result<f64, CudaError> {
    match gram {
        Resident::Host(gram) => {
            let parts: Vec<f64> = a.par_chunks(ROWS_AT_ONCE * width).map(|a| energy(a, gram, width)).collect();
            Ok(parts.iter().sum())
        }
        Resident::Device { device, numbers, .. } => Ok(device.row_energies(a, width, numbers)?.iter().sum()),
    }
}

/// A weight of which is asked what changes of it do to its outputs.
pub struct Trial<'a> {
    /// `[rows, width]`.
    weight: &'a [f32],
    width: usize,
    /// Of its input, `[width, width]`.
    gram: &'a Resident<'a>,
    rounding: Rounding<'a>,
    /// The weight where the Gram matrix is. Blocks are rounded on the CPU wherever that is.
    there: Option<(&'a Device, &'a Buffer<f32>, cuda::Trial)>,
}

impl<'a> Trial<'a> {
    /// Of `weight`, `[rows, width]`, to be rounded as `rounding` says.
    pub fn new(
        weight: &'a [f32],
        width: usize,
        gram: &'a Resident<'a>,
        rounding: Rounding<'a>,
    ) -> Result<Self, CudaError> {
        let there = match (gram, rounding) {
            (Resident::Device { device, numbers, .. }, Rounding::Groups(spec)) => {
                Some((&**device, numbers, cuda::Trial::new(device, weight, width, spec)?))
            }
            _ => None,
        };
        Ok(Self { weight, width, gram, rounding, there })
    }

    /// `‖W X‖²`.
    pub fn output_energy(&self) -> Result<f64, CudaError> {
        match &self.there {
            Some((device, gram, trial)) => Ok(trial.energies(device, gram)?.iter().sum()),
            None => output_energy(self.weight, self.gram, self.width),
        }
    }

    /// `‖(W − Q) X‖²`.
    pub fn error_energy(&self, solution: &Solution) -> Result<f64, CudaError> {
        if let (Some((device, gram, trial)), Some(matrix)) = (&self.there, &solution.there) {
            return Ok(trial.error_energies(device, matrix, gram)?.iter().sum());
        }
        let errors: Vec<f32> = self.weight.iter().zip(solution.matrix.dequantize()).map(|(w, q)| w - q).collect();
        output_energy(&errors, self.gram, self.width)
    }

    /// `‖E X‖²` for `E = round(W·s) / s − W`: what rounding costs when column `c` of the weight is multiplied by
    /// `factors[c]` and its input divided by it.
    pub fn rounding_energy(&self, factors: &[f32]) -> Result<f64, CudaError> {
        if let Some((device, gram, trial)) = &self.there {
            return Ok(trial.rounding_energies(device, factors, gram)?.iter().sum());
        }
        let importance = importance(factors, &self.gram.to_host()?);
        let rows = self.weight.par_chunks(ROWS_AT_ONCE * self.width);
        let errors = rows.map(|rows| scaled_errors(rows, factors, &importance, self.rounding));
        match self.gram {
            Resident::Host(gram) => {
                let parts: Vec<f64> = errors.map(|errors| energy(&errors, gram, self.width)).collect();
                Ok(parts.iter().sum())
            }
            Resident::Device { .. } => output_energy(&errors.collect::<Vec<_>>().concat(), self.gram, self.width),
        }
    }
}

/// `round(W·s) / s`, as above.
pub fn scaled_and_rounded(weight: &[f32], factors: &[f32], gram: &[f32], rounding: Rounding<'_>) -> Vec<f32> {
    let importance = importance(factors, gram);
    let rounded = weight.par_chunks(ROWS_AT_ONCE * factors.len()).flat_map_iter(|rows| {
        let errors = scaled_errors(rows, factors, &importance, rounding);
        rows.iter().zip(errors).map(|(weight, error)| weight - error).collect::<Vec<_>>()
    });
    rounded.collect()
}

/// The mean squares of the scaled input, up to a factor: what blocks are fitted with.
fn importance(factors: &[f32], gram: &[f32]) -> Vec<f32> {
    let diagonal = gram.iter().step_by(factors.len() + 1).zip(factors);
    diagonal.map(|(square, factor)| square / (factor * factor)).collect()
}

/// `W − round(W·s) / s` of some rows.
fn scaled_errors(rows: &[f32], factors: &[f32], importance: &[f32], rounding: Rounding<'_>) -> Vec<f32> {
    let width = factors.len();
    let scaled = rows.chunks_exact(width).flat_map(|row| row.iter().zip(factors).map(|(w, factor)| w * factor));
    let mut left: Vec<f32> = scaled.collect();
    match rounding {
        Rounding::Groups(spec) => block_solve::rounding_errors(&mut left, width, spec),
        Rounding::Blocks(kind) => {
            let rounded = BlockMatrix::quantize(&left, width, kind, Weighting::Importance(importance)).dequantize();
            left.iter_mut().zip(rounded).for_each(|(w, q)| *w -= q);
        }
    }
    for row in left.chunks_exact_mut(width) {
        row.iter_mut().zip(factors).for_each(|(error, factor)| *error /= factor);
    }
    left
}

/// [`output_energy`] of few rows, on the calling thread.
fn energy(a: &[f32], gram: &[f32], width: usize) -> f64 {
    let mut product = vec![0.0; a.len()];
    gemm::linear(a, gram, None, width, &mut product);
    a.iter().zip(&product).map(|(a, p)| f64::from(*a) * f64::from(*p)).sum()
}

/// The relative output error of `changed` against `weight`, whose own output energy is `energy`.
pub fn relative_output_error(
    weight: &[f32],
    changed: &[f32],
    energy: f64,
    gram: &Resident<'_>,
    width: usize,
) -> Result<f64, CudaError> {
    let delta: Vec<f32> = weight.iter().zip(changed).map(|(w, c)| w - c).collect();
    Ok(relative(output_energy(&delta, gram, width)?, energy))
}

/// `lost` of `energy`; 0 where there is no output to lose.
pub fn relative(lost: f64, energy: f64) -> f64 {
    if energy > 0.0 { lost.max(0.0) / energy } else { 0.0 }
}

/// [`relative_output_error`] of `changed` in place of the weight of `linear`.
pub fn output_error(linear: &Linear, changed: &[f32], hessian: &Hessian<'_>) -> Result<f64, CudaError> {
    let gram = hessian.resident();
    let energy = output_energy(&linear.weight, gram, linear.inputs)?;
    relative_output_error(&linear.weight, changed, energy, gram, linear.inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// `‖A X‖²` by its definition, in float64.
    fn energy_by_definition(a: &[f32], x: &[f32], width: usize) -> f64 {
        let dot = |a: &[f32], x: &[f32]| a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x)).sum::<f64>();
        a.chunks_exact(width).flat_map(|a| x.chunks_exact(width).map(move |x| dot(a, x).powi(2))).sum()
    }

    #[test]
    fn the_trace_is_the_energy_of_the_output() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for (rows, width, tokens) in [(1, 1, 1), (300, 17, 40), (5, 64, 9)] {
            let a: Vec<f32> = (0..rows * width).map(|_| random.random_range(-1.0..1.0)).collect();
            let x: Vec<f32> = (0..tokens * width).map(|_| random.random_range(-1.0..1.0)).collect();
            let mut gram = vec![0.0f32; width * width];
            for x in x.chunks_exact(width) {
                for i in 0..width {
                    for j in 0..width {
                        gram[i * width + j] += x[i] * x[j];
                    }
                }
            }
            let wanted = energy_by_definition(&a, &x, width);
            let got = output_energy(&a, &Resident::Host(gram.into()), width).unwrap();
            // Each product carries at most (tokens + width) roundings of relative size 2^-24 on terms whose sum of
            // magnitudes is below rows * width^2 * tokens.
            let bound = f64::from(f32::EPSILON) * ((tokens + width) * rows * width * width * tokens) as f64;
            assert!((got - wanted).abs() <= bound, "{rows}x{width}: {got} against {wanted}");
        }
    }

    #[test]
    fn an_unchanged_weight_loses_nothing_and_a_zeroed_one_everything() {
        let (weight, gram) = ([1.0, -2.0, 0.5, 3.0], Resident::Host([2.0, 0.5, 0.5, 1.0][..].into()));
        let energy = output_energy(&weight, &gram, 2).unwrap();
        let error =
            |weight: &[f32], changed: &[f32], energy| relative_output_error(weight, changed, energy, &gram, 2).unwrap();
        assert_eq!(error(&weight, &weight, energy), 0.0);
        assert!((error(&weight, &[0.0; 4], energy) - 1.0).abs() < 1e-6);
        assert_eq!(error(&[0.0; 4], &[0.0; 4], 0.0), 0.0);
    }
}
