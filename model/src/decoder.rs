//! One decoder for every family: a block as four stages, each feeding its input to linears that share it.
//!
//! ```text
//! Qkv     x = norm(h)                     q, k, v = x W
//! Output  x = attention(rope(q), rope(k), v)   h += o(x)
//! GateUp  x = norm(h)                     gate, up = x W
//! Down    x = act(gate) * up              h += down(x)
//! ```
//!
//! Where a family norms q and k per head it does so before rope; where it norms the outputs of o and down, before they
//! are added. Fused linears hold q, k, v (or gate, up) as consecutive rows.
//!
//! A caller walks `begin`, then `advance` for each stage; between them it may read the input of the stage's linears
//! ([`Activations::input`]) and replace their weights. [`Block::forward`] walks all four with a tap. Everything runs on
//! the calling thread: callers work on many windows at once.

mod fold;

use crate::{
    Config, ModelError,
    config::{LinearLayout, Rope},
    format::TensorSource,
};
use kernels::{activation, attention::Attention, gemm, log_probability, norm::rms_norm, rope::RopeTable};
use std::sync::{Arc, Mutex, PoisonError};

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

impl Linear {
    fn read(tensors: &dyn TensorSource, layout: LinearLayout) -> Result<Self, ModelError> {
        let LinearLayout { name, inputs, outputs, bias } = layout;
        let weight = read(tensors, &format!("{name}.weight"), outputs * inputs)?;
        let bias = if bias { Some(read(tensors, &format!("{name}.bias"), outputs)?) } else { None };
        Ok(Self { name, inputs, outputs, weight, bias })
    }

    /// `x Wᵀ + b` for `x` of `[tokens, inputs]`.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.inputs * self.outputs];
        gemm::linear(x, &self.weight, self.bias.as_deref(), self.inputs, &mut out);
        out
    }
}

/// Tensor `name`, which has to hold `count` numbers.
fn read(tensors: &dyn TensorSource, name: &str, count: usize) -> Result<Vec<f32>, ModelError> {
    let values = tensors.read(name)?;
    if values.len() == count {
        return Ok(values);
    }
    let what = format!("holds {} numbers, the configuration needs {count}", values.len());
    Err(ModelError::Tensor { tensor: name.to_owned(), what })
}

/// The rope tables of a model, shared by its blocks and built when first needed.
pub(crate) struct RopeTables {
    ropes: Vec<Rope>,
    /// The table last built for each rope.
    latest: Vec<Mutex<Option<Latest>>>,
}

/// A rope table with what it was built from.
struct Latest {
    frequencies: Vec<f32>,
    positions: usize,
    table: Arc<RopeTable>,
}

impl RopeTables {
    pub(crate) fn new(ropes: &[Rope]) -> Self {
        Self { ropes: ropes.to_vec(), latest: ropes.iter().map(|_| Mutex::new(None)).collect() }
    }

    /// A table of rope `index` for a window of `tokens` tokens; one made for a longer window serves as well.
    fn table(&self, index: usize, tokens: usize) -> Arc<RopeTable> {
        let rope = &self.ropes[index];
        let frequencies = rope.frequencies(tokens);
        // A thread that panicked while it held the lock left a whole table or none.
        let mut latest = self.latest[index].lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some(latest) if latest.frequencies == *frequencies && latest.positions >= tokens => {
                Arc::clone(&latest.table)
            }
            _ => {
                let table = Arc::new(RopeTable::new(&frequencies, tokens, rope.attention_factor));
                let frequencies = frequencies.into_owned();
                *latest = Some(Latest { frequencies, positions: tokens, table: Arc::clone(&table) });
                table
            }
        }
    }
}

/// A norm's weight with the settings it is applied with.
struct Norm {
    /// Full tensor name, e.g. `model.layers.3.input_layernorm.weight`.
    name: String,
    weight: Vec<f32>,
    offset: f32,
    epsilon: f32,
}

impl Norm {
    fn read(tensors: &dyn TensorSource, name: &str, width: usize, config: &Config) -> Result<Self, ModelError> {
        let weight = read(tensors, name, width)?;
        Ok(Self { name: name.to_owned(), weight, offset: config.norm_offset, epsilon: config.norm_epsilon })
    }

    /// Norms each row of `x` (rows as wide as the weight) into `out`, whose content and length don't matter.
    fn apply(&self, x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        rms_norm(x, &self.weight, self.offset, self.epsilon, out);
    }
}

/// A decoder layer in float32.
pub struct Block {
    /// Position in the model.
    pub index: usize,
    linears: [Vec<Linear>; 4],
    before_attention: Norm,
    after_attention: Option<Norm>,
    before_feed_forward: Norm,
    after_feed_forward: Option<Norm>,
    query: Option<Norm>,
    key: Option<Norm>,
    attention: Attention,
    activation: activation::Activation,
    rope: usize,
    tables: Arc<RopeTables>,
}

/// Activations of one window inside a block.
pub struct Activations {
    /// The residual stream, `[tokens, hidden_size]`.
    pub hidden: Vec<f32>,
    /// The input of the present stage's linears, `[tokens, width]`.
    pub input: Vec<f32>,
}

impl Block {
    pub(crate) fn read(
        config: &Config,
        tensors: &dyn TensorSource,
        tables: Arc<RopeTables>,
        index: usize,
    ) -> Result<Self, ModelError> {
        let names = config.norm_names(index);
        let norm = |name: &str, width: usize| Norm::read(tensors, name, width, config);
        let optional = |name: Option<String>, width: usize| name.map(|name| norm(&name, width)).transpose();
        let stage = |stage: Stage| -> Result<Vec<Linear>, ModelError> {
            config.linears(index, stage).into_iter().map(|layout| Linear::read(tensors, layout)).collect()
        };
        let kind = config.layers[index];
        Ok(Self {
            index,
            linears: [stage(Stage::Qkv)?, stage(Stage::Output)?, stage(Stage::GateUp)?, stage(Stage::Down)?],
            before_attention: norm(&names.before_attention, config.hidden_size)?,
            after_attention: optional(names.after_attention, config.hidden_size)?,
            before_feed_forward: norm(&names.before_feed_forward, config.hidden_size)?,
            after_feed_forward: optional(names.after_feed_forward, config.hidden_size)?,
            query: optional(names.query, config.head_width)?,
            key: optional(names.key, config.head_width)?,
            attention: Attention {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_width: config.head_width,
                scale: config.attention_scale,
                window: kind.window,
            },
            activation: config.activation,
            rope: kind.rope,
            tables,
        })
    }

    /// The linears of `stage`.
    pub fn linears(&self, stage: Stage) -> &[Linear] {
        &self.linears[stage as usize]
    }

    /// The linears of `stage`, to replace their weights.
    pub fn linears_mut(&mut self, stage: Stage) -> &mut [Linear] {
        &mut self.linears[stage as usize]
    }

    /// The width of the input of `stage`.
    pub fn input_width(&self, stage: Stage) -> usize {
        self.linears(stage)[0].inputs
    }

    /// Sets `activations.input` to the input of [`Stage::Qkv`], from `activations.hidden`.
    pub fn begin(&self, activations: &mut Activations) {
        self.before_attention.apply(&activations.hidden, &mut activations.input);
    }

    /// Applies the linears of `stage` to `activations.input` and leaves the next stage's input there (after
    /// [`Stage::Down`] it is left empty and `activations.hidden` is the block's output).
    pub fn advance(&self, stage: Stage, activations: &mut Activations) {
        match stage {
            Stage::Qkv => self.attend(activations),
            Stage::Output => {
                self.add_to_hidden(stage, self.after_attention.as_ref(), activations);
                self.before_feed_forward.apply(&activations.hidden, &mut activations.input);
            }
            Stage::GateUp => self.gate(activations),
            Stage::Down => {
                self.add_to_hidden(stage, self.after_feed_forward.as_ref(), activations);
                activations.input.clear();
            }
        }
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

    fn attend(&self, activations: &mut Activations) {
        let Attention { heads, kv_heads, head_width, .. } = self.attention;
        let [mut q, mut k, v] = self.outputs(Stage::Qkv, &activations.input, [heads, kv_heads, kv_heads], head_width);
        let tokens = q.len() / (heads * head_width);
        let mut normed = Vec::new();
        for (norm, x) in [(&self.query, &mut q), (&self.key, &mut k)] {
            if let Some(norm) = norm {
                norm.apply(x, &mut normed);
                std::mem::swap(x, &mut normed);
            }
        }
        let table = self.tables.table(self.rope, tokens);
        table.apply(&mut q, heads, head_width, 0);
        table.apply(&mut k, kv_heads, head_width, 0);
        activations.input.resize(q.len(), 0.0);
        self.attention.causal(&q, &k, &v, &mut activations.input);
    }

    fn gate(&self, activations: &mut Activations) {
        let width = self.input_width(Stage::Down);
        let [mut gate, up] = self.outputs(Stage::GateUp, &activations.input, [1, 1], width);
        activation::gated(self.activation, &mut gate, &up);
        activations.input = gate;
    }

    /// What the linears of `stage` make of `x`, in as many pieces as `parts`; piece `i` is `parts[i] * unit` wide,
    /// whether it comes from a linear of its own or lies in the rows of a fused one.
    fn outputs<const N: usize>(&self, stage: Stage, x: &[f32], parts: [usize; N], unit: usize) -> [Vec<f32>; N] {
        let linears = self.linears(stage);
        if linears.len() == N {
            return std::array::from_fn(|part| linears[part].apply(x));
        }
        let fused = linears[0].apply(x);
        let mut begin = 0;
        parts.map(|part| {
            let columns = begin..begin + part * unit;
            begin = columns.end;
            fused.chunks_exact(linears[0].outputs).flat_map(|row| &row[columns.clone()]).copied().collect()
        })
    }

    /// `hidden += norm(linear(input))`, the norm only where the family has one.
    fn add_to_hidden(&self, stage: Stage, norm: Option<&Norm>, activations: &mut Activations) {
        let mut out = self.linears(stage)[0].apply(&activations.input);
        if let Some(norm) = norm {
            norm.apply(&out, &mut activations.input);
            std::mem::swap(&mut out, &mut activations.input);
        }
        for (hidden, out) in activations.hidden.iter_mut().zip(&out) {
            *hidden += out;
        }
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
        log_probability::negative_log_likelihood(&self.normed(hidden), &self.weight, self.config.hidden_size, targets)
    }

    /// The logits after each row of `hidden`, `[rows, vocabulary]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let mut logits = vec![0.0; hidden.len() / self.config.hidden_size * self.config.vocabulary];
        gemm::linear(&self.normed(hidden), &self.weight, None, self.config.hidden_size, &mut logits);
        logits
    }

    /// `hidden` through the final norm: what the head multiplies.
    pub fn normed(&self, hidden: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; hidden.len()];
        rms_norm(hidden, &self.norm, self.config.norm_offset, self.config.norm_epsilon, &mut normed);
        normed
    }
}
