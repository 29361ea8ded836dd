//! Which of a model's capabilities suffered: tasks put together by what they ask for.
//!
//! ```text
//! value        mean over the capability's tasks of each task's first metric
//! difference   value of the model − value of the baseline, on the same items
//! interval     quantiles α/2 and 1 − α/2 of the difference over bootstrap draws (each task's items, or its subjects, drawn by
//!              themselves and the tasks averaged draw by draw), with α = 5 % / capabilities: all of them hold together
//!              at 95 % (Bonferroni)
//! p            McNemar's exact test over the items of all its tasks, corrected by Holm over capabilities
//! detectable   (z(1 − α/2) + 0.84) √(Σ_tasks (b + c) / N²) / tasks, as for single tasks in `paired`
//! last         share of draws in which this capability's difference is the lowest of all
//! ```
//!
//! A loss counts as found where the interval lies below zero and the corrected p is below 5 %: the bootstrap alone is too
//! narrow with few items, the test alone knows nothing of subjects.

use crate::{
    paired::{self, clusters},
    records::{Record, Run},
    statistics::{Block, Bootstrap, DRAWS, Estimate, quantile, ratio},
    task::Metric,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The level at which a loss counts as found.
const LEVEL: f64 = 0.05;
/// Quantiles `1 − 0.025 / k` of the normal distribution for `k` capabilities.
const QUANTILES: [f64; 7] = [1.960, 2.241, 2.394, 2.498, 2.576, 2.638, 2.690];
/// The quantile of a power of 80 %.
const POWER: f64 = 0.842;

/// What a task asks of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Facts of school, university and the professions.
    Knowledge,
    /// The same in Chinese.
    Chinese,
    /// Common sense and conclusions.
    Reasoning,
    /// Word problems and sums.
    Mathematics,
    /// Programs.
    Code,
    /// Doing as told.
    InstructionFollowing,
    /// Going on with a text.
    TextPrediction,
}

impl Capability {
    /// Every capability.
    pub const ALL: [Self; 7] = [
        Self::Knowledge,
        Self::Chinese,
        Self::Reasoning,
        Self::Mathematics,
        Self::Code,
        Self::InstructionFollowing,
        Self::TextPrediction,
    ];

    /// The tasks that stand for the capability in a balanced subset.
    pub fn tasks(self) -> &'static [&'static str] {
        match self {
            Self::Knowledge => &["mmlu"],
            Self::Chinese => &["cmmlu", "ceval"],
            Self::Reasoning => &["arc_challenge", "hellaswag", "winogrande"],
            Self::Mathematics => &["gsm8k"],
            Self::Code => &["humaneval", "mbpp"],
            Self::InstructionFollowing => &["ifeval"],
            Self::TextPrediction => &["lambada"],
        }
    }
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Knowledge => "knowledge",
            Self::Chinese => "Chinese",
            Self::Reasoning => "reasoning",
            Self::Mathematics => "mathematics",
            Self::Code => "code",
            Self::InstructionFollowing => "instruction following",
            Self::TextPrediction => "text prediction",
        })
    }
}

/// One capability in two runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Which.
    pub capability: Capability,
    /// Its tasks.
    pub tasks: Vec<String>,
    /// Items in both runs.
    pub items: usize,
    /// The baseline's value, with a 95 % interval of its own.
    pub baseline: Estimate,
    /// The model's value, with a 95 % interval of its own.
    pub model: Estimate,
    /// Model minus baseline.
    pub difference: Estimate,
    /// The interval of the difference that holds together with those of the other capabilities.
    pub interval_together: Option<[f64; 2]>,
    /// Items right in the baseline only.
    pub lost: usize,
    /// Items right in the model only.
    pub gained: usize,
    /// McNemar's exact test, corrected for the number of capabilities.
    pub p_holm: f64,
    /// The smallest true difference that this many items find 4 times of 5, looking at so many capabilities.
    pub detectable: f64,
    /// Share of draws in which this capability lost the most.
    pub last: f64,
}

impl Change {
    fn is_loss(&self) -> bool {
        self.p_holm < LEVEL && self.interval_together.is_some_and(|[_, high]| high < 0.0)
    }
}

/// A capability's figures with the draws that its errors come from.
struct Drawn {
    change: Change,
    p_value: f64,
    /// Baseline and model, draw by draw.
    draws: Option<Vec<[f64; 2]>>,
}

/// Every capability that both runs have items of.
pub fn changes(baseline: &Run, model: &Run, seed: u64) -> Vec<Change> {
    let mut tasks: BTreeMap<Capability, Vec<(&str, Pairs<'_>)>> = BTreeMap::new();
    for (task, ours) in model {
        let pairs = baseline.get(task).map_or_else(Vec::new, |theirs| paired::matched(theirs, ours));
        let Some((_, first)) = pairs.first() else { continue };
        if let (Some(capability), true) = (first.capability, first.metric != Metric::Perplexity) {
            tasks.entry(capability).or_default().push((task, pairs));
        }
    }
    let mut drawn: Vec<Drawn> = tasks.into_iter().map(|(capability, tasks)| draw(capability, &tasks, seed)).collect();
    let corrected = paired::holm(&drawn.iter().map(|drawn| drawn.p_value).collect::<Vec<_>>());
    let last = shares_of_last(&drawn);
    let tail = LEVEL / drawn.len().max(1) as f64 / 2.0;
    let detection = QUANTILES[drawn.len().clamp(1, QUANTILES.len()) - 1] + POWER;
    for ((drawn, p), last) in drawn.iter_mut().zip(corrected).zip(last) {
        drawn.change.p_holm = p;
        drawn.change.last = last;
        drawn.change.detectable = (detection * drawn.change.detectable).min(1.0);
        drawn.change.interval_together = drawn.draws.as_ref().map(|draws| {
            let differences: Vec<f64> = draws.iter().map(|[theirs, ours]| ours - theirs).collect();
            [quantile(&differences, tail), quantile(&differences, 1.0 - tail)]
        });
    }
    drawn.into_iter().map(|drawn| drawn.change).collect()
}

type Pairs<'a> = Vec<(&'a Record, &'a Record)>;

fn draw(capability: Capability, tasks: &[(&str, Pairs<'_>)], seed: u64) -> Drawn {
    let count = tasks.len() as f64;
    let (mut value, mut draws) = ([0.0; 2], Some(vec![[0.0; 2]; DRAWS]));
    let (mut lost, mut gained, mut items, mut variance) = (0, 0, 0, 0.0);
    for (index, (task, pairs)) in tasks.iter().enumerate() {
        let sides = [false, true].map(|ours| blocks(pairs, ours));
        for (value, blocks) in value.iter_mut().zip(&sides) {
            *value += ratio(blocks.iter().copied()) / count;
        }
        // Tasks that shared draws would seem to move together.
        let seed = seed.wrapping_add(task.bytes().fold(index as u64, |sum, b| sum.wrapping_mul(131) + u64::from(b)));
        let mut both = Vec::with_capacity(DRAWS);
        let resampled = Bootstrap { seed, run: 1 }.resample(sides[0].len(), |indices| {
            both.push([0, 1].map(|side: usize| ratio(indices.iter().map(|&index| sides[side][index]))));
            0.0
        });
        draws = draws.filter(|_| resampled.is_some()).map(|mut draws| {
            for (sum, drawn) in draws.iter_mut().zip(&both) {
                *sum = [0, 1].map(|side: usize| sum[side] + drawn[side] / count);
            }
            draws
        });
        let changed =
            |ours: bool| pairs.iter().filter(|(a, b)| a.correct != b.correct && b.correct == Some(ours)).count();
        let here = [changed(false), changed(true)];
        (lost, gained, items) = (lost + here[0], gained + here[1], items + pairs.len());
        variance += (here[0] + here[1]).max(3) as f64 / (pairs.len() as f64 * count).powi(2);
    }
    let side = |side: usize| {
        let draws: Option<Vec<f64>> = draws.as_ref().map(|draws| draws.iter().map(|draw| draw[side]).collect());
        Estimate::new(value[side], draws.as_deref())
    };
    let differences: Option<Vec<f64>> =
        draws.as_ref().map(|draws| draws.iter().map(|[theirs, ours]| ours - theirs).collect());
    let change = Change {
        capability,
        tasks: tasks.iter().map(|(task, _)| (*task).to_owned()).collect(),
        items,
        baseline: side(0),
        model: side(1),
        difference: Estimate::new(value[1] - value[0], differences.as_deref()),
        interval_together: None,
        lost,
        gained,
        p_holm: 1.0,
        detectable: variance.sqrt(),
        last: 0.0,
    };
    Drawn { change, p_value: paired::mcnemar(lost, gained), draws }
}

fn blocks(pairs: &Pairs<'_>, ours: bool) -> Vec<Block> {
    let records = || pairs.iter().map(|(theirs, model)| if ours { *model } else { *theirs });
    let subjects: Vec<Option<&str>> = records().map(|record| record.subject.as_deref()).collect();
    let value = |record: &Record| record.metrics.get(&record.metric).copied().unwrap_or(0.0);
    let values: Vec<Block> = records().map(|record| Block { sum: value(record), weight: 1.0 }).collect();
    clusters(&subjects, &values)
}

#[allow(clippy::needless_range_loop, reason = "it goes through several lists at once")]
fn shares_of_last(drawn: &[Drawn]) -> Vec<f64> {
    let mut shares = vec![0.0; drawn.len()];
    let Some(draws) = drawn.iter().map(|drawn| drawn.draws.as_ref()).collect::<Option<Vec<_>>>() else {
        return shares;
    };
    for draw in 0..DRAWS {
        let difference = |index: usize| draws[index][draw][1] - draws[index][draw][0];
        let lowest = (0..drawn.len()).min_by(|a, b| difference(*a).total_cmp(&difference(*b)));
        if let Some(lowest) = lowest {
            shares[lowest] += 1.0 / DRAWS as f64;
        }
    }
    shares
}

/// Which capability lost most, in a sentence; that none can be told from chance, where that is so.
pub fn verdict(changes: &[Change]) -> Option<String> {
    let worst = changes.iter().min_by(|a, b| a.difference.value.total_cmp(&b.difference.value))?;
    let points = |value: f64| {
        let text = format!("{:+.1}", 100.0 * value).replace('-', "\u{2212}");
        if text.ends_with("0.0") && text.chars().count() == 4 { "0.0".to_owned() } else { text }
    };
    let interval = |change: &Change| {
        let ends = change.interval_together.map(|[low, high]| format!("{} to {}", points(low), points(high)));
        let together = if changes.len() > 1 { ", all capabilities together" } else { "" };
        ends.map_or_else(|| "too few items for an interval".to_owned(), |ends| format!("95 % {ends}{together}"))
    };
    let capability = worst.capability.to_string();
    let name = capability[..1].to_uppercase() + &capability[1..];
    let figure = format!("{} points ({})", points(worst.difference.value), interval(worst));
    if !worst.is_loss() {
        return Some(format!(
            "No capability's loss can be told from chance; the lowest is {capability}, {figure}, where a true loss of {:.1} \
             points would be found four times of five.",
            100.0 * worst.detectable
        ));
    }
    let found: Vec<&Change> = changes.iter().filter(|change| change.is_loss()).collect();
    let sure = if found.len() == 1 && worst.last >= 0.95 {
        String::new()
    } else {
        format!("; it is the one that lost most in {:.0} % of the draws", 100.0 * worst.last)
    };
    Some(format!("{name} lost most: {figure}{sure}."))
}

/// The table for people.
pub fn table(changes: &[Change]) -> console::Table {
    let mut table = console::Table::new([
        "capability",
        "tasks",
        "items",
        "baseline",
        "95 %",
        "model",
        "95 %",
        "difference",
        "95 % together",
        "lost",
        "gained",
        "Holm p",
        "detectable",
    ]);
    for change in changes {
        let ends = |ends: Option<[f64; 2]>| crate::report::interval(ends, 3);
        table.row([
            change.capability.to_string(),
            change.tasks.join(", "),
            change.items.to_string(),
            format!("{:.4}", change.baseline.value),
            ends(change.baseline.interval_95),
            format!("{:.4}", change.model.value),
            ends(change.model.interval_95),
            format!("{:+.4}", change.difference.value),
            change.interval_together.map_or_else(|| "n/a".to_owned(), |[low, high]| format!("{low:+.4} … {high:+.4}")),
            change.lost.to_string(),
            change.gained.to_string(),
            format!("{:.4}", change.p_holm),
            format!("{:.4}", change.detectable),
        ]);
    }
    table
}

/// The table and the verdict below it; nothing where there are no changes.
pub fn tables(changes: &[Change]) -> String {
    verdict(changes).map_or_else(String::new, |verdict| format!("{}\n{verdict}\n", table(changes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::record;

    /// Runs of a task for each capability: of `items`, the model loses the first `lost`.
    fn runs(tasks: &[(&str, Capability, usize, usize)]) -> [Run; 2] {
        [false, true].map(|ours| {
            let task = |&(name, capability, items, lost): &(&str, Capability, usize, usize)| {
                let records = (0..items).map(|item| {
                    let mut record = record(&item.to_string(), None, item % 3 != 0 && !(ours && item < lost));
                    record.capability = Some(capability);
                    record.task = name.to_owned();
                    record
                });
                (name.to_owned(), records.collect())
            };
            tasks.iter().map(task).collect()
        })
    }

    #[test]
    fn the_one_that_lost_most_is_named_with_its_interval() {
        let [base, model] = runs(&[
            ("a", Capability::Knowledge, 200, 3),
            ("b", Capability::Mathematics, 100, 60),
            ("c", Capability::Code, 100, 0),
        ]);
        let changes = changes(&base, &model, 0);
        let worst = changes.iter().find(|change| change.capability == Capability::Mathematics).unwrap();
        // Two of three of the first 60 were right.
        assert!((worst.difference.value + 0.40).abs() < 1e-12);
        assert_eq!((worst.lost, worst.gained), (40, 0));
        let ([low, high], [wide_low, wide_high]) =
            (worst.difference.interval_95.unwrap(), worst.interval_together.unwrap());
        assert!(wide_low < low && high < wide_high && wide_high < 0.0);
        let said = verdict(&changes).unwrap();
        assert!(said.starts_with("Mathematics lost most: \u{2212}40.0 points (95 % \u{2212}5"), "{said}");
        assert!(changes.iter().map(|change| change.last).sum::<f64>() > 0.999 && worst.last > 0.999);
    }

    #[test]
    fn nothing_is_said_of_what_may_be_chance() {
        let [base, model] = runs(&[("a", Capability::Knowledge, 30, 4), ("b", Capability::Code, 30, 2)]);
        let changes = changes(&base, &model, 0);
        let said = verdict(&changes).unwrap();
        assert!(said.starts_with("No capability's loss can be told from chance"), "{said}");
        assert!(said.contains("found four times of five"), "{said}");
        // A run against itself.
        let same = super::changes(&base, &base, 0);
        assert!(verdict(&same).unwrap().starts_with("No capability"));
        assert!(verdict(&[]).is_none());
    }

    #[test]
    fn tasks_of_a_capability_weigh_alike_whatever_their_size() {
        let [base, model] = runs(&[("big", Capability::Reasoning, 900, 0), ("small", Capability::Reasoning, 90, 90)]);
        let changes = changes(&base, &model, 0);
        assert_eq!((changes.len(), changes[0].items), (1, 990));
        // 0 in one, −2/3 in the other.
        assert!((changes[0].difference.value + 1.0 / 3.0).abs() < 1e-12);
        assert!((changes[0].baseline.value - 2.0 / 3.0).abs() < 1e-12);
        // The error of the mean is that of the small one, halved.
        let error = changes[0].difference.standard_error.unwrap();
        let closed = (2.0 / 9.0 / 90.0_f64).sqrt() / 2.0;
        assert!((error / closed - 1.0).abs() < 0.05, "{error} {closed}");
    }

    #[test]
    fn what_can_be_found_shrinks_with_the_number_of_capabilities() {
        let of = |capabilities: &[Capability]| {
            let tasks: Vec<_> = capabilities.iter().map(|capability| ("", *capability, 100, 6)).collect();
            let names: Vec<String> = (0..tasks.len()).map(|index| format!("task{index}")).collect();
            let tasks: Vec<_> =
                tasks.iter().zip(&names).map(|(task, name)| (name.as_str(), task.1, task.2, task.3)).collect();
            let [base, model] = runs(&tasks);
            changes(&base, &model, 0)[0].detectable
        };
        // 4 of the first 6 items were right: 2.8 √4 / 100, and wider by the quantile of seven.
        assert!((of(&Capability::ALL[..1]) - 2.802 * 2.0 / 100.0).abs() < 1e-9);
        assert!((of(&Capability::ALL) - 3.532 * 2.0 / 100.0).abs() < 1e-9);
    }

    #[test]
    fn tasks_without_a_capability_are_left_out() {
        let base = Run::from([("t".to_owned(), vec![record("a", None, true)])]);
        assert!(changes(&base, &base, 0).is_empty());
    }
}
