//! The cells, one configuration after the other: quantize, evaluate on every text that is open, remove, remember.
//!
//! A configuration that fails leaves its error in the store and the next one begins. Killed at any moment and started
//! again, finished cells are not computed again, and a quantization goes on after its last finished block.

use crate::{
    StudyError,
    check::{duration, memory_limit},
    evaluator::{Evaluator, Walked},
    opened::{Cell, Opened, TOOL, Unit},
    plan::varying,
    store::{CalibrationRecord, Contents, Line, Quantized, SCHEMA, Status, Store, now},
};
use console::Silence;
use model::Checkpoint;
use quantize::{Job, Request};
use std::{
    any::Any,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Instant,
};

/// Which cells to run, and how.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// The failed ones instead of those never tried.
    pub retry: bool,
    /// Only every `of`-th configuration, from number `part` (counted from 0) on.
    pub part: Option<(usize, usize)>,
    /// Threads at work.
    pub threads: usize,
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Cells measured now.
    pub measured: usize,
    /// Cells that failed now.
    pub failed: usize,
    /// Cells that had been measured before.
    pub known: usize,
    /// Cells that had failed before and were not tried again.
    pub failed_before: usize,
}

/// Runs what is open of `opened`; `say` gets a line for everything that happens.
pub fn run(opened: &Opened, store: &mut Store, wishes: Wishes, say: &mut dyn FnMut(&str)) -> Result<Tally, StudyError> {
    let mut contents = store.read()?;
    let mine =
        opened.units.iter().enumerate().filter(|(index, _)| wishes.part.is_none_or(|(part, of)| index % of == part));
    let units: Vec<&Unit> = mine.map(|(_, unit)| unit).collect();
    let mut tally = Tally::default();
    for cell in units.iter().flat_map(|unit| &unit.cells) {
        tally.known += usize::from(contents.measured(&cell.key).is_some());
        tally.failed_before += usize::from(!wishes.retry && contents.failed(&cell.key).is_some());
    }
    let open = units.into_iter().map(|unit| (unit, open_cells(unit, &contents, wishes.retry)));
    let open: Vec<(&Unit, Vec<&Cell>)> = open.filter(|(_, cells)| !cells.is_empty()).collect();
    let axes = varying(&opened.units.iter().filter_map(|unit| unit.settings.as_ref()));
    let mut evaluator = Evaluator::new(opened);
    let (started, total) = (Instant::now(), open.len());
    for (number, (unit, cells)) in open.into_iter().enumerate() {
        say(&format!("[{}/{total}] {}", number + 1, label(unit, &axes)));
        let began = Instant::now();
        let lines = run_unit(&mut evaluator, opened, unit, &cells, store, &contents, wishes.threads);
        let mut told = Vec::new();
        for line in lines {
            store.append(&line)?;
            tally.measured += usize::from(line.status == Status::Measured);
            tally.failed += usize::from(line.status == Status::Failed);
            told.push(tell(&line, opened, &contents));
            contents.add(line);
        }
        let left = started.elapsed().as_secs_f64() / (number + 1) as f64 * (total - number - 1) as f64;
        let left = if number + 1 < total { format!(", about {} left", duration(left)) } else { String::new() };
        say(&format!("    {}; {:.1} s{left}", told.join(", "), began.elapsed().as_secs_f64()));
    }
    Ok(tally)
}

fn open_cells<'a>(unit: &'a Unit, contents: &Contents, retry: bool) -> Vec<&'a Cell> {
    let is_open = |cell: &&Cell| match contents.lines.get(&cell.key) {
        None => !retry,
        Some(line) => retry && line.status == Status::Failed,
    };
    unit.cells.iter().filter(is_open).collect()
}

/// The configuration in words.
fn label(unit: &Unit, axes: &[&str]) -> String {
    let settings = unit.settings.as_ref();
    settings.map_or_else(|| format!("{}, not quantized", unit.model), |settings| settings.label(axes))
}

/// What came of a cell, in words: against the unquantized model where that is known.
fn tell(line: &Line, opened: &Opened, contents: &Contents) -> String {
    let name = &line.evaluation;
    if let Some(error) = &line.error {
        return format!("{name} FAILED: {error}");
    }
    if let Some(diverged) = &line.divergence {
        return format!("{name} {}", line.measure.change(diverged.mean));
    }
    let baseline = opened.units.iter().find(|unit| unit.settings.is_none() && unit.model == line.model);
    let baseline = baseline.filter(|_| line.settings.is_some()).and_then(|unit| {
        let cell = unit.cells.iter().find(|cell| opened.texts[cell.text].name == *name)?;
        contents.measured(&cell.key)
    });
    if let Some(answers) = &line.answers {
        let before = baseline.and_then(|line| line.answers.as_ref());
        let before = before.map_or_else(String::new, |before| format!(" (unquantized {:.3})", before.score));
        return format!("{name} {} {:.3}{before}", answers.metric, answers.score);
    }
    let perplexity = |line: &Line| line.measured.as_ref().map_or(f64::NAN, |measured| measured.perplexity);
    match baseline {
        Some(baseline) => format!("{name} x {:.4}", perplexity(line) / perplexity(baseline)),
        None => format!("{name} {:.4}", perplexity(line)),
    }
}

/// A line for each of `cells`.
fn run_unit(
    evaluator: &mut Evaluator<'_>,
    opened: &Opened,
    unit: &Unit,
    cells: &[&Cell],
    store: &Store,
    contents: &Contents,
    threads: usize,
) -> Vec<Line> {
    let _silence = Silence::begin();
    let line = |cell: &Cell| blank(opened, unit, cell, threads);
    let model = &opened.models[&unit.model].checkpoint;
    if unit.settings.is_none() {
        return measured(evaluator, opened, cells, model, &line);
    }
    let folders = Folders::of(store.folder(), unit);
    let made = caught(|| checkpoint_of(opened, unit, &folders, contents, threads));
    let lines = match made {
        Err(error) => cells.iter().map(|cell| failed(line(cell), &error)).collect(),
        Ok((checkpoint, quantized)) => {
            let line = |cell: &Cell| Line { quantized: Some(quantized.clone()), ..line(cell) };
            measured(evaluator, opened, cells, &checkpoint, &line)
        }
    };
    folders.clear();
    lines
}

/// Where a configuration's checkpoint is made and kept.
struct Folders {
    work: PathBuf,
    kept: PathBuf,
}

impl Folders {
    fn of(results: &Path, unit: &Unit) -> Self {
        let name = &unit.configuration[..16];
        Self { work: results.join("work").join(name), kept: results.join("checkpoints").join(name) }
    }

    /// Removes what was made for this configuration only; what can't be removed is in nobody's way.
    fn clear(&self) {
        let _ = fs::remove_dir_all(&self.work);
        let _ = fs::remove_dir_all(quantize::Journal::folder_of(&self.work));
        let _ = self.work.parent().map(fs::remove_dir);
    }
}

/// The quantized checkpoint: kept from an earlier run, or made now.
fn checkpoint_of(
    opened: &Opened,
    unit: &Unit,
    folders: &Folders,
    contents: &Contents,
    threads: usize,
) -> Result<(Checkpoint, Quantized), StudyError> {
    let known =
        contents.lines.values().find(|line| line.configuration == unit.configuration && line.quantized.is_some());
    if let (true, Some(quantized)) = (folders.kept.is_dir(), known.and_then(|line| line.quantized.clone())) {
        return Ok((Checkpoint::open(&folders.kept.to_string_lossy())?, quantized));
    }
    let quantized = quantize(opened, unit, &folders.work, threads)?;
    let mut folder = &folders.work;
    if opened.file.keep {
        folder = &folders.kept;
        put_in_place(&folders.work, folder).map_err(StudyError::io(folder))?;
    }
    Ok((Checkpoint::open(&folder.to_string_lossy())?, quantized))
}

fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    to.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::rename(from, to)
}

fn quantize(opened: &Opened, unit: &Unit, out: &Path, threads: usize) -> Result<Quantized, StudyError> {
    let options = unit.options.clone().expect("a unit with settings has options");
    out.parent().map_or(Ok(()), fs::create_dir_all).map_err(StudyError::io(out))?;
    let started = Instant::now();
    let job = Job::prepare(Request {
        model: opened.models[&unit.model].checkpoint.reference.clone(),
        out: out.to_owned(),
        options,
        threads,
        memory: memory_limit(&opened.file.budget),
        overwrite: true,
        save_imatrix: None,
    })?;
    let outcome = job.run()?;
    let (totals, output) = (outcome.totals, &outcome.outputs[0]);
    Ok(Quantized {
        bits_per_weight: output.bits_per_weight,
        bits_per_weight_all: output.bits_per_weight_all,
        bytes: output.bytes,
        error: totals.error,
        error_round_to_nearest: totals.error_round_to_nearest,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// `checkpoint` on the evaluations of `cells`, those of the same windows after each other.
fn measured(
    evaluator: &mut Evaluator<'_>,
    opened: &Opened,
    cells: &[&Cell],
    checkpoint: &Checkpoint,
    line: &dyn Fn(&Cell) -> Line,
) -> Vec<Line> {
    let mut cells = cells.to_vec();
    cells.sort_by_key(|cell| &opened.texts[cell.text].record.windows_sha256);
    let mut walked = Walked::new();
    let mut measure = |cell: &&Cell| {
        let text = &opened.texts[cell.text];
        match caught(|| evaluator.measure(line(cell), checkpoint, text, &mut walked)) {
            Ok(line) => Line { finished: now(), ..line },
            Err(error) => failed(line(cell), &error),
        }
    };
    cells.iter().map(&mut measure).collect()
}

fn failed(line: Line, error: &str) -> Line {
    Line { status: Status::Failed, error: Some(error.to_owned()), finished: now(), ..line }
}

fn blank(opened: &Opened, unit: &Unit, cell: &Cell, threads: usize) -> Line {
    let text = &opened.texts[cell.text];
    Line {
        schema: SCHEMA,
        cell: cell.key.clone(),
        configuration: unit.configuration.clone(),
        status: Status::Measured,
        model: unit.model.clone(),
        settings: unit.settings.clone(),
        evaluation: text.name.clone(),
        text: text.record.clone(),
        model_files: opened.models[&unit.model].files.clone(),
        calibration: unit.calibration.as_deref().map(CalibrationRecord::of),
        quantized: None,
        measure: text.measure,
        measured: None,
        divergence: None,
        answers: None,
        blocks: Vec::new(),
        error: None,
        tool: TOOL.to_owned(),
        threads,
        finished: 0,
    }
}

/// `work`, whose error or panic becomes a sentence: whatever happens in a cell, the others go on.
fn caught<T>(work: impl FnOnce() -> Result<T, StudyError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("a fault of this program: {}", message(panic.as_ref()))),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it says nothing about itself")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_happens_in_a_cell_becomes_a_sentence() {
        assert_eq!(caught(|| Ok(1)), Ok(1));
        assert_eq!(caught::<()>(|| Err(StudyError::Settings("no".to_owned()))), Err("no".to_owned()));
        let number = 3;
        assert_eq!(caught::<()>(|| panic!("number {number}")), Err("a fault of this program: number 3".to_owned()));
    }
}
