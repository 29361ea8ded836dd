//! Quantizing into the block formats of GGUF files, each on the grids that the format can store.
//!
//! ```text
//! rtn                   grids fitted to the weights, each rounded to the nearest code
//! rtn with calibration  the same, errors weighted by the columns' mean squared activations
//! gptq                  grids fitted, errors weighted by H_ii; then GPTQ's walk over the columns on these grids
//! awq, awq+gptq         inputs scaled first (`crate::fold`), then as with calibration, or as gptq
//! ```
//!
//! In GPTQ an error in column `i` alone costs `H_ii`, so that is its weight in the fit. A grid is whole, the scales of
//! its scales included, before its first column is rounded; what is packed are the walk's own codes. With `--act-order
//! none` and `group` a block's grid is fitted when the walk comes to it, on the weights as the columns before have left
//! them; with `static` all are fitted beforehand.

use crate::{
    Hessian, QuantizeError,
    fold::Folded,
    gptq::target,
    measure::{output_energy, output_error, relative},
    order::column_plan,
    plan::Method,
    solver::{Factorization, LayerReport, check_finite},
};
use kernels::{
    ActOrder, QuantSpec, ScaleSearch,
    cuda::CudaError,
    kquant::{
        BlockMatrix, BlockType, Weighting,
        compensate::{BlockPlan, compensate},
    },
};
use model::Linear;
use std::time::Instant;

/// How linears become blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockSolver {
    /// The method.
    pub method: Method,
    /// `λ` relative to the mean of the Hessian's diagonal.
    pub damping: f64,
    /// Share of the input's drift that is made up for, where it was captured.
    pub input_correction: f64,
    /// Order of columns.
    pub act_order: ActOrder,
}

/// The settings of a block format, as far as they have a place in a [`QuantSpec`].
pub fn spec(kind: BlockType, act_order: ActOrder) -> QuantSpec {
    use BlockType::{Iq4Nl, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    QuantSpec {
        bits: match kind {
            Q2K => 2,
            Q3K => 3,
            Q4_0 | Q4_1 | Q4K | Iq4Nl => 4,
            Q5_0 | Q5_1 | Q5K => 5,
            Q6K => 6,
            Q8_0 => 8,
        },
        group_size: Some(kind.sub_block()),
        symmetric: !matches!(kind, Q2K | Q4_1 | Q4K | Q5_1 | Q5K),
        act_order,
        scale_search: ScaleSearch::Mse,
        smallest_zero: 0,
    }
}

/// Rounds to nearest without looking at inputs; `importance` may come from a file.
pub fn round(
    linear: &Linear,
    kind: BlockType,
    importance: Option<&[f32]>,
) -> Result<(BlockMatrix, LayerReport), QuantizeError> {
    let started = Instant::now();
    check_finite(linear)?;
    let weighting = importance.map_or(Weighting::Plain, Weighting::Importance);
    let matrix = BlockMatrix::quantize(&linear.weight, linear.inputs, kind, weighting);
    let mut report = LayerReport::unmeasured(linear, &spec(kind, ActOrder::None));
    report.blocks = Some(kind);
    report.seconds = started.elapsed().as_secs_f64();
    Ok((matrix, report))
}

impl BlockSolver {
    /// The blocks for `linear`, and what they cost. `importance` replaces the mean squared activations of `hessian`.
    pub fn solve(
        &self,
        linear: &Linear,
        kind: BlockType,
        importance: Option<&[f32]>,
        hessian: &mut Hessian<'_>,
        folded: Option<&Folded>,
    ) -> Result<(BlockMatrix, LayerReport), QuantizeError> {
        let started = Instant::now();
        check_finite(linear)?;
        let mut report = LayerReport::unmeasured(linear, &spec(kind, self.act_order));
        let matrix = if self.method.compensates() {
            self.compensated(linear, kind, hessian, &mut report)?
        } else {
            let columns = importance.unwrap_or(hessian.diagonal());
            BlockMatrix::quantize(&linear.weight, linear.inputs, kind, Weighting::Importance(columns))
        };
        report.blocks = Some(kind);
        report.tokens = hessian.tokens();
        report.error_round_to_nearest = Some(error_of_nearest(linear, kind, hessian, folded)?);
        report.error = Some(match folded {
            Some(folded) => folded.output_error(linear, &matrix.dequantize(), hessian)?,
            None => output_error(linear, &matrix.dequantize(), hessian)?,
        });
        report.scaling = folded.and_then(|folded| folded.report.clone());
        report.dead_columns = hessian.dead().to_vec();
        report.seconds = started.elapsed().as_secs_f64();
        Ok((matrix, report))
    }

    fn compensated(
        &self,
        linear: &Linear,
        kind: BlockType,
        hessian: &mut Hessian<'_>,
        report: &mut LayerReport,
    ) -> Result<BlockMatrix, QuantizeError> {
        let blockwise = QuantSpec { group_size: Some(kind.columns()), ..spec(kind, self.act_order) };
        let plan = column_plan(hessian.diagonal(), &blockwise);
        let factor = hessian.factor(&plan.order, self.damping, &linear.name)?;
        let weight = target(linear, hessian, &factor, self.input_correction)?;
        report.factorization = Some(Factorization::of(&factor, self.damping));
        let plan = BlockPlan {
            kind,
            order: &plan.order,
            fixed_grids: plan.fixed_grids,
            weighting: Weighting::Exact(hessian.diagonal()),
        };
        Ok(compensate(&weight, &factor.upper.to_host()?, &plan))
    }
}

/// What plainly rounding the weights as they were given would cost, in the outputs of the model as it was given.
fn error_of_nearest(
    linear: &Linear,
    kind: BlockType,
    hessian: &Hessian<'_>,
    folded: Option<&Folded>,
) -> Result<f64, CudaError> {
    let (gram, width) = (hessian.resident(), linear.inputs);
    let rounded = |weight: &[f32]| BlockMatrix::quantize(weight, width, kind, Weighting::Plain).dequantize();
    let Some(folded) = folded else { return output_error(linear, &rounded(&linear.weight), hessian) };
    // The input is `x / s`, so that an error E of the given weight does as much harm as E·s here.
    let mut nearest = folded.given(&linear.weight, width);
    let plain = rounded(&nearest);
    nearest.iter_mut().zip(plain).for_each(|(w, q)| *w -= q);
    folded.multiply_columns(&mut nearest);
    let whole = output_energy(&folded.rows_restored(&linear.weight, width), gram, width)?;
    Ok(relative(output_energy(&nearest, gram, width)?, whole))
}
