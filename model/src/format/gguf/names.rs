//! Tensor names and conventions: GGUF to Hugging Face.
//!
//! ```text
//! token_embd                    model.embed_tokens
//! output_norm                   model.norm
//! output                        lm_head (absent where tied)
//! blk.N.attn_norm               model.layers.N.input_layernorm
//! blk.N.attn_{q,k,v}            model.layers.N.self_attn.{q,k,v}_proj
//! blk.N.attn_qkv                model.layers.N.self_attn.qkv_proj             (Phi-3)
//! blk.N.attn_output             model.layers.N.self_attn.o_proj
//! blk.N.attn_{q,k}_norm         model.layers.N.self_attn.{q,k}_norm           (Qwen3, Gemma 3)
//! blk.N.ffn_norm                model.layers.N.post_attention_layernorm       (not Gemma 3)
//! blk.N.post_attention_norm     model.layers.N.post_attention_layernorm       (Gemma 3)
//! blk.N.ffn_norm                model.layers.N.pre_feedforward_layernorm      (Gemma 3)
//! blk.N.post_ffw_norm           model.layers.N.post_feedforward_layernorm     (Gemma 3)
//! blk.N.ffn_{gate,up,down}      model.layers.N.mlp.{gate,up,down}_proj
//! blk.N.ffn_up                  model.layers.N.mlp.gate_up_proj               (Phi-3)
//! ```
//!
//! Llama files hold q and k for a rope that turns neighbours: with head width d, Hugging Face's row t·d/2 + j of a head
//! (t in {0, 1}) is the file's row 2j + t. Gemma files hold 1 + w for every norm.

use super::Architecture;
use crate::ModelError;
use std::path::Path;

/// What must be done to a tensor to bring it into Hugging Face's convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// Rows of heads of this width go from neighbours to halves.
    Unpermute { head_width: usize },
    /// One is subtracted.
    MinusOne,
}

/// Where row `row` of a Hugging Face tensor lies in a file whose heads are `head_width` wide.
pub(super) fn permuted_row(row: usize, head_width: usize) -> usize {
    let (head, inside) = (row / head_width, row % head_width);
    let (t, j) = (inside / (head_width / 2), inside % (head_width / 2));
    head * head_width + 2 * j + t
}

/// Which row of a Hugging Face tensor lies at `row` of a file whose heads are `head_width` wide.
pub(super) fn unpermuted_row(row: usize, head_width: usize) -> usize {
    let (head, inside) = (row / head_width, row % head_width);
    head * head_width + inside % 2 * (head_width / 2) + inside / 2
}

/// The name in a file of the tensor with the Hugging Face name `name`; the way back of [`hugging_face_name`].
pub(super) fn gguf_name(architecture: Architecture, name: &str) -> Option<String> {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        let outer = ["token_embd.weight", "output_norm.weight", "output.weight"];
        return outer.into_iter().find(|outer| outer_name(outer) == Some(name)).map(str::to_owned);
    };
    let (index, rest) = rest.split_once('.')?;
    let (module, field) = rest.rsplit_once('.')?;
    let part = PARTS.into_iter().find(|part| module_name(architecture, part) == Some(module))?;
    Some(format!("blk.{index}.{part}.{field}"))
}

/// The Hugging Face name of tensor `name`; `None` for tensors that carry settings of the rotary embedding.
pub(super) fn hugging_face_name(
    path: &Path,
    architecture: Architecture,
    layers: u64,
    name: &str,
) -> Result<Option<String>, ModelError> {
    let unknown = || ModelError::Unsupported {
        path: path.into(),
        what: format!("tensor `{name}` in a file of architecture `{}`", architecture.name()),
    };
    if matches!(name, "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight") {
        return Ok(None);
    }
    let translated = match name.strip_prefix("blk.") {
        None => outer_name(name).map(str::to_owned),
        Some(rest) => block_name(architecture, layers, rest),
    };
    translated.map(Some).ok_or_else(unknown)
}

fn outer_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => return None,
    })
}

/// `rest` is what follows `blk.`: `N.part.weight` or `N.part.bias`.
fn block_name(architecture: Architecture, layers: u64, rest: &str) -> Option<String> {
    let (index, rest) = rest.split_once('.')?;
    let number: u64 = index.parse().ok()?;
    if number >= layers || number.to_string() != index {
        return None;
    }
    let (part, field) = rest.rsplit_once('.')?;
    let module = module_name(architecture, part)?;
    let norm = module.ends_with("norm");
    (field == "weight" || (field == "bias" && !norm)).then(|| format!("model.layers.{index}.{module}.{field}"))
}

/// Every part that [`module_name`] knows for some architecture.
const PARTS: [&str; 14] = [
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "attn_q_norm",
    "attn_k_norm",
    "ffn_norm",
    "post_attention_norm",
    "post_ffw_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

fn module_name(architecture: Architecture, part: &str) -> Option<&'static str> {
    let gemma = architecture == Architecture::Gemma3;
    let phi = architecture == Architecture::Phi3;
    Some(match part {
        "attn_norm" => "input_layernorm",
        "attn_q" if !phi => "self_attn.q_proj",
        "attn_k" if !phi => "self_attn.k_proj",
        "attn_v" if !phi => "self_attn.v_proj",
        "attn_qkv" if phi => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" if gemma || architecture == Architecture::Qwen3 => "self_attn.q_norm",
        "attn_k_norm" if gemma || architecture == Architecture::Qwen3 => "self_attn.k_norm",
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" if gemma => "post_attention_layernorm",
        "post_ffw_norm" if gemma => "post_feedforward_layernorm",
        "ffn_up" if phi => "mlp.gate_up_proj",
        "ffn_gate" if !phi => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    })
}

/// What must be done to the tensor with this Hugging Face name.
pub(super) fn change(architecture: Architecture, head_width: usize, name: &str) -> Change {
    let turned = name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.");
    match architecture {
        Architecture::Llama if turned => Change::Unpermute { head_width },
        Architecture::Gemma3 if name.ends_with("norm.weight") => Change::MinusOne,
        _ => Change::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn permuted_row_undoes_the_converter() {
        // The converter: reshape (heads, 2, width / 2, inputs), swap axes 1 and 2, flatten.
        let (heads, width) = (3, 8);
        let rows = heads * width;
        let original = Tensor::arange(0_u32, rows as u32, &Device::Cpu).unwrap();
        let stored: Vec<u32> = original
            .reshape((heads, 2, width / 2))
            .and_then(|t| t.transpose(1, 2))
            .and_then(|t| t.contiguous())
            .and_then(|t| t.flatten_all())
            .and_then(|t| t.to_vec1())
            .unwrap();
        let read: Vec<u32> = (0..rows).map(|row| stored[permuted_row(row, width)]).collect();
        assert_eq!(read, (0..rows as u32).collect::<Vec<_>>());
        assert!((0..rows).all(|row| unpermuted_row(permuted_row(row, width), width) == row));
    }

    #[test]
    fn names_go_both_ways() {
        let path = Path::new("f");
        for architecture in Architecture::ALL {
            for part in PARTS {
                for name in [format!("blk.1.{part}.weight"), format!("blk.0.{part}.bias"), "output.weight".to_owned()] {
                    if let Ok(Some(known)) = hugging_face_name(path, architecture, 2, &name) {
                        assert_eq!(gguf_name(architecture, &known), Some(name), "{architecture:?}");
                    }
                }
            }
            assert_eq!(gguf_name(architecture, "model.layers.0.mlp.router.weight"), None);
            assert_eq!(gguf_name(architecture, "model.other.weight"), None);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let ask = |architecture, name: &str| hugging_face_name(Path::new("f"), architecture, 2, name);
        assert_eq!(
            ask(Architecture::Llama, "blk.1.ffn_norm.weight").unwrap().unwrap(),
            "model.layers.1.post_attention_layernorm.weight"
        );
        assert_eq!(
            ask(Architecture::Gemma3, "blk.0.ffn_norm.weight").unwrap().unwrap(),
            "model.layers.0.pre_feedforward_layernorm.weight"
        );
        assert_eq!(
            ask(Architecture::Phi3, "blk.0.ffn_up.weight").unwrap().unwrap(),
            "model.layers.0.mlp.gate_up_proj.weight"
        );
        for name in [
            "blk.2.ffn_up.weight",
            "blk.+1.ffn_up.weight",
            "blk.01.ffn_up.weight",
            "blk.0.ffn_gate_exps.weight",
            "blk.0.attn_norm.bias",
            "blk.0.attn_q_norm.weight",
            "output.bias",
            "blk.0",
            "",
        ] {
            let error = ask(Architecture::Llama, name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }
}
