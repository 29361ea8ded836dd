//! Cutting tokenized text into the windows of a calibration set, deterministically in (files, options, seed).

use crate::{CalibrationError, Manifest};
use model::Checkpoint;
use serde::{Deserialize, Serialize};

/// How documents become windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// All documents joined, windows cut at random offsets, as the GPTQ paper does.
    #[default]
    Concat,
    /// One window from each document, long ones cut at a random offset, short ones kept short.
    Document,
    /// Message lists through the model's chat template, then as `document`.
    Chat,
}

/// Settings of a calibration set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowOptions {
    /// Windows in all.
    pub samples: usize,
    /// Tokens per window; cut to the model's longest sequence.
    pub sequence_length: usize,
    /// Seed of every random choice.
    pub seed: u64,
    /// How documents become windows.
    pub packing: Packing,
    /// Column of JSON lines, CSV and Parquet; `None` looks for the usual ones.
    pub field: Option<String>,
}

/// Windows and the record of where they came from.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationSet {
    /// Token ids of each window.
    pub windows: Vec<Vec<u32>>,
    /// Where they came from.
    pub manifest: Manifest,
}

impl CalibrationSet {
    /// Tokens in all windows.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Reads `sources` (see [`crate::domain::Domain::parse`]), tokenizes and cuts.
    pub fn build(
        sources: &[crate::domain::Domain],
        options: &WindowOptions,
        checkpoint: &Checkpoint,
    ) -> Result<Self, CalibrationError> {
        let _ = (sources, options, checkpoint);
        todo!("calibration helper")
    }
}
