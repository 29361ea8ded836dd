//! What is allowed but bites later: what the runtimes will think of a checkpoint, known before it is made.

use crate::plan::Module;
use model::{
    Config,
    format::gptq::{QuantizedModule, Version},
    runtimes::{Outcome, Runtime, verdicts},
};

/// One sentence for each runtime that will not load the result at its full speed.
pub fn of(modules: &[Module], version: Version, config: &Config) -> Vec<String> {
    let planned: Vec<QuantizedModule> = modules.iter().filter_map(quantized).collect();
    verdicts(&planned, version, Some(config))
        .into_iter()
        .filter(|verdict| matches!(verdict.runtime, Runtime::Vllm | Runtime::GptqModel))
        .filter(|verdict| verdict.outcome != Outcome::Loads)
        .map(|verdict| format!("{} {}: {}", verdict.runtime, verdict.outcome, verdict.reason))
        .collect()
}

fn quantized(module: &Module) -> Option<QuantizedModule> {
    let spec = module.spec?;
    Some(QuantizedModule { name: module.name.clone(), outputs: module.outputs, inputs: module.inputs, spec })
}
