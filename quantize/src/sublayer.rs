//! The error that rounding a stage leaves in what its half of the block adds to the residual stream: the objective of the
//! AWQ paper, where the linears of a stage feed another computation of the same half.
//!
//! ```text
//! Qkv      L(s) = Σ ‖o(attention(x; R_s q, R_s k, R_s v)) − o(attention(x; q, k, v))‖²      R_s W = round(W·s) / s
//! GateUp   L(s) = Σ ‖down(act(R_s gate · x) R_s up · x) − down(act(gate x) up x)‖²
//! ```
//!
//! The sums go over all tokens of a few whole windows, for each of which the half is computed anew with every candidate.
//! o's and down's own output is their half's (but for a norm behind it, which few families have), and
//! [`crate::measure`] has its error over all calibration tokens without any forward pass.

use model::{Block, Linear, Stage, decoder::Activations};
use rayon::prelude::*;

/// Tokens of the windows that candidates are tried on, about: whole windows are taken.
pub const SAMPLE_TOKENS: usize = 4096;

/// A stage whose candidates are tried.
pub struct Trial<'a> {
    block: &'a mut Block,
    stage: Stage,
    /// Each window where the stage begins.
    windows: Vec<Activations>,
    /// The residual stream after the half, with the weights as they are.
    expected: Vec<Vec<f32>>,
}

impl<'a> Trial<'a> {
    /// Of `stage`, with the residual stream `[tokens, hidden_size]` of each window before `block`; `None` for the stages
    /// whose output is their half's, or without windows.
    pub fn new(block: &'a mut Block, stage: Stage, sample: &[Vec<f32>]) -> Option<Self> {
        if sample.is_empty() || !matches!(stage, Stage::Qkv | Stage::GateUp) {
            return None;
        }
        let begun = |hidden: &Vec<f32>| {
            let mut activations = Activations { hidden: hidden.clone(), input: Vec::new() };
            block.begin(&mut activations);
            if stage == Stage::GateUp {
                block.advance(Stage::Qkv, &mut activations);
                block.advance(Stage::Output, &mut activations);
            }
            activations
        };
        let windows: Vec<Activations> = sample.par_iter().map(begun).collect();
        let expected = windows.par_iter().map(|window| after(block, stage, window)).collect();
        Some(Self { block, stage, windows, expected })
    }

    /// The linears of the stage.
    pub fn linears(&self) -> &[Linear] {
        self.block.linears(self.stage)
    }

    /// `L` with `weights` in the places of the stage's linears, summed window by window.
    pub fn loss(&mut self, weights: Vec<Vec<f32>>) -> f64 {
        let weights = self.exchange(weights);
        let block = &*self.block;
        let windows = self.windows.par_iter().zip(&self.expected);
        let losses: Vec<f64> = windows
            .map(|(window, expected)| {
                let got = after(block, self.stage, window);
                got.iter().zip(expected).map(|(got, expected)| f64::from(got - expected).powi(2)).sum()
            })
            .collect();
        self.exchange(weights);
        losses.iter().sum()
    }

    /// Puts `weights` into the linears and returns what was there.
    fn exchange(&mut self, weights: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let linears = self.block.linears_mut(self.stage).iter_mut().zip(weights);
        linears.map(|(linear, weight)| std::mem::replace(&mut linear.weight, weight)).collect()
    }
}

/// The residual stream after the half that `stage` begins.
fn after(block: &Block, stage: Stage, window: &Activations) -> Vec<f32> {
    let mut activations = Activations { hidden: window.hidden.clone(), input: window.input.clone() };
    block.advance(stage, &mut activations);
    block.advance(if stage == Stage::Qkv { Stage::Output } else { Stage::Down }, &mut activations);
    activations.hidden
}
