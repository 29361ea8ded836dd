//! How far one model's next-token distribution is from another's, without writing either's logits whole.
//!
//! With `a = x·head` the logits of the baseline, `b` those of the model, `p = softmax(a)`, `q = softmax(b)`:
//!
//! ```text
//! KL(p || q) = sum_v p[v] (a[v] - b[v])  -  (log sum exp a - log sum exp b)      in nats
//! ```
//!
//! Both vocabularies are walked in the same tiles. Each row keeps, for either side, the largest logit so far and
//! `sum exp(logit - largest)`, and for the baseline also `sum exp(a - largest) (a - b)`; a larger logit rescales its sums. A tile
//! of the vocabulary is packed once for the rows of all windows. Products are float32, everything after them float64: the tests resolve 5e-8 nats to a per cent. Logits equal to
//! the bit give exactly zero, since every `a - b` is and both logarithms are the same number.

use crate::{
    Compute,
    compute::Prepared,
    dispatch::vectorized,
    exponential::{self, LANES, exp64, sum_lanes},
};

/// Entries of the vocabulary in a tile.
const COLUMNS: usize = 1024;
/// Rows in a tile.
const ROWS: usize = 256;

/// One side's head.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// `[vocabulary, width]`.
    pub head: &'a [f32],
    /// Numbers in a row.
    pub width: usize,
    /// How it is multiplied.
    pub compute: Compute,
}

/// Rows to compare.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// Normed hidden states of the baseline, `[targets.len(), width]` by its own width.
    pub baseline: &'a [f32],
    /// Those of the model.
    pub model: &'a [f32],
    /// The token after each row.
    pub targets: &'a [u32],
}

/// What one target position says about two models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// `KL(baseline || model)` in nats; never negative, not-a-number where a logit is.
    pub kl: f64,
    /// Whether both prefer the same token (the first of equals).
    pub same_top: bool,
    /// `-log p(target)` under the baseline.
    pub baseline: f64,
    /// `-log q(target)` under the model.
    pub model: f64,
}

/// The divergence at each row of each window. Runs on the calling thread.
pub fn divergence(baseline: Side<'_>, model: Side<'_>, windows: &[Window<'_>]) -> Vec<Vec<Divergence>> {
    let vocabulary = baseline.head.len() / baseline.width;
    for side in [baseline, model] {
        assert_eq!(side.head.len(), vocabulary * side.width, "both heads have the same vocabulary");
    }
    for Window { baseline: theirs, model: ours, targets } in windows {
        let shape = [targets.len() * baseline.width, targets.len() * model.width];
        assert_eq!([theirs.len(), ours.len()], shape, "a row of hidden states for each target");
        assert!(targets.iter().all(|target| (*target as usize) < vocabulary), "every target is in the vocabulary");
    }
    let mut rows: Vec<Vec<Row>> =
        windows.iter().map(|window| window.targets.iter().map(|target| Row::new(*target)).collect()).collect();
    let most = windows.iter().map(|window| window.targets.len()).max().unwrap_or(0);
    let tile = ROWS.min(most) * COLUMNS.min(vocabulary);
    let mut logits = [vec![0.0; tile], vec![0.0; tile]];
    for first in (0..vocabulary).step_by(COLUMNS) {
        let tile = [baseline, model].map(|side| Tile::new(side, first, COLUMNS.min(vocabulary - first)));
        for (window, rows) in windows.iter().zip(&mut rows) {
            let x = window.baseline.chunks(ROWS * baseline.width).zip(window.model.chunks(ROWS * model.width));
            for (rows, (theirs, ours)) in rows.chunks_mut(ROWS).zip(x) {
                let [a, b] = &mut logits;
                let both = tile[0].logits(theirs, a).zip(tile[1].logits(ours, b));
                for (row, (a, b)) in rows.iter_mut().zip(both) {
                    row.add(a, b, first);
                }
            }
        }
    }
    rows.iter().map(|rows| rows.iter().map(Row::finish).collect()).collect()
}

/// Entries of one side's vocabulary, packed when they are first multiplied.
struct Tile<'a> {
    side: Side<'a>,
    head: &'a [f32],
    prepared: Prepared,
}

impl<'a> Tile<'a> {
    fn new(side: Side<'a>, first: usize, columns: usize) -> Self {
        let head = &side.head[first * side.width..][..columns * side.width];
        Self { side, head, prepared: Prepared::default() }
    }

    /// The logits of each row of `x`, in `logits`.
    fn logits<'l>(&self, x: &[f32], logits: &'l mut [f32]) -> std::slice::ChunksExact<'l, f32> {
        let Side { width, compute, .. } = self.side;
        let columns = self.head.len() / width;
        let logits = &mut logits[..x.len() / width * columns];
        compute.multiply(&self.prepared, x, self.head, width, logits);
        logits.chunks_exact(columns)
    }
}

/// One side's softmax as far as the vocabulary has been walked.
pub(crate) struct Softmax {
    pub(crate) largest: f64,
    /// The first entry whose logit is `largest`.
    pub(crate) top: usize,
    /// `sum exp(logit - largest)`.
    pub(crate) sum: f64,
    /// The target's logit.
    pub(crate) target: f64,
}

impl Softmax {
    const START: Self = Self { largest: f64::NEG_INFINITY, top: 0, sum: 0.0, target: 0.0 };

    /// Raises `largest` to that of `logits`; returns the factor by which sums made so far shrink.
    fn raise(&mut self, logits: &[f32], first: usize) -> f64 {
        let largest = exponential::largest(logits);
        if f64::from(largest) <= self.largest {
            return 1.0;
        }
        let factor = (self.largest - f64::from(largest)).exp();
        self.largest = largest.into();
        self.top = first + logits.iter().position(|logit| *logit == largest).unwrap_or_default();
        self.sum *= factor;
        factor
    }

    fn log_sum(&self) -> f64 {
        self.largest + self.sum.ln()
    }
}

/// A row as far as the vocabulary has been walked.
pub(crate) struct Row {
    pub(crate) target: usize,
    pub(crate) baseline: Softmax,
    pub(crate) model: Softmax,
    /// `sum exp(a - largest a) (a - b)`.
    pub(crate) weighted: f64,
}

impl Row {
    fn new(target: u32) -> Self {
        Self { target: target as usize, baseline: Softmax::START, model: Softmax::START, weighted: 0.0 }
    }

    /// Takes in the logits of the entries from `first` on.
    fn add(&mut self, a: &[f32], b: &[f32], first: usize) {
        if let Some(at) = self.target.checked_sub(first).filter(|at| *at < a.len()) {
            (self.baseline.target, self.model.target) = (f64::from(a[at]), f64::from(b[at]));
        }
        self.weighted *= self.baseline.raise(a, first);
        self.model.raise(b, first);
        let [sum, weighted, model] = sums(a, b, self.baseline.largest, self.model.largest);
        self.baseline.sum += sum;
        self.weighted += weighted;
        self.model.sum += model;
    }

    pub(crate) fn finish(&self) -> Divergence {
        let (log_a, log_b) = (self.baseline.log_sum(), self.model.log_sum());
        let kl = self.weighted / self.baseline.sum - (log_a - log_b);
        Divergence {
            // A rounding of 1e-15 below zero is zero; a not-a-number stays one.
            kl: if kl < 0.0 { 0.0 } else { kl },
            same_top: self.baseline.top == self.model.top,
            baseline: log_a - self.baseline.target,
            model: log_b - self.model.target,
        }
    }
}

vectorized! {
    /// `sum exp(a - largest a)`, `sum exp(a - largest a) (a - b)` and `sum exp(b - largest b)`.
    fn sums(a: &[f32], b: &[f32], largest_a: f64, largest_b: f64) -> [f64; 3] {
        let mut lanes = [[0.0; LANES]; 3];
        let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in whole_a.iter().zip(whole_b) {
            for lane in 0..LANES {
                add(&mut lanes, lane, a[lane].into(), b[lane].into(), [largest_a, largest_b]);
            }
        }
        for (lane, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
            add(&mut lanes, lane, (*a).into(), (*b).into(), [largest_a, largest_b]);
        }
        lanes.map(sum_lanes)
    }
}

#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
fn add(lanes: &mut [[f64; LANES]; 3], lane: usize, a: f64, b: f64, largest: [f64; 2]) {
    let weight = exp64(a - largest[0]);
    lanes[0][lane] += weight;
    lanes[1][lane] = weight.mul_add(a - b, lanes[1][lane]);
    lanes[2][lane] += exp64(b - largest[1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// The definition over whole rows of float64 logits: `sum p (log p - log q)`.
    fn reference(baseline: Side<'_>, model: Side<'_>, window: Window<'_>) -> Vec<Divergence> {
        let log_softmax = |side: Side<'_>, x: &[f32], row: usize| -> Vec<f64> {
            let x = &x[row * side.width..][..side.width];
            let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
            let logits: Vec<f64> = side.head.chunks(side.width).map(dot).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
            logits.iter().map(|logit| logit - log_sum).collect()
        };
        let top =
            |values: &[f64]| (0..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best });
        let one = |(row, target): (usize, &u32)| {
            let (p, q) = (log_softmax(baseline, window.baseline, row), log_softmax(model, window.model, row));
            Divergence {
                kl: p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum(),
                same_top: top(&p) == top(&q),
                baseline: -p[*target as usize],
                model: -q[*target as usize],
            }
        };
        window.targets.iter().enumerate().map(one).collect()
    }

    /// A logit errs by at most `width u sum |x w|`; KL moves by at most twice the largest error of either side's logits, and
    /// so does a likelihood.
    #[test]
    fn agrees_with_the_definition() {
        for (rows, vocabulary, widths, spread) in [
            (1, 1, [1, 1], 1.0),
            (3, 10, [4, 4], 1.0),
            (5, 1025, [16, 24], 3.0),
            (257, 300, [33, 17], 1.0),
            (2, 3000, [64, 64], 20.0),
            (0, 7, [3, 3], 1.0),
        ] {
            let x = widths.map(|width| random(rows * width, 1).iter().map(|v| v * spread).collect::<Vec<f32>>());
            let heads = widths.map(|width| random(vocabulary * width, width as u64));
            let [baseline, model] =
                std::array::from_fn(|side| Side { head: &heads[side], width: widths[side], compute: Compute::F32 });
            let targets: Vec<u32> = (0..rows).map(|r| (r * 7919 % vocabulary) as u32).collect();
            let window = Window { baseline: &x[0], model: &x[1], targets: &targets };
            let got = divergence(baseline, model, &[window]).remove(0);
            let expected = reference(baseline, model, window);
            let width = widths[0].max(widths[1]) as f64;
            let bound = 2f64.powi(-24) * 4.0 * width * width * f64::from(spread) + 1e-12;
            for (got, expected) in got.iter().zip(&expected) {
                let error = [got.kl - expected.kl, got.baseline - expected.baseline, got.model - expected.model];
                assert!(error.iter().all(|e| e.abs() <= bound), "{got:?} {expected:?} {bound}");
                assert!(got.kl >= 0.0);
            }
            let agree = got.iter().zip(&expected).filter(|(a, b)| a.same_top == b.same_top).count();
            assert!(agree + 1 >= rows, "ties within rounding are rare");
        }
    }

    /// The same tiny change in both computations: float64 sums resolve a divergence far below float32's unit.
    #[test]
    fn small_divergences_are_resolved() {
        let (vocabulary, width, rows) = (2000, 32, 4);
        let (x, head) = (random(rows * width, 1), random(vocabulary * width, 2));
        // One entry's logit differs by d at probability p: KL = p (1 - p) d^2 / 2 to leading order, 1e-7 and less here.
        let mut changed = head.clone();
        changed[5 * width..6 * width].iter_mut().for_each(|w| *w *= 1.0 + 2f32.powi(-9));
        let targets = [5; 4];
        let [a, b] = [&head, &changed].map(|head| Side { head, width, compute: Compute::F32 });
        let window = Window { baseline: &x, model: &x, targets: &targets };
        for (got, expected) in divergence(a, b, &[window])[0].iter().zip(reference(a, b, window)) {
            assert!(expected.kl < 1e-7 && got.kl >= 0.0, "{expected:?}");
            // Logits err by 1e-6 relative to their difference of 1e-3: KL to a per cent.
            assert!((got.kl - expected.kl).abs() <= 0.01 * expected.kl + 1e-14, "{got:?} {expected:?}");
        }
    }

    #[test]
    fn equal_models_give_exactly_zero() {
        let (x, head) = (random(300 * 40, 1), random(1500 * 40, 2));
        let side = Side { head: &head, width: 40, compute: Compute::F32 };
        let targets: Vec<u32> = (0..300).collect();
        for got in divergence(side, side, &[Window { baseline: &x, model: &x, targets: &targets }]).remove(0) {
            assert_eq!((got.kl, got.same_top), (0.0, true));
            assert_eq!(got.baseline.to_bits(), got.model.to_bits());
        }
    }

    #[test]
    fn extremes_and_ties() {
        let side = |head: &'static [f32]| Side { head, width: 1, compute: Compute::F32 };
        let divergence = |baseline, model, targets: &[u32]| {
            super::divergence(baseline, model, &[Window { baseline: &[1.0], model: &[1.0], targets }]).remove(0)
        };
        // Certain of different tokens: log p / q is the distance of the logits.
        let got = divergence(side(&[1000.0, 0.0]), side(&[0.0, 1000.0]), &[0])[0];
        assert_eq!((got.kl, got.same_top, got.baseline, got.model), (1000.0, false, 0.0, 1000.0));
        // A constant added to all logits changes nothing.
        let got = divergence(side(&[1.0, 2.0, 3.0]), side(&[11.0, 12.0, 13.0]), &[1])[0];
        assert!(got.kl < 1e-15 && got.same_top);
        // The first of equals is the top.
        assert!(!divergence(side(&[0.0, 1.0, 1.0]), side(&[0.0, 1.0, 2.0]), &[0])[0].same_top);
        let broken = divergence(side(&[1.0, 2.0]), side(&[f32::NAN, 2.0]), &[1])[0];
        assert!(broken.kl.is_nan() && broken.model.is_nan() && !broken.baseline.is_nan());
    }

    #[test]
    fn windows_together_are_what_each_is_alone() {
        let (x, y, head, other) =
            (random(600 * 24, 1), random(600 * 24, 2), random(1100 * 24, 3), random(1100 * 24, 4));
        for compute in [Compute::F32, Compute::Bf16x3] {
            let [a, b] = [&head, &other].map(|head| Side { head, width: 24, compute });
            let targets: Vec<u32> = (0..600).collect();
            let window = |rows: std::ops::Range<usize>| Window {
                baseline: &x[rows.start * 24..rows.end * 24],
                model: &y[rows.start * 24..rows.end * 24],
                targets: &targets[rows],
            };
            let windows = [window(0..300), window(300..300), window(300..301), window(301..600)];
            let together = divergence(a, b, &windows);
            for (window, together) in windows.into_iter().zip(&together) {
                assert_eq!(&divergence(a, b, &[window])[0], together);
            }
        }
    }
}
