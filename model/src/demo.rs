//! The embedded demo model and its held-out texts.

use crate::ModelError;
use std::path::PathBuf;

/// The folder (in the user's cache, written from the binary on first use, checked by hash) that holds the demo model
/// as a Hugging Face folder.
pub fn folder() -> Result<PathBuf, ModelError> {
    todo!("demo helper")
}

/// An embedded text by name: `prose`, `code` (for calibration), `prose-heldout`, `code-heldout` (for evaluation).
pub fn text(name: &str) -> Option<&'static str> {
    let _ = name;
    todo!("demo helper")
}
