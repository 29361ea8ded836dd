//! The `evaluate` command.

mod budget;
mod cli;
mod comparison;
mod outputs;
mod run;
mod show;
mod tasks;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    console::run(|| run::run(arguments))
}
