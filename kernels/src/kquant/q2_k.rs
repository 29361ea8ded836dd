//! Q2_K: 256 weights, 16 to a sub-block.
//!
//! ```text
//! 16 bytes   s | l << 4 of each sub-block
//! 64 bytes   two bits a weight: weight i in byte i / 128 * 32 + i % 32, at bit 2 (i % 128 / 32)
//! f16 d, f16 m
//! ```

use super::{BlockGrid, RUN, add_bits};
use half::f16;

/// Byte and shift of the two low bits of weight `i`; Q3_K has the same.
pub(super) fn pair(i: usize) -> (usize, usize) {
    (i / 128 * 32 + i % 32, i % 128 / 32 * 2)
}

pub(super) fn pack(grid: &BlockGrid, codes: &[u8], block: &mut [u8]) {
    block.fill(0);
    for (byte, (step, low)) in block.iter_mut().zip(grid.steps.iter().zip(&grid.lows)) {
        *byte = step.cast_unsigned() & 15 | low << 4;
    }
    for (i, code) in codes.iter().enumerate() {
        let (byte, shift) = pair(i);
        block[16 + byte] |= (code & 3) << shift;
    }
    block[80..82].copy_from_slice(&grid.d.to_le_bytes());
    block[82..84].copy_from_slice(&grid.m.to_le_bytes());
}

#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
pub(super) fn unpack(block: &[u8], codes: &mut [u8]) -> BlockGrid {
    codes.fill(0);
    for (run, codes) in codes.chunks_exact_mut(RUN).enumerate() {
        let (byte, shift) = pair(run * RUN);
        add_bits(codes, &block[16 + byte..], 0, shift, 3);
    }
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    let mut grid = BlockGrid { d: half(80), m: half(82), ..BlockGrid::default() };
    for (sub, byte) in block[..16].iter().enumerate() {
        grid.steps[sub] = (byte & 15).cast_signed();
        grid.lows[sub] = byte >> 4;
    }
    grid
}
