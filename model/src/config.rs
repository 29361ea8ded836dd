//! A decoder described by data: read from `config.json` (or one made up from GGUF metadata), one description for every
//! family.
//!
//! Three kinds of keys: those that this reader uses; those that change nothing at inference; and everything else, which
//! is refused by name if it hints at arithmetic (the rule is in `fields.rs`). Sizes must be stated; other missing keys
//! take the default that the family's configuration class has in Transformers.

mod fields;
pub(crate) mod layout;
mod rope;

pub use layout::LinearLayout;
pub(crate) use rope::plain;
pub use rope::{Beyond, Rope, Stretch};

use crate::ModelError;
use fields::Fields;
use kernels::activation::Activation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The widest matrix side believed, and the most heads, layers, rows and positions: guards against absurd files.
const LIMIT_WIDTH: usize = 1 << 20;
const LIMIT_HEADS: usize = 1 << 12;
const LIMIT_LAYERS: usize = 1 << 12;
const LIMIT_VOCABULARY: usize = 1 << 24;
const LIMIT_POSITIONS: usize = 1 << 30;

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

/// Names in `architectures` and `model_type`.
const FAMILIES: [(&str, &str, Family); 6] = [
    ("LlamaForCausalLM", "llama", Family::Llama),
    ("MistralForCausalLM", "mistral", Family::Mistral),
    ("Qwen2ForCausalLM", "qwen2", Family::Qwen2),
    ("Qwen3ForCausalLM", "qwen3", Family::Qwen3),
    ("Gemma3ForCausalLM", "gemma3_text", Family::Gemma3),
    ("Phi3ForCausalLM", "phi3", Family::Phi3),
];

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

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerKind {
    /// Index into [`Config::ropes`].
    pub rope: usize,
    /// Sliding window in tokens, the token itself included; `None` sees everything before.
    pub window: Option<usize>,
}

/// Everything the forward pass and the checkpoint layout need to know of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts of a model, not the states of one thing")]
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
    /// `bos_token_id`; whether a text begins with it is the tokenizer's matter.
    pub bos_token: Option<u32>,
    /// Tokens that end a text.
    pub eos_tokens: Vec<u32>,
}

impl Config {
    /// Reads the content of a `config.json`; `path` is for messages.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, ModelError> {
        let fields = Fields::new(json, path)?;
        let family = family(&fields)?;
        quantization_method(json, path)?;
        fields.value("quantization_config");
        let heads = fields.required_size("num_attention_heads", LIMIT_HEADS)?;
        let hidden_size = fields.required_size("hidden_size", LIMIT_WIDTH)?;
        let max_positions = fields.required_size("max_position_embeddings", LIMIT_POSITIONS)?;
        let head_width = head_width(&fields, family, hidden_size, heads)?;
        let windows = windows(&fields, family)?;
        let config = Self {
            family,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size", LIMIT_WIDTH)?,
            heads,
            kv_heads: kv_heads(&fields, heads)?,
            head_width,
            vocabulary: fields.required_size("vocab_size", LIMIT_VOCABULARY)?,
            max_positions,
            norm_epsilon: fields.positive("rms_norm_eps")?.unwrap_or(default_epsilon(family)) as f32,
            norm_offset: if family == Family::Gemma3 { 1.0 } else { 0.0 },
            activation: activation(&fields, family)?,
            biases: biases(&fields, family)?,
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            post_norms: family == Family::Gemma3,
            embedding_scale: if family == Family::Gemma3 { (hidden_size as f64).sqrt() as f32 } else { 1.0 },
            attention_scale: attention_scale(&fields, family, head_width)?,
            tied_head: fields.flag("tie_word_embeddings", family == Family::Gemma3)?,
            fused: family == Family::Phi3,
            ropes: ropes(&fields, family, head_width, max_positions)?,
            layers: layer_kinds(&windows, family),
            bos_token: fields.tokens("bos_token_id")?.first().copied(),
            eos_tokens: fields.tokens("eos_token_id")?,
        };
        fields.refuse_unread()?;
        Ok(config)
    }
}

/// `quantization_config.quant_method`; a method that no reader here knows is refused.
pub(crate) fn quantization_method<'a>(json: &'a Value, path: &Path) -> Result<Option<&'a str>, ModelError> {
    let Some(settings) = json.get("quantization_config").filter(|settings| !settings.is_null()) else {
        return Ok(None);
    };
    match settings.get("quant_method").and_then(Value::as_str) {
        Some(method @ ("gptq" | "awq" | "compressed-tensors")) => Ok(Some(method)),
        Some(method) => {
            Err(ModelError::Unsupported { path: path.to_owned(), what: format!("quantization method `{method}`") })
        }
        None => Err(ModelError::malformed(path, "`quantization_config.quant_method` is missing")),
    }
}

fn family(fields: &Fields<'_>) -> Result<Family, ModelError> {
    let model_type = fields.text("model_type")?;
    let architecture = fields.value("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let (key, name) = match (architecture, model_type) {
        (Some(name), _) => ("architecture", name),
        (None, Some(name)) => ("model type", name),
        (None, None) => return Err(fields.malformed("architectures", "and `model_type` are missing")),
    };
    let (_, named_type, family) = FAMILIES
        .iter()
        .find(|(architecture, model_type, _)| name == *if key == "architecture" { architecture } else { model_type })
        .ok_or_else(|| fields.unsupported_feature(format!("{key} `{name}`")))?;
    match model_type {
        Some(other) if other != *named_type => {
            Err(fields.unsupported_feature(format!("architecture `{name}` with model type `{other}`")))
        }
        _ => Ok(*family),
    }
}

fn head_width(fields: &Fields<'_>, family: Family, hidden: usize, heads: usize) -> Result<usize, ModelError> {
    let width = match (fields.size("head_dim", LIMIT_WIDTH)?, family) {
        (Some(width), _) => width,
        (None, Family::Qwen3) => 128,
        (None, Family::Gemma3) => 256,
        (None, _) if hidden.is_multiple_of(heads) => hidden / heads,
        (None, _) => {
            let what = format!("= {heads} does not divide `hidden_size` = {hidden}, and `head_dim` is missing");
            return Err(fields.malformed("num_attention_heads", &what));
        }
    };
    if width % 2 == 1 {
        return Err(fields.malformed("head_dim", &format!("is {width}; a rotary embedding needs an even width")));
    }
    match width.checked_mul(heads) {
        Some(total) if total <= LIMIT_WIDTH => Ok(width),
        _ => Err(fields.malformed("head_dim", &format!("= {width} times {heads} heads is above {LIMIT_WIDTH}"))),
    }
}

fn kv_heads(fields: &Fields<'_>, heads: usize) -> Result<usize, ModelError> {
    let kv_heads = fields.size("num_key_value_heads", LIMIT_HEADS)?.unwrap_or(heads);
    if heads.is_multiple_of(kv_heads) {
        return Ok(kv_heads);
    }
    let what = format!("= {kv_heads} does not divide `num_attention_heads` = {heads}");
    Err(fields.malformed("num_key_value_heads", &what))
}

fn default_epsilon(family: Family) -> f64 {
    if family == Family::Phi3 { 1e-5 } else { 1e-6 }
}

fn activation(fields: &Fields<'_>, family: Family) -> Result<Activation, ModelError> {
    let (key, default) = match family {
        Family::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
        _ => ("hidden_act", "silu"),
    };
    match fields.text(key)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        _ => Err(fields.unsupported(key)),
    }
}

fn biases(fields: &Fields<'_>, family: Family) -> Result<Biases, ModelError> {
    Ok(match family {
        Family::Llama => {
            let attention = fields.flag("attention_bias", false)?;
            Biases { qkv: attention, output: attention, mlp: fields.flag("mlp_bias", false)? }
        }
        Family::Qwen2 => Biases { qkv: true, output: false, mlp: false },
        Family::Qwen3 | Family::Gemma3 => {
            let attention = fields.flag("attention_bias", false)?;
            Biases { qkv: attention, output: attention, mlp: false }
        }
        Family::Mistral | Family::Phi3 => Biases::default(),
    })
}

/// `1 / sqrt(head width)`; Gemma states the number under the root.
fn attention_scale(fields: &Fields<'_>, family: Family, head_width: usize) -> Result<f32, ModelError> {
    let under_root = match family {
        Family::Gemma3 => fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
        _ => head_width as f64,
    };
    Ok((1.0 / under_root.sqrt()) as f32)
}

/// The sliding window of each layer.
fn windows(fields: &Fields<'_>, family: Family) -> Result<Vec<Option<usize>>, ModelError> {
    let layers = fields.required_size("num_hidden_layers", LIMIT_LAYERS)?;
    if family == Family::Llama {
        return Ok(vec![None; layers]);
    }
    let stated = fields.size("sliding_window", LIMIT_POSITIONS)?;
    let window = match family {
        // Absent and null differ: Mistral's configuration class fills in 4096 for the first only.
        Family::Mistral if !fields.mentions("sliding_window") => Some(4096),
        Family::Gemma3 => Some(stated.unwrap_or(4096)),
        Family::Qwen2 | Family::Qwen3 => fields.flag("use_sliding_window", false)?.then_some(stated.unwrap_or(4096)),
        _ => stated,
    };
    let full_layer = full_layers(fields, family, layers)?;
    if let (Some(false), None, true) = (full_layer.iter().min(), window, fields.mentions("layer_types")) {
        return Err(fields.malformed("layer_types", "names sliding layers, but the model has no sliding window"));
    }
    Ok(full_layer.into_iter().map(|full| if full { None } else { window }).collect())
}

/// Which layers see everything before them, where the model has a sliding window at all.
fn full_layers(fields: &Fields<'_>, family: Family, layers: usize) -> Result<Vec<bool>, ModelError> {
    let listed = match family {
        Family::Mistral | Family::Phi3 | Family::Llama => return Ok(vec![false; layers]),
        Family::Gemma3 | Family::Qwen2 | Family::Qwen3 => fields.value("layer_types"),
    };
    // Read in any case: where the types are listed, these say the same again.
    let pattern = match fields.size("sliding_window_pattern", LIMIT_LAYERS)? {
        None => fields.size("_sliding_window_pattern", LIMIT_LAYERS)?.unwrap_or(6),
        Some(pattern) => pattern,
    };
    let first_sliding = fields.count("max_window_layers")?.unwrap_or(28);
    let Some(listed) = listed else {
        let full = |layer: usize| match family {
            Family::Gemma3 => (layer + 1).is_multiple_of(pattern),
            _ => layer < first_sliding,
        };
        return Ok((0..layers).map(full).collect());
    };
    let types = listed.as_array().filter(|types| types.len() == layers).ok_or_else(|| {
        fields.malformed("layer_types", &format!("has to be a list of `num_hidden_layers` = {layers} types"))
    })?;
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(true),
            Some("sliding_attention") => Ok(false),
            _ => Err(fields.unsupported_feature(format!("layer type `{kind}`"))),
        })
        .collect()
}

/// Gemma turns sliding layers by a rope of their own, the second; the others have one for all layers.
fn layer_kinds(windows: &[Option<usize>], family: Family) -> Vec<LayerKind> {
    let rope = |window: Option<usize>| usize::from(family == Family::Gemma3 && window.is_some());
    windows.iter().map(|&window| LayerKind { rope: rope(window), window }).collect()
}

/// Settings of the ropes lie in `rope_scaling` beside `rope_theta`, or, in newer files, in `rope_parameters`.
fn ropes(fields: &Fields<'_>, family: Family, head_width: usize, max: usize) -> Result<Vec<Rope>, ModelError> {
    let default_base = if family == Family::Gemma3 { 1e6 } else { 1e4 };
    let partial_allowed = family == Family::Phi3;
    let partial = if partial_allowed { fields.positive("partial_rotary_factor")? } else { None };
    if partial.is_some_and(|partial| partial > 1.0) {
        return Err(fields.malformed("partial_rotary_factor", "is above 1"));
    }
    let mut shape = rope::Shape {
        head_width,
        partial: partial.unwrap_or(1.0),
        partial_allowed,
        base: fields.positive("rope_theta")?.unwrap_or(default_base),
        max_positions: max,
        original_positions: fields.size("original_max_position_embeddings", LIMIT_POSITIONS)?,
    };
    let (scaling, parameters) = (fields.nested("rope_scaling")?, fields.nested("rope_parameters")?);
    if scaling.is_some() && parameters.is_some() {
        return Err(fields.unsupported_feature("`rope_scaling` beside `rope_parameters`".to_owned()));
    }
    if family != Family::Gemma3 {
        return Ok(vec![rope::build(scaling.or(parameters).as_ref(), &shape)?]);
    }
    let local_base = fields.positive("rope_local_base_freq")?.unwrap_or(1e4);
    let (global, local) = match &parameters {
        None => (scaling, None),
        Some(parameters) => {
            let part = |key: &str| parameters.nested(key)?.ok_or_else(|| parameters.missing(key)).map(Some);
            (part("full_attention")?, part("sliding_attention")?)
        }
    };
    let global = rope::build(global.as_ref(), &shape)?;
    shape.base = local_base;
    Ok(vec![global, rope::build(local.as_ref(), &shape)?])
}

#[cfg(test)]
mod tests;
