//! Configurations that look at the same text through the same model share its statistics.
//!
//! ```text
//! capture   once per (model, calibration windows): one walk over the original model     STUDY.results/statistics/KEY/
//! solve     all of them, block by block, with one Hessian and one factor a stage        STUDY.results/work/CELL.partial/
//! evaluate  each, straight from its solved blocks: no checkpoint is written
//! ```
//!
//! It is what `inputs = "original"` means anyway, so the integers are the same to the bit as without sharing. What it costs
//! against true sequence is measured beside it, on one configuration solved both ways ([`crate::opened`]).

use crate::{
    StudyError,
    check::memory_limit,
    opened::{Opened, TOOL, Unit},
    store::Quantized,
};
use calibration::{
    Inputs, Sequence,
    captured::{Captured, Origin},
    driver::{DriverOptions, activation_bytes},
};
use console::machine;
use evaluate::source::sha256;
use model::Checkpoint;
use quantize::{
    Journal, Method, solved,
    sweep::{Member, sweep},
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// Configurations solved at once: as many journals are on disk together.
pub const TOGETHER: usize = 16;
/// Share of the free memory that activations may take.
const SHARE: f64 = 0.3;

/// What configurations with equal keys share; none for one that can't share.
pub fn key(opened: &Opened, unit: &Unit) -> Option<String> {
    let (options, set) = (unit.options.as_ref()?, unit.calibration.as_ref()?);
    let shares = options.inputs == Inputs::Original && options.method != Method::Rtn && !options.lm_head;
    let timed = opened.texts.iter().any(|text| text.measure.is_timed());
    if !shares || timed || opened.file.keep || options.block_mixture().is_some() {
        return None;
    }
    let lengths: Vec<usize> = set.windows.iter().map(Vec::len).collect();
    let parts = json!({
        "tool": TOOL, "model": model_sha256(opened, unit), "tokens": set.manifest.tokens_sha256, "lengths": lengths,
        "compute": opened.file.compute,
    });
    Some(sha256(parts.to_string()))
}

fn model_sha256(opened: &Opened, unit: &Unit) -> Vec<String> {
    opened.models[&unit.model].files.iter().map(|file| file.sha256.clone()).collect()
}

/// Where the statistics of `key` are kept.
pub fn statistics_folder(results: &Path, key: &str) -> PathBuf {
    results.join("statistics").join(&key[..16])
}

/// The solved blocks of several configurations.
pub struct Shared {
    journals: Vec<Option<Journal>>,
    seconds: f64,
}

/// Captures what is not there yet, and solves `units`, all of one `key`. `say` hears what is going on.
pub fn solve(
    opened: &Opened,
    units: &[&Unit],
    key: &str,
    results: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Shared, StudyError> {
    let started = Instant::now();
    let model = &opened.models[&units[0].model].checkpoint;
    let captured = capture(opened, units[0], key, results)?;
    let capturing = started.elapsed().as_secs_f64();
    let journals = units.iter().map(|unit| {
        let out = work_folder(results, unit);
        out.parent().map_or(Ok(()), fs::create_dir_all).map_err(StudyError::io(&out))?;
        Ok(Journal::open(&out, &json!({ "configuration": unit.configuration, "shared": key }), true)?)
    });
    let journals: Vec<Journal> = journals.collect::<Result<_, StudyError>>()?;
    let plans = units.iter().map(|unit| unit.plan.as_ref().expect("a unit with options has a plan"));
    let members: Vec<Member<'_>> = plans.zip(&journals).map(|(plan, journal)| Member { plan, journal }).collect();
    sweep(model, &members, &captured, &mut |_| {})?;
    let seconds = started.elapsed().as_secs_f64();
    say(&format!(
        "    statistics in {capturing:.1} s, {} configurations solved on them in {:.1} s",
        units.len(),
        seconds - capturing
    ));
    Ok(Shared { journals: journals.into_iter().map(Some).collect(), seconds })
}

impl Shared {
    /// The model of configuration `index` as solved, and what it came to; once.
    pub fn take(&mut self, opened: &Opened, unit: &Unit, index: usize) -> Result<(Checkpoint, Quantized), StudyError> {
        let count = self.journals.len() as f64;
        let journal = self.journals[index].take().expect("each configuration is evaluated once");
        let plan = unit.plan.as_ref().expect("a unit with options has a plan");
        let (checkpoint, sizes) = solved::open(&opened.models[&unit.model].checkpoint, plan, journal)?;
        let quantized = Quantized {
            bits_per_weight: sizes.bits_per_quantized_weight,
            bits_per_weight_all: sizes.bits_per_weight,
            bytes: sizes.bytes,
            error: None,
            error_round_to_nearest: None,
            seconds: self.seconds / count,
            codes: None,
        };
        Ok((checkpoint, quantized))
    }
}

/// What a configuration's checkpoint is called: a folder, or a file where its format is one.
pub fn name(unit: &Unit) -> String {
    let file = unit.options.as_ref().is_some_and(|options| options.formats.iter().any(|format| format.is_file()));
    format!("{}{}", &unit.configuration[..16], if file { ".gguf" } else { "" })
}

/// The work folder of a configuration; its journal lies beside it.
pub fn work_folder(results: &Path, unit: &Unit) -> PathBuf {
    results.join("work").join(name(unit))
}

fn capture(opened: &Opened, unit: &Unit, key: &str, results: &Path) -> Result<Captured, StudyError> {
    let model = &opened.models[&unit.model].checkpoint;
    let set = unit.calibration.as_ref().expect("a unit with a key has a calibration set");
    let folder = statistics_folder(results, key);
    fs::create_dir_all(&folder).map_err(StudyError::io(&folder))?;
    let origin = Origin {
        model_sha256: model_sha256(opened, unit),
        tokens_sha256: set.manifest.tokens_sha256.clone(),
        windows: set.windows.len(),
        tokens: set.tokens(),
        sources: set.manifest.sources.iter().map(|source| source.source.clone()).collect(),
    };
    let options = driver_options(model, set.tokens(), memory_limit(&opened.file.budget), &folder);
    Ok(Captured::capture(model, &set.windows, &options, &folder, &origin, &mut |_| {})?)
}

/// How the original model is walked over `tokens` tokens within `memory` bytes.
pub fn driver_options(model: &Checkpoint, tokens: usize, memory: Option<u64>, folder: &Path) -> DriverOptions {
    let needed = activation_bytes(&model.config, tokens, (Inputs::Original, Sequence::Block), false);
    let room = memory.or_else(machine::available_memory).map_or(usize::MAX, |bytes| (bytes as f64 * SHARE) as usize);
    DriverOptions {
        inputs: Inputs::Original,
        sequence: Sequence::Block,
        compare_original: false,
        activation_bytes_in_memory: needed.min(room),
        spill_folder: folder.to_owned(),
        engine: quantize::Engine::Cpu,
        device_windows: 0,
    }
}
