//! Results for other programs: lm-evaluation-harness's results JSON, and CSV.
//!
//! CSV, a figure a row:
//!
//! | column | what |
//! |---|---|
//! | `model` | whose figure it is |
//! | `on` | the task, or the text |
//! | `part` | `all`, `macro`, `category NAME`, `subject NAME`, or `capability` for a mean over tasks |
//! | `metric` | its name |
//! | `figure` | `value`; against a baseline also `difference`, `ratio`, `lost`, `gained`, `flips`, `p_mcnemar`, `p_holm`, `detectable` |
//! | `value`, `standard_error`, `low_95`, `high_95` | the figure and its uncertainty; empty where there is none |
//! | `items` | items, or tokens, it is made of |
//!
//! In lm-evaluation-harness's layout tasks and metrics have the names that it gives them (`lambada_openai`, `acc,none`,
//! `exact_match,strict-match`); subjects are tasks of their own and categories are groups. There is no date in it, so that
//! the same results give the same bytes.

use crate::{
    EvaluateError,
    capability::Change,
    paired::{Compared, Paired},
    records::Record,
    report::{Report, Results, TOOL},
    statistics::{DRAWS, Estimate},
    task::Metric,
    task_report::{self, Summary},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A row of the CSV.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Whose figure it is.
    pub model: String,
    /// The task or the text.
    pub on: String,
    /// What of it.
    pub part: String,
    /// Of what.
    pub metric: String,
    /// Which figure.
    pub figure: &'static str,
    /// The figure.
    pub value: f64,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// Lower end of its interval.
    pub low_95: Option<f64>,
    /// Upper end of its interval.
    pub high_95: Option<f64>,
    /// What it is made of.
    pub items: usize,
}

impl Row {
    fn new(place: [&str; 4], figure: &'static str, estimate: Estimate, items: usize) -> Self {
        let [model, on, part, metric] = place.map(str::to_owned);
        let Estimate { value, standard_error, interval_95 } = estimate;
        let [low_95, high_95] = interval_95.map_or([None; 2], |ends| ends.map(Some));
        Self { model, on, part, metric, figure, value, standard_error, low_95, high_95, items }
    }
}

fn plain(value: f64) -> Estimate {
    Estimate { value, standard_error: None, interval_95: None }
}

/// `rows` as CSV with a heading.
pub fn csv(rows: &[Row]) -> Result<Vec<u8>, EvaluateError> {
    let failed = |error: &dyn std::fmt::Display| EvaluateError::Export(error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).map_err(|error| failed(&error))?;
    }
    writer.into_inner().map_err(|error| failed(&error))
}

/// The rows of a run.
pub fn rows(results: &Results) -> Vec<Row> {
    let model = results.model.reference.as_str();
    let baseline = results.baseline_model.as_ref().map_or("baseline", |baseline| baseline.reference.as_str());
    let mut rows = results.perplexity.as_ref().map_or_else(Vec::new, |report| text_rows(report, model, baseline));
    for task in &results.tasks {
        summary_rows(&mut rows, model, &task.task, &task.model);
        if let Some(theirs) = &task.baseline {
            summary_rows(&mut rows, baseline, &task.task, theirs);
        }
        if let Some(paired) = &task.paired {
            difference_rows(&mut rows, model, paired);
        }
    }
    capability_rows(&mut rows, [model, baseline], &results.capabilities);
    rows
}

fn text_rows(report: &Report, model: &str, baseline: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for text in &report.texts {
        for (name, figures) in [(model, Some(&text.measurement)), (baseline, text.baseline.as_ref())] {
            let Some(figures) = figures else { continue };
            let estimate = Estimate {
                value: figures.perplexity,
                standard_error: figures.standard_error,
                interval_95: figures.interval_95,
            };
            rows.push(Row::new([name, &text.text, "all", "perplexity"], "value", estimate, figures.tokens_scored));
        }
        let tokens = text.measurement.tokens_scored;
        if let Some(comparison) = &text.comparison {
            let place = [model, text.text.as_str(), "all"];
            let at = |metric| [place[0], place[1], place[2], metric];
            let ratio = Estimate { interval_95: comparison.ratio_interval_95, ..plain(comparison.ratio) };
            let difference = Estimate {
                value: comparison.log_ratio,
                standard_error: comparison.log_ratio_standard_error,
                interval_95: comparison.log_ratio_interval_95,
            };
            rows.push(Row::new(at("perplexity"), "ratio", ratio, tokens));
            rows.push(Row::new(at("log_perplexity"), "difference", difference, tokens));
        }
        if let Some(figures) = &text.divergence {
            let named = [
                ("kl_mean", Some(figures.kl_mean)),
                ("same_top", Some(figures.same_top)),
                ("mean_delta_p", Some(figures.mean_delta_p)),
                ("rms_delta_p", Some(figures.rms_delta_p)),
                ("correlation", figures.correlation),
            ];
            rows.extend(named.into_iter().filter_map(|(metric, estimate)| {
                Some(Row::new([model, &text.text, "all", metric], "value", estimate?, figures.tokens))
            }));
        }
    }
    rows
}

fn summary_rows(rows: &mut Vec<Row>, model: &str, task: &str, summary: &Summary) {
    for figure in &summary.metrics {
        rows.push(Row::new([model, task, "all", figure.metric.name()], "value", figure.estimate, summary.items));
    }
    let primary = summary.metrics.first().map_or("", |figure| figure.metric.name());
    if let Some(average) = summary.macro_average {
        rows.push(Row::new([model, task, "macro", primary], "value", average, summary.items));
    }
    for (kind, parts) in [("category", &summary.categories), ("subject", &summary.subjects)] {
        rows.extend(parts.iter().map(|part| {
            Row::new([model, task, &format!("{kind} {}", part.name), primary], "value", part.estimate, part.items)
        }));
    }
}

/// The rows of a comparison from records.
pub fn comparison_rows(baseline: &str, run: &Compared) -> Vec<Row> {
    let (model, mut rows) = (run.model.as_str(), Vec::new());
    for paired in &run.paired {
        for (name, ours) in [(model, true), (baseline, false)] {
            rows.extend(paired.metrics.iter().map(|figure| {
                let estimate = if ours { figure.model } else { figure.baseline };
                Row::new([name, &paired.task, "all", figure.metric.name()], "value", estimate, paired.items)
            }));
        }
        difference_rows(&mut rows, model, paired);
    }
    capability_rows(&mut rows, [model, baseline], &run.changes);
    rows
}

fn capability_rows(rows: &mut Vec<Row>, [model, baseline]: [&str; 2], changes: &[Change]) {
    for change in changes {
        let on = change.capability.to_string();
        let figures = [
            (model, "value", change.model),
            (baseline, "value", change.baseline),
            (model, "difference", change.difference),
            (model, "p_holm", plain(change.p_holm)),
            (model, "detectable", plain(change.detectable)),
        ];
        rows.extend(figures.map(|(name, figure, estimate)| {
            Row::new([name, &on, "capability", "mean of tasks"], figure, estimate, change.items)
        }));
    }
}

fn difference_rows(rows: &mut Vec<Row>, model: &str, paired: &Paired) {
    for figure in &paired.metrics {
        let place = [model, &paired.task, "all", figure.metric.name()];
        rows.push(Row::new(place, "difference", figure.difference, paired.items));
    }
    let (Some(flips), Some(first)) = (&paired.flips, paired.metrics.first()) else { return };
    let figures = [
        ("lost", flips.lost as f64),
        ("gained", flips.gained as f64),
        ("flips", flips.share),
        ("p_mcnemar", flips.p_value),
        ("p_holm", flips.p_holm),
        ("detectable", flips.detectable),
    ];
    let place = [model, &paired.task, "all", first.metric.name()];
    rows.extend(figures.map(|(figure, value)| Row::new(place, figure, plain(value), paired.items)));
}

/// A task's records and what is known of the run that they come from.
#[derive(Clone, Copy, Debug)]
pub struct TaskRecords<'a> {
    /// The task.
    pub task: &'a str,
    /// Its records, at least one.
    pub records: &'a [Record],
    /// Solved examples before each question.
    pub shots: Option<usize>,
    /// Items there are.
    pub available: Option<usize>,
    /// Whose prompt it is.
    pub prompt_source: Option<&'a str>,
}

/// The results of `model` in lm-evaluation-harness's layout.
pub fn lm_eval(model: &str, seed: u64, limit: Option<usize>, tasks: &[TaskRecords<'_>]) -> Value {
    let mut layout = Layout::default();
    for task in tasks {
        layout.add(task, seed);
    }
    json!({
        "results": layout.results,
        "groups": layout.groups,
        "group_subtasks": layout.subtasks,
        "configs": layout.configs,
        "versions": layout.versions,
        "n-shot": layout.shots,
        "higher_is_better": layout.better,
        "n-samples": layout.samples,
        "config": {
            "model": "caliper", "model_args": format!("pretrained={model}"), "batch_size": null, "device": "cpu",
            "limit": limit, "bootstrap_iters": DRAWS, "gen_kwargs": null, "random_seed": seed,
        },
        "model_source": "caliper",
        "model_name": model,
        "model_name_sanitized": sanitized(model),
        "caliper": TOOL,
    })
}

/// A model's name as a folder's name.
pub fn sanitized(model: &str) -> String {
    let mut name = String::new();
    for c in model.chars() {
        if !"\"<>:/\\|?*[]".contains(c) && !c.is_control() {
            name.push(c);
        } else if !name.ends_with("__") {
            name.push_str("__");
        }
    }
    if name.trim_matches('.').is_empty() { "model".to_owned() } else { name }
}

#[derive(Default)]
struct Layout {
    results: Map<String, Value>,
    groups: Map<String, Value>,
    subtasks: Map<String, Value>,
    configs: Map<String, Value>,
    versions: Map<String, Value>,
    shots: Map<String, Value>,
    better: Map<String, Value>,
    samples: Map<String, Value>,
}

impl Layout {
    fn add(&mut self, task: &TaskRecords<'_>, seed: u64) {
        let name = their_name(task.task);
        let all: Vec<&Record> = task.records.iter().collect();
        let by = |key: fn(&Record) -> Option<&String>| {
            let mut parts: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
            for record in task.records {
                if let Some(part) = key(record) {
                    parts.entry(format!("{name}_{part}")).or_default().push(record);
                }
            }
            parts
        };
        let (subjects, categories) = (by(|record| record.subject.as_ref()), by(|record| record.category.as_ref()));
        if subjects.is_empty() {
            let available = task.available.unwrap_or(all.len());
            self.leaf(task, name, name, &all, available, seed);
            self.subtasks.insert(name.to_owned(), json!([]));
            return;
        }
        self.group(name, name, &all, seed);
        for (key, records) in &categories {
            let under = |record: &&Record| record.subject.as_ref().map(|subject| format!("{name}_{subject}"));
            let mut members: Vec<String> = records.iter().filter_map(under).collect();
            members.sort();
            members.dedup();
            self.group(key, &format!(" - {}", &key[name.len() + 1..]), records, seed);
            self.subtasks.insert(key.clone(), json!(members));
        }
        let members: Vec<&String> = if categories.is_empty() { subjects.keys() } else { categories.keys() }.collect();
        self.subtasks.insert(name.to_owned(), json!(members));
        for (key, records) in &subjects {
            self.leaf(task, key, &format!("  - {}", &key[name.len() + 1..]), records, records.len(), seed);
        }
    }

    fn group(&mut self, key: &str, alias: &str, records: &[&Record], seed: u64) {
        let figures = figures(key, alias, records, seed);
        self.groups.insert(key.to_owned(), figures.clone());
        self.results.insert(key.to_owned(), figures);
    }

    fn leaf(
        &mut self,
        task: &TaskRecords<'_>,
        key: &str,
        alias: &str,
        records: &[&Record],
        available: usize,
        seed: u64,
    ) {
        let key = key.to_owned();
        self.results.insert(key.clone(), figures(task.task, alias, records, seed));
        let config = json!({
            "task": key, "num_fewshot": task.shots, "metadata": {"prompt_source": task.prompt_source},
        });
        self.configs.insert(key.clone(), config);
        self.versions.insert(key.clone(), json!(TOOL));
        self.shots.insert(key.clone(), json!(task.shots));
        let better = metrics(records)
            .into_iter()
            .map(|metric| (their_metric(task.task, metric).0.to_owned(), json!(metric != Metric::Perplexity)));
        self.better.insert(key.clone(), Value::Object(better.collect()));
        self.samples.insert(key, json!({"original": available, "effective": records.len()}));
    }
}

fn metrics(records: &[&Record]) -> Vec<Metric> {
    records.first().map_or_else(Vec::new, |record| record.metrics.keys().copied().collect())
}

fn figures(task: &str, alias: &str, records: &[&Record], seed: u64) -> Value {
    let mut figures = Map::from_iter([("alias".to_owned(), json!(alias))]);
    for metric in metrics(records) {
        let estimate = task_report::of_records(metric, records, seed);
        let (name, filter) = their_metric(task, metric);
        figures.insert(format!("{name},{filter}"), json!(estimate.value));
        let error = estimate.standard_error.map_or_else(|| json!("N/A"), |error| json!(error));
        figures.insert(format!("{name}_stderr,{filter}"), error);
    }
    Value::Object(figures)
}

/// What lm-evaluation-harness calls a task.
fn their_name(task: &str) -> &str {
    match task {
        "lambada" => "lambada_openai",
        "ceval" => "ceval-valid",
        other => other,
    }
}

/// What it calls a metric, and the filter that the metric reads.
fn their_metric(task: &str, metric: Metric) -> (&'static str, &'static str) {
    match (task, metric) {
        (_, Metric::AccGreedy | Metric::Mc2) => ("acc", "none"),
        (_, Metric::ExactMatchStrict) => ("exact_match", "strict-match"),
        (_, Metric::ExactMatchFlexible) => ("exact_match", "flexible-extract"),
        (_, Metric::ExactMatchNumeric) => ("exact_match", "numeric-extract"),
        ("humaneval", Metric::PassAt1) => ("pass@1", "create_test"),
        (_, other) => (other.name(), "none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{paired, records::tests::record};

    fn records() -> Vec<Record> {
        let mut records = vec![
            record("a/0", Some("a"), true),
            record("a/1", Some("a"), false),
            record("b/0", Some("b"), true),
            record("c/0", Some("c"), true),
        ];
        for record in &mut records {
            record.task = "mmlu".to_owned();
            record.category = Some(if record.id.starts_with('c') { "stem" } else { "other" }.to_owned());
        }
        records
    }

    #[test]
    fn groups_hold_categories_and_categories_hold_subjects() {
        let records = records();
        let task = TaskRecords {
            task: "mmlu",
            records: &records,
            shots: Some(5),
            available: Some(14_042),
            prompt_source: Some("theirs"),
        };
        let layout = lm_eval("org/name", 7, Some(4), &[task]);
        assert_eq!(layout["results"]["mmlu"]["acc,none"], 0.75);
        assert_eq!(layout["results"]["mmlu_a"]["acc_stderr,none"], 0.5);
        assert_eq!(layout["results"]["mmlu_b"]["acc_stderr,none"], "N/A");
        assert_eq!(layout["groups"]["mmlu_other"]["acc,none"], 2.0 / 3.0);
        assert_eq!(layout["group_subtasks"]["mmlu"], json!(["mmlu_other", "mmlu_stem"]));
        assert_eq!(layout["group_subtasks"]["mmlu_other"], json!(["mmlu_a", "mmlu_b"]));
        assert_eq!(layout["n-shot"], json!({"mmlu_a": 5, "mmlu_b": 5, "mmlu_c": 5}));
        assert_eq!(layout["n-samples"]["mmlu_a"], json!({"original": 2, "effective": 2}));
        assert_eq!(layout["higher_is_better"]["mmlu_c"], json!({"acc": true}));
        assert_eq!(layout["model_name_sanitized"], "org__name");
    }

    #[test]
    fn names_are_theirs() {
        assert_eq!(their_metric("gsm8k", Metric::ExactMatchStrict), ("exact_match", "strict-match"));
        assert_eq!(their_metric("humaneval", Metric::PassAt1), ("pass@1", "create_test"));
        assert_eq!(their_metric("mbpp", Metric::PassAt1), ("pass_at_1", "none"));
        assert_eq!(their_metric("lambada", Metric::AccGreedy), ("acc", "none"));
        assert_eq!(sanitized("a//b:c"), "a__b__c");
        assert_eq!(sanitized(".."), "model");
    }

    #[test]
    fn csv_has_a_figure_a_row_and_quotes_what_needs_it() {
        let run = std::collections::BTreeMap::from([("mmlu".to_owned(), records())]);
        let paired = paired::compare(&run, &run, 0).unwrap();
        let compared = Compared { model: "m".to_owned(), paired, changes: Vec::new() };
        let text = String::from_utf8(csv(&comparison_rows("a,b", &compared)).unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "model,on,part,metric,figure,value,standard_error,low_95,high_95,items");
        assert!(lines[1].starts_with("m,mmlu,all,acc,value,0.75,0.25,"), "{}", lines[1]);
        assert!(lines[2].starts_with("\"a,b\",mmlu,all,acc,value,0.75,"), "{}", lines[2]);
        assert_eq!(lines[3], "m,mmlu,all,acc,difference,0.0,0.0,0.0,0.0,4");
        assert!(lines.contains(&"m,mmlu,all,acc,p_mcnemar,1.0,,,,4"));
    }
}
