//! A Llama of two layers with random weights and a tokenizer that knows forty words, as a Hugging Face folder.

#![allow(clippy::unwrap_used)]

use model::Checkpoint;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

const HIDDEN: usize = 16;
const WORDS: usize = 40;

/// The longest sequence of the plain model.
pub(crate) const POSITIONS: usize = 64;

/// What to write.
#[derive(Clone, Copy)]
pub(crate) struct Toy {
    /// The longest sequence.
    pub(crate) positions: usize,
    /// Added to every number of the last layer's last matrix.
    pub(crate) shift: f32,
    /// Whether the tokenizer puts `<s>` before a text.
    pub(crate) bos: bool,
    /// Whether words are numbered from the other end.
    pub(crate) reversed: bool,
}

impl Toy {
    /// The plain one.
    pub(crate) const PLAIN: Self = Self { positions: POSITIONS, shift: 0.0, bos: false, reversed: false };

    /// Writes the model into a new folder.
    pub(crate) fn write(self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), self.config().to_string()).unwrap();
        fs::write(folder.path().join("tokenizer.json"), self.tokenizer().to_string()).unwrap();
        self.write_weights(&folder.path().join("model.safetensors"));
        folder
    }

    /// Writes the model and opens it.
    #[allow(dead_code)] // not every test binary opens one itself
    pub(crate) fn open(self) -> (TempDir, Checkpoint) {
        let folder = self.write();
        let checkpoint = Checkpoint::open(folder.path().to_str().unwrap()).unwrap();
        (folder, checkpoint)
    }

    fn config(self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "vocab_size": WORDS, "max_position_embeddings": self.positions, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true, "torch_dtype": "float32",
            "bos_token_id": 0, "eos_token_id": 1,
        })
    }

    fn write_weights(self, path: &Path) {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes()
            .into_iter()
            .map(|(name, shape)| {
                let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
                let shift = if name == "model.layers.1.mlp.down_proj.weight" { self.shift } else { 0.0 };
                let mut number = || centre + shift + random.random_range(-0.8_f32..0.8);
                let bytes = (0..shape.iter().product()).flat_map(|_| number().to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    /// `<s>`, `</s>`, then the words `w2` to `w39`.
    fn tokenizer(self) -> Value {
        let special = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let number = |id: usize| if self.reversed { WORDS + 1 - id } else { id };
        let mut vocabulary: Map<String, Value> = (2..WORDS).map(|id| (format!("w{id}"), json!(number(id)))).collect();
        vocabulary.insert("<s>".to_owned(), json!(0));
        vocabulary.insert("</s>".to_owned(), json!(1));
        let template = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        });
        json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": if self.bos { template } else { Value::Null },
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w39"},
        })
    }
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![WORDS, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![16, HIDDEN]),
            ("self_attn.k_proj", vec![8, HIDDEN]),
            ("self_attn.v_proj", vec![8, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 16]),
            ("mlp.gate_proj", vec![24, HIDDEN]),
            ("mlp.up_proj", vec![24, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, 24]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes
}

/// `count` random known words, ten to a line.
pub(crate) fn text(count: usize) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut words = (0..count).map(|_| format!("w{}", random.random_range(2..WORDS)));
    let mut text = String::new();
    while let Some(word) = words.next() {
        let line: Vec<String> = std::iter::once(word).chain(words.by_ref().take(9)).collect();
        text += &line.join(" ");
        text.push('\n');
    }
    text
}
