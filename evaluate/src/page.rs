//! A comparison as a page: what changed in sentences, then figures, tables and what flipped.

mod tasks;
mod texts;

use crate::{
    EvaluateError, capability,
    paired::{Compared, Paired},
    report::{ModelReport, Results, TOOL, short},
    statistics::{DRAWS, Estimate},
    task::Metric,
};
use console::page::{Cell, Page, Section, Table};
use tasks::{by_capability, compared, say_tasks, values};
use texts::{divergence, documents, perplexities, say_text};

/// The page of a run.
pub fn of_run(results: &Results) -> Result<Page, EvaluateError> {
    let model = results.model.reference.as_str();
    let baseline = results.baseline_model.as_ref().map(|baseline| baseline.reference.as_str());
    let (mut answer, mut sections) = (Vec::new(), Vec::new());
    answer.extend(results.verdict.clone());
    if let Some(report) = &results.perplexity {
        answer.extend(report.texts.iter().map(say_text));
        sections.push(perplexities(report));
        for text in &report.texts {
            sections.extend(divergence(text)?);
            sections.extend(documents(text)?);
        }
    }
    let paired: Vec<Paired> = results.tasks.iter().filter_map(|task| task.paired.clone()).collect();
    if !paired.is_empty() {
        answer.extend(say_tasks(&paired));
        sections.extend(by_capability(&results.capabilities, "")?);
        sections.extend(compared(&paired, "")?);
    }
    if !results.tasks.is_empty() {
        sections.push(values(&results.tasks));
    }
    sections.push(repetition(results));
    let title = match baseline {
        Some(baseline) => format!("{} against {}", short(model), short(baseline)),
        None => short(model).to_owned(),
    };
    Ok(Page { title, question: "What did quantization do to this model?".to_owned(), answer, sections })
}

/// The page of runs compared with `baseline` from their records.
pub fn of_comparison(baseline: &str, runs: &[Compared], seed: u64) -> Result<Page, EvaluateError> {
    let (mut answer, mut sections) = (Vec::new(), Vec::new());
    for Compared { model, paired, changes } in runs {
        let who = if runs.len() > 1 { format!("{}: ", short(model)) } else { String::new() };
        answer.extend(capability::verdict(changes).map(|verdict| format!("{who}{verdict}")));
        answer.extend(say_tasks(paired).into_iter().map(|sentence| format!("{who}{sentence}")));
        let of = if runs.len() > 1 { format!(", {}", short(model)) } else { String::new() };
        sections.extend(by_capability(changes, &of)?);
        sections.extend(compared(paired, &of)?);
    }
    let names: Vec<&str> = runs.iter().map(|run| run.model.as_str()).collect();
    sections.push(Section {
        title: "How this was made".to_owned(),
        text: vec![format!(
            "{TOOL} compared the records of {} with those of {baseline}: items that both have with the same prompt. \
             Intervals come from {DRAWS} paired bootstrap draws (seed {seed}) of items, or of whole subjects where there \
             are several.",
            names.join(", ")
        )],
        ..Section::default()
    });
    let names: Vec<&str> = names.into_iter().map(short).collect();
    Ok(Page {
        title: format!("{} against {}", names.join(", "), short(baseline)),
        question: "What did quantization do to what this model can do?".to_owned(),
        answer,
        sections,
    })
}

fn headings<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// `+1.25`, with the typographic minus; nothing has no sign.
fn signed(value: f64, digits: usize) -> String {
    let text = format!("{value:+.digits$}").replace('-', "\u{2212}");
    if text.chars().all(|c| "+\u{2212}0.".contains(c)) { format!("{:.digits$}", 0.0) } else { text }
}

fn ends(interval: Option<[f64; 2]>, write: impl Fn(f64) -> String) -> String {
    interval.map_or_else(|| "no interval".to_owned(), |[low, high]| format!("{} to {}", write(low), write(high)))
}

/// A cell of a number with its interval.
fn figure(estimate: &Estimate, write: impl Fn(f64) -> String) -> Cell {
    Cell::number(estimate.value, format!("{} ({})", write(estimate.value), ends(estimate.interval_95, &write)))
}

fn count(number: usize) -> Cell {
    Cell::number(number as f64, number.to_string())
}

/// How numbers of a metric are written, and what they are multiplied by.
fn scale(metric: Metric) -> f64 {
    if metric == Metric::Perplexity { 1.0 } else { 100.0 }
}

fn scaled(estimate: &Estimate, factor: f64) -> Estimate {
    Estimate {
        value: factor * estimate.value,
        standard_error: estimate.standard_error.map(|error| factor * error),
        interval_95: estimate.interval_95.map(|ends| ends.map(|end| factor * end)),
    }
}

fn excludes_zero(estimate: &Estimate) -> bool {
    estimate.interval_95.is_some_and(|[low, high]| low > 0.0 || high < 0.0)
}

fn repetition(results: &Results) -> Section {
    let mut rows = Vec::new();
    let models = [("model", Some(&results.model)), ("baseline", results.baseline_model.as_ref())];
    for (which, ModelReport { reference, files, compute, .. }) in models.into_iter().filter_map(|(w, m)| Some((w, m?)))
    {
        rows.push(vec![Cell::text(which), Cell::text(format!("{reference} (--compute {compute})")), Cell::text("")]);
        rows.extend(files.iter().map(|file| vec![Cell::text(which), Cell::text(&file.name), Cell::text(&file.sha256)]));
    }
    if let Some(report) = &results.perplexity {
        for text in &report.texts {
            rows.push(vec![Cell::text("text"), Cell::text(&text.text), Cell::text(&text.prepared_sha256)]);
        }
    }
    for task in &results.tasks {
        let name = format!("task {}, {} shots", task.task, task.shots);
        rows.extend(task.files.iter().map(|file| {
            vec![Cell::text(&name), Cell::text(file.path.display().to_string()), Cell::text(&file.sha256)]
        }));
    }
    Section {
        title: "How this was made".to_owned(),
        text: vec![format!(
            "{} with seed {}; intervals from {} bootstrap draws, of windows for texts and of items, or of whole subjects \
             where there are several, for tasks. The number of threads changes no result.",
            results.tool, results.seed, results.draws
        )],
        tables: vec![Table {
            caption: "What went in".to_owned(),
            headings: headings(["what", "name", "SHA-256"]),
            rows,
        }],
        ..Section::default()
    }
}
