//! The `evaluate` command.

mod budget;
mod cli;
mod outputs;
mod run;
mod tasks;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    console::run(|| run::run(arguments))
}
