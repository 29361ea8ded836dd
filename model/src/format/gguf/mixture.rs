//! Which tensor gets which type: llama.cpp's mixtures as a table.
//!
//! A mixture has a base type for matrices; the table says what differs from it. The output matrix (the embedding, where
//! the two are tied) is Q6_K at least. A type whose blocks don't divide a row's width gives way to a type of blocks of
//! 32, and that, if need be, to float16. Everything with one dimension is float32. Layers are counted from 0 and `n` is
//! their number:
//!
//! | layers | |
//! |---|---|
//! | `Some(more)` | the first eighth, the last eighth, and of those between every third |
//! | `Some(first)` | below a number, or a share of `n` |

use super::TensorType;
use crate::{
    Config,
    config::{Family, layout},
};
use kernels::kquant::BlockType::{self, Iq4Nl, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use serde::{Deserialize, Serialize};

/// What a matrix does in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The head, or the embedding tied to it.
    Output,
    /// v.
    Value,
    /// q, k and v stacked.
    FusedQkv,
    /// o.
    AttentionOutput,
    /// down.
    Down,
    /// Everything else.
    Other,
}

/// Layers of which a rule speaks.
#[derive(Clone, Copy, Debug)]
enum Layers {
    All,
    More,
    First(usize),
    FirstShare(usize),
    /// All, in a model with this many query heads to a key head, or more.
    Grouped(usize),
}

/// `(mixture, role, layers, type)`: the first that matches counts.
const RULES: [(&str, Role, Layers, BlockType); 18] = [
    ("Q5_K_M", Role::Value, Layers::More, Q6K),
    ("Q5_K_M", Role::Down, Layers::More, Q6K),
    ("Q5_K_M", Role::FusedQkv, Layers::All, Q6K),
    ("Q4_K_M", Role::Value, Layers::More, Q6K),
    ("Q4_K_M", Role::Down, Layers::More, Q6K),
    ("Q4_K_M", Role::FusedQkv, Layers::All, Q5K),
    ("Q4_K_S", Role::Value, Layers::First(4), Q5K),
    ("Q4_K_S", Role::Down, Layers::FirstShare(8), Q5K),
    ("Q3_K_M", Role::Value, Layers::First(2), Q5K),
    ("Q3_K_M", Role::Value, Layers::All, Q4K),
    ("Q3_K_M", Role::Down, Layers::FirstShare(16), Q5K),
    ("Q3_K_M", Role::Down, Layers::All, Q4K),
    ("Q3_K_M", Role::AttentionOutput, Layers::All, Q4K),
    ("Q3_K_M", Role::FusedQkv, Layers::All, Q4K),
    ("Q2_K", Role::Value, Layers::Grouped(4), Q4K),
    ("Q2_K", Role::Value, Layers::All, Q3K),
    ("Q2_K", Role::Down, Layers::All, Q3K),
    ("Q2_K", Role::AttentionOutput, Layers::All, Q3K),
];

/// Name, base type and number (`general.file_type`) of every mixture that is written.
const MIXTURES: [(&str, BlockType, u32); 13] = [
    ("Q8_0", Q8_0, 7),
    ("Q6_K", Q6K, 18),
    ("Q5_K_M", Q5K, 17),
    ("Q4_K_M", Q4K, 15),
    ("Q4_K_S", Q4K, 14),
    ("Q3_K_M", Q3K, 12),
    ("Q2_K", Q2K, 10),
    ("Q5_1", Q5_1, 9),
    ("Q5_0", Q5_0, 8),
    ("Q4_1", Q4_1, 3),
    ("Q4_0", Q4_0, 2),
    ("IQ4_NL", Iq4Nl, 25),
    ("Q5_K_S", Q5K, 16),
];

/// A mixture by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub struct Mixture {
    name: &'static str,
    base: BlockType,
    file_type: u32,
}

/// The type of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What the mixture names.
    pub named: BlockType,
    /// What the width of its rows allows.
    pub used: TensorType,
}

impl std::str::FromStr for Mixture {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = MIXTURES.iter().find(|(known, _, _)| known.eq_ignore_ascii_case(name));
        known.map(|&(name, base, file_type)| Self { name, base, file_type }).ok_or_else(|| {
            let names: Vec<&str> = MIXTURES.iter().map(|(name, _, _)| *name).collect();
            format!("there is no GGUF mixture `{name}`; there are {}", names.join(", "))
        })
    }
}

impl TryFrom<String> for Mixture {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<Mixture> for &'static str {
    fn from(mixture: Mixture) -> Self {
        mixture.name
    }
}

impl Mixture {
    /// Names of all mixtures.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MIXTURES.iter().map(|(name, _, _)| *name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The type of most of its matrices.
    pub fn base(self) -> BlockType {
        self.base
    }

    /// Its number in `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.file_type
    }

    /// The type of the matrix with the Hugging Face name `name` (`.weight` and all) whose rows are `inputs` wide.
    pub fn choose(self, config: &Config, name: &str, inputs: usize) -> Choice {
        let (role, layer) = role(config, name);
        let mut named = match role {
            Role::Output => Some(if self.base == Q8_0 { Q8_0 } else { Q6K }),
            _ => RULES
                .iter()
                .find(|(mixture, of, layers, _)| *mixture == self.name && *of == role && layers.hold(config, layer))
                .map(|(_, _, _, kind)| *kind),
        }
        .unwrap_or(self.base);
        // Llama with 80 layers and grouped queries is the 70B: eight query heads share each of its few v rows.
        let large = config.family == Family::Llama && config.layers.len() == 80 && config.heads != config.kv_heads;
        if large && role == Role::Value && matches!(named, Q3K | Q4K) {
            named = Q5K;
        }
        Choice { named, used: fitting(named, inputs) }
    }
}

impl Layers {
    fn hold(self, config: &Config, layer: usize) -> bool {
        let n = config.layers.len();
        match self {
            Self::All => true,
            Self::More => layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2,
            Self::First(count) => layer < count,
            Self::FirstShare(part) => layer < n / part,
            Self::Grouped(queries) => config.heads / config.kv_heads >= queries,
        }
    }
}

/// What the tensor does, and in which layer.
fn role(config: &Config, name: &str) -> (Role, usize) {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(0);
    let module = name.strip_suffix(".weight").unwrap_or(name).rsplit('.').next().unwrap_or(name);
    let role = match module {
        "lm_head" => Role::Output,
        _ if name == layout::EMBEDDING && config.tied_head => Role::Output,
        "v_proj" => Role::Value,
        "qkv_proj" => Role::FusedQkv,
        "o_proj" => Role::AttentionOutput,
        "down_proj" => Role::Down,
        _ => Role::Other,
    };
    (role, layer)
}

/// `named`, or what takes its place where its blocks don't divide `inputs`.
fn fitting(named: BlockType, inputs: usize) -> TensorType {
    if inputs.is_multiple_of(named.columns()) {
        return TensorType::Block(named);
    }
    let small = match named {
        Q2K | Q3K => Iq4Nl,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        other => other,
    };
    if inputs.is_multiple_of(small.columns()) { TensorType::Block(small) } else { TensorType::F16 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn config(layers: usize, hidden: usize, kv_heads: usize) -> Config {
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
            "intermediate_size": 2 * hidden, "num_attention_heads": 8, "num_key_value_heads": kv_heads,
            "num_hidden_layers": layers, "vocab_size": 320, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "rope_theta": 1e4, "tie_word_embeddings": true,
        });
        Config::from_json(&json, Path::new("config.json")).unwrap()
    }

    /// The types of one matrix in all layers.
    fn types(mixture: &str, config: &Config, module: &str) -> String {
        let mixture: Mixture = mixture.parse().unwrap();
        let name = |layer| format!("model.layers.{layer}.{module}.weight");
        let types = (0..config.layers.len()).map(|layer| mixture.choose(config, &name(layer), 256).used.name());
        types.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn mixtures_give_more_bits_where_llama_cpp_does() {
        let config = config(8, 256, 4);
        // n = 8: the first, the last, and of 1..6 those two beyond a multiple of three from 1: 3 and 6.
        let more = "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K";
        assert_eq!(types("Q4_K_M", &config, "self_attn.v_proj"), more);
        assert_eq!(types("q4_k_m", &config, "mlp.down_proj"), more);
        assert_eq!(types("Q4_K_M", &config, "mlp.up_proj"), ["Q4_K"; 8].join(" "));
        assert_eq!(types("Q5_K_M", &config, "mlp.down_proj"), "Q6_K Q5_K Q5_K Q6_K Q5_K Q5_K Q6_K Q6_K");
        assert_eq!(types("Q4_K_S", &config, "self_attn.v_proj"), "Q5_K Q5_K Q5_K Q5_K Q4_K Q4_K Q4_K Q4_K");
        assert_eq!(types("Q4_K_S", &config, "mlp.down_proj"), "Q5_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K");
        assert_eq!(types("Q3_K_M", &config, "self_attn.v_proj"), "Q5_K Q5_K Q4_K Q4_K Q4_K Q4_K Q4_K Q4_K");
        assert_eq!(types("Q3_K_M", &config, "mlp.down_proj"), ["Q4_K"; 8].join(" "));
        assert_eq!(types("Q3_K_M", &config, "self_attn.o_proj"), ["Q4_K"; 8].join(" "));
        assert_eq!(types("Q3_K_M", &config, "self_attn.q_proj"), ["Q3_K"; 8].join(" "));
        assert_eq!(types("Q2_K", &config, "self_attn.v_proj"), ["Q3_K"; 8].join(" "));
        assert_eq!(types("Q2_K", &config, "mlp.gate_proj"), ["Q2_K"; 8].join(" "));
        assert_eq!(types("Q2_K", &self::config(1, 256, 2), "self_attn.v_proj"), "Q4_K");
        assert_eq!(types("Q3_K_M", &self::config(16, 256, 4), "mlp.down_proj").split(' ').next().unwrap(), "Q5_K");
        assert!(types("Q3_K_M", &self::config(80, 256, 4), "self_attn.v_proj").split(' ').all(|kind| kind == "Q5_K"));
        assert_eq!(types("Q6_K", &config, "mlp.down_proj"), ["Q6_K"; 8].join(" "));
    }

    #[test]
    fn the_output_is_six_bits_at_least_and_widths_decide() {
        let mut config = config(2, 256, 4);
        let choose = |config: &Config, mixture: &str, name: &str, inputs| {
            let choice = mixture.parse::<Mixture>().unwrap().choose(config, name, inputs);
            (choice.named.name(), choice.used.name())
        };
        assert_eq!(choose(&config, "Q2_K", layout::EMBEDDING, 256), ("Q6_K", "Q6_K"));
        assert_eq!(choose(&config, "Q8_0", layout::EMBEDDING, 256), ("Q8_0", "Q8_0"));
        config.tied_head = false;
        assert_eq!(choose(&config, "Q2_K", layout::EMBEDDING, 256), ("Q2_K", "Q2_K"));
        assert_eq!(choose(&config, "Q2_K", layout::HEAD, 576), ("Q6_K", "Q8_0"));
        let other = "model.layers.1.mlp.up_proj.weight";
        for (mixture, small) in [
            ("Q2_K", "IQ4_NL"),
            ("Q3_K_M", "IQ4_NL"),
            ("Q4_K_M", "Q5_0"),
            ("Q5_K_M", "Q5_1"),
            ("Q6_K", "Q8_0"),
            ("Q4_0", "Q4_0"),
        ] {
            assert_eq!(choose(&config, mixture, other, 576).1, small);
            assert_eq!(choose(&config, mixture, other, 40).1, "F16");
        }
    }

    #[test]
    fn names_that_are_none_are_refused_with_those_that_are() {
        let error = "Q4_K_X".parse::<Mixture>().unwrap_err();
        assert!(error.contains("`Q4_K_X`") && error.contains("Q4_K_M"), "{error}");
        let mixture: Mixture = serde_json::from_str("\"q3_k_m\"").unwrap();
        assert_eq!((mixture.name(), mixture.file_type(), mixture.base()), ("Q3_K_M", 12, Q3K));
        assert_eq!(serde_json::to_string(&mixture).unwrap(), "\"Q3_K_M\"");
    }
}
