//! The proof before success is reported: what was written is opened as any loader would, and must give back the
//! solver's integers, scales, zero-points and group indices bit for bit, and with them the very weights whose output
//! error was measured; norms and biases that the method changed, too. What it is compared with is the journal, whose
//! files were read back as soon as they were written and hold what the solver gave and measured (`crate::visitor`). The
//! errors in the report are therefore those of the checkpoint. Where a format holds float weights, they must be those
//! weights rounded once to the stored type.

use crate::{Journal, Matrix, QuantizeError, plan::ValidPlan};
use kernels::QuantizedMatrix;
use model::{
    Checkpoint,
    format::{Target, TensorSource},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What was compared, over all formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Formats read back.
    pub formats: usize,
    /// Modules read back from each.
    pub modules: usize,
    /// Their integers.
    pub codes: u64,
    /// Norms and biases that the method changed, read back.
    pub tensors: usize,
}

impl Proof {
    /// With the proof of one more format.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { formats: self.formats + other.formats, ..other }
    }
}

/// Reads the checkpoint of `format` in `folder` back and compares it with the `journal`; what wasn't quantized came from
/// `source`.
pub fn prove(
    folder: &Path,
    format: Target,
    journal: &Journal,
    plan: &ValidPlan,
    source: &Checkpoint,
) -> Result<Proof, QuantizeError> {
    let written = Checkpoint::open(&folder.to_string_lossy())?;
    let mut proof = Proof { formats: 1, ..Proof::default() };
    for block in 0..plan.blocks() {
        let solved = journal.load(block)?;
        solved.par_iter().try_for_each(|(matrix, report)| {
            let matrix = match matrix {
                Matrix::Grid(matrix) => matrix,
                Matrix::Blocks(matrix) => {
                    return same_weight(&report.module, format, &matrix.dequantize(), written.tensors.as_ref());
                }
            };
            if format.holds_integers() {
                same_integers(&report.module, format, matrix, written.tensors.as_ref())
            } else {
                let weight = format.weight(matrix, &source.config_json);
                same_weight(&report.module, format, &weight, written.tensors.as_ref())
            }
        })?;
        let folded = journal.tensors(block)?;
        folded.iter().try_for_each(|(name, values)| same_numbers(name, values, written.tensors.as_ref()))?;
        proof.tensors += folded.len();
        proof.modules += solved.len();
        proof.codes += solved.iter().map(|(matrix, _)| matrix.codes()).sum::<u64>();
    }
    Ok(proof)
}

fn same_numbers(name: &str, values: &[f32], written: &dyn TensorSource) -> Result<(), QuantizeError> {
    if written.read(name)?.iter().map(|value| value.to_bits()).eq(values.iter().map(|value| value.to_bits())) {
        return Ok(());
    }
    Err(QuantizeError::Proof { module: name.to_owned(), what: "the numbers read back differ".to_owned() })
}

/// Compares linear `module` in `written` with `solved`: the integers and what a loader makes of them.
pub(crate) fn same_integers(
    module: &str,
    format: Target,
    solved: &QuantizedMatrix,
    written: &dyn TensorSource,
) -> Result<(), QuantizeError> {
    let what = match written.quantized(module)? {
        None => Some("no quantized matrix is there"),
        Some(read) => difference(&read, solved),
    };
    match what {
        Some(what) => Err(differs(module, format, what)),
        None => same_weight(module, format, &solved.dequantize(), written),
    }
}

/// Compares the weight of linear `module` in `written` with `weight`.
pub(crate) fn same_weight(
    module: &str,
    format: Target,
    weight: &[f32],
    written: &dyn TensorSource,
) -> Result<(), QuantizeError> {
    let read = written.read(&format!("{module}.weight"))?;
    if read.iter().map(|w| w.to_bits()).eq(weight.iter().map(|w| w.to_bits())) {
        return Ok(());
    }
    Err(differs(module, format, "the weights that a loader computes with differ from those whose error was measured"))
}

fn differs(module: &str, format: Target, what: &str) -> QuantizeError {
    QuantizeError::Proof { module: module.to_owned(), what: format!("{what}, written as {format}") }
}

/// In what two matrices differ.
fn difference(read: &QuantizedMatrix, solved: &QuantizedMatrix) -> Option<&'static str> {
    if (read.outputs, read.inputs) != (solved.outputs, solved.inputs) {
        return Some("the shape read back differs");
    }
    if read.codes != solved.codes {
        return Some("the integers read back differ");
    }
    if !read.scales.iter().map(|s| s.to_bits()).eq(solved.scales.iter().map(|s| s.to_bits())) {
        return Some("the scales read back differ");
    }
    if read.zeros != solved.zeros {
        return Some("the zero-points read back differ");
    }
    (read.group_index != solved.group_index).then_some("the group indices read back differ")
}
