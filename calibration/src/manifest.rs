//! The record of a calibration set, copied into every output that was made with it.
//!
//! Windows hold the tokens of their text and nothing else: no token for the beginning or the end of a text is put in.

use crate::WindowOptions;
use model::text::hexadecimal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
    /// The document it was cut from; 0 where documents are joined.
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
    /// Tokens per window after cutting `options.sequence_length` to the model's longest sequence.
    pub sequence_length: usize,
    /// Whether special tokens (a beginning of text) were put into the windows: never.
    pub special_tokens: bool,
    /// The sources.
    pub sources: Vec<SourceRecord>,
    /// SHA-256 over all windows' token ids (little-endian u32), in hexadecimal.
    pub tokens_sha256: String,
}

/// The SHA-256 that [`Manifest::tokens_sha256`] holds.
pub fn tokens_sha256(windows: &[Vec<u32>]) -> String {
    let mut hasher = Sha256::new();
    for token in windows.iter().flatten() {
        hasher.update(token.to_le_bytes());
    }
    hexadecimal(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_over_little_endian_tokens() {
        // SHA-256 of the eight bytes 61 62 63 00 01 00 00 00, cut into windows or not.
        let expected = hexadecimal(&Sha256::digest([0x61, 0x62, 0x63, 0, 1, 0, 0, 0]));
        assert_eq!(tokens_sha256(&[vec![0x0063_6261, 1]]), expected);
        assert_eq!(tokens_sha256(&[vec![0x0063_6261], vec![1]]), expected);
    }
}
