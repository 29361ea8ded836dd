//! The sequential driver: walks a model block by block, stage by stage, captures the statistics of each stage's input
//! over all windows, lets a [`Visitor`] replace the weights, and carries the activations on.
//!
//! ```text
//! inputs     sequence   passes over a block
//! quantized  module     1: capture a stage, replace it, advance all windows to the next stage with its new weights
//! quantized  block      2: one with the given weights captures all four stages; all are replaced; one carries on
//! original   either     1: captures all four stages and carries on with the given weights; then all are replaced
//! ```
//!
//! A visitor that [prepares](Visitor::prepare) a block sees the statistics of all four stages with the given weights
//! before any is replaced; under `module` that is one more pass.
//!
//! Under `original` no layer sees a replaced one, so both sequences are the same. A block that [`Visitor::restore`]
//! finishes is only carried through (1 pass, no capture), and nothing is carried through past the last block
//! unless [`Visitor::wants_head`].
//!
//! Windows run side by side on the current thread pool, each on one thread; sums go over batches of windows in their
//! order. Results are the same bytes for every number of threads, wherever activations live, and whether or not earlier
//! blocks were restored.

use crate::{
    CalibrationError, LayerStatistics,
    activations::{Area, Layout},
    pass::{Scratch, Tap},
    statistics::Accumulator,
};
use model::{
    Block, Checkpoint, Config, Linear, Stage,
    decoder::{Activations, Head},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Instant};

/// Whose outputs the layers after see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// Those of the replaced layers before.
    #[default]
    Quantized,
    /// Those of the original model.
    Original,
}

/// How the linears of a block follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sequence {
    /// In true sequence: each stage sees the replaced stages before it.
    #[default]
    Module,
    /// All at once.
    Block,
}

/// What the driver calls back.
pub trait Visitor {
    /// Puts the replaced weights of a block finished in an earlier run into `block`; `false` if there is none. The block
    /// is then only carried through, not captured.
    fn restore(&mut self, block: &mut Block) -> Result<bool, CalibrationError>;

    /// Whether any linear of this stage wants statistics (skipped modules don't).
    fn wants(&self, linears: &[Linear]) -> bool;

    /// Replaces the weights of `linears`, which share the input that `statistics` describes.
    fn stage(
        &mut self,
        block: usize,
        stage: Stage,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), CalibrationError>;

    /// Whether [`Visitor::prepare`] wants to see blocks before their stages are replaced.
    fn prepares(&self) -> bool {
        false
    }

    /// Changes the weights of `block` in ways that leave what it computes as it was, given the statistics of the input of
    /// each wanted stage. Where that changes a stage's input, `captured` has to be changed alike.
    fn prepare(
        &mut self,
        block: &mut Block,
        captured: &mut [(Stage, LayerStatistics)],
    ) -> Result<(), CalibrationError> {
        let _ = (block, captured);
        Ok(())
    }

    /// A block is done, all its weights replaced; what the visitor wants to survive a crash it makes durable here.
    fn block_done(&mut self, block: &Block) -> Result<(), CalibrationError>;

    /// Whether the language-model head wants statistics. Then activations are carried past the last block.
    fn wants_head(&self) -> bool {
        false
    }

    /// Statistics of the head's input, the last block's output through the final norm.
    fn head(&mut self, head: &Head, statistics: &LayerStatistics) -> Result<(), CalibrationError> {
        let _ = (head, statistics);
        Ok(())
    }
}

/// Settings of the walk.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    /// Whose outputs later layers see.
    pub inputs: Inputs,
    /// How linears inside a block follow each other.
    pub sequence: Sequence,
    /// Bytes of activations held in memory; above that they live in a memory-mapped temporary file.
    pub activation_bytes_in_memory: usize,
    /// Where that file goes.
    pub spill_folder: PathBuf,
}

/// Seconds spent on a part of the walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Bringing weights and embeddings in.
    pub load: f64,
    /// Forward passes.
    pub propagate: f64,
    /// Summing up statistics.
    pub capture: f64,
    /// Inside the visitor.
    pub visit: f64,
}

/// What a walk took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveReport {
    /// Tokens in all windows.
    pub tokens: usize,
    /// Blocks that the visitor restored.
    pub restored: usize,
    /// Seconds for each block; embedding counts as loading the first.
    pub blocks: Vec<Seconds>,
    /// Bytes of the windows' activations, wherever they lived.
    pub activation_bytes: usize,
    /// Those of them that lived in a temporary file.
    pub spilled_bytes: usize,
}

/// Bytes of activations that [`drive`] will store for `tokens` tokens: the residual stream, and with it, where stages
/// follow each other over all windows, the widest input of a stage.
pub fn activation_bytes(config: &Config, tokens: usize, inputs: Inputs, sequence: Sequence) -> usize {
    let stage_input = match (inputs, sequence) {
        (Inputs::Quantized, Sequence::Module) => widest_input(config),
        _ => 0,
    };
    tokens.saturating_mul(config.hidden_size + stage_input).saturating_mul(size_of::<f32>())
}

fn widest_input(config: &Config) -> usize {
    config.hidden_size.max(config.intermediate_size).max(config.heads * config.head_width)
}

/// Walks `checkpoint` over `windows` (token ids; all of one length or not).
pub fn drive(
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
    options: &DriverOptions,
    visitor: &mut dyn Visitor,
) -> Result<DriveReport, CalibrationError> {
    check(checkpoint, windows)?;
    let mut walk = Walk::start(checkpoint, windows, options)?;
    for index in 0..checkpoint.config.layers.len() {
        walk.block(index, visitor)?;
        walk.report.blocks.push(std::mem::take(&mut walk.seconds));
    }
    if visitor.wants_head() {
        walk.head(visitor)?;
    }
    Ok(walk.report)
}

fn check(checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<(), CalibrationError> {
    let longest = checkpoint.config.max_positions;
    if windows.is_empty() {
        return Err(CalibrationError::Option("there is no calibration window".into()));
    }
    for (number, window) in windows.iter().enumerate() {
        if window.is_empty() || window.len() > longest {
            return Err(CalibrationError::Option(format!(
                "calibration window {number} has {} tokens; the model takes 1 to {longest}",
                window.len()
            )));
        }
        if let Some(token) = window.iter().find(|token| **token as usize >= checkpoint.config.vocabulary) {
            return Err(CalibrationError::Option(format!(
                "calibration window {number} holds token {token}, but the model's vocabulary ends at {}: was it cut with another tokenizer?",
                checkpoint.config.vocabulary
            )));
        }
    }
    Ok(())
}

/// The state between blocks.
struct Walk<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a DriverOptions,
    layout: Layout,
    /// The residual stream, `[tokens, hidden_size]`.
    hidden: Area,
    /// The present stage's input; made when the first block needs it.
    input: Option<Area>,
    seconds: Seconds,
    report: DriveReport,
}

impl<'a> Walk<'a> {
    /// Embeds all windows.
    fn start(
        checkpoint: &'a Checkpoint,
        windows: &[Vec<u32>],
        options: &'a DriverOptions,
    ) -> Result<Self, CalibrationError> {
        let started = Instant::now();
        let layout = Layout::new(windows.iter().map(Vec::len).collect());
        let width = checkpoint.config.hidden_size;
        let mut hidden = Area::new(&layout, width, options.activation_bytes_in_memory, &options.spill_folder)?;
        let embedded = hidden.slots_mut().into_par_iter().zip(layout.batches()).map(|(slot, batch)| {
            let mut rest = slot;
            for window in &windows[batch.clone()] {
                let (rows, after) = rest.split_at_mut(window.len() * width);
                rows.copy_from_slice(&checkpoint.embed(window)?);
                rest = after;
            }
            Ok(())
        });
        embedded.collect::<Result<(), CalibrationError>>()?;
        let report = DriveReport { tokens: layout.tokens(), ..DriveReport::default() };
        let seconds = Seconds { load: started.elapsed().as_secs_f64(), ..Seconds::default() };
        let mut walk = Self { checkpoint, options, layout, hidden, input: None, seconds, report };
        walk.count_bytes();
        Ok(walk)
    }

    fn count_bytes(&mut self) {
        let areas = || [Some(&self.hidden), self.input.as_ref()].into_iter().flatten();
        self.report.activation_bytes = areas().map(Area::bytes).sum();
        self.report.spilled_bytes = areas().filter(|area| area.is_spilled()).map(Area::bytes).sum();
    }

    fn block(&mut self, index: usize, visitor: &mut dyn Visitor) -> Result<(), CalibrationError> {
        let last = index + 1 == self.checkpoint.config.layers.len() && !visitor.wants_head();
        let mut block = self.load(index)?;
        if clocked(&mut self.seconds.visit, || visitor.restore(&mut block))? {
            self.report.restored += 1;
            return if last { Ok(()) } else { self.carry_restored(block) };
        }
        let wanted = Stage::ALL.map(|stage| visitor.wants(block.linears(stage)));
        match (self.options.inputs, self.options.sequence) {
            _ if wanted == [false; 4] => {
                if !last {
                    self.carry(&block);
                }
            }
            (Inputs::Original, _) => {
                let captured = self.prepared(&mut block, wanted, !last, visitor)?;
                self.visit_all(&mut block, captured, visitor)?;
            }
            (Inputs::Quantized, Sequence::Block) => {
                let captured = self.prepared(&mut block, wanted, false, visitor)?;
                self.visit_all(&mut block, captured, visitor)?;
                if !last {
                    self.carry(&block);
                }
            }
            (Inputs::Quantized, Sequence::Module) => {
                if visitor.prepares() {
                    self.prepared(&mut block, wanted, false, visitor)?;
                }
                self.in_sequence(&mut block, wanted, last, visitor)?;
            }
        }
        clocked(&mut self.seconds.visit, || visitor.block_done(&block))
    }

    /// The head's input over all windows.
    fn head(&mut self, visitor: &mut dyn Visitor) -> Result<(), CalibrationError> {
        let head = self.checkpoint.head()?;
        let width = self.checkpoint.config.hidden_size;
        let mut accumulator = Accumulator::new(width);
        for rows in self.hidden.batches(width) {
            accumulator.add(&head.normed(rows));
        }
        let statistics = accumulator.finish();
        if !statistics.is_finite() {
            return Err(CalibrationError::NotFinite { module: "lm_head".into() });
        }
        visitor.head(&head, &statistics)
    }

    fn load(&mut self, index: usize) -> Result<Block, CalibrationError> {
        Ok(clocked(&mut self.seconds.load, || self.checkpoint.block(index))?)
    }

    /// Carries the activations through a block whose weights were restored; under `original` that needs them as they
    /// were given.
    fn carry_restored(&mut self, block: Block) -> Result<(), CalibrationError> {
        let block = match self.options.inputs {
            Inputs::Quantized => block,
            Inputs::Original => {
                let index = block.index;
                drop(block);
                self.load(index)?
            }
        };
        self.carry(&block);
        Ok(())
    }

    /// Stage after stage over all windows.
    fn in_sequence(
        &mut self,
        block: &mut Block,
        wanted: [bool; 4],
        last: bool,
        visitor: &mut dyn Visitor,
    ) -> Result<(), CalibrationError> {
        self.make_input_area()?;
        let widths = Stage::ALL.map(|stage| block.input_width(stage));
        self.each_window(0, widths[0], |activations| block.begin(activations));
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            if wanted[number] {
                let statistics = self.capture(block, stage)?;
                clocked(&mut self.seconds.visit, || {
                    visitor.stage(block.index, stage, block.linears_mut(stage), &statistics)
                })?;
            }
            if last && !wanted[number + 1..].contains(&true) {
                break;
            }
            let next = widths.get(number + 1).copied().unwrap_or(0);
            self.each_window(widths[number], next, |activations| block.advance(stage, activations));
        }
        Ok(())
    }

    fn make_input_area(&mut self) -> Result<(), CalibrationError> {
        if self.input.is_none() {
            let in_memory = if self.hidden.is_spilled() { 0 } else { self.hidden.bytes() };
            let memory = self.options.activation_bytes_in_memory.saturating_sub(in_memory);
            let widest = widest_input(&self.checkpoint.config);
            self.input = Some(Area::new(&self.layout, widest, memory, &self.options.spill_folder)?);
            self.count_bytes();
        }
        Ok(())
    }

    /// The whole block over all windows.
    fn carry(&mut self, block: &Block) {
        self.each_window(0, 0, |activations| {
            block.begin(activations);
            for stage in Stage::ALL {
                block.advance(stage, activations);
            }
        });
    }

    /// Takes every window through `step`: the residual stream from and to its area, the stage's input (`reads` wide
    /// before, `writes` wide after; 0 is none) from and to its own.
    fn each_window(&mut self, reads: usize, writes: usize, step: impl Fn(&mut Activations) + Sync) {
        let Self { layout, hidden, input, seconds, .. } = self;
        let inputs = match input {
            Some(area) => area.slots_mut(),
            None => layout.batches().iter().map(|_| <&mut [f32]>::default()).collect(),
        };
        let slots = hidden.slots_mut().into_par_iter().zip(inputs).zip(layout.batches()).with_max_len(1);
        clocked(&mut seconds.propagate, || {
            slots.for_each_init(Scratch::default, |scratch, ((hidden, input), batch)| {
                scratch.run(layout.lengths(batch), hidden, (input, reads, writes), &step);
            });
        });
    }

    /// Statistics of the stored input of `stage`.
    fn capture(&mut self, block: &Block, stage: Stage) -> Result<LayerStatistics, CalibrationError> {
        let width = block.input_width(stage);
        let mut accumulator = Accumulator::new(width);
        clocked(&mut self.seconds.capture, || {
            for rows in self.input.iter().flat_map(|area| area.batches(width)) {
                accumulator.add(rows);
            }
        });
        finished(accumulator, block, stage)
    }

    /// Statistics of the input of each wanted stage with the weights that `block` has now, in one pass; with `keep` the
    /// residual stream is carried on as well. As many batches are in flight as there are threads.
    fn capture_all(
        &mut self,
        block: &Block,
        wanted: [bool; 4],
        keep: bool,
    ) -> Result<Vec<(Stage, LayerStatistics)>, CalibrationError> {
        let stages: Vec<Stage> = Stage::ALL.into_iter().zip(wanted).filter(|(_, w)| *w).map(|(s, _)| s).collect();
        let mut accumulators: Vec<_> = stages.iter().map(|stage| Accumulator::new(block.input_width(*stage))).collect();
        let Self { layout, hidden, seconds, .. } = self;
        let in_flight = rayon::current_num_threads();
        let mut taps: Vec<Tap> = (0..in_flight).map(|_| Tap::new(stages.len())).collect();
        let mut slots = hidden.slots_mut();
        for (slots, batches) in slots.chunks_mut(in_flight).zip(layout.batches().chunks(in_flight)) {
            clocked(&mut seconds.propagate, || {
                let flights = slots.par_iter_mut().zip(batches).zip(&mut taps).with_max_len(1);
                flights.for_each(|((hidden, batch), tap)| tap.run(layout.lengths(batch), hidden, block, &stages, keep));
            });
            clocked(&mut seconds.capture, || {
                for tap in &taps[..batches.len()] {
                    for (accumulator, rows) in accumulators.iter_mut().zip(&tap.inputs) {
                        accumulator.add(rows);
                    }
                }
            });
        }
        let captured = stages.into_iter().zip(accumulators);
        captured.map(|(stage, accumulator)| Ok((stage, finished(accumulator, block, stage)?))).collect()
    }

    /// [`Walk::capture_all`], and what the visitor makes of block and statistics before it replaces anything.
    fn prepared(
        &mut self,
        block: &mut Block,
        wanted: [bool; 4],
        keep: bool,
        visitor: &mut dyn Visitor,
    ) -> Result<Vec<(Stage, LayerStatistics)>, CalibrationError> {
        let mut captured = self.capture_all(block, wanted, keep)?;
        if visitor.prepares() {
            clocked(&mut self.seconds.visit, || visitor.prepare(block, &mut captured))?;
        }
        Ok(captured)
    }

    fn visit_all(
        &mut self,
        block: &mut Block,
        captured: Vec<(Stage, LayerStatistics)>,
        visitor: &mut dyn Visitor,
    ) -> Result<(), CalibrationError> {
        for (stage, statistics) in captured {
            clocked(&mut self.seconds.visit, || {
                visitor.stage(block.index, stage, block.linears_mut(stage), &statistics)
            })?;
        }
        Ok(())
    }
}

fn finished(accumulator: Accumulator, block: &Block, stage: Stage) -> Result<LayerStatistics, CalibrationError> {
    let statistics = accumulator.finish();
    if statistics.is_finite() {
        Ok(statistics)
    } else {
        Err(CalibrationError::NotFinite { module: block.linears(stage)[0].name.clone() })
    }
}

/// Runs `work` and adds its wall time to `seconds`.
fn clocked<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *seconds += started.elapsed().as_secs_f64();
    result
}
