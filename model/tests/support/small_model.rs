//! Writes a Hugging Face folder with seeded random weights, of whatever family its configuration names.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};
use tempfile::TempDir;

/// Name to shape and values.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A model on disk that disappears with this value.
pub(crate) struct SmallModel {
    pub(crate) folder: TempDir,
    pub(crate) config: Value,
    pub(crate) tensors: Tensors,
}

/// The keys all test configurations share: hidden 64, 3 layers, 4 heads on 2, feed-forward 96, 100 tokens.
pub(crate) fn config(architecture: &str, model_type: &str, more: &Value) -> Value {
    let mut config = json!({
        "architectures": [architecture], "model_type": model_type, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": [2, 3],
    });
    for (key, value) in more.as_object().expect("an object of keys") {
        config[key] = value.clone();
    }
    config
}

impl SmallModel {
    /// Draws every tensor that Transformers would save for `config` and writes the folder.
    pub(crate) fn new(config: Value, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let gemma = config["model_type"] == "gemma3_text";
        let draw = |(name, shape): (String, Vec<usize>)| {
            let (centre, spread) = match &shape[..] {
                // Norms differ from their neutral value, and biases are large enough to matter.
                [_] if name.ends_with("norm.weight") => (if gemma { 0.0 } else { 1.0 }, 0.4),
                [_] => (0.0, 0.5),
                // Unit variance in, about unit variance out.
                _ if name.contains("embed_tokens") => (0.0, if gemma { 0.2 } else { 1.7 }),
                shape => (0.0, 2.4 / (shape[1] as f32).sqrt()),
            };
            let values = (0..shape.iter().product()).map(|_| centre + spread * random.random_range(-1.0..1.0f32));
            let values = values.collect();
            (name, (shape, values))
        };
        let tensors: Tensors = expected_tensors(&config).into_iter().map(draw).collect();
        let folder = tempfile::tempdir().expect("a folder for the model");
        let model = Self { folder, config, tensors };
        model.write();
        model
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes config, tokenizer and tensors anew.
    pub(crate) fn write(&self) {
        let path = |name: &str| self.path().join(name);
        fs::write(path("config.json"), self.config.to_string()).expect("config.json is written");
        fs::write(path("tokenizer.json"), tokenizer_json()).expect("tokenizer.json is written");
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("shape and bytes agree"))
        });
        serialize_to_file(views, None, &path("model.safetensors")).expect("model.safetensors is written");
    }
}

/// One word a token.
fn tokenizer_json() -> String {
    let vocabulary: serde_json::Map<String, Value> = (0..100).map(|id| (format!("w{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    })
    .to_string()
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().expect("a size") as usize
}

/// Names and shapes as the model classes of Transformers define them.
fn expected_tensors(config: &Value) -> Vec<(String, Vec<usize>)> {
    let (hidden, wide) = (size(config, "hidden_size"), size(config, "intermediate_size"));
    let (heads, kv_heads) = (size(config, "num_attention_heads"), size(config, "num_key_value_heads"));
    let head = config["head_dim"].as_u64().map_or(hidden / heads, |head| head as usize);
    let model_type = config["model_type"].as_str().expect("a model type");
    let attention_bias = config["attention_bias"] == true;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![size(config, "vocab_size"), hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == false {
        tensors.push(("lm_head.weight".to_owned(), vec![size(config, "vocab_size"), hidden]));
    }
    for layer in 0..size(config, "num_hidden_layers") {
        let mut linear = |module: &str, outputs: usize, inputs: usize, bias: bool| {
            let name = format!("model.layers.{layer}.{module}");
            tensors.push((format!("{name}.weight"), vec![outputs, inputs]));
            if bias {
                tensors.push((format!("{name}.bias"), vec![outputs]));
            }
        };
        let qkv_bias = attention_bias || model_type == "qwen2";
        let mlp_bias = config["mlp_bias"] == true;
        if model_type == "phi3" {
            linear("self_attn.qkv_proj", (heads + 2 * kv_heads) * head, hidden, false);
            linear("mlp.gate_up_proj", 2 * wide, hidden, false);
        } else {
            linear("self_attn.q_proj", heads * head, hidden, qkv_bias);
            linear("self_attn.k_proj", kv_heads * head, hidden, qkv_bias);
            linear("self_attn.v_proj", kv_heads * head, hidden, qkv_bias);
            linear("mlp.gate_proj", wide, hidden, mlp_bias);
            linear("mlp.up_proj", wide, hidden, mlp_bias);
        }
        linear("self_attn.o_proj", hidden, heads * head, attention_bias);
        linear("mlp.down_proj", hidden, wide, mlp_bias);
        let mut norms = vec![("input_layernorm", hidden), ("post_attention_layernorm", hidden)];
        if model_type == "gemma3_text" {
            norms.extend([("pre_feedforward_layernorm", hidden), ("post_feedforward_layernorm", hidden)]);
        }
        if ["gemma3_text", "qwen3"].contains(&model_type) {
            norms.extend([("self_attn.q_norm", head), ("self_attn.k_norm", head)]);
        }
        tensors.extend(norms.into_iter().map(|(n, width)| (format!("model.layers.{layer}.{n}.weight"), vec![width])));
    }
    tensors
}
