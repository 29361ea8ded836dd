//! The proof before success is reported: what was written is opened as any loader would, and must give back the
//! solver's integers, scales, zero-points and group indices bit for bit, and with them the very weights whose output
//! error was measured; norms and biases that the method changed, too. The errors in the report are therefore those of the file.

use crate::{Journal, QuantizeError, plan::ValidPlan};
use kernels::QuantizedMatrix;
use model::{Checkpoint, format::TensorSource};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Modules read back.
    pub modules: usize,
    /// Their integers.
    pub codes: u64,
    /// Norms and biases that the method changed, read back.
    pub tensors: usize,
}

/// Reads the checkpoint in `folder` back and compares it with the `journal`.
pub fn prove(folder: &Path, journal: &Journal, plan: &ValidPlan) -> Result<Proof, QuantizeError> {
    let written = Checkpoint::open(&folder.to_string_lossy())?;
    let mut proof = Proof::default();
    for block in 0..plan.blocks() {
        let solved = journal.load(block)?;
        solved
            .par_iter()
            .try_for_each(|(matrix, report)| same_as_written(&report.module, matrix, written.tensors.as_ref()))?;
        let folded = journal.tensors(block)?;
        folded.iter().try_for_each(|(name, values)| same_numbers(name, values, written.tensors.as_ref()))?;
        proof.tensors += folded.len();
        proof.modules += solved.len();
        proof.codes += solved.iter().map(|(matrix, _)| matrix.codes.len() as u64).sum::<u64>();
    }
    Ok(proof)
}

fn same_numbers(name: &str, values: &[f32], written: &dyn TensorSource) -> Result<(), QuantizeError> {
    if written.read(name)?.iter().map(|value| value.to_bits()).eq(values.iter().map(|value| value.to_bits())) {
        return Ok(());
    }
    Err(QuantizeError::Proof { module: name.to_owned(), what: "the numbers read back differ".to_owned() })
}

fn same_as_written(module: &str, solved: &QuantizedMatrix, written: &dyn TensorSource) -> Result<(), QuantizeError> {
    let differs = |what: &str| Err(QuantizeError::Proof { module: module.to_owned(), what: what.to_owned() });
    let Some(read) = written.quantized(module)? else { return differs("no quantized matrix was written") };
    if (read.outputs, read.inputs) != (solved.outputs, solved.inputs) {
        return differs("the shape read back differs");
    }
    if read.codes != solved.codes {
        return differs("the integers read back differ");
    }
    if !read.scales.iter().map(|s| s.to_bits()).eq(solved.scales.iter().map(|s| s.to_bits())) {
        return differs("the scales read back differ");
    }
    if read.zeros != solved.zeros {
        return differs("the zero-points read back differ");
    }
    if read.group_index != solved.group_index {
        return differs("the group indices read back differ");
    }
    let weights = written.read(&format!("{module}.weight"))?;
    if !weights.iter().map(|w| w.to_bits()).eq(solved.dequantize().iter().map(|w| w.to_bits())) {
        return differs("the weights that a loader computes with differ from those whose error was measured");
    }
    Ok(())
}
