//! Names and shapes of a checkpoint's tensors, in the convention of Hugging Face checkpoints.
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `model.embed_tokens.weight` | `[vocabulary, hidden]` | |
//! | `model.norm.weight` | `[hidden]` | |
//! | `lm_head.weight` | `[vocabulary, hidden]` | absent when tied |
//! | `model.layers.N.input_layernorm.weight` | `[hidden]` | |
//! | `model.layers.N.post_attention_layernorm.weight` | `[hidden]` | before gate and up; Gemma: after o |
//! | `model.layers.N.{pre,post}_feedforward_layernorm.weight` | `[hidden]` | Gemma: before gate and up, after down |
//! | `model.layers.N.self_attn.{q,k}_norm.weight` | `[head]` | Qwen3, Gemma |
//! | `model.layers.N.self_attn.{q,k,v,o}_proj`, `mlp.{gate,up,down}_proj` | `[outputs, inputs]` | `.weight`, `.bias` |
//! | `model.layers.N.self_attn.qkv_proj`, `mlp.gate_up_proj` | q, k, v or gate, up stacked | Phi-3 |

use super::Config;
use crate::Stage;

/// Name and shape of a linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearLayout {
    /// Full module name, without `.weight`.
    pub name: String,
    /// Columns.
    pub inputs: usize,
    /// Rows.
    pub outputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

/// Names of a layer's norms; those a family lacks are `None`.
pub(crate) struct NormNames {
    pub(crate) before_attention: String,
    pub(crate) after_attention: Option<String>,
    pub(crate) before_feed_forward: String,
    pub(crate) after_feed_forward: Option<String>,
    pub(crate) query: Option<String>,
    pub(crate) key: Option<String>,
}

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

impl Config {
    /// The linears of `stage` in layer `layer`, in the order in which a block holds them.
    pub fn linears(&self, layer: usize, stage: Stage) -> Vec<LinearLayout> {
        let (hidden, wide) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_width, self.kv_heads * self.head_width);
        let linear = |module: &str, inputs: usize, outputs: usize, bias: bool| LinearLayout {
            name: format!("model.layers.{layer}.{module}"),
            inputs,
            outputs,
            bias,
        };
        let biases = self.biases;
        match (stage, self.fused) {
            (Stage::Qkv, true) => vec![linear("self_attn.qkv_proj", hidden, q + 2 * kv, biases.qkv)],
            (Stage::Qkv, false) => vec![
                linear("self_attn.q_proj", hidden, q, biases.qkv),
                linear("self_attn.k_proj", hidden, kv, biases.qkv),
                linear("self_attn.v_proj", hidden, kv, biases.qkv),
            ],
            (Stage::Output, _) => vec![linear("self_attn.o_proj", q, hidden, biases.output)],
            (Stage::GateUp, true) => vec![linear("mlp.gate_up_proj", hidden, 2 * wide, biases.mlp)],
            (Stage::GateUp, false) => {
                vec![linear("mlp.gate_proj", hidden, wide, biases.mlp), linear("mlp.up_proj", hidden, wide, biases.mlp)]
            }
            (Stage::Down, _) => vec![linear("mlp.down_proj", wide, hidden, biases.mlp)],
        }
    }

    pub(crate) fn norm_names(&self, layer: usize) -> NormNames {
        let name = |module: &str| format!("model.layers.{layer}.{module}.weight");
        let (after_attention, before_feed_forward) = if self.post_norms {
            (Some(name("post_attention_layernorm")), name("pre_feedforward_layernorm"))
        } else {
            (None, name("post_attention_layernorm"))
        };
        NormNames {
            before_attention: name("input_layernorm"),
            after_attention,
            before_feed_forward,
            after_feed_forward: self.post_norms.then(|| name("post_feedforward_layernorm")),
            query: self.qk_norm.then(|| name("self_attn.q_norm")),
            key: self.qk_norm.then(|| name("self_attn.k_norm")),
        }
    }

    /// Every tensor of layer `layer` with its shape.
    pub(crate) fn layer_tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        for linear in Stage::ALL.into_iter().flat_map(|stage| self.linears(layer, stage)) {
            if linear.bias {
                tensors.push((format!("{}.bias", linear.name), vec![linear.outputs]));
            }
            tensors.push((format!("{}.weight", linear.name), vec![linear.outputs, linear.inputs]));
        }
        let names = self.norm_names(layer);
        let wide = [names.after_attention, Some(names.before_feed_forward), names.after_feed_forward];
        tensors.push((names.before_attention, vec![self.hidden_size]));
        tensors.extend(wide.into_iter().flatten().map(|name| (name, vec![self.hidden_size])));
        tensors.extend([names.query, names.key].into_iter().flatten().map(|name| (name, vec![self.head_width])));
        tensors
    }

    /// The tensors outside the layers with their shapes: embedding, final norm, head.
    pub(crate) fn outer_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let table = vec![self.vocabulary, self.hidden_size];
        let mut tensors = vec![(EMBEDDING.to_owned(), table.clone()), (FINAL_NORM.to_owned(), vec![self.hidden_size])];
        if !self.tied_head {
            tensors.push((HEAD.to_owned(), table));
        }
        tensors
    }
}
