//! Q4_K and Q5_K: 256 weights, 32 to a sub-block.
//!
//! ```text
//! f16 d, f16 m
//! 12 bytes    s and l of the sub-blocks, 6 bits: for j < 4, s in byte j and l in byte 4 + j, their low six bits; for
//!             j >= 4 the low four of s and of l in byte 4 + j, s in its low nibble, and their upper two in the upper
//!             two of bytes j - 4 and j
//! 32 bytes    (Q5_K) the codes' fifth bits: weight i in byte i % 32, at bit i / 32
//! 128 bytes   nibbles: weight i in byte i / 64 * 32 + i % 32, the low one where i % 64 < 32
//! ```

use super::{BlockGrid, RUN, add_bits};
use half::f16;

/// Where the scales begin, and where what follows them does.
const SCALES: usize = 4;
const REST: usize = 16;

/// Byte and shift of the low four bits of weight `i`.
fn nibble(i: usize) -> (usize, usize) {
    (i / 64 * 32 + i % 32, i % 64 / 32 * 4)
}

pub(super) fn pack(grid: &BlockGrid, codes: &[u8], block: &mut [u8], fifth: bool) {
    block.fill(0);
    block[..2].copy_from_slice(&grid.d.to_le_bytes());
    block[2..4].copy_from_slice(&grid.m.to_le_bytes());
    let scales = &mut block[SCALES..REST];
    for sub in 0..8 {
        let (step, low) = (grid.steps[sub].cast_unsigned() & 63, grid.lows[sub] & 63);
        if sub < 4 {
            scales[sub] |= step;
            scales[sub + 4] |= low;
        } else {
            scales[sub + 4] |= step & 15 | low << 4;
            scales[sub - 4] |= step >> 4 << 6;
            scales[sub] |= low >> 4 << 6;
        }
    }
    let nibbles = if fifth { REST + 32 } else { REST };
    for (i, code) in codes.iter().enumerate() {
        let (byte, shift) = nibble(i);
        block[nibbles + byte] |= (code & 15) << shift;
        if fifth {
            block[REST + i % 32] |= (code >> 4 & 1) << (i / 32);
        }
    }
}

#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
pub(super) fn unpack(block: &[u8], codes: &mut [u8], fifth: bool) -> BlockGrid {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    let mut grid = BlockGrid { d: half(0), m: half(2), ..BlockGrid::default() };
    let scales = &block[SCALES..REST];
    for sub in 0..8 {
        let (step, low) = if sub < 4 {
            (scales[sub] & 63, scales[sub + 4] & 63)
        } else {
            (scales[sub + 4] & 15 | scales[sub - 4] >> 6 << 4, scales[sub + 4] >> 4 | scales[sub] >> 6 << 4)
        };
        (grid.steps[sub], grid.lows[sub]) = (step.cast_signed(), low);
    }
    codes.fill(0);
    let nibbles = if fifth { REST + 32 } else { REST };
    for (run, codes) in codes.chunks_exact_mut(RUN).enumerate() {
        let (byte, shift) = nibble(run * RUN);
        add_bits(codes, &block[nibbles + byte..], 0, shift, 15);
        if fifth {
            add_bits(codes, &block[REST..], 4, run, 1);
        }
    }
    grid
}
