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
//!
//! Sequences that begin alike are computed once ([`Branching`]): rows are those of a trunk, then those of each branch
//! that continues it; keys and values of what comes before the trunk may be given ([`KeyValues`]). All but rope and
//! attention is row by row and doesn't know the difference.

mod ahead;
pub mod device;
mod fold;

use crate::{
    Config, ModelError,
    config::{LinearLayout, Rope},
    format::TensorSource,
};
use kernels::{
    Compute, activation,
    attention::Attention,
    compute::Prepared,
    divergence,
    few_rows::FEW_ROWS,
    log_probability,
    norm::rms_norm,
    rope::RopeTable,
    stored::{StoredMatrix, Weight},
};
use rayon::prelude::*;
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

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
pub struct Linear<W = Vec<f32>> {
    /// Full module name, e.g. `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Columns.
    pub inputs: usize,
    /// Rows.
    pub outputs: usize,
    /// `[outputs, inputs]`.
    pub weight: W,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

impl<W: Readable> Linear<W> {
    fn read(tensors: &dyn TensorSource, layout: LinearLayout) -> Result<Self, ModelError> {
        let LinearLayout { name, inputs, outputs, bias } = layout;
        let weight = W::read(tensors, &format!("{name}.weight"))?;
        let bias = if bias { Some(read(tensors, &format!("{name}.bias"), outputs)?) } else { None };
        Ok(Self { name, inputs, outputs, weight, bias })
    }
}

impl<W: Weight> Linear<W> {
    /// `x Wᵀ + b` for `x` of `[tokens, inputs]`.
    fn apply(&self, compute: Compute, prepared: &Prepared, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.inputs * self.outputs];
        self.weight.linear(compute, prepared, x, self.bias.as_deref(), self.inputs, &mut out);
        out
    }
}

/// A weight that a checkpoint gives by its name. The name's shape was held against the configuration when the checkpoint
/// was opened.
pub trait Readable: Weight + Sized {
    /// The matrix called `name`.
    fn read(tensors: &dyn TensorSource, name: &str) -> Result<Self, ModelError>;
}

impl Readable for Vec<f32> {
    fn read(tensors: &dyn TensorSource, name: &str) -> Result<Self, ModelError> {
        tensors.read(name)
    }
}

impl Readable for StoredMatrix {
    fn read(tensors: &dyn TensorSource, name: &str) -> Result<Self, ModelError> {
        tensors.stored(name)
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
                // With room to spare: a sequence that grows by a token doesn't need a new one each time.
                let positions = tokens.next_power_of_two();
                let table = Arc::new(RopeTable::new(&frequencies, positions, rope.attention_factor));
                let frequencies = frequencies.into_owned();
                *latest = Some(Latest { frequencies, positions, table: Arc::clone(&table) });
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

/// A decoder layer, its weights in float32 or ([`Checkpoint::stored_block`](crate::Checkpoint::stored_block)) as they are
/// stored.
pub struct Block<W = Vec<f32>> {
    /// Position in the model.
    pub index: usize,
    linears: [Vec<Linear<W>>; 4],
    /// Of each linear: a stage has three at most. Made anew once the weights may have changed.
    prepared: [[Prepared; 3]; 4],
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
    compute: Compute,
}

/// How rows of activations follow each other: a trunk after `before` earlier tokens, and branches that each continue the
/// trunk and don't see each other. A plain sequence is a trunk alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branching {
    /// Tokens before the trunk, whose keys and values are given.
    pub before: usize,
    /// Tokens of the trunk.
    pub trunk: usize,
    /// Tokens of each branch.
    pub branches: Vec<usize>,
}

impl Branching {
    /// A sequence of `tokens` tokens and nothing before it.
    pub fn plain(tokens: usize) -> Self {
        Self { before: 0, trunk: tokens, branches: Vec::new() }
    }

    /// Rows of activations.
    pub fn rows(&self) -> usize {
        self.trunk + self.branches.iter().sum::<usize>()
    }

    /// Tokens of the longest sequence, what comes before the trunk included.
    pub fn longest(&self) -> usize {
        self.before + self.trunk + self.branches.iter().copied().max().unwrap_or(0)
    }
}

/// Keys, turned by rope, and values of consecutive tokens in one block: `[tokens, kv_heads * head_width]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyValues {
    /// Keys.
    pub keys: Vec<f32>,
    /// Values.
    pub values: Vec<f32>,
}

impl KeyValues {
    /// These and `rows` of `more`, of `width` numbers each.
    fn and(&self, more: &Self, rows: Range<usize>, width: usize) -> Self {
        let join = |before: &[f32], more: &[f32]| [before, &more[rows.start * width..rows.end * width]].concat();
        Self { keys: join(&self.keys, &more.keys), values: join(&self.values, &more.values) }
    }
}

/// Activations of one window inside a block.
pub struct Activations {
    /// The residual stream, `[tokens, hidden_size]`.
    pub hidden: Vec<f32>,
    /// The input of the present stage's linears, `[tokens, width]`.
    pub input: Vec<f32>,
}

impl<W: Readable> Block<W> {
    pub(crate) fn read(
        config: &Config,
        tensors: &dyn TensorSource,
        tables: Arc<RopeTables>,
        index: usize,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let names = config.norm_names(index);
        let norm = |name: &str, width: usize| Norm::read(tensors, name, width, config);
        let optional = |name: Option<String>, width: usize| name.map(|name| norm(&name, width)).transpose();
        let stage = |stage: Stage| -> Result<Vec<Linear<W>>, ModelError> {
            config.linears(index, stage).into_iter().map(|layout| Linear::read(tensors, layout)).collect()
        };
        let kind = config.layers[index];
        Ok(Self {
            index,
            linears: [stage(Stage::Qkv)?, stage(Stage::Output)?, stage(Stage::GateUp)?, stage(Stage::Down)?],
            prepared: Default::default(),
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
            compute,
        })
    }
}

impl<W: Weight> Block<W> {
    /// The linears of `stage`.
    pub fn linears(&self, stage: Stage) -> &[Linear<W>] {
        &self.linears[stage as usize]
    }

    /// The linears of `stage`, to replace their weights.
    pub fn linears_mut(&mut self, stage: Stage) -> &mut [Linear<W>] {
        self.prepared[stage as usize] = Default::default();
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

    /// The whole block over a trunk and its branches, `hidden` being `[branching.rows(), hidden_size]`; `before` holds keys
    /// and values of the `branching.before` tokens before the trunk, as this gave them for those in this block. Returns
    /// the block's output with the keys and values of the trunk.
    ///
    /// A row's result depends on its own sequence alone, but for the order of sums: how a sequence is cut into what comes
    /// before, trunk and branch changes it by a few units in the last place.
    pub fn forward_branching(
        &self,
        hidden: Vec<f32>,
        branching: &Branching,
        before: &KeyValues,
    ) -> (Vec<f32>, KeyValues) {
        let mut activations = Activations { hidden, input: Vec::new() };
        self.begin(&mut activations);
        let trunk = self.attend_branching(&mut activations, branching, before);
        for stage in [Stage::Output, Stage::GateUp, Stage::Down] {
            self.advance(stage, &mut activations);
        }
        (activations.hidden, trunk)
    }

    /// The whole block over one more token of each of several sequences: row `r` of `hidden` belongs to the token after
    /// those whose keys and values `caches[r]` holds, and its own are added to them.
    /// Returns the block's output.
    pub fn step(&self, hidden: Vec<f32>, caches: &mut [&mut KeyValues]) -> Vec<f32> {
        let Attention { heads, kv_heads, head_width, .. } = self.attention;
        let (q_width, width) = (heads * head_width, kv_heads * head_width);
        let mut activations = Activations { hidden, input: Vec::new() };
        self.begin(&mut activations);
        let [mut q, mut k, v] = self.projected(&activations.input);
        activations.input.clear();
        activations.input.resize(q.len(), 0.0);
        let outs = activations.input.par_chunks_exact_mut(q_width);
        let rows = q.par_chunks_exact_mut(q_width).zip(k.par_chunks_exact_mut(width)).zip(v.par_chunks_exact(width));
        rows.zip(outs).zip(caches).for_each(|((((q, k), v), out), cache)| {
            let position = cache.keys.len() / width;
            let table = self.tables.table(self.rope, position + 1);
            table.apply(q, heads, head_width, position);
            table.apply(k, kv_heads, head_width, position);
            cache.keys.extend_from_slice(k);
            cache.values.extend_from_slice(v);
            self.attention.causal(self.compute, q, &cache.keys, &cache.values, out);
        });
        for stage in [Stage::Output, Stage::GateUp, Stage::Down] {
            self.advance(stage, &mut activations);
        }
        activations.hidden
    }

    fn attend(&self, activations: &mut Activations) {
        let tokens = activations.input.len() / self.input_width(Stage::Qkv);
        let (q, own) = self.turned(&activations.input, &Branching::plain(tokens));
        activations.input.resize(q.len(), 0.0);
        self.attention.causal(self.compute, &q, &own.keys, &own.values, &mut activations.input);
    }

    fn attend_branching(&self, activations: &mut Activations, branching: &Branching, before: &KeyValues) -> KeyValues {
        let Attention { heads, kv_heads, head_width, .. } = self.attention;
        let (q_width, width) = (heads * head_width, kv_heads * head_width);
        assert_eq!(before.keys.len(), branching.before * width, "keys of what comes before the trunk");
        let (q, own) = self.turned(&activations.input, branching);
        activations.input.resize(q.len(), 0.0);
        let mut attend = |rows: Range<usize>, seen: &KeyValues| {
            let rows = rows.start * q_width..rows.end * q_width;
            self.attention.causal(
                self.compute,
                &q[rows.clone()],
                &seen.keys,
                &seen.values,
                &mut activations.input[rows],
            );
        };
        let trunk = before.and(&own, 0..branching.trunk, width);
        attend(0..branching.trunk, &trunk);
        let mut first = branching.trunk;
        for tokens in &branching.branches {
            let rows = first..first + tokens;
            first = rows.end;
            attend(rows.clone(), &trunk.and(&own, rows, width));
        }
        KeyValues::default().and(&own, 0..branching.trunk, width)
    }

    /// Queries, keys and values of all rows of `x`, queries and keys normed where the family does so.
    fn projected(&self, x: &[f32]) -> [Vec<f32>; 3] {
        let Attention { heads, kv_heads, head_width, .. } = self.attention;
        let [mut q, mut k, v] = self.outputs(Stage::Qkv, x, [heads, kv_heads, kv_heads], head_width);
        let mut normed = Vec::new();
        for (norm, x) in [(&self.query, &mut q), (&self.key, &mut k)] {
            if let Some(norm) = norm {
                norm.apply(x, &mut normed);
                std::mem::swap(x, &mut normed);
            }
        }
        [q, k, v]
    }

    /// [`Block::projected`], queries and keys turned by rope.
    fn turned(&self, x: &[f32], branching: &Branching) -> (Vec<f32>, KeyValues) {
        let Attention { heads, kv_heads, head_width, .. } = self.attention;
        let [mut q, mut k, v] = self.projected(x);
        let table = self.tables.table(self.rope, branching.longest());
        for (x, heads) in [(&mut q, heads), (&mut k, kv_heads)] {
            let (trunk, mut branches) = x.split_at_mut(branching.trunk * heads * head_width);
            table.apply(trunk, heads, head_width, branching.before);
            for tokens in &branching.branches {
                let (branch, rest) = branches.split_at_mut(tokens * heads * head_width);
                table.apply(branch, heads, head_width, branching.before + branching.trunk);
                branches = rest;
            }
        }
        (q, KeyValues { keys: k, values: v })
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
            if x.len() > FEW_ROWS * linears[0].inputs {
                return std::array::from_fn(|part| self.apply(stage, part, x));
            }
            // Few rows are multiplied by all threads, which meet once for all of the linears.
            let mut pieces = std::array::from_fn(|_| Vec::new());
            pieces.par_iter_mut().enumerate().for_each(|(part, piece)| *piece = self.apply(stage, part, x));
            return pieces;
        }
        let fused = self.apply(stage, 0, x);
        let mut begin = 0;
        parts.map(|part| {
            let columns = begin..begin + part * unit;
            begin = columns.end;
            fused.chunks_exact(linears[0].outputs).flat_map(|row| &row[columns.clone()]).copied().collect()
        })
    }

    /// What linear `part` of `stage` makes of `x`.
    fn apply(&self, stage: Stage, part: usize, x: &[f32]) -> Vec<f32> {
        self.linears(stage)[part].apply(self.compute, &self.prepared[stage as usize][part], x)
    }

    /// `hidden += norm(linear(input))`, the norm only where the family has one.
    fn add_to_hidden(&self, stage: Stage, norm: Option<&Norm>, activations: &mut Activations) {
        let mut out = self.apply(stage, 0, &activations.input);
        if let Some(norm) = norm {
            norm.apply(&out, &mut activations.input);
            std::mem::swap(&mut out, &mut activations.input);
        }
        for (hidden, out) in activations.hidden.iter_mut().zip(&out) {
            *hidden += out;
        }
    }
}

/// The final norm and the language-model head, in float32 or as it is stored.
pub struct Head<W = Vec<f32>> {
    /// `[vocabulary, hidden_size]`.
    pub weight: W,
    /// `[hidden_size]`.
    pub norm: Vec<f32>,
    /// The model's description.
    pub config: Config,
    /// How the head is multiplied.
    pub compute: Compute,
}

impl Head {
    /// `-log p(targets[r])` in nats after row `r` of `hidden` (`[targets.len(), hidden_size]`, before the final norm).
    pub fn negative_log_likelihood(&self, hidden: &[f32], targets: &[u32]) -> Vec<f32> {
        let (normed, width) = (self.normed(hidden), self.config.hidden_size);
        log_probability::negative_log_likelihood(self.compute, &normed, &self.weight, width, targets)
    }

    /// The same of several windows, each its hidden states and targets; the head is packed once for all of them.
    pub fn negative_log_likelihoods(&self, windows: &[(&[f32], &[u32])]) -> Vec<Vec<f32>> {
        let normed: Vec<Vec<f32>> = windows.iter().map(|(hidden, _)| self.normed(hidden)).collect();
        let x: Vec<&[f32]> = normed.iter().map(Vec::as_slice).collect();
        let targets: Vec<&[u32]> = windows.iter().map(|(_, targets)| *targets).collect();
        log_probability::negative_log_likelihoods(self.compute, &x, &self.weight, self.config.hidden_size, &targets)
    }

    /// The score of each of `targets[r]` after row `r` of `hidden` (`[targets.len(), hidden_size]`, before the final norm).
    pub fn scores(&self, hidden: &[f32], targets: &[&[u32]]) -> Vec<Vec<log_probability::Score>> {
        let (normed, width) = (self.normed(hidden), self.config.hidden_size);
        log_probability::scores(self.compute, &normed, &self.weight, width, targets)
    }

    /// How far `model` is from this head's model after each row of each window. The vocabularies have to be equal.
    pub fn divergence(&self, model: &Self, windows: &[Compared<'_>]) -> Vec<Vec<divergence::Divergence>> {
        let normed: Vec<[Vec<f32>; 2]> =
            windows.iter().map(|window| [self.normed(window.baseline), model.normed(window.model)]).collect();
        let both = windows.iter().zip(&normed);
        let windows: Vec<Compared<'_>> =
            both.map(|(window, [baseline, model])| Compared { baseline, model, targets: window.targets }).collect();
        divergence::divergence(self.side(), model.side(), &windows)
    }

    fn side(&self) -> divergence::Side<'_> {
        divergence::Side { head: &self.weight, width: self.config.hidden_size, compute: self.compute }
    }
}

/// Hidden states of two models on one window, before their final norms, and the token after each.
pub use divergence::Window as Compared;

impl<W: Weight> Head<W> {
    /// The logits after each row of `hidden`, `[rows, vocabulary]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let mut logits = vec![0.0; hidden.len() / self.config.hidden_size * self.config.vocabulary];
        let normed = self.normed(hidden);
        self.weight.linear(self.compute, &Prepared::default(), &normed, None, self.config.hidden_size, &mut logits);
        logits
    }

    /// `hidden` through the final norm: what the head multiplies.
    pub fn normed(&self, hidden: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; hidden.len()];
        rms_norm(hidden, &self.norm, self.config.norm_offset, self.config.norm_epsilon, &mut normed);
        normed
    }
}
