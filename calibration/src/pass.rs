//! Taking the windows of one batch through a block on one thread, one window after the other, in buffers that are kept
//! from batch to batch: [`Scratch`] for a step that leaves a stage's input, [`Tap`] for a whole block whose stages'
//! inputs are gathered on the way, and [`Flight`] for as many taps as there are threads.

use crate::activations::Layout;
use model::{Block, Stage, decoder::Activations};
use rayon::prelude::*;
use std::ops::Range;

fn buffers() -> Activations {
    Activations { hidden: Vec::new(), input: Vec::new() }
}

fn refill(buffer: &mut Vec<f32>, numbers: &[f32]) {
    buffer.clear();
    buffer.extend_from_slice(numbers);
}

/// Buffers of one thread.
pub(crate) struct Scratch {
    activations: Activations,
    inputs: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { activations: buffers(), inputs: Vec::new() }
    }
}

impl Scratch {
    /// Takes windows of `lengths` through `step`. `hidden` is the batch's slot of the residual stream; `input` its slot
    /// of the stage's input with the width read and the width written.
    pub(crate) fn run(
        &mut self,
        lengths: &[usize],
        hidden: &mut [f32],
        (input, reads, writes): (&mut [f32], usize, usize),
        step: impl Fn(&mut Activations),
    ) {
        let Self { activations, inputs } = self;
        let rows: usize = lengths.iter().sum();
        let width = hidden.len() / rows;
        // Rows written may be wider than those read and would run over the windows still to come.
        refill(inputs, &input[..rows * reads]);
        let mut row = 0;
        for &length in lengths {
            let hidden = &mut hidden[row * width..][..length * width];
            refill(&mut activations.hidden, hidden);
            refill(&mut activations.input, &inputs[row * reads..][..length * reads]);
            step(activations);
            hidden.copy_from_slice(&activations.hidden);
            input[row * writes..][..length * writes].copy_from_slice(&activations.input);
            row += length;
        }
    }
}

/// Buffers of one batch in flight.
pub(crate) struct Tap {
    activations: Activations,
    /// The gathered input of each tapped stage, `[rows, width]`.
    pub(crate) inputs: Vec<Vec<f32>>,
}

impl Tap {
    /// Buffers for so many stages.
    pub(crate) fn new(stages: usize) -> Self {
        Self { activations: buffers(), inputs: vec![Vec::new(); stages] }
    }

    /// Takes windows of `lengths` through `block` and gathers the inputs of `stages`; with `keep`, `hidden` (the batch's
    /// slot of the residual stream) becomes the block's output, else it is left alone and nothing past the last tapped
    /// stage is computed.
    pub(crate) fn run(&mut self, lengths: &[usize], hidden: &mut [f32], block: &Block, stages: &[Stage], keep: bool) {
        let Self { activations, inputs } = self;
        inputs.iter_mut().for_each(Vec::clear);
        let width = hidden.len() / lengths.iter().sum::<usize>();
        let mut rest = hidden;
        for &length in lengths {
            let (hidden, after) = std::mem::take(&mut rest).split_at_mut(length * width);
            rest = after;
            refill(&mut activations.hidden, hidden);
            block.begin(activations);
            for stage in Stage::ALL {
                if let Some(tapped) = stages.iter().position(|other| *other == stage) {
                    inputs[tapped].extend_from_slice(&activations.input);
                }
                if !keep && stages.last() == Some(&stage) {
                    break;
                }
                block.advance(stage, activations);
            }
            if keep {
                hidden.copy_from_slice(&activations.hidden);
            }
        }
    }
}

/// The batches of one run in flight, a tap for each.
pub(crate) struct Flight<'a> {
    slots: Vec<&'a mut [f32]>,
    keep: bool,
    taps: Vec<Tap>,
}

impl<'a> Flight<'a> {
    /// Over the residual stream in `slots`, which is carried on with `keep`; at most `most` batches at once.
    pub(crate) fn new(slots: Vec<&'a mut [f32]>, keep: bool, most: usize, stages: usize) -> Self {
        Self { slots, keep, taps: (0..most).map(|_| Tap::new(stages)).collect() }
    }

    /// Takes `batches`, the first of which is number `first`, through `block`.
    pub(crate) fn run(
        &mut self,
        layout: &Layout,
        first: usize,
        batches: &[Range<usize>],
        block: &Block,
        stages: &[Stage],
    ) {
        let Self { slots, keep, taps } = self;
        let slots = slots[first..][..batches.len()].par_iter_mut();
        slots.zip(batches).zip(taps).with_max_len(1).for_each(|((hidden, batch), tap)| {
            tap.run(layout.lengths(batch), hidden, block, stages, *keep);
        });
    }

    /// The input of tapped stage `stage` in batch `batch` of those in flight.
    pub(crate) fn rows(&self, batch: usize, stage: usize) -> &[f32] {
        &self.taps[batch].inputs[stage]
    }
}
