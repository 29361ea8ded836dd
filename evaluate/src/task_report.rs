//! What tasks leave: figures with their errors, alone and against a baseline, for people and for machines.
//!
//! ```text
//! standard error   s / √n over items (for right or wrong: √(p (1 − p) / (n − 1))); of a perplexity by bootstrap over items
//! interval         Wilson's for right or wrong, else value ± 1.96 standard errors, or the bootstrap's percentiles
//! macro average    mean over subjects of each subject's mean; its error s / √subjects: how the average moves with them
//! ```

use crate::{
    framing::Framing,
    generation::Drawing,
    paired::{self, Paired},
    records::{Record, TIMED_OUT},
    report::{interval, optional},
    statistics::{Block, Bootstrap, Estimate, standard_deviation},
    task::{Metric, data::DataFile},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _};

/// The normal quantile of 95 % intervals.
const Z: f64 = 1.959_963_984_540_054;

/// A metric over items.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricValue {
    /// Which.
    pub metric: Metric,
    /// Its value with its error.
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// The first metric over the items of a part of a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The category or subject.
    pub name: String,
    /// Its items.
    pub items: usize,
    /// The value with its error.
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// Figures of one model on one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Items.
    pub items: usize,
    /// Every metric, the task's own first.
    pub metrics: Vec<MetricValue>,
    /// Mean over subjects, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macro_average: Option<Estimate>,
    /// Each category.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<Part>,
    /// Each subject.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<Part>,
    /// Items whose contexts lost tokens on the left to fit the model.
    pub truncated: usize,
    /// Items where a token spans the place at which context and continuation meet.
    pub spanned: usize,
    /// Programs written, and those of them that took longer than allowed, which count as failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programs: Option<Programs>,
    /// What stands before each text.
    pub bos: String,
    /// Wall time of scoring.
    pub seconds: f64,
    /// Items a second of wall time.
    pub items_per_second: f64,
}

/// What became of programs, beside whether they passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Programs {
    /// All.
    pub run: usize,
    /// Those that took too long.
    pub timed_out: usize,
}

impl Programs {
    fn of(records: &[Record]) -> Option<Self> {
        let verdicts = || records.iter().flat_map(Record::verdicts);
        let timed_out = verdicts().filter(|verdict| *verdict == TIMED_OUT).count();
        Some(Self { run: verdicts().count(), timed_out }).filter(|programs| programs.run > 0)
    }
}

/// How a model's requests came to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Circumstances {
    /// Items whose contexts lost tokens.
    pub truncated: usize,
    /// Items where a token spans the border.
    pub spanned: usize,
    /// What stands before each text.
    pub bos: String,
    /// Wall time of scoring.
    pub seconds: f64,
}

impl Summary {
    /// The figures of `records`, which is not empty.
    pub fn new(records: &[Record], circumstances: Circumstances, seed: u64) -> Self {
        let primary = records[0].metric;
        let mut metrics: Vec<Metric> = records[0].metrics.keys().copied().collect();
        metrics.sort_by_key(|metric| (*metric != primary, *metric));
        let value = |metric: Metric| MetricValue {
            metric,
            estimate: of_records(metric, &records.iter().collect::<Vec<_>>(), seed),
        };
        let parts = |key: fn(&Record) -> Option<&String>| {
            let mut parts: BTreeMap<&String, Vec<&Record>> = BTreeMap::new();
            for record in records {
                if let Some(name) = key(record) {
                    parts.entry(name).or_default().push(record);
                }
            }
            let part = |(name, records): (&String, Vec<&Record>)| Part {
                name: name.clone(),
                items: records.len(),
                estimate: of_records(primary, &records, seed),
            };
            parts.into_iter().map(part).collect::<Vec<_>>()
        };
        let subjects = parts(|record| record.subject.as_ref());
        let Circumstances { truncated, spanned, bos, seconds } = circumstances;
        Self {
            items: records.len(),
            metrics: metrics.into_iter().map(value).collect(),
            macro_average: macro_average(&subjects),
            categories: parts(|record| record.category.as_ref()),
            subjects,
            truncated,
            spanned,
            programs: Programs::of(records),
            bos,
            seconds,
            items_per_second: records.len() as f64 / seconds.max(f64::MIN_POSITIVE),
        }
    }
}

/// The value of `metric` over `records`, with its error.
pub fn of_records(metric: Metric, records: &[&Record], seed: u64) -> Estimate {
    if metric.weighs_instructions() {
        return pooled(metric, records, seed);
    }
    let values: Vec<f64> = records.iter().filter_map(|record| record.metrics.get(&metric).copied()).collect();
    estimate(metric, &values, seed)
}

/// A share over all that items hold, not over items: its error is the bootstrap's over items.
fn pooled(metric: Metric, records: &[&Record], seed: u64) -> Estimate {
    let block = |record: &&Record| {
        let weight = record.weight(metric);
        Block { sum: record.metrics.get(&metric).map_or(0.0, |share| share * weight), weight }
    };
    let blocks: Vec<Block> = records.iter().map(block).collect();
    let draws = Bootstrap { seed, run: 1 }.ratios(&blocks);
    let estimate = Estimate::new(crate::statistics::ratio(blocks), draws.as_deref());
    if estimate.value == 0.0 || estimate.value == 1.0 {
        // Every draw is the same one: items that are all alike say as much as their number.
        return Estimate { interval_95: Some(wilson(estimate.value, records.len() as f64)), ..estimate };
    }
    estimate
}

fn macro_average(subjects: &[Part]) -> Option<Estimate> {
    if subjects.len() < 2 {
        return None;
    }
    let values: Vec<f64> = subjects.iter().map(|part| part.estimate.value).collect();
    Some(mean(&values))
}

/// A mean with the normal interval.
fn mean(values: &[f64]) -> Estimate {
    let value = values.iter().sum::<f64>() / values.len() as f64;
    let standard_error = (values.len() > 1).then(|| standard_deviation(values) / (values.len() as f64).sqrt());
    let interval_95 = standard_error.map(|error| [value - Z * error, value + Z * error]);
    Estimate { value, standard_error, interval_95 }
}

/// The value of `metric` over items' `values`, with its error.
pub fn estimate(metric: Metric, values: &[f64], seed: u64) -> Estimate {
    let plain = mean(values);
    if metric != Metric::Perplexity && values.iter().all(|value| *value == 0.0 || *value == 1.0) {
        return Estimate { interval_95: Some(wilson(plain.value, values.len() as f64)), ..plain };
    }
    if metric == Metric::Perplexity {
        let blocks: Vec<Block> = values.iter().map(|&sum| Block { sum, weight: 1.0 }).collect();
        let draws = Bootstrap { seed, run: 1 }.ratios(&blocks);
        let draws =
            draws.map(|draws| draws.into_iter().map(|mean| paired::aggregate(metric, mean)).collect::<Vec<_>>());
        return Estimate::new(paired::aggregate(metric, plain.value), draws.as_deref());
    }
    plain
}

/// Wilson's score interval of a share `p` of `n`.
pub fn wilson(p: f64, n: f64) -> [f64; 2] {
    let z2 = Z * Z;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

/// One task of a run.
#[derive(Clone, Debug, Serialize)]
pub struct TaskReport {
    /// The task.
    pub task: String,
    /// Whose prompt it is.
    pub prompt_source: String,
    /// Solved examples before each question.
    pub shots: usize,
    /// Items there are.
    pub available: usize,
    /// Items drawn of them, if not all.
    pub limit: Option<usize>,
    /// Whether the model's chat template was applied, the system prompt and the rule for BOS.
    #[serde(flatten)]
    pub framing: Framing,
    /// How answers were drawn, where not the likeliest was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Drawing>,
    /// The files read.
    pub files: Vec<DataFile>,
    /// The model's figures.
    pub model: Summary,
    /// The baseline's figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Summary>,
    /// One against the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paired: Option<Paired>,
}

impl TaskReport {
    /// How prompts were put and answers taken, in words.
    fn circumstances(&self) -> String {
        let drawn = self.sampling.as_ref().map_or_else(String::new, |drawing| format!("; {drawing}"));
        format!("{}; BOS {}{drawn}", self.framing, self.model.bos)
    }

    fn title(&self) -> String {
        match self.shots {
            0 => self.task.clone(),
            1 => format!("{}, 1 shot", self.task),
            shots => format!("{}, {shots} shots", self.task),
        }
    }
}

/// The tables for people.
pub fn tables(reports: &[TaskReport]) -> String {
    let mut text = format!("{}\n", figures(reports));
    for report in reports {
        let (task, Summary { truncated, spanned, programs, .. }) = (&report.task, &report.model);
        let _ = writeln!(text, "{task}: {}", report.circumstances());
        if let Some(Programs { run, timed_out }) = programs {
            let _ =
                writeln!(text, "{task}: {timed_out} of {run} programs took longer than allowed; they count as failed");
        }
        if *truncated > 0 {
            let _ = writeln!(text, "{task}: {truncated} items are too long for the model and lost tokens on the left");
        }
        if *spanned > 0 {
            let _ = writeln!(text, "{task}: in {spanned} items a token spans the place where context and choice meet");
        }
    }
    for report in reports.iter().filter(|report| !report.model.categories.is_empty()) {
        let _ = writeln!(text, "{}", categories(report));
    }
    let compared: Vec<Paired> = reports.iter().filter_map(|report| report.paired.clone()).collect();
    if !compared.is_empty() {
        text += &comparison(&compared);
    }
    text
}

fn figures(reports: &[TaskReport]) -> console::Table {
    let mut table = console::Table::new(["task", "", "metric", "value", "±", "95 %", "items", "seconds", "items/s"]);
    for report in reports {
        let sides = [("model", Some(&report.model)), ("baseline", report.baseline.as_ref())];
        for (which, summary) in sides.into_iter().filter_map(|(which, summary)| Some((which, summary?))) {
            for MetricValue { metric, estimate } in &summary.metrics {
                table.row(row(report, which, metric.name(), estimate, summary));
            }
            if let Some(average) = &summary.macro_average {
                let name = format!("{}, macro", summary.metrics[0].metric);
                table.row(row(report, which, &name, average, summary));
            }
        }
    }
    table
}

fn row(report: &TaskReport, which: &str, metric: &str, estimate: &Estimate, summary: &Summary) -> [String; 9] {
    [
        report.title(),
        which.to_owned(),
        metric.to_owned(),
        format!("{:.4}", estimate.value),
        optional(estimate.standard_error, 4),
        interval(estimate.interval_95, 3),
        if report.limit.is_some() {
            format!("{} of {}", summary.items, report.available)
        } else {
            summary.items.to_string()
        },
        format!("{:.1}", summary.seconds),
        format!("{:.2}", summary.items_per_second),
    ]
}

fn categories(report: &TaskReport) -> console::Table {
    let metric = report.model.metrics[0].metric;
    let mut table = console::Table::new([
        format!("{} by category", report.title()),
        "items".to_owned(),
        format!("model {metric}"),
        "95 %".to_owned(),
        format!("baseline {metric}"),
        "95 %".to_owned(),
    ]);
    for (index, part) in report.model.categories.iter().enumerate() {
        let theirs = report.baseline.as_ref().and_then(|baseline| baseline.categories.get(index));
        let figure = |part: Option<&Part>| match part {
            Some(part) => [format!("{:.4}", part.estimate.value), interval(part.estimate.interval_95, 3)],
            None => ["n/a".to_owned(), "n/a".to_owned()],
        };
        let [[ours, our_ends], [theirs, their_ends]] = [figure(Some(part)), figure(theirs)];
        table.row([part.name.clone(), part.items.to_string(), ours, our_ends, theirs, their_ends]);
    }
    table
}

/// The tables of paired comparisons, and a line on each task whose runs don't hold the same items.
pub fn comparison(compared: &[Paired]) -> String {
    let headings = ["task", "metric", "items", "baseline", "95 %", "model", "95 %", "difference", "95 %"];
    let mut table = console::Table::new(headings);
    for paired in compared {
        for figure in &paired.metrics {
            table.row([
                paired.task.clone(),
                figure.metric.name().to_owned(),
                paired.items.to_string(),
                format!("{:.4}", figure.baseline.value),
                interval(figure.baseline.interval_95, 3),
                format!("{:.4}", figure.model.value),
                interval(figure.model.interval_95, 3),
                format!("{:+.4}", figure.difference.value),
                signed_interval(figure.difference.interval_95),
            ]);
        }
    }
    let mut text = format!("{table}\n");
    let mut table = console::Table::new([
        "task",
        "lost",
        "gained",
        "flips",
        "McNemar p",
        "Holm p",
        "smallest detectable difference",
    ]);
    for paired in compared {
        if let Some(flips) = &paired.flips {
            table.row([
                paired.task.clone(),
                flips.lost.to_string(),
                flips.gained.to_string(),
                format!("{:.2} %", 100.0 * flips.share),
                format!("{:.4}", flips.p_value),
                format!("{:.4}", flips.p_holm),
                format!("{:.4}", flips.detectable),
            ]);
        }
    }
    if compared.iter().any(|paired| paired.flips.is_some()) {
        let _ = writeln!(text, "{table}");
    }
    for paired in compared.iter().filter(|paired| paired.left_out > 0) {
        let _ = writeln!(text, "{}: {} records have no counterpart with the same prompt", paired.task, paired.left_out);
    }
    text
}

fn signed_interval(ends: Option<[f64; 2]>) -> String {
    ends.map_or_else(|| "n/a".to_owned(), |[low, high]| format!("{low:+.4} … {high:+.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::record;

    #[test]
    fn errors_are_their_formulas() {
        let values = [1.0, 0.0, 0.0, 1.0, 1.0];
        let found = estimate(Metric::Acc, &values, 0);
        assert_eq!(found.value, 0.6);
        assert!((found.standard_error.unwrap() - (0.6_f64 * 0.4 / 4.0).sqrt()).abs() < 1e-12);
        // Wilson's interval of 3 of 5, as calculators give it.
        let [low, high] = found.interval_95.unwrap();
        assert!((low - 0.230_7).abs() < 1e-4 && (high - 0.882_4).abs() < 1e-4, "{low} {high}");
        assert!(wilson(0.0, 10.0)[0] < 1e-12 && wilson(1.0, 10.0)[1] > 1.0 - 1e-12);
        let perplexity = estimate(Metric::Perplexity, &[-1.0, -3.0], 0);
        assert!((perplexity.value - 2.0_f64.exp()).abs() < 1e-12 && perplexity.standard_error.unwrap() > 0.0);
    }

    #[test]
    fn a_macro_average_weighs_subjects_alike() {
        let records = [
            record("a/0", Some("a"), true),
            record("a/1", Some("a"), true),
            record("a/2", Some("a"), true),
            record("b/0", Some("b"), false),
        ];
        let summary = Summary::new(&records, Circumstances::default(), 0);
        assert_eq!((summary.metrics[0].estimate.value, summary.macro_average.unwrap().value), (0.75, 0.5));
        assert_eq!(summary.subjects.iter().map(|part| part.items).collect::<Vec<_>>(), [3, 1]);
        assert!(Summary::new(&records[..3], Circumstances::default(), 0).macro_average.is_none());
    }
}
