//! GGUF files made here: every block type, every family's names and conventions, configurations, tokenizers, and what
//! happens to files that are broken on purpose.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

#[path = "support/gguf_draft.rs"]
mod gguf_draft;

use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor},
};
use gguf_draft::{Draft, Meta, Opened, draft, sentence_pieces, texts, with_byte_pairs, with_sentence_pieces};
use model::{
    Config,
    format::{StoredType, TensorSource, gguf::GgufFile},
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::path::Path;
use tokenizers::Tokenizer;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

#[test]
fn every_block_type_is_dequantized_whole_and_by_rows() {
    let kinds = [
        (GgmlDType::F32, 0),
        (GgmlDType::F16, 1),
        (GgmlDType::BF16, 30),
        (GgmlDType::Q4_0, 2),
        (GgmlDType::Q4_1, 3),
        (GgmlDType::Q5_0, 6),
        (GgmlDType::Q5_1, 7),
        (GgmlDType::Q8_0, 8),
        (GgmlDType::Q2K, 10),
        (GgmlDType::Q3K, 11),
        (GgmlDType::Q4K, 12),
        (GgmlDType::Q5K, 13),
        (GgmlDType::Q6K, 14),
    ];
    let (rows, columns) = (37, 512);
    let values = candle_core::Tensor::from_vec(random(rows * columns, 1), (rows, columns), &Device::Cpu).unwrap();
    for (kind, number) in kinds {
        let quantized = QTensor::quantize(&values, kind).unwrap();
        let expected: Vec<f32> = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut draft = draft("qwen2");
        // An odd neighbour, so that alignment matters.
        draft = draft.floats("output_norm.weight", &[3], &[1.0, 2.0, 3.0]);
        draft.tensors.push(("output.weight".into(), vec![rows, columns], number, quantized.data().unwrap().to_vec()));
        let opened = draft.open().unwrap();
        let name = "lm_head.weight";
        assert_eq!(opened.file.shape(name).unwrap(), [rows, columns]);
        assert!(opened.file.read(name).unwrap() == expected, "{kind:?}");
        assert!(opened.file.stored(name).unwrap().dequantize() == expected, "{kind:?} as it is stored");
        let picked = opened.file.read_rows(name, &[36, 0, 5, 5]).unwrap();
        let by_hand: Vec<f32> =
            [36, 0, 5, 5].iter().flat_map(|row| &expected[row * columns..][..columns]).copied().collect();
        assert!(picked == by_hand, "{kind:?}");
        let floats = matches!(kind, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
        assert_eq!(opened.file.stored_type(name).unwrap() != StoredType::Quantized, floats);
        let error = opened.file.read_rows(name, &[37]).unwrap_err().to_string();
        assert!(error.contains("37") && error.contains(name), "{error}");
        assert!(opened.file.read("nothing").unwrap_err().to_string().contains("nothing"));
    }
}

/// candle doesn't know IQ4_NL: by hand.
#[test]
fn uneven_levels_are_dequantized() {
    // d = 0.5; byte j holds code j for weight j and code 15 - j for weight 16 + j.
    let block: Vec<u8> = [0x00, 0x38].into_iter().chain((0..16).map(|j| j | (15 - j) << 4)).collect();
    let levels =
        [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];
    let mut draft = draft("qwen2");
    draft.tensors.push(("output.weight".into(), vec![1, 32], 20, block));
    let read = draft.open().unwrap().file.read("lm_head.weight").unwrap();
    let expected: Vec<f32> = levels.iter().chain(levels.iter().rev()).map(|level| 0.5 * level).collect();
    assert_eq!(read, expected);
}

/// What the converter does to q and k of a Llama: rows of each head from halves to neighbours.
fn permuted(rows: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let half = rows.len() / columns / heads / 2;
    let mut out = Vec::new();
    for head in 0..heads {
        for j in 0..half {
            for t in 0..2 {
                out.extend(&rows[(head * 2 * half + t * half + j) * columns..][..columns]);
            }
        }
    }
    out
}

#[test]
fn llama_queries_and_keys_come_back_in_halves() {
    let (query, key, value) = (random(32 * 32, 1), random(16 * 32, 2), random(16 * 32, 3));
    let bias = random(32, 4);
    let opened = draft("llama")
        .floats("blk.1.attn_q.weight", &[32, 32], &permuted(&query, 4, 32))
        .floats("blk.1.attn_q.bias", &[32], &permuted(&bias, 4, 1))
        .floats("blk.1.attn_k.weight", &[16, 32], &permuted(&key, 2, 32))
        .floats("blk.1.attn_v.weight", &[16, 32], &value)
        .open()
        .unwrap();
    let layer = "model.layers.1.self_attn";
    assert_eq!(opened.file.read(&format!("{layer}.q_proj.weight")).unwrap(), query);
    assert_eq!(opened.file.read(&format!("{layer}.q_proj.bias")).unwrap(), bias);
    assert_eq!(opened.file.read(&format!("{layer}.k_proj.weight")).unwrap(), key);
    assert_eq!(opened.file.stored(&format!("{layer}.k_proj.weight")).unwrap().dequantize(), key);
    assert_eq!(opened.file.read(&format!("{layer}.v_proj.weight")).unwrap(), value);
    assert_eq!(opened.file.read_rows(&format!("{layer}.k_proj.weight"), &[5]).unwrap(), key[5 * 32..6 * 32]);
    let error = draft("llama").floats("blk.0.attn_q.weight", &[12, 32], &[0.0; 12 * 32]).refusal();
    assert!(error.contains("blk.0.attn_q.weight") && error.contains('8'), "{error}");
}

#[test]
fn other_families_keep_their_rows_and_gemma_loses_one() {
    let query = random(32 * 32, 1);
    let opened = draft("qwen2").floats("blk.0.attn_q.weight", &[32, 32], &query).open().unwrap();
    assert_eq!(opened.file.read("model.layers.0.self_attn.q_proj.weight").unwrap(), query);
    let opened = draft("gemma3")
        .floats("blk.0.attn_q.weight", &[32, 32], &query)
        .floats("blk.0.post_ffw_norm.weight", &[2], &[1.5, 0.75])
        .floats("blk.0.attn_q_norm.weight", &[2], &[3.0, 1.0])
        .floats("output_norm.weight", &[2], &[1.0, 2.0])
        .open()
        .unwrap();
    assert_eq!(opened.file.read("model.layers.0.self_attn.q_proj.weight").unwrap(), query);
    assert_eq!(opened.file.read("model.layers.0.post_feedforward_layernorm.weight").unwrap(), [0.5, -0.25]);
    assert_eq!(opened.file.read("model.layers.0.self_attn.q_norm.weight").unwrap(), [2.0, 0.0]);
    assert_eq!(opened.file.read("model.norm.weight").unwrap(), [0.0, 1.0]);
    assert_eq!(opened.file.stored("model.norm.weight").unwrap().dequantize(), [0.0, 1.0]);
    let names = [
        "model.embed_tokens.weight",
        "model.layers.0.post_feedforward_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    ];
    assert_eq!(opened.file.names(), names);
}

#[test]
fn configurations() {
    let expect = |draft: Draft, expected: serde_json::Value| {
        let config = draft.open().unwrap().file.config_json().unwrap();
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&config[key], value, "{key} of {config:#}");
        }
        Config::from_json(&config, Path::new("model.gguf")).unwrap();
    };
    expect(
        draft("llama").set("tokenizer.ggml.eos_token_id", Meta::U32(7)),
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "rope_scaling": null, "tie_word_embeddings": true, "hidden_act": "silu", "attention_bias": false,
            "eos_token_id": 7, "torch_dtype": "float16",
        }),
    );
    expect(
        draft("llama").set("llama.attention.sliding_window", Meta::U32(16)).floats("output.weight", &[1, 1], &[0.0]),
        json!({ "architectures": ["MistralForCausalLM"], "sliding_window": 16, "tie_word_embeddings": false }),
    );
    expect(
        draft("qwen2")
            .set("qwen2.rope.scaling.type", Meta::Text("linear".into()))
            .set("qwen2.rope.scaling.factor", Meta::F32(4.0)),
        json!({
            "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false,
            "rope_scaling": { "type": "linear", "rope_type": "linear", "factor": 4.0 },
        }),
    );
    expect(
        draft("qwen3").set("qwen3.attention.key_length", Meta::U32(16)),
        json!({ "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "attention_bias": false }),
    );
    expect(
        draft("gemma3").set("gemma3.attention.sliding_window", Meta::U32(8)).set("gemma3.block_count", Meta::U32(7)),
        json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "query_pre_attn_scalar": 8,
            "sliding_window": 8, "rope_local_base_freq": 10000.0,
            "layer_types": [
                "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
                "full_attention", "sliding_attention",
            ],
        }),
    );
    expect(
        draft("phi3")
            .set("phi3.rope.dimension_count", Meta::U32(6))
            .set("phi3.rope.scaling.original_context_length", Meta::U32(16))
            .floats("rope_factors_long.weight", &[3], &[1.1, 2.0, 3.0])
            .floats("rope_factors_short.weight", &[3], &[1.0, 1.0, 1.0]),
        json!({
            "architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.75, "sliding_window": null,
            "original_max_position_embeddings": 16,
            "rope_scaling": {
                "type": "longrope", "rope_type": "longrope", "long_factor": [1.1, 2.0, 3.0], "short_factor": [1.0, 1.0, 1.0],
            },
        }),
    );
}

#[test]
fn yarn_is_described_in_full() {
    let config = draft("qwen2")
        .set("qwen2.rope.scaling.type", Meta::Text("yarn".into()))
        .set("qwen2.rope.scaling.factor", Meta::F32(4.0))
        .set("qwen2.rope.scaling.original_context_length", Meta::U32(16));
    assert_eq!(
        config.open().unwrap().file.config_json().unwrap()["rope_scaling"],
        json!({ "type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 })
    );
    let missing = config.without("qwen2.rope.scaling.factor").refusal();
    assert!(missing.contains("qwen2.rope.scaling.factor"), "{missing}");
}

#[test]
fn llama_3_scaling_is_recovered() {
    // As the converter computes it for heads of width 64, base 500000 and factors 32, 1, 4, 8192.
    let divisors: Vec<f32> = (0..32)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * 500_000_f64.powf(f64::from(i) / 32.0);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
        })
        .collect();
    let draft =
        draft("llama").set("llama.attention.key_length", Meta::U32(64)).set("llama.rope.freq_base", Meta::F32(5e5));
    let opened = draft.clone().floats("rope_freqs.weight", &[32], &divisors).open().unwrap();
    assert!(opened.file.names().iter().all(|name| !name.contains("rope")));
    assert_eq!(
        opened.file.config_json().unwrap()["rope_scaling"],
        json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    );
    assert!(draft.clone().floats("rope_freqs.weight", &[32], &[2.5; 32]).refusal().contains("rope_freqs"));
    assert!(draft.floats("rope_freqs.weight", &[4], &[1.0; 4]).refusal().contains("rope_freqs"));
}

#[test]
fn settings_that_would_change_results_are_refused_by_name() {
    for (key, value, says) in [
        ("llama.attention.scale", Meta::F32(0.1), "`llama.attention.scale` = 0.1"),
        ("llama.expert_count", Meta::U32(8), "`llama.expert_count` = 8"),
        ("llama.rope.dimension_count", Meta::U32(4), "llama.rope.dimension_count"),
        ("llama.attention.value_length", Meta::U32(4), "4 wide"),
        ("llama.rope.scaling.type", Meta::Text("su".into()), "`su`"),
        ("llama.attention.head_count", Meta::U32(0), "`llama.attention.head_count` is 0"),
        ("llama.attention.head_count", Meta::U32(5), "5 heads"),
        ("llama.attention.head_count_kv", Meta::Ints(vec![1, 2]), "a list of 2"),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN), "finite"),
        ("general.architecture", Meta::Text("mamba".into()), "architecture `mamba`"),
        ("general.architecture", Meta::U32(3), "a text is needed"),
        ("general.alignment", Meta::U32(12), "`general.alignment` is 12"),
        ("tokenizer.ggml.eos_token_id", Meta::U32(40), "40 rows"),
    ] {
        let error = draft("llama").set(key, value).refusal();
        assert!(error.contains(says), "{key}: {error}");
        assert!(error.contains("model.gguf"), "{error}");
    }
    for key in
        ["general.architecture", "llama.block_count", "llama.context_length", "llama.attention.layer_norm_rms_epsilon"]
    {
        let error = draft("llama").without(key).refusal();
        assert!(error.contains(&format!("`{key}` is missing")), "{error}");
    }
    let error = draft("qwen2").set("qwen2.attention.sliding_window", Meta::U32(8)).refusal();
    assert!(error.contains("qwen2.attention.sliding_window"), "{error}");
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    model::tokenizer::encode(tokenizer, text, false).unwrap()
}

fn reloaded(tokenizer: &Tokenizer) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    tokenizer.save(&path, false).unwrap();
    Tokenizer::from_file(path).unwrap()
}

#[test]
fn byte_pair_tokenizers() {
    let file = with_byte_pairs(draft("llama"));
    let tokenizer = file.open().unwrap().file.tokenizer().unwrap();
    for tokenizer in [&tokenizer, &reloaded(&tokenizer)] {
        // Digits are single though `12` is a token; control and user-defined tokens stand for themselves.
        assert_eq!(ids(tokenizer, "ab ab12\n<|user|><tool>a"), [5, 7, 8, 9, 11, 1, 2, 3]);
        assert_eq!(tokenizer.decode(&[5, 7, 8, 9, 11, 1, 2, 3], false).unwrap(), "ab ab12\n<|user|><tool>a");
        assert_eq!(tokenizer.decode(&[5, 1, 2], true).unwrap(), "ab<tool>");
        assert_eq!(tokenizer.encode("a", true).unwrap().get_ids(), [3]);
    }
    let bos = file
        .clone()
        .set("tokenizer.ggml.add_bos_token", Meta::Bool(true))
        .set("tokenizer.ggml.add_eos_token", Meta::Bool(true));
    let tokenizer = bos.open().unwrap().file.tokenizer().unwrap();
    for tokenizer in [&tokenizer, &reloaded(&tokenizer)] {
        assert_eq!(tokenizer.encode("a", true).unwrap().get_ids(), [1, 3, 0]);
        assert_eq!(tokenizer.encode("a", false).unwrap().get_ids(), [3]);
    }
    // Llama 3's pre-tokenizer keeps numbers together and puts the beginning of text where the file doesn't say.
    let llama3 =
        file.set("tokenizer.ggml.pre", Meta::Text("llama-bpe".into())).open().unwrap().file.tokenizer().unwrap();
    assert_eq!(llama3.encode("12", true).unwrap().get_ids(), [1, 10]);
}

#[test]
fn tokenizers_that_cannot_be_right_are_refused() {
    let file = with_byte_pairs(draft("llama"));
    for (key, value, says) in [
        ("tokenizer.ggml.pre", Some(Meta::Text("klingon".into())), "pre-tokenizer `klingon` is not supported"),
        ("tokenizer.ggml.pre", None, "tokenizer.ggml.pre"),
        ("tokenizer.ggml.model", Some(Meta::Text("t5".into())), "tokenizer model `t5`"),
        ("tokenizer.ggml.tokens", None, "`tokenizer.ggml.tokens` is missing"),
        ("tokenizer.ggml.tokens", Some(texts(&["a", "a"])), "`a` twice, at 0 and 1"),
        ("tokenizer.ggml.token_type", Some(Meta::Ints(vec![1])), "1 entries, but there are 13 tokens"),
        ("tokenizer.ggml.merges", Some(texts(&["a 2"])), "`a 2`"),
        ("tokenizer.ggml.merges", Some(texts(&["ab"])), "`ab`"),
    ] {
        let changed = value.map_or(file.clone().without(key), |value| file.clone().set(key, value));
        let error = changed.open().unwrap().file.tokenizer().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{key}: {error}");
    }
    let bos =
        file.set("tokenizer.ggml.add_bos_token", Meta::Bool(true)).set("tokenizer.ggml.bos_token_id", Meta::U32(99));
    assert!(bos.open().unwrap().file.tokenizer().map(|_| ()).unwrap_err().to_string().contains("99"));
    let pieces = with_sentence_pieces(draft("llama"));
    for key in ["tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.scores"] {
        let changed = if key.ends_with("scores") {
            pieces.clone().without(key)
        } else {
            pieces.clone().set(key, Meta::Bool(true))
        };
        assert!(changed.open().unwrap().file.tokenizer().map(|_| ()).unwrap_err().to_string().contains(key));
    }
}

/// SentencePiece as it defines itself: merge the neighbours whose joined piece has the best score, the first of equals.
fn slow_sentence_piece(text: &str, prefix: bool) -> Vec<u32> {
    let (pieces, scores, kinds) = sentence_pieces();
    let id = |piece: &str| pieces.iter().position(|other| other == piece);
    let text = format!("{}{}", if prefix && !text.is_empty() { "▁" } else { "" }, text.replace(' ', "▁"));
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let joined = symbols.windows(2).map(<[String]>::concat);
        let ranked = joined.enumerate().filter_map(|(at, piece)| Some((at, id(&piece).filter(|id| kinds[*id] == 1)?)));
        let Some((at, _)) = ranked.max_by(|a, b| scores[a.1].total_cmp(&scores[b.1]).then(b.0.cmp(&a.0))) else {
            break;
        };
        let right = symbols.remove(at + 1);
        symbols[at].push_str(&right);
    }
    let bytes = |symbol: &String| symbol.bytes().map(|byte| u32::from(byte) + 3).collect::<Vec<_>>();
    symbols.iter().flat_map(|symbol| id(symbol).map_or_else(|| bytes(symbol), |id| vec![id as u32])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn sentence_piece_tokenizers_merge_by_score(text in "(a|b| |é|\n|🙂){0,40}") {
        for prefix in [true, false] {
            let file = with_sentence_pieces(draft("llama")).set("tokenizer.ggml.add_space_prefix", Meta::Bool(prefix));
            let tokenizer = file.open().unwrap().file.tokenizer().unwrap();
            let expected = slow_sentence_piece(&text, prefix);
            prop_assert_eq!(&ids(&tokenizer, &text), &expected);
            prop_assert_eq!(&ids(&reloaded(&tokenizer), &text), &expected);
            prop_assert_eq!(tokenizer.decode(&expected, false).unwrap(), text.clone());
        }
    }
}

#[test]
fn sentence_piece_tokens_of_special_kinds() {
    let tokenizer = with_sentence_pieces(draft("llama")).open().unwrap().file.tokenizer().unwrap();
    let [space_a, tool, b] = ["▁a", "<tool>", "▁"].map(|piece| tokenizer.token_to_id(piece).unwrap());
    assert_eq!(tokenizer.encode("a</s><tool>", true).unwrap().get_ids(), [1, space_a, 2, tool]);
    assert_eq!(ids(&tokenizer, "<0x41>")[0], b, "the name of a byte is text");
    // Phi-3's special tokens take the space after them along.
    let phi = with_sentence_pieces(draft("phi3")).open().unwrap().file.tokenizer().unwrap();
    assert_eq!(phi.encode("</s>  a", false).unwrap().get_ids(), [2, space_a]);
}

#[test]
fn companion_files_say_what_the_metadata_says() {
    let file = with_byte_pairs(draft("llama")).set("tokenizer.ggml.eot_token_id", Meta::U32(1)).open().unwrap().file;
    let files = file.companion_files().unwrap();
    let read = |name: &str| -> serde_json::Value {
        let (_, bytes) = files.iter().find(|(other, _)| other == name).unwrap();
        serde_json::from_slice(bytes).unwrap()
    };
    assert_eq!(
        read("tokenizer_config.json"),
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "clean_up_tokenization_spaces": false,
            "add_bos_token": false, "add_eos_token": false, "bos_token": "<|user|>", "eos_token": "<|end|>",
            "chat_template": "{{ messages }}",
        })
    );
    assert_eq!(read("special_tokens_map.json"), json!({ "bos_token": "<|user|>", "eos_token": "<|end|>" }));
    assert_eq!(read("generation_config.json"), json!({ "bos_token_id": 1, "eos_token_id": [0, 1] }));
    assert_eq!(file.chat_template().unwrap(), "{{ messages }}");
}

/// Everything that reads the file; errors are welcome, panics are not.
fn read_everything(bytes: &[u8]) {
    let Ok(opened) = Opened::from(bytes) else { return };
    let file = opened.file;
    let _ = (file.config_json(), file.companion_files(), file.chat_template());
    if let Ok(tokenizer) = file.tokenizer() {
        let _ = tokenizer.encode("ab <|end|> 12\n", true);
    }
    for name in file.names() {
        let numbers = file.read(&name).unwrap();
        assert_eq!(numbers.len(), file.shape(&name).unwrap().iter().product::<usize>());
    }
}

fn whole_files() -> [Vec<u8>; 3] {
    let tensors = |draft: Draft| {
        draft.floats("blk.0.attn_q.weight", &[32, 32], &[0.5; 1024]).floats("rope_freqs.weight", &[4], &[1.0; 4])
    };
    let second = Draft { version: 2, ..with_byte_pairs(draft("llama")) };
    [second, with_sentence_pieces(draft("gemma3")), with_byte_pairs(draft("qwen3"))].map(|draft| tensors(draft).bytes())
}

#[test]
fn every_truncation_is_an_error() {
    for bytes in whole_files() {
        read_everything(&bytes);
        for length in (0..bytes.len()).step_by(7).chain(bytes.len() - 3..bytes.len()) {
            assert!(Opened::from(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for bytes in whole_files() {
        let head = bytes.len() - 8192;
        for _ in 0..1500 {
            let mut bytes = bytes.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..head);
                bytes[at] ^= 1 << random.random_range(0..8);
            }
            read_everything(&bytes);
        }
    }
}

#[test]
fn wild_counts_and_sizes_are_refused_at_once() {
    let good = draft("llama").bytes();
    let with = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        Opened::from(&bytes).map(|_| ()).unwrap_err().to_string()
    };
    assert!(with(8, u64::MAX).contains("tensors"));
    assert!(with(16, 1 << 40).contains("metadata entries"));
    assert!(with(24, u64::MAX).contains("may be cut short"));
    let place = good.windows(17).position(|window| window == b"token_embd.weight").unwrap() + 17 + 4;
    assert!(with(place, u64::MAX).contains("token_embd.weight"));
    assert!(with(place, 0).contains("token_embd.weight"));
    assert!(with(place + 8, 1 << 62).contains("may be cut short"));
    assert!(with(place + 8 + 8 + 4, 1).contains("not a multiple of 32"));
    assert!(with(place + 8 + 8 + 4, u64::MAX - 31).contains("may be cut short"));
    let mut other_type = good.clone();
    other_type[place + 16] = 23;
    assert!(Opened::from(&other_type).map(|_| ()).unwrap_err().to_string().contains("IQ4_XS"));
    for (bytes, says) in [(&b"GGML\x03\0\0\0"[..], "`GGUF`"), (b"GGUF\x01\0\0\0", "version 1"), (b"", "magic")] {
        assert!(Opened::from(bytes).map(|_| ()).unwrap_err().to_string().contains(says));
    }
    assert!(GgufFile::open(Path::new("/nowhere/model.gguf")).map(|_| ()).unwrap_err().to_string().contains("/nowhere"));
}

#[test]
fn names_that_occur_twice_are_refused() {
    let twice = draft("llama").floats("token_embd.weight", &[1, 32], &[0.0; 32]);
    assert!(twice.refusal().contains("twice"));
    let mut keys = draft("llama");
    keys.entries.push(("llama.block_count".into(), Meta::U32(3)));
    assert!(keys.refusal().contains("`llama.block_count` occurs twice"));
}
