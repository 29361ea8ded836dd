//! `study capture` and `study solve`: statistics as an artefact, and any number of checkpoints from them.

use crate::{StudyError, settings::named, shared::driver_options};
use calibration::{
    CalibrationSet, Inputs, Sequence, WindowOptions,
    captured::{Captured, Mixture, Origin},
    domain::Domain,
};
use console::Progress;
use model::{Checkpoint, checkpoint::SourceFile, format::Target};
use quantize::{AwqOptions, Compute, Job, Options, Outcome, QuantizeError, Request, preflight};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// What to capture.
pub struct Capture {
    /// The model.
    pub model: String,
    /// `SOURCE[=WEIGHT]` of the text.
    pub sources: Vec<String>,
    /// How it is cut.
    pub windows: WindowOptions,
    /// Where the statistics go.
    pub out: PathBuf,
}

/// What to make of captured statistics.
pub struct Solve {
    /// The model they were captured of.
    pub model: String,
    /// Folders of statistics with their shares.
    pub statistics: Vec<(PathBuf, f64)>,
    /// `gptq`, `awq`, `awq+gptq`.
    pub method: String,
    /// Bits per weight.
    pub bits: u32,
    /// Columns to a scale.
    pub group_size: i64,
    /// Symmetric grids.
    pub symmetric: bool,
    /// Order of columns.
    pub act_order: String,
    /// How scales are found.
    pub scale_search: String,
    /// Relative damping.
    pub damping: f64,
    /// The format.
    pub format: Target,
    /// The checkpoint.
    pub out: PathBuf,
    /// Threads at work.
    pub threads: usize,
}

/// Walks the model once and keeps the statistics of every block.
pub fn capture(what: &Capture) -> Result<Captured, StudyError> {
    let checkpoint = Checkpoint::open(&what.model)?;
    let domains = what.sources.iter().map(|source| Domain::parse(source)).collect::<Result<Vec<_>, _>>()?;
    let set = CalibrationSet::build(&domains, &what.windows, &checkpoint)?;
    let origin = Origin {
        model_sha256: checkpoint.source_files()?.into_iter().map(|file| file.sha256).collect(),
        tokens_sha256: set.manifest.tokens_sha256.clone(),
        windows: set.windows.len(),
        tokens: set.tokens(),
        sources: what.sources.clone(),
    };
    let options = driver_options(&checkpoint, set.tokens(), None, &what.out);
    std::fs::create_dir_all(&what.out).map_err(StudyError::io(&what.out))?;
    let mut progress = Progress::new("capturing", checkpoint.config.layers.len() as u64, 0);
    let captured = Captured::capture(&checkpoint, &set.windows, &options, &what.out, &origin, &mut |block| {
        progress.step(&format!("block {block}"));
    })?;
    progress.finish();
    Ok(captured)
}

/// The statistics in `folder`, which have to be of `checkpoint`, whose files are `files`.
pub fn statistics_of(checkpoint: &Checkpoint, files: &[SourceFile], folder: &Path) -> Result<Captured, StudyError> {
    let captured = Captured::open(folder, checkpoint.config.layers.len())?;
    if captured.origin.model_sha256.iter().eq(files.iter().map(|file| &file.sha256)) {
        return Ok(captured);
    }
    let (folder, model) = (folder.display(), &checkpoint.reference);
    Err(StudyError::Settings(format!("{folder} holds statistics of another model than {model}")))
}

/// Solves every block on the statistics and writes the checkpoint, proven like any other.
pub fn solve(what: &Solve) -> Result<Outcome, StudyError> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&what.model)?;
    let files = checkpoint.source_files()?;
    let opened = |(folder, weight): &(PathBuf, f64)| Ok((*weight, statistics_of(&checkpoint, &files, folder)?));
    let parts = what.statistics.iter().map(opened).collect::<Result<Vec<_>, StudyError>>()?;
    let origins: Vec<_> = parts.iter().map(|(weight, part)| json!({ "weight": weight, "of": part.origin })).collect();
    let plan = options(what, &parts)?.check(&checkpoint.config)?;
    let cost = preflight::estimate(&checkpoint, &plan, &[], what.threads, None, &what.out)?;
    let identity = json!({
        "model": what.model, "model_files": files, "settings": plan.options, "statistics": origins,
    });
    let request = Request {
        model: what.model.clone(),
        out: what.out.clone(),
        options: plan.options.clone(),
        threads: what.threads,
        memory: None,
        overwrite: false,
        save_imatrix: None,
        device: quantize::engine::Choice::Cpu,
        device_windows: None,
    };
    if what.out.exists() {
        return Err(QuantizeError::OutputExists { path: what.out.clone() }.into());
    }
    let job = Job {
        request,
        checkpoint,
        plan,
        calibration: None,
        importance: None,
        cost,
        identity,
        started,
        engine: quantize::Engine::Cpu,
        device: String::new(),
        device_windows: 0,
    };
    Ok(job.run_on(&Mixture(parts))?)
}

fn options(what: &Solve, parts: &[(f64, Captured)]) -> Result<Options, StudyError> {
    Ok(Options {
        method: named("method", &what.method)?,
        bits: what.bits,
        group_size: what.group_size,
        symmetric: what.symmetric,
        act_order: named("act-order", &what.act_order)?,
        scale_search: named("scale-search", &what.scale_search)?,
        damping: what.damping,
        input_correction: 0.0,
        awq: AwqOptions::default(),
        compute: Compute::default(),
        inputs: Inputs::Original,
        sequence: Sequence::Block,
        formats: vec![what.format],
        overrides: Vec::new(),
        skip: Vec::new(),
        lm_head: false,
        shard_bytes: 4 << 30,
        calibration: parts.iter().flat_map(|(_, part)| part.origin.sources.clone()).collect(),
        windows: WindowOptions {
            samples: parts.iter().map(|(_, part)| part.origin.windows).sum(),
            sequence_length: 0,
            seed: 0,
            packing: calibration::Packing::Concat,
            field: None,
        },
        imatrix: None,
    })
}

/// `FOLDER[=WEIGHT]`.
pub fn weighted(text: &str) -> Result<(PathBuf, f64), String> {
    let (folder, weight) = match text.rsplit_once('=') {
        Some((folder, weight)) if !Path::new(text).exists() => (folder, weight),
        _ => (text, "1"),
    };
    match weight.parse::<f64>() {
        Ok(weight) if weight > 0.0 && weight.is_finite() => Ok((PathBuf::from(folder), weight)),
        _ => Err("is written FOLDER or FOLDER=WEIGHT, the weight above zero".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_may_have_a_weight() {
        assert_eq!(weighted("a/b"), Ok((PathBuf::from("a/b"), 1.0)));
        assert_eq!(weighted("a=0.25"), Ok((PathBuf::from("a"), 0.25)));
        for wrong in ["a=0", "a=-1", "a=x", "a=inf"] {
            assert!(weighted(wrong).is_err(), "{wrong}");
        }
    }
}
