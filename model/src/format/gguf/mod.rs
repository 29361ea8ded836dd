//! GGUF files, seen under Hugging Face names and conventions.
//!
//! Reading: [`container`] parses the file, [`names`] translates tensors, [`config`] and [`tokenizer`] rebuild what a
//! Hugging Face folder has beside the weights. Writing is the way back: [`write()`] streams the file, [`describe`] and
//! [`vocabulary`] make the metadata, [`mixture`] says which tensor gets which type. [`imatrix`] reads and writes
//! importance matrices, [`exact`] makes blocks of integers that were
//! solved for another format. Blocks are `kernels::kquant`.

mod config;
mod container;
mod describe;
pub(super) mod exact;
mod front;
pub mod imatrix;
mod metadata;
pub mod mixture;
mod names;
pub(crate) mod pre_tokenizer;
mod rope;
mod tokenizer;
mod types;
mod vocabulary;
mod write;

pub use mixture::Mixture;
pub use types::{FloatType, TensorType};
pub use write::{Contents, write, write_integers};

use crate::{
    ModelError,
    format::{StoredType, TensorSource},
    inspect::StoredTensor,
};
use container::{Container, TensorInfo};
use kernels::stored::StoredMatrix;
use memmap2::Mmap;
use metadata::Metadata;
use names::Change;
use rayon::prelude::*;
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};
use tokenizers::Tokenizer;

/// The values of `general.architecture` that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Architecture {
    /// Llama, SmolLM2, and Mistral, which is saved as `llama` too.
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
    Phi3,
}

impl Architecture {
    const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3, Self::Phi3];

    /// The name in the file, which also begins the architecture's metadata keys.
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        }
    }

    fn of(metadata: &Metadata<'_>) -> Result<Self, ModelError> {
        let name = metadata.text("general.architecture")?.ok_or_else(|| metadata.missing("general.architecture"))?;
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.name() == name)
            .ok_or_else(|| metadata.unsupported(format!("architecture `{name}`")))
    }
}

/// A tensor of the file and what its numbers need.
struct Tensor {
    info: TensorInfo,
    change: Change,
}

impl Tensor {
    /// The tensor as rows of blocks. The rows of a bias that is permuted are its elements.
    fn rows_and_columns(&self) -> (usize, usize) {
        let elements: usize = self.info.shape.iter().product();
        let columns = match (self.info.shape.as_slice(), self.change) {
            ([_], Change::Unpermute { .. }) => 1,
            (shape, _) => shape[shape.len() - 1],
        };
        (elements / columns, columns)
    }

    /// The bytes of row `row`, which has so many columns, in Hugging Face's order of rows.
    fn row_bytes<'a>(&self, file: &'a [u8], row: usize, columns: usize) -> &'a [u8] {
        let stored = match self.change {
            Change::Unpermute { head_width } => names::permuted_row(row, head_width),
            _ => row,
        };
        let length = self.info.kind.bytes(columns).unwrap_or(0);
        &file[self.info.bytes.start + stored * length..][..length]
    }

    /// Row `row` in Hugging Face's convention.
    fn read_row(&self, file: &[u8], row: usize, out: &mut [f32]) {
        self.info.kind.decode(self.row_bytes(file, row, out.len()), out);
        if self.change == Change::MinusOne {
            for x in out {
                *x -= 1.0;
            }
        }
    }
}

/// A memory-mapped GGUF file, its tensors seen under Hugging Face names and conventions.
pub struct GgufFile {
    path: PathBuf,
    file: Mmap,
    container: Container,
    architecture: Architecture,
    tensors: BTreeMap<String, Tensor>,
}

impl GgufFile {
    /// Opens and checks header, metadata and tensor table.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = map(path)?;
        let mut container = Container::parse(path, &file)?;
        let metadata = Metadata { path, file: &file, entries: &container.metadata };
        let architecture = Architecture::of(&metadata)?;
        let layers = metadata.required_size(&format!("{}.block_count", architecture.name()))?;
        let head_width = config::head_width(&metadata, architecture)?;
        let mut tensors = BTreeMap::new();
        for info in std::mem::take(&mut container.tensors) {
            let name = names::hugging_face_name(path, architecture, layers, &info.name)?;
            // Tensors that describe the rotary embedding are settings: they keep the file's name and are not offered.
            let key = name.clone().unwrap_or_else(|| info.name.clone());
            let change = names::change(architecture, head_width, &key);
            let tensor = Tensor { info, change };
            if let Change::Unpermute { head_width } = change
                && (head_width % 2 != 0 || !tensor.rows_and_columns().0.is_multiple_of(head_width))
            {
                return Err(ModelError::malformed(
                    path,
                    format!("tensor `{}` is not a whole number of heads of width {head_width}", tensor.info.name),
                ));
            }
            if tensors.insert(key, tensor).is_some() {
                return Err(ModelError::malformed(path, "a tensor name occurs twice in the tensor table"));
            }
        }
        Ok(Self { path: path.into(), file, container, architecture, tensors })
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata { path: &self.path, file: &self.file, entries: &self.container.metadata }
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::Tensor {
            tensor: name.to_owned(),
            what: format!("it is not in {}", self.path.display()),
        })
    }

    /// The numbers of a one-dimensional tensor that is a setting, if the file has it.
    fn setting(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        self.tensors.contains_key(name).then(|| self.read(name)).transpose()
    }

    /// The model's `config.json` as a Hugging Face loader expects it, from the metadata.
    pub fn config_json(&self) -> Result<serde_json::Value, ModelError> {
        config::config_json(self)
    }

    /// The tokenizer rebuilt from the metadata, with the pre-tokenizer that the file names.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        tokenizer::build(&self.metadata(), self.architecture)
    }

    /// The chat template, if the file has one.
    pub fn chat_template(&self) -> Option<String> {
        self.metadata().text("tokenizer.chat_template").ok().flatten().map(str::to_owned)
    }

    /// `general.file_type`: by which mixture of types the file was quantized, as llama.cpp numbers them.
    pub fn file_type(&self) -> Option<u64> {
        self.metadata().size("general.file_type").ok().flatten()
    }

    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` made from the metadata: (name, bytes).
    pub fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>, ModelError> {
        config::companion_files(self)
    }
}

/// Every tensor as it lies in the file at `path`, under the file's own names, whatever the architecture.
pub(crate) fn list(path: &Path) -> Result<Vec<StoredTensor>, ModelError> {
    let describe = |info: TensorInfo| StoredTensor {
        name: info.name,
        stored_type: info.kind.name().to_owned(),
        shape: info.shape,
        bytes: info.bytes.len() as u64,
    };
    let mut tensors: Vec<_> = Container::parse(path, &map(path)?)?.tensors.into_iter().map(describe).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Maps the file at `path` into memory.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(ModelError::io(path))?;
    // SAFETY: the map is read only and private to this process; as for every mapped checkpoint, the user must not cut
    // the file short while it is in use.
    unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))
}

impl TensorSource for GgufFile {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().filter(|name| !name.starts_with("rope_f")).cloned().collect()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        Ok(self.tensor(name)?.info.shape.clone())
    }

    fn stored_type(&self, name: &str) -> Result<StoredType, ModelError> {
        Ok(match self.tensor(name)?.info.kind {
            TensorType::Float(FloatType::F32) => StoredType::F32,
            TensorType::Float(FloatType::F16) => StoredType::F16,
            TensorType::Float(FloatType::BF16) => StoredType::BF16,
            TensorType::Block(_) => StoredType::Quantized,
        })
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name)?;
        let (rows, columns) = tensor.rows_and_columns();
        let mut numbers = vec![0.0; rows * columns];
        numbers
            .par_chunks_exact_mut(columns)
            .enumerate()
            .with_min_len(16)
            .for_each(|(row, out)| tensor.read_row(&self.file, row, out));
        Ok(numbers)
    }

    fn stored(&self, name: &str) -> Result<StoredMatrix, ModelError> {
        let tensor = self.tensor(name)?;
        let (outputs, inputs) = tensor.rows_and_columns();
        match (tensor.info.kind, tensor.change) {
            (_, Change::MinusOne) => Ok(StoredMatrix::float32(self.read(name)?, inputs)),
            (kind, _) => {
                let rows = (0..outputs).flat_map(|row| tensor.row_bytes(&self.file, row, inputs));
                Ok(kind.stored(rows.copied().collect(), [outputs, inputs]))
            }
        }
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name)?;
        let (height, columns) = tensor.rows_and_columns();
        if let Some(row) = rows.iter().find(|row| **row as usize >= height) {
            return Err(ModelError::Tensor {
                tensor: name.to_owned(),
                what: format!("row {row} is asked for, but it has {height} rows"),
            });
        }
        let mut numbers = vec![0.0; rows.len() * columns];
        for (row, out) in rows.iter().zip(numbers.chunks_exact_mut(columns)) {
            tensor.read_row(&self.file, *row as usize, out);
        }
        Ok(numbers)
    }
}
