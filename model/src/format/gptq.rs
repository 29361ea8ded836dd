//! GPTQ checkpoints (v1 and v2).

use crate::{
    ModelError,
    format::{StoredType, TensorSource, huggingface::SafetensorsFolder},
};
use kernels::{QuantSpec, QuantizedMatrix};
use std::path::Path;

/// How zero-points are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Minus one: what every loader reads.
    #[default]
    V1,
    /// As they are.
    V2,
}

/// A linear to be written quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedModule {
    /// Module name, e.g. `model.layers.0.mlp.down_proj`.
    pub name: String,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Its settings.
    pub spec: QuantSpec,
}

/// What to write.
pub struct Contents<'a> {
    /// The model the other tensors are taken from.
    pub source: &'a crate::Checkpoint,
    /// The settings most modules share: they go into the top level of `quantization_config`; modules that differ, and
    /// linears left in full precision, go into `dynamic`.
    pub spec: QuantSpec,
    /// Quantized linears.
    pub modules: &'a [QuantizedModule],
    /// Brings the integers of `modules[i]`; called when they are written, so that few are in memory at a time.
    pub load: &'a (dyn Fn(usize) -> Result<QuantizedMatrix, ModelError> + Sync),
    /// Zero-point convention.
    pub version: Version,
    /// `quantization_config.meta`: provenance, ignored by loaders.
    pub meta: serde_json::Value,
    /// Damping, written as `damp_percent`.
    pub damping: f64,
    /// Whether the modules of a layer were solved in true sequence.
    pub true_sequential: bool,
    /// A shard is closed when it would grow beyond this.
    pub shard_bytes: u64,
}

/// Writes safetensors, index, `config.json`, `quantize_config.json` and the source's companion files into `folder`.
pub fn write(folder: &Path, contents: &Contents<'_>) -> Result<(), ModelError> {
    let _ = (folder, contents);
    todo!("formats helper")
}

/// A GPTQ checkpoint seen as float tensors, and as integers through [`TensorSource::quantized`].
pub struct GptqFolder {}

impl GptqFolder {
    /// Checks `quantization_config` against the tensors' shapes and types.
    pub fn open(
        tensors: SafetensorsFolder,
        config_json: &serde_json::Value,
        folder: &Path,
    ) -> Result<Self, ModelError> {
        let _ = (tensors, config_json, folder);
        todo!("formats helper")
    }
}

impl TensorSource for GptqFolder {
    fn names(&self) -> Vec<String> {
        todo!("formats helper")
    }
    fn shape(&self, _name: &str) -> Result<Vec<usize>, ModelError> {
        todo!("formats helper")
    }
    fn stored_type(&self, _name: &str) -> Result<StoredType, ModelError> {
        todo!("formats helper")
    }
    fn read(&self, _name: &str) -> Result<Vec<f32>, ModelError> {
        todo!("formats helper")
    }
    fn read_rows(&self, _name: &str, _rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        todo!("formats helper")
    }
}
