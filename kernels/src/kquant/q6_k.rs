//! Q6_K: 256 weights, 16 to a sub-block.
//!
//! ```text
//! 128 bytes   the codes' low four bits: weight i in byte i / 128 * 64 + i % 64, the low nibble where i % 128 < 64
//! 64 bytes    their upper two: weight i in byte i / 128 * 32 + i % 32, at bit 2 (i % 128 / 32)
//! 16 bytes    s of each sub-block, two's complement
//! f16 d
//! ```

use super::{BlockGrid, RUN, add_bits, q2_k::pair};
use half::f16;

/// Byte and shift of the low four bits of weight `i`.
fn nibble(i: usize) -> (usize, usize) {
    (i / 128 * 64 + i % 64, i % 128 / 64 * 4)
}

pub(super) fn pack(grid: &BlockGrid, codes: &[u8], block: &mut [u8]) {
    block.fill(0);
    for (i, code) in codes.iter().enumerate() {
        let (byte, shift) = nibble(i);
        block[byte] |= (code & 15) << shift;
        let (byte, shift) = pair(i);
        block[128 + byte] |= (code >> 4 & 3) << shift;
    }
    for (byte, step) in block[192..208].iter_mut().zip(grid.steps) {
        *byte = step.cast_unsigned();
    }
    block[208..210].copy_from_slice(&grid.d.to_le_bytes());
}

#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
pub(super) fn unpack(block: &[u8], codes: &mut [u8]) -> BlockGrid {
    codes.fill(0);
    for (run, codes) in codes.chunks_exact_mut(RUN).enumerate() {
        let (byte, shift) = nibble(run * RUN);
        add_bits(codes, &block[byte..], 0, shift, 15);
        let (byte, shift) = pair(run * RUN);
        add_bits(codes, &block[128 + byte..], 4, shift, 3);
    }
    let mut grid = BlockGrid { d: f16::from_le_bytes([block[208], block[209]]), ..BlockGrid::default() };
    for (step, byte) in grid.steps.iter_mut().zip(&block[192..208]) {
        *step = byte.cast_signed();
    }
    grid
}
