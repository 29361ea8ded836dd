//! The binary `study`: one function for each subcommand.

mod ask;
mod cli;

use anyhow::{Context as _, anyhow, bail};
use clap::{CommandFactory as _, Parser as _};
use cli::{CaptureOptions, Cli, Command, Format, On, RunOptions, SampleOptions, SolveOptions, Where};
use console::{Exit, Live, Table, machine};
use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use study::{
    Opened, Plan, Store, StudyError, StudyFile,
    check::{self, Cost, Overlap, duration},
    local::Local,
    report::{Other, Report},
    run::{Event, Tally, Wishes},
    schedule::{self, Batch, Chunking, Scheduler},
    slurm::Slurm,
    store::Contents,
};

/// How often the store is read while workers are waited for.
const LOOK: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::run(|| match cli.command {
        Command::Init(options) => init(&options),
        Command::Check { study, json } => check_study(&study, json),
        Command::Run(options) => run(&options, false),
        Command::Retry(options) => run(&options, true),
        Command::Capture(options) => capture(options),
        Command::Solve(options) => solve(options),
        Command::Agreement { model, first, second, json } => agreement(&model, &first, &second, json),
        Command::Sample(options) => sample(options),
        Command::Status { study } => status(&study),
        Command::Report { study, out, within, beside } => report(&study, out.as_deref(), within, &beside),
        Command::Export { study, format, out } => export(&study, format, out.as_deref()),
        Command::Suggest { study, bytes, json } => suggest(&study, &bytes, json),
        Command::Demo { out, threads } => demo(&out, threads),
        Command::Doctor { json } => console::doctor::run(study::opened::TOOL, &quantize::examine(), json),
        Command::Schema => done(&study::file::schema()),
        Command::Generate { kind } => {
            console::generated::write(kind, Cli::command(), &mut std::io::stdout())?;
            Ok(Exit::Done)
        }
    })
}

/// A result, to stdout.
fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("writing the result to stdout")
}

fn done(text: &str) -> anyhow::Result<Exit> {
    print(text)?;
    Ok(Exit::Done)
}

/// What is going on, to stderr.
#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}

fn init(options: &cli::InitOptions) -> anyhow::Result<Exit> {
    let file = &options.file;
    if file.exists() {
        bail!("{} is there already; give another name, or remove it", file.display());
    }
    let changes = options.changes();
    let (template, changes) = if options.template.is_none() && changes.is_empty() && ask::possible() {
        ask::study()?
    } else {
        (options.template.unwrap_or(cli::Template::CalibrationAlignment), changes)
    };
    let text = study::init::fill(template.text(), &changes).map_err(|what| anyhow!("this makes no study: {what}"))?;
    fs::write(file, text).with_context(|| file.display().to_string())?;
    say(&format!("written: {}", file.display()));
    say(&format!("next: edit it, then `study check {0}` and `study run {0}`", file.display()));
    Ok(Exit::Done)
}

fn check_study(place: &Where, json: bool) -> anyhow::Result<Exit> {
    let opened = Opened::new(&place.study)?;
    opened.check()?;
    let store = place.store();
    let overlaps = check::overlaps(&opened)?;
    let cost = check::estimate(&opened, &store.read()?, threads(None), store.folder())?;
    let beyond = check::beyond_budget(&opened.file.budget, &cost);
    if json {
        let json = serde_json::json!({ "cost": cost, "overlaps": overlaps, "warnings": warnings(&opened, &overlaps), "beyond_budget": beyond });
        print(&serde_json::to_string_pretty(&json)?)?;
    } else {
        print(&describe(&opened, &cost, &overlaps))?;
    }
    refuse(&beyond)?;
    Ok(Exit::Done)
}

/// Refuses a study that takes more than it may.
fn refuse(beyond: &[String]) -> anyhow::Result<()> {
    if beyond.is_empty() {
        Ok(())
    } else {
        bail!("beyond the budget: {}; make the study smaller or the budget larger", beyond.join("; "))
    }
}

fn warnings(opened: &Opened, overlaps: &[Overlap]) -> Vec<String> {
    opened.warnings.iter().cloned().chain(overlaps.iter().filter_map(Overlap::warning)).collect()
}

fn describe(opened: &Opened, cost: &Cost, overlaps: &[Overlap]) -> String {
    let file = &opened.file;
    let configurations = opened.units.iter().filter(|unit| unit.settings.is_some()).count();
    let mut lines = vec![
        format!("{}: {}", file.name, file.question),
        format!(
            "configurations: {configurations} (of {} combinations, {} excluded, the others said the same twice)",
            opened.crossed, opened.excluded
        ),
        format!(
            "cells: {}, of {} evaluations, unquantized models among them; {} are done",
            opened.cells(),
            file.evaluation.len(),
            cost.done
        ),
    ];
    for text in &opened.texts {
        let measure = text.measure.name();
        lines.push(format!(
            "  {} for {}: {measure}, {}, {}",
            text.name,
            text.model,
            text.record.protocol,
            text.extent()
        ));
    }
    let apart = overlaps.iter().filter(|overlap| overlap.containment == 0.0).count();
    lines.push(format!(
        "pairs of calibration and evaluation text with nothing in common: {apart} of {}",
        overlaps.len()
    ));
    if apart < overlaps.len() {
        let what = "share of the evaluation text that is also in the calibration text";
        lines.push(format!("{what}:\n{}", overlap_table(overlaps)));
    }
    lines.extend(warnings(opened, overlaps).into_iter().map(|warning| format!("warning: {warning}")));
    let free = machine::free_disk(&opened.folder).map_or_else(|| "unknown".to_owned(), machine::bytes);
    let available = machine::available_memory().map_or_else(|| "unknown".to_owned(), machine::bytes);
    lines.push(format!(
        "needs time: about {} for {} quantizations and {} measurements",
        duration(cost.seconds),
        cost.quantizations,
        cost.cells
    ));
    lines.push(format!("needs memory: about {} of {available}", machine::bytes(cost.memory)));
    lines.push(format!("needs disk: about {} of {free} free", machine::bytes(cost.disk)));
    lines.join("\n")
}

fn overlap_table(overlaps: &[Overlap]) -> Table {
    let mut table = Table::new(["calibration", "evaluation", "in common"]);
    for overlap in overlaps.iter().filter(|overlap| overlap.containment > 0.0) {
        let share = format!("{:.2} %", 100.0 * overlap.containment);
        table.row([overlap.calibration.clone(), overlap.evaluation.clone(), share]);
    }
    table
}

fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from)
}

/// Before anything is opened: tokenizing is the first to use threads, and would start them itself.
fn start_threads(asked: Option<u16>) -> anyhow::Result<()> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(threads(asked));
    threads.build_global().context("starting threads")
}

fn run(options: &RunOptions, retry: bool) -> anyhow::Result<Exit> {
    start_threads(options.threads)?;
    let opened = Opened::new(&options.study.study)?;
    let mut store = options.study.store();
    let tally = run_opened(&opened, &mut store, options, retry)?;
    gather(&store)?;
    match tally {
        Some(tally) => verdict(&options.study.study, tally, retry),
        None => Ok(Exit::Done),
    }
}

/// Plans, says so, runs; nothing is told of a batch that goes on without this process.
fn run_opened(opened: &Opened, store: &mut Store, options: &RunOptions, retry: bool) -> anyhow::Result<Option<Tally>> {
    opened.check()?;
    let threads = threads(options.threads);
    let only = options.chunk.as_deref().map(schedule::read_chunk).transpose()?;
    if only.is_none() {
        announce(opened, store, threads)?;
    }
    if let Some(on) = options.on {
        return scheduled(opened, store, options, on, retry);
    }
    let wishes = Wishes { retry, part: options.part, only, threads };
    let standing = Standing::of(opened, &store.read()?);
    let live = Live::new(&opened.file.name, opened.cells() as u64, standing.done() as u64);
    let mut done = standing.done();
    let tally = study::run::run(opened, store, &wishes, &mut |event| match event {
        Event::Line(line) => live.line(line),
        Event::Cells(cells, best) => {
            done += cells;
            live.done(done as u64);
            live.state(&best.map_or_else(String::new, |best| format!("best so far: {best}")));
        }
    })?;
    live.finish();
    Ok(Some(tally))
}

/// Says what there is to do, and writes the plan.
fn announce(opened: &Opened, store: &Store, threads: usize) -> anyhow::Result<()> {
    let overlaps = check::overlaps(opened)?;
    let cost = check::estimate(opened, &store.read()?, threads, store.folder())?;
    refuse(&check::beyond_budget(&opened.file.budget, &cost))?;
    for warning in &warnings(opened, &overlaps) {
        say(&format!("warning: {warning}"));
    }
    say(&format!(
        "{}: {} cells, {} done, {} to do in about {}",
        opened.file.name,
        opened.cells(),
        cost.done,
        cost.cells,
        duration(cost.seconds)
    ));
    Ok(Plan::of(opened, overlaps).write(store.folder())?)
}

/// Cells by how they stand.
#[derive(Clone, Copy)]
struct Standing {
    measured: usize,
    failed: usize,
}

impl Standing {
    fn of(opened: &Opened, contents: &Contents) -> Self {
        let cells = || opened.units.iter().flat_map(|unit| &unit.cells);
        Self {
            measured: cells().filter(|cell| contents.measured(&cell.key).is_some()).count(),
            failed: cells().filter(|cell| contents.failed(&cell.key).is_some()).count(),
        }
    }

    fn done(self) -> usize {
        self.measured + self.failed
    }
}

/// Hands the open cells to workers. Where this process waits for them, it shows what their files say.
fn scheduled(
    opened: &Opened,
    store: &Store,
    options: &RunOptions,
    on: On,
    retry: bool,
) -> anyhow::Result<Option<Tally>> {
    let before = store.read()?;
    let (scheduler, chunking, threads): (Box<dyn Scheduler>, _, _) = scheduler(options, on);
    let Some(mut batch) = Batch::new(opened, &before, retry, store.folder(), chunking)? else {
        return Ok(Some(tally(opened, &before, &before, retry)));
    };
    batch.arguments = worker_arguments(options, store, threads, retry)?;
    let live = Live::new(&opened.file.name, opened.cells() as u64, Standing::of(opened, &before).done() as u64);
    live.line(&format!("{} chunks for {}", batch.chunks.len(), if on == On::Local { "processes" } else { "Slurm" }));
    let (axes, mut looked, mut shown) = (study::plan::varying(&opened_settings(opened)), Instant::now(), 0);
    let told = scheduler.run(&batch, &mut || {
        if looked.elapsed() < LOOK {
            return Ok(());
        }
        looked = Instant::now();
        let now = store.read()?;
        let standing = Standing::of(opened, &now);
        let best =
            study::run::best(opened, &now, &axes).map_or_else(String::new, |best| format!(", best so far: {best}"));
        let state = format!("{} cells measured, {} failed{best}", standing.measured, standing.failed);
        live.done(standing.done() as u64);
        live.state(&state);
        if standing.done() != shown && !std::io::stderr().is_terminal() {
            live.line(&format!("    {state}"));
        }
        shown = standing.done();
        Ok(())
    })?;
    live.finish();
    say(&told);
    let waited = on == On::Local || options.wait;
    let tally = waited.then(|| Ok::<_, StudyError>(tally(opened, &before, &store.read()?, retry))).transpose()?;
    let open =
        tally.map_or(0, |tally| opened.cells() - tally.measured - tally.failed - tally.known - tally.failed_before);
    if open > 0 {
        bail!("{open} cells are still open: their workers ended before them; see the logs, then `study run` again");
    }
    Ok(tally)
}

fn opened_settings(opened: &Opened) -> impl Iterator<Item = &study::settings::Settings> + Clone {
    opened.units.iter().filter(|unit| !unit.twin).filter_map(|unit| unit.settings.as_ref())
}

/// What workers did, from what the store held before and holds after.
fn tally(opened: &Opened, before: &Contents, after: &Contents, retry: bool) -> Tally {
    let mut tally = Tally::default();
    for cell in opened.units.iter().flat_map(|unit| &unit.cells) {
        let key = &cell.key;
        let known = before.measured(key).is_some();
        let tried = retry || before.failed(key).is_none();
        tally.known += usize::from(known);
        tally.measured += usize::from(!known && after.measured(key).is_some());
        tally.failed += usize::from(tried && after.failed(key).is_some());
        tally.failed_before += usize::from(!tried && after.failed(key).is_some());
    }
    tally
}

fn scheduler(options: &RunOptions, on: On) -> (Box<dyn Scheduler>, Chunking, usize) {
    let chunking = options.chunk_size.map(|size| Chunking::Of(size.into()));
    let threads = threads(options.threads);
    match on {
        On::Local => {
            let jobs = options.jobs.map_or(2, usize::from);
            let each = options.threads.map_or((threads / jobs).max(1), usize::from);
            (Box::new(Local { jobs }), chunking.unwrap_or(Chunking::Into(jobs)), each)
        }
        On::Slurm => {
            let slurm = Slurm {
                jobs: options.jobs.map(usize::from),
                partition: options.partition.clone(),
                account: options.account.clone(),
                time_limit: options.time_limit.clone(),
                memory: options.memory.clone(),
                cores: threads,
                options: options.sbatch.clone(),
                wait: options.wait,
            };
            (Box::new(slurm), chunking.unwrap_or(Chunking::Of(1)), threads)
        }
    }
}

/// Paths are made absolute: a worker may start in another folder.
fn worker_arguments(options: &RunOptions, store: &Store, threads: usize, retry: bool) -> anyhow::Result<Vec<String>> {
    let absolute = |path: &Path| -> anyhow::Result<String> {
        Ok(std::path::absolute(path).with_context(|| path.display().to_string())?.to_string_lossy().into_owned())
    };
    let verb = if retry { "retry" } else { "run" };
    let study = absolute(&options.study.study)?;
    let results = absolute(store.folder())?;
    let words = [verb, &study, "--results", &results, "--threads", &threads.to_string()];
    Ok(words.map(str::to_owned).to_vec())
}

fn capture(options: CaptureOptions) -> anyhow::Result<Exit> {
    start_threads(options.threads)?;
    let what = study::solve::Capture {
        model: options.model,
        sources: options.calibration,
        windows: calibration::WindowOptions {
            samples: options.samples,
            sequence_length: options.sequence_length,
            seed: options.seed,
            packing: calibration::Packing::Concat,
            field: None,
        },
        out: options.out,
    };
    let captured = study::solve::capture(&what)?;
    let (origin, out) = (&captured.origin, what.out.display());
    done(&format!("captured: {} windows, {} tokens\nwritten: {out}", origin.windows, origin.tokens))
}

fn solve(options: SolveOptions) -> anyhow::Result<Exit> {
    start_threads(options.threads)?;
    let what = study::solve::Solve {
        model: options.model,
        statistics: options.statistics,
        method: options.method,
        bits: options.bits,
        group_size: options.group_size,
        symmetric: !options.asymmetric,
        act_order: options.act_order,
        scale_search: options.scale_search,
        damping: options.damping,
        format: options.format,
        out: options.out,
        threads: threads(options.threads),
    };
    let outcome = study::solve::solve(&what)?;
    let output = &outcome.outputs[0];
    let proof = outcome.proof.as_ref().map_or_else(String::new, quantize::card::proof_sentence);
    done(&format!(
        "solved: {} modules in {:.1} s\n{}\n{proof}\nwritten: {}",
        outcome.modules.len(),
        outcome.totals.seconds,
        output.text().trim_end(),
        outcome.out.display()
    ))
}

fn agreement(model: &str, first: &Path, second: &Path, json: bool) -> anyhow::Result<Exit> {
    let agreements = study::agreement::agreement(model, first, second)?;
    if json {
        return done(&serde_json::to_string_pretty(&agreements)?);
    }
    let mut table = Table::new(["stage", "similarity of Hessians", "least of a block", "correlation of diagonals"]);
    for at in &agreements {
        let number = |value: f64| format!("{value:.4}");
        table.row([
            study::part::name(at.stage).to_owned(),
            number(at.hessians),
            number(at.least),
            number(at.diagonals),
        ]);
    }
    done(&table.to_string())
}

fn sample(options: SampleOptions) -> anyhow::Result<Exit> {
    start_threads(options.threads)?;
    let SampleOptions { model, texts, length, temperature, seed, out, .. } = options;
    let (texts, length) = (texts as usize, length as usize);
    let what = study::sample::Sample { model, texts, length, temperature, seed, out };
    let tokens = study::sample::sample(&what)?;
    done(&format!("written: {texts} texts, {tokens} tokens, to {}", what.out.display()))
}

fn verdict(study: &Path, tally: Tally, retry: bool) -> anyhow::Result<Exit> {
    let Tally { measured, failed, known, failed_before } = tally;
    print(&format!("measured {measured} cells, {known} were there already, {failed} failed"))?;
    let study = study.display();
    match (failed + failed_before, retry) {
        (0, _) => Ok(Exit::Done),
        (failed, _) => {
            bail!("{failed} cells failed: `study status {study}` says why, `study retry {study}` tries them again")
        }
    }
}

fn status(place: &Where) -> anyhow::Result<Exit> {
    let store = place.store();
    let (plan, contents) = (Plan::read(store.folder())?, store.read()?);
    let measured = plan.cells.iter().filter(|cell| contents.measured(&cell.cell).is_some()).count();
    let failures: Vec<_> = plan.cells.iter().filter_map(|cell| contents.failed(&cell.cell)).collect();
    let mut lines = vec![format!(
        "{}: {measured} of {} cells measured, {} failed, {} open",
        plan.name,
        plan.cells.len(),
        failures.len(),
        plan.cells.len() - measured - failures.len()
    )];
    lines.extend(study::slurm::queue(store.folder()));
    lines.extend(stale(&plan, &place.study));
    lines.extend(cut_short(&contents));
    let axes = plan.varying();
    for line in &failures {
        let label = line.settings.as_ref().map_or_else(|| line.model.clone(), |settings| settings.label(&axes));
        lines.push(format!("failed: {label}, on {}: {}", line.evaluation, line.error.as_deref().unwrap_or_default()));
    }
    print(&lines.join("\n"))?;
    if failures.is_empty() {
        Ok(Exit::Done)
    } else {
        bail!("{} cells failed; `study retry` tries them again", failures.len())
    }
}

fn report(place: &Where, out: Option<&Path>, within: Option<u64>, beside: &[PathBuf]) -> anyhow::Result<Exit> {
    let (plan, contents) = results(place)?;
    let others = beside.iter().map(|study| {
        let (plan, contents) = results(&Where { study: study.clone(), results: None })?;
        Ok(Other { plan, contents })
    });
    let report = Report::new(&plan, &contents, within, &others.collect::<anyhow::Result<Vec<_>>>()?)?;
    let store = place.store();
    gather(&store)?;
    let [html, markdown] = report.write(out.unwrap_or(store.folder()))?;
    let answer: Vec<String> = report.sentences.iter().map(|sentence| format!("- {sentence}")).collect();
    print(&format!("{}\n{}", report.page.question, answer.join("\n")))?;
    say(&format!("written: {} and {}", html.display(), markdown.display()));
    Ok(Exit::Done)
}

/// Puts all that was measured so far, by whatever process, into one table beside its lines. Where several end at once the
/// last to write may have read before another's last line: whoever reads the store next gathers again.
fn gather(store: &Store) -> anyhow::Result<()> {
    let (plan, contents) = (Plan::read(store.folder())?, store.read()?);
    let table = study::export::parquet(&study::export::rows(&plan, &contents))?;
    let path = store.table();
    console::files::write_atomically(&path, &table).with_context(|| path.display().to_string())
}

fn export(place: &Where, format: Format, out: Option<&Path>) -> anyhow::Result<Exit> {
    let store = place.store();
    let (plan, contents) = (Plan::read(store.folder())?, store.read()?);
    let rows = study::export::rows(&plan, &contents);
    let bytes = match format {
        Format::Csv => study::export::csv(&rows)?.into_bytes(),
        Format::Jsonl => study::export::jsonl(&rows).into_bytes(),
        Format::Parquet => study::export::parquet(&rows)?,
    };
    match out {
        Some(path) => {
            console::files::write_atomically(path, &bytes).with_context(|| path.display().to_string())?;
            say(&format!("written: {}", path.display()));
        }
        None if format == Format::Parquet && std::io::stdout().is_terminal() => {
            bail!("a Parquet file is nothing to look at: give --out FILE")
        }
        None => std::io::stdout().write_all(&bytes).context("writing the table to stdout")?,
    }
    Ok(Exit::Done)
}

fn suggest(place: &Where, bytes: &str, json: bool) -> anyhow::Result<Exit> {
    let store = place.store();
    let (plan, contents) = (Plan::read(store.folder())?, store.read()?);
    let budget = machine::parse_bytes(bytes).map_err(|error| anyhow::anyhow!("--bytes {bytes}: {error}"))?;
    let opened = Opened::new(&place.study)?;
    for (name, model) in &opened.models {
        let float_bytes = study::suggest::float_bytes(&model.checkpoint)?;
        let options = study::suggest::options(&plan, &contents, name, float_bytes);
        let suggestion = study::suggest::suggest(options, float_bytes, budget)?;
        let (common, overrides) = suggestion.overrides(&model.checkpoint.config);
        if json {
            let json = serde_json::json!({ "model": name, "suggestion": suggestion, "overrides": overrides });
            print(&serde_json::to_string_pretty(&json)?)?;
            continue;
        }
        let mut table = Table::new(["part", "bits", "group", "divergence alone"]);
        for choice in &suggestion.choices {
            let (bits, group) = (choice.bits.to_string(), choice.group_size.to_string());
            table.row([choice.place.clone(), bits, group, format!("{:.6}", choice.divergence)]);
        }
        let overrides: Vec<String> = overrides.iter().map(|text| format!(" --override '{text}'")).collect();
        print(&format!(
            "{table}\n{} of {} allowed; the parts' divergences sum to {:.5} nats\nto make and measure it:\n\
             quantize {name} --bits {} --group-size {}{} ...",
            machine::bytes(suggestion.bytes),
            machine::bytes(budget),
            suggestion.divergence,
            common.0,
            common.1,
            overrides.concat()
        ))?;
    }
    Ok(Exit::Done)
}

fn demo(out: &Path, threads: Option<u16>) -> anyhow::Result<Exit> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let study = out.join("demo.toml");
    fs::write(&study, cli::DEMO).with_context(|| study.display().to_string())?;
    let place = || Where { study: study.clone(), results: None };
    run(&RunOptions::here(place(), threads), false)?;
    report(&place(), None, None, &[])
}

/// What was planned and measured of a study, which must be something; remarks on it go to stderr.
fn results(place: &Where) -> anyhow::Result<(Plan, Contents)> {
    let store = place.store();
    let (plan, contents) = (Plan::read(store.folder())?, store.read()?);
    if !plan.cells.iter().any(|cell| contents.measured(&cell.cell).is_some()) {
        return Err(StudyError::NoResults { path: store.folder().to_owned() }.into());
    }
    let remarks = stale(&plan, &place.study).into_iter().chain(cut_short(&contents));
    remarks.for_each(|remark| say(&format!("warning: {remark}")));
    Ok((plan, contents))
}

/// A remark where the study file is not the one that was run.
fn stale(plan: &Plan, study: &Path) -> Option<String> {
    let (_, text) = StudyFile::read(study).ok()?;
    let changed = evaluate::source::sha256(&text) != plan.study_sha256;
    changed.then(|| "the study file has changed since it was run: `study run` computes what is new".to_owned())
}

fn cut_short(contents: &Contents) -> Option<String> {
    (contents.cut_short > 0)
        .then(|| format!("{} lines were cut short by a crash; their cells are computed again", contents.cut_short))
}
