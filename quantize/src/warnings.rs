//! What is allowed but bites later: what the runtimes will think of a checkpoint, known before it is made.

use model::{
    Config,
    format::{QuantizedModule, Target},
    runtimes::{Outcome, Runtime, verdicts},
};

/// One sentence for each format and runtime that will not load the result at its full speed.
pub fn of(modules: &[QuantizedModule], formats: &[Target], config: &Config) -> Vec<String> {
    formats.iter().flat_map(|format| of_format(modules, *format, config, formats.len() > 1)).collect()
}

/// Those of one format, which is `named` where there are others.
fn of_format(modules: &[QuantizedModule], format: Target, config: &Config, named: bool) -> Vec<String> {
    let prefix = if named { format!("{format}: ") } else { String::new() };
    // GGUF files are not for these runtimes: there is no verdict and no warning.
    verdicts(modules, format, Some(config))
        .into_iter()
        .filter(|verdict| !matches!(verdict.runtime, Runtime::Marlin | Runtime::ExLlama))
        .filter(|verdict| verdict.outcome != Outcome::Loads)
        .map(|verdict| format!("{prefix}{} {}: {}", verdict.runtime, verdict.outcome, verdict.reason))
        .collect()
}
