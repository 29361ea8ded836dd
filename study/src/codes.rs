//! How much of a solution depends on the sample: the share of a checkpoint's integers that change.
//!
//! ```text
//! sample    [`EACH`] integers of every linear, at places that are the same in every checkpoint of a model
//! changed   share of the places at which two samples differ; ± 1.96 √(p (1 − p) / places)
//! ```
//!
//! Samples are small enough to be kept with each result, so that configurations are compared whose checkpoints are
//! long gone, or were solved on another machine.

use crate::{StudyError, results::Group, settings::Settings, store::Line};
use model::{Checkpoint, Stage};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::fmt::Write as _;

/// Places in a linear.
const EACH: usize = 16;
/// Digits of an integer.
const DIGITS: usize = 2;

/// Two hexadecimal digits for each place of `checkpoint`, dots where a linear has no integers; none where no linear has.
pub fn sample(checkpoint: &Checkpoint) -> Result<Option<String>, StudyError> {
    let (config, mut sample, mut any) = (&checkpoint.config, String::new(), false);
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for layer in 0..config.layers.len() {
        for linear in Stage::ALL.into_iter().flat_map(|stage| config.linears(layer, stage)) {
            let places: Vec<usize> =
                (0..EACH).map(|_| random.random_range(0..linear.outputs * linear.inputs)).collect();
            match checkpoint.tensors.quantized(&linear.name)? {
                Some(matrix) => {
                    any = true;
                    for place in places {
                        write!(sample, "{:02x}", matrix.codes[place]).expect("a string takes what is written");
                    }
                }
                None => sample.push_str(&"..".repeat(EACH)),
            }
        }
    }
    Ok(any.then_some(sample))
}

/// A share of integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The share.
    pub value: f64,
    /// Half of its 95 % interval.
    pub half: f64,
}

/// The mean over `pairs` of the share of places that differ; none without pairs of samples of the same places.
pub fn changed<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Share> {
    let (mut changed, mut compared, mut places) = (0, 0, 0);
    for (a, b) in pairs {
        let both = a.as_bytes().chunks(DIGITS).zip(b.as_bytes().chunks(DIGITS));
        let both: Vec<_> = both.filter(|(a, b)| a.len() == b.len() && *a != b".." && *b != b"..").collect();
        changed += both.iter().filter(|(a, b)| a != b).count();
        compared += both.len();
        // The same places in every pair: more pairs are no more places.
        places = places.max(both.len());
    }
    let value = changed as f64 / compared as f64;
    (compared > 0).then(|| Share { value, half: 1.96 * (value * (1.0 - value) / places as f64).sqrt() })
}

/// What changes in a configuration's integers.
pub struct Stability {
    /// Index of the configuration among the results' groups.
    pub group: usize,
    /// Between its seeds.
    pub seeds: Option<Share>,
    /// Between its calibration set and the others, of the same seed.
    pub sets: Option<Share>,
}

/// The stability of each of `groups` of which there are samples.
pub fn stability(groups: &[Group<'_>]) -> Vec<Stability> {
    let samples: Vec<Vec<(Option<u64>, &str)>> = groups.iter().map(|group| of_seeds(&group.lines)).collect();
    let without_set = |index: usize| Settings { calibration: None, ..groups[index].settings.clone() };
    let mut found = Vec::new();
    for (group, own) in samples.iter().enumerate() {
        let between_seeds = own.iter().enumerate().flat_map(|(at, a)| own[at + 1..].iter().map(|b| (a.1, b.1)));
        let seeds = changed(between_seeds);
        let is_other_set = |other: &usize| *other != group && without_set(*other) == without_set(group);
        let others: Vec<_> = (0..groups.len()).filter(is_other_set).flat_map(|other| &samples[other]).collect();
        let same_seed = own
            .iter()
            .flat_map(|(seed, a)| others.iter().filter(move |(other, _)| other == seed).map(move |(_, b)| (*a, *b)));
        let sets = changed(same_seed);
        if seeds.is_some() || sets.is_some() {
            found.push(Stability { group, seeds, sets });
        }
    }
    found
}

/// A sample for each seed.
fn of_seeds<'a>(lines: &[&'a Line]) -> Vec<(Option<u64>, &'a str)> {
    let mut seeds: Vec<(Option<u64>, &str)> = Vec::new();
    for line in lines {
        let seed = line.settings.as_ref().and_then(|settings| settings.seed);
        let codes = line.quantized.as_ref().and_then(|quantized| quantized.codes.as_deref());
        if let Some(codes) = codes.filter(|_| seeds.iter().all(|(known, _)| *known != seed)) {
            seeds.push((seed, codes));
        }
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted_where_both_have_integers() {
        assert_eq!(changed([("0001..0f", "0002010f")]).unwrap().value, 1.0 / 3.0);
        let twice = changed([("00010203", "00010203"), ("00010203", "00010204")]).unwrap();
        assert_eq!(twice.value, 1.0 / 8.0);
        assert!((twice.half - 1.96 * (7.0f64 / 64.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(changed([("....", "0001")]), None);
        assert_eq!(changed([]), None);
    }

    #[test]
    fn a_checkpoint_without_integers_has_no_sample() {
        assert_eq!(sample(&Checkpoint::open("demo").unwrap()).unwrap(), None);
    }
}
