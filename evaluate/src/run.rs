//! What `evaluate` does, from arguments to exit code.

use crate::{
    budget,
    cli::{Arguments, Command, Measure},
    comparison, show, tasks,
};
use anyhow::Context as _;
use clap::CommandFactory as _;
use console::{Exit, Progress, files::Output};
use evaluate::{
    Measurement, Prepared, Resolved,
    bands::Band,
    baseline::Baseline,
    compare::compare,
    divergence::{self, DivergenceReport},
    export,
    logits::{self, StoredLogits},
    page,
    protocol::{PROTOCOLS, Reduction},
    report::{Against, ModelReport, Results, TextReport},
    score::{self, score},
    source::Source,
    statistics::Block,
};
use kernels::{Compute, Engine, engine::Choice};
use model::{Checkpoint, decoder::device::obstacle};
use std::{io::Write as _, path::PathBuf, time::Instant};

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    match (arguments.command, arguments.measure) {
        (Some(Command::Protocols), _) => {
            print(&protocols())?;
            Ok(Exit::Done)
        }
        (Some(Command::Doctor { json }), _) => {
            console::doctor::run(evaluate::report::TOOL, &kernels::doctor::examine(), json)
        }
        (Some(Command::Tasks { data }), _) => show::list(&or_default(data)),
        (Some(Command::Show(mut show)), _) => {
            show.data = or_default(show.data);
            show::show(&show)
        }
        (Some(Command::Compare(compare)), _) => comparison::compare(&compare),
        (Some(Command::Generate { kind }), _) => {
            console::generated::write(kind, Arguments::command(), &mut std::io::stdout())?;
            Ok(Exit::Done)
        }
        (None, Some(mut measure)) => {
            measure.exports = arguments.exports;
            measure.put = arguments.put;
            measure.check();
            measure.data = or_default(measure.data);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(measure.threads.unwrap_or(0)).build()?;
            pool.install(|| evaluate(&measure, pool.current_num_threads()))
        }
        (None, None) => unreachable!("clap demands a model or a subcommand"),
    }
}

/// The data folders given, or where data lies otherwise.
fn or_default(data: Vec<PathBuf>) -> Vec<PathBuf> {
    if data.is_empty() { vec![evaluate::task::data::default_folder()] } else { data }
}

/// A result, to stdout.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("writing the result to stdout")
}

/// What is going on, to stderr.
#[allow(clippy::print_stderr)]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// The list of protocols for people.
fn protocols() -> String {
    PROTOCOLS.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A text cut for the model, and whatever of it is needed to report.
struct Text {
    source: Source,
    prepared: Prepared,
}

fn evaluate(measure: &Measure, threads: usize) -> anyhow::Result<Exit> {
    let output = match &measure.json {
        Some(Some(path)) => Some(Output::open(path).with_context(|| path.display().to_string())?),
        _ => None,
    };
    let (engine, device) = measure.device.open().context("--device")?;
    let checkpoint = Checkpoint::open(&measure.model)?.computed(measure.compute.into()).on(engine.clone());
    let theirs = measure.baseline_compute.unwrap_or(measure.compute).into();
    let baseline = measure.baseline.as_deref().map(|reference| Baseline::open(reference, theirs)).transpose()?;
    let baseline = baseline.map(|baseline| baseline.on(&engine));
    if let (Some(Baseline::Stored(_)), true) = (&baseline, measure.divergence) {
        anyhow::bail!("`--divergence` needs the baseline model itself: a result file holds no distributions");
    }
    let beside = match &baseline {
        Some(Baseline::Model(baseline)) => Some(baseline.as_ref()),
        Some(Baseline::Stored(_) | Baseline::Logits(_)) if measure.asks_tasks() => {
            anyhow::bail!(
                "`--tasks` needs the baseline model itself: a result file holds no answers; records of earlier \
                runs are compared by `evaluate compare`"
            )
        }
        _ => None,
    };
    let longest = baseline.iter().fold(checkpoint.config.max_positions, |n, base| n.min(base.longest()));
    let named: Vec<&str> = [Some(&checkpoint), beside].into_iter().flatten().map(|model| &*model.reference).collect();
    let files = measure.exports.open(&named)?;
    let resolved = measure.changes().resolve(measure.protocol, longest)?;
    let texts = prepare(measure, resolved, &checkpoint, baseline.as_ref())?;
    let tasks = Asked::prepare(measure, &checkpoint, beside)?;
    announce(measure, threads, resolved, &texts);
    announce_device(measure, &device, &[Some(&checkpoint), beside]);
    tasks.announce();

    let band = baseline.as_ref().and_then(|_| Band::of_checkpoint(&checkpoint));
    let band = band.filter(|_| resolved.protocol.reduction != Reduction::Words);
    let mut saving = saved(measure, &checkpoint, &texts)?;
    let mut reports = Vec::with_capacity(texts.len());
    for Text { source, prepared } in &texts {
        let (ours, theirs, divergence) = figures(measure, &checkpoint, baseline.as_ref(), prepared, &mut saving)?;
        let against = theirs.map(|(measurement, blocks)| Against {
            baseline: measurement,
            comparison: compare(prepared, &ours.1, &blocks, measure.seed, band),
            blocks,
            divergence,
        });
        reports.push(TextReport::new(source, prepared, ours, against));
    }
    if let Some(saving) = saving {
        saving.finish()?.commit(&[])?;
    }
    let done = tasks.run(measure, [Some(&checkpoint), beside])?;
    let layouts = done.layouts(measure, &named);

    let models =
        (describe(measure, &checkpoint)?, baseline.map(|baseline| describe_baseline(measure, baseline)).transpose()?);
    let results = Results::new(models, resolved, measure.seed, threads, reports, (done.reports, done.changes));
    let page = measure.exports.wants_page().then(|| page::of_run(&results)).transpose()?;
    files.commit(layouts, &export::rows(&results), page)?;
    deliver(measure, output, &results)?;
    let exceeded = measure.limit_ratio.is_some_and(|limit| results.worst_ratio().is_some_and(|ratio| ratio > limit));
    Ok(if exceeded { Exit::OutsideBound } else { Exit::Done })
}

/// The tasks of a run: as many items as were asked for, or as many as there is time for.
enum Asked {
    Items(Vec<tasks::Prepared>),
    Time(Vec<budget::Timed>),
}

impl Asked {
    fn prepare(measure: &Measure, checkpoint: &Checkpoint, baseline: Option<&Checkpoint>) -> anyhow::Result<Self> {
        if measure.capabilities {
            return budget::prepare(measure, baseline.is_some()).map(Self::Time);
        }
        tasks::prepare(measure, checkpoint, baseline).map(Self::Items)
    }

    fn announce(&self) {
        if let Self::Items(prepared) = self {
            tasks::announce(prepared);
        }
    }

    fn run(self, measure: &Measure, models: [Option<&Checkpoint>; 2]) -> anyhow::Result<tasks::Done> {
        match self {
            Self::Items(prepared) => tasks::run(measure, models, prepared),
            Self::Time(timed) => budget::run(measure, models, timed),
        }
    }
}

/// The file of log-probabilities, if one is to be written.
fn saved(measure: &Measure, checkpoint: &Checkpoint, texts: &[Text]) -> anyhow::Result<Option<logits::Writer<Output>>> {
    let Some(path) = &measure.save_logits else { return Ok(None) };
    let output = Output::open(path).with_context(|| path.display().to_string())?;
    let files = checkpoint.source_files()?;
    let model = ModelReport::new(checkpoint, files);
    let texts: Vec<&Prepared> = texts.iter().map(|text| &text.prepared).collect();
    let header = logits::Header::new(checkpoint, model, measure.logits_top.unwrap_or(logits::DEFAULT_TOP), &texts);
    Ok(Some(logits::Writer::new(output, header)?))
}

/// A measurement with the blocks it is made of.
type Figures = (Measurement, Vec<Block>);

/// The model's figures on one text, the baseline's, and how far they diverge.
fn figures(
    measure: &Measure,
    checkpoint: &Checkpoint,
    baseline: Option<&Baseline>,
    prepared: &Prepared,
    saving: &mut Option<logits::Writer<Output>>,
) -> anyhow::Result<(Figures, Option<Figures>, Option<DivergenceReport>)> {
    if let Some(Baseline::Logits(stored)) = baseline {
        return truncated(measure, checkpoint, stored, prepared);
    }
    if let (Some(Baseline::Model(baseline)), true) = (baseline, measure.divergence) {
        return diverged(measure, checkpoint, baseline, prepared);
    }
    let ours = measured(measure, checkpoint, prepared, saving.as_mut())?;
    let theirs = match baseline {
        Some(Baseline::Model(baseline)) => Some(measured(measure, baseline, prepared, None)?),
        Some(Baseline::Stored(stored)) => {
            Some(stored.find(prepared).map(|(measurement, blocks)| (measurement, blocks.to_vec()))?)
        }
        Some(Baseline::Logits(_)) | None => None,
    };
    Ok((ours, theirs, None))
}

/// The model beside the baseline's stored distributions.
fn truncated(
    measure: &Measure,
    checkpoint: &Checkpoint,
    stored: &StoredLogits,
    prepared: &Prepared,
) -> anyhow::Result<(Figures, Option<Figures>, Option<DivergenceReport>)> {
    let title = format!("{} beside stored log-probabilities on {}", checkpoint.reference, prepared.reference);
    let mut progress = Progress::new(&title, score::steps(checkpoint, &prepared.windows, measure.memory()), 0);
    let (joint, truncation) = stored.compare(checkpoint, prepared, measure.memory(), &mut |step| {
        progress.step(&place(step, prepared.windows.len()));
    })?;
    progress.finish();
    let figures =
        |scores: &[Vec<f32>], seconds| (prepared.measure(scores, measure.seed, seconds), prepared.blocks(scores));
    let report = DivergenceReport::new(prepared, &joint.targets, measure.seed);
    Ok((
        figures(&joint.model_scores(), joint.model_seconds),
        Some(figures(&joint.baseline_scores(), joint.baseline_seconds)),
        Some(DivergenceReport { truncation: Some(truncation), ..report }),
    ))
}

/// Both models side by side.
fn diverged(
    measure: &Measure,
    checkpoint: &Checkpoint,
    baseline: &Checkpoint,
    prepared: &Prepared,
) -> anyhow::Result<(Figures, Option<Figures>, Option<DivergenceReport>)> {
    let title = format!("{} beside {} on {}", checkpoint.reference, baseline.reference, prepared.reference);
    let windows = &prepared.windows;
    let mut progress = Progress::new(&title, divergence::steps(baseline, checkpoint, windows, measure.memory()), 0);
    let joint = divergence::run(baseline, checkpoint, windows, measure.memory(), &mut |step| {
        progress.step(&place(step, windows.len()));
    })?;
    progress.finish();
    let figures =
        |scores: &[Vec<f32>], seconds| (prepared.measure(scores, measure.seed, seconds), prepared.blocks(scores));
    Ok((
        figures(&joint.model_scores(), joint.model_seconds),
        Some(figures(&joint.baseline_scores(), joint.baseline_seconds)),
        Some(DivergenceReport::new(prepared, &joint.targets, measure.seed)),
    ))
}

/// Cuts every text, and for the baseline too, before anything is scored, so that what is wrong shows at once.
fn prepare(
    measure: &Measure,
    resolved: Resolved,
    checkpoint: &Checkpoint,
    baseline: Option<&Baseline>,
) -> anyhow::Result<Vec<Text>> {
    let mut texts = Vec::new();
    for reference in measure.texts() {
        let source = Source::read(&reference, measure.field.as_deref())?;
        let prepared = Prepared::new(checkpoint, &source, resolved)?;
        if let Some(baseline) = baseline {
            baseline.check(checkpoint, &source, &prepared, resolved)?;
        }
        texts.push(Text { source, prepared });
    }
    Ok(texts)
}

fn announce(measure: &Measure, threads: usize, resolved: Resolved, texts: &[Text]) {
    say(&format!("model      {}", measure.model));
    if let Some(baseline) = &measure.baseline {
        say(&format!("baseline   {baseline}"));
    }
    if !texts.is_empty() {
        say(&format!("protocol   {}", resolved.title()));
        say(&format!("           {}", resolved.protocol.formula));
    }
    for Text { prepared, .. } in texts {
        let (tokens, windows, scored) = (prepared.tokens, prepared.windows.len(), prepared.tokens_scored());
        say(&format!("text       {}: {tokens} tokens, {windows} windows, {scored} scored", prepared.reference));
        say(&format!("BOS        {}", prepared.beginning));
    }
    let memory = console::machine::bytes(measure.memory());
    let compute = Compute::from(measure.compute);
    say(&format!("compute    {compute} ({})", compute.unit()));
    if let Some(compute) = measure.baseline_compute.map(Compute::from) {
        say(&format!("           {compute} ({}) for the baseline", compute.unit()));
    }
    say(&format!("threads    {threads}; {memory} for hidden states; seed {}", measure.seed));
}

/// Where texts are scored, if a device was asked for, and what can't be.
fn announce_device(measure: &Measure, device: &str, models: &[Option<&Checkpoint>]) {
    if measure.device == Choice::Cpu {
        return;
    }
    say(&format!("device     {device}"));
    for model in models.iter().flatten().filter(|model| matches!(model.engine, Engine::Cuda(_))) {
        if let Some(what) = obstacle(&model.config) {
            say(&format!("           {} runs on the CPU: {what}", model.reference));
        }
    }
    if measure.asks_tasks() {
        say("           tasks run on the CPU");
    }
}

fn measured(
    measure: &Measure,
    checkpoint: &Checkpoint,
    prepared: &Prepared,
    saving: Option<&mut logits::Writer<Output>>,
) -> anyhow::Result<Figures> {
    let title = format!("{} on {}", checkpoint.reference, prepared.reference);
    let mut progress = Progress::new(&title, score::steps(checkpoint, &prepared.windows, measure.memory()), 0);
    let started = Instant::now();
    let mut report = |step| progress.step(&place(step, prepared.windows.len()));
    let scores = match saving {
        Some(saving) => saving.text(checkpoint, &prepared.windows, measure.memory(), &mut report)?,
        None => score(checkpoint, &prepared.windows, measure.memory(), &mut report)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    progress.finish();
    Ok((prepared.measure(&scores, measure.seed, seconds), prepared.blocks(&scores)))
}

fn place(step: score::Step, windows: usize) -> String {
    let layer =
        if step.layer > step.layers { "head".to_owned() } else { format!("layer {}/{}", step.layer, step.layers) };
    format!("{layer}, windows {}–{} of {windows}", step.first + 1, step.end)
}

/// Files are hashed only where the hashes are shown.
fn describe(measure: &Measure, checkpoint: &Checkpoint) -> anyhow::Result<ModelReport> {
    let shown = measure.json.is_some() || measure.exports.wants_page();
    let files = if shown { checkpoint.source_files()? } else { Vec::new() };
    Ok(ModelReport::new(checkpoint, files))
}

fn describe_baseline(measure: &Measure, baseline: Baseline) -> anyhow::Result<ModelReport> {
    match baseline {
        Baseline::Model(checkpoint) => describe(measure, &checkpoint),
        Baseline::Stored(stored) => Ok(stored.model),
        Baseline::Logits(stored) => Ok(stored.header.model),
    }
}

fn deliver(measure: &Measure, output: Option<Output>, report: &Results) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    match (output, &measure.json) {
        (Some(output), _) => {
            print(&report.to_string())?;
            output.commit(format!("{json}\n").as_bytes())?;
            Ok(())
        }
        (None, Some(_)) => print(&json),
        (None, None) => print(&report.to_string()),
    }
}
