//! A Llama of three layers with random weights and a tokenizer that knows forty words, as a Hugging Face folder.

use model::Checkpoint;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

pub(crate) const HIDDEN: usize = 16;
pub(crate) const INTERMEDIATE: usize = 24;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_WIDTH: usize = 6;
pub(crate) const LAYERS: usize = 3;
pub(crate) const WORDS: usize = 40;
pub(crate) const POSITIONS: usize = 600;

/// Writes the model into `folder` and opens it.
pub(crate) fn checkpoint(folder: &Path) -> Checkpoint {
    write(folder, |_, _| {});
    Checkpoint::open(folder.to_str().unwrap()).unwrap()
}

/// Writes the model into `folder`; `change` may alter a tensor's numbers.
pub(crate) fn write(folder: &Path, change: impl Fn(&str, &mut Vec<f32>)) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_WIDTH,
        "vocab_size": WORDS,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes()
        .into_iter()
        .map(|(name, shape)| {
            let spread = (3.0 / shape[shape.len() - 1] as f32).sqrt();
            let mut numbers: Vec<f32> =
                (0..shape.iter().product()).map(|_| random.random_range(-spread..spread)).collect();
            if shape.len() == 1 {
                for number in &mut numbers {
                    *number += 1.0;
                }
            }
            change(&name, &mut numbers);
            (name, shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let (queries, keys) = (HEADS * HEAD_WIDTH, KV_HEADS * HEAD_WIDTH);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![WORDS, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![queries, HIDDEN]),
            ("self_attn.k_proj", vec![keys, HIDDEN]),
            ("self_attn.v_proj", vec![keys, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, queries]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes
}

/// Words `w2` to `w39` between blanks; 0 and 1 are the special tokens `<s>` and `</s>`.
fn tokenizer() -> Value {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let words = (2..WORDS).map(|id| (format!("w{id}"), json!(id)));
    let special_words = [("<s>".to_owned(), json!(0)), ("</s>".to_owned(), json!(1))];
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": special_words.into_iter().chain(words).collect::<Map<_, _>>(), "unk_token": "w39"},
    })
}
