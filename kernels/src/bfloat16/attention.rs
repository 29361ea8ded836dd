//! Keys and values of a head in tiles of bfloat16 numbers, for the two products of attention.

use super::{Packed, Unit};
use std::ops::Range;

/// Keys of a tile: few, since those that come after a query are multiplied for nothing.
const KEYS: usize = 256;

/// Keys and values of one head.
pub(crate) struct KeyValueTiles {
    tokens: usize,
    width: usize,
    /// Keys `[keys, width]` and values `[width, keys]` of each tile.
    tiles: Vec<[Packed; 2]>,
}

impl KeyValueTiles {
    /// Of `tokens` keys and values of `width` numbers, `stride` apart; `split` keeps what rounding leaves of values and weights.
    /// Of queries and keys it is always kept: an error of a score is one of an exponent, and where a family has large
    /// biases there (Qwen), it came to two thirds of all that rounding to bfloat16 cost.
    pub(crate) fn new(
        [k, v]: [&[f32]; 2],
        stride: usize,
        tokens: usize,
        width: usize,
        split: bool,
        unit: Unit,
    ) -> Self {
        let tile = |first: usize| {
            let count = KEYS.min(tokens - first);
            let rows = |of: &[f32]| -> Vec<f32> {
                (first..first + count).flat_map(|t| &of[t * stride..][..width]).copied().collect()
            };
            let (k, v) = (rows(k), rows(v));
            let turned: Vec<f32> = (0..width).flat_map(|i| v.iter().skip(i).step_by(width)).copied().collect();
            [Packed::new(&k, width, true, unit), Packed::new(&turned, count, split, unit)]
        };
        Self { tokens, width, tiles: (0..tokens).step_by(KEYS).map(tile).collect() }
    }

    /// The keys of the tiles that `keys` reaches into.
    pub(crate) fn around(&self, keys: Range<usize>) -> Range<usize> {
        keys.start / KEYS * KEYS..keys.end.next_multiple_of(KEYS).min(self.tokens)
    }

    /// `scores[r][s] = q[r]·k[columns.start + s]` for `rows` rows; `columns` as [`Self::around`] gives them.
    pub(crate) fn scores(&self, columns: Range<usize>, rows: usize, q: &[f32], scores: &mut [f32]) {
        for first in columns.clone().step_by(KEYS) {
            let out = (&mut scores[first - columns.start..], columns.len());
            self.tiles[first / KEYS][0].multiply_within(rows, (q, self.width), out);
        }
    }

    /// `out[r] = sum_s weights[r][s] v[columns.start + s]` for `rows` rows.
    pub(crate) fn values(&self, columns: Range<usize>, rows: usize, weights: &[f32], out: &mut [f32]) {
        let mut part = vec![0.0; rows * self.width];
        out.fill(0.0);
        for first in columns.clone().step_by(KEYS) {
            let weights = (&weights[first - columns.start..], columns.len());
            self.tiles[first / KEYS][1].multiply_within(rows, weights, (&mut part, self.width));
            out.iter_mut().zip(&part).for_each(|(out, part)| *out += part);
        }
    }
}
