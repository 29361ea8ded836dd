//! Negative log-likelihoods of many windows, one decoder layer in memory at a time.
//!
//! ```text
//! for each batch of windows that fits the budget
//!     h = embeddings                           one [tokens, hidden] matrix a window
//!     for each block:  load it;  h = block(h)  windows side by side, each on one thread
//!     load the head:   l = −log softmax(h)[target]
//! ```
//!
//! On a device the same is done by [`on_device`], and differs by the order of float32 sums.
//!
//! A window's numbers depend on nothing but the window, so neither the budget nor the threads change a result.

use crate::{EvaluateError, on_device, window::Window};
use model::{Checkpoint, ModelError, decoder::Head};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of hidden states kept at once unless told otherwise.
pub const DEFAULT_MEMORY: u64 = 1 << 30;

/// Rows of several windows that are multiplied with the head together.
const SHARED: usize = 2048;

/// How far scoring has come: one step is a block, or the head, applied to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Blocks applied to this batch; the number of blocks plus one when the head is done.
    pub layer: usize,
    /// Blocks of the model.
    pub layers: usize,
    /// First window of the batch.
    pub first: usize,
    /// Behind the last window of the batch.
    pub end: usize,
}

/// The number of [`Step`]s that [`score`] will report.
pub fn steps(checkpoint: &Checkpoint, windows: &[Window], memory: u64) -> u64 {
    let batches = batches(windows, checkpoint.config.hidden_size, memory).len();
    (batches * (checkpoint.config.layers.len() + 1)) as u64
}

/// `−log p` in nats of every target of every window. At most `memory` bytes of hidden states are kept (one window's at
/// the least), besides what a block needs while it works.
pub fn score(
    checkpoint: &Checkpoint,
    windows: &[Window],
    memory: u64,
    progress: &mut dyn FnMut(Step),
) -> Result<Vec<Vec<f32>>, EvaluateError> {
    let mut scores = Vec::with_capacity(windows.len());
    for batch in batches(windows, checkpoint.config.hidden_size, memory) {
        let mut report = |layer| {
            let layers = checkpoint.config.layers.len();
            progress(Step { layer, layers, first: batch.start, end: batch.end });
        };
        let windows = &windows[batch.clone()];
        let hidden = forward(checkpoint, windows, &mut report)?;
        scores.extend(likelihoods(checkpoint, &checkpoint.head()?, windows, &hidden)?);
        report(checkpoint.config.layers.len() + 1);
    }
    check_finite(checkpoint, windows, &scores)?;
    Ok(scores)
}

/// The hidden states after the last block of all windows: what every score of a model on a text is read off, so that
/// several measures, and comparisons of many models with one, cost one walk over the model's blocks.
pub struct States {
    hidden: Vec<Vec<f32>>,
}

impl States {
    /// Bytes that the states of `windows` take.
    pub fn bytes(checkpoint: &Checkpoint, windows: &[Window]) -> u64 {
        let tokens: usize = windows.iter().map(|window| window.tokens.len() - 1).sum();
        (tokens * checkpoint.config.hidden_size * size_of::<f32>()) as u64
    }

    /// Those of `checkpoint`; `report` hears the number of blocks applied.
    pub fn of(
        checkpoint: &Checkpoint,
        windows: &[Window],
        report: &mut dyn FnMut(usize),
    ) -> Result<Self, EvaluateError> {
        Ok(Self { hidden: forward(checkpoint, windows, report)? })
    }

    /// Those of several texts, each its windows, by one walk over the blocks.
    pub fn of_each(checkpoint: &Checkpoint, texts: &[&[Window]]) -> Result<Vec<Self>, EvaluateError> {
        let all: Vec<Window> = texts.iter().flat_map(|windows| windows.iter().cloned()).collect();
        let mut hidden = forward(checkpoint, &all, &mut |_| {})?.into_iter();
        Ok(texts.iter().map(|windows| Self { hidden: hidden.by_ref().take(windows.len()).collect() }).collect())
    }

    /// `−log p` of every target by the `head` of `checkpoint`, the same to the bit as [`score`] gives it.
    pub fn likelihoods(
        &self,
        checkpoint: &Checkpoint,
        head: &Head,
        windows: &[Window],
    ) -> Result<Vec<Vec<f32>>, EvaluateError> {
        let scores = likelihoods(checkpoint, head, windows, &self.hidden)?;
        check_finite(checkpoint, windows, &scores)?;
        Ok(scores)
    }

    /// The rows of window `index` that its targets are predicted from.
    pub(crate) fn rows(&self, windows: &[Window], index: usize) -> &[f32] {
        let tokens = windows[index].tokens.len() - 1;
        rows(&windows[index], self.hidden[index].len() / tokens, &self.hidden[index])
    }
}

/// Consecutive windows whose hidden states fit `memory` together.
pub(crate) fn batches(windows: &[Window], width: usize, memory: u64) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (index, window) in windows.iter().enumerate() {
        let bytes = (window.tokens.len() * width * size_of::<f32>()) as u64;
        match batches.last_mut() {
            Some(batch) if held + bytes <= memory => batch.end = index + 1,
            _ => {
                batches.push(index..index + 1);
                held = 0;
            }
        }
        held += bytes;
    }
    batches
}

/// Hidden states after the last block of all tokens but the last, which nothing is predicted from.
pub(crate) fn forward(
    checkpoint: &Checkpoint,
    windows: &[Window],
    report: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<f32>>, EvaluateError> {
    if let Some(device) = on_device::of(checkpoint) {
        return on_device::forward(device, checkpoint, windows, report);
    }
    let fed = windows.par_iter().map(|window| checkpoint.embed(&window.tokens[..window.tokens.len() - 1]));
    let mut hidden = fed.collect::<Result<Vec<_>, ModelError>>()?;
    for index in 0..checkpoint.config.layers.len() {
        let block = checkpoint.block(index)?;
        hidden = hidden.into_par_iter().with_max_len(1).map(|hidden| block.forward(hidden, &mut |_, _| {})).collect();
        report(index + 1);
    }
    Ok(hidden)
}

/// `−log p` of every target of `windows`, from their hidden states after the last block.
fn likelihoods(
    checkpoint: &Checkpoint,
    head: &Head,
    windows: &[Window],
    hidden: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>, EvaluateError> {
    if let Some(device) = on_device::of(checkpoint) {
        return on_device::likelihoods(device, head, windows, hidden);
    }
    let (together, width) = (together(windows), checkpoint.config.hidden_size);
    let parts = windows.par_chunks(together).zip(hidden.par_chunks(together)).flat_map_iter(|(windows, hidden)| {
        let parts = windows.iter().zip(hidden);
        let parts: Vec<_> = parts.map(|(window, hidden)| (rows(window, width, hidden), window.targets())).collect();
        head.negative_log_likelihoods(&parts)
    });
    Ok(parts.collect())
}

/// Windows whose rows are multiplied with the head together, so that packing it costs little beside: [`SHARED`] rows, but
/// not so many that a thread has none.
pub(crate) fn together(windows: &[Window]) -> usize {
    let rows = windows.first().map_or(1, |window| window.targets().len().max(1));
    SHARED.div_ceil(rows).min(windows.len().div_ceil(rayon::current_num_threads())).max(1)
}

/// The rows of a window's hidden states that its targets are predicted from.
pub(crate) fn rows<'a>(window: &Window, width: usize, hidden: &'a [f32]) -> &'a [f32] {
    &hidden[(window.scored.start - 1) * width..(window.scored.end - 1) * width]
}

pub(crate) fn check_finite(
    checkpoint: &Checkpoint,
    windows: &[Window],
    scores: &[Vec<f32>],
) -> Result<(), EvaluateError> {
    for (index, scores) in scores.iter().enumerate() {
        if let Some(offset) = scores.iter().position(|score| !score.is_finite()) {
            return Err(EvaluateError::NotFinite {
                model: checkpoint.reference.clone(),
                window: index,
                position: windows[index].scored.start + offset,
                value: scores[offset],
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{protocol::Scored, stream::Stream, window::cut};

    #[test]
    fn batches_fill_the_budget_and_hold_a_window_at_least() {
        let windows = cut(&Stream::of(0..100), Scored::New, 10, 10, None);
        // 10 tokens of 8 floats are 320 bytes a window.
        assert_eq!(batches(&windows, 8, 1000), [0..3, 3..6, 6..9, 9..10]);
        assert_eq!(batches(&windows, 8, 0).len(), 10);
        assert_eq!(batches(&windows, 8, u64::MAX), vec![0..10]);
        assert!(batches(&[], 8, 1).is_empty());
    }
}
