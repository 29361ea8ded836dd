//! Causal attention with grouped key-value heads and an optional sliding window.
//!
//! `out[t] = sum_s softmax_s(scale * q[t]·k[s]) v[s]` over `max(0, t+1-window) <= s <= t`; query head `h` reads
//! key-value head `h / (heads / kv_heads)`.
//!
//! Walked in tiles: a few queries of all the heads that read one key-value head, about [`ROWS`] rows in all. One product
//! gives their scores against the keys that any of them sees, softmax in place turns these into weights (zero outside a
//! query's own range), a second product sums the values, and each row is divided by its sum of weights at the end. Only
//! `[ROWS, keys]` scores exist at a time. Values must be finite: a weight of zero does not silence an infinity of a later
//! token in the same tile.

use crate::bfloat16::KeyValueTiles;
use crate::compute::Compute;
use crate::exponential::{exp_and_sum, largest};
use crate::few_rows::FEW_ROWS;
use crate::gemm::{Old, Strided, StridedMut, product};
use std::ops::Range;

/// Rows of a tile, about: the more there are, the rarer keys and values are read; the fewer tokens they belong to, the fewer
/// scores are computed for nothing.
const ROWS: usize = 192;

/// Shapes and scale of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How many positions back (itself included) a token sees; `None` is all.
    pub window: Option<usize>,
}

impl Attention {
    /// `q` and `out` are `[queries, heads * head_width]`, `k` and `v` `[tokens, kv_heads * head_width]`; the queries are
    /// those of the last tokens, of all of them where the counts are equal. Runs on the calling thread. A row does not
    /// depend on later tokens, but for the order of its sums where the sequence ends inside its tile: a few units in
    /// the last place.
    pub fn causal(&self, compute: Compute, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let queries = q.len() / (self.heads * self.head_width);
        let tokens = k.len() / (self.kv_heads * self.head_width);
        assert_eq!(
            (q.len(), k.len(), v.len()),
            (out.len(), tokens * self.kv_heads * self.head_width, k.len()),
            "shapes of q, k, v and out"
        );
        assert!(queries <= tokens, "{queries} queries of {tokens} tokens");
        let members = self.heads / self.kv_heads;
        let block = (ROWS / members).max(1).min(queries);
        let mut tile = Tile {
            rows: vec![0.0; block * members * self.head_width],
            scores: vec![0.0; block * members * tokens],
            sums: vec![0.0; block * members],
        };
        let split = compute.split().filter(|_| queries * members > FEW_ROWS);
        for head in 0..self.kv_heads {
            let values = [k, v].map(|of| of.get(head * self.head_width..).unwrap_or_default());
            let tiles = split.map(|(split, unit)| {
                KeyValueTiles::new(values, self.kv_heads * self.head_width, tokens, self.head_width, split, unit)
            });
            for first in (0..queries).step_by(block.max(1)) {
                let block = first..(first + block).min(queries);
                self.tile(head, block, tokens - queries, (q, values, tiles.as_ref()), out, &mut tile);
            }
        }
    }

    /// The keys that the token at position `t` sees.
    fn seen(&self, t: usize) -> Range<usize> {
        self.window.map_or(0, |window| (t + 1).saturating_sub(window))..t + 1
    }

    /// The queries `block` of the heads that read key-value head `head`; query 0 is at position `first`.
    fn tile(
        &self,
        head: usize,
        block: Range<usize>,
        first: usize,
        (q, [k, v], tiles): (&[f32], [&[f32]; 2], Option<&KeyValueTiles>),
        out: &mut [f32],
        tile: &mut Tile,
    ) {
        let (d, members) = (self.head_width, self.heads / self.kv_heads);
        let kv_width = self.kv_heads * d;
        let keys = self.seen(first + block.start).start..first + block.end;
        let keys = tiles.map_or(keys.clone(), |tiles| tiles.around(keys));
        let (count, columns) = (members * block.len(), keys.len());
        // Where row `r` of the tile is in `q` and `out`: member by member, token by token.
        let place = |r: usize| {
            let (member, token) = (r / block.len(), block.start + r % block.len());
            (token * self.heads + head * members + member) * d
        };
        let (rows, scores) = (&mut tile.rows[..count * d], &mut tile.scores[..count * columns]);
        for (r, row) in rows.chunks_exact_mut(d).enumerate() {
            row.iter_mut().zip(&q[place(r)..]).for_each(|(row, q)| *row = q * self.scale);
        }
        match tiles {
            Some(tiles) => tiles.scores(keys.clone(), count, rows, scores),
            None => product(
                [count, columns, d],
                StridedMut { data: scores, row: columns, column: 1 },
                Old::Overwrite,
                1.0,
                Strided { data: rows, row: d, column: 1 },
                Strided { data: &k[keys.start * kv_width..], row: 1, column: kv_width },
            ),
        }
        for (r, (scores, sum)) in scores.chunks_exact_mut(columns).zip(&mut tile.sums).enumerate() {
            let seen = self.seen(first + block.start + r % block.len());
            *sum = exponentials(scores, seen.start - keys.start..seen.end - keys.start);
        }
        match tiles {
            Some(tiles) => tiles.values(keys, count, scores, rows),
            None => product(
                [count, d, columns],
                StridedMut { data: rows, row: d, column: 1 },
                Old::Overwrite,
                1.0,
                Strided { data: scores, row: columns, column: 1 },
                Strided { data: &v[keys.start * kv_width..], row: kv_width, column: 1 },
            ),
        }
        for (r, (row, sum)) in rows.chunks_exact(d).zip(&tile.sums).enumerate() {
            let inverse = 1.0 / sum;
            out[place(r)..][..d].iter_mut().zip(row).for_each(|(out, value)| *out = value * inverse);
        }
    }
}

/// What is computed at a time, and its room.
struct Tile {
    /// Queries, then sums of values: `[rows, head_width]`.
    rows: Vec<f32>,
    /// `[rows, keys]`.
    scores: Vec<f32>,
    /// Of a row's weights.
    sums: Vec<f32>,
}

/// Turns scores into unnormalized weights, zero outside `seen`; returns their sum.
fn exponentials(scores: &mut [f32], seen: Range<usize>) -> f32 {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let scores = &mut scores[seen];
    let shift = largest(scores);
    exp_and_sum(scores, shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// The formula, query by query, in float64.
    fn reference(a: &Attention, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let d = a.head_width;
        let (q_width, kv_width) = (a.heads * d, a.kv_heads * d);
        let mut out = vec![0.0; q.len()];
        for h in 0..a.heads {
            let kv = h / (a.heads / a.kv_heads) * d;
            for t in 0..q.len() / q_width {
                let first = a.window.map_or(0, |w| (t + 1).saturating_sub(w));
                let score = |s: usize| -> f64 {
                    let terms =
                        (0..d).map(|i| f64::from(q[t * q_width + h * d + i]) * f64::from(k[s * kv_width + kv + i]));
                    f64::from(a.scale) * terms.sum::<f64>()
                };
                let scores: Vec<f64> = (first..=t).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for (s, score) in (first..=t).zip(&scores) {
                    for i in 0..d {
                        out[t * q_width + h * d + i] += (score - max).exp() / sum * f64::from(v[s * kv_width + kv + i]);
                    }
                }
            }
        }
        out
    }

    fn inputs(a: &Attention, tokens: usize) -> [Vec<f32>; 3] {
        let (q_width, kv_width) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        [random(tokens * q_width, 1), random(tokens * kv_width, 2), random(tokens * kv_width, 3)]
    }

    /// A score errs by at most `(d + 2) u scale sum |q k| <= (d + 2) u scale d`, which shifts each weight by as much
    /// relatively; the weighted sum of values below 1 errs twice that plus `tokens` roundings. In practice far less.
    fn bound(a: &Attention, tokens: usize) -> f64 {
        let d = a.head_width as f64;
        2f64.powi(-24) * (2.0 * (d + 2.0) * f64::from(a.scale) * d + tokens as f64 + 8.0)
    }

    fn check(a: &Attention, tokens: usize) {
        let [q, k, v] = inputs(a, tokens);
        let mut out = vec![f32::NAN; q.len()];
        a.causal(Compute::F32, &q, &k, &v, &mut out);
        for (at, (got, expected)) in out.iter().zip(reference(a, &q, &k, &v)).enumerate() {
            let error = (f64::from(*got) - expected).abs();
            assert!(error <= bound(a, tokens), "{a:?}, {tokens} tokens, at {at}: {got} {expected}");
        }
    }

    /// A score of split numbers errs by `2^-16 scale sum |q k|` or less (thrice that at the very worst), of rounded ones by
    /// `2^-8` of it, which shifts a weight by as much relatively; weights and values are split or rounded too.
    #[test]
    fn other_arithmetic_agrees_as_well_as_it_can() {
        for (compute, unit) in [(Compute::Bf16x3, 2f64.powi(-16)), (Compute::Bf16, 2f64.powi(-8))] {
            for (tokens, window) in [(5, None), (256, None), (300, None), (700, Some(100)), (600, Some(256))] {
                let a = shape(6, 2, 40, window);
                let [q, k, v] = inputs(&a, tokens);
                let mut out = vec![f32::NAN; q.len()];
                a.causal(compute, &q, &k, &v, &mut out);
                let bound = bound(&a, tokens) + unit * (2.0 * f64::from(a.scale) * 40.0 + 1.0);
                for (at, (got, expected)) in out.iter().zip(reference(&a, &q, &k, &v)).enumerate() {
                    let error = (f64::from(*got) - expected).abs();
                    assert!(error <= bound, "{compute}, {tokens} tokens, at {at}: {got} {expected}");
                }
                let mut last = vec![f32::NAN; 20 * 240];
                if tokens > 20 {
                    a.causal(compute, &q[(tokens - 20) * 240..], &k, &v, &mut last);
                    let rows = last.iter().zip(&out[(tokens - 20) * 240..]);
                    assert!(rows.into_iter().all(|(a, b)| f64::from((a - b).abs()) <= bound), "{compute}, {tokens}");
                }
            }
        }
    }

    fn shape(heads: usize, kv_heads: usize, head_width: usize, window: Option<usize>) -> Attention {
        Attention { heads, kv_heads, head_width, scale: 1.0 / (head_width as f32).sqrt(), window }
    }

    #[test]
    fn agrees_with_the_formula() {
        for tokens in [1, 2, 3, 63, 64, 65, 130] {
            for window in [None, Some(1), Some(2), Some(40), Some(64), Some(100), Some(1000)] {
                check(&shape(3, 1, 16, window), tokens);
            }
        }
        for (heads, kv_heads, width) in [(9, 3, 64), (2, 2, 128), (4, 1, 96), (2, 1, 256), (1, 1, 1), (2, 1, 7)] {
            check(&shape(heads, kv_heads, width, None), 90);
            check(&shape(heads, kv_heads, width, Some(20)), 90);
        }
        check(&shape(1, 1, 64, None), 2048);
        check(&shape(1, 1, 64, Some(512)), 1500);
    }

    /// Scores far apart and large: nothing overflows, the largest wins.
    #[test]
    fn large_scores() {
        let a = Attention { scale: 300.0, ..shape(2, 1, 8, None) };
        let [q, k, v] = inputs(&a, 70);
        let mut out = vec![f32::NAN; q.len()];
        a.causal(Compute::F32, &q, &k, &v, &mut out);
        assert!(out.iter().all(|v| v.abs() <= 1.0 + 1e-6));
    }

    /// The last tokens' queries alone give the rows that all queries together give.
    #[test]
    fn queries_of_the_last_tokens() {
        for window in [None, Some(1), Some(30), Some(90)] {
            let a = shape(3, 1, 16, window);
            let [q, k, v] = inputs(&a, 200);
            let expected = reference(&a, &q, &k, &v);
            for first in [0, 1, 63, 64, 100, 136, 199] {
                let mut out = vec![f32::NAN; (200 - first) * 48];
                a.causal(Compute::F32, &q[first * 48..], &k, &v, &mut out);
                for (got, expected) in out.iter().zip(&expected[first * 48..]) {
                    assert!(
                        (f64::from(*got) - expected).abs() <= bound(&a, 200),
                        "{window:?}, {first}: {got} {expected}"
                    );
                }
            }
            a.causal(Compute::F32, &[], &k, &v, &mut []);
        }
    }

    #[test]
    fn later_tokens_do_not_matter() {
        for window in [None, Some(30)] {
            let a = shape(3, 1, 64, window);
            let [q, k, v] = inputs(&a, 300);
            let mut long = vec![0.0; q.len()];
            a.causal(Compute::F32, &q, &k, &v, &mut long);
            for tokens in [1, 5, 64, 70, 128, 200, 299] {
                let (q, kv) = (&q[..tokens * 192], tokens * 64);
                let mut short = vec![0.0; q.len()];
                a.causal(Compute::F32, q, &k[..kv], &v[..kv], &mut short);
                for (short, long) in short.iter().zip(&long) {
                    assert!(f64::from((short - long).abs()) <= bound(&a, 300), "{tokens} tokens: {short} {long}");
                }
            }
        }
    }
}
