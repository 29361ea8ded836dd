//! The block formats of GGUF files: grids fitted, weights rounded to them, blocks packed and unpacked.
//!
//! A block is 32 or 256 consecutive weights of a row, cut into sub-blocks. With `d` and `m` stored as float16, and whole
//! numbers `s` and `l` for each sub-block,
//!
//! ```text
//! value = (d s) level(code) - m l
//! ```
//!
//! | type | block | sub-block | code | level | s | m l | bytes |
//! |---|---|---|---|---|---|---|---|
//! | Q8_0 | 32 | 32 | 8 bits | code - 128 | 1 | - | 34 |
//! | Q4_0, Q5_0 | 32 | 32 | 4, 5 bits | code - 8, code - 16 | 1 | - | 18, 22 |
//! | Q4_1, Q5_1 | 32 | 32 | 4, 5 bits | code | 1 | -m, any sign | 20, 24 |
//! | IQ4_NL | 32 | 32 | 4 bits | 16 uneven levels | 1 | - | 18 |
//! | Q2_K | 256 | 16 | 2 bits | code | 0..15 | l in 0..15 | 84 |
//! | Q3_K | 256 | 16 | 3 bits | code - 4 | -32..31 | - | 110 |
//! | Q4_K, Q5_K | 256 | 32 | 4, 5 bits | code | 0..63 | l in 0..63 | 144, 176 |
//! | Q6_K | 256 | 16 | 6 bits | code - 32 | -128..127 | - | 210 |
//!
//! [`grid`] is that formula, [`fit`] finds `d`, `m`, `s`, `l`; one file a family packs. Rounding to nearest and error
//! compensation ([`compensate`]) differ only in how codes are chosen on a fitted grid; whatever chose them, the bytes
//! are packed from the codes.

pub mod compensate;
mod fit;
mod grid;
mod q2_k;
mod q3_k;
mod q4_k;
mod q6_k;
mod small;

pub use grid::BlockGrid;

use crate::dispatch::{one_at_a_time, vectorized};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The most weights in a block.
const LARGEST: usize = 256;

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the table above describes each")]
pub enum BlockType {
    #[serde(rename = "Q4_0")]
    Q4_0,
    #[serde(rename = "Q4_1")]
    Q4_1,
    #[serde(rename = "Q5_0")]
    Q5_0,
    #[serde(rename = "Q5_1")]
    Q5_1,
    #[serde(rename = "Q8_0")]
    Q8_0,
    #[serde(rename = "Q2_K")]
    Q2K,
    #[serde(rename = "Q3_K")]
    Q3K,
    #[serde(rename = "Q4_K")]
    Q4K,
    #[serde(rename = "Q5_K")]
    Q5K,
    #[serde(rename = "Q6_K")]
    Q6K,
    #[serde(rename = "IQ4_NL")]
    Iq4Nl,
}

impl BlockType {
    /// Every block format.
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
    ];

    /// The name that everyone calls it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
        }
    }

    /// Weights in a block; a row's width must be a multiple of it.
    pub fn columns(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// Weights in a sub-block, which share a step.
    pub fn sub_block(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q6K => 16,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `inputs` weights, a multiple of [`BlockType::columns`].
    pub fn row_bytes(self, inputs: usize) -> usize {
        inputs / self.columns() * self.bytes()
    }

    /// Writes the block that `grid` and `codes` (one a weight) stand for into `block`.
    pub fn pack(self, grid: &BlockGrid, codes: &[u8], block: &mut [u8]) {
        assert_eq!((codes.len(), block.len()), (self.columns(), self.bytes()), "shapes of a {} block", self.name());
        match self {
            Self::Q2K => q2_k::pack(grid, codes, block),
            Self::Q3K => q3_k::pack(grid, codes, block),
            Self::Q4K => q4_k::pack(grid, codes, block, false),
            Self::Q5K => q4_k::pack(grid, codes, block, true),
            Self::Q6K => q6_k::pack(grid, codes, block),
            _ => small::pack(self, grid, codes, block),
        }
    }

    /// The grid of `block`; its codes go into `codes`.
    #[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
    #[inline(always)]
    pub fn unpack(self, block: &[u8], codes: &mut [u8]) -> BlockGrid {
        assert_eq!((codes.len(), block.len()), (self.columns(), self.bytes()), "shapes of a {} block", self.name());
        match self {
            Self::Q2K => q2_k::unpack(block, codes),
            Self::Q3K => q3_k::unpack(block, codes),
            Self::Q4K => q4_k::unpack(block, codes, false),
            Self::Q5K => q4_k::unpack(block, codes, true),
            Self::Q6K => q6_k::unpack(block, codes),
            _ => small::unpack(self, block, codes),
        }
    }
}

/// How much an error in a weight counts when a grid is fitted: squared errors times a weight for each.
#[derive(Clone, Copy, Debug)]
pub enum Weighting<'a> {
    /// As if each column were as important as any other.
    Plain,
    /// By the columns' mean squared activations `a`: `a sqrt(2 mean(x^2) + x^2)`, the mean over the block. The root
    /// stands for how large weights matter beyond their own output, as users of importance matrices know it.
    Importance(&'a [f32]),
    /// By exactly these numbers, one a column.
    Exact(&'a [f32]),
}

/// A weight `[outputs, inputs]` in a block format, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMatrix {
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight, a multiple of the format's block.
    pub inputs: usize,
    /// The format.
    pub kind: BlockType,
    /// The blocks as a file holds them.
    pub bytes: Vec<u8>,
}

impl BlockMatrix {
    /// Rounds `weight` (`[rows, inputs]`) to the nearest codes of grids fitted under `weighting`. Rows run in parallel.
    ///
    /// A not-a-number counts as zero; a weight too large for the format gets its grid's end.
    pub fn quantize(weight: &[f32], inputs: usize, kind: BlockType, weighting: Weighting<'_>) -> Self {
        assert_eq!((inputs % kind.columns(), weight.len() % inputs), (0, 0), "shape of a {} matrix", kind.name());
        let mut matrix = Self::unfilled(weight.len() / inputs, inputs, kind);
        let rows = matrix.bytes.par_chunks_mut(kind.row_bytes(inputs)).zip(weight.par_chunks(inputs));
        rows.with_min_len(4).for_each(|(bytes, row)| {
            let grids = fit::row(kind, row, weighting);
            let mut codes = [0; LARGEST];
            let codes = &mut codes[..kind.columns()];
            let blocks = bytes.chunks_exact_mut(kind.bytes()).zip(row.chunks_exact(kind.columns()));
            for ((block, weights), grid) in blocks.zip(&grids) {
                grid.nearest_codes(kind, weights, codes);
                kind.pack(grid, codes, block);
            }
        });
        matrix
    }

    fn unfilled(outputs: usize, inputs: usize, kind: BlockType) -> Self {
        Self { outputs, inputs, kind, bytes: vec![0; outputs * kind.row_bytes(inputs)] }
    }

    /// The weight that a loader will compute with, `[outputs, inputs]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.outputs * self.inputs];
        let rows = self.bytes.par_chunks(self.kind.row_bytes(self.inputs)).zip(weight.par_chunks_mut(self.inputs));
        rows.with_min_len(4).for_each(|(bytes, row)| dequantize_row(self.kind, bytes, row));
        weight
    }
}

vectorized! {
    /// The weights that the blocks of consecutive rows (or of a part of one) stand for.
    pub fn dequantize_row(kind: BlockType, bytes: &[u8], row: &mut [f32]) {
        // A loop for each format, so that the compiler knows its sizes.
        macro_rules! of_each {
            ($($name:ident)*) => {
                match kind { $(BlockType::$name => dequantize_blocks(BlockType::$name, bytes, row)),* }
            };
        }
        of_each!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Iq4Nl);
    }
}

#[allow(clippy::inline_always, reason = "compiled for its caller's instructions and kind")]
#[inline(always)]
fn dequantize_blocks(kind: BlockType, bytes: &[u8], row: &mut [f32]) {
    if kind.columns() == 32 {
        return small::dequantize(kind, bytes, row);
    }
    let mut codes = [0; LARGEST];
    let codes = &mut codes[..kind.columns()];
    for (block, weights) in bytes.chunks_exact(kind.bytes()).zip(row.chunks_exact_mut(kind.columns())) {
        kind.unpack(block, codes).values(kind, codes, weights);
    }
}

/// Codes whose bits lie in as many consecutive bytes, all at the same place of their byte.
const RUN: usize = 32;

/// Adds the bits `mask` of each byte, counted from bit `from` on, to each code as its bits from `to` on.
#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
fn add_bits(codes: &mut [u8], bytes: &[u8], to: usize, from: usize, mask: u8) {
    for (code, byte) in codes.iter_mut().zip(bytes) {
        *code |= (byte >> from & mask) << to;
    }
    one_at_a_time();
}

#[cfg(test)]
mod tests;
