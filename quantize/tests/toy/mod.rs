//! A Llama folder with seeded random weights and a tokenizer that knows the words `w0` to `w63`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::{fmt::Write, fs, path::Path};

const VOCABULARY: usize = 64;
const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
const KEY_VALUES: usize = 32;

/// The toy.
pub(crate) struct Toy {
    /// Its decoder blocks.
    pub(crate) blocks: usize,
}

impl Toy {
    /// Writes the model into `folder`.
    pub(crate) fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), self.config().to_string()).unwrap();
        fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        let tensors = self.tensors();
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
            .collect();
        fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// `words` random words, the early ones of the vocabulary more often, so that inputs are correlated.
    pub(crate) fn text(&self, words: usize) -> String {
        let mut random = ChaCha8Rng::seed_from_u64(self.blocks as u64);
        let mut text = String::new();
        for _ in 0..words {
            let share: f64 = random.random_range(0.0..1.0);
            let _ = write!(text, "w{} ", (share * share * VOCABULARY as f64) as usize);
        }
        text
    }

    fn config(&self) -> serde_json::Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": self.blocks,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "float32"
        })
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let mut random = ChaCha8Rng::seed_from_u64(42);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: Vec<usize>| {
            let count: usize = shape.iter().product();
            let width = *shape.last().unwrap() as f32;
            let bytes = (0..count)
                .flat_map(|_| {
                    let value = if shape.len() == 1 { 1.0 } else { random.random_range(-2.0..2.0) / width.sqrt() };
                    f32::to_le_bytes(value)
                })
                .collect();
            tensors.push((name, shape, bytes));
        };
        add("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN]);
        add("model.norm.weight".into(), vec![HIDDEN]);
        for block in 0..self.blocks {
            let name = |module: &str| format!("model.layers.{block}.{module}.weight");
            add(name("input_layernorm"), vec![HIDDEN]);
            add(name("post_attention_layernorm"), vec![HIDDEN]);
            add(name("self_attn.q_proj"), vec![HIDDEN, HIDDEN]);
            add(name("self_attn.k_proj"), vec![KEY_VALUES, HIDDEN]);
            add(name("self_attn.v_proj"), vec![KEY_VALUES, HIDDEN]);
            add(name("self_attn.o_proj"), vec![HIDDEN, HIDDEN]);
            add(name("mlp.gate_proj"), vec![INTERMEDIATE, HIDDEN]);
            add(name("mlp.up_proj"), vec![INTERMEDIATE, HIDDEN]);
            add(name("mlp.down_proj"), vec![HIDDEN, INTERMEDIATE]);
        }
        tensors
    }
}

fn tokenizer() -> serde_json::Value {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..VOCABULARY).map(|word| (format!("w{word}"), word.into())).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" }
    })
}
