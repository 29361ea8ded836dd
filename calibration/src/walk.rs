//! What a walk of the driver is asked, and what it took.

use kernels::Engine;
use model::Config;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Whose outputs the layers after see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// Those of the replaced layers before.
    #[default]
    Quantized,
    /// Those of the original model.
    Original,
}

/// How the linears of a block follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sequence {
    /// In true sequence: each stage sees the replaced stages before it.
    #[default]
    Module,
    /// All at once.
    Block,
}

/// Settings of the walk.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    /// Whose outputs later layers see.
    pub inputs: Inputs,
    /// How linears inside a block follow each other.
    pub sequence: Sequence,
    /// Whether the original model runs beside, to compare inputs with; under `original` there is nothing to compare.
    pub compare_original: bool,
    /// Bytes of activations held in memory; above that they live in a memory-mapped temporary file.
    pub activation_bytes_in_memory: usize,
    /// Where that file goes.
    pub spill_folder: PathBuf,
    /// Where passes run. Statistics differ from place to place by the order of float32 sums. A model that a device can't
    /// take ([`model::decoder::device::obstacle`]) runs on the CPU.
    pub engine: Engine,
    /// Windows whose activations stay on the device from pass to pass; changes no result.
    pub device_windows: usize,
}

/// Seconds spent on a part of the walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Bringing weights and embeddings in.
    pub load: f64,
    /// Forward passes.
    pub propagate: f64,
    /// Summing up statistics.
    pub capture: f64,
    /// Inside the visitor.
    pub visit: f64,
}

/// What a walk took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveReport {
    /// Tokens in all windows.
    pub tokens: usize,
    /// Blocks that the visitor restored.
    pub restored: usize,
    /// Seconds for each block; embedding counts as loading the first.
    pub blocks: Vec<Seconds>,
    /// Bytes of the windows' activations, wherever they lived.
    pub activation_bytes: usize,
    /// Those of them that lived in a temporary file.
    pub spilled_bytes: usize,
}

/// Bytes of activations that [`crate::drive`] will store for `tokens` tokens: the residual stream, and with it, where stages
/// follow each other over all windows, the widest input of a stage; twice that if the original model runs beside.
pub fn activation_bytes(
    config: &Config,
    tokens: usize,
    (inputs, sequence): (Inputs, Sequence),
    compare_original: bool,
) -> usize {
    let stage_input = match (inputs, sequence) {
        (Inputs::Quantized, Sequence::Module) => widest_input(config),
        _ => 0,
    };
    let streams = if compare_original && inputs == Inputs::Quantized { 2 } else { 1 };
    tokens.saturating_mul(streams * (config.hidden_size + stage_input)).saturating_mul(size_of::<f32>())
}

pub(crate) fn widest_input(config: &Config) -> usize {
    config.hidden_size.max(config.intermediate_size).max(config.heads * config.head_width)
}
