//! Opening a checkpoint: what is refused and with which sentence, what is let pass, and which files belong to it.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[path = "support/small_model.rs"]
mod small_model;

use model::Checkpoint;
use serde_json::{Value, json};
use small_model::{SmallModel, config};
use std::fs;

fn llama(more: &Value) -> SmallModel {
    SmallModel::new(config("LlamaForCausalLM", "llama", more), 7)
}

fn open(model: &SmallModel) -> Result<Checkpoint, model::ModelError> {
    Checkpoint::open(model.path().to_str().expect("a path in UTF-8"))
}

/// Why `model`, written anew, can't be opened; its folder is called FOLDER.
fn refusal(model: &SmallModel) -> String {
    model.write();
    let error = open(model).err().expect("is refused").to_string();
    error.replace(&model.path().display().to_string(), "FOLDER")
}

fn logits(model: &SmallModel) -> Vec<f32> {
    let checkpoint = open(model).expect("opens");
    checkpoint.head().expect("has a head").logits(&checkpoint.hidden_states(&[5, 6, 7]).expect("runs"))
}

#[test]
fn a_missing_tensor_is_named() {
    let mut model = llama(&json!({"attention_bias": true}));
    model.tensors.remove("model.layers.1.self_attn.k_proj.bias");
    assert_eq!(
        refusal(&model),
        "tensor `model.layers.1.self_attn.k_proj.bias`: the configuration needs it, but the checkpoint lacks it"
    );
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let mut model = llama(&json!({}));
    model.config["intermediate_size"] = json!(95);
    assert_eq!(
        refusal(&model),
        "tensor `model.layers.0.mlp.down_proj.weight`: has shape [64, 96], but the configuration needs [64, 95]"
    );
}

#[test]
fn a_bias_that_the_configuration_denies_is_refused_unless_it_is_zero() {
    let mut model = llama(&json!({}));
    let plain = logits(&model);
    let name = "model.layers.2.self_attn.q_proj.bias";
    model.tensors.insert(name.to_owned(), (vec![64], vec![0.0; 64]));
    model.write();
    assert_eq!(logits(&model), plain);
    model.tensors.insert(name.to_owned(), (vec![64], vec![0.5; 64]));
    let sentence = format!("tensor `{name}`: is in the checkpoint, but the configuration has no use for it");
    assert_eq!(refusal(&model), sentence);
}

#[test]
fn more_layers_than_the_configuration_has_are_refused() {
    let mut model = llama(&json!({}));
    model.config["num_hidden_layers"] = json!(2);
    let sentence = refusal(&model);
    assert!(sentence.starts_with("tensor `model.layers.2."), "{sentence}");
    assert!(sentence.ends_with("is in the checkpoint, but the configuration has no use for it"), "{sentence}");
}

#[test]
fn a_head_beside_a_tied_embedding_must_equal_it() {
    let mut model = llama(&json!({"tie_word_embeddings": true}));
    let plain = logits(&model);
    let mut embedding = model.tensors["model.embed_tokens.weight"].clone();
    model.tensors.insert("lm_head.weight".to_owned(), embedding.clone());
    model.write();
    assert_eq!(logits(&model), plain);
    embedding.1[3] += 1.0;
    model.tensors.insert("lm_head.weight".to_owned(), embedding);
    assert_eq!(
        refusal(&model),
        "tensor `lm_head.weight`: differs from the embedding, but the configuration ties the two (`tie_word_embeddings`)"
    );
}

#[test]
fn stored_rope_frequencies_are_let_pass() {
    let mut model = llama(&json!({}));
    let plain = logits(&model);
    model.tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), (vec![8], vec![1.0; 8]));
    model.write();
    assert_eq!(logits(&model), plain);
}

#[test]
fn an_unknown_quantization_is_refused_by_name() {
    let mut model = llama(&json!({}));
    model.config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    assert_eq!(refusal(&model), "FOLDER/config.json: quantization method `bitsandbytes` is not supported");
}

#[test]
fn a_folder_lacking_a_file_says_which() {
    let model = llama(&json!({}));
    fs::remove_file(model.path().join("tokenizer.json")).expect("is removed");
    let sentence = open(&model).err().expect("is refused").to_string();
    assert_eq!(
        sentence.replace(&model.path().display().to_string(), "FOLDER"),
        "FOLDER: has no `tokenizer.json`, the only form of tokenizer read here; save the model's fast tokenizer there"
    );
    fs::remove_file(model.path().join("config.json")).expect("is removed");
    let sentence = open(&model).err().expect("is refused").to_string();
    assert!(sentence.contains("config.json: "), "{sentence}");
}

#[test]
fn a_reference_to_nothing_says_what_can_be_given() {
    let sentence = |reference: &str| Checkpoint::open(reference).err().expect("is refused").to_string();
    for reference in ["./nothing", "nothing.gguf", "nothing"] {
        assert_eq!(
            sentence(reference),
            format!(
                "{reference}: there is no such folder or .gguf file, and it is no hub id of the form org/name[@revision]"
            )
        );
    }
    let model = llama(&json!({}));
    let file = model.path().join("config.json");
    assert_eq!(
        sentence(file.to_str().expect("UTF-8")),
        format!("{}: is neither a folder nor a .gguf file; give the folder that holds config.json", file.display())
    );
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused() {
    let checkpoint = open(&llama(&json!({}))).expect("opens");
    assert_eq!(
        checkpoint.embed(&[1, 100]).unwrap_err().to_string(),
        "tensor `model.embed_tokens.weight`: has 100 rows, row 100 is asked for"
    );
}

#[test]
fn the_files_of_a_checkpoint_are_listed_and_its_companions_copied() {
    let model = llama(&json!({}));
    let settings =
        json!({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    fs::write(model.path().join("tokenizer_config.json"), settings.to_string()).expect("is written");
    fs::write(model.path().join("README.md"), "not part of the model").expect("is written");
    let checkpoint = open(&model).expect("opens");
    assert_eq!(checkpoint.chat_template.as_deref(), Some("D"));
    let sources = checkpoint.source_files().expect("are hashed");
    let names: Vec<&str> = sources.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    assert!(sources.iter().all(|file| file.sha256.len() == 64 && file.bytes > 0));
    assert_eq!(checkpoint.outer_tensors(), ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]);

    let copy = tempfile::tempdir().expect("a folder");
    let written = checkpoint.copy_companions(copy.path()).expect("are copied");
    assert_eq!(written, ["tokenizer.json", "tokenizer_config.json"]);
    for name in written {
        assert_eq!(
            fs::read(copy.path().join(&name)).expect("copy"),
            fs::read(model.path().join(&name)).expect("source")
        );
    }
}

#[test]
fn the_template_file_goes_before_the_settings() {
    let model = llama(&json!({}));
    fs::write(model.path().join("chat_template.jinja"), "J").expect("is written");
    fs::write(model.path().join("tokenizer_config.json"), r#"{"chat_template": "S"}"#).expect("is written");
    assert_eq!(open(&model).expect("opens").chat_template.as_deref(), Some("J"));
}
