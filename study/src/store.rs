//! The results: one JSON object a line, one file a process, nothing ever rewritten.
//!
//! ```text
//! STUDY.results/plan.json              what the study's cells are (of the last `study run`)
//! STUDY.results/cells-*.jsonl          a line for each cell that was measured or failed, see [`Line`]
//! STUDY.results/cells.parquet          all of them in one table, see [`crate::export`]; written when a run ends
//! STUDY.results/work/                  the quantization at work; empty between runs
//! STUDY.results/checkpoints/           with `keep = true`
//! ```
//!
//! Each process appends to a file of its own, one write and one flush to disk a line, so that any number of them, on any
//! file system, need no lock. A line that a crash cut short is recognised and passed over: its cell is computed again.
//! Of several lines for a cell the first that was measured counts; a failed one counts while there is none.

use crate::{StudyError, measure::Measure, places::Place, settings::Settings, speed::Timed};
use evaluate::{Measurement, statistics::Block, task::Metric};
use model::checkpoint::SourceFile;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

/// Version of [`Line`]; it rises when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// The result of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Key of the cell.
    pub cell: String,
    /// Key of the configuration, which cells on other texts share.
    pub configuration: String,
    /// Whether there is a measurement.
    pub status: Status,
    /// The model as the study calls it.
    pub model: String,
    /// What it was quantized with; none for the unquantized model.
    pub settings: Option<Settings>,
    /// The evaluation's name.
    pub evaluation: String,
    /// The text it was measured on.
    pub text: EvaluatedText,
    /// The model's files.
    pub model_files: Vec<SourceFile>,
    /// The calibration set.
    pub calibration: Option<CalibrationRecord>,
    /// What the quantization came to.
    pub quantized: Option<Quantized>,
    /// What was measured.
    #[serde(default)]
    pub measure: Measure,
    /// What the evaluation came to, where perplexity was measured.
    pub measured: Option<Measurement>,
    /// The same where the divergence from the unquantized model was.
    #[serde(default)]
    pub divergence: Option<Diverged>,
    /// The same where a task was.
    #[serde(default)]
    pub answers: Option<Answered>,
    /// The same where the clock was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timed: Option<Timed>,
    /// What each window (of a task: each item, or subject) contributes to the measure: for paired comparisons.
    pub blocks: Vec<Block>,
    /// Why it failed.
    pub error: Option<String>,
    /// Name and version of the tool.
    pub tool: String,
    /// Threads at work.
    pub threads: usize,
    /// When it was finished, in seconds since 1970.
    pub finished: u64,
}

/// How a cell ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// With a measurement.
    Measured,
    /// With an error.
    Failed,
}

/// A text as it was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedText {
    /// As the study names it.
    pub text: String,
    /// The protocol with all that departs from it as published.
    pub protocol: String,
    /// SHA-256 of its files.
    pub files_sha256: Vec<String>,
    /// SHA-256 after the protocol's text handling.
    pub prepared_sha256: String,
    /// SHA-256 of what is fed and scored.
    pub windows_sha256: String,
    /// Neighbouring windows that a bootstrap draws together.
    pub bootstrap_run: usize,
}

/// A calibration set in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// Windows.
    pub windows: usize,
    /// Tokens in them.
    pub tokens: usize,
    /// SHA-256 of their tokens.
    pub tokens_sha256: String,
    /// Where they came from.
    pub sources: Vec<SourceRecord>,
}

/// A source of a calibration set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The source.
    pub source: String,
    /// Its share of the windows.
    pub weight: f64,
    /// SHA-256 of its files.
    pub files_sha256: Vec<String>,
}

/// What a quantization came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// Bits per weight of the quantized linears on disk, scales, zero-points and group indices counted.
    pub bits_per_weight: Option<f64>,
    /// Bits per weight of the whole checkpoint.
    pub bits_per_weight_all: f64,
    /// Bytes of the checkpoint's tensors.
    pub bytes: u64,
    /// Mean relative output error on the calibration text.
    pub error: Option<f64>,
    /// The same of rounding to nearest.
    pub error_round_to_nearest: Option<f64>,
    /// Seconds it took.
    pub seconds: f64,
    /// A sample of its integers ([`crate::codes`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<String>,
}

/// Figures of a divergence from the unquantized model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diverged {
    /// Mean of KL(unquantized || model) over targets, in nats.
    pub mean: f64,
    /// Its median.
    pub median: f64,
    /// 99 % lie below.
    pub quantile_99: f64,
    /// The largest.
    pub largest: f64,
    /// Share of targets where both prefer the same token.
    pub same_top: f64,
    /// The mean by kind of token and by place in the window.
    #[serde(default)]
    pub places: Vec<Place>,
    /// Targets.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Seconds it took.
    pub seconds: f64,
}

/// Figures of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// The metric.
    pub metric: Metric,
    /// Its mean over items.
    pub score: f64,
    /// Items.
    pub items: usize,
    /// Seconds it took.
    pub seconds: f64,
}

impl Line {
    /// Seconds that measuring took.
    pub fn seconds_measuring(&self) -> Option<f64> {
        let measured = self.measured.as_ref().map(|measured| measured.seconds);
        let diverged = || self.divergence.as_ref().map(|diverged| diverged.seconds);
        let answered = || self.answers.as_ref().map(|answers| answers.seconds);
        measured.or_else(diverged).or_else(answered).or_else(|| Some(self.timed.as_ref()?.seconds.iter().sum()))
    }
}

/// A results folder.
pub struct Store {
    folder: PathBuf,
    file: Option<File>,
}

/// What a results folder holds.
#[derive(Default)]
pub struct Contents {
    /// The line that counts, by cell.
    pub lines: HashMap<String, Line>,
    /// Lines that a crash cut short.
    pub cut_short: usize,
}

impl Store {
    /// The results folder of the study at `path`.
    pub fn folder_of(path: &Path) -> PathBuf {
        path.with_extension("results")
    }

    /// The store in `folder`, which need not be there yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None }
    }

    /// Everything measured, as one Parquet table.
    pub fn table(&self) -> PathBuf {
        self.folder.join("cells.parquet")
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes `line` durable.
    pub fn append(&mut self, line: &Line) -> Result<(), StudyError> {
        let mut text = serde_json::to_string(line).expect("a line is plain data");
        text.push('\n');
        let folder = self.folder.clone();
        let file = self.own_file()?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(StudyError::io(folder))
    }

    /// This process's file: made at the first line, and nobody else's.
    fn own_file(&mut self) -> Result<&mut File, StudyError> {
        if self.file.is_none() {
            fs::create_dir_all(&self.folder).map_err(StudyError::io(&self.folder))?;
            let name = format!("cells-{:x}-{}.jsonl", now_nanoseconds(), process::id());
            let path = self.folder.join(name);
            let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(StudyError::io(&path))?;
            self.file = Some(file);
        }
        Ok(self.file.as_mut().expect("was just made"))
    }

    /// Everything in the store.
    pub fn read(&self) -> Result<Contents, StudyError> {
        let mut contents = Contents::default();
        for path in self.files()? {
            let text = fs::read(&path).map_err(StudyError::io(&path))?;
            for (number, bytes) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
                if bytes.last() != Some(&b'\n') {
                    contents.cut_short += 1;
                    continue;
                }
                let damaged = |what: String| StudyError::Store { path: path.clone(), line: number + 1, what };
                let line: Line = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
                if line.schema != SCHEMA {
                    return Err(damaged(format!("it has schema {}, and this program reads {SCHEMA}", line.schema)));
                }
                contents.add(line);
            }
        }
        Ok(contents)
    }

    /// The files of all processes, the oldest first.
    fn files(&self) -> Result<Vec<PathBuf>, StudyError> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.folder).map_err(StudyError::io(&self.folder))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
        let mut paths = paths.map_err(StudyError::io(&self.folder))?;
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("cells-") && name.ends_with(".jsonl")
        };
        paths.retain(ours);
        paths.sort();
        Ok(paths)
    }
}

impl Contents {
    /// Takes in `line`, which counts or not by the rule above.
    pub fn add(&mut self, line: Line) {
        match self.lines.get(&line.cell) {
            Some(known) if known.status == Status::Measured => {}
            _ => drop(self.lines.insert(line.cell.clone(), line)),
        }
    }

    /// The line of `cell`, if it was measured.
    pub fn measured(&self, cell: &str) -> Option<&Line> {
        self.lines.get(cell).filter(|line| line.status == Status::Measured)
    }

    /// The line of `cell`, if it failed and was not measured since.
    pub fn failed(&self, cell: &str) -> Option<&Line> {
        self.lines.get(cell).filter(|line| line.status == Status::Failed)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Nanoseconds since 1970.
pub fn now_nanoseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A line without settings, measured with these blocks, or failed where there are none.
    pub(crate) fn line(cell: &str, evaluation: &str, sums: &[f64]) -> Line {
        let status = if sums.is_empty() { Status::Failed } else { Status::Measured };
        let log_perplexity = sums.iter().sum::<f64>() / sums.len().max(1) as f64;
        Line {
            schema: SCHEMA,
            cell: cell.to_owned(),
            configuration: format!("of-{cell}"),
            status,
            model: "demo".to_owned(),
            settings: None,
            evaluation: evaluation.to_owned(),
            text: EvaluatedText {
                text: evaluation.to_owned(),
                protocol: "gptq-2048".to_owned(),
                files_sha256: Vec::new(),
                prepared_sha256: String::new(),
                windows_sha256: String::new(),
                bootstrap_run: 1,
            },
            model_files: Vec::new(),
            calibration: None,
            quantized: None,
            measure: Measure::Perplexity,
            divergence: None,
            answers: None,
            timed: None,
            measured: (!sums.is_empty()).then(|| Measurement {
                perplexity: log_perplexity.exp(),
                standard_error: None,
                interval_95: None,
                log_perplexity,
                bits_per_byte: None,
                byte_perplexity: None,
                bytes_scored: 0,
                tokens_scored: 0,
                unique_tokens_scored: 0,
                windows: sums.len(),
                seconds: 1.0,
                tokens_per_second: 1.0,
            }),
            blocks: sums.iter().map(|&sum| Block { sum, weight: 1.0 }).collect(),
            error: sums.is_empty().then(|| "disk on fire".to_owned()),
            tool: "test".to_owned(),
            threads: 1,
            finished: 0,
        }
    }

    #[test]
    fn what_is_appended_is_read_back_from_all_processes() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (Store::new(folder.path()), Store::new(folder.path()));
        one.append(&line("a", "prose", &[1.0, 2.0])).unwrap();
        other.append(&line("b", "prose", &[3.0])).unwrap();
        one.append(&line("c", "prose", &[])).unwrap();
        let contents = one.read().unwrap();
        assert_eq!(contents.lines.len(), 3);
        assert_eq!(contents.lines["a"], line("a", "prose", &[1.0, 2.0]));
        assert!(contents.failed("c").is_some() && contents.measured("c").is_none());
    }

    #[test]
    fn a_measurement_counts_over_failures_and_the_first_over_later_ones() {
        let mut contents = Contents::default();
        contents.add(line("a", "prose", &[]));
        contents.add(line("a", "prose", &[1.0]));
        contents.add(line("a", "prose", &[2.0]));
        contents.add(line("a", "prose", &[]));
        assert_eq!(contents.measured("a").unwrap().blocks[0].sum, 1.0);
    }

    #[test]
    fn a_line_cut_short_is_passed_over_and_a_damaged_one_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::new(folder.path());
        store.append(&line("a", "prose", &[1.0])).unwrap();
        let path = store.files().unwrap().remove(0);
        let whole = fs::read(&path).unwrap();
        let half = [whole.clone(), whole[..whole.len() / 2].to_vec()].concat();
        fs::write(&path, half).unwrap();
        let contents = store.read().unwrap();
        assert_eq!((contents.lines.len(), contents.cut_short), (1, 1));
        fs::write(&path, [whole, b"{}\n".to_vec()].concat()).unwrap();
        let error = store.read().err().unwrap().to_string();
        assert!(error.contains("line 2") && error.contains("remove the line"), "{error}");
    }

    #[test]
    fn a_store_that_is_not_there_is_empty() {
        assert!(Store::new(Path::new("/not/there")).read().unwrap().lines.is_empty());
        assert_eq!(Store::folder_of(Path::new("a/b.toml")), Path::new("a/b.results"));
    }
}
