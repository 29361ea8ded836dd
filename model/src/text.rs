//! Text readers: plain text, JSON lines, CSV, Parquet; files, folders and globs.

use crate::ModelError;
use std::path::{Path, PathBuf};

/// A piece of text that belongs together, or a list of chat messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Running text.
    Text(String),
    /// Messages as (role, content).
    Chat(Vec<(String, String)>),
}

/// A file that documents were read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// Where.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// What it holds, in order. A plain text file is one document.
    pub documents: Vec<Document>,
}

/// Reads a file, every file of a folder, or every match of a glob, in sorted order. `field` names the column of
/// JSON lines, CSV and Parquet (default: `text`, else `content`, else `messages`/`conversations`; else an error that
/// lists what there is).
pub fn read(pattern: &str, field: Option<&str>) -> Result<Vec<TextFile>, ModelError> {
    let _ = (pattern, field);
    todo!("calibration helper")
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256_of_file(path: &Path) -> Result<String, ModelError> {
    let _ = path;
    todo!("calibration helper")
}
