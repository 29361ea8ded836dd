//! Q3_K: 256 weights, 16 to a sub-block.
//!
//! ```text
//! 32 bytes   the codes' third bits: weight i in byte i % 32, at bit i / 32
//! 64 bytes   the codes' low two bits, as in Q2_K
//! 12 bytes   s + 32 of the sub-blocks, 6 bits: the low four of sub-block j in byte j % 8, its low nibble for j < 8,
//!            the upper two in byte 8 + j % 4, at bit 2 (j / 4)
//! f16 d
//! ```

use super::{BlockGrid, RUN, add_bits, q2_k::pair};
use half::f16;

/// Where the scales begin.
const SCALES: usize = 96;

pub(super) fn pack(grid: &BlockGrid, codes: &[u8], block: &mut [u8]) {
    block.fill(0);
    for (i, code) in codes.iter().enumerate() {
        let (byte, shift) = pair(i);
        block[32 + byte] |= (code & 3) << shift;
        block[i % 32] |= (code >> 2 & 1) << (i / 32);
    }
    for (sub, step) in grid.steps.iter().enumerate() {
        let stored = (step + 32).cast_unsigned();
        block[SCALES + sub % 8] |= (stored & 15) << (sub / 8 * 4);
        block[SCALES + 8 + sub % 4] |= (stored >> 4 & 3) << (sub / 4 * 2);
    }
    block[108..110].copy_from_slice(&grid.d.to_le_bytes());
}

#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
pub(super) fn unpack(block: &[u8], codes: &mut [u8]) -> BlockGrid {
    codes.fill(0);
    for (run, codes) in codes.chunks_exact_mut(RUN).enumerate() {
        let (byte, shift) = pair(run * RUN);
        add_bits(codes, &block[32 + byte..], 0, shift, 3);
        add_bits(codes, block, 2, run, 1);
    }
    let mut grid = BlockGrid { d: f16::from_le_bytes([block[108], block[109]]), ..BlockGrid::default() };
    for (sub, step) in grid.steps.iter_mut().enumerate() {
        let low = block[SCALES + sub % 8] >> (sub / 8 * 4) & 15;
        let high = block[SCALES + 8 + sub % 4] >> (sub / 4 * 2) & 3;
        *step = (low | high << 4).cast_signed() - 32;
    }
    grid
}
