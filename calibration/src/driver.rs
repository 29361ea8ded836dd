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
//! With [`DriverOptions::compare_original`] the original model runs beside: every pass that carries activations on is made
//! for its own as well, with the given weights, and each stage's statistics tell how far its input has drifted from them.
//!
//! A visitor that [prepares](Visitor::prepare) a block sees the statistics of all four stages with the given weights
//! before any is replaced; under `module` that is one more pass.
//!
//! Under `original` no layer sees a replaced one, so both sequences are the same. A block that [`Visitor::restore`]
//! finishes is only carried through (1 pass, no capture), and nothing is carried through past the last block
//! unless [`Visitor::wants_head`].
//!
//! On a device, passes are those of [`crate::device`], and statistics are summed while activations are carried on.
//!
//! Windows run side by side on the current thread pool, each on one thread; sums go over batches of windows in their
//! order. Results are the same bytes for every number of threads, wherever activations live, and whether or not earlier
//! blocks were restored.

use crate::{
    CalibrationError, LayerStatistics,
    activations::{Area, Layout},
    device::{self, Processor, Runs, Step},
    pass::Flight,
    statistics::Accumulator,
    stream::Stream,
    walk::widest_input,
};
pub use crate::{
    visitor::{Divisors, Visitor},
    walk::{DriveReport, DriverOptions, Inputs, Seconds, Sequence, activation_bytes},
};
use kernels::cuda::{CudaError, Sums};
use model::{
    Block, Checkpoint, ModelError, Stage,
    decoder::{Activations, device::DeviceBlock},
};
use std::{
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

/// Walks `checkpoint` over `windows` (token ids; all of one length or not).
pub fn drive(
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
    options: &DriverOptions,
    visitor: &mut dyn Visitor,
) -> Result<DriveReport, CalibrationError> {
    check(checkpoint, windows)?;
    let mut walk = Walk::start(checkpoint, windows, options)?;
    let blocks = checkpoint.config.layers.len();
    // Where passes run on a device, the processor has time to read the next block meanwhile.
    let ahead = walk.processor.is_some();
    thread::scope(|scope| {
        let mut next = None;
        for index in 0..blocks {
            let block = clocked(&mut walk.seconds.load, || match next.take() {
                Some(reading) => finished_reading(reading),
                None => checkpoint.block(index),
            })?;
            next = (ahead && index + 1 < blocks).then(|| scope.spawn(move || checkpoint.block(index + 1)));
            walk.block(block, visitor)?;
            walk.report.blocks.push(std::mem::take(&mut walk.seconds));
        }
        Ok::<(), CalibrationError>(())
    })?;
    if visitor.wants_head() {
        walk.head(visitor)?;
    }
    Ok(walk.report)
}

fn finished_reading(reading: ScopedJoinHandle<'_, Result<Block, ModelError>>) -> Result<Block, ModelError> {
    reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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
    /// What layers see.
    stream: Stream,
    /// What they would see in the original model, where that is compared.
    original: Option<Stream>,
    /// Where passes run, if not here.
    processor: Option<Processor>,
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
        let mut memory = options.activation_bytes_in_memory;
        let mut embedded = || {
            let hidden = Area::new(&layout, width, memory, &options.spill_folder)?;
            memory -= if hidden.is_spilled() { 0 } else { hidden.bytes() };
            Stream::embedded(checkpoint, windows, &layout, hidden)
        };
        let stream = embedded()?;
        let compare = options.compare_original && options.inputs == Inputs::Quantized;
        let original = compare.then(embedded).transpose()?;
        let report = DriveReport { tokens: layout.tokens(), ..DriveReport::default() };
        let seconds = Seconds { load: started.elapsed().as_secs_f64(), ..Seconds::default() };
        let processor = Processor::new(checkpoint, options);
        let mut walk = Self { checkpoint, options, layout, stream, original, processor, seconds, report };
        walk.count_bytes();
        Ok(walk)
    }

    fn areas(&self) -> impl Iterator<Item = &Area> {
        self.stream.areas().chain(self.original.iter().flat_map(Stream::areas))
    }

    fn count_bytes(&mut self) {
        let (all, spilled) = (self.areas().map(Area::bytes).sum(), self.areas().filter(|area| area.is_spilled()));
        self.report.spilled_bytes = spilled.map(Area::bytes).sum();
        self.report.activation_bytes = all;
    }

    fn block(&mut self, mut block: Block, visitor: &mut dyn Visitor) -> Result<(), CalibrationError> {
        let index = block.index;
        let last = index + 1 == self.checkpoint.config.layers.len() && !visitor.wants_head();
        let given = self.original.is_some().then(|| self.load(index)).transpose()?;
        if clocked(&mut self.seconds.visit, || visitor.restore(&mut block))? {
            self.report.restored += 1;
            return if last { Ok(()) } else { self.carry_restored(block, given.as_ref()) };
        }
        let wanted = Stage::ALL.map(|stage| visitor.wants(block.linears(stage)));
        match (self.options.inputs, self.options.sequence) {
            _ if wanted == [false; 4] => {
                if !last {
                    self.carry(&block, given.as_ref())?;
                }
            }
            (Inputs::Original, _) => {
                let (captured, _) = self.prepared(&mut block, wanted, !last, false, visitor)?;
                self.visit_all(&mut block, captured, visitor)?;
            }
            (Inputs::Quantized, Sequence::Block) => {
                let (captured, _) = self.prepared(&mut block, wanted, false, true, visitor)?;
                self.visit_all(&mut block, captured, visitor)?;
                if !last {
                    self.carry(&block, None)?;
                }
            }
            (Inputs::Quantized, Sequence::Module) => {
                let divisors = if visitor.prepares() {
                    self.prepared(&mut block, wanted, false, false, visitor)?.1
                } else {
                    Divisors::new()
                };
                self.in_sequence(&mut block, given.as_ref(), &divisors, wanted, last, visitor)?;
            }
        }
        clocked(&mut self.seconds.visit, || visitor.block_done(&block))
    }

    /// The head's input over all windows.
    fn head(&mut self, visitor: &mut dyn Visitor) -> Result<(), CalibrationError> {
        let head = self.checkpoint.head()?;
        let width = self.checkpoint.config.hidden_size;
        self.settle()?;
        let mut accumulator = Accumulator::new(width, self.checkpoint.compute);
        let mut beside = self.original.as_ref().map(|stream| stream.hidden.batches(width));
        for rows in self.stream.hidden.batches(width) {
            let original = beside.as_mut().and_then(Iterator::next).map(|rows| head.normed(rows));
            accumulator.add_compared(&head.normed(rows), original.as_deref(), None);
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
    fn carry_restored(&mut self, block: Block, given: Option<&Block>) -> Result<(), CalibrationError> {
        let block = match self.options.inputs {
            Inputs::Quantized => block,
            Inputs::Original => {
                let index = block.index;
                drop(block);
                self.load(index)?
            }
        };
        self.carry(&block, given)
    }

    /// Stage after stage over all windows; the original model's activations with the weights of `given`.
    fn in_sequence(
        &mut self,
        block: &mut Block,
        given: Option<&Block>,
        divisors: &Divisors,
        wanted: [bool; 4],
        last: bool,
        visitor: &mut dyn Visitor,
    ) -> Result<(), CalibrationError> {
        self.make_input_areas()?;
        let widths = Stage::ALL.map(|stage| block.input_width(stage));
        let wants = |number: usize| Stage::ALL.get(number).filter(|_| wanted[number]).map(|stage| (*stage, divisors));
        let mut pair = self.on_device(block, given)?;
        let mut captured = self.step(block, given, pair.as_ref(), Step::Begin, (0, widths[0]), wants(0))?;
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            if let Some(statistics) = captured.take() {
                clocked(&mut self.seconds.visit, || {
                    visitor.stage(block.index, stage, block.linears_mut(stage), &statistics)
                })?;
                if let Some(pair) = &mut pair {
                    pair.block.renew(block, stage)?;
                }
            }
            if last && !wanted[number + 1..].contains(&true) {
                break;
            }
            let next = widths.get(number + 1).copied().unwrap_or(0);
            let step = Step::Advance(stage);
            captured = self.step(block, given, pair.as_ref(), step, (widths[number], next), wants(number + 1))?;
        }
        Ok(())
    }

    /// The weights of `block` and `given` on the device, if passes run there.
    fn on_device(&mut self, block: &Block, given: Option<&Block>) -> Result<Option<Pair>, CudaError> {
        let Some(processor) = &self.processor else { return Ok(None) };
        clocked(&mut self.seconds.load, || {
            let given = given.map(|given| processor.upload(given)).transpose()?;
            Ok(Some(Pair { block: processor.upload(block)?, given }))
        })
    }

    /// Takes all windows through `step`; where the stage after it is wanted, the statistics of the input that it leaves.
    fn step(
        &mut self,
        block: &Block,
        given: Option<&Block>,
        pair: Option<&Pair>,
        step: Step,
        widths: (usize, usize),
        wanted: Option<(Stage, &Divisors)>,
    ) -> Result<Option<LayerStatistics>, CalibrationError> {
        let Some(pair) = pair else {
            self.each_stream(block, given, widths, step);
            let capture = |(stage, divisors): (Stage, &Divisors)| self.capture(block, stage, divisors.get(&stage));
            return wanted.map(capture).transpose();
        };
        let hidden_size = self.checkpoint.config.hidden_size;
        let Self { layout, stream, original, processor, seconds, .. } = self;
        let Some(processor) = processor else { unreachable!("weights are on a device") };
        let mut sums = wanted.map(|_| Sums::new(&processor.device, widths.1, self.checkpoint.compute)).transpose()?;
        let divisors = wanted.and_then(|(stage, divisors)| divisors.get(&stage)).map(Vec::as_slice);
        clocked(&mut seconds.propagate, || {
            let mut runs = runs(stream, original.as_mut(), pair, hidden_size);
            processor.step(layout, &mut runs, step, widths, sums.as_mut().map(|sums| (sums, divisors)))
        })?;
        let captured = wanted.zip(sums).map(|((stage, _), sums)| {
            let totals = clocked(&mut seconds.capture, || sums.finish(&processor.device))?;
            finite(device::statistics(totals), block, stage)
        });
        captured.transpose()
    }

    /// Brings the residual streams back that are on a device.
    fn settle(&mut self) -> Result<(), CudaError> {
        let width = self.checkpoint.config.hidden_size;
        let Some(processor) = &self.processor else { return Ok(()) };
        let streams = [Some(&mut self.stream), self.original.as_mut()];
        streams.into_iter().flatten().try_for_each(|stream| processor.settle(&mut stream.on_device(width)))
    }

    fn make_input_areas(&mut self) -> Result<(), CalibrationError> {
        let widest = widest_input(&self.checkpoint.config);
        let Self { layout, stream, original, options, .. } = self;
        let held = |stream: &Stream| stream.areas().filter(|area| !area.is_spilled()).map(Area::bytes).sum::<usize>();
        let mut taken = held(stream) + original.as_ref().map_or(0, held);
        for stream in [Some(stream), original.as_mut()].into_iter().flatten().filter(|stream| stream.input.is_none()) {
            let memory = options.activation_bytes_in_memory.saturating_sub(taken);
            let area = Area::new(layout, widest, memory, &options.spill_folder)?;
            taken += if area.is_spilled() { 0 } else { area.bytes() };
            stream.input = Some(area);
        }
        self.count_bytes();
        Ok(())
    }

    /// The whole block over all windows; the original model's activations with the weights of `given`.
    fn carry(&mut self, block: &Block, given: Option<&Block>) -> Result<(), CalibrationError> {
        let pair = self.on_device(block, given)?;
        let hidden_size = self.checkpoint.config.hidden_size;
        let Self { layout, stream, original, processor, seconds, .. } = self;
        clocked(&mut seconds.propagate, || {
            if let Some((processor, pair)) = processor.as_ref().zip(pair) {
                return processor.carry(layout, &mut runs(stream, original.as_mut(), &pair, hidden_size));
            }
            stream.carry(layout, block);
            if let Some((original, given)) = original.as_mut().zip(given) {
                original.carry(layout, given);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// [`Stream::each_window`] with `block`, and for the original model with `given`.
    fn each_stream(&mut self, block: &Block, given: Option<&Block>, (reads, writes): (usize, usize), step: Step) {
        let Self { layout, stream, original, seconds, .. } = self;
        let run = |block: &Block, activations: &mut Activations| match step {
            Step::Begin => block.begin(activations),
            Step::Advance(stage) => block.advance(stage, activations),
        };
        clocked(&mut seconds.propagate, || {
            stream.each_window(layout, reads, writes, |activations| run(block, activations));
            if let Some((original, given)) = original.as_mut().zip(given) {
                original.each_window(layout, reads, writes, |activations| run(given, activations));
            }
        });
    }

    /// Statistics of the stored input of `stage`.
    fn capture(
        &mut self,
        block: &Block,
        stage: Stage,
        divisors: Option<&Vec<f32>>,
    ) -> Result<LayerStatistics, CalibrationError> {
        let width = block.input_width(stage);
        let mut accumulator = Accumulator::new(width, self.checkpoint.compute);
        let Self { stream, original, seconds, .. } = self;
        clocked(&mut seconds.capture, || {
            let mut beside = original.as_ref().map(|stream| stream.inputs(width));
            for rows in stream.inputs(width) {
                let original = beside.as_mut().and_then(Iterator::next);
                accumulator.add_compared(rows, original, divisors.map(Vec::as_slice));
            }
        });
        finished(accumulator, block, stage)
    }

    /// Statistics of the input of each wanted stage with the weights that `block` has now, in one pass; with `keep` the
    /// residual stream is carried on as well. With `compare` the original model's activations are carried on too, and
    /// compared. As many batches are in flight as there are threads.
    fn capture_all(
        &mut self,
        block: &Block,
        wanted: [bool; 4],
        keep: bool,
        compare: bool,
    ) -> Result<Vec<(Stage, LayerStatistics)>, CalibrationError> {
        let stages: Vec<Stage> = Stage::ALL.into_iter().zip(wanted).filter(|(_, w)| *w).map(|(s, _)| s).collect();
        if self.processor.is_some() {
            return self.capture_all_on_device(block, &stages, keep, compare);
        }
        let mut accumulators: Vec<_> =
            stages.iter().map(|stage| Accumulator::new(block.input_width(*stage), self.checkpoint.compute)).collect();
        let Self { layout, stream, original, seconds, .. } = self;
        let in_flight = rayon::current_num_threads();
        let flight = |slots, keep| Flight::new(slots, keep, in_flight, stages.len());
        let mut seen = flight(stream.hidden.slots_mut(), keep);
        let original = original.as_mut().filter(|_| compare);
        let mut beside = original.map(|original| flight(original.hidden.slots_mut(), true));
        for (group, batches) in layout.batches().chunks(in_flight).enumerate() {
            clocked(&mut seconds.propagate, || {
                for flight in [Some(&mut seen), beside.as_mut()].into_iter().flatten() {
                    flight.run(layout, group * in_flight, batches, block, &stages);
                }
            });
            clocked(&mut seconds.capture, || {
                for batch in 0..batches.len() {
                    for (number, accumulator) in accumulators.iter_mut().enumerate() {
                        let original = beside.as_ref().map(|flight| flight.rows(batch, number));
                        accumulator.add_compared(seen.rows(batch, number), original, None);
                    }
                }
            });
        }
        let captured = stages.into_iter().zip(accumulators);
        captured.map(|(stage, accumulator)| Ok((stage, finished(accumulator, block, stage)?))).collect()
    }

    /// [`Walk::capture_all`] where passes run on a device.
    fn capture_all_on_device(
        &mut self,
        block: &Block,
        stages: &[Stage],
        keep: bool,
        compare: bool,
    ) -> Result<Vec<(Stage, LayerStatistics)>, CalibrationError> {
        let pair = self.on_device(block, None)?;
        let (hidden_size, compute) = (self.checkpoint.config.hidden_size, self.checkpoint.compute);
        let Self { layout, stream, original, processor, seconds, .. } = self;
        let Some((processor, pair)) = processor.as_ref().zip(pair) else { unreachable!("passes run on a device") };
        let sums =
            stages.iter().map(|stage| Ok((*stage, Sums::new(&processor.device, block.input_width(*stage), compute)?)));
        let mut sums = sums.collect::<Result<Vec<_>, CudaError>>()?;
        clocked(&mut seconds.propagate, || {
            let beside = original.as_mut().filter(|_| compare).map(|run| (run.on_device(hidden_size), &pair.block));
            let mut runs = Runs { run: (stream.on_device(hidden_size), &pair.block), beside };
            processor.capture_all(layout, &mut runs, &mut sums, keep)
        })?;
        let captured = sums.into_iter().map(|(stage, sums)| {
            let totals = clocked(&mut seconds.capture, || sums.finish(&processor.device))?;
            Ok((stage, finite(device::statistics(totals), block, stage)?))
        });
        captured.collect()
    }

    /// [`Walk::capture_all`], and what the visitor makes of block and statistics before it replaces anything.
    fn prepared(
        &mut self,
        block: &mut Block,
        wanted: [bool; 4],
        keep: bool,
        compare: bool,
        visitor: &mut dyn Visitor,
    ) -> Result<(Vec<(Stage, LayerStatistics)>, Divisors), CalibrationError> {
        let sample = if visitor.prepares() { self.sample(visitor.sample_tokens())? } else { Vec::new() };
        let mut captured = self.capture_all(block, wanted, keep, compare)?;
        let mut divisors = Divisors::new();
        if visitor.prepares() {
            divisors = clocked(&mut self.seconds.visit, || visitor.prepare(block, &mut captured, &sample))?;
        }
        Ok((captured, divisors))
    }

    /// The residual stream of whole windows, at even distances, that have about `tokens` tokens together.
    fn sample(&mut self, tokens: usize) -> Result<Vec<Vec<f32>>, CudaError> {
        if tokens == 0 {
            return Ok(Vec::new());
        }
        self.settle()?;
        let (width, step) = (self.checkpoint.config.hidden_size, self.layout.tokens().div_ceil(tokens));
        let lengths = self.layout.batches().iter().map(|batch| self.layout.lengths(batch));
        let windows = self.stream.hidden.batches(width).zip(lengths).flat_map(|(rows, lengths)| {
            let ends = lengths.iter().scan(0, |end, length| {
                *end += length;
                Some((*end - length)..*end)
            });
            ends.map(|window| &rows[window.start * width..window.end * width]).collect::<Vec<_>>()
        });
        Ok(windows.step_by(step).map(<[f32]>::to_vec).collect())
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

/// The weights of a block on a device, and those of the original one where that runs beside.
struct Pair {
    block: DeviceBlock,
    given: Option<DeviceBlock>,
}

/// The runs that a pass on a device takes on.
fn runs<'a>(stream: &'a mut Stream, original: Option<&'a mut Stream>, pair: &'a Pair, width: usize) -> Runs<'a> {
    let beside = original.zip(pair.given.as_ref());
    let beside = beside.map(|(original, given)| (original.on_device(width), given));
    Runs { run: (stream.on_device(width), &pair.block), beside }
}

fn finished(accumulator: Accumulator, block: &Block, stage: Stage) -> Result<LayerStatistics, CalibrationError> {
    finite(accumulator.finish(), block, stage)
}

fn finite(statistics: LayerStatistics, block: &Block, stage: Stage) -> Result<LayerStatistics, CalibrationError> {
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
