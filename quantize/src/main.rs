//! The binary `quantize`: parse, prepare, say what will be done, do it, say what came of it.

mod cli;
mod idle;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches as _};
use cli::{Cli, Command};
use console::Exit;
use quantize::Job;
use std::io::Write;

const VERSION: &str = concat!("caliper quantize ", env!("CARGO_PKG_VERSION"));

fn main() -> std::process::ExitCode {
    let given = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
    if cli.command.is_none() {
        idle::refuse(&mut Cli::command(), &given, &cli.run.method(), cli.run.in_blocks())
            .unwrap_or_else(|error| error.exit());
    }
    console::run(|| match cli.command {
        Some(Command::Inspect { path, json }) => inspect(&path, json),
        Some(Command::Doctor { json }) => console::doctor::run(VERSION, &kernels::doctor::examine(), json),
        Some(Command::Convert(arguments)) => convert(arguments),
        Some(Command::Generate { kind }) => {
            console::generated::write(kind, Cli::command(), &mut std::io::stdout())?;
            Ok(Exit::Done)
        }
        None => run(cli.run),
    })
}

fn run(arguments: cli::Run) -> anyhow::Result<Exit> {
    let (request, wishes) = arguments.request()?;
    rayon::ThreadPoolBuilder::new().num_threads(request.threads).build_global().context("starting threads")?;
    let job = Job::prepare(request)?;
    say(&job.describe());
    if wishes.dry_run {
        print(&if wishes.json { serde_json::to_string_pretty(&job.cost)? } else { job.cost.text() })?;
        job.cost.check()?;
        return Ok(Exit::Done);
    }
    say(&job.cost.text());
    let outcome = job.run()?;
    print(&if wishes.json { serde_json::to_string_pretty(&outcome)? } else { outcome.text() })?;
    Ok(Exit::Done)
}

fn convert(arguments: cli::Convert) -> anyhow::Result<Exit> {
    let json = arguments.json;
    let converted = arguments.conversion().run()?;
    print(&if json { serde_json::to_string_pretty(&converted)? } else { converted.text() })?;
    Ok(Exit::Done)
}

fn inspect(path: &str, json: bool) -> anyhow::Result<Exit> {
    let inspected = model::inspect::inspect(path)?;
    print(&if json { serde_json::to_string_pretty(&inspected)? } else { quantize::report::inspection(&inspected) })?;
    Ok(Exit::Done)
}

/// A result, to stdout.
fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing the result to stdout")
}

/// What is going on, to stderr.
#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}
