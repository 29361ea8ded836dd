//! The sequential driver: walks a model block by block, stage by stage, captures the statistics of each stage's input
//! over all windows, lets a [`Visitor`] replace the weights, and carries the activations on.
//!
//! With [`Sequence::Module`] a block runs once: a stage's inputs come from the already replaced stages before it. With
//! [`Sequence::Block`] all four stages are captured in one run with the block's given weights, and a second run carries
//! the activations on. With [`Inputs::Original`] activations are carried on with the weights as they were given.

use crate::{CalibrationError, LayerStatistics};
use model::{Block, Checkpoint, Linear, Stage};
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

/// What the driver calls back.
pub trait Visitor {
    /// Puts the replaced weights of a block finished in an earlier run into `block`; `false` if there is none. The block
    /// is then only carried through, not captured.
    fn restore(&mut self, block: &mut Block) -> Result<bool, CalibrationError>;

    /// Whether any linear of this stage wants statistics (skipped modules don't).
    fn wants(&self, linears: &[Linear]) -> bool;

    /// Replaces the weights of `linears`, which share the input that `statistics` describes.
    fn stage(
        &mut self,
        block: usize,
        stage: Stage,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), CalibrationError>;

    /// A block is done, all its weights replaced; what the visitor wants to survive a crash it makes durable here.
    fn block_done(&mut self, block: &Block) -> Result<(), CalibrationError>;
}

/// Settings of the walk.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    /// Whose outputs later layers see.
    pub inputs: Inputs,
    /// How linears inside a block follow each other.
    pub sequence: Sequence,
    /// Bytes of activations held in memory; above that they live in a memory-mapped temporary file.
    pub activation_bytes_in_memory: usize,
    /// Where that file goes.
    pub spill_folder: PathBuf,
}

/// Walks `checkpoint` over `windows` (token ids; all of one length or not).
pub fn drive(
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
    options: &DriverOptions,
    visitor: &mut dyn Visitor,
) -> Result<(), CalibrationError> {
    let _ = (checkpoint, windows, options, visitor);
    todo!("calibration helper")
}
