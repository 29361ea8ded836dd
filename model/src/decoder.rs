//! One decoder for every family: a block as four stages, each feeding its input to linears that share it.
//!
//! ```text
//! Qkv     x = norm(h)                     q, k, v = x W
//! Output  x = attention(rope(q), rope(k), v)   h += o(x)
//! GateUp  x = norm(h)                     gate, up = x W
//! Down    x = act(gate) * up              h += down(x)
//! ```
//!
//! A caller walks `begin`, then `advance` for each stage; between them it may read the input of the stage's linears
//! ([`Activations::input`]) and replace their weights. [`Block::forward`] walks all four with a tap.

use crate::Config;

/// The four groups of linears that share an input, in the order of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Stage {
    /// q, k, v (or the fused qkv).
    Qkv,
    /// The attention's output projection.
    Output,
    /// gate and up (or the fused gate_up).
    GateUp,
    /// The feed-forward's output projection.
    Down,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];
}

/// A named linear layer, `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Full module name, e.g. `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Columns.
    pub inputs: usize,
    /// Rows.
    pub outputs: usize,
    /// `[outputs, inputs]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

/// A decoder layer in float32.
pub struct Block {
    /// Position in the model.
    pub index: usize,
    // norms, rope tables, attention shape: private
}

/// Activations of one window inside a block.
pub struct Activations {
    /// The residual stream, `[tokens, hidden_size]`.
    pub hidden: Vec<f32>,
    /// The input of the present stage's linears, `[tokens, width]`.
    pub input: Vec<f32>,
}

impl Block {
    /// The linears of `stage`.
    pub fn linears(&self, stage: Stage) -> &[Linear] {
        let _ = stage;
        todo!("model helper")
    }

    /// The linears of `stage`, to replace their weights.
    pub fn linears_mut(&mut self, stage: Stage) -> &mut [Linear] {
        let _ = stage;
        todo!("model helper")
    }

    /// The width of the input of `stage`.
    pub fn input_width(&self, stage: Stage) -> usize {
        self.linears(stage)[0].inputs
    }

    /// Sets `activations.input` to the input of [`Stage::Qkv`], from `activations.hidden`.
    pub fn begin(&self, activations: &mut Activations) {
        let _ = activations;
        todo!("model helper")
    }

    /// Applies the linears of `stage` to `activations.input` and leaves the next stage's input there (after
    /// [`Stage::Down`] it is left empty and `activations.hidden` is the block's output).
    pub fn advance(&self, stage: Stage, activations: &mut Activations) {
        let _ = (stage, activations);
        todo!("model helper")
    }

    /// The whole block; `tap` sees each stage's input (`[tokens, width]`) before its linears are applied.
    pub fn forward(&self, hidden: Vec<f32>, tap: &mut dyn FnMut(Stage, &[f32])) -> Vec<f32> {
        let mut activations = Activations { hidden, input: Vec::new() };
        self.begin(&mut activations);
        for stage in Stage::ALL {
            tap(stage, &activations.input);
            self.advance(stage, &mut activations);
        }
        activations.hidden
    }
}

/// The final norm and the language-model head.
pub struct Head {
    /// `[vocabulary, hidden_size]`.
    pub weight: Vec<f32>,
    /// `[hidden_size]`.
    pub norm: Vec<f32>,
    /// The model's description.
    pub config: Config,
}

impl Head {
    /// `-log p(targets[r])` in nats after row `r` of `hidden` (`[targets.len(), hidden_size]`, before the final norm).
    pub fn negative_log_likelihood(&self, hidden: &[f32], targets: &[u32]) -> Vec<f32> {
        let _ = (hidden, targets);
        todo!("model helper")
    }

    /// The logits after each row of `hidden`, `[rows, vocabulary]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let _ = hidden;
        todo!("model helper")
    }
}
