//! A study with everything it names opened, cut and hashed: what there is to compute, under the key of each result.
//!
//! ```text
//! configuration key = hash of: tool and version, hashes of the model's files, settings, tokens of the calibration windows
//! cell key          = hash of: configuration key, windows fed and scored, text and title of the protocol
//! ```
//!
//! Names and paths are in neither, so that renaming a set or moving a file computes nothing again. The unquantized model
//! is a configuration like any other, without settings.

use crate::{
    StudyError,
    file::{Evaluation, Lines, StudyFile, model_from, text_from},
    measure::Measure,
    part,
    questions::Questions,
    settings::{self, Settings},
    speed,
    store::{CalibrationRecord, EvaluatedText, SourceRecord},
};
use calibration::{CalibrationSet, domain::Domain};
use evaluate::{
    Prepared, Protocol,
    protocol::{Changes, TextHandling},
    source::{Source, sha256},
};
use model::{Checkpoint, checkpoint::SourceFile};
use quantize::{Compute, Options, ValidPlan};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Name and version of the tool, part of every key.
pub const TOOL: &str = concat!("caliper ", env!("CARGO_PKG_VERSION"));

/// A model that is open.
pub struct OpenedModel {
    /// The model.
    pub checkpoint: Checkpoint,
    /// Its files with their hashes.
    pub files: Vec<SourceFile>,
}

/// An evaluation made ready for a model.
pub struct PreparedText {
    /// The evaluation's name.
    pub name: String,
    /// The model it is cut for.
    pub model: String,
    /// What is measured.
    pub measure: Measure,
    /// What the model is given.
    pub given: Given,
    /// What results say of it.
    pub record: EvaluatedText,
}

/// What a model is given in an evaluation.
pub enum Given {
    /// A text in windows.
    Text(Box<Prepared>),
    /// A task's questions.
    Task(Box<Questions>),
}

impl PreparedText {
    /// The windows of its text.
    pub fn text(&self) -> Option<&Prepared> {
        match &self.given {
            Given::Text(prepared) => Some(prepared),
            Given::Task(_) => None,
        }
    }

    /// Tokens that go through the model.
    pub fn tokens_fed(&self) -> usize {
        match &self.given {
            Given::Text(prepared) if self.measure.is_timed() => speed::RUNS * prepared.tokens_fed(),
            Given::Text(prepared) => prepared.tokens_fed(),
            Given::Task(questions) => questions.tokens_fed(),
        }
    }

    /// How much there is of it, in words.
    pub fn extent(&self) -> String {
        match &self.given {
            Given::Text(prepared) => {
                format!("{} windows, {} tokens scored", prepared.windows.len(), prepared.tokens_scored())
            }
            Given::Task(questions) => format!("{} questions, {} tokens", questions.count(), questions.tokens_fed()),
        }
    }
}

/// A configuration and the evaluations it is measured on.
pub struct Unit {
    /// Key of the configuration.
    pub configuration: String,
    /// The model as the study calls it.
    pub model: String,
    /// The settings; `None` for the unquantized model.
    pub settings: Option<Settings>,
    /// The options of `quantize`.
    pub options: Option<Options>,
    /// The options held against the model.
    pub plan: Option<ValidPlan>,
    /// The calibration windows.
    pub calibration: Option<Arc<CalibrationSet>>,
    /// Whether it is there only to measure another's shortcut against: the same settings in true sequence.
    pub twin: bool,
    /// Its cells.
    pub cells: Vec<Cell>,
}

/// A configuration on an evaluation.
pub struct Cell {
    /// Its key.
    pub key: String,
    /// Index among [`Opened::texts`].
    pub text: usize,
}

/// A study that is open.
pub struct Opened {
    /// The file.
    pub file: StudyFile,
    /// Its text.
    pub text: String,
    /// The folder that its paths are meant from.
    pub folder: PathBuf,
    /// Models by the study's names.
    pub models: BTreeMap<String, OpenedModel>,
    /// Every evaluation text, for every model.
    pub texts: Vec<PreparedText>,
    /// What there is to compute: unquantized models first.
    pub units: Vec<Unit>,
    /// Combinations that the grids have, before any was left out.
    pub crossed: usize,
    /// Combinations that were excluded.
    pub excluded: usize,
    /// What keeps the study from being run.
    pub problems: Vec<String>,
    /// What to know before it is run.
    pub warnings: Vec<String>,
}

/// Calibration sets that were cut, by model, name, windows, length and seed.
type Sets = HashMap<(String, String, usize, usize, u64), Result<Arc<CalibrationSet>, String>>;

impl Opened {
    /// Opens everything that the study at `path` names. What is wrong with single parts is kept in
    /// [`Opened::problems`], so that all of it is seen at once.
    pub fn new(path: &Path) -> Result<Self, StudyError> {
        let (file, text) = StudyFile::read(path)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::of(file, text, folder)
    }

    /// Opens everything that `file` names, paths from `folder` on.
    pub fn of(file: StudyFile, text: String, folder: PathBuf) -> Result<Self, StudyError> {
        let combinations = settings::combinations(&file)?;
        let mut opened = Self {
            file,
            text,
            folder,
            models: BTreeMap::new(),
            texts: Vec::new(),
            units: Vec::new(),
            crossed: combinations.crossed,
            excluded: combinations.excluded,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        opened.check_names();
        opened.open_models(&combinations.distinct);
        opened.prepare_texts();
        let distinct = opened.expanded(combinations.distinct);
        opened.settle(distinct);
        opened.problems.dedup();
        Ok(opened)
    }

    /// Refuses a study with problems.
    pub fn check(&self) -> Result<(), StudyError> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(StudyError::Problems { problems: self.problems.clone() })
    }

    fn check_names(&mut self) {
        if self.file.evaluation.is_empty() {
            self.problems.push("there is no [evaluation.NAME]: nothing would be measured".to_owned());
        }
        for (name, evaluation) in &self.file.evaluation {
            if let Some(domain) =
                evaluation.domain.as_ref().filter(|domain| !self.file.calibration.contains_key(*domain))
            {
                self.problems.push(format!("evaluation.{name}: its domain `{domain}` is no calibration set"));
            }
        }
        for (name, set) in self.file.calibration.iter().filter(|(_, set)| set.sources.is_empty()) {
            self.problems.push(format!("calibration.{name}: it has no sources ({} windows)", set.samples));
        }
    }

    fn open_models(&mut self, settings: &[Settings]) {
        for settings in settings {
            if self.models.contains_key(&settings.model) {
                continue;
            }
            let opened = Checkpoint::open(&model_from(&self.folder, &settings.model))
                .map(|checkpoint| checkpoint.computed(self.file.compute))
                .and_then(|checkpoint| Ok(OpenedModel { files: checkpoint.source_files()?, checkpoint }));
            match opened {
                Ok(model) => drop(self.models.insert(settings.model.clone(), model)),
                Err(error) => self.problems.push(format!("model {}: {error}", settings.model)),
            }
        }
        self.problems.dedup();
    }

    fn prepare_texts(&mut self) {
        for (name, evaluation) in &self.file.evaluation {
            if let Some(problem) = evaluation.problem() {
                self.problems.push(format!("evaluation.{name}: {problem}"));
                continue;
            }
            let source = evaluation.text.as_ref().map(|text| {
                Source::read(&text_from(&self.folder, text), evaluation.field.as_deref()).map_err(StudyError::from)
            });
            let source = match source.transpose() {
                Ok(source) => source,
                Err(error) => {
                    self.problems.push(format!("evaluation.{name}: {error}"));
                    continue;
                }
            };
            for (model, opened) in &self.models {
                match given(evaluation, source.as_ref(), &self.folder, &opened.checkpoint) {
                    Ok((given, record)) => {
                        let (name, model, measure) = (name.clone(), model.clone(), evaluation.measure());
                        self.texts.push(PreparedText { name, model, measure, given, record });
                    }
                    Err(error) => self.problems.push(format!("evaluation.{name} for {model}: {error}")),
                }
            }
        }
    }

    /// `each layer` and the like as one combination for each.
    fn expanded(&self, combinations: Vec<Settings>) -> Vec<Settings> {
        let expanded = |settings: Settings| match (&settings.part, self.models.get(&settings.model)) {
            (Some(part), Some(model)) => {
                let parts = part::expanded(part, &model.checkpoint.config).into_iter();
                parts.map(|part| Settings { part: Some(part), ..settings.clone() }).collect()
            }
            _ => vec![settings],
        };
        combinations.into_iter().flat_map(expanded).collect()
    }

    /// A unit for each model and each combination that can be done.
    fn settle(&mut self, combinations: Vec<Settings>) {
        for model in self.models.keys().cloned().collect::<Vec<_>>() {
            let unit = self.unit(&model, None, None, None, None);
            self.units.push(unit);
        }
        let mut sets = Sets::new();
        let twins = if self.file.shortcut_check { settings::twins(&combinations) } else { Vec::new() };
        let all = combinations.into_iter().map(|settings| (settings, false));
        let all = all.chain(twins.into_iter().map(|settings| (settings, true)));
        for (settings, twin) in
            all.filter(|(settings, _)| self.models.contains_key(&settings.model)).collect::<Vec<_>>()
        {
            match self.configured(&settings, &mut sets) {
                Ok(unit) => self.keep(Unit { twin, ..unit }),
                Err(problem) if self.problems.contains(&problem) => {}
                Err(problem) => self.problems.push(problem),
            }
        }
        self.judge(&sets);
    }

    /// Two seeds that cut the same windows are one configuration.
    fn keep(&mut self, unit: Unit) {
        let Some(same) = self.units.iter().find(|known| known.configuration == unit.configuration) else {
            return self.units.push(unit);
        };
        let label = |unit: &Unit| {
            unit.settings.as_ref().map_or_else(String::new, |settings| settings.label(&["calibration", "seed"]))
        };
        let warning = format!(
            "`{}` and `{}` cut the same windows and count once: they are no replicates",
            label(same),
            label(&unit)
        );
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn configured(&self, settings: &Settings, sets: &mut Sets) -> Result<Unit, String> {
        let told = |error: &dyn std::fmt::Display| {
            format!("{}: {error}", settings.label(&["method", "bits", "group_size", "calibration"]))
        };
        let checkpoint = &self.models[&settings.model].checkpoint;
        let sources = settings.calibration.as_ref().map_or(&[][..], |name| &self.file.calibration[name].sources);
        let sources = sources.iter().map(|source| text_from(&self.folder, source)).collect();
        let options = settings.options(&self.file, sources).map_err(|error| error.to_string())?;
        let options = match &settings.part {
            Some(part) => part::applied(part, options, &checkpoint.config).map_err(|error| error.to_string())?,
            None => options,
        };
        let plan = options.clone().check(&checkpoint.config).map_err(|error| told(&error))?;
        let set = settings.calibration.as_ref().map(|name| {
            let windows = &options.windows;
            let key = (settings.model.clone(), name.clone(), windows.samples, windows.sequence_length, windows.seed);
            let cut =
                || cut(&options, checkpoint).map(Arc::new).map_err(|error| format!("calibration.{name}: {error}"));
            sets.entry(key).or_insert_with(cut).clone()
        });
        let set = set.transpose()?;
        Ok(self.unit(&settings.model, Some(settings.clone()), Some(options), Some(plan), set))
    }

    fn unit(
        &self,
        model: &str,
        settings: Option<Settings>,
        options: Option<Options>,
        plan: Option<ValidPlan>,
        calibration: Option<Arc<CalibrationSet>>,
    ) -> Unit {
        let model_files = &self.models[model].files;
        let configuration =
            configuration_key(model_files, settings.as_ref(), calibration.as_deref(), self.file.compute);
        // The unquantized model is what divergences are from.
        let measured = |text: &PreparedText| settings.is_some() || text.measure != Measure::Divergence;
        let texts = self.texts.iter().enumerate().filter(|(_, text)| text.model == model && measured(text));
        let cells = texts.map(|(index, text)| Cell { key: cell_key(&configuration, text), text: index }).collect();
        Unit { configuration, model: model.to_owned(), settings, options, plan, calibration, twin: false, cells }
    }

    /// Warns where calibration sets are too small for the model's widths.
    fn judge(&mut self, sets: &Sets) {
        let mut warnings: Vec<String> = Vec::new();
        for ((model, name, ..), set) in sets {
            let Ok(set) = set else { continue };
            let checks = calibration::adequacy::check_tokens(&self.models[model].checkpoint.config, set.tokens());
            let widest = checks.into_iter().filter(|check| check.warning.is_some()).max_by_key(|check| check.width);
            warnings
                .extend(widest.and_then(|check| check.warning).map(|warning| format!("calibration.{name}: {warning}")));
        }
        warnings.sort();
        warnings.dedup();
        self.warnings.extend(warnings);
    }

    /// How many cells there are.
    pub fn cells(&self) -> usize {
        self.units.iter().map(|unit| unit.cells.len()).sum()
    }
}

/// What `checkpoint` is given, and what results say of it.
fn given(
    evaluation: &Evaluation,
    source: Option<&Source>,
    folder: &Path,
    checkpoint: &Checkpoint,
) -> Result<(Given, EvaluatedText), StudyError> {
    if let Some(task) = &evaluation.task {
        let questions = Questions::prepare(task, evaluation, folder, checkpoint)?;
        let record = questions.record();
        return Ok((Given::Task(Box::new(questions)), record));
    }
    let (source, text) = source.zip(evaluation.text.as_ref()).expect("what is no task has a text");
    let prepared = prepare(evaluation, text, source, checkpoint)?;
    let record = EvaluatedText::of(text, source, &prepared);
    Ok((Given::Text(Box::new(prepared)), record))
}

fn prepare(
    evaluation: &Evaluation,
    text: &str,
    source: &Source,
    checkpoint: &Checkpoint,
) -> Result<Prepared, evaluate::EvaluateError> {
    let embedded = text.starts_with("demo:").then_some(TextHandling::Raw);
    let handling = evaluation.lines.map(|lines| match lines {
        Lines::Joined => TextHandling::Joined,
        Lines::Raw => TextHandling::Raw,
    });
    let changes = Changes {
        window: evaluation.window,
        stride: evaluation.stride,
        text: handling.or(embedded),
        max_tokens: evaluation.max_tokens,
    };
    let protocol = Protocol::named(&evaluation.protocol)?;
    Prepared::new(checkpoint, source, changes.resolve(protocol, checkpoint.config.max_positions)?)
}

fn cut(options: &Options, checkpoint: &Checkpoint) -> Result<CalibrationSet, calibration::CalibrationError> {
    let domains = options.calibration.iter().map(|source| Domain::parse(source)).collect::<Result<Vec<_>, _>>()?;
    CalibrationSet::build(&domains, &options.windows, checkpoint)
}

fn configuration_key(
    files: &[SourceFile],
    settings: Option<&Settings>,
    calibration: Option<&CalibrationSet>,
    compute: Compute,
) -> String {
    let settings = settings.map(|settings| {
        // What the windows are made of is in their tokens; the names are the study's own.
        let unnamed = Settings {
            model: String::new(),
            calibration: None,
            samples: None,
            sequence_length: None,
            seed: None,
            ..settings.clone()
        };
        serde_json::to_value(unnamed).expect("settings are plain data")
    });
    let calibration = calibration.map(|set| {
        let lengths: Vec<usize> = set.windows.iter().map(Vec::len).collect();
        json!({ "tokens_sha256": set.manifest.tokens_sha256, "lengths": lengths })
    });
    let files: Vec<&str> = files.iter().map(|file| file.sha256.as_str()).collect();
    let mut parts = json!({ "tool": TOOL, "model": files, "settings": settings, "calibration": calibration });
    if compute != Compute::F32 {
        parts["compute"] = json!(compute);
    }
    hash(&parts)
}

fn cell_key(configuration: &str, text: &PreparedText) -> String {
    let record = &text.record;
    let mut parts = json!({
        "configuration": configuration,
        "windows_sha256": record.windows_sha256,
        "prepared_sha256": record.prepared_sha256,
        "protocol": record.protocol,
    });
    if text.measure != Measure::Perplexity {
        parts["measure"] = json!(text.measure);
    }
    hash(&parts)
}

fn hash(value: &Value) -> String {
    sha256(value.to_string())
}

impl CalibrationRecord {
    /// Of `set`.
    pub fn of(set: &CalibrationSet) -> Self {
        let sources = set.manifest.sources.iter().map(|source| SourceRecord {
            source: source.source.clone(),
            weight: source.weight,
            files_sha256: source.files.iter().map(|file| file.sha256.clone()).collect(),
        });
        Self {
            windows: set.windows.len(),
            tokens: set.tokens(),
            tokens_sha256: set.manifest.tokens_sha256.clone(),
            sources: sources.collect(),
        }
    }
}

impl EvaluatedText {
    /// Of `prepared`, called `text` in the study.
    fn of(text: &str, source: &Source, prepared: &Prepared) -> Self {
        Self {
            text: text.to_owned(),
            protocol: prepared.resolved.title(),
            files_sha256: source.files.iter().map(|file| file.sha256.clone()).collect(),
            prepared_sha256: prepared.sha256.clone(),
            windows_sha256: prepared.windows_sha256(),
            bootstrap_run: prepared.bootstrap(0).run,
        }
    }
}
