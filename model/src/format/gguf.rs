//! GGUF files.

use crate::{
    ModelError,
    format::{StoredType, TensorSource},
};
use std::path::Path;
use tokenizers::Tokenizer;

/// A memory-mapped GGUF file, its tensors seen under Hugging Face names and conventions.
pub struct GgufFile {}

impl GgufFile {
    /// Opens and checks header, metadata and tensor table.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let _ = path;
        todo!("gguf helper")
    }

    /// The model's `config.json` as a Hugging Face loader expects it, from the metadata.
    pub fn config_json(&self) -> Result<serde_json::Value, ModelError> {
        todo!("gguf helper")
    }

    /// The tokenizer rebuilt from the metadata, with the pre-tokenizer that the file names.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        todo!("gguf helper")
    }

    /// The chat template, if the file has one.
    pub fn chat_template(&self) -> Option<String> {
        todo!("gguf helper")
    }

    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` made from the metadata: (name, bytes).
    pub fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>, ModelError> {
        todo!("gguf helper")
    }
}

impl TensorSource for GgufFile {
    fn names(&self) -> Vec<String> {
        todo!("gguf helper")
    }
    fn shape(&self, _name: &str) -> Result<Vec<usize>, ModelError> {
        todo!("gguf helper")
    }
    fn stored_type(&self, _name: &str) -> Result<StoredType, ModelError> {
        todo!("gguf helper")
    }
    fn read(&self, _name: &str) -> Result<Vec<f32>, ModelError> {
        todo!("gguf helper")
    }
    fn read_rows(&self, _name: &str, _rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        todo!("gguf helper")
    }
}
