//! Blocks of 32 weights with one step.
//!
//! ```text
//! Q4_0, IQ4_NL   f16 d, 16 bytes of nibbles                    weight i: byte i % 16, low nibble below 16, else high
//! Q4_1           f16 d, f16 -m, 16 bytes of nibbles
//! Q5_0           f16 d, u32 of fifth bits (bit i), nibbles
//! Q5_1           f16 d, f16 -m, u32 of fifth bits, nibbles
//! Q8_0           f16 d, 32 bytes of code - 128 in two's complement
//! ```

use super::{BlockGrid, BlockType, grid::SubGrid};
use crate::{dispatch::one_at_a_time, halves::widened};
use half::f16;

/// Whether the format stores a minimum, and whether it has fifth bits.
fn parts(kind: BlockType) -> (bool, bool) {
    let minimum = matches!(kind, BlockType::Q4_1 | BlockType::Q5_1);
    (minimum, matches!(kind, BlockType::Q5_0 | BlockType::Q5_1))
}

pub(super) fn pack(kind: BlockType, grid: &BlockGrid, codes: &[u8], block: &mut [u8]) {
    let (minimum, fifth) = parts(kind);
    block[..2].copy_from_slice(&grid.d.to_le_bytes());
    if kind == BlockType::Q8_0 {
        for (byte, code) in block[2..].iter_mut().zip(codes) {
            *byte = code ^ 128; // code - 128 in two's complement
        }
        return;
    }
    let mut at = 2;
    if minimum {
        block[2..4].copy_from_slice(&(-grid.m).to_le_bytes());
        at = 4;
    }
    if fifth {
        let bits = codes.iter().enumerate().fold(0u32, |bits, (i, code)| bits | u32::from(code >> 4 & 1) << i);
        block[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        at += 4;
    }
    for (i, byte) in block[at..].iter_mut().enumerate() {
        *byte = codes[i] & 15 | codes[i + 16] << 4;
    }
}

#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
pub(super) fn unpack(kind: BlockType, block: &[u8], codes: &mut [u8]) -> BlockGrid {
    unpack_codes(kind, block, codes);
    let [d, m] = units(kind, block);
    BlockGrid::single(d, m)
}

/// The weights that consecutive blocks stand for. Their units are widened together: one by one they would take longer than
/// the codes.
#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
pub(super) fn dequantize(kind: BlockType, bytes: &[u8], values: &mut [f32]) {
    /// As many numbers as a register holds.
    const TOGETHER: usize = 16;
    let mut codes = [0; 32];
    for (blocks, values) in bytes.chunks(TOGETHER * kind.bytes()).zip(values.chunks_mut(TOGETHER * codes.len())) {
        let [mut d, mut m] = [[f16::ZERO; TOGETHER]; 2];
        for ((block, d), m) in blocks.chunks_exact(kind.bytes()).zip(&mut d).zip(&mut m) {
            [*d, *m] = units(kind, block);
            one_at_a_time();
        }
        let [mut steps, mut lows] = [[0.0; TOGETHER]; 2];
        for at in 0..TOGETHER {
            (steps[at], lows[at]) = (widened(d[at]), widened(m[at]));
        }
        let blocks = blocks.chunks_exact(kind.bytes()).zip(values.chunks_exact_mut(codes.len()));
        for ((block, values), (step, low)) in blocks.zip(steps.into_iter().zip(lows)) {
            unpack_codes(kind, block, &mut codes);
            SubGrid { step, low }.values(kind.levels(), &codes, values);
        }
    }
}

/// `d` and `m`.
#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
fn units(kind: BlockType, block: &[u8]) -> [f16; 2] {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    [half(0), if parts(kind).0 { -half(2) } else { f16::ZERO }]
}

#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
fn unpack_codes(kind: BlockType, block: &[u8], codes: &mut [u8]) {
    let (minimum, fifth) = parts(kind);
    if kind == BlockType::Q8_0 {
        for (code, byte) in codes.iter_mut().zip(&block[2..]) {
            *code = byte ^ 128;
        }
        return;
    }
    let nibbles = if minimum { 4 } else { 2 } + if fifth { 4 } else { 0 };
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[nibbles..]) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    if fifth {
        let bits = &block[nibbles - 4..nibbles];
        let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
        one_at_a_time();
        for (i, code) in (0u32..32).zip(codes) {
            *code |= if bits & 1 << i != 0 { 16 } else { 0 };
        }
    }
}
