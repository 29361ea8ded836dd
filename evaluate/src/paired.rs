//! Two runs on the same items: what changed, and whether it could be chance.
//!
//! With `b` items that only the baseline answers rightly, `c` that only the model does, and `N` in all:
//!
//! ```text
//! difference         (c − b) / N, its interval by paired bootstrap over items, or over subjects where there are several
//! flips              (b + c) / N: items whose correctness changed, in either direction
//! McNemar, exact     p = min(1, 2 P[Binomial(b + c, 1/2) ≤ min(b, c)])
//! Holm               i-th smallest of m tasks' p: max over j ≤ i of min(1, (m − j + 1) p_j)
//! detectable         2.8 √((b + c) / N²): a true difference this large is found 4 times of 5 at the 5 % level; with no
//!                    flip at all, b + c is taken as 3, below which it lies with 95 % certainty
//! ```

use crate::{
    EvaluateError,
    capability::Change,
    records::{Record, Run},
    statistics::{Block, Bootstrap, Estimate},
    task::Metric,
    task_report,
};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// `1.96 + 0.84`: the normal quantiles of a two-sided level of 5 % and of a power of 80 %.
const DETECTION: f64 = 2.8;

/// An item whose correctness changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flip {
    /// The item.
    pub id: String,
    /// Whether the model is right now, and the baseline was wrong.
    pub gained: bool,
    /// What the baseline picked.
    pub baseline: Option<usize>,
    /// What the model picked.
    pub model: Option<usize>,
    /// The right choice.
    pub answer: Option<usize>,
    /// Its subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How far the right choice's log-probability is above the best other one's, in the baseline and in the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margins: Option<[f64; 2]>,
    /// What the baseline and the model wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub responses: Option<[String; 2]>,
}

/// A further metric of both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricDifference {
    /// Which.
    pub metric: Metric,
    /// Of the baseline.
    pub baseline: Estimate,
    /// Of the model.
    pub model: Estimate,
    /// Model minus baseline.
    pub difference: Estimate,
}

/// One task in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The task.
    pub task: String,
    /// Items in both runs with the same prompt.
    pub items: usize,
    /// Items that only one run has, or that have another prompt in the other.
    pub left_out: usize,
    /// Every metric; the first is the task's own.
    pub metrics: Vec<MetricDifference>,
    /// What flipped; nothing where the first metric is a share.
    pub flips: Option<Flips>,
}

/// Changes of correctness.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flips {
    /// Right in the baseline, wrong now.
    pub lost: usize,
    /// Wrong in the baseline, right now.
    pub gained: usize,
    /// `(lost + gained) / items`.
    pub share: f64,
    /// McNemar's exact test, two-sided.
    pub p_value: f64,
    /// The same, corrected for the number of tasks compared.
    pub p_holm: f64,
    /// The smallest true difference that this many items find 4 times of 5.
    pub detectable: f64,
    /// Each of them.
    pub items: Vec<Flip>,
}

/// A run against its baseline.
#[derive(Clone, Debug)]
pub struct Compared {
    /// What the user called the run.
    pub model: String,
    /// Task by task.
    pub paired: Vec<Paired>,
    /// By capability, where there are several tasks.
    pub changes: Vec<Change>,
}

/// Compares every task that both runs have.
pub fn compare(baseline: &Run, model: &Run, seed: u64) -> Result<Vec<Paired>, EvaluateError> {
    let tasks = model.iter().filter_map(|(task, ours)| Some((task, baseline.get(task)?, ours)));
    let mut compared =
        tasks.map(|(task, theirs, ours)| pair(task, theirs, ours, seed)).collect::<Result<Vec<_>, _>>()?;
    let p_values: Vec<f64> = compared.iter().filter_map(|paired| Some(paired.flips.as_ref()?.p_value)).collect();
    let corrected = holm(&p_values);
    for (flips, p) in compared.iter_mut().filter_map(|paired| paired.flips.as_mut()).zip(corrected) {
        flips.p_holm = p;
    }
    Ok(compared)
}

fn pair(task: &str, theirs: &[Record], ours: &[Record], seed: u64) -> Result<Paired, EvaluateError> {
    let pairs = matched(theirs, ours);
    let Some((_, first)) = pairs.first() else {
        let what = "the runs have no item with the same prompt in common: settings or data differ".to_owned();
        return Err(EvaluateError::Task { task: task.to_owned(), what });
    };
    let primary = first.metric;
    let mut metrics: Vec<Metric> = first.metrics.keys().copied().collect();
    metrics.sort_by_key(|metric| (*metric != primary, *metric));
    let metrics: Vec<MetricDifference> = metrics
        .into_iter()
        .filter(|metric| pairs.iter().all(|(a, b)| [a, b].iter().all(|record| record.metrics.contains_key(metric))))
        .map(|metric| difference(metric, &pairs, seed))
        .collect();
    let left_out = theirs.len() + ours.len() - 2 * pairs.len();
    // With several answers an item, being right is a share.
    let decided = pairs.iter().all(|(theirs, ours)| theirs.correct.is_some() && ours.correct.is_some());
    let flips = (primary.is_binary() && decided).then(|| flips(&pairs));
    Ok(Paired { task: task.to_owned(), items: pairs.len(), left_out, metrics, flips })
}

/// The items that both runs have with the same prompt, the baseline's record first.
pub fn matched<'a>(theirs: &'a [Record], ours: &'a [Record]) -> Vec<(&'a Record, &'a Record)> {
    let known: HashMap<&str, &Record> = theirs.iter().map(|record| (record.id.as_str(), record)).collect();
    ours.iter()
        .filter_map(|record| Some((*known.get(record.id.as_str())?, record)))
        .filter(|(theirs, ours)| theirs.prompt_sha256 == ours.prompt_sha256 && theirs.metric == ours.metric)
        .collect()
}

/// The value of a metric over items, from the mean of the items' values.
pub fn aggregate(metric: Metric, mean: f64) -> f64 {
    if metric == Metric::Perplexity { (-mean).exp() } else { mean }
}

fn difference(metric: Metric, pairs: &[(&Record, &Record)], seed: u64) -> MetricDifference {
    let values = |model: bool| -> Vec<Block> {
        let of = |(theirs, ours): &(&Record, &Record)| {
            let record = if model { ours } else { theirs };
            let weight = record.weight(metric);
            Block { sum: record.metrics[&metric] * weight, weight }
        };
        pairs.iter().map(of).collect()
    };
    let subjects: Vec<Option<&str>> = pairs.iter().map(|(_, ours)| ours.subject.as_deref()).collect();
    let [theirs, ours] = [false, true].map(|model| clusters(&subjects, &values(model)));
    let of = |blocks: &[Block], indices: &mut dyn Iterator<Item = usize>| {
        aggregate(metric, crate::statistics::ratio(indices.map(|index| blocks[index])))
    };
    let whole = |blocks: &[Block]| of(blocks, &mut (0..blocks.len()));
    let draws = Bootstrap { seed, run: 1 }.resample(ours.len(), |indices| {
        of(&ours, &mut indices.iter().copied()) - of(&theirs, &mut indices.iter().copied())
    });
    let difference = Estimate::new(whole(&ours) - whole(&theirs), draws.as_deref());
    let [baseline, model] = [false, true].map(|model| {
        let records: Vec<&Record> = pairs.iter().map(|(theirs, ours)| if model { *ours } else { *theirs }).collect();
        task_report::of_records(metric, &records, seed)
    });
    MetricDifference { metric, baseline, model, difference }
}

/// Sums over each subject; over each item where there are fewer than two subjects.
pub fn clusters(subjects: &[Option<&str>], values: &[Block]) -> Vec<Block> {
    let mut blocks: BTreeMap<&str, Block> = BTreeMap::new();
    for (subject, value) in subjects.iter().zip(values) {
        let block = blocks.entry(subject.unwrap_or_default()).or_insert(Block { sum: 0.0, weight: 0.0 });
        block.sum += value.sum;
        block.weight += value.weight;
    }
    if blocks.len() < 2 {
        return values.to_vec();
    }
    blocks.into_values().collect()
}

fn flips(pairs: &[(&Record, &Record)]) -> Flips {
    let changed = pairs.iter().filter(|(theirs, ours)| theirs.correct != ours.correct);
    let items: Vec<Flip> = changed
        .map(|(theirs, ours)| Flip {
            id: ours.id.clone(),
            gained: ours.correct == Some(true),
            baseline: theirs.prediction,
            model: ours.prediction,
            answer: ours.answer,
            subject: ours.subject.clone(),
            margins: margin(theirs).zip(margin(ours)).map(|(theirs, ours)| [theirs, ours]),
            responses: theirs.response.clone().zip(ours.response.clone()).map(|(theirs, ours)| [theirs, ours]),
        })
        .collect();
    let gained = items.iter().filter(|flip| flip.gained).count();
    let (lost, count) = (items.len() - gained, pairs.len() as f64);
    let p_value = mcnemar(lost, gained);
    let discordant = if items.is_empty() { 3.0 } else { items.len() as f64 };
    Flips {
        lost,
        gained,
        share: items.len() as f64 / count,
        p_value,
        p_holm: p_value,
        detectable: (DETECTION * discordant.sqrt() / count).min(1.0),
        items,
    }
}

/// `L_right − max of the other L_i`: positive where the right choice is picked by plain sums.
fn margin(record: &Record) -> Option<f64> {
    let answer = record.answer?;
    let right = record.log_probabilities.get(answer)?;
    let others = record.log_probabilities.iter().enumerate().filter(|(index, _)| *index != answer);
    Some(right - others.map(|(_, other)| *other).reduce(f64::max)?)
}

/// McNemar's exact test, two-sided.
pub fn mcnemar(lost: usize, gained: usize) -> f64 {
    let n = (lost + gained) as f64;
    // ln C(n, k) − n ln 2, term by term: 2^−n alone leaves the numbers there are.
    let mut term = -n * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=lost.min(gained) {
        if k > 0 {
            term += ((n - k as f64 + 1.0) / k as f64).ln();
        }
        sum += term.exp();
    }
    (2.0 * sum).min(1.0)
}

/// Holm's step-down correction, in the order given.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut reached: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        reached = reached.max(((p_values.len() - rank) as f64 * p_values[index]).min(1.0));
        corrected[index] = reached;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::record;

    fn run(correct: &[(&str, Option<&str>, bool)]) -> Run {
        let records = correct.iter().map(|(id, subject, correct)| record(id, *subject, *correct)).collect();
        Run::from([("t".to_owned(), records)])
    }

    #[test]
    fn flips_go_both_ways_and_pairs_need_the_same_prompt() {
        let base =
            run(&[("a", None, true), ("b", None, true), ("c", None, false), ("d", None, true), ("x", None, true)]);
        let mut model =
            run(&[("d", None, true), ("c", None, true), ("b", None, false), ("a", None, false), ("y", None, true)]);
        let paired = compare(&base, &model, 0).unwrap().remove(0);
        let flips = paired.flips.unwrap();
        assert_eq!((paired.items, paired.left_out, flips.lost, flips.gained), (4, 2, 2, 1));
        assert_eq!(paired.metrics[0].difference.value, 2.0 / 4.0 - 3.0 / 4.0);
        assert_eq!((flips.share, flips.p_value, flips.p_holm), (0.75, 1.0, 1.0));
        let gained: Vec<&str> = flips.items.iter().filter(|flip| flip.gained).map(|flip| flip.id.as_str()).collect();
        assert_eq!((gained, flips.items[0].baseline, flips.items[0].model), (vec!["c"], Some(1), Some(0)));
        model.get_mut("t").unwrap().iter_mut().for_each(|record| record.prompt_sha256.push('!'));
        assert!(compare(&base, &model, 0).unwrap_err().to_string().contains("no item with the same prompt"));
    }

    #[test]
    fn a_run_against_itself_differs_by_nothing() {
        let base = run(&[("a", None, true), ("b", None, false), ("c", None, true)]);
        let paired = compare(&base, &base, 0).unwrap().remove(0);
        assert_eq!(paired.metrics[0].difference.interval_95, Some([0.0, 0.0]));
        let flips = paired.flips.unwrap();
        assert_eq!((flips.p_value, flips.share), (1.0, 0.0));
        assert_eq!(flips.detectable, 1.0, "three items find nothing");
    }

    /// The two-sided binomial test, as tables have it.
    #[test]
    fn mcnemar_is_the_binomial_test() {
        for (lost, gained, expected) in
            [(0, 0, 1.0), (1, 1, 1.0), (0, 5, 0.0625), (5, 0, 0.0625), (1, 9, 0.021_484_375), (2, 10, 0.038_574_218_75)]
        {
            assert!((mcnemar(lost, gained) - expected).abs() < 1e-12, "{lost} {gained}: {}", mcnemar(lost, gained));
        }
        // Far in the tail and far beyond what 2^−n can be: no overflow, and near the normal approximation.
        assert!(mcnemar(0, 1000) < 1e-300);
        let p = mcnemar(4900, 5100);
        // z = (200 − 1) / √10000 = 1.99: p = 0.0466.
        assert!((p - 0.0466).abs() < 2e-4, "{p}");
    }

    #[test]
    fn holm_steps_down_and_never_decreases() {
        let close = |a: Vec<f64>, b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(holm(&[0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]));
        assert!(close(holm(&[0.5, 0.5, 0.01, 0.9]), [1.0, 1.0, 0.04, 1.0]));
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn subjects_are_drawn_whole() {
        let subjects = [Some("a"), Some("a"), Some("b")];
        let blocks = |values: &[f64]| values.iter().map(|&sum| Block { sum, weight: 1.0 }).collect::<Vec<_>>();
        let two = blocks(&[1.0, 0.0]);
        let blocks = clusters(&subjects, &blocks(&[1.0, 0.0, 1.0]));
        assert_eq!(blocks, [Block { sum: 1.0, weight: 2.0 }, Block { sum: 1.0, weight: 1.0 }]);
        assert_eq!(clusters(&[None, None], &two).len(), 2);
        assert_eq!(clusters(&[Some("a"), Some("a")], &two).len(), 2);
    }
}
