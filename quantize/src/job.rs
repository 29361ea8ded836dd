//! The whole run: open, plan, estimate, solve block by block, write, prove, publish.

use crate::{
    Journal, LayerReport, Matrix, Options, Outcome, QuantizeError, ValidPlan, blocks,
    card::{self, Provenance},
    files,
    fold::Tensors,
    gguf,
    journal::Solved,
    preflight::{self, Cost},
    prove::{self, Proof},
    report::{CalibrationSummary, Output, Parts, Totals, mean_error},
    resident, rtn,
    sweep::{Member, sweep},
    visitor::{self, Quantizer},
};
use calibration::{CalibrationSet, DriveReport, captured::Statistics, domain::Domain, driver};
use console::{Progress, machine};
use kernels::{Engine, QuantSpec, engine::Choice};
use model::{
    Checkpoint, Linear, ModelError, Stage,
    format::{
        self, QuantizedModule, Target,
        gguf::imatrix::{self, Importance},
    },
};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The model.
    pub model: String,
    /// Where the checkpoint goes.
    pub out: PathBuf,
    /// What shapes it.
    pub options: Options,
    /// Threads at work.
    pub threads: usize,
    /// Most memory to take, in bytes.
    pub memory: Option<u64>,
    /// Whether `out` may be replaced.
    pub overwrite: bool,
    /// Where the sums of squared activations go, as an importance matrix.
    pub save_imatrix: Option<PathBuf>,
    /// Where weights are solved and, as far as it can, the model runs.
    pub device: Choice,
    /// Windows whose activations stay on the device, where not as many as fit.
    pub device_windows: Option<usize>,
}

/// A run that can start.
pub struct Job {
    /// What was asked.
    pub request: Request,
    /// The model.
    pub checkpoint: Checkpoint,
    /// The plan.
    pub plan: ValidPlan,
    /// The calibration set.
    pub calibration: Option<CalibrationSet>,
    /// Mean squared activations from a file.
    pub importance: Option<Importance>,
    /// What it will take.
    pub cost: Cost,
    /// Everything that shapes the output, hashes included: what must be equal for work to go on.
    pub identity: Value,
    /// When it began.
    pub started: Instant,
    /// Where weights are solved and the model runs.
    pub engine: Engine,
    /// What that is, for people.
    pub device: String,
    /// Windows whose activations stay on the device.
    pub device_windows: usize,
}

impl Job {
    /// Opens the model, settles the plan, cuts the calibration text and estimates the cost; writes nothing.
    pub fn prepare(request: Request) -> Result<Self, QuantizeError> {
        let started = Instant::now();
        if request.out.exists() && !request.overwrite && !Journal::folder_of(&request.out).exists() {
            return Err(QuantizeError::OutputExists { path: request.out });
        }
        let (engine, device) = request.device.open()?;
        let checkpoint = Checkpoint::open(&request.model)?.computed(request.options.compute);
        let mut plan = request.options.clone().check(&checkpoint.config)?;
        check_names(&request, &plan)?;
        check_room(&engine, &plan)?;
        check_solver(&engine, &plan)?;
        let calibration = calibration_set(&plan.options, &checkpoint)?;
        let imatrix = plan.options.imatrix.as_ref().map(PathBuf::from);
        let importance = imatrix.as_ref().map(|path| read_importance(path, &checkpoint, &plan)).transpose()?;
        let imatrix_sha256 = imatrix.as_ref().map(|path| model::text::sha256_of_file(path)).transpose()?;
        if let Some(set) = &calibration {
            plan.warnings.extend(adequacy(&checkpoint, set));
        }
        let windows = calibration.as_ref().map_or(&[][..], |set| &set.windows);
        let device_windows = resident::windows(&engine, &checkpoint, &plan, windows, request.device_windows)?;
        let mut cost = preflight::estimate(&checkpoint, &plan, windows, request.threads, request.memory, &request.out)?;
        let on_device = resident::captures(&engine, &checkpoint);
        if on_device && calibration.is_some() {
            cost.seconds = None;
            cost.memory += preflight::read_ahead(&plan);
        }
        let mut identity = json!({
            "tool": card::TOOL,
            "model": request.model,
            "model_files": checkpoint.source_files()?,
            "settings": plan.options,
            "calibration": calibration.as_ref().map(|set| &set.manifest),
        });
        if matches!(engine, Engine::Cuda(_)) && calibration.is_some() {
            identity["worked_on"] = "cuda".into();
        }
        if let Some(hash) = imatrix_sha256 {
            identity["imatrix_sha256"] = hash.into();
        }
        Ok(Self {
            request,
            checkpoint,
            plan,
            calibration,
            importance,
            cost,
            identity,
            started,
            engine,
            device,
            device_windows,
        })
    }

    /// The effective settings and what to know about them, a line each.
    pub fn describe(&self) -> String {
        let mut lines = vec![format!("model: {}", self.request.model)];
        lines.extend(self.plan.options.described().into_iter().map(|(name, value)| format!("{name}: {value}")));
        if let Some(set) = &self.calibration {
            let windows = &self.plan.options.windows;
            lines.push(format!(
                "calibration: {} ({} windows, {} tokens, {}, seed {})",
                self.plan.options.calibration.join(", "),
                set.windows.len(),
                set.tokens(),
                card::name_of(&windows.packing),
                windows.seed
            ));
        }
        lines.push(format!("threads: {}", self.request.threads));
        if self.request.device != Choice::Cpu {
            lines.push(format!("device: {}", self.device));
            if let (Engine::Cuda(_), Some(set)) = (&self.engine, &self.calibration) {
                lines.push(resident::describe(&self.checkpoint, self.device_windows, set.windows.len()));
            }
        }
        lines.push(format!("out: {}", self.request.out.display()));
        lines.extend(self.plan.warnings.iter().map(|warning| format!("warning: {warning}")));
        let journal = Journal::folder_of(&self.request.out);
        if journal.exists() {
            lines.push(format!("going on with {}", journal.display()));
        }
        lines.join("\n")
    }

    /// Does the work. Killed at any moment and started again, it goes on after the last finished block.
    pub fn run(&self) -> Result<Outcome, QuantizeError> {
        self.run_by(|journal, resumed| self.solve(journal, resumed))
    }

    /// The same on statistics that were captured before, whatever text the options name.
    pub fn run_on(&self, statistics: &dyn Statistics) -> Result<Outcome, QuantizeError> {
        self.run_by(|journal, _| {
            let mut progress = Progress::new("solving", self.plan.blocks() as u64, 0);
            let members = [Member { plan: &self.plan, journal }];
            let solved = sweep(&self.checkpoint, &members, statistics, &mut |block| {
                progress.step(&format!("block {block}"));
            });
            progress.finish();
            solved.map(|()| None)
        })
    }

    fn run_by(
        &self,
        solve: impl Fn(&Journal, usize) -> Result<Option<DriveReport>, QuantizeError>,
    ) -> Result<Outcome, QuantizeError> {
        self.cost.check()?;
        let out = &self.request.out;
        if out.exists() && !self.request.overwrite {
            return self.finish_published();
        }
        let journal = Journal::open(out, &self.identity, self.request.overwrite)?;
        let resumed = (0..self.plan.blocks()).filter(|&block| journal.has(block)).count();
        let walking = Instant::now();
        let walk = solve(&journal, resumed)?;
        let walked = walking.elapsed().as_secs_f64();
        let modules = self.reports(&journal)?;
        let unpublished = self.unpublished(&journal);
        let writing = Instant::now();
        let proof = self.write_and_prove(&unpublished, &journal, &modules)?;
        let writing = writing.elapsed().as_secs_f64();
        files::publish(&unpublished, out, &journal.folder().join("replaced"))?;
        let mut outcome = self.outcome(modules, Some(proof))?;
        let tokens = outcome.calibration.as_ref().map(|set| set.tokens);
        outcome.totals.tokens_per_second = tokens.filter(|_| resumed == 0).map(|tokens| tokens as f64 / walked);
        outcome.totals.blocks_resumed = resumed;
        outcome.totals.parts = walk.map(|walk| Parts::of(&walk, writing));
        journal.remove()?;
        Ok(outcome)
    }

    /// The process died between publishing and clearing up: what is published is complete and proven.
    fn finish_published(&self) -> Result<Outcome, QuantizeError> {
        let out = &self.request.out;
        let first = files::place(out, &self.plan.options.formats, self.plan.options.formats[0]);
        let (_, modules) = card::read_record(&first)
            .filter(|(plan, _)| *plan == self.identity)
            .ok_or_else(|| QuantizeError::OutputExists { path: out.clone() })?;
        Journal::open(out, &self.identity, false)?.remove()?;
        self.outcome(modules, None)
    }

    fn solve(&self, journal: &Journal, resumed: usize) -> Result<Option<DriveReport>, QuantizeError> {
        if self.request.save_imatrix.is_some() && resumed > 0 {
            let what = "--save-imatrix needs all blocks in one run, but some are done: start afresh with --overwrite after removing";
            return Err(QuantizeError::Option(format!("{what} {}", journal.folder().display())));
        }
        let done = self.plan.quantized().filter(|module| journal.has(module.block)).count();
        let mut progress = Progress::new("quantizing", self.plan.quantized().count() as u64, done as u64);
        let walk = match &self.calibration {
            _ if resumed == self.plan.blocks() => None,
            Some(set) => Some(self.walk(set, journal, &mut progress)?),
            None => {
                self.round_all(journal, &mut progress)?;
                None
            }
        };
        progress.finish();
        Ok(walk)
    }

    fn walk(
        &self,
        set: &CalibrationSet,
        journal: &Journal,
        progress: &mut Progress,
    ) -> Result<DriveReport, QuantizeError> {
        let options = driver::DriverOptions {
            inputs: self.plan.options.inputs,
            sequence: self.plan.options.sequence,
            compare_original: self.plan.options.corrects(),
            activation_bytes_in_memory: usize::try_from(self.cost.activations_in_memory).unwrap_or(usize::MAX),
            spill_folder: journal.folder().to_owned(),
            engine: self.engine.clone(),
            device_windows: self.device_windows,
        };
        let mut quantizer = Quantizer::new(&self.plan, journal, self.importance.as_ref(), progress, &self.engine);
        let walk = driver::drive(&self.checkpoint, &set.windows, &options, &mut quantizer);
        let walk = walk.map_err(QuantizeError::from_driver)?;
        let Some(path) = &self.request.save_imatrix else { return Ok(walk) };
        let longest = set.windows.iter().map(Vec::len).max().unwrap_or(0);
        let (config, sources) = (&self.checkpoint.config, &self.plan.options.calibration);
        imatrix::write(path, config, &quantizer.sums, sources, set.windows.len(), longest)?;
        Ok(walk)
    }

    /// Rounding without inputs needs no walk, only the weights.
    fn round_all(&self, journal: &Journal, progress: &mut Progress) -> Result<(), QuantizeError> {
        for index in (0..self.plan.blocks()).filter(|&index| !journal.has(index)) {
            let linears = self.linears_of(index)?;
            let solved = linears
                .par_iter()
                .filter_map(|linear| Some(self.round(linear, self.plan.spec_of(&linear.name)?)))
                .collect::<Result<Vec<_>, _>>()?;
            journal.store_part(index, 0, &solved)?;
            journal.close(index, 1, &Tensors::new())?;
            for (_, report) in &solved {
                progress.step(&report.module);
            }
        }
        Ok(())
    }

    fn round(&self, linear: &Linear, spec: &QuantSpec) -> Result<Solved, QuantizeError> {
        let Some(kind) = self.plan.blocks_of(&linear.name) else {
            return rtn::round(linear, spec, &self.engine).map(|(matrix, report)| (matrix.into(), report));
        };
        let importance = self.importance.as_ref().and_then(|known| known.get(&linear.name)).map(Vec::as_slice);
        blocks::round(linear, kind, importance).map(|(matrix, report)| (matrix.into(), report))
    }

    /// The linears of block `index`, or the head if it is counted as that block.
    fn linears_of(&self, index: usize) -> Result<Vec<Linear>, QuantizeError> {
        if index == self.checkpoint.config.layers.len() {
            return Ok(vec![visitor::head_linear(&self.checkpoint.head()?)]);
        }
        let block = self.checkpoint.block(index)?;
        Ok(Stage::ALL.iter().flat_map(|&stage| block.linears(stage).iter().cloned()).collect())
    }

    fn reports(&self, journal: &Journal) -> Result<Vec<LayerReport>, QuantizeError> {
        let mut reports = Vec::new();
        for block in 0..self.plan.blocks() {
            reports.extend(journal.load(block)?.iter().map(|(_, report)| report.clone()));
        }
        Ok(reports)
    }

    /// The float tensors that became others, of all blocks.
    fn folded(&self, journal: &Journal) -> Result<Tensors, QuantizeError> {
        let mut tensors = Tensors::new();
        for block in 0..self.plan.blocks() {
            tensors.extend(journal.tensors(block)?.iter().map(|(name, values)| (name.clone(), values.clone())));
        }
        Ok(tensors)
    }

    /// Where the output is put together.
    fn unpublished(&self, journal: &Journal) -> PathBuf {
        files::unpublished(journal.folder(), &self.plan.options.formats)
    }

    /// Every format into `out`, each read back and compared.
    fn write_and_prove(&self, out: &Path, journal: &Journal, modules: &[LayerReport]) -> Result<Proof, QuantizeError> {
        if out.is_dir() {
            fs::remove_dir_all(out).map_err(QuantizeError::io(out))?;
        }
        if self.plan.options.formats.len() > 1 {
            fs::create_dir_all(out).map_err(QuantizeError::io(out))?;
        }
        let mut proof = Proof::default();
        for &format in &self.plan.options.formats {
            let folder = files::place(out, &self.plan.options.formats, format);
            self.write(&folder, format, journal, modules)?;
            proof = proof.and(prove::prove(&folder, format, journal, &self.plan, &self.checkpoint)?);
        }
        Ok(proof)
    }

    fn write(
        &self,
        folder: &Path,
        format: Target,
        journal: &Journal,
        modules: &[LayerReport],
    ) -> Result<(), QuantizeError> {
        let quantized: Vec<QuantizedModule> = modules.iter().map(written_module).collect();
        let options = &self.plan.options;
        let manifest = self.calibration.as_ref().map(|set| &set.manifest);
        // The source with what the method folded into norms and biases.
        let folded = self.folded(journal)?;
        let replaced = (!folded.is_empty()).then(|| self.checkpoint.replacing(folded)).transpose()?;
        let load = |index: usize| load_module(journal, &self.plan, &modules[index].module);
        let contents = format::Contents {
            source: replaced.as_ref().unwrap_or(&self.checkpoint),
            spec: self.plan.spec,
            modules: &quantized,
            load: &load,
            meta: card::meta(options, manifest),
            damping: options.damping,
            true_sequential: options.sequence == calibration::Sequence::Module,
            shard_bytes: options.shard_bytes,
        };
        match options.block_mixture() {
            Some(mixture) => {
                let load = |name: &str| load_matrix(journal, &self.plan, name);
                gguf::write_solved(folder, mixture, contents.source, &self.plan.modules, &load, &contents.meta)?;
            }
            None => format::write(folder, format, &contents)?,
        }
        let model = &self.request.model;
        card::write(folder, &Provenance { model, options, format, plan: &self.identity, manifest, modules })
    }

    fn outcome(&self, modules: Vec<LayerReport>, proof: Option<Proof>) -> Result<Outcome, QuantizeError> {
        let out = &self.request.out;
        let formats = &self.plan.options.formats;
        let outputs = formats.iter().map(|format| Output::measure(*format, &files::place(out, formats, *format)));
        let all: Vec<&LayerReport> = modules.iter().collect();
        let totals = Totals {
            modules: modules.len(),
            error_round_to_nearest: mean_error(&all, |module| module.error_round_to_nearest),
            error: mean_error(&all, |module| module.error),
            seconds: self.started.elapsed().as_secs_f64(),
            parts: None,
            tokens_per_second: None,
            peak_memory: machine::peak_memory(),
            blocks_resumed: self.plan.blocks(),
        };
        Ok(Outcome {
            model: self.request.model.clone(),
            out: out.clone(),
            settings: self.plan.options.clone(),
            calibration: self.calibration.as_ref().map(|set| CalibrationSummary::of(&set.manifest)),
            modules,
            outputs: outputs.collect::<Result<_, _>>()?,
            totals,
            proof,
            warnings: self.plan.warnings.clone(),
        })
    }
}

fn calibration_set(options: &Options, checkpoint: &Checkpoint) -> Result<Option<CalibrationSet>, QuantizeError> {
    if options.calibration.is_empty() {
        return Ok(None);
    }
    let domains = options.calibration.iter().map(|text| Domain::parse(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(CalibrationSet::build(&domains, &options.windows, checkpoint)?))
}

fn written_module(report: &LayerReport) -> QuantizedModule {
    QuantizedModule { name: report.module.clone(), outputs: report.outputs, inputs: report.inputs, spec: report.spec }
}

fn load_module(journal: &Journal, plan: &ValidPlan, name: &str) -> Result<kernels::QuantizedMatrix, ModelError> {
    found(journal, plan, name, |matrix| matrix.grid(name).cloned())
}

fn load_matrix(journal: &Journal, plan: &ValidPlan, name: &str) -> Result<Matrix, ModelError> {
    found(journal, plan, name, |matrix| Ok(matrix.clone()))
}

fn found<T>(
    journal: &Journal,
    plan: &ValidPlan,
    name: &str,
    take: impl FnOnce(&Matrix) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let missing = |what: String| ModelError::Tensor { tensor: name.to_owned(), what };
    let module =
        plan.modules.iter().find(|m| m.name == name).ok_or_else(|| missing("is not in the plan".to_owned()))?;
    let block = journal.load(module.block).map_err(|error| missing(error.to_string()))?;
    let solved = block.iter().find(|(_, report)| report.module == name);
    solved.map_or_else(|| Err(missing("is not in the journal".to_owned())), |(matrix, _)| take(matrix))
}

/// Refuses a device that lacks the library for factors where the method needs them.
fn check_solver(engine: &Engine, plan: &ValidPlan) -> Result<(), QuantizeError> {
    match engine {
        Engine::Cuda(device) if plan.options.method.compensates() => Ok(device.require_solver()?),
        _ => Ok(()),
    }
}

/// Refuses a weight that the device is to solve and has no memory for.
fn check_room(engine: &Engine, plan: &ValidPlan) -> Result<(), QuantizeError> {
    for module in plan.quantized() {
        if let (Some(spec), None) = (&module.spec, module.blocks) {
            engine.check_room(module.outputs, module.inputs, spec)?;
        }
    }
    Ok(())
}

/// Refuses names that don't fit what they are for.
fn check_names(request: &Request, plan: &ValidPlan) -> Result<(), QuantizeError> {
    let refuse = |what: String| Err(QuantizeError::Option(what));
    files::check_name(&request.out, &plan.options.formats)?;
    if request.save_imatrix.is_some() && plan.options.calibration.is_empty() {
        return refuse("--save-imatrix needs text to measure activations on: give --calibration FILE".to_owned());
    }
    Ok(())
}

/// The importance matrix at `path`, which must speak of every module in its width.
fn read_importance(path: &Path, checkpoint: &Checkpoint, plan: &ValidPlan) -> Result<Importance, QuantizeError> {
    let importance = imatrix::read(path, &checkpoint.config)?;
    for module in plan.quantized() {
        let what = match importance.get(&module.name) {
            Some(values) if values.len() == module.inputs => continue,
            Some(values) => format!("has {} columns in it, but {} in the model", values.len(), module.inputs),
            None => "is not in it".to_owned(),
        };
        let what = format!("`{}` {what}; it is of another model, or leave the module out with --skip", module.name);
        return Err(ModelError::malformed(path, what).into());
    }
    Ok(importance)
}

/// Whether there are tokens enough for the widths of the model, known before any work; the same width is spoken of once.
fn adequacy(checkpoint: &Checkpoint, set: &CalibrationSet) -> Vec<String> {
    let mut checks = calibration::adequacy::check_tokens(&checkpoint.config, set.tokens());
    checks.sort_by_key(|check| check.width);
    checks.dedup_by_key(|check| check.width);
    checks.into_iter().filter_map(|check| check.warning).collect()
}
