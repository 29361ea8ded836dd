//! What can be wrong with a checkpoint, a tokenizer or a text file, said so that a person can act on it.

use std::path::PathBuf;

/// Errors of this crate. Each message says what is wrong, where, and, if it isn't plain, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its format says it should be.
    #[error("{path}: {what}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        what: String,
    },
    /// A file is well formed but needs something that is not implemented here.
    #[error("{path}: {what} is not supported", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting or feature, by name and value.
        what: String,
    },
    /// A tensor is missing or has another shape than the configuration says.
    #[error("tensor `{tensor}`: {what}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong, with both numbers.
        what: String,
    },
    /// The model reference names nothing that can be opened.
    #[error("{reference}: {what}")]
    Reference {
        /// What the user gave.
        reference: String,
        /// Why it can't be opened and what to do.
        what: String,
    },
    /// A chat template can't be applied.
    #[error("chat template: {0}")]
    Template(String),
    /// A hub can't be reached or doesn't have what is asked for.
    #[error("{repository} on {endpoint}: {what}")]
    Hub {
        /// `org/name`.
        repository: String,
        /// The hub's address.
        endpoint: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The tokenizer refused.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl ModelError {
    /// An [`ModelError::Io`] at `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A [`ModelError::Malformed`] at `path`.
    pub fn malformed(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), what: what.into() }
    }
}
