//! Tokenizers rebuilt from the metadata of real GGUF files, against the ids that Transformers gives.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic anywhere, helpers included")]

use crate::real_models::folders;
use model::format::gguf::GgufFile;
use serde_json::Value;
use std::{path::Path, time::Instant};
use tokenizers::Tokenizer;

const NAMES: [&str; 2] = ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"];

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn golden(shared: &Path, name: &str) -> Value {
    let path = shared.join("golden").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn check_goldens(tokenizer: &Tokenizer, golden: &Value, name: &str) {
    for case in ["encodings", "texts"].iter().flat_map(|key| golden[key].as_array().unwrap()) {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(model::tokenizer::encode(tokenizer, text, false).unwrap(), expected, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), text, "{name}: {text:?}");
    }
    for case in golden["texts"].as_array().unwrap() {
        let greedy = tokenizer.decode(&ids(&case["greedy_24_ids"]), false).unwrap();
        assert_eq!(greedy, case["greedy_24_text"].as_str().unwrap(), "{name}");
    }
}

#[test]
#[ignore = "needs the real models"]
fn ids_equal_those_of_transformers() {
    let (models, shared) = folders();
    for name in NAMES {
        let tokenizer = GgufFile::open(&models.join(format!("{name}.gguf"))).unwrap().tokenizer().unwrap();
        let golden = golden(&shared, name);
        check_goldens(&tokenizer, &golden, name);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        tokenizer.save(&path, false).unwrap();
        check_goldens(&Tokenizer::from_file(&path).unwrap(), &golden, name);
    }
}

#[test]
#[ignore = "needs the real models"]
fn a_long_text_gives_the_ids_of_the_text_as_a_whole() {
    let (models, shared) = folders();
    let text = std::fs::read_to_string(shared.join("data/wikitext2/wiki.test.canonical.raw")).unwrap();
    for name in NAMES {
        let tokenizer = GgufFile::open(&models.join(format!("{name}.gguf"))).unwrap().tokenizer().unwrap();
        let start = Instant::now();
        let ids = model::tokenizer::encode(&tokenizer, &text, false).unwrap();
        let fast = start.elapsed();
        let whole = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        println!(
            "{name}: {} tokens, {fast:.2?} against {:.2?} as a whole",
            ids.len(),
            start.elapsed().saturating_sub(fast)
        );
        assert!(ids == whole, "{name}: cutting changed the ids");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
    }
}

#[test]
#[ignore = "needs the real models"]
fn chat_templates_of_the_files_render() {
    let (models, _) = folders();
    let systems = [
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ];
    let messages = [("user", "Hi"), ("assistant", "Hello")].map(|(role, text)| (role.to_owned(), text.to_owned()));
    for (name, system) in NAMES.iter().zip(systems) {
        let file = GgufFile::open(&models.join(format!("{name}.gguf"))).unwrap();
        let text = model::chat::render(&file.chat_template().unwrap(), &messages, "<bos>", "<eos>").unwrap();
        let expected = format!(
            "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        );
        assert_eq!(text, expected, "{name}");
    }
}

#[test]
#[ignore = "needs the real models"]
fn configurations_of_the_files() {
    let (models, _) = folders();
    let expected = [
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
            "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
            "rope_scaling": null, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        }),
        serde_json::json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896,
            "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "head_dim": 64, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
            "rope_scaling": null, "tie_word_embeddings": false, "bos_token_id": 151_643, "eos_token_id": 151_645,
        }),
    ];
    for (name, expected) in NAMES.iter().zip(expected) {
        let config = GgufFile::open(&models.join(format!("{name}.gguf"))).unwrap().config_json().unwrap();
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&config[key], value, "{name}: {key}");
        }
    }
}
