//! Quantizing into the block formats of GGUF files, each on the grids that the format can store.
//!
//! ```text
//! rtn                   grids fitted to the weights, each rounded to the nearest code
//! rtn with calibration  the same, errors weighted by the columns' mean squared activations
//! gptq                  grids fitted, errors weighted by H_ii; then GPTQ's walk over the columns on these grids
//! ```
//!
//! In GPTQ an error in column `i` alone costs `H_ii`, so that is its weight in the fit. A grid is whole, the scales of
//! its scales included, before its first column is rounded; what is packed are the walk's own codes. With `--act-order
//! none` and `group` a block's grid is fitted when the walk comes to it, on the weights as the columns before have left
//! them; with `static` all are fitted beforehand.

use crate::{
    Hessian, QuantizeError,
    gptq::zero_dead_columns,
    measure::output_error,
    order::column_plan,
    plan::Method,
    solver::{Factorization, LayerReport, check_finite},
};
use kernels::{
    ActOrder, QuantSpec, ScaleSearch,
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
    ) -> Result<(BlockMatrix, LayerReport), QuantizeError> {
        let started = Instant::now();
        check_finite(linear)?;
        let plain = BlockMatrix::quantize(&linear.weight, linear.inputs, kind, Weighting::Plain);
        let mut report = LayerReport::unmeasured(linear, &spec(kind, self.act_order));
        let matrix = if self.method == Method::Gptq {
            self.compensated(linear, kind, hessian, &mut report)?
        } else {
            let columns = importance.unwrap_or(hessian.diagonal());
            BlockMatrix::quantize(&linear.weight, linear.inputs, kind, Weighting::Importance(columns))
        };
        report.blocks = Some(kind);
        report.tokens = hessian.tokens();
        report.error_round_to_nearest = Some(output_error(linear, &plain.dequantize(), hessian));
        report.error = Some(output_error(linear, &matrix.dequantize(), hessian));
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
        let weight = zero_dead_columns(linear, hessian.dead());
        report.factorization = Some(Factorization::of(&factor, self.damping));
        let plan = BlockPlan {
            kind,
            order: &plan.order,
            fixed_grids: plan.fixed_grids,
            weighting: Weighting::Exact(hessian.diagonal()),
        };
        Ok(compensate(&weight, &factor.upper, &plan))
    }
}
