//! Error bars: the block bootstrap of a ratio of sums, alone and paired.
//!
//! A log-perplexity is `Σ sum_b / Σ weight_b` over blocks `b`. Tokens of a window correlate, so whole blocks are
//! resampled, not tokens; windows that share tokens correlate too, so runs of `run` neighbouring blocks are drawn
//! together (the circular block bootstrap of Politis and Romano; `run` = 1 is the plain bootstrap of windows):
//!
//! ```text
//! draw d:  ⌈n / run⌉ starts uniform in 0..n;  the n blocks from each start on, round the end, recompute the ratio
//! standard error = standard deviation over draws;  95 % interval = percentiles 2.5 and 97.5
//! ```
//!
//! A paired comparison applies each draw's blocks to both models, so that what they share cancels. With few blocks the
//! bootstrap is too narrow by about `√((n − 1) / n)`; this is left as it is.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Draws of a bootstrap.
pub const DRAWS: usize = 10_000;

/// What one window or page contributes to a log-perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Part of the numerator, in nats.
    pub sum: f64,
    /// Part of the denominator.
    pub weight: f64,
}

/// `Σ sum / Σ weight`.
pub fn ratio(blocks: impl IntoIterator<Item = Block>) -> f64 {
    let (sum, weight) = blocks.into_iter().fold((0.0, 0.0), |(sum, weight), b| (sum + b.sum, weight + b.weight));
    sum / weight
}

/// A seeded resampling of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    /// Seed; the same seed draws the same blocks for every series of the same length.
    pub seed: u64,
    /// How many neighbouring blocks are drawn together.
    pub run: usize,
}

impl Bootstrap {
    /// [`DRAWS`] resampled values of `statistic(indices)`, where `indices` says which of `count` blocks a draw holds;
    /// `None` for fewer than two blocks, which say nothing of their spread.
    pub fn resample(&self, count: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Option<Vec<f64>> {
        if count < 2 {
            return None;
        }
        let run = self.run.clamp(1, count);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut indices = Vec::with_capacity(count + run);
        let draws = (0..DRAWS).map(|_| {
            indices.clear();
            while indices.len() < count {
                let start = random.random_range(0..count);
                indices.extend((start..start + run).map(|index| index % count));
            }
            indices.truncate(count);
            statistic(&indices)
        });
        Some(draws.collect())
    }

    /// Resampled ratios of `blocks`.
    pub fn ratios(&self, blocks: &[Block]) -> Option<Vec<f64>> {
        self.resample(blocks.len(), |indices| ratio(indices.iter().map(|&index| blocks[index])))
    }

    /// Resampled differences of the ratios of two series over the same blocks.
    pub fn differences(&self, ours: &[Block], baseline: &[Block]) -> Option<Vec<f64>> {
        assert_eq!(ours.len(), baseline.len(), "paired series have the same blocks");
        self.resample(ours.len(), |indices| {
            let of = |blocks: &[Block]| ratio(indices.iter().map(|&index| blocks[index]));
            of(ours) - of(baseline)
        })
    }
}

/// A figure with its uncertainty; none where there are fewer than two blocks to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Standard deviation over the draws.
    pub standard_error: Option<f64>,
    /// Percentiles 2.5 and 97.5 of the draws.
    pub interval_95: Option<[f64; 2]>,
}

impl Estimate {
    /// `value` with the spread of its bootstrap `draws`.
    pub fn new(value: f64, draws: Option<&[f64]>) -> Self {
        Self { value, standard_error: draws.map(standard_deviation), interval_95: draws.map(interval_95) }
    }
}

/// The standard deviation of `values` (divisor n − 1).
pub fn standard_deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// The `fraction` quantile of `values`, linear between neighbours; `values` is not empty.
pub fn quantile(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_of_sorted(&sorted, fraction)
}

/// [`quantile`] of values that are in order already.
pub fn quantile_of_sorted(sorted: &[f64], fraction: f64) -> f64 {
    let place = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// The central 95 % of `values`.
pub fn interval_95(values: &[f64]) -> [f64; 2] {
    [quantile(values, 0.025), quantile(values, 0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(random: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
    }

    fn series(count: usize, seed: u64) -> Vec<Block> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| Block { sum: 3.0 + normal(&mut random), weight: 1.0 }).collect()
    }

    #[test]
    fn standard_error_of_a_mean_is_the_closed_form() {
        let blocks = series(100, 1);
        let values: Vec<f64> = blocks.iter().map(|block| block.sum).collect();
        let closed = standard_deviation(&values) * (99.0_f64 / 100.0).sqrt() / 10.0;
        let draws = Bootstrap { seed: 0, run: 1 }.ratios(&blocks).unwrap();
        // The standard deviation of 10,000 draws is itself uncertain by 1 / sqrt(20,000) = 0.7 %: four of these.
        assert!((standard_deviation(&draws) / closed - 1.0).abs() < 0.03);
    }

    #[test]
    fn intervals_cover_the_truth_about_as_often_as_they_say() {
        let covered = (0..200).filter(|&seed| {
            let [low, high] = interval_95(&Bootstrap { seed, run: 1 }.ratios(&series(60, seed)).unwrap());
            low <= 3.0 && 3.0 <= high
        });
        // Binomial(200, 0.94): four standard deviations are 13.
        let covered = covered.count();
        assert!((175..=200).contains(&covered), "{covered}");
    }

    #[test]
    fn runs_widen_the_error_of_correlated_neighbours() {
        // A moving average of two: the variance of the mean is twice what independent blocks would have.
        let noise = series(401, 3);
        let pairs = noise.windows(2).map(|pair| Block { sum: f64::midpoint(pair[0].sum, pair[1].sum), weight: 1.0 });
        let blocks: Vec<Block> = pairs.collect();
        let error = |run| standard_deviation(&Bootstrap { seed: 0, run }.ratios(&blocks).unwrap());
        let gain = error(2) / error(1);
        assert!(gain > 1.1 && gain < 1.4, "{gain}");
        assert!(error(8) / error(1) > 1.2);
    }

    #[test]
    fn pairing_cancels_what_both_series_share() {
        let baseline = series(50, 4);
        let shifted: Vec<Block> = baseline.iter().map(|block| Block { sum: block.sum + 0.25, ..*block }).collect();
        let bootstrap = Bootstrap { seed: 9, run: 1 };
        let draws = bootstrap.differences(&shifted, &baseline).unwrap();
        assert!(standard_deviation(&draws) < 1e-12 && (draws[0] - 0.25).abs() < 1e-12);
        assert!(bootstrap.differences(&baseline, &baseline).unwrap().iter().all(|&difference| difference == 0.0));
    }

    #[test]
    fn weights_count_and_one_block_has_no_error() {
        let blocks = [Block { sum: 10.0, weight: 2.0 }, Block { sum: 2.0, weight: 1.0 }];
        assert_eq!(ratio(blocks), 4.0);
        assert!(Bootstrap { seed: 0, run: 1 }.ratios(&blocks[..1]).is_none());
    }

    #[test]
    fn quantiles_are_linear_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.0, 0.5, 1.0].map(|fraction| quantile(&values, fraction)), [1.0, 2.5, 4.0]);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }

    #[test]
    fn the_same_seed_gives_the_same_draws() {
        let blocks = series(9, 5);
        let draws = |seed| Bootstrap { seed, run: 3 }.ratios(&blocks);
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
