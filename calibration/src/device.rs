//! The walk's passes on a graphics processor, batch by batch.
//!
//! Activations of the first windows, as many as are chosen, stay on the device from pass to pass; those of the others live
//! in their [`Area`] on the host and go there and back for each pass. Statistics are summed where activations are, as soon
//! as they are computed. Which windows stay changes no number.

use crate::{
    LayerStatistics,
    activations::{Area, Layout},
    driver::DriverOptions,
    walk::widest_input,
};
use kernels::{
    Engine,
    cuda::{Buffer, CudaError, Device, Sums, Totals},
};
use model::{
    Block, Checkpoint, Config, Stage,
    decoder::device::{self, DeviceActivations, DeviceBlock},
};
use std::sync::Arc;

/// What a pass does to activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Makes the first stage's input of the residual stream.
    Begin,
    /// Applies a stage's linears, and leaves the next stage's input.
    Advance(Stage),
}

impl Step {
    fn reads_hidden(self) -> bool {
        self == Self::Begin || self.writes_hidden()
    }

    fn writes_hidden(self) -> bool {
        matches!(self, Self::Advance(Stage::Output | Stage::Down))
    }

    fn run(self, block: &DeviceBlock, activations: &mut DeviceActivations) -> Result<(), CudaError> {
        match self {
            Self::Begin => block.begin(activations),
            Self::Advance(stage) => block.advance(stage, activations),
        }
    }
}

/// Bytes of device memory that a walk takes besides the activations that stay there.
pub fn working_bytes(config: &Config, lengths: &[usize], compare_original: bool) -> usize {
    let layout = Layout::new(lengths.to_vec());
    let batch = layout.batches().iter().map(|batch| layout.rows(batch)).max().unwrap_or(0);
    let streams = if compare_original { 2 } else { 1 };
    let width = |stage| config.linears(0, stage).first().map_or(0, |linear| linear.inputs);
    let sums: usize = Stage::ALL.into_iter().map(|stage| Sums::bytes(width(stage), compare_original)).sum();
    // A batch in bfloat16, twice.
    let split = batch * widest_input(config) * 2 * size_of::<u16>();
    streams * (device::block_bytes(config) + device::activation_bytes(config, batch)) + sums + split
}

/// Bytes of device memory that the activations of a window of `tokens` tokens take where they stay.
pub fn resident_bytes(config: &Config, tokens: usize, compare_original: bool) -> usize {
    let streams = if compare_original { 2 } else { 1 };
    streams * tokens * (config.hidden_size + widest_input(config)) * size_of::<f32>()
}

/// The device that passes run on.
#[derive(Clone, Debug)]
pub(crate) struct Processor {
    pub(crate) device: Arc<Device>,
    /// The first windows, whose activations stay there.
    windows: usize,
}

impl Processor {
    /// The device of the options, if they name one and it can do what the model needs.
    pub(crate) fn new(checkpoint: &Checkpoint, options: &DriverOptions) -> Option<Self> {
        let Engine::Cuda(device) = &options.engine else { return None };
        let able = device::obstacle(&checkpoint.config).is_none();
        able.then(|| Self { device: Arc::clone(device), windows: options.device_windows })
    }

    pub(crate) fn upload(&self, block: &Block) -> Result<DeviceBlock, CudaError> {
        DeviceBlock::upload(&self.device, block)
    }

    /// Whether the activations of batch `batch` stay on the device.
    fn stays(&self, layout: &Layout, batch: usize) -> bool {
        layout.batches()[batch].end <= self.windows
    }

    /// Activations of batch `batch`: those parts that `step` reads, and all where they are on the device already.
    fn take(
        &self,
        stream: &mut OnDevice<'_>,
        layout: &Layout,
        batch: usize,
        (hidden, reads): (bool, usize),
    ) -> Result<DeviceActivations, CudaError> {
        if let Some(held) = stream.held[batch].take() {
            return Ok(held);
        }
        let windows = &layout.batches()[batch];
        let mut taken = DeviceActivations { lengths: layout.lengths(windows).to_vec(), hidden: None, input: None };
        if hidden {
            taken.hidden = Some(self.device.upload(stream.hidden.rows_of(batch, stream.width))?);
        }
        if let Some(input) = stream.input.as_deref().filter(|_| reads > 0) {
            taken.input = Some(self.device.upload(input.rows_of(batch, reads))?);
        }
        Ok(taken)
    }

    /// Puts activations away: on the device where the batch stays there, else those parts that changed.
    fn put(
        &self,
        stream: &mut OnDevice<'_>,
        layout: &Layout,
        batch: usize,
        activations: DeviceActivations,
        (hidden, writes): (bool, usize),
    ) -> Result<(), CudaError> {
        if self.stays(layout, batch) {
            stream.held[batch] = Some(activations);
            return Ok(());
        }
        if let Some(numbers) = activations.hidden.as_ref().filter(|_| hidden) {
            self.device.download_into(numbers, stream.hidden.rows_of_mut(batch, stream.width))?;
        }
        if let (Some(numbers), Some(area)) =
            (activations.input.as_ref().filter(|_| writes > 0), stream.input.as_deref_mut())
        {
            self.device.download_into(numbers, area.rows_of_mut(batch, writes))?;
        }
        Ok(())
    }

    /// Takes all batches through `step`; sums up the input that it leaves where `sums` are there. A second run, of another
    /// model's activations, goes beside where it is there, and is compared.
    pub(crate) fn step(
        &self,
        layout: &Layout,
        runs: &mut Runs<'_>,
        step: Step,
        (reads, writes): (usize, usize),
        mut sums: Option<(&mut Sums, Option<&[f32]>)>,
    ) -> Result<(), CudaError> {
        for batch in 0..layout.batches().len() {
            let mut done = Vec::new();
            for (stream, block) in runs.each() {
                let mut activations = self.take(stream, layout, batch, (step.reads_hidden(), reads))?;
                step.run(block, &mut activations)?;
                done.push(activations);
            }
            if let Some((sums, divisors)) = &mut sums {
                self.add(sums, &done, *divisors)?;
            }
            for ((stream, _), activations) in runs.each().zip(done) {
                self.put(stream, layout, batch, activations, (step.writes_hidden(), writes))?;
            }
        }
        self.device.synchronize()
    }

    /// Takes all batches through the whole block.
    pub(crate) fn carry(&self, layout: &Layout, runs: &mut Runs<'_>) -> Result<(), CudaError> {
        for batch in 0..layout.batches().len() {
            for (stream, block) in runs.each() {
                let mut activations = self.take(stream, layout, batch, (true, 0))?;
                block.forward(&mut activations)?;
                self.put(stream, layout, batch, activations, (true, 0))?;
            }
        }
        self.device.synchronize()
    }

    /// Sums up the inputs of `stages` in one pass; with `keep` the residual stream is carried on. The second run is always.
    pub(crate) fn capture_all(
        &self,
        layout: &Layout,
        runs: &mut Runs<'_>,
        sums: &mut [(Stage, Sums)],
        keep: bool,
    ) -> Result<(), CudaError> {
        let last = sums.last().map(|(stage, _)| *stage);
        for batch in 0..layout.batches().len() {
            let mut taken = Vec::new();
            for (number, (stream, block)) in runs.each().enumerate() {
                let mut activations = self.take(stream, layout, batch, (true, 0))?;
                if number == 0 && !keep && self.stays(layout, batch) {
                    // What is to stay as it is goes back before anything is made of it.
                    let spare = self.spare(&activations)?;
                    self.put(stream, layout, batch, std::mem::replace(&mut activations, spare), (false, 0))?;
                }
                block.begin(&mut activations)?;
                taken.push(activations);
            }
            for stage in Stage::ALL {
                if let Some((_, sums)) = sums.iter_mut().find(|(other, _)| *other == stage) {
                    self.add(sums, &taken, None)?;
                }
                let first = usize::from(!keep && last.is_some_and(|last| stage >= last));
                for ((_, block), activations) in runs.each().zip(&mut taken).skip(first) {
                    block.advance(stage, activations)?;
                }
            }
            for ((stream, _), activations) in runs.each().zip(taken).skip(usize::from(!keep)) {
                self.put(stream, layout, batch, activations, (true, 0))?;
            }
        }
        self.device.synchronize()
    }

    /// The residual stream once more.
    fn spare(&self, activations: &DeviceActivations) -> Result<DeviceActivations, CudaError> {
        let hidden = activations.hidden.as_ref().map(|hidden| self.device.duplicate(hidden)).transpose()?;
        Ok(DeviceActivations { lengths: activations.lengths.clone(), hidden, input: None })
    }

    /// Adds the input of the first run, and how far the second's is from it.
    fn add(&self, sums: &mut Sums, runs: &[DeviceActivations], divisors: Option<&[f32]>) -> Result<(), CudaError> {
        let [run, beside @ ..] = runs else { return Ok(()) };
        sums.add(&self.device, run.input())?;
        beside.iter().try_for_each(|other| sums.add_drift(&self.device, run.input(), other.input(), divisors))
    }

    /// Copies the residual streams that are on the device to their area.
    pub(crate) fn settle(&self, stream: &mut OnDevice<'_>) -> Result<(), CudaError> {
        for batch in 0..stream.held.len() {
            let held: Option<&Buffer<f32>> = stream.held[batch].as_ref().and_then(|held| held.hidden.as_ref());
            if let Some(hidden) = held {
                self.device.download_into(hidden, stream.hidden.rows_of_mut(batch, stream.width))?;
            }
        }
        Ok(())
    }
}

/// A run's activations: in areas, or held on the device.
pub(crate) struct OnDevice<'a> {
    pub(crate) hidden: &'a mut Area,
    pub(crate) input: Option<&'a mut Area>,
    /// By batch.
    pub(crate) held: &'a mut [Option<DeviceActivations>],
    /// Of the residual stream.
    pub(crate) width: usize,
}

/// What a pass takes through which weights: the model, and the original one beside it where that is compared.
pub(crate) struct Runs<'a> {
    pub(crate) run: (OnDevice<'a>, &'a DeviceBlock),
    pub(crate) beside: Option<(OnDevice<'a>, &'a DeviceBlock)>,
}

impl<'a> Runs<'a> {
    fn each(&mut self) -> impl Iterator<Item = (&mut OnDevice<'a>, &'a DeviceBlock)> {
        let beside = self.beside.as_mut().map(|(stream, block)| (stream, &**block));
        std::iter::once((&mut self.run.0, self.run.1)).chain(beside)
    }
}

/// Statistics of sums that were brought back.
pub(crate) fn statistics(totals: Totals) -> LayerStatistics {
    let Totals { rows, gram, absolute, square, drift } = totals;
    LayerStatistics { width: absolute.len(), tokens: rows, gram, sum_absolute: absolute, sum_square: square, drift }
}
