//! The cells, one configuration after the other: quantize, evaluate on every text that is open, remove, remember.
//!
//! A configuration that fails leaves its error in the store and the next one begins. Killed at any moment and started
//! again, finished cells are not computed again, and a quantization goes on after its last finished block.

use crate::{
    StudyError,
    check::{duration, memory_limit},
    codes,
    evaluator::{Evaluator, Walked},
    measure::Measure,
    opened::{Cell, Opened, TOOL, Unit},
    plan::varying,
    shared::{self, Shared},
    store::{CalibrationRecord, Contents, Line, Quantized, SCHEMA, Status, Store, now},
};
use console::Silence;
use evaluate::statistics::ratio;
use model::Checkpoint;
use quantize::{Job, Request};
use std::{
    any::Any,
    collections::HashSet,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Instant,
};

/// Which cells to run, and how.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The failed ones instead of those never tried.
    pub retry: bool,
    /// Only every `of`-th task, from number `part` (counted from 0) on.
    pub part: Option<(usize, usize)>,
    /// Only these configurations.
    pub only: Option<HashSet<String>>,
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

/// What a run tells while it works.
pub enum Event<'e> {
    /// Something happened.
    Line(&'e str),
    /// So many more cells are done; what is best so far.
    Cells(usize, Option<String>),
}

/// Configurations that are computed together: those that share statistics, each other one alone.
pub fn tasks(opened: &Opened) -> Vec<Vec<&Unit>> {
    let mut tasks: Vec<(Option<String>, Vec<&Unit>)> = Vec::new();
    for unit in &opened.units {
        let key = shared::key(opened, unit);
        let same = |(known, units): &&mut (Option<String>, Vec<&Unit>)| {
            key.is_some() && *known == key && units.len() < shared::TOGETHER
        };
        match tasks.iter_mut().find(same) {
            Some((_, units)) => units.push(unit),
            None => tasks.push((key, vec![unit])),
        }
    }
    tasks.into_iter().map(|(_, units)| units).collect()
}

/// The cells of `units` that are to be computed, by configuration.
pub fn open<'a>(units: &[&'a Unit], contents: &Contents, retry: bool) -> Vec<(&'a Unit, Vec<&'a Cell>)> {
    let open = units.iter().map(|unit| (*unit, open_cells(unit, contents, retry)));
    open.filter(|(_, cells)| !cells.is_empty()).collect()
}

/// Runs what is open of `opened`; `tell` hears of everything that happens.
pub fn run(
    opened: &Opened,
    store: &mut Store,
    wishes: &Wishes,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Tally, StudyError> {
    let contents = store.read()?;
    let mine = tasks(opened).into_iter().enumerate();
    let mine = mine.filter(|(index, _)| wishes.part.is_none_or(|(part, of)| index % of == part));
    let wanted = |unit: &&Unit| wishes.only.as_ref().is_none_or(|only| only.contains(&unit.configuration));
    let mine: Vec<Vec<&Unit>> = mine.map(|(_, units)| units.into_iter().filter(wanted).collect()).collect();
    let mut tally = Tally::default();
    for cell in mine.iter().flatten().flat_map(|unit| &unit.cells) {
        tally.known += usize::from(contents.measured(&cell.key).is_some());
        tally.failed_before += usize::from(!wishes.retry && contents.failed(&cell.key).is_some());
    }
    let tasks: Vec<_> = mine.iter().map(|units| open(units, &contents, wishes.retry)).collect();
    let total = tasks.iter().map(Vec::len).sum();
    let mut running = Running {
        opened,
        store,
        contents,
        evaluator: Evaluator::new(opened),
        axes: varying(&opened.units.iter().filter(|unit| !unit.twin).filter_map(|unit| unit.settings.as_ref())),
        threads: wishes.threads,
        tally,
        started: Instant::now(),
        done: 0,
        total,
        tell,
    };
    for task in tasks.iter().filter(|task| !task.is_empty()) {
        running.task(task)?;
    }
    Ok(running.tally)
}

/// A run at work.
struct Running<'r, 'a> {
    opened: &'a Opened,
    store: &'r mut Store,
    contents: Contents,
    evaluator: Evaluator<'a>,
    axes: Vec<&'static str>,
    threads: usize,
    tally: Tally,
    started: Instant,
    /// Configurations done, of `total`.
    done: usize,
    total: usize,
    tell: &'r mut dyn FnMut(Event<'_>),
}

impl Running<'_, '_> {
    fn say(&mut self, text: &str) {
        (self.tell)(Event::Line(text));
    }

    /// Configurations that are computed together.
    fn task(&mut self, task: &[(&Unit, Vec<&Cell>)]) -> Result<(), StudyError> {
        let units: Vec<&Unit> = task.iter().map(|(unit, _)| *unit).collect();
        let mut shared = match shared::key(self.opened, units[0]) {
            Some(key) => self.share(&units, &key),
            None => None,
        };
        for (index, (unit, cells)) in task.iter().enumerate() {
            let twin = if unit.twin { ", in true sequence, to measure the shortcut" } else { "" };
            self.say(&format!("[{}/{}] {}{twin}", self.done + 1, self.total, label(unit, &self.axes)));
            let began = Instant::now();
            let solved = shared.as_mut().map(|shared| caught(|| shared.take(self.opened, unit, index)));
            let lines = self.unit(unit, cells, solved);
            self.keep(lines, began)?;
        }
        Ok(())
    }

    /// The statistics and solved blocks of `units`; where that fails, each is tried alone and keeps its own error.
    fn share(&mut self, units: &[&Unit], key: &str) -> Option<Shared> {
        self.say(&format!("{} configurations share their statistics", units.len()));
        let mut told = Vec::new();
        let silence = Silence::begin();
        let folder = self.store.folder().to_owned();
        let solved = caught(|| shared::solve(self.opened, units, key, &folder, &mut |line| told.push(line.to_owned())));
        drop(silence);
        for line in &told {
            self.say(line);
        }
        match solved {
            Ok(shared) => Some(shared),
            Err(error) => {
                self.say(&format!("    together they FAILED ({error}); each is tried alone"));
                None
            }
        }
    }

    /// Makes `lines` durable and tells of them.
    fn keep(&mut self, lines: Vec<Line>, began: Instant) -> Result<(), StudyError> {
        let (mut told, count) = (Vec::new(), lines.len());
        for line in lines {
            self.store.append(&line)?;
            self.tally.measured += usize::from(line.status == Status::Measured);
            self.tally.failed += usize::from(line.status == Status::Failed);
            told.push(tell(&line, self.opened, &self.contents));
            self.contents.add(line);
        }
        self.done += 1;
        let left = self.started.elapsed().as_secs_f64() / self.done as f64 * (self.total - self.done) as f64;
        let left = if self.done < self.total { format!(", about {} left", duration(left)) } else { String::new() };
        self.say(&format!("    {}; {:.1} s{left}", told.join(", "), began.elapsed().as_secs_f64()));
        let best = best(self.opened, &self.contents, &self.axes);
        (self.tell)(Event::Cells(count, best));
        Ok(())
    }

    /// A line for each of `cells`; `solved` is the model where it was solved with others.
    fn unit(
        &mut self,
        unit: &Unit,
        cells: &[&Cell],
        solved: Option<Result<(Checkpoint, Quantized), String>>,
    ) -> Vec<Line> {
        let _silence = Silence::begin();
        let (opened, threads) = (self.opened, self.threads);
        let line = |cell: &Cell| blank(opened, unit, cell, threads);
        let model = &opened.models[&unit.model].checkpoint;
        if unit.settings.is_none() {
            return measured(&mut self.evaluator, opened, cells, model, &line);
        }
        let folders = Folders::of(self.store.folder(), unit);
        let made = solved.unwrap_or_else(|| caught(|| checkpoint_of(opened, unit, &folders, &self.contents, threads)));
        let made = made.and_then(|(checkpoint, quantized)| {
            let codes = caught(|| codes::sample(&checkpoint))?;
            Ok((checkpoint, Quantized { codes, ..quantized }))
        });
        let lines = match made {
            Err(error) => cells.iter().map(|cell| failed(line(cell), &error)).collect(),
            Ok((checkpoint, quantized)) => {
                let line = |cell: &Cell| Line { quantized: Some(quantized.clone()), ..line(cell) };
                measured(&mut self.evaluator, opened, cells, &checkpoint, &line)
            }
        };
        folders.clear();
        lines
    }
}

/// The configuration of least loss so far, by the study's first measure, in words.
pub fn best(opened: &Opened, contents: &Contents, axes: &[&str]) -> Option<String> {
    let measure = opened.texts.iter().map(|text| text.measure).min()?;
    let blocks = |unit: &Unit, text: usize| {
        let cell = unit.cells.iter().find(|cell| cell.text == text)?;
        Some(ratio(contents.measured(&cell.key)?.blocks.iter().copied()))
    };
    let loss = |unit: &Unit| {
        let baseline = opened.units.iter().find(|other| other.settings.is_none() && other.model == unit.model)?;
        let texts = unit.cells.iter().map(|cell| cell.text).filter(|text| opened.texts[*text].measure == measure);
        let losses = texts.map(|text| {
            let before = if measure == Measure::Divergence { 0.0 } else { blocks(baseline, text)? };
            Some(blocks(unit, text)? - before)
        });
        let losses = losses.collect::<Option<Vec<f64>>>()?;
        Some(losses.iter().sum::<f64>() / losses.len() as f64)
    };
    let own = opened.units.iter().filter(|unit| unit.settings.is_some() && !unit.twin);
    let (unit, loss) = own.filter_map(|unit| Some((unit, loss(unit)?))).min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(format!("{} ({})", label(unit, axes), measure.change(loss)))
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
    if let Some(timed) = &line.timed {
        return format!("{name} {:.1} tokens/s", timed.tokens_per_second());
    }
    let perplexity = |line: &Line| line.measured.as_ref().map_or(f64::NAN, |measured| measured.perplexity);
    match baseline {
        Some(baseline) => format!("{name} x {:.4}", perplexity(line) / perplexity(baseline)),
        None => format!("{name} {:.4}", perplexity(line)),
    }
}

/// Where a configuration's checkpoint is made and kept.
struct Folders {
    work: PathBuf,
    kept: PathBuf,
}

impl Folders {
    fn of(results: &Path, unit: &Unit) -> Self {
        let kept = results.join("checkpoints").join(shared::name(unit));
        Self { work: shared::work_folder(results, unit), kept }
    }

    /// Removes what was made for this configuration only; what can't be removed is in nobody's way.
    fn clear(&self) {
        let _ = fs::remove_dir_all(&self.work);
        for file in [self.work.clone(), quantize::card::beside(&self.work)] {
            let _ = fs::remove_file(file);
        }
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
    let open = |path: &Path| Checkpoint::open(&path.to_string_lossy()).map(|made| made.computed(opened.file.compute));
    let known =
        contents.lines.values().find(|line| line.configuration == unit.configuration && line.quantized.is_some());
    if let (true, Some(quantized)) = (folders.kept.exists(), known.and_then(|line| line.quantized.clone())) {
        return Ok((open(&folders.kept)?, quantized));
    }
    let quantized = quantize(opened, unit, &folders.work, threads)?;
    let mut folder = &folders.work;
    if opened.file.keep {
        folder = &folders.kept;
        put_in_place(&folders.work, folder).map_err(StudyError::io(folder))?;
    }
    Ok((open(folder)?, quantized))
}

fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    if to.is_dir() {
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
        device: quantize::engine::Choice::Cpu,
        device_windows: None,
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
        codes: None,
    })
}

/// `checkpoint` on the evaluations of `cells`.
fn measured(
    evaluator: &mut Evaluator<'_>,
    opened: &Opened,
    cells: &[&Cell],
    checkpoint: &Checkpoint,
    line: &dyn Fn(&Cell) -> Line,
) -> Vec<Line> {
    let text = |cell: &Cell| &opened.texts[cell.text];
    let walked = match caught(|| Walked::over(checkpoint, cells.iter().map(|cell| text(cell)))) {
        Ok(walked) => walked,
        Err(error) => return cells.iter().map(|cell| failed(line(cell), &error)).collect(),
    };
    let mut measure = |cell: &&Cell| match caught(|| evaluator.measure(line(cell), checkpoint, text(cell), &walked)) {
        Ok(line) => Line { finished: now(), ..line },
        Err(error) => failed(line(cell), &error),
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
        timed: None,
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
