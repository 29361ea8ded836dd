//! A model as its solved blocks make it, straight from the journal: to be evaluated without writing a checkpoint.
//!
//! What is read is what a loader of the written folder would read, to the bit: solved linears from their integers, folded
//! norms and biases as stored, and whatever is only copied rounded to the type that the format stores it in.

use crate::{Journal, QuantizeError, plan::ValidPlan};
use kernels::QuantizedMatrix;
use model::{
    Checkpoint, ModelError,
    format::{self, Contents, QuantizedModule, Rounding, Sizes, StoredType, TensorSource},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The tensors of a model with solved linears.
struct SolvedTensors {
    source: Arc<dyn TensorSource>,
    journal: Journal,
    /// The block of each solved tensor.
    blocks: HashMap<String, usize>,
    folded: BTreeMap<String, Vec<f32>>,
    rounding: Rounding,
}

/// `checkpoint` with the linears that `journal` holds for `plan`, and what the written folder would come to. Of one
/// format, and without the head.
pub fn open(checkpoint: &Checkpoint, plan: &ValidPlan, journal: Journal) -> Result<(Checkpoint, Sizes), QuantizeError> {
    let (mut blocks, mut folded, mut modules) = (HashMap::new(), BTreeMap::new(), Vec::new());
    for index in 0..plan.blocks() {
        for (_, report) in journal.load(index)?.iter() {
            blocks.insert(format!("{}.weight", report.module), index);
            modules.push(QuantizedModule {
                name: report.module.clone(),
                outputs: report.outputs,
                inputs: report.inputs,
                spec: report.spec,
            });
        }
        folded.extend(journal.tensors(index)?.iter().map(|(name, values)| (name.clone(), values.clone())));
    }
    let sizes = sizes(checkpoint, plan, &modules)?;
    let names = modules.into_iter().map(|module| module.name);
    let rounding = Rounding::new(plan.options.formats[0], checkpoint, names);
    let tensors = SolvedTensors { source: Arc::clone(&checkpoint.tensors), journal, blocks, folded, rounding };
    Ok((checkpoint.with_tensors(Arc::new(tensors)), sizes))
}

fn sizes(checkpoint: &Checkpoint, plan: &ValidPlan, modules: &[QuantizedModule]) -> Result<Sizes, QuantizeError> {
    let load = |index: usize| {
        let tensor: String =
            modules.get(index).map_or_else(String::new, |module: &QuantizedModule| module.name.clone());
        Err(ModelError::Tensor { tensor, what: "is only measured here".to_owned() })
    };
    let contents = Contents {
        source: checkpoint,
        spec: plan.spec,
        modules,
        load: &load,
        meta: serde_json::Value::Null,
        damping: plan.options.damping,
        true_sequential: false,
        shard_bytes: plan.options.shard_bytes,
    };
    Ok(format::sizes(plan.options.formats[0], &contents)?)
}

impl TensorSource for SolvedTensors {
    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        self.source.shape(name)
    }

    fn stored_type(&self, name: &str) -> Result<StoredType, ModelError> {
        self.source.stored_type(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        if let Some(block) = self.blocks.get(name) {
            let wrong = |what: String| ModelError::Tensor { tensor: name.to_owned(), what };
            let solved = self.journal.load(*block).map_err(|error| wrong(error.to_string()))?;
            let found = solved.iter().find(|(_, report)| name.strip_suffix(".weight") == Some(&report.module));
            return found.map(|(matrix, _)| matrix.dequantize()).ok_or_else(|| wrong("left the journal".to_owned()));
        }
        let values = self.folded.get(name).map_or_else(|| self.source.read(name), |values| Ok(values.clone()))?;
        Ok(self.rounding.apply(name, self.source.stored_type(name)?, values))
    }

    fn quantized(&self, module: &str) -> Result<Option<QuantizedMatrix>, ModelError> {
        let Some(block) = self.blocks.get(&format!("{module}.weight")) else { return Ok(None) };
        let wrong = |what: String| ModelError::Tensor { tensor: module.to_owned(), what };
        let solved = self.journal.load(*block).map_err(|error| wrong(error.to_string()))?;
        Ok(solved
            .iter()
            .find(|(_, report)| report.module == module)
            .and_then(|(matrix, _)| matrix.grid(module).ok().cloned()))
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        if self.blocks.contains_key(name) || self.folded.contains_key(name) {
            let what = "is read by rows, which only embeddings are".to_owned();
            return Err(ModelError::Tensor { tensor: name.to_owned(), what });
        }
        let values = self.source.read_rows(name, rows)?;
        Ok(self.rounding.apply(name, self.source.stored_type(name)?, values))
    }
}
