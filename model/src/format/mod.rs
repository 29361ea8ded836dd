//! Where a checkpoint's tensors come from and go to; one file per format, its layout table in the module doc.

pub mod awq;
pub mod compressed;
pub mod gguf;
pub mod gptq;
pub mod huggingface;
pub mod replaced;

mod dequantized;
mod layout;
mod packed;
mod settings;
mod target;
mod write;

pub use dequantized::FloatType;
pub use packed::{PackedFolder, Packing};
pub use target::{Target, UnknownTarget};
pub use write::{Contents, Rounding, Sizes, sizes, write};

use crate::ModelError;
use kernels::{QuantSpec, QuantizedMatrix, stored::StoredMatrix};

/// A quantized linear.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedModule {
    /// Module name, e.g. `model.layers.0.mlp.down_proj`.
    pub name: String,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Its settings.
    pub spec: QuantSpec,
}

/// How a tensor's numbers lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Any packed integer type.
    Quantized,
}

/// Read access to a checkpoint's tensors under their Hugging Face names and conventions (rope in half-split order,
/// Gemma norms without the added one), whatever the file holds.
pub trait TensorSource: Send + Sync {
    /// The names of all tensors, sorted. A quantized linear counts as one tensor, `<module>.weight`.
    fn names(&self) -> Vec<String>;

    /// The shape of tensor `name`.
    fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError>;

    /// How tensor `name` is stored.
    fn stored_type(&self, name: &str) -> Result<StoredType, ModelError>;

    /// The whole tensor in float32, dequantized if need be.
    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError>;

    /// The matrix `name` as it is stored; a format whose numbers are no [`StoredMatrix`] gives them in float32.
    fn stored(&self, name: &str) -> Result<StoredMatrix, ModelError> {
        let inputs = self.shape(name)?.last().copied().unwrap_or_default().max(1);
        Ok(StoredMatrix::float32(self.read(name)?, inputs))
    }

    /// Rows `rows` of a matrix in float32: embeddings are looked up without reading the whole table.
    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, ModelError>;

    /// The integers of linear `module` (a name without `.weight`), where the file holds a quantized matrix of ours.
    fn quantized(&self, module: &str) -> Result<Option<QuantizedMatrix>, ModelError> {
        let _ = module;
        Ok(None)
    }
}

/// An error about tensor `name`.
fn tensor_error(name: impl Into<String>, what: impl Into<String>) -> ModelError {
    ModelError::Tensor { tensor: name.into(), what: what.into() }
}
