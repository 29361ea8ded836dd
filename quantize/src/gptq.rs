//! GPTQ (Frantar et al. 2022): minimise `tr((W−Q) H (W−Q)ᵀ)` column by column, letting the columns still to come take
//! up the error of those already rounded.
//!
//! ```text
//! H   = 2/tokens Σ x xᵀ                         the curvature of the layer's squared output error
//! W_i = 0, H_ii = 1      where H_ii = 0         dead columns
//! P   = order of columns, dear ones first       and which columns share a grid
//! H   = H[P,P] + damping · mean(diag H) · I
//! U   : H⁻¹ = Uᵀ U, U upper
//! for j in P:                                   per row of W, in blocks of columns
//!     grid  = fit(group of j)                   at the group's first column, or beforehand; scale as stored
//!     q_j   = round(w_j to grid)                an integer; it is what will be packed
//!     e     = (w_j − value(q_j)) / U_jj
//!     w_k  −= e U_jk         for all k after j
//! Q   = Q[P⁻¹]                                  codes in stored order, groups by index
//! ```
//!
//! With an *input correction* (asymmetric calibration, as in GPTAQ, Li et al. 2025) the quantized layer is to give on the
//! input `X` that quantized layers leave it what the given one gave in the original model on `X̃ = X + D`. Then
//!
//! ```text
//! J(Q) = ‖Q X − W X̃‖² + λ‖Q − W‖²
//!      = (Q−W) H (Q−W)ᵀ − 2 (Q−W) X Dᵀ Wᵀ + const     H = X Xᵀ + λ as above; the trace is left out
//!      = (Q−T) H (Q−T)ᵀ + const,   T = W + W D Xᵀ H⁻¹
//! ```
//!
//! so that GPTQ on the target `T` in place of `W` minimises `J`: whichever columns are rounded already, what it makes of
//! the others is the least of `J` given those. (The published method takes up the drift of a column only in the columns
//! after it and leaves the column itself as it was: a triangle of the same correction.) `T` needs nothing but the sums
//! `D Xᵀ` and the factor; groups and grids are fitted on it. A share `α` of the correction has the target `W + α (T − W)`.
//!
//! `W` is `[outputs, inputs]`. The order is [`crate::order`], damping and factor are [`crate::hessian`], the loop over
//! columns is `kernels::block_solve`; the factor is shared by all linears of a stage that visit columns alike.

use crate::{
    Hessian, QuantizeError,
    awq::Rounding,
    hessian::Factor,
    measure::{Trial, relative},
    order::column_plan,
    solver::{Factorization, LayerReport, Solver, check_finite},
};
use kernels::{
    Engine, QuantSpec, QuantizedMatrix, Resident, block_solve::Grids, cuda::CudaError, drift, engine::Solution,
};
use model::Linear;
use std::{rc::Rc, time::Instant};

/// The method with its one number.
pub struct Gptq {
    /// `λ` relative to the mean of the Hessian's diagonal.
    pub damping: f64,
    /// `α`: how much of the input's drift is made up for, where it was captured.
    pub input_correction: f64,
    /// Whether the errors of the outputs are measured too, which takes longer than solving.
    pub measured: bool,
    /// Where the loop over columns runs.
    pub engine: Engine,
}

impl Solver for Gptq {
    fn solve(
        &self,
        linear: &Linear,
        spec: &QuantSpec,
        hessian: &mut Hessian<'_>,
    ) -> Result<(QuantizedMatrix, LayerReport), QuantizeError> {
        let started = Instant::now();
        check_finite(linear)?;
        let (solution, factor) = self.compensate(linear, spec, hessian, |_, _, _| Ok(None))?;
        let mut report = self.measure(linear, &solution, hessian, &factor)?;
        report.seconds = started.elapsed().as_secs_f64();
        Ok((solution.matrix, report))
    }
}

impl Gptq {
    /// The integers and the factor they were made with. `grids` may find grids for the weight beforehand, given the Gram
    /// matrix and each column's group; where it finds none they are fitted as the order of columns says.
    pub(crate) fn compensate(
        &self,
        linear: &Linear,
        spec: &QuantSpec,
        hessian: &mut Hessian<'_>,
        grids: impl FnOnce(&[f32], &Resident<'_>, &[u32]) -> Result<Option<Grids>, CudaError>,
    ) -> Result<(Solution, Rc<Factor>), QuantizeError> {
        let plan = column_plan(hessian.diagonal(), spec);
        let factor = hessian.factor(&plan.order, self.damping, &linear.name)?;
        let weight = target(linear, hessian, &factor, self.input_correction)?;
        let grids = grids(&weight, hessian.resident(), &plan.group_index)?;
        let solution = self.engine.compensate(&weight, &factor.upper, &plan, spec, grids.as_ref())?;
        Ok((solution, factor))
    }

    /// What the integers cost, and what plain rounding would have.
    fn measure(
        &self,
        linear: &Linear,
        solution: &Solution,
        hessian: &Hessian<'_>,
        factor: &Factor,
    ) -> Result<LayerReport, QuantizeError> {
        let known = LayerReport {
            tokens: hessian.tokens(),
            factorization: Some(Factorization::of(factor, self.damping)),
            dead_columns: hessian.dead().to_vec(),
            ..LayerReport::unmeasured(linear, &solution.matrix.spec)
        };
        if !self.measured {
            return Ok(known);
        }
        let (gram, width) = (hessian.resident(), linear.inputs);
        let trial = Trial::new(&linear.weight, width, gram, Rounding::Groups(&solution.matrix.spec))?;
        let energy = trial.output_energy()?;
        Ok(LayerReport {
            error_round_to_nearest: Some(relative(trial.rounding_energy(&vec![1.0; width])?, energy)),
            error: Some(relative(trial.error_energy(solution)?, energy)),
            ..known
        })
    }
}

/// What is to be rounded: `W` without dead columns, and the correction of the input's drift.
pub(crate) fn target(
    linear: &Linear,
    hessian: &Hessian<'_>,
    factor: &Factor,
    input_correction: f64,
) -> Result<Vec<f32>, CudaError> {
    let mut weight = zero_dead_columns(linear, hessian.dead());
    let Some(drift) = hessian.drift().filter(|_| input_correction > 0.0) else { return Ok(weight) };
    let upper = factor.upper.to_host()?;
    let correction = drift::correction(&linear.weight, drift, hessian.scale(), &factor.order, &upper);
    for (weight, correction) in weight.iter_mut().zip(correction) {
        *weight += input_correction as f32 * correction;
    }
    Ok(weight)
}

/// The weight with columns whose input is always zero set to zero: they cost nothing and need no code but zero's.
fn zero_dead_columns(linear: &Linear, dead: &[usize]) -> Vec<f32> {
    let mut weight = linear.weight.clone();
    for row in weight.chunks_exact_mut(linear.inputs) {
        for &column in dead {
            row[column] = 0.0;
        }
    }
    weight
}
