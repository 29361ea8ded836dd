//! The seam between a method and everything around it: [`Solver`], one method, weight and statistics in, integers out.

use crate::{Hessian, QuantizeError};
use kernels::{QuantSpec, QuantizedMatrix, cholesky::Precision, kquant::BlockType};
use model::Linear;
use serde::{Deserialize, Serialize};

/// A way to quantize a linear layer given what its inputs look like.
pub trait Solver: Sync {
    /// The integers for `linear` under `spec`, and what they cost.
    fn solve(
        &self,
        linear: &Linear,
        spec: &QuantSpec,
        hessian: &mut Hessian<'_>,
    ) -> Result<(QuantizedMatrix, LayerReport), QuantizeError>;
}

/// What is known of one quantized module. All but `seconds` is the same on every run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Module name.
    pub module: String,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Its settings.
    pub spec: QuantSpec,
    /// The block format, where it was quantized into one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockType>,
    /// Calibration tokens its inputs were measured on; 0 without calibration.
    pub tokens: usize,
    /// `‖ΔW X‖² / ‖W X‖²` of rounding to nearest, where there was calibration.
    pub error_round_to_nearest: Option<f64>,
    /// The same of what is written: after error compensation, where the method has it.
    pub error: Option<f64>,
    /// How the input was scaled, where the method does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingReport>,
    /// How ranges were drawn in, where the method does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipping: Option<ClippingReport>,
    /// How the Hessian was factored, where the method does.
    pub factorization: Option<Factorization>,
    /// Columns whose input was always zero.
    pub dead_columns: Vec<usize>,
    /// Columns whose input was almost always zero.
    pub near_dead_columns: Vec<usize>,
    /// How many directions the input really uses, `trace(G)² / ‖G‖²`, where there was calibration.
    pub effective_rank: Option<f64>,
    /// Seconds of solving and measuring; not part of what is written.
    #[serde(default)]
    pub seconds: f64,
}

/// How the input of a stage was scaled; the same for all linears that share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalingReport {
    /// The exponent of the channels' magnitudes; 0 is no scaling.
    pub exponent: f64,
    /// The least factor.
    pub least: f32,
    /// The greatest factor.
    pub greatest: f32,
    /// `Σ ‖E X‖²` over the stage's linears rounded to nearest, with these factors over without them.
    pub loss_ratio: f64,
}

impl ScalingReport {
    /// The record of `choice`.
    pub fn of(choice: &crate::awq::Choice) -> Self {
        let factors = || choice.factors.iter().copied();
        let unscaled = choice.loss_unscaled;
        Self {
            exponent: choice.exponent,
            least: factors().fold(f32::INFINITY, f32::min),
            greatest: factors().fold(0.0, f32::max),
            loss_ratio: if unscaled > 0.0 { choice.loss / unscaled } else { 1.0 },
        }
    }
}

/// How the ranges of a module's groups were drawn in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClippingReport {
    /// Groups of all rows.
    pub groups: usize,
    /// Those whose range was drawn in.
    pub clipped: usize,
    /// The mean share of the range that was kept, over all groups.
    pub mean_kept: f64,
}

impl ClippingReport {
    /// Of the shares kept in all groups.
    pub fn of(keep: &[f32]) -> Self {
        Self {
            groups: keep.len(),
            clipped: keep.iter().filter(|keep| **keep < 1.0).count(),
            mean_kept: keep.iter().map(|keep| f64::from(*keep)).sum::<f64>() / keep.len().max(1) as f64,
        }
    }
}

/// How a Hessian was factored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Factorization {
    /// Relative damping asked for.
    pub damping_asked: f64,
    /// Relative damping used: more than asked for if the factorization failed.
    pub damping: f64,
    /// `float32`, or `float64` where float32 failed.
    pub precision: String,
    /// Columns whose pivot float32 can't tell from zero.
    pub degenerate_columns: Vec<usize>,
}

impl LayerReport {
    /// Of `linear` under `spec`, with nothing measured yet.
    pub fn unmeasured(linear: &Linear, spec: &QuantSpec) -> Self {
        Self {
            module: linear.name.clone(),
            outputs: linear.outputs,
            inputs: linear.inputs,
            spec: *spec,
            blocks: None,
            tokens: 0,
            error_round_to_nearest: None,
            error: None,
            scaling: None,
            clipping: None,
            factorization: None,
            dead_columns: Vec::new(),
            near_dead_columns: Vec::new(),
            effective_rank: None,
            seconds: 0.0,
        }
    }
}

impl Factorization {
    /// The record of `factor`.
    pub fn of(factor: &crate::hessian::Factor, damping_asked: f64) -> Self {
        let precision = match factor.precision {
            Precision::Single => "float32",
            Precision::Double => "float64",
        };
        Self {
            damping_asked,
            damping: factor.damping,
            precision: precision.to_owned(),
            degenerate_columns: factor.degenerate.clone(),
        }
    }
}

/// Refuses a weight that holds NaN or infinity.
pub fn check_finite(linear: &Linear) -> Result<(), QuantizeError> {
    if linear.weight.iter().all(|w| w.is_finite()) {
        return Ok(());
    }
    Err(QuantizeError::NotFinite { module: linear.name.clone(), what: "its weights are" })
}
