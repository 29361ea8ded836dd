//! Before the work: what it will need against what there is.
//!
//! Memory is one block in float32, the Hessians of the stages captured at once with their factors, the activations of
//! all windows (or of as many as fit: the rest goes to a temporary file) and the buffers of the threads. Time comes
//! from one window run through the first block.

use crate::{
    QuantizeError,
    plan::{Module, ValidPlan},
};
use calibration::{Inputs, Sequence, driver};
use console::machine;
use kernels::QuantSpec;
use model::{
    Checkpoint, Stage,
    decoder::Activations,
    format::{StoredType, Target},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write, path::Path, time::Instant};

/// Share of the free memory that is taken without being asked to take less.
const SHARE_OF_MEMORY: f64 = 0.8;
/// The program, its tokenizer and what the allocator holds back.
const BASE_MEMORY: u64 = 128 << 20;
/// Matrices of a Hessian's size while it is factored: the sum, the damped copy, the factor, and two in float64.
const HESSIAN_COPIES: u64 = 7;
/// Float copies of a linear while it is solved and measured: given, working, dequantized, difference, product.
const LINEAR_COPIES: u64 = 5;
/// Activations of a window inside a block, in widths of its widest input.
const WINDOW_COPIES: u64 = 4;

/// What a run needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Bytes of memory without the activations.
    pub memory: u64,
    /// Bytes of activations of all windows.
    pub activations: u64,
    /// Bytes of them that are held in memory.
    pub activations_in_memory: u64,
    /// Bytes of memory this run may take.
    pub memory_limit: Option<u64>,
    /// Bytes on disk while it works.
    pub disk: u64,
    /// Bytes free on that disk.
    pub disk_free: Option<u64>,
    /// Seconds, where there is calibration to measure them on.
    pub seconds: Option<f64>,
}

/// Estimates the cost of `plan` for `windows` on `threads` threads, writing to `out`, under a limit of `memory` bytes.
pub fn estimate(
    checkpoint: &Checkpoint,
    plan: &ValidPlan,
    windows: &[Vec<u32>],
    threads: usize,
    memory: Option<u64>,
    out: &Path,
) -> Result<Cost, QuantizeError> {
    let tokens = windows.iter().map(Vec::len).sum();
    let order = (plan.options.inputs, plan.options.sequence);
    let needed = memory_needed(plan, windows, threads);
    let activations = driver::activation_bytes(&checkpoint.config, tokens, order, plan.options.corrects()) as u64;
    let available = machine::available_memory().map(|bytes| (bytes as f64 * SHARE_OF_MEMORY) as u64);
    let memory_limit = memory.or(available);
    let room = memory_limit.map_or(activations, |limit| limit.saturating_sub(needed));
    let activations_in_memory = activations.min(room);
    Ok(Cost {
        memory: needed,
        activations,
        activations_in_memory,
        memory_limit,
        disk: disk_needed(checkpoint, plan)? + (activations - activations_in_memory),
        disk_free: machine::free_disk(out),
        seconds: windows.first().map(|window| seconds_needed(checkpoint, plan, window, tokens, threads)).transpose()?,
    })
}

impl Cost {
    /// What it will take, a line each.
    pub fn text(&self) -> String {
        let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), machine::bytes);
        let in_file = self.activations - self.activations_in_memory;
        let mut text = format!(
            "needs memory: about {} of {}",
            machine::bytes(self.memory + self.activations_in_memory),
            known(self.memory_limit)
        );
        if in_file > 0 {
            let _ = write!(text, ", and {} of activations in a temporary file", machine::bytes(in_file));
        }
        let _ = write!(text, "\nneeds disk: about {} of {} free", machine::bytes(self.disk), known(self.disk_free));
        if let Some(seconds) = self.seconds {
            let _ = write!(text, "\nneeds time: about {seconds:.0} s");
        }
        text
    }

    /// Refuses a run that the machine, or the limit the user set, has no room for.
    pub fn check(&self) -> Result<(), QuantizeError> {
        let refuse = |what, needed, there, advice| {
            Err(QuantizeError::TooLittle { what, needed: machine::bytes(needed), there: machine::bytes(there), advice })
        };
        if let Some(limit) = self.memory_limit.filter(|limit| *limit < self.memory) {
            let advice = "free some, raise --memory, or use fewer --threads and a shorter --sequence-length";
            return refuse("memory", self.memory, limit, advice);
        }
        if let Some(free) = self.disk_free.filter(|free| *free < self.disk) {
            return refuse("disk", self.disk, free, "free some, or put --out on another disk");
        }
        Ok(())
    }
}

/// Weights of the largest block.
fn largest_block(plan: &ValidPlan) -> u64 {
    let blocks = by_block(&plan.modules);
    blocks.values().map(|modules| modules.iter().map(|m| weights(m)).sum::<u64>()).max().unwrap_or(0)
}

/// Bytes of a block that is read while another one is at work, as where the model runs on a device.
pub fn read_ahead(plan: &ValidPlan) -> u64 {
    largest_block(plan) * size_of::<f32>() as u64
}

fn memory_needed(plan: &ValidPlan, windows: &[Vec<u32>], threads: usize) -> u64 {
    let block = largest_block(plan);
    let linear = plan.quantized().map(weights).max().unwrap_or(0);
    let widest = plan.modules.iter().map(|m| m.inputs as u64).max().unwrap_or(0);
    // The block in float32, its integers, and those once more while they are written.
    let solving = block * (4 + 2) + linear * 4 * LINEAR_COPIES;
    if windows.is_empty() {
        return BASE_MEMORY + solving;
    }
    let options = &plan.options;
    let copies = if options.corrects() { 2 } else { 1 };
    let captured_at_once =
        options.sequence == Sequence::Block || options.inputs == Inputs::Original || options.method.scales();
    let squares: Vec<u64> = stage_widths(&plan.modules).values().map(|width| width * width * 4).collect();
    let captured = if captured_at_once { squares.iter().sum() } else { squares.iter().max().copied().unwrap_or(0) };
    let factored = squares.iter().max().copied().unwrap_or(0) * (HESSIAN_COPIES - 1);
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0) as u64;
    // Beside each Hessian the drift's sums, beside the block the one that was given.
    let compared = (copies - 1) * block * 4;
    BASE_MEMORY
        + solving
        + compared
        + copies * captured
        + factored
        + threads as u64 * longest * widest * 4 * WINDOW_COPIES
}

/// The journal (a byte for a code), the checkpoints, and what is copied of the source into each.
fn disk_needed(checkpoint: &Checkpoint, plan: &ValidPlan) -> Result<u64, QuantizeError> {
    let journal: u64 = plan.quantized().map(|module| weights(module) + module_extras(module)).sum();
    let copied = copied_bytes(checkpoint, plan)?;
    let format_bytes = |format: &Target| {
        let packed = plan
            .quantized()
            .map(|module| if format.holds_integers() { packed_bytes(module) } else { weights(module) * 4 });
        packed.sum::<u64>() + copied
    };
    Ok(journal + plan.options.formats.iter().map(format_bytes).sum::<u64>())
}

/// Codes with what belongs to them.
fn packed_bytes(module: &Module) -> u64 {
    weights(module) * u64::from(module.spec.map_or(16, |spec| spec.bits)) / 8 + module_extras(module)
}

/// Scales, zero-points and group index.
fn module_extras(module: &Module) -> u64 {
    let groups = module.spec.map_or(0, |spec| module.outputs * spec.groups(module.inputs)) as u64;
    3 * groups + 4 * module.inputs as u64
}

/// What stays float.
fn copied_bytes(checkpoint: &Checkpoint, plan: &ValidPlan) -> Result<u64, QuantizeError> {
    let mut bytes = 0;
    let kept = plan.modules.iter().filter(|m| m.spec.is_none()).map(|m| format!("{}.weight", m.name));
    for tensor in checkpoint.outer_tensors().into_iter().chain(kept) {
        let width = if checkpoint.tensors.stored_type(&tensor)? == StoredType::F32 { 4 } else { 2 };
        bytes += checkpoint.tensors.shape(&tensor)?.iter().product::<usize>() as u64 * width;
    }
    Ok(bytes)
}

/// One window through the first block tells the rate of this machine; the rest is counting multiplications.
fn seconds_needed(
    checkpoint: &Checkpoint,
    plan: &ValidPlan,
    window: &[u32],
    tokens: usize,
    threads: usize,
) -> Result<f64, QuantizeError> {
    let (inputs, sequence) = (plan.options.inputs, plan.options.sequence);
    let block = checkpoint.block(0)?;
    let mut activations = Activations { hidden: checkpoint.embed(window)?, input: Vec::new() };
    let started = Instant::now();
    block.begin(&mut activations);
    for stage in Stage::ALL {
        block.advance(stage, &mut activations);
    }
    let seconds = started.elapsed().as_secs_f64();
    let first: u64 = plan.modules.iter().filter(|m| m.block == 0).map(weights).sum();
    let rate = (first * window.len() as u64) as f64 / seconds;
    let scales = plan.options.method.scales();
    let captures = if scales && (inputs, sequence) == (Inputs::Quantized, Sequence::Module) { 2.0 } else { 1.0 };
    let twice = inputs == Inputs::Quantized && (scales || sequence == Sequence::Block);
    let streams = if plan.options.corrects() { 2.0 } else { 1.0 };
    let passes = if twice { 2 } else { 1 };
    let all: u64 = plan.modules.iter().map(weights).sum();
    let forward = (all * passes * tokens as u64) as f64;
    // The drift's sums have no symmetry: twice the work of the Gram matrix's.
    let captures = captures + 2.0 * (streams - 1.0);
    Ok((streams * forward + captures * capture_work(plan, tokens) + solve_work(plan) + search_work(plan))
        / rate
        / threads as f64)
}

/// Multiplications of the Gram sums: half a square for each token.
fn capture_work(plan: &ValidPlan, tokens: usize) -> f64 {
    let squares: u64 = stage_widths(&plan.modules).values().map(|width| width * width / 2).sum();
    (squares * tokens as u64) as f64
}

/// Multiplications of solving (half a square for each row, and the factor) and of measuring (a square for each of the
/// given weight, the nearest and the solved).
fn solve_work(plan: &ValidPlan) -> f64 {
    let gptq = plan.options.method.compensates();
    let measured = if gptq { 3.5 } else { 2.0 };
    let rows: f64 = plan.quantized().map(|m| measured * m.outputs as f64 * (m.inputs as f64).powi(2)).sum();
    let factors: f64 = stage_widths(&plan.modules).values().map(|width| (*width as f64).powi(3) / 3.0).sum();
    rows + if gptq { factors } else { 0.0 }
}

/// Multiplications of AWQ's searches: a square for each row and candidate; for clipping a group for each weight and
/// share of the range, and a square for each row twice.
fn search_work(plan: &ValidPlan) -> f64 {
    let options = &plan.options;
    if !options.method.scales() {
        return 0.0;
    }
    let work = |module: &Module, spec: &QuantSpec| {
        let inputs = module.inputs as f64;
        let scale = f64::from(options.awq.steps + 1) * inputs;
        let clip =
            if options.awq.clip { 10.0 * spec.columns_per_group(module.inputs) as f64 + 2.0 * inputs } else { 0.0 };
        weights(module) as f64 * (scale + clip)
    };
    plan.modules.iter().filter_map(|module| Some(work(module, module.spec.as_ref()?))).sum()
}

fn weights(module: &Module) -> u64 {
    module.outputs as u64 * module.inputs as u64
}

fn by_block(modules: &[Module]) -> BTreeMap<usize, Vec<&Module>> {
    let mut blocks: BTreeMap<usize, Vec<&Module>> = BTreeMap::new();
    for module in modules {
        blocks.entry(module.block).or_default().push(module);
    }
    blocks
}

/// The input width of every stage of every block that has something to quantize.
fn stage_widths(modules: &[Module]) -> BTreeMap<(usize, Option<Stage>), u64> {
    modules.iter().filter(|m| m.spec.is_some()).map(|m| ((m.block, m.stage), m.inputs as u64)).collect()
}
