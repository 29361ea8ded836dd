//! [`Checkpoint`]: a model on disk, opened; weights stay in the memory map until a block is asked for.

use crate::{Config, ModelError, decoder::Block, format::TensorSource};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// One file a checkpoint was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Name inside the checkpoint's folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// An opened model.
pub struct Checkpoint {
    /// What the user called it.
    pub reference: String,
    /// Its description.
    pub config: Config,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The Jinja chat template, if it brings one.
    pub chat_template: Option<String>,
    /// Its tensors under Hugging Face names.
    pub tensors: Box<dyn TensorSource>,
    /// `config.json` as a Hugging Face loader expects it (made up from the metadata for a GGUF file).
    pub config_json: serde_json::Value,
    /// Where it lies: the folder, or the GGUF file.
    pub path: PathBuf,
    /// Companion files made up from metadata (GGUF): (name, bytes). A Hugging Face folder's are copied instead.
    pub companions: Vec<(String, Vec<u8>)>,
}

impl Checkpoint {
    /// Opens a folder, a GGUF file, `demo`, or `org/name[@revision]` on the hub.
    pub fn open(reference: &str) -> Result<Self, ModelError> {
        let _ = reference;
        todo!("model helper")
    }

    /// Block `index`, weights in float32.
    pub fn block(&self, index: usize) -> Result<Block, ModelError> {
        let _ = index;
        todo!("model helper")
    }

    /// Embeddings of `tokens`, scaled as the model wants: `[tokens.len(), hidden_size]`.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let _ = tokens;
        todo!("model helper")
    }

    /// The final norm and the head, in float32.
    pub fn head(&self) -> Result<crate::decoder::Head, ModelError> {
        todo!("model helper")
    }

    /// Every file the checkpoint consists of, hashed (reads them whole).
    pub fn source_files(&self) -> Result<Vec<SourceFile>, ModelError> {
        todo!("model helper")
    }

    /// Writes tokenizer, generation config and chat template into `folder` as a Hugging Face loader expects them,
    /// copied where the source has them, else rebuilt; `config.json` is not among them. Returns the names written.
    pub fn copy_companions(&self, folder: &Path) -> Result<Vec<String>, ModelError> {
        let _ = folder;
        todo!("model helper")
    }

    /// Names of all tensors that belong to no block (embedding, final norm, head), in the order of the checkpoint.
    pub fn outer_tensors(&self) -> Vec<String> {
        todo!("model helper")
    }
}
