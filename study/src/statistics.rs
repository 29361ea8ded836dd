//! Effects between cells, with two sources of chance: which text was measured on, and which windows were drawn.
//!
//! ```text
//! effect on one text, seed s   E_s = Σ_t w_t · log-perplexity(cell t, seed s)          Σ w_t = 0 compares cells
//! estimate                     E = mean over seeds
//! text                         paired block bootstrap of E over the windows that all cells share
//! seeds                        h = t(0.975, k − 1) · standard deviation of E_s / √k      for k seeds, none for one
//! 95 % interval                E − √((E − low)² + h²) … E + √((high − E)² + h²)         low, high of the bootstrap
//! ```
//!
//! Cells of one model on one evaluation score the same windows, so that their blocks have the same weights and a sum of
//! log-perplexities is one series of blocks. Seeds are paired: cells of one seed share their calibration windows where
//! the calibration set is the same, and where it isn't pairing them costs nothing. Effects on several evaluations are
//! averaged, each text resampled by itself. With one seed the interval speaks of the text alone.

use evaluate::{
    source::sha256,
    statistics::{Block, Bootstrap, interval_95, ratio, standard_deviation},
};
use serde::Serialize;

/// The 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// A configuration on one evaluation: the blocks of each of its seeds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series<'a> {
    /// The seed (none where the method draws nothing) and its blocks.
    pub seeds: Vec<(Option<u64>, &'a [Block])>,
    /// Neighbouring blocks that a bootstrap draws together.
    pub run: usize,
}

/// An effect on one text, or the average of several.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    seeds: Vec<(Option<u64>, f64)>,
    draws: Option<Vec<f64>>,
}

/// A number with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its 95 % interval; none with fewer than two windows.
    pub interval: Option<[f64; 2]>,
    /// Seeds behind it.
    pub seeds: usize,
    /// Standard deviation between seeds.
    pub seed_deviation: Option<f64>,
}

impl<'a> Series<'a> {
    fn blocks(&self, seed: Option<u64>) -> Option<&'a [Block]> {
        let own = self.seeds.iter().find(|(known, _)| *known == seed);
        own.or_else(|| self.seeds.iter().find(|(known, _)| known.is_none())).map(|(_, blocks)| *blocks)
    }
}

/// `Σ weight · log-perplexity` over `terms` of one model on the evaluation called `evaluation`. None where the terms
/// have no seed in common or were not measured on the same windows.
pub fn effect(terms: &[(f64, &Series<'_>)], evaluation: &str) -> Option<Effect> {
    let seeds = common_seeds(terms);
    let first = terms.first()?.1.seeds.first()?.1;
    let mut mean: Vec<Block> = first.iter().map(|block| Block { sum: 0.0, ..*block }).collect();
    let mut values = Vec::with_capacity(seeds.len());
    for &seed in &seeds {
        let mut own: Vec<Block> = first.iter().map(|block| Block { sum: 0.0, ..*block }).collect();
        for (weight, series) in terms {
            let blocks = series.blocks(seed)?;
            let paired = blocks.len() == own.len() && blocks.iter().zip(&own).all(|(a, b)| a.weight == b.weight);
            if !paired {
                return None;
            }
            own.iter_mut().zip(blocks).for_each(|(own, block)| own.sum += weight * block.sum);
        }
        mean.iter_mut().zip(&own).for_each(|(mean, own)| mean.sum += own.sum / seeds.len() as f64);
        values.push((seed, ratio(own)));
    }
    let bootstrap = Bootstrap { seed: seed_of(evaluation), run: terms.iter().map(|(_, series)| series.run).max()? };
    (!values.is_empty()).then(|| Effect { seeds: values, draws: bootstrap.ratios(&mean) })
}

/// The seeds that every series with seeds has; a lone `None` where no series has any.
fn common_seeds(terms: &[(f64, &Series<'_>)]) -> Vec<Option<u64>> {
    let seeded = |series: &&Series<'_>| series.seeds.iter().any(|(seed, _)| seed.is_some());
    let all: Vec<&Series<'_>> = terms.iter().map(|(_, series)| *series).filter(seeded).collect();
    let Some(first) = all.first() else { return vec![None] };
    let has = |series: &Series<'_>, seed| series.seeds.iter().any(|(known, _)| *known == seed);
    first.seeds.iter().map(|(seed, _)| *seed).filter(|seed| all.iter().all(|series| has(series, *seed))).collect()
}

/// The same draws for the same text, others for another.
fn seed_of(evaluation: &str) -> u64 {
    let digits = &sha256(evaluation)[..16];
    u64::from_str_radix(digits, 16).expect("a hash is written in hexadecimal digits")
}

impl Effect {
    /// The average of `effects`, over the seeds they have in common.
    pub fn average(effects: &[Self]) -> Option<Self> {
        let first = effects.first()?;
        let count = effects.len() as f64;
        let value = |effect: &Self, seed| {
            let own = effect.seeds.iter().find(|(known, _)| *known == seed);
            own.or_else(|| effect.seeds.iter().find(|(known, _)| known.is_none())).map(|(_, value)| *value)
        };
        let seeded = effects.iter().find(|effect| effect.seeds.iter().any(|(seed, _)| seed.is_some())).unwrap_or(first);
        let mean = |seed| effects.iter().map(|effect| value(effect, seed)).sum::<Option<f64>>().map(|sum| sum / count);
        let seeds: Vec<_> = seeded.seeds.iter().filter_map(|(seed, _)| Some((*seed, mean(*seed)?))).collect();
        let draws = effects.iter().map(|effect| effect.draws.as_deref()).collect::<Option<Vec<&[f64]>>>();
        let draws = draws.map(|draws| {
            (0..draws[0].len()).map(|index| draws.iter().map(|draws| draws[index]).sum::<f64>() / count).collect()
        });
        (!seeds.is_empty()).then_some(Self { seeds, draws })
    }

    /// The number and its uncertainty.
    pub fn estimate(&self) -> Estimate {
        let values: Vec<f64> = self.seeds.iter().map(|(_, value)| *value).collect();
        let count = values.len();
        let value = values.iter().sum::<f64>() / count as f64;
        let seed_deviation = (count > 1).then(|| standard_deviation(&values));
        let half = seed_deviation.map_or(0.0, |deviation| student(count - 1) * deviation / (count as f64).sqrt());
        let interval = self.draws.as_deref().map(|draws| {
            let [low, high] = interval_95(draws);
            [value - (value - low).hypot(half), value + (high - value).hypot(half)]
        });
        Estimate { value, interval, seeds: count, seed_deviation }
    }
}

impl Estimate {
    /// Whether the interval leaves the sign open, or there is none.
    pub fn may_be_zero(&self) -> bool {
        self.interval.is_none_or(|[low, high]| low <= 0.0 && 0.0 <= high)
    }
}

fn student(freedom: usize) -> f64 {
    STUDENT.get(freedom - 1).copied().unwrap_or(1.96)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evaluate::statistics::DRAWS;

    fn blocks(sums: &[f64]) -> Vec<Block> {
        sums.iter().map(|&sum| Block { sum, weight: 2.0 }).collect()
    }

    fn series<'a>(seeds: &[(Option<u64>, &'a [Block])]) -> Series<'a> {
        Series { seeds: seeds.to_vec(), run: 1 }
    }

    /// A series of blocks that looks random and has mean `mean`.
    fn rough(mean: f64, count: usize, stretch: f64) -> Vec<Block> {
        let sum = |index: usize| 2.0 * (mean + stretch * ((index * 7919 % 101) as f64 / 50.0 - 1.0));
        (0..count).map(|index| Block { sum: sum(index), weight: 2.0 }).collect()
    }

    #[test]
    fn an_effect_is_the_weighted_sum_of_log_perplexities_averaged_over_seeds() {
        let (a0, a1, b) = (blocks(&[2.0, 4.0]), blocks(&[4.0, 4.0]), blocks(&[1.0, 1.0]));
        let (a, b) = (series(&[(Some(0), &a0), (Some(1), &a1)]), series(&[(None, &b)]));
        let effect = effect(&[(1.0, &a), (-1.0, &b)], "e").unwrap();
        // Log-perplexities are 1.5 and 2.0 against 0.5.
        assert_eq!(effect.seeds, [(Some(0), 1.0), (Some(1), 1.5)]);
        let estimate = effect.estimate();
        assert_eq!((estimate.value, estimate.seeds), (1.25, 2));
        assert!((estimate.seed_deviation.unwrap() - 0.125_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_bootstrap_of_a_difference_is_the_paired_one_of_evaluate() {
        let (ours, base) = (rough(2.0, 40, 0.5), rough(1.9, 40, 0.3));
        let effect = effect(&[(1.0, &series(&[(None, &ours)])), (-1.0, &series(&[(None, &base)]))], "e").unwrap();
        let direct = Bootstrap { seed: seed_of("e"), run: 1 }.differences(&ours, &base).unwrap();
        let draws = effect.draws.unwrap();
        assert_eq!(draws.len(), DRAWS);
        assert!(draws.iter().zip(&direct).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn seeds_widen_the_interval_by_students_t_in_quadrature() {
        let base = rough(1.0, 30, 0.2);
        let shifted =
            |by: f64| base.iter().map(|block| Block { sum: block.sum + 2.0 * by, ..*block }).collect::<Vec<_>>();
        let (a, b, c) = (shifted(0.1), shifted(0.2), shifted(0.3));
        let seeds = series(&[(Some(0), &a), (Some(1), &b), (Some(2), &c)]);
        let estimate = effect(&[(1.0, &seeds), (-1.0, &series(&[(None, &base)]))], "e").unwrap().estimate();
        // The text cancels; what is left is t(0.975, 2) · 0.1 / √3.
        let [low, high] = estimate.interval.unwrap();
        let half = 4.303 * 0.1 / 3.0_f64.sqrt();
        assert!((low - (0.2 - half)).abs() < 1e-9 && (high - (0.2 + half)).abs() < 1e-9, "{low} {high}");
        assert!(estimate.may_be_zero());
    }

    #[test]
    fn only_seeds_and_windows_in_common_are_compared() {
        let (a, b) = (blocks(&[1.0, 2.0]), blocks(&[1.0, 2.0, 3.0]));
        let one = series(&[(Some(0), &a), (Some(1), &a)]);
        let other = series(&[(Some(1), &a), (Some(2), &a)]);
        assert_eq!(effect(&[(1.0, &one), (-1.0, &other)], "e").unwrap().seeds, [(Some(1), 0.0)]);
        assert!(effect(&[(1.0, &one), (-1.0, &series(&[(Some(7), &a)]))], "e").is_none());
        assert!(effect(&[(1.0, &one), (-1.0, &series(&[(None, &b)]))], "e").is_none());
        assert!(effect(&[], "e").is_none());
    }

    #[test]
    fn averages_of_texts_are_better_known_than_each() {
        let (a, b) = (rough(1.0, 50, 0.5), rough(1.0, 50, 0.5));
        let of = |blocks, name| effect(&[(1.0, &series(&[(Some(0), blocks)]))], name).unwrap();
        let (one, other) = (of(&a, "one"), of(&b, "other"));
        let width = |effect: &Effect| effect.estimate().interval.map(|[low, high]| high - low).unwrap();
        let both = Effect::average(&[one.clone(), other]).unwrap();
        let gain = width(&both) / width(&one);
        // Two independent texts: 1/√2, and the draws of an interval's ends are uncertain by a few per cent.
        assert!((gain - 0.5_f64.sqrt()).abs() < 0.05, "{gain}");
        assert!(Effect::average(&[]).is_none());
    }

    #[test]
    fn one_window_has_no_interval_and_students_t_ends_at_the_normal() {
        let a = blocks(&[1.0]);
        let estimate = effect(&[(1.0, &series(&[(None, &a)]))], "e").unwrap().estimate();
        assert_eq!((estimate.interval, estimate.may_be_zero()), (None, true));
        assert_eq!((student(1), student(30), student(31)), (12.706, 2.042, 1.96));
    }
}
