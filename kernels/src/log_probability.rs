//! Negative log-likelihood of given tokens under the language-model head, without writing the logits whole.
//!
//! `nll[r] = log sum_v exp(x[r]·head[v]) - x[r]·head[target[r]]`, in nats.
//!
//! [`scores`] gives it for any number of targets a row, with whether each is what the row predicts.
//!
//! The vocabulary is walked in tiles of [`COLUMNS`], the rows in tiles of [`ROWS`]. Each row keeps the largest logit so far
//! and `sum exp(logit - largest)`; a larger one rescales the sum. Tiles are summed in float32, the running sum and the
//! logarithm are float64.

use crate::exponential::{exp_and_sum, largest};
use crate::{Compute, compute::Prepared};

/// Entries of the vocabulary in a tile.
const COLUMNS: usize = 1024;
/// Rows in a tile.
const ROWS: usize = 256;

/// `x` is `[targets.len(), inputs]`, `head` `[vocabulary, inputs]`; the vocabulary is walked in tiles. Runs on the calling
/// thread.
pub fn negative_log_likelihood(compute: Compute, x: &[f32], head: &[f32], inputs: usize, targets: &[u32]) -> Vec<f32> {
    negative_log_likelihoods(compute, &[x], head, inputs, &[targets]).remove(0)
}

/// The same of several windows, each by its own `x` and `targets`; a tile of the head is packed once for all of them.
pub fn negative_log_likelihoods(
    compute: Compute,
    x: &[&[f32]],
    head: &[f32],
    inputs: usize,
    targets: &[&[u32]],
) -> Vec<Vec<f32>> {
    assert_eq!(x.len(), targets.len(), "targets for each window");
    let shapes = x.iter().zip(targets).all(|(x, targets)| x.len() == targets.len() * inputs);
    assert!(shapes, "a row for each target");
    let rows: Vec<&[u32]> = targets.iter().flat_map(|targets| targets.chunks(1)).collect();
    let rows = walk(compute, x, head, inputs, &rows);
    let mut likelihoods = rows.iter().map(|row| row.negative_log_likelihood(row.targets[0].1));
    targets.iter().map(|targets| likelihoods.by_ref().take(targets.len()).collect()).collect()
}

/// A target's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// `log p(target)`, in nats.
    pub log_probability: f32,
    /// Whether the target has the largest logit, the first in the vocabulary of those that are equal.
    pub greedy: bool,
}

/// The score of each of `targets[r]` after row `r` of `x`, one list a row. Shapes as for [`negative_log_likelihood`].
pub fn scores(compute: Compute, x: &[f32], head: &[f32], inputs: usize, targets: &[&[u32]]) -> Vec<Vec<Score>> {
    let score = |row: &Row, (target, logit): (usize, f32)| Score {
        log_probability: -row.negative_log_likelihood(logit),
        greedy: target == row.top,
    };
    let rows = walk(compute, &[x], head, inputs, targets);
    rows.iter().map(|row| row.targets.iter().map(|target| score(row, *target)).collect()).collect()
}

/// Each row's softmax after the whole vocabulary, of all `x` one after the other.
fn walk(compute: Compute, x: &[&[f32]], head: &[f32], inputs: usize, targets: &[&[u32]]) -> Vec<Row> {
    let vocabulary = head.len() / inputs;
    let numbers: usize = x.iter().map(|x| x.len()).sum();
    assert_eq!((numbers, head.len()), (targets.len() * inputs, vocabulary * inputs), "shapes of x, head and targets");
    let inside = targets.iter().flat_map(|targets| *targets).all(|target| (*target as usize) < vocabulary);
    assert!(inside, "every target is in the vocabulary");
    let mut rows: Vec<Row> = targets.iter().map(|targets| Row::new(targets)).collect();
    let chunks: Vec<&[f32]> = x.iter().flat_map(|x| x.chunks(ROWS * inputs)).collect();
    let mut logits = vec![0.0; ROWS.min(targets.len()) * COLUMNS.min(vocabulary)];
    for (tile, head) in head.chunks(COLUMNS * inputs).enumerate() {
        let (columns, prepared, mut rows) = (head.len() / inputs, Prepared::default(), rows.iter_mut());
        for x in &chunks {
            let logits = &mut logits[..x.len() / inputs * columns];
            compute.multiply(&prepared, x, head, inputs, logits);
            for (logits, row) in logits.chunks_exact_mut(columns).zip(&mut rows) {
                row.add(logits, tile * COLUMNS);
            }
        }
    }
    rows
}

/// The softmax of one row as far as the vocabulary has been walked.
struct Row {
    /// Each target with its logit.
    targets: Vec<(usize, f32)>,
    largest: f32,
    /// The first entry whose logit is `largest`.
    top: usize,
    /// `sum exp(logit - largest)`.
    sum: f64,
}

impl Row {
    fn new(targets: &[u32]) -> Self {
        let targets = targets.iter().map(|target| (*target as usize, 0.0)).collect();
        Self { targets, largest: f32::NEG_INFINITY, top: 0, sum: 0.0 }
    }

    /// Takes in the logits of the entries from `first` on, which it overwrites.
    fn add(&mut self, logits: &mut [f32], first: usize) {
        for (target, logit) in &mut self.targets {
            if let Some(found) = target.checked_sub(first).and_then(|at| logits.get(at)) {
                *logit = *found;
            }
        }
        let highest = largest(logits);
        if highest > self.largest {
            self.sum *= f64::from(self.largest - highest).exp();
            self.largest = highest;
            self.top = first + logits.iter().position(|logit| *logit == highest).unwrap_or_default();
        }
        self.sum += f64::from(exp_and_sum(logits, self.largest));
    }

    fn negative_log_likelihood(&self, logit: f32) -> f32 {
        (f64::from(self.largest) - f64::from(logit) + self.sum.ln()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn reference(x: &[f32], head: &[f32], inputs: usize, targets: &[u32]) -> Vec<f64> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let rows = x.chunks(inputs).zip(targets);
        let one = |(x, target): (&[f32], &u32)| {
            let logits: Vec<f64> = head.chunks(inputs).map(|w| dot(x, w)).collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() - logits[*target as usize]
        };
        rows.map(one).collect()
    }

    /// A logit errs by at most `inputs u sum |x w|`, so a difference of two by twice that; the exponentials and their sums
    /// add a few units relative to the sum, that is absolutely to its logarithm; the result is rounded once.
    #[test]
    fn agrees_with_the_formula() {
        for (rows, vocabulary, inputs, spread) in [
            (1, 1, 1, 1.0),
            (3, 10, 4, 1.0),
            (5, 1025, 16, 3.0),
            (257, 300, 33, 1.0),
            (2, 5000, 64, 20.0),
            (0, 7, 3, 1.0),
        ] {
            let x: Vec<f32> = random(rows * inputs, 1).iter().map(|v| v * spread).collect();
            let head = random(vocabulary * inputs, 2);
            let targets: Vec<u32> = (0..rows).map(|r| (r * 7919 % vocabulary) as u32).collect();
            let got = negative_log_likelihood(Compute::F32, &x, &head, inputs, &targets);
            let magnitude = f64::from(spread) * inputs as f64;
            let unit = 2f64.powi(-24);
            for (got, expected) in got.iter().zip(reference(&x, &head, inputs, &targets)) {
                let bound = unit * (2.0 * inputs as f64 * magnitude + 70.0 + expected);
                assert!((f64::from(*got) - expected).abs() <= bound, "{rows} {vocabulary}: {got} {expected} {bound}");
            }
        }
    }

    #[test]
    fn extremes() {
        // One logit towers: the likelihood is 1 for it and exp(-1000) for the other, wherever they stand.
        for (head, targets) in [([1000.0, 0.0], [0, 1]), ([0.0, 1000.0], [1, 0])] {
            assert_eq!(negative_log_likelihood(Compute::F32, &[1.0, 1.0], &head, 1, &targets), [0.0, 1000.0]);
        }
        assert!(negative_log_likelihood(Compute::F32, &[f32::NAN], &[1.0, 2.0], 1, &[0])[0].is_nan());
    }

    #[test]
    fn windows_together_are_what_each_is_alone() {
        let (x, head, targets) = (random(600 * 24, 1), random(1100 * 24, 2), (0..600).collect::<Vec<u32>>());
        let rows = [0..300, 300..300, 300..301, 301..600];
        let x: Vec<&[f32]> = rows.iter().map(|rows| &x[rows.start * 24..rows.end * 24]).collect();
        let targets: Vec<&[u32]> = rows.into_iter().map(|rows| &targets[rows]).collect();
        for compute in [Compute::F32, Compute::Bf16x3] {
            let together = negative_log_likelihoods(compute, &x, &head, 24, &targets);
            for ((x, targets), together) in x.iter().zip(&targets).zip(&together) {
                assert_eq!(&negative_log_likelihood(compute, x, &head, 24, targets), together);
            }
        }
    }

    #[test]
    fn several_targets_a_row_score_as_each_does_alone() {
        let (vocabulary, inputs) = (2500, 24);
        let (x, head) = (random(3 * inputs, 5), random(vocabulary * inputs, 6));
        let targets: [&[u32]; 3] = [&[0, 2499, 1024, 0], &[], &[7]];
        let got = scores(Compute::F32, &x, &head, inputs, &targets);
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [4, 0, 1]);
        for (row, column) in [(0, 0), (0, 1), (0, 2), (0, 3), (2, 0)] {
            let mut alone = [0; 3];
            alone[row] = targets[row][column];
            let alone = negative_log_likelihood(Compute::F32, &x, &head, inputs, &alone)[row];
            assert_eq!(got[row][column].log_probability, -alone);
        }
    }

    #[test]
    fn the_first_of_the_largest_is_greedy() {
        let mut head = random(3000, 1);
        (head[100], head[1500], head[2999]) = (2.0, 3.0, 3.0);
        let all: Vec<u32> = (0..3000).collect();
        let got = scores(Compute::F32, &[1.0], &head, 1, &[&all]).remove(0);
        let greedy: Vec<usize> = (0..3000).filter(|at| got[*at].greedy).collect();
        assert_eq!(greedy, [1500]);
    }

    /// A row's tile may be multiplied by another path of the product when it is short: equal but for the sums' order.
    #[test]
    fn other_rows_do_not_matter() {
        let (vocabulary, inputs) = (1500, 48);
        let (x, head) = (random(300 * inputs, 5), random(vocabulary * inputs, 6));
        let targets: Vec<u32> = (0..300).collect();
        let all = negative_log_likelihood(Compute::F32, &x, &head, inputs, &targets);
        for rows in [1, 2, 17, 256, 299] {
            let some = negative_log_likelihood(Compute::F32, &x[..rows * inputs], &head, inputs, &targets[..rows]);
            assert!(some.iter().zip(&all).all(|(a, b)| (a - b).abs() <= 3e-6));
        }
    }
}
