//! One run of a model over all windows: its residual stream and the present stage's input.

use crate::{
    CalibrationError,
    activations::{Area, Layout},
    device::OnDevice,
    pass::Scratch,
};
use model::{
    Block, Checkpoint, Stage,
    decoder::{Activations, device::DeviceActivations},
};
use rayon::prelude::*;

/// The activations of one run, between two steps.
pub(crate) struct Stream {
    /// The residual stream, `[tokens, hidden_size]`.
    pub(crate) hidden: Area,
    /// The present stage's input; made when the first block needs it.
    pub(crate) input: Option<Area>,
    /// What of it is on a device instead, by batch.
    held: Vec<Option<DeviceActivations>>,
}

impl Stream {
    /// All windows embedded into `hidden`.
    pub(crate) fn embedded(
        checkpoint: &Checkpoint,
        windows: &[Vec<u32>],
        layout: &Layout,
        mut hidden: Area,
    ) -> Result<Self, CalibrationError> {
        let width = checkpoint.config.hidden_size;
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
        let held = layout.batches().iter().map(|_| None).collect();
        Ok(Self { hidden, input: None, held })
    }

    /// What it is stored in.
    pub(crate) fn areas(&self) -> impl Iterator<Item = &Area> {
        [Some(&self.hidden), self.input.as_ref()].into_iter().flatten()
    }

    /// The run as a device's passes take it, the residual stream being `width` wide.
    pub(crate) fn on_device(&mut self, width: usize) -> OnDevice<'_> {
        OnDevice { hidden: &mut self.hidden, input: self.input.as_mut(), held: &mut self.held, width }
    }

    /// The present stage's input, batch by batch.
    pub(crate) fn inputs(&self, width: usize) -> impl Iterator<Item = &[f32]> {
        self.input.iter().flat_map(move |area| area.batches(width))
    }

    /// The whole block over all windows.
    pub(crate) fn carry(&mut self, layout: &Layout, block: &Block) {
        self.each_window(layout, 0, 0, |activations| {
            block.begin(activations);
            for stage in Stage::ALL {
                block.advance(stage, activations);
            }
        });
    }

    /// Takes every window through `step`: the residual stream from and to its area, the stage's input (`reads` wide
    /// before, `writes` wide after; 0 is none) from and to its own.
    pub(crate) fn each_window(
        &mut self,
        layout: &Layout,
        reads: usize,
        writes: usize,
        step: impl Fn(&mut Activations) + Sync,
    ) {
        let inputs = match &mut self.input {
            Some(area) => area.slots_mut(),
            None => layout.batches().iter().map(|_| <&mut [f32]>::default()).collect(),
        };
        let slots = self.hidden.slots_mut().into_par_iter().zip(inputs).zip(layout.batches()).with_max_len(1);
        slots.for_each_init(Scratch::default, |scratch, ((hidden, input), batch)| {
            scratch.run(layout.lengths(batch), hidden, (input, reads, writes), &step);
        });
    }
}
