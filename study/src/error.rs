//! What can stop a study, said so that a person can act on it.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Errors of this crate. Each message says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// The study file does not say what can be done.
    #[error("{path} is no study: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        what: String,
    },
    /// Settings that can't be followed.
    #[error("{0}")]
    Settings(String),
    /// Everything that `study check` found.
    #[error("the study can't be run as it is:\n{}", problems.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n"))]
    Problems {
        /// One sentence each.
        problems: Vec<String>,
    },
    /// A line of the store is damaged.
    #[error("{path}, line {line}: {what}; remove the line to have its cell computed again", path = path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// There is nothing to report.
    #[error("{path} holds no results of this study; start it with `study run`", path = path.display())]
    NoResults {
        /// The results folder.
        path: PathBuf,
    },
    /// A figure or page could not be made.
    #[error(transparent)]
    Page(#[from] console::page::PageError),
    /// The table for other programs could not be made.
    #[error("the results could not be exported: {0}")]
    Export(String),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// The quantization.
    #[error(transparent)]
    Quantize(#[from] quantize::QuantizeError),
    /// The evaluation.
    #[error(transparent)]
    Evaluate(#[from] evaluate::EvaluateError),
    /// The calibration set.
    #[error(transparent)]
    Calibration(#[from] calibration::CalibrationError),
}

impl StudyError {
    /// A [`StudyError::Io`] at `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }
}
