//! Rounding to nearest: each weight to the closest code of its group's grid. The baseline that any method must beat,
//! and the only one that needs no calibration.

use crate::{
    Hessian, QuantizeError,
    measure::output_error,
    solver::{LayerReport, Solver, check_finite},
};
use kernels::{Engine, QuantSpec, QuantizedMatrix};
use model::Linear;
use std::time::Instant;

/// Round to nearest, measured on calibration inputs.
pub struct RoundToNearest {
    /// Where the rounding is done.
    pub engine: Engine,
}

impl Solver for RoundToNearest {
    fn solve(
        &self,
        linear: &Linear,
        spec: &QuantSpec,
        hessian: &mut Hessian<'_>,
    ) -> Result<(QuantizedMatrix, LayerReport), QuantizeError> {
        let started = Instant::now();
        let (matrix, mut report) = round(linear, spec, &self.engine)?;
        let error = output_error(linear, &matrix.dequantize(), hessian)?;
        report.tokens = hessian.tokens();
        report.error_round_to_nearest = Some(error);
        report.error = Some(error);
        report.dead_columns = hessian.dead().to_vec();
        report.seconds = started.elapsed().as_secs_f64();
        Ok((matrix, report))
    }
}

/// Rounds without looking at inputs; the report holds no errors.
pub fn round(
    linear: &Linear,
    spec: &QuantSpec,
    engine: &Engine,
) -> Result<(QuantizedMatrix, LayerReport), QuantizeError> {
    let started = Instant::now();
    check_finite(linear)?;
    let matrix = engine.round_to_nearest(&linear.weight, linear.inputs, spec)?;
    let seconds = started.elapsed().as_secs_f64();
    let report = LayerReport { seconds, ..LayerReport::unmeasured(linear, spec) };
    Ok((matrix, report))
}
