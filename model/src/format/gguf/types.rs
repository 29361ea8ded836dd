//! The tensor types of a file: floats and block formats.

use half::{bf16, f16};
use kernels::{
    kquant::{self, BlockMatrix, BlockType},
    stored::StoredMatrix,
};
use serde::{Deserialize, Serialize};

/// How the numbers of a tensor lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TensorType {
    /// A float type.
    Float(FloatType),
    /// Blocks.
    Block(BlockType),
}

/// A float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl TensorType {
    /// Single precision.
    pub const F32: Self = Self::Float(FloatType::F32);
    /// Half precision.
    pub const F16: Self = Self::Float(FloatType::F16);
    /// bfloat16.
    pub const BF16: Self = Self::Float(FloatType::BF16);

    /// Every type that is read and written, with its number in files.
    const NUMBERS: [(Self, u32); 14] = [
        (Self::F32, 0),
        (Self::F16, 1),
        (Self::Block(BlockType::Q4_0), 2),
        (Self::Block(BlockType::Q4_1), 3),
        (Self::Block(BlockType::Q5_0), 6),
        (Self::Block(BlockType::Q5_1), 7),
        (Self::Block(BlockType::Q8_0), 8),
        (Self::Block(BlockType::Q2K), 10),
        (Self::Block(BlockType::Q3K), 11),
        (Self::Block(BlockType::Q4K), 12),
        (Self::Block(BlockType::Q5K), 13),
        (Self::Block(BlockType::Q6K), 14),
        (Self::Block(BlockType::Iq4Nl), 20),
        (Self::BF16, 30),
    ];

    /// The type with this number.
    pub(super) fn of_number(number: u32) -> Option<Self> {
        Self::NUMBERS.iter().find(|(_, known)| *known == number).map(|(kind, _)| *kind)
    }

    /// Its number in files.
    pub(super) fn number(self) -> u32 {
        let known = Self::NUMBERS.iter().find(|(kind, _)| *kind == self);
        known.map(|(_, number)| *number).expect("the table holds every type")
    }

    /// The name that everyone calls it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(FloatType::F32) => "F32",
            Self::Float(FloatType::F16) => "F16",
            Self::Float(FloatType::BF16) => "BF16",
            Self::Block(kind) => kind.name(),
        }
    }

    /// Values in a block, 1 for floats; a row's width is a multiple of it.
    pub(super) fn columns(self) -> usize {
        match self {
            Self::Float(_) => 1,
            Self::Block(kind) => kind.columns(),
        }
    }

    /// Bytes of a block.
    fn block_bytes(self) -> usize {
        match self {
            Self::Float(FloatType::F32) => 4,
            Self::Float(_) => 2,
            Self::Block(kind) => kind.bytes(),
        }
    }

    /// Bytes of `count` values in whole blocks; `None` if that overflows.
    pub(super) fn bytes(self, count: usize) -> Option<usize> {
        (count / self.columns()).checked_mul(self.block_bytes())
    }

    /// The matrix `[outputs, inputs]` that `bytes` hold.
    pub(super) fn stored(self, bytes: Vec<u8>, [outputs, inputs]: [usize; 2]) -> StoredMatrix {
        match self {
            Self::Float(FloatType::F32) => {
                let numbers = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                StoredMatrix::float32(numbers.collect(), inputs)
            }
            Self::Float(FloatType::F16) => {
                let numbers = bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes));
                StoredMatrix::float16(numbers.collect(), inputs)
            }
            Self::Float(FloatType::BF16) => {
                let numbers = bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
                StoredMatrix::bfloat16(numbers.collect(), inputs)
            }
            Self::Block(kind) => StoredMatrix::blocks(BlockMatrix { outputs, inputs, kind, bytes }),
        }
    }

    /// The numbers that `bytes` hold.
    pub(super) fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        match self {
            Self::Float(FloatType::F32) => {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = f32::from_le_bytes(*bytes);
                }
            }
            Self::Float(FloatType::F16) => {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Float(FloatType::BF16) => {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Block(kind) => kquant::dequantize_row(kind, bytes, numbers),
        }
    }
}
