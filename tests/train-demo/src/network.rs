//! The demo model: a Llama decoder, written for training.
//!
//! h = E\[token\]; per layer h += O·attention(rope(Q·n), rope(K·n), V·n), n = norm(h), then h += D·(silu(G·n)·U·n),
//! n = norm(h); logits = E·norm(h). Weights are (out, in) as on disk; activations (batch·position, width).

use crate::operations::{CausalSoftmax, CrossEntropy, GatedUnit, RmsNorm, Rope};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The shape of the model, in the words of config.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) vocab_size: usize,
    pub(crate) rms_norm_eps: f32,
    pub(crate) rope_theta: f32,
}

impl Shape {
    /// Every size a multiple of 256, so that each block format and group size applies.
    pub(crate) fn demo(vocab_size: usize) -> Self {
        Self {
            hidden_size: 256,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 64,
            max_position_embeddings: 256,
            vocab_size,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
        }
    }

    /// Names and dimensions of all tensors, in the order of the forward pass.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, dims: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), dims.to_vec()));
            };
            add("input_layernorm", &[hidden]);
            add("self_attn.q_proj", &[queries, hidden]);
            add("self_attn.k_proj", &[keys, hidden]);
            add("self_attn.v_proj", &[keys, hidden]);
            add("self_attn.o_proj", &[hidden, queries]);
            add("post_attention_layernorm", &[hidden]);
            add("mlp.gate_proj", &[inner, hidden]);
            add("mlp.up_proj", &[inner, hidden]);
            add("mlp.down_proj", &[hidden, inner]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors
    }
}

/// The trainable weights by their names on disk.
pub(crate) struct Network {
    shape: Shape,
    pub(crate) weights: BTreeMap<String, Var>,
}

impl Network {
    /// Random weights: norms 1, matrices uniform with deviation 0.02, those that write to the residual stream divided
    /// by √(2·layers).
    pub(crate) fn random(shape: Shape, rng: &mut ChaCha8Rng) -> Result<Self> {
        let mut weights = BTreeMap::new();
        for (name, dims) in shape.tensors() {
            let residual = name.contains("o_proj") || name.contains("down_proj");
            let deviation = 0.02 / if residual { (2.0 * shape.num_hidden_layers as f32).sqrt() } else { 1.0 };
            // A uniform variable on ±a has the deviation a/√3.
            let bound = deviation * 3f32.sqrt();
            let count = dims.iter().product();
            let values: Vec<f32> = match dims.len() {
                1 => vec![1.0; count],
                _ => (0..count).map(|_| rng.random_range(-bound..bound)).collect(),
            };
            weights.insert(name, Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu)?)?);
        }
        Ok(Self { shape, weights })
    }

    /// Weights read from disk, widened to float32.
    pub(crate) fn from_tensors(shape: Shape, mut tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let mut weights = BTreeMap::new();
        for (name, dims) in shape.tensors() {
            let tensor = tensors.remove(&name).with_context(|| format!("tensor `{name}` is missing"))?;
            ensure!(tensor.dims() == dims, "tensor `{name}` has shape {:?}, not {dims:?}", tensor.dims());
            weights.insert(name, Var::from_tensor(&tensor.to_dtype(candle_core::DType::F32)?)?);
        }
        Ok(Self { shape, weights })
    }

    pub(crate) fn parameters(&self) -> usize {
        self.weights.values().map(|var| var.elem_count()).sum()
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        Ok(self.weights.get(name).with_context(|| format!("tensor `{name}` is missing"))?.as_tensor())
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(x.apply_op2(self.weight(name)?, RmsNorm { epsilon: self.shape.rms_norm_eps })?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(x.matmul(&self.weight(name)?.t()?)?)
    }

    /// Attention of one layer over its normed input. The query heads that share a key head are stacked into the rows
    /// of one product, so keys and values aren't repeated.
    fn attention(&self, x: &Tensor, batch: usize, layer: &str) -> Result<Tensor> {
        let (heads, shared, size) =
            (self.shape.num_attention_heads, self.shape.num_key_value_heads, self.shape.head_dim);
        let positions = x.dim(0)? / batch;
        let split = |name: &str, heads: usize| -> Result<Tensor> {
            Ok(self.linear(x, &format!("{layer}.self_attn.{name}.weight"))?.reshape((batch, positions, heads, size))?)
        };
        let turn = |x: Tensor| x.apply_op1(Rope { theta: self.shape.rope_theta, inverse: false });
        let stacked = (batch, shared, heads / shared * positions, size);
        let q = turn(split("q_proj", heads)?)?.transpose(1, 2)?.contiguous()?.reshape(stacked)?;
        let k = turn(split("k_proj", shared)?)?.transpose(1, 2)?.contiguous()?;
        let v = split("v_proj", shared)?.transpose(1, 2)?.contiguous()?;
        let p = q.matmul(&k.t()?)?.apply_op1(CausalSoftmax { scale: 1.0 / (size as f32).sqrt() })?;
        let mixed = p.matmul(&v)?.reshape((batch, heads, positions, size))?.transpose(1, 2)?.contiguous()?;
        let joined = mixed.reshape((batch * positions, heads * size))?;
        self.linear(&joined, &format!("{layer}.self_attn.o_proj.weight"))
    }

    fn feed_forward(&self, x: &Tensor, layer: &str) -> Result<Tensor> {
        let gate = self.linear(x, &format!("{layer}.mlp.gate_proj.weight"))?;
        let up = self.linear(x, &format!("{layer}.mlp.up_proj.weight"))?;
        self.linear(&gate.apply_op2(&up, GatedUnit)?, &format!("{layer}.mlp.down_proj.weight"))
    }

    /// Logits (batch·position, vocabulary) of `batch` equally long windows laid end to end.
    fn logits(&self, tokens: &[u32], batch: usize) -> Result<Tensor> {
        let embedding = self.weight("model.embed_tokens.weight")?;
        let mut hidden = embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for layer in 0..self.shape.num_hidden_layers {
            let layer = format!("model.layers.{layer}");
            let normed = self.norm(&hidden, &format!("{layer}.input_layernorm.weight"))?;
            hidden = (hidden + self.attention(&normed, batch, &layer)?)?;
            let normed = self.norm(&hidden, &format!("{layer}.post_attention_layernorm.weight"))?;
            hidden = (hidden + self.feed_forward(&normed, &layer)?)?;
        }
        Ok(self.norm(&hidden, "model.norm.weight")?.matmul(&embedding.t()?)?)
    }

    /// Mean negative log-likelihood of windows of equal length, each token after a window's first predicted.
    pub(crate) fn loss(&self, windows: &[&[u32]]) -> Result<Tensor> {
        let mut tokens = Vec::new();
        let mut targets = Vec::new();
        for window in windows {
            tokens.extend(&window[..window.len() - 1]);
            targets.extend(&window[1..]);
        }
        Ok(self.logits(&tokens, windows.len())?.apply_op1(CrossEntropy { targets })?)
    }
}
