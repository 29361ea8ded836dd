//! A mixed-precision plan under a byte budget, from the damage that each part does alone.
//!
//! ```text
//! choose for each part p an option o (bits, group size):   min Σ_p KL(p, o)   with   Σ_p bytes(p, o) ≤ budget
//! ```
//!
//! Begins with the smallest option everywhere and takes, as long as it fits, the step that gives back most divergence for
//! each byte it adds, along the lower convex hull of each part's options. Parts are what runtimes fuse (q, k, v together,
//! gate and up together), so that they stay alike. That divergences of parts add up is an assumption: the report of the
//! study shows how far their sum is from all at once, and a suggestion has to be measured before it is believed.

use crate::{StudyError, part, plan::Plan, results::distinct, store::Contents};
use model::format::StoredType;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a part can become.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The part.
    pub place: String,
    /// Bits.
    pub bits: u32,
    /// Group size.
    pub group_size: i64,
    /// Bytes by which the checkpoint differs from the float one; negative.
    pub bytes: i64,
    /// Its mean divergence alone, in nats.
    pub divergence: f64,
}

/// By bits and group size: the sum of divergences, how many, and the bytes.
type Sums = BTreeMap<(u32, i64), (f64, f64, i64)>;

/// A suggestion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// What each part becomes.
    pub choices: Vec<Choice>,
    /// Bytes of the checkpoint's tensors.
    pub bytes: u64,
    /// Sum of the parts' divergences.
    pub divergence: f64,
}

/// The measured options of every part of `model`, from cells that quantize one part alone; of the finest kind of parts that were
/// measured, since parts of different kinds overlap.
pub fn options(plan: &Plan, contents: &Contents, model: &str, float_bytes: u64) -> BTreeMap<String, Vec<Choice>> {
    let mut found: BTreeMap<String, Sums> = BTreeMap::new();
    for cell in plan.cells.iter().filter(|cell| cell.model == model && !cell.twin) {
        let Some(settings) = &cell.settings else { continue };
        let Some(("only", place)) = settings.part.as_deref().and_then(part::split) else { continue };
        let Some(line) = contents.measured(&cell.cell) else { continue };
        let (Some(diverged), Some(quantized)) = (&line.divergence, &line.quantized) else { continue };
        let of = found.entry(place.to_owned()).or_default();
        // Texts and seeds are averaged.
        let entry = of.entry((settings.bits, settings.group_size)).or_insert((0.0, 0.0, 0));
        entry.0 += diverged.mean;
        entry.1 += 1.0;
        entry.2 = quantized.bytes as i64 - float_bytes as i64;
    }
    let choices = |(place, options): (String, Sums)| {
        let choice = |((bits, group_size), (sum, count, bytes)): ((u32, i64), (f64, f64, i64))| Choice {
            place: place.clone(),
            bits,
            group_size,
            bytes,
            divergence: sum / count,
        };
        let choices = options.into_iter().map(choice).collect();
        (place, choices)
    };
    let finest = found.keys().map(|place| part::kind(place)).max();
    found.into_iter().filter(|(place, _)| Some(part::kind(place)) == finest).map(choices).collect()
}

/// The best of `options` within `budget` bytes, for a checkpoint whose float tensors take `float_bytes`.
pub fn suggest(
    options: BTreeMap<String, Vec<Choice>>,
    float_bytes: u64,
    budget: u64,
) -> Result<Suggestion, StudyError> {
    if options.is_empty() {
        return Err(StudyError::Settings(
            "no cell quantizes one part alone: give `part = \"only each layer stage\"` and an evaluation with \
             `measure = \"divergence\"`, and run the study"
                .to_owned(),
        ));
    }
    let hulls: Vec<Vec<Choice>> = options.into_values().map(hull).collect();
    let mut at = vec![0; hulls.len()];
    let total = |at: &[usize]| float_bytes as i64 + hulls.iter().zip(at).map(|(hull, at)| hull[*at].bytes).sum::<i64>();
    let smallest = total(&at);
    if smallest > budget as i64 {
        return Err(StudyError::Settings(format!(
            "{budget} bytes are too few: with the smallest measured options the checkpoint takes {smallest}"
        )));
    }
    loop {
        let gain = |(part, hull): (usize, &Vec<Choice>)| {
            let (now, next) = (&hull[at[part]], hull.get(at[part] + 1)?);
            let fits = total(&at) + next.bytes - now.bytes <= budget as i64;
            fits.then(|| (part, (now.divergence - next.divergence) / (next.bytes - now.bytes) as f64))
        };
        let best = hulls.iter().enumerate().filter_map(gain).max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((part, _)) = best else { break };
        at[part] += 1;
    }
    let bytes = total(&at) as u64;
    let choices: Vec<Choice> = hulls.into_iter().zip(at).map(|(mut hull, at)| hull.swap_remove(at)).collect();
    let divergence = choices.iter().map(|choice| choice.divergence).sum();
    Ok(Suggestion { choices, bytes, divergence })
}

/// The lower convex hull of a part's options over bytes, from the smallest on: each step gives less for a byte than the
/// one before.
fn hull(mut options: Vec<Choice>) -> Vec<Choice> {
    options.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.divergence.total_cmp(&b.divergence)));
    let mut hull: Vec<Choice> = Vec::new();
    for option in options {
        if hull.last().is_some_and(|last| option.divergence >= last.divergence || option.bytes == last.bytes) {
            continue;
        }
        let slope = |a: &Choice, b: &Choice| (a.divergence - b.divergence) / (b.bytes - a.bytes) as f64;
        while let [.., before, last] = hull.as_slice()
            && slope(last, &option) >= slope(before, last)
        {
            hull.pop();
        }
        hull.push(option);
    }
    hull
}

impl Suggestion {
    /// The setting that most parts have, and the others as `--override` of `quantize`; `config` gives the names.
    pub fn overrides(&self, config: &model::Config) -> ((u32, i64), Vec<String>) {
        let settings = |choice: &Choice| (choice.bits, choice.group_size);
        let all = distinct(self.choices.iter().map(settings));
        let count = |wanted: &(u32, i64)| self.choices.iter().filter(|choice| settings(choice) == *wanted).count();
        let common = all.into_iter().max_by_key(count).unwrap_or((4, 128));
        let others = self.choices.iter().filter(|choice| settings(choice) != common);
        let overrides = others.flat_map(|choice| {
            let names = part::modules(&choice.place, config).unwrap_or_default();
            names.into_iter().map(|name| format!("{name}:bits={},group-size={}", choice.bits, choice.group_size))
        });
        (common, overrides.collect())
    }
}

/// Bytes of a checkpoint's tensors where nothing is quantized: four for a float32, two for all else, as the formats copy
/// them.
pub fn float_bytes(checkpoint: &model::Checkpoint) -> Result<u64, StudyError> {
    let tensors = &checkpoint.tensors;
    let bytes = |name: String| -> Result<u64, StudyError> {
        let width = if tensors.stored_type(&name)? == StoredType::F32 { 4 } else { 2 };
        Ok(tensors.shape(&name)?.iter().product::<usize>() as u64 * width)
    };
    tensors.names().into_iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choice(place: &str, bits: u32, bytes: i64, divergence: f64) -> Choice {
        Choice { place: place.to_owned(), bits, group_size: 64, bytes, divergence }
    }

    #[test]
    fn bytes_go_where_they_give_back_most() {
        let options = BTreeMap::from([
            ("a".to_owned(), vec![choice("a", 2, -90, 0.9), choice("a", 4, -70, 0.1)]),
            ("b".to_owned(), vec![choice("b", 2, -90, 0.2), choice("b", 4, -70, 0.1)]),
        ]);
        let bits = |budget| {
            let found = suggest(options.clone(), 1000, budget).unwrap();
            (found.choices.iter().map(|choice| choice.bits).collect::<Vec<_>>(), found.bytes)
        };
        assert_eq!(bits(820), (vec![2, 2], 820));
        assert_eq!(bits(845), (vec![4, 2], 840));
        assert_eq!(bits(5000), (vec![4, 4], 860));
        assert!(suggest(options, 1000, 800).unwrap_err().to_string().contains("takes 820"));
        assert!(suggest(BTreeMap::new(), 1000, 800).is_err());
    }

    proptest! {
        /// Against trying everything: never above the budget, and within one step of the best sum.
        #[test]
        fn no_plan_is_much_better(
            parts in prop::collection::vec(prop::collection::vec((1i64..100, 0.0f64..1.0), 1..4), 1..4),
            budget in 600u64..1000,
        ) {
            let named = parts.iter().enumerate().map(|(index, options)| {
                let place = format!("{index}");
                let choices = options.iter().map(|(bytes, kl)| choice(&place, 4, -bytes, *kl)).collect::<Vec<_>>();
                (place, choices)
            });
            let options: BTreeMap<String, Vec<Choice>> = named.collect();
            let all = options.values().fold(vec![(1000i64, 0.0)], |sums, choices| {
                sums.iter().flat_map(|(bytes, kl)| choices.iter().map(move |c| (bytes + c.bytes, kl + c.divergence))).collect()
            });
            let best = all.iter().filter(|(bytes, _)| *bytes <= budget as i64).map(|(_, kl)| *kl).min_by(f64::total_cmp);
            match (best, suggest(options, 1000, budget)) {
                (None, found) => prop_assert!(found.is_err()),
                (Some(best), found) => {
                    let found = found.unwrap();
                    prop_assert!(found.bytes <= budget && found.divergence >= best - 1e-9);
                    // What one step along a hull gives back at the most.
                    prop_assert!(found.divergence <= best + 1.0 + 1e-9);
                }
            }
        }
    }
}
