//! The record of a calibration set, copied into every output that was made with it.

use crate::WindowOptions;
use serde::{Deserialize, Serialize};

/// One source of the set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// As the user gave it.
    pub source: String,
    /// Share of the windows, normalized.
    pub weight: f64,
    /// Files with their SHA-256.
    pub files: Vec<FileRecord>,
    /// Documents read.
    pub documents: usize,
    /// Tokens they hold.
    pub tokens: usize,
    /// Windows taken: for each the offset of its first token in the source (or the document's number) and its length.
    pub windows: Vec<WindowRecord>,
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// File name without its folder.
    pub name: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Where a window came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowRecord {
    /// The document it was cut from; 0 under `concat`.
    pub document: usize,
    /// Its first token's position there.
    pub offset: usize,
    /// Its length in tokens.
    pub length: usize,
}

/// The whole record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The settings.
    pub options: WindowOptions,
    /// The sources.
    pub sources: Vec<SourceRecord>,
    /// SHA-256 over all windows' token ids (little-endian u32), in hexadecimal.
    pub tokens_sha256: String,
}
