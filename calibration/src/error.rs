//! What can be wrong with a calibration set.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The model or a text file.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// Not enough text for the windows asked for.
    #[error(
        "not enough calibration text in {set}: {have} tokens, but {samples} windows of {length} need {need}; give more text, or lower --samples or --sequence-length"
    )]
    TooLittleText {
        /// Which source.
        set: String,
        /// Tokens there are.
        have: usize,
        /// Windows asked for.
        samples: usize,
        /// Tokens per window.
        length: usize,
        /// Tokens needed.
        need: usize,
    },
    /// An option or source that can't be followed.
    #[error("{0}")]
    Option(String),
    /// Activations that are no numbers.
    #[error(
        "the input of `{module}` is not finite over the calibration windows: the model overflows there, so no statistics can be captured; check the checkpoint, or the replaced weights of the layers before"
    )]
    NotFinite {
        /// The first linear that reads the input.
        module: String,
    },
    /// A file of statistics that can't be written or read.
    #[error("{path}: {what}", path = path.display())]
    Statistics {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A temporary file for activations.
    #[error("activations: {0}")]
    Spill(#[from] std::io::Error),
    /// The device that passes run on.
    #[error("--device: {0}")]
    Device(#[from] kernels::cuda::CudaError),
    /// The visitor failed or asked to stop.
    #[error(transparent)]
    Visitor(Box<dyn std::error::Error + Send + Sync>),
}
