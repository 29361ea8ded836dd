//! What a solver hands over: integers with scales and zero-points, or blocks.

use kernels::{QuantizedMatrix, kquant::BlockMatrix};
use model::ModelError;

/// A quantized weight, whatever its grid.
#[derive(Clone, Debug, PartialEq)]
pub enum Matrix {
    /// One scale and zero-point for a group of columns: what GPTQ's, AWQ's and other folders hold.
    Grid(QuantizedMatrix),
    /// Blocks as GGUF files hold them.
    Blocks(BlockMatrix),
}

impl From<QuantizedMatrix> for Matrix {
    fn from(matrix: QuantizedMatrix) -> Self {
        Self::Grid(matrix)
    }
}

impl From<BlockMatrix> for Matrix {
    fn from(matrix: BlockMatrix) -> Self {
        Self::Blocks(matrix)
    }
}

impl Matrix {
    /// The weight that a loader will compute with.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Grid(matrix) => matrix.dequantize(),
            Self::Blocks(matrix) => matrix.dequantize(),
        }
    }

    /// How many integers it holds.
    pub fn codes(&self) -> u64 {
        match self {
            Self::Grid(matrix) => matrix.codes.len() as u64,
            Self::Blocks(matrix) => (matrix.outputs * matrix.inputs) as u64,
        }
    }

    /// The integers of `module`, for formats that hold such.
    pub fn grid(&self, module: &str) -> Result<&QuantizedMatrix, ModelError> {
        match self {
            Self::Grid(matrix) => Ok(matrix),
            Self::Blocks(matrix) => Err(ModelError::Tensor {
                tensor: module.to_owned(),
                what: format!("was solved in {} blocks, which only GGUF files hold", matrix.kind.name()),
            }),
        }
    }
}
