//! A decoder described by data: read from `config.json` or GGUF metadata, one description for every family.

use kernels::activation::Activation;
use serde::{Deserialize, Serialize};

/// The families whose checkpoints are read. Only names and layouts hang on it, never the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Llama 1–3.x, SmolLM2 and whatever else calls itself `LlamaForCausalLM`.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// Gemma 3, text only.
    Gemma3,
    /// Phi-3.
    Phi3,
}

/// Which linear layers carry a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// The attention's output.
    pub output: bool,
    /// gate, up and down.
    pub mlp: bool,
}

/// A rotary embedding: what is turned and by how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// One frequency per turned pair, scaling already applied.
    pub inverse_frequencies: Vec<f32>,
    /// Factor of cosine and sine (long-context scalings), usually 1.
    pub attention_factor: f32,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerKind {
    /// Index into [`Config::ropes`].
    pub rope: usize,
    /// Sliding window in tokens; `None` sees everything before.
    pub window: Option<usize>,
}

/// Everything the forward pass and the checkpoint layout need to know of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward network.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// The longest sequence the model is made for.
    pub max_positions: usize,
    /// Epsilon of every norm.
    pub norm_epsilon: f32,
    /// Added to every norm's weight: 1 for Gemma, else 0.
    pub norm_offset: f32,
    /// Activation of the gate.
    pub activation: Activation,
    /// Biases.
    pub biases: Biases,
    /// Whether queries and keys are normed per head before rope.
    pub qk_norm: bool,
    /// Whether attention's and feed-forward's outputs are normed before they are added (Gemma).
    pub post_norms: bool,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// Factor of the attention scores.
    pub attention_scale: f32,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Whether q, k, v are one matrix `qkv_proj` and gate, up one matrix `gate_up_proj` (Phi-3).
    pub fused: bool,
    /// The rotary embeddings that layers refer to.
    pub ropes: Vec<Rope>,
    /// One entry a layer.
    pub layers: Vec<LayerKind>,
    /// Token put before a text, if the model wants one.
    pub bos_token: Option<u32>,
    /// Tokens that end a text.
    pub eos_tokens: Vec<u32>,
}
