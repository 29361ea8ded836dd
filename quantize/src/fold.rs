//! AWQ's factors over a whole block: searched stage by stage, folded at once, remembered for the report and the file.
//!
//! A stage is scaled if the user wants it, and if all of its linears are quantized, and the linear that produces its
//! input too: linears in full precision are never changed. Norms and biases that were changed are kept under their
//! names; they go into the journal and the checkpoint.

use crate::{
    Hessian, QuantizeError,
    awq::{self, Rounding},
    measure::{self, output_energy, relative_output_error, scaled_and_rounded},
    plan::{Objective, ValidPlan},
    solver::{ScalingReport, check_finite},
    sublayer::Trial,
};
use calibration::LayerStatistics;
use kernels::{Engine, Resident, cuda::CudaError};
use model::{Block, Linear, Stage};
use std::collections::BTreeMap;

/// Float tensors by their full names.
pub type Tensors = BTreeMap<String, Vec<f32>>;

/// What was folded into a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FoldedBlock {
    /// By module.
    pub modules: BTreeMap<String, Folded>,
    /// Norms and biases that changed.
    pub tensors: Tensors,
}

/// What was folded into a linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded {
    /// What each column was multiplied by.
    pub columns: Vec<f32>,
    /// What each row was divided by.
    pub rows: Vec<f32>,
    /// How the columns' factors were found; `None` where the stage was not scaled.
    pub report: Option<ScalingReport>,
}

/// Searches and folds the factors of every stage in `captured`; the statistics become those of the scaled inputs. `sample`
/// is the residual stream of a few windows before the block, for the objective that needs it.
pub fn fold(
    engine: &Engine,
    plan: &ValidPlan,
    block: &mut Block,
    captured: &mut [(Stage, LayerStatistics)],
    sample: &[Vec<f32>],
) -> Result<FoldedBlock, QuantizeError> {
    let given = block.small_tensors();
    let mut modules = BTreeMap::new();
    for linear in Stage::ALL.iter().flat_map(|&stage| block.linears(stage)) {
        check_finite(linear)?;
        modules.insert(linear.name.clone(), Folded::nothing(linear));
    }
    for (stage, statistics) in captured {
        let Some(roundings) = scalable(plan, block, *stage) else { continue };
        let channels = block.channels(*stage);
        let choice = search(engine, plan, block, (*stage, statistics), &roundings, sample)?;
        let columns: Vec<f32> = channels.iter().map(|&channel| choice.factors[channel]).collect();
        for linear in block.linears(*stage) {
            let folded = modules.get_mut(&linear.name).expect("every linear of the block is there");
            folded.columns.clone_from(&columns);
            folded.report = Some(ScalingReport::of(&choice));
        }
        if choice.exponent == 0.0 {
            continue;
        }
        if let Some((producer, rows)) = block.producing_rows(*stage) {
            let folded = modules.get_mut(&producer.name).expect("every linear of the block is there");
            folded.rows[rows].copy_from_slice(&choice.factors);
        }
        block.fold(*stage, &choice.factors);
        statistics.divide_columns(&columns);
    }
    let changed = block.small_tensors().into_iter().filter(|(name, values)| given.get(name) != Some(values)).collect();
    Ok(FoldedBlock { modules, tensors: changed })
}

/// The factors of `stage` by the objective that was asked for.
fn search(
    engine: &Engine,
    plan: &ValidPlan,
    block: &mut Block,
    (stage, statistics): (Stage, &LayerStatistics),
    roundings: &[Rounding<'_>],
    sample: &[Vec<f32>],
) -> Result<awq::Choice, CudaError> {
    let channels = block.channels(stage);
    let storable = |factors: &[f32]| block.storable(stage, factors);
    let candidates = awq::candidates(statistics, &channels, plan.options.awq.steps, storable);
    let gram = &statistics.gram;
    if let (Objective::Block, Some(mut trial)) = (plan.options.awq.objective, Trial::new(block, stage, sample)) {
        return awq::best(candidates, &channels, |columns| {
            let linears = trial.linears().iter().zip(roundings);
            let rounded =
                linears.map(|(linear, rounding)| scaled_and_rounded(&linear.weight, columns, gram, *rounding));
            let rounded = rounded.collect();
            Ok(trial.loss(rounded))
        });
    }
    let resident = Resident::new(engine, gram)?;
    let linears = block.linears(stage).iter().zip(roundings);
    let trials =
        linears.map(|(linear, rounding)| measure::Trial::new(&linear.weight, linear.inputs, &resident, *rounding));
    let trials: Vec<_> = trials.collect::<Result<_, _>>()?;
    awq::best(candidates, &channels, |columns| trials.iter().map(|trial| trial.rounding_energy(columns)).sum())
}

/// How each linear of `stage` will be rounded, if it is to be scaled and nothing that stays in full precision changes.
fn scalable<'a>(plan: &'a ValidPlan, block: &Block, stage: Stage) -> Option<Vec<Rounding<'a>>> {
    let quantized = |linear: &Linear| {
        let spec = plan.spec_of(&linear.name)?;
        Some(plan.blocks_of(&linear.name).map_or(Rounding::Groups(spec), Rounding::Blocks))
    };
    let producer = block.producing_rows(stage).is_none_or(|(producer, _)| quantized(producer).is_some());
    if !producer || !plan.options.awq.scaled.contains(&stage) {
        return None;
    }
    block.linears(stage).iter().map(quantized).collect()
}

impl Folded {
    /// Nothing folded into `linear`.
    pub fn nothing(linear: &Linear) -> Self {
        Self { columns: vec![1.0; linear.inputs], rows: vec![1.0; linear.outputs], report: None }
    }

    /// Rows of a scaled weight, `[outputs, width]`, in the units of the outputs that the given weight had.
    pub fn rows_restored(&self, scaled: &[f32], width: usize) -> Vec<f32> {
        let rows = scaled.chunks_exact(width).zip(&self.rows);
        rows.flat_map(|(row, factor)| row.iter().map(move |weight| weight * factor)).collect()
    }

    /// The weight as it was given, up to rounding.
    pub fn given(&self, scaled: &[f32], width: usize) -> Vec<f32> {
        let mut given = self.rows_restored(scaled, width);
        for row in given.chunks_exact_mut(width) {
            row.iter_mut().zip(&self.columns).for_each(|(weight, factor)| *weight /= factor);
        }
        given
    }

    /// The relative error of the outputs that the model as it was given had, of `changed` in place of the scaled weight.
    pub fn output_error(&self, linear: &Linear, changed: &[f32], hessian: &Hessian<'_>) -> Result<f64, CudaError> {
        let restored = |scaled: &[f32]| self.rows_restored(scaled, linear.inputs);
        let (weight, changed) = (restored(&linear.weight), restored(changed));
        let energy = output_energy(&weight, hessian.resident(), linear.inputs)?;
        relative_output_error(&weight, &changed, energy, hessian.resident(), linear.inputs)
    }

    /// Multiplies the columns of `weight` by the factors.
    pub fn multiply_columns(&self, weight: &mut [f32]) {
        for row in weight.chunks_exact_mut(self.columns.len()) {
            row.iter_mut().zip(&self.columns).for_each(|(weight, factor)| *weight *= factor);
        }
    }
}
