//! What each CUDA kernel takes of a multiprocessor, on every architecture that is supported, held to a budget.
//!
//! Needs NVRTC and no device: `tests/cuda-standin/compile` fetches it and calls this. The budget has a line for each
//! kernel: file, name, registers a thread, bytes of shared memory a block, bytes of stack a thread. The largest over the
//! architectures counts. Spilled registers are never allowed.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use kernels::cuda::{resources, sources};
use std::{collections::BTreeMap, process::ExitCode};

const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// Of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    registers: u32,
    shared: u32,
    stack: u32,
    spilled: u32,
}

impl Needs {
    fn max(self, other: Self) -> Self {
        Self {
            registers: self.registers.max(other.registers),
            shared: self.shared.max(other.shared),
            stack: self.stack.max(other.stack),
            spilled: self.spilled.max(other.spilled),
        }
    }

    fn within(self, budget: Self) -> bool {
        self.max(budget) == budget
    }
}

/// By file and kernel.
type Table = BTreeMap<(String, String), Needs>;

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        println!("usage: cuda_resources BUDGET");
        return ExitCode::FAILURE;
    };
    let budget = match std::fs::read_to_string(&path) {
        Ok(text) => parse_budget(&text),
        Err(error) => {
            println!("`{path}`: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut found = Table::new();
    for source in sources::ALL {
        for architecture in ARCHITECTURES {
            match resources(source, architecture) {
                Ok(log) => read_log(&log, source.file, &mut found),
                Err(error) => {
                    println!("{error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    if report(&found, &budget) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what was found, in the form of a budget; whether all of it is inside.
fn report(found: &Table, budget: &Table) -> bool {
    let mut fine = !found.is_empty();
    for ((file, kernel), needs) in found {
        let Needs { registers, shared, stack, spilled } = needs;
        let verdict = match budget.get(&(file.clone(), kernel.clone())) {
            Some(budget) if needs.within(*budget) => "",
            Some(_) => "  # over the budget",
            None => "  # not in the budget",
        };
        let spilled = if *spilled > 0 { format!("  # spills {spilled} bytes") } else { String::new() };
        fine &= verdict.is_empty() && spilled.is_empty();
        println!("{file} {kernel} {registers} {shared} {stack}{spilled}{verdict}");
    }
    for (file, kernel) in budget.keys().filter(|key| !found.contains_key(key)) {
        fine = false;
        println!("{file} {kernel}  # in the budget, but there is no such kernel");
    }
    fine
}

fn parse_budget(text: &str) -> Table {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse().ok();
        let needs = Needs { registers: number(2)?, shared: number(3)?, stack: number(4)?, spilled: 0 };
        Some(((fields[0].to_owned(), fields[1].to_owned()), needs))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect()
}

/// Reads what the assembler says of each kernel: its name, its stack and spills, what it uses.
fn read_log(log: &str, file: &str, table: &mut Table) {
    let mut kernel = String::new();
    let mut needs = Needs::default();
    for line in log.lines() {
        let before = |what: &str| number_before(line, what).unwrap_or(0);
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            rest.split('\'').next().unwrap_or_default().clone_into(&mut kernel);
        } else if line.contains("bytes stack frame") {
            needs.stack = before(" bytes stack frame");
            needs.spilled = before(" bytes spill stores") + before(" bytes spill loads");
        } else if line.contains("Used ") {
            needs = Needs { registers: before(" registers"), shared: before(" bytes smem"), ..needs };
            let entry = table.entry((file.to_owned(), kernel.clone())).or_default();
            *entry = entry.max(needs);
            needs = Needs::default();
        }
    }
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    line.split_once(what)?.0.rsplit([' ', ',']).next()?.parse().ok()
}
