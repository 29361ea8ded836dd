//! What can stop a quantization, said so that a person can act on it.

use std::path::{Path, PathBuf};

/// Errors of this crate. Each message says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The model, or a checkpoint that was written.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// The calibration set or the walk over the model.
    #[error(transparent)]
    Calibration(#[from] calibration::CalibrationError),
    /// The device that was to solve.
    #[error("--device: {0}")]
    Device(#[from] kernels::cuda::CudaError),
    /// A setting of one module that no quantizer here can follow.
    #[error("{module}: {source}")]
    Spec {
        /// The module.
        module: String,
        /// Which setting.
        source: kernels::SpecError,
    },
    /// A format that can't hold what is to be written.
    #[error("--format {format} can't hold this: {source}")]
    Format {
        /// The format.
        format: model::format::Target,
        /// What of it, by the module's name.
        source: model::ModelError,
    },
    /// An option that can't be followed.
    #[error("{0}")]
    Option(String),
    /// A weight or an activation is not a finite number.
    #[error("{module}: {what} not finite; the source model is damaged or overflows on this calibration text")]
    NotFinite {
        /// The module.
        module: String,
        /// Which numbers.
        what: &'static str,
    },
    /// The Hessian could not be factored, however much it was damped.
    #[error(
        "{module}: the Hessian of {tokens} tokens could not be factored in float32 or float64 up to a damping of {damping}; give more calibration text, or leave the module in full precision with --skip '{module}'"
    )]
    Factor {
        /// The module.
        module: String,
        /// Tokens behind the Hessian.
        tokens: usize,
        /// The last damping tried.
        damping: f64,
    },
    /// The output is already there.
    #[error("{path} exists already; choose another --out, or replace it with --overwrite", path = path.display())]
    OutputExists {
        /// The output folder.
        path: PathBuf,
    },
    /// The work folder belongs to another command.
    #[error(
        "{path} holds an unfinished run with other settings ({differences}); finish it with its own command, choose another --out, or throw it away with --overwrite",
        path = path.display()
    )]
    OtherCommand {
        /// The work folder.
        path: PathBuf,
        /// `field: old → new`, separated by commas.
        differences: String,
    },
    /// Another process works in the folder.
    #[error("{path} is in use by another run; wait for it, or choose another --out", path = path.display())]
    Busy {
        /// The work folder.
        path: PathBuf,
    },
    /// A journal file is damaged.
    #[error("{path}: {what}; remove the files of its block to have it quantized again", path = path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The machine has too little of something.
    #[error("this run needs about {needed} of {what}, but there are {there}; {advice}")]
    TooLittle {
        /// Memory or disk.
        what: &'static str,
        /// What is needed.
        needed: String,
        /// What there is.
        there: String,
        /// What to do.
        advice: &'static str,
    },
    /// What was written differs from what was solved.
    #[error("{module}: {what}; the checkpoint is not what was solved and was not moved to its place")]
    Proof {
        /// The module.
        module: String,
        /// What differs.
        what: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl QuantizeError {
    /// A [`QuantizeError::Io`] at `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    /// Through the driver and back: the driver's errors carry ours in a box.
    pub fn from_driver(error: calibration::CalibrationError) -> Self {
        match error {
            calibration::CalibrationError::Visitor(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => Self::Calibration(calibration::CalibrationError::Visitor(other)),
            },
            other => Self::Calibration(other),
        }
    }
}

impl From<QuantizeError> for calibration::CalibrationError {
    fn from(error: QuantizeError) -> Self {
        Self::Visitor(Box::new(error))
    }
}
