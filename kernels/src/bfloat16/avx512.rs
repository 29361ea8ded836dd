//! AVX-512 BF16: rounding, packing, and the product by dot products of pairs.
//!
//! A tile of the product is 12 rows by 32 outputs: 24 registers of sums, two of the weight, one that holds a pair of
//! a row's inputs sixteen times over. Inputs are walked in runs: a run's piece of the rows stays in the second-level cache,
//! its piece of the weight's panel in the first.
#![allow(unsafe_code)]

use super::{LINE, Line, PANEL, Packed, Rows, Squares, piece};
use std::{
    arch::x86_64::{
        __m512, __m512bh, __m512i, __mmask16, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtepu16_epi32,
        _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_extracti64x4_epi64, _mm512_load_si512, _mm512_loadu_ps,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
        _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_store_si512, _mm512_sub_ps, _mm512_unpackhi_epi32,
        _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    },
    ops::Range,
};

/// Rows of a tile.
const TILE: usize = 12;
/// Whether processor and system grant it.
pub(super) fn granted() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Packs a run of `row` into the lines `begin`, `begin + stride` and so on; `low`, unless it is empty, gets what rounding
/// leaves. What `row` doesn't have becomes zero.
pub(super) fn pack_row(
    row: &[f32],
    run: Range<usize>,
    high: &mut [Line],
    low: &mut [Line],
    begin: usize,
    stride: usize,
) {
    // SAFETY: lines are packed only where a unit was found, and each has these features.
    unsafe { split_row(row, run, high, low, begin, stride) }
}

/// Packs a run of up to 16 rows of the weight into the squares that begin at `begin`, every other square from there.
pub(super) fn pack_squares(rows: &[f32], inputs: usize, run: Range<usize>, squares: &mut Squares, begin: usize) {
    // SAFETY: as above.
    unsafe { split_squares(rows, inputs, run, squares, begin) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_row(row: &[f32], run: Range<usize>, high: &mut [Line], low: &mut [Line], begin: usize, stride: usize) {
    for (at, line) in run.enumerate() {
        let at = begin + at * stride;
        let values = load(row, line);
        let rounded = round(values);
        store(&mut high[at], rounded);
        if !low.is_empty() {
            store(&mut low[at], round(rest(values, rounded)));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_squares(rows: &[f32], inputs: usize, run: Range<usize>, squares: &mut Squares, begin: usize) {
    let mut values = [[_mm512_setzero_ps(); 2]; 16];
    let mut lines = [_mm512_setzero_si512(); 16];
    for (at, line) in run.enumerate() {
        let at = begin + at * PANEL;
        for (values, row) in values.iter_mut().zip(rows.chunks_exact(inputs)) {
            *values = load(row, line);
        }
        for (line, values) in lines.iter_mut().zip(values) {
            *line = round(values);
        }
        let mirrored = transpose(lines);
        for (to, line) in squares.high[at..at + 16].iter_mut().zip(mirrored) {
            store(to, line);
        }
        if !squares.low.is_empty() {
            for (line, values) in lines.iter_mut().zip(values) {
                *line = round(rest(values, *line));
            }
            for (to, line) in squares.low[at..at + 16].iter_mut().zip(transpose(lines)) {
                store(to, line);
            }
        }
    }
}

/// Line `line` of a row, zeros where the row has ended.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn load(row: &[f32], line: usize) -> [__m512; 2] {
    let values = row.get(line * LINE..).unwrap_or_default();
    let mut padded = [0.0; LINE];
    let values = values.first_chunk::<LINE>().unwrap_or_else(|| {
        padded[..values.len()].copy_from_slice(values);
        &padded
    });
    // SAFETY: 32 numbers are there.
    unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))] }
}

/// `high` of 32 numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn round([first, second]: [__m512; 2]) -> __m512i {
    // SAFETY: bfloat16 vectors are integers in another guise.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second, first)) }
}

/// `v - high(v)` of 32 numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn rest([first, second]: [__m512; 2], rounded: __m512i) -> [__m512; 2] {
    let first_half = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(rounded));
    let second_half = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(rounded, 1));
    [
        _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(first_half, 16))),
        _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_slli_epi32(second_half, 16))),
    ]
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn store(to: &mut Line, line: __m512i) {
    // SAFETY: a line is as large as the vector and lies as it wants.
    unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), line) };
}

/// A square of 16 by 16 pairs, mirrored at its diagonal, by halves: pairs of pairs, then fours, then eights, then sixteens
/// change places.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn transpose(mut a: [__m512i; 16]) -> [__m512i; 16] {
    let mut b = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for i in 0..4 {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for i in 0..4 {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for i in 0..8 {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    }
    a
}

/// Writes 16 numbers, or as many as `out` has room for.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_sums(sums: &[f32; 16], out: &mut [f32]) {
    let mask = if out.len() < 16 { (1 << out.len()) - 1 } else { __mmask16::MAX };
    // SAFETY: 16 numbers are read; the mask lets through no more than `out` has.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_loadu_ps(sums.as_ptr())) };
}

/// `out = x wᵀ`, rows of `out` so many numbers apart.
pub(super) fn multiply(packed: &Packed, x: &Rows, rows: usize, (out, stride): (&mut [f32], usize)) {
    let (terms, lines, outputs) = (packed.terms(x), packed.lines(), packed.outputs);
    for run in packed.runs() {
        for panel in 0..packed.outputs.div_ceil(PANEL) {
            let mut first = 0;
            while first < rows {
                let tile = Tile { terms: &terms, lines, run: run.clone(), panel, first, outputs, stride };
                // SAFETY: a weight is packed for this unit only where it was found, or a better one that has the same
                // features.
                first += unsafe {
                    match rows - first {
                        TILE.. => tile.add::<TILE>(out),
                        4.. => tile.add::<4>(out),
                        _ => tile.add::<1>(out),
                    }
                };
            }
        }
    }
}

/// A piece of the product.
struct Tile<'a> {
    terms: &'a [(&'a [Line], &'a [Line])],
    /// Lines in a row.
    lines: usize,
    /// Those to be multiplied now.
    run: Range<usize>,
    panel: usize,
    /// Its first row.
    first: usize,
    /// Of the whole weight.
    outputs: usize,
    /// From row to row of `out`.
    stride: usize,
}

impl Tile<'_> {
    /// Adds the run's products to `M` rows of `out` (the first run overwrites); returns `M`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn add<const M: usize>(&self, out: &mut [f32]) -> usize {
        let columns = PANEL.min(self.outputs - self.panel * PANEL);
        let masks = [columns.min(16), columns.saturating_sub(16)].map(|columns| ((1u32 << columns) - 1) as __mmask16);
        let at = |row: usize| (self.first + row) * self.stride + self.panel * PANEL;
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        if self.run.start > 0 {
            for (row, sums) in sums.iter_mut().enumerate() {
                let from = out[at(row)..][..columns].as_ptr();
                // SAFETY: the masks let through `columns` numbers, which were just found to be there.
                *sums = unsafe {
                    [_mm512_maskz_loadu_ps(masks[0], from), _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(16))]
                };
            }
        }
        for (x, w) in self.terms {
            let x = &x[self.first * self.lines + self.run.start..][..(M - 1) * self.lines + self.run.len()];
            let w = &w[piece(&self.run, self.outputs.div_ceil(PANEL), self.panel)..][..self.run.len() * PANEL];
            // SAFETY: `M` rows of `x`, `lines` apart, and the panel's piece of `w` hold a run of lines each.
            unsafe { dot::<M>(x.as_ptr(), self.lines, w.as_ptr(), self.run.len(), &mut sums) };
        }
        for (row, sums) in sums.iter().enumerate() {
            let to = out[at(row)..][..columns].as_mut_ptr();
            // SAFETY: as for reading.
            unsafe {
                _mm512_mask_storeu_ps(to, masks[0], sums[0]);
                _mm512_mask_storeu_ps(to.wrapping_add(16), masks[1], sums[1]);
            }
        }
        M
    }
}

/// Adds the products of `M` rows that begin at `x`, `stride` lines apart, with the panel at `w`, over `count` lines.
///
/// # Safety
///
/// There are `count` lines at each row and `count * PANEL` at `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(clippy::needless_range_loop, reason = "the row's address and its sums go by the same number")]
unsafe fn dot<const M: usize>(
    x: *const Line,
    stride: usize,
    w: *const Line,
    count: usize,
    sums: &mut [[__m512; 2]; M],
) {
    // In a variable of its own, the sums stay in registers.
    let mut held = *sums;
    for line in 0..count {
        let (x, w) = (x.wrapping_add(line).cast::<i32>(), w.wrapping_add(line * PANEL).cast::<__m512i>());
        for pair in 0..16 {
            // SAFETY: by the caller's promise; bfloat16 vectors are integers in another guise.
            unsafe {
                let first: __m512bh = std::mem::transmute(_mm512_load_si512(w.add(pair)));
                let second: __m512bh = std::mem::transmute(_mm512_load_si512(w.add(16 + pair)));
                for row in 0..M {
                    let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*x.add(row * stride * 16 + pair)));
                    held[row][0] = _mm512_dpbf16_ps(held[row][0], x, first);
                    held[row][1] = _mm512_dpbf16_ps(held[row][1], x, second);
                }
            }
        }
    }
    *sums = held;
}
