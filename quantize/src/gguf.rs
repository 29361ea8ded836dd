//! GGUF files whose matrices were solved in the file's own blocks: what goes where, what it is worth, and the writing.

use crate::{Matrix, QuantizeError, card, plan::Module};
use kernels::kquant::{BlockMatrix, BlockType};
use model::{
    Checkpoint, Config, ModelError,
    format::{
        StoredType,
        gguf::{Contents, Mixture, TensorType, write},
    },
};
use serde_json::Value;
use std::{collections::BTreeSet, path::Path};

/// How many weights of the matrices of `config` get the type that `mixture` names, if not all; the others by their type.
pub fn shortfall(mixture: Mixture, config: &Config, modules: &[Module]) -> Option<String> {
    let (mut all, mut as_named) = (0, 0);
    let mut others: Vec<(&'static str, usize)> = Vec::new();
    let linears = modules.iter().map(|module| (format!("{}.weight", module.name), module.outputs, module.inputs));
    let table = |name: &str| (name.to_owned(), config.vocabulary, config.hidden_size);
    let head = (!config.tied_head && modules.iter().all(|m| m.name != "lm_head")).then(|| table("lm_head.weight"));
    for (name, outputs, inputs) in linears.chain([table("model.embed_tokens.weight")]).chain(head) {
        let choice = mixture.choose(config, &name, inputs);
        all += outputs * inputs;
        if choice.used == TensorType::Block(choice.named) {
            as_named += outputs * inputs;
        } else {
            match others.iter_mut().find(|(kind, _)| *kind == choice.used.name()) {
                Some((_, count)) => *count += outputs * inputs,
                None => others.push((choice.used.name(), outputs * inputs)),
            }
        }
    }
    let share = |count: usize| format!("{:.1} %", 100.0 * count as f64 / all as f64);
    let others: Vec<String> = others.iter().map(|(kind, count)| format!("{} are {kind}", share(*count))).collect();
    (as_named < all).then(|| {
        format!(
            "{}: {} of the weights get the type that the mixture names; where 256 does not divide a width, {}",
            mixture.name(),
            share(as_named),
            others.join(", ")
        )
    })
}

/// Writes the file `path`: the modules that were solved in blocks as `load` brings them, the rest of `source` as `mixture` has it, skipped
/// modules as floats.
pub fn write_solved(
    path: &Path,
    mixture: Mixture,
    source: &Checkpoint,
    modules: &[Module],
    load: &dyn Fn(&str) -> Result<Matrix, ModelError>,
    meta: &Value,
) -> Result<(), QuantizeError> {
    let solved: BTreeSet<String> = modules.iter().filter(|m| m.blocks.is_some()).map(|m| m.name.clone()).collect();
    let type_of = |name: &str, inputs: usize| {
        let module = name.strip_suffix(".weight").and_then(|name| modules.iter().find(|module| module.name == name));
        match module.map(|module| module.blocks) {
            Some(Some(kind)) => TensorType::Block(kind),
            Some(None) => float_like(source, name),
            None => mixture.choose(&source.config, name, inputs).used,
        }
    };
    let blocks = |name: &str| -> Result<BlockMatrix, ModelError> {
        match load(name)? {
            Matrix::Blocks(matrix) => Ok(matrix),
            Matrix::Grid(_) => {
                let what = "is in the journal as integers, not as blocks".to_owned();
                Err(ModelError::Tensor { tensor: name.to_owned(), what })
            }
        }
    };
    let notes = vec![
        ("general.quantized_by".to_owned(), card::TOOL.to_owned()),
        ("caliper.settings".to_owned(), meta.to_string()),
    ];
    let contents =
        Contents { source, file_type: mixture.file_type(), type_of: &type_of, solved: &solved, load: &blocks, notes };
    Ok(write(path, &contents)?)
}

/// The float type closest to how the source stores tensor `name`.
fn float_like(source: &Checkpoint, name: &str) -> TensorType {
    match source.tensors.stored_type(name) {
        Ok(StoredType::F32) => TensorType::F32,
        Ok(StoredType::BF16) => TensorType::BF16,
        _ => TensorType::F16,
    }
}

/// The blocks of `module`, if the mixture gives it such.
pub fn blocks_of(mixture: Mixture, config: &Config, module: &Module) -> Option<BlockType> {
    match mixture.choose(config, &format!("{}.weight", module.name), module.inputs).used {
        TensorType::Block(kind) => Some(kind),
        TensorType::Float(_) => None,
    }
}
