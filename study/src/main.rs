//! The binary `study`: one function for each subcommand.

mod cli;

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser as _};
use cli::{Cli, Command, Format, RunOptions, Where};
use console::{Exit, Table, machine};
use std::{fs, io::Write as _, path::Path, process::ExitCode, thread};
use study::{
    Opened, Plan, Store, StudyError, StudyFile,
    check::{self, Cost, Overlap, duration},
    report::Report,
    run::{Tally, Wishes},
    store::Contents,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::run(|| match cli.command {
        Command::Init { file, template } => init(&file, template),
        Command::Check { study, json } => check_study(&study, json),
        Command::Run(options) => run(&options, false),
        Command::Retry(options) => run(&options, true),
        Command::Status { study } => status(&study),
        Command::Report { study, out } => report(&study, out.as_deref()),
        Command::Export { study, format } => export(&study, format),
        Command::Demo { out, threads } => demo(&out, threads),
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

fn init(file: &Path, template: cli::Template) -> anyhow::Result<Exit> {
    if file.exists() {
        bail!("{} is there already; give another name, or remove it", file.display());
    }
    fs::write(file, template.text()).with_context(|| file.display().to_string())?;
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
    if !overlaps.is_empty() {
        lines.push(format!(
            "share of the evaluation text that is also in the calibration text:\n{}",
            overlap_table(overlaps)
        ));
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
    for overlap in overlaps {
        let share = format!("{:.2} %", 100.0 * overlap.containment);
        table.row([overlap.calibration.clone(), overlap.evaluation.clone(), share]);
    }
    table
}

fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from)
}

fn run(options: &RunOptions, retry: bool) -> anyhow::Result<Exit> {
    // Before anything is opened: tokenizing is the first to use threads, and would start them itself.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(threads(options.threads));
    threads.build_global().context("starting threads")?;
    let opened = Opened::new(&options.study.study)?;
    let mut store = options.study.store();
    let tally = run_opened(&opened, &mut store, options, retry)?;
    verdict(&options.study.study, tally, retry)
}

/// Plans, says so, runs.
fn run_opened(opened: &Opened, store: &mut Store, options: &RunOptions, retry: bool) -> anyhow::Result<Tally> {
    opened.check()?;
    let threads = threads(options.threads);
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
    Plan::of(opened, overlaps).write(store.folder())?;
    let wishes = Wishes { retry, part: options.part, threads };
    Ok(study::run::run(opened, store, wishes, &mut |line| say(line))?)
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

fn report(place: &Where, out: Option<&Path>) -> anyhow::Result<Exit> {
    let store = place.store();
    let (plan, contents) = (Plan::read(store.folder())?, store.read()?);
    if !plan.cells.iter().any(|cell| contents.measured(&cell.cell).is_some()) {
        return Err(StudyError::NoResults { path: store.folder().to_owned() }.into());
    }
    stale(&plan, &place.study)
        .iter()
        .chain(&cut_short(&contents))
        .for_each(|remark| say(&format!("warning: {remark}")));
    let report = Report::new(&plan, &contents)?;
    let [html, markdown] = report.write(out.unwrap_or(store.folder()))?;
    let answer: Vec<String> = report.page.answer.iter().map(|sentence| format!("- {sentence}")).collect();
    print(&format!("{}\n{}", report.page.question, answer.join("\n")))?;
    say(&format!("written: {} and {}", html.display(), markdown.display()));
    Ok(Exit::Done)
}

fn export(place: &Where, format: Format) -> anyhow::Result<Exit> {
    let store = place.store();
    let (plan, contents) = (Plan::read(store.folder())?, store.read()?);
    let rows = study::export::rows(&plan, &contents);
    done(&match format {
        Format::Csv => study::export::csv(&rows)?,
        Format::Jsonl => study::export::jsonl(&rows),
    })
}

fn demo(out: &Path, threads: Option<u16>) -> anyhow::Result<Exit> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let study = out.join("demo.toml");
    fs::write(&study, cli::DEMO).with_context(|| study.display().to_string())?;
    let place = || Where { study: study.clone(), results: None };
    run(&RunOptions { study: place(), threads, part: None }, false)?;
    report(&place(), None)
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
