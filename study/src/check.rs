//! Before anything is computed: how many cells, what they will take, and which evaluation texts calibration has seen.

use crate::{
    StudyError,
    file::{Budget, text_from},
    opened::{Opened, PreparedText, Unit},
    shared,
    store::Contents,
};
use calibration::{
    captured::Captured,
    overlap::{Ngrams, WORDS},
};
use console::machine;
use evaluate::{score::score, window::Window};
use model::text::Document;
use quantize::preflight;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    time::Instant,
};

/// Tokens of the window that tells the speed of scoring.
const PROBE_TOKENS: usize = 256;
/// Containment from which on a pair is warned of: beyond what quotations and boilerplate explain.
const OVERLAP_WARNED: f64 = 0.01;

/// What a study will take.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Cells to compute.
    pub cells: usize,
    /// Cells that are there already.
    pub done: usize,
    /// Quantizations to make.
    pub quantizations: usize,
    /// Seconds, about.
    pub seconds: f64,
    /// Bytes of memory at the most.
    pub memory: u64,
    /// Bytes on disk at the most.
    pub disk: u64,
}

/// A pair of texts with something in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// The calibration set.
    pub calibration: String,
    /// The evaluation.
    pub evaluation: String,
    /// Share of the evaluation text's distinct n-grams that the calibration text has too.
    pub containment: f64,
}

/// Estimates what is left of `opened` to do on `threads` threads, by running one window through each model and counting.
pub fn estimate(opened: &Opened, done: &Contents, threads: usize, folder: &Path) -> Result<Cost, StudyError> {
    let mut cost = Cost::default();
    let mut speeds = BTreeMap::new();
    for (name, model) in &opened.models {
        if let Some(text) = opened.texts.iter().find(|text| text.model == *name && text.text().is_some()) {
            speeds.insert(name.as_str(), tokens_per_second(text, &model.checkpoint, threads)?);
        }
    }
    let mut captured = HashSet::new();
    for unit in &opened.units {
        let (there, open): (Vec<_>, Vec<_>) = unit.cells.iter().partition(|cell| done.measured(&cell.key).is_some());
        cost.done += there.len();
        cost.cells += open.len();
        if open.is_empty() {
            continue;
        }
        let tokens: usize = open.iter().map(|cell| opened.texts[cell.text].tokens_fed()).sum();
        // With tasks alone there is no text to measure the speed on.
        cost.seconds += tokens as f64 / speeds.get(unit.model.as_str()).copied().unwrap_or(f64::INFINITY);
        quantization(opened, unit, threads, folder, &mut captured, &mut cost)?;
    }
    Ok(cost)
}

fn quantization(
    opened: &Opened,
    unit: &Unit,
    threads: usize,
    folder: &Path,
    captured: &mut HashSet<String>,
    cost: &mut Cost,
) -> Result<(), StudyError> {
    let Some(plan) = &unit.plan else { return Ok(()) };
    let windows = unit.calibration.as_ref().map_or(&[][..], |set| &set.windows);
    let checkpoint = &opened.models[&unit.model].checkpoint;
    let own = preflight::estimate(checkpoint, plan, windows, threads, memory_limit(&opened.file.budget), folder)?;
    cost.quantizations += 1;
    // Statistics that are there are neither captured nor stored again; solving on them is next to nothing.
    if let Some(key) = shared::key(opened, unit) {
        cost.disk += own.disk / 2;
        let there = shared::statistics_folder(folder, &key).join("statistics.json").exists();
        if there || !captured.insert(key) {
            return Ok(());
        }
        cost.disk += Captured::bytes(&checkpoint.config);
    }
    cost.seconds += own.seconds.unwrap_or_default();
    cost.memory = cost.memory.max(own.memory + own.activations_in_memory);
    cost.disk = if opened.file.keep { cost.disk + own.disk } else { cost.disk.max(own.disk) };
    Ok(())
}

/// Scoring a short window on one thread, times the threads.
fn tokens_per_second(text: &PreparedText, checkpoint: &model::Checkpoint, threads: usize) -> Result<f64, StudyError> {
    let windows = text.text().map_or(&[][..], |prepared| &prepared.windows);
    let Some(first) = windows.first() else { return Ok(f64::INFINITY) };
    let length = first.tokens.len().min(PROBE_TOKENS);
    let probe = Window { tokens: first.tokens[..length].to_vec(), scored: 1..length, ..first.clone() };
    let started = Instant::now();
    score(checkpoint, std::slice::from_ref(&probe), u64::MAX, &mut |_| {})?;
    let parallel = threads.min(windows.len());
    Ok((length * parallel) as f64 / started.elapsed().as_secs_f64())
}

/// The memory that the budget allows.
pub fn memory_limit(budget: &Budget) -> Option<u64> {
    machine::parse_bytes(budget.memory.as_deref()?).ok()
}

/// Where the estimate is beyond the budget.
pub fn beyond_budget(budget: &Budget, cost: &Cost) -> Vec<String> {
    let mut beyond = Vec::new();
    if let Some(most) = budget.cells.filter(|most| cost.cells + cost.done > *most) {
        beyond.push(format!("{} cells are more than budget.cells = {most}", cost.cells + cost.done));
    }
    if let Some(most) = budget.hours.filter(|most| cost.seconds > most * 3600.0) {
        beyond.push(format!("about {} are more than budget.hours = {most}", duration(cost.seconds)));
    }
    for (name, given, needed) in [("memory", &budget.memory, cost.memory), ("disk", &budget.disk, cost.disk)] {
        let Some(text) = given else { continue };
        match machine::parse_bytes(text) {
            Ok(most) if needed > most => {
                beyond.push(format!("about {} are more than budget.{name} = \"{text}\"", machine::bytes(needed)));
            }
            Ok(_) => {}
            Err(error) => beyond.push(format!("budget.{name} = \"{text}\": {error}")),
        }
    }
    beyond
}

/// The containment of every evaluation text in every calibration text; random tokens hold no text.
pub fn overlaps(opened: &Opened) -> Result<Vec<Overlap>, StudyError> {
    let mut evaluations = Vec::new();
    for (name, evaluation) in &opened.file.evaluation {
        let Some(text) = &evaluation.text else { continue };
        let texts = documents(&text_from(&opened.folder, text), evaluation.field.as_deref())?;
        evaluations.push((name, Ngrams::of(texts.iter().map(String::as_str), WORDS)));
    }
    let mut pairs = Vec::new();
    for (calibration, set) in &opened.file.calibration {
        let mut texts = Vec::new();
        for source in &set.sources {
            texts.extend(documents(&text_from(&opened.folder, source), set.field.as_deref())?);
        }
        let known = Ngrams::of(texts.iter().map(String::as_str), WORDS);
        pairs.extend(evaluations.iter().map(|(name, ngrams)| Overlap {
            calibration: calibration.clone(),
            evaluation: (*name).clone(),
            containment: ngrams.containment_in(&known),
        }));
    }
    Ok(pairs)
}

impl Overlap {
    /// A sentence where it is more than chance.
    pub fn warning(&self) -> Option<String> {
        (self.containment >= OVERLAP_WARNED).then(|| {
            let percent = 100.0 * self.containment;
            let Self { calibration, evaluation, .. } = self;
            format!(
                "{percent:.1} % of the {WORDS}-grams of evaluation.{evaluation} are also in calibration.{calibration}: \
                 what is measured there is partly memory of the calibration text"
            )
        })
    }
}

/// The documents behind a reference to calibration or evaluation text, chat messages joined.
fn documents(reference: &str, field: Option<&str>) -> Result<Vec<String>, StudyError> {
    let weighted = reference.rsplit_once('=').filter(|(_, weight)| weight.parse::<f64>().is_ok());
    let reference = weighted.filter(|_| !Path::new(reference).exists()).map_or(reference, |(reference, _)| reference);
    if reference == "random-tokens" {
        return Ok(Vec::new());
    }
    if reference.starts_with("demo:") || reference.starts_with("hub:") {
        let source = evaluate::source::Source::read(reference, field)?;
        return Ok(source.files.into_iter().flat_map(|file| file.documents).collect());
    }
    let documents = model::text::read(reference, field)?.into_iter().flat_map(|file| file.documents);
    let text = |document| match document {
        Document::Text(text) => text,
        Document::Chat(messages) => messages.into_iter().map(|(_, content)| content).collect::<Vec<_>>().join("\n"),
    };
    Ok(documents.map(text).collect())
}

/// `40 s`, `12 min`, `3.5 h`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_budget_is_said_with_both_numbers() {
        let cost = Cost { cells: 10, done: 2, seconds: 7200.0, memory: 3 << 30, disk: 1 << 20, quantizations: 4 };
        let budget = Budget {
            cells: Some(11),
            hours: Some(1.5),
            memory: Some("2GiB".to_owned()),
            disk: Some("a lot".to_owned()),
        };
        let beyond = beyond_budget(&budget, &cost);
        assert_eq!(beyond.len(), 4, "{beyond:?}");
        assert!(
            beyond[0].contains("12 cells") && beyond[1].contains("2.0 h") && beyond[2].contains("3.00 GiB"),
            "{beyond:?}"
        );
        assert!(beyond_budget(&Budget::default(), &cost).is_empty());
    }

    #[test]
    fn documents_of_weighted_sources_are_found_and_random_tokens_hold_none() {
        assert_eq!(documents("demo:prose=2", None).unwrap(), documents("demo:prose", None).unwrap());
        assert!(documents("random-tokens=0.5", None).unwrap().is_empty());
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        assert_eq!([12.4, 600.0, 9000.0].map(duration), ["12 s", "10 min", "2.5 h"]);
    }
}
