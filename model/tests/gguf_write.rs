//! GGUF files written here: read back by our reader and by candle's, for every family; tokenizers; importance matrices.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

#[path = "support/small_model.rs"]
mod small_model;

use candle_core::{Device, quantized::gguf_file};
use kernels::kquant::{BlockMatrix, BlockType, Weighting};
use model::{
    Checkpoint, ModelError,
    format::gguf::{Contents, Mixture, TensorType, imatrix, write},
};
use serde_json::{Value, json};
use small_model::{SmallModel, config};
use std::{collections::BTreeSet, fs, path::Path};

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path.to_str().unwrap()).unwrap()
}

/// Writes `source` with every matrix as `type_of` says and nothing solved.
fn written(source: &Checkpoint, path: &Path, type_of: &dyn Fn(&str, usize) -> TensorType) -> Result<(), ModelError> {
    let load = |name: &str| Err(ModelError::Tensor { tensor: name.into(), what: "was not solved".into() });
    let solved = BTreeSet::new();
    write(path, &Contents { source, file_type: 0, type_of, solved: &solved, load: &load, notes: Vec::new() })
}

/// A byte-level tokenizer over a hundred tokens, as the small models have rows.
fn byte_level(pre_tokenizer: &Value, ignore_merges: bool) -> Value {
    let letters: Vec<String> = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'()-_/ĠĊ"
        .chars()
        .map(String::from)
        .collect();
    let merged = ["Ġt", "he", "Ġthe", "in", "er", "12", "Ġa", "on", "ing"];
    let merges =
        [["Ġ", "t"], ["h", "e"], ["Ġt", "he"], ["i", "n"], ["e", "r"], ["1", "2"], ["Ġ", "a"], ["o", "n"], ["in", "g"]];
    let tokens = ["<s>".to_owned(), "</s>".to_owned()].into_iter().chain(letters).chain(merged.map(str::to_owned));
    let vocabulary: serde_json::Map<String, Value> = tokens.enumerate().map(|(id, t)| (t, json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null, "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocabulary, "merges": merges},
    })
}

fn digits_then_gpt2() -> Value {
    json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]})
}

fn small(architecture: &str, model_type: &str, more: &Value) -> SmallModel {
    let model = SmallModel::new(config(architecture, model_type, more), 7);
    fs::write(model.path().join("tokenizer.json"), byte_level(&digits_then_gpt2(), false).to_string()).unwrap();
    model
}

/// Every family, with what each can say.
fn families() -> Vec<SmallModel> {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let long: Vec<f64> = (0..6).map(|i| 1.5 + f64::from(i)).collect();
    let longrope = json!({"type": "longrope", "short_factor": vec![1.0; 6], "long_factor": long});
    vec![
        small("LlamaForCausalLM", "llama", &json!({"rope_scaling": llama3})),
        small(
            "LlamaForCausalLM",
            "llama",
            &json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true}),
        ),
        small("MistralForCausalLM", "mistral", &json!({"sliding_window": 7})),
        small("MistralForCausalLM", "mistral", &json!({"sliding_window": null})),
        small("Qwen2ForCausalLM", "qwen2", &json!({"rope_scaling": {"type": "linear", "factor": 4.0}})),
        small("Qwen3ForCausalLM", "qwen3", &json!({"head_dim": 32})),
        small(
            "Gemma3ForCausalLM",
            "gemma3_text",
            &json!({"head_dim": 16, "query_pre_attn_scalar": 16.0,
            "sliding_window": 6, "sliding_window_pattern": 2, "tie_word_embeddings": true}),
        ),
        small(
            "Phi3ForCausalLM",
            "phi3",
            &json!({"partial_rotary_factor": 0.75, "rope_scaling": longrope,
            "max_position_embeddings": 128, "original_max_position_embeddings": 64}),
        ),
    ]
}

#[test]
fn every_family_comes_back_as_it_was() {
    for model in families() {
        let name = model.config["model_type"].as_str().unwrap();
        let (source, path) = (open(model.path()), model.path().join("out.gguf"));
        written(&source, &path, &|_, _| TensorType::F32).unwrap_or_else(|error| panic!("{name}: {error}"));
        let read = open(&path);
        assert_eq!(read.config.layers, source.config.layers, "{name}");
        for tensor in source.tensors.names() {
            let (a, b) = (source.tensors.read(&tensor).unwrap(), read.tensors.read(&tensor).unwrap());
            // Gemma's norms go through 1 + w and lose what float32 loses beside 1.
            let close = |a: &f32, b: &f32| (a - b).abs() <= if name == "gemma3_text" { 1.2e-7 } else { 0.0 };
            assert!(a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| close(a, b)), "{name} {tensor}");
        }
        let tokens: Vec<u32> = (0..20).map(|i| i * 3 % 80).collect();
        let (a, b) = (source.hidden_states(&tokens).unwrap(), read.hidden_states(&tokens).unwrap());
        let largest = a.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * largest), "{name}: another forward pass");
        assert_eq!(read.tokenizer.encode("the 12", true).unwrap().get_ids()[0], 0, "{name}: begins with <s>");
    }
}

#[test]
fn what_metadata_cannot_say_is_refused_and_leaves_no_file() {
    let cases = [
        small("LlamaForCausalLM", "llama", &json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})),
        small(
            "Qwen2ForCausalLM",
            "qwen2",
            &json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1}),
        ),
        small(
            "Gemma3ForCausalLM",
            "gemma3_text",
            &json!({"head_dim": 16, "query_pre_attn_scalar": 64.0,
            "sliding_window": 6, "sliding_window_pattern": 2, "tie_word_embeddings": true}),
        ),
        SmallModel::new(config("LlamaForCausalLM", "llama", &json!({})), 1),
    ];
    for (model, says) in cases.iter().zip(["dynamic", "sliding window", "attention scale", "WordLevel"]) {
        let path = model.path().join("out.gguf");
        let error = written(&open(model.path()), &path, &|_, _| TensorType::F16).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        let left: Vec<_> = fs::read_dir(model.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("gguf")), "{left:?}");
    }
}

#[test]
fn pre_tokenizers_are_found_by_what_they_do() {
    let regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let llama3 = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let letters = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "[a-y]"}, "behavior": "Isolated", "invert": false}, gpt2]});
    for (pre_tokenizer, ignore_merges, name) in [
        (gpt2, false, Some("gpt-2")),
        (digits_then_gpt2(), false, Some("smollm")),
        (llama3, true, Some("llama-bpe")),
        (letters, false, None),
    ] {
        let model = small("LlamaForCausalLM", "llama", &json!({}));
        fs::write(model.path().join("tokenizer.json"), byte_level(&pre_tokenizer, ignore_merges).to_string()).unwrap();
        let path = model.path().join("out.gguf");
        match (written(&open(model.path()), &path, &|_, _| TensorType::F16), name) {
            (Ok(()), Some(name)) => {
                let content = gguf_file::Content::read(&mut fs::File::open(&path).unwrap()).unwrap();
                assert_eq!(content.metadata["tokenizer.ggml.pre"].to_string().unwrap(), name);
            }
            (Err(error), None) => assert!(error.to_string().contains("pre-tokenizer"), "{error}"),
            (result, name) => panic!("{name:?}: {result:?}"),
        }
    }
}

/// candle's reading of the file at `path` is ours.
fn candle_agrees(path: &Path, read: &Checkpoint) {
    let mut file = fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    assert_eq!(content.tensor_infos.len(), read.tensors.names().len());
    for (stored, ours) in [
        ("token_embd", "model.embed_tokens"),
        ("blk.1.attn_v", "model.layers.1.self_attn.v_proj"),
        ("blk.3.ffn_down", "model.layers.3.mlp.down_proj"),
        ("output_norm", "model.norm"),
    ] {
        let tensor = content.tensor(&mut file, &format!("{stored}.weight"), &Device::Cpu).unwrap();
        let theirs: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(theirs == read.tensors.read(&format!("{ours}.weight")).unwrap(), "{} {stored}", path.display());
    }
}

/// The demo model in a mixture: what candle reads is what we read, and both are our encoder's blocks.
#[test]
fn candle_reads_the_demo_model_in_every_mixture() {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open("demo").unwrap();
    for name in Mixture::names() {
        let mixture: Mixture = name.parse().unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        let type_of = |tensor: &str, inputs| mixture.choose(&source.config, tensor, inputs).used;
        written(&source, &path, &type_of).unwrap();
        let read = open(&path);
        // candle doesn't know IQ4_NL.
        if name != "IQ4_NL" {
            candle_agrees(&path, &read);
        }
        // q is permuted in the file; through our reader it must be the source's rows, encoded one by one.
        let query = "model.layers.2.self_attn.q_proj.weight";
        let TensorType::Block(kind) = type_of(query, 256) else { panic!("256 fits every block") };
        let weight = source.tensors.read(query).unwrap();
        let encoded = BlockMatrix::quantize(&weight, 256, kind, Weighting::Plain).dequantize();
        assert!(encoded == read.tensors.read(query).unwrap(), "{name}");
    }
}

#[test]
fn solved_blocks_are_written_as_they_are_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (source, path) = (Checkpoint::open("demo").unwrap(), folder.path().join("m.gguf"));
    let module = "model.layers.0.self_attn.k_proj";
    let name = format!("{module}.weight");
    let weight: Vec<f32> = source.tensors.read(&name).unwrap().iter().map(|w| -w).collect();
    let matrix = |kind| BlockMatrix::quantize(&weight, 256, kind, Weighting::Plain);
    let solved = BTreeSet::from([module.to_owned()]);
    let run = |kind| {
        let load = |_: &str| Ok(matrix(kind));
        let type_of = |_: &str, _: usize| TensorType::Block(BlockType::Q4K);
        let notes = vec![("general.description".to_owned(), "negative keys".to_owned())];
        write(
            &path,
            &Contents { source: &source, file_type: 15, type_of: &type_of, solved: &solved, load: &load, notes },
        )
    };
    run(BlockType::Q4K).unwrap();
    assert!(open(&path).tensors.read(&name).unwrap() == matrix(BlockType::Q4K).dequantize());
    fs::remove_file(&path).unwrap();
    let error = run(BlockType::Q5K).unwrap_err().to_string();
    assert!(error.contains("Q5_K") && error.contains("Q4_K") && error.contains("k_proj"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_gguf_source_keeps_its_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.gguf"), folder.path().join("second.gguf"));
    let source = Checkpoint::open("demo").unwrap();
    written(&source, &first, &|_, _| TensorType::F16).unwrap();
    written(&open(&first), &second, &|_, _| TensorType::Block(BlockType::Q8_0)).unwrap();
    let read = |path: &Path| gguf_file::Content::read(&mut fs::File::open(path).unwrap()).unwrap();
    let (first, second) = (read(&first), read(&second));
    for (key, value) in &first.metadata {
        assert_eq!(format!("{value:?}"), format!("{:?}", second.metadata[key]), "{key}");
    }
    assert_eq!(second.metadata["general.quantization_version"].to_u32().unwrap(), 2);
    assert_eq!(first.metadata["general.architecture"].to_string().unwrap(), "llama");
}

#[test]
fn importance_matrices_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("im.gguf");
    let config = Checkpoint::open("demo").unwrap().config;
    let sums = |count: f32| imatrix::Sums { squares: (0..256).map(|i| i as f32 * count).collect(), count };
    let all = [("model.layers.0.self_attn.q_proj", 8.0), ("model.layers.3.mlp.up_proj", 3.0)];
    let all = all.map(|(name, count)| (name.to_owned(), sums(count))).into();
    imatrix::write(&path, &config, &all, &["demo:prose".to_owned()], 64, 256).unwrap();
    let read = imatrix::read(&path, &config).unwrap();
    assert_eq!(read.len(), 2);
    for values in read.values() {
        assert_eq!(*values, (0..256).map(|i| i as f32).collect::<Vec<_>>());
    }
    // As llama.cpp lays it out: both tensors have two axes, the second an expert each.
    let content = gguf_file::Content::read(&mut fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(content.metadata["general.type"].to_string().unwrap(), "imatrix");
    assert_eq!(content.tensor_infos["blk.0.attn_q.weight.in_sum2"].shape.dims(), [1, 256]);
    assert_eq!(content.tensor_infos["blk.0.attn_q.weight.counts"].shape.dims(), [1, 1]);
    let wrong =
        [("model.layers.0.self_attn.q_proj".to_owned(), imatrix::Sums { squares: vec![-1.0], count: 1.0 })].into();
    imatrix::write(&path, &config, &wrong, &[], 1, 1).unwrap();
    assert!(imatrix::read(&path, &config).unwrap_err().to_string().contains("blk.0.attn_q.weight.in_sum2"));
    imatrix::write(&path, &config, &std::collections::BTreeMap::new(), &[], 1, 1).unwrap();
    assert!(imatrix::read(&path, &config).unwrap_err().to_string().contains("no importance matrix"));
    fs::write(&path, b"old").unwrap();
    assert!(imatrix::read(&path, &config).unwrap_err().to_string().contains("llama-imatrix"));
}
