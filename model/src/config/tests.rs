use super::*;
use serde_json::json;

fn llama() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 128})
}

fn with(mut config: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(json: &Value) -> Result<Config, ModelError> {
    Config::from_json(json, Path::new("config.json"))
}

/// The refusal of a Llama configuration with `more` keys.
fn refusal(more: &Value) -> String {
    read(&with(llama(), more)).unwrap_err().to_string()
}

#[test]
fn missing_keys_take_the_defaults_of_the_family() {
    let config = read(&llama()).unwrap();
    assert_eq!((config.head_width, config.kv_heads, config.norm_epsilon), (16, 2, 1e-6));
    assert_eq!((config.tied_head, config.activation, config.biases), (false, Activation::Silu, Biases::default()));
    assert_eq!(config.ropes[0].inverse_frequencies.len(), 8);
    assert_eq!(config.layers, vec![LayerKind { rope: 0, window: None }; 3]);
    assert_eq!((config.bos_token, config.eos_tokens), (None, vec![]));
}

#[test]
fn an_absent_window_of_mistral_is_4096_and_null_is_none() {
    let mistral = json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral"});
    assert_eq!(read(&with(llama(), &mistral)).unwrap().layers[0].window, Some(4096));
    let null = with(mistral, &json!({"sliding_window": null}));
    assert_eq!(read(&with(llama(), &null)).unwrap().layers[0].window, None);
}

#[test]
fn gemma_takes_its_defaults() {
    let gemma = json!({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 7});
    let config = read(&with(llama(), &gemma)).unwrap();
    assert_eq!((config.tied_head, config.head_width, config.attention_scale), (true, 256, 0.0625));
    let full: Vec<bool> = config.layers.iter().map(|layer| layer.window.is_none()).collect();
    assert_eq!(full, [false, false, false, false, false, true, false]);
    assert!(config.layers.iter().all(|layer| (layer.rope == 0) == layer.window.is_none()));
}

#[test]
fn foreign_architectures_are_refused_by_name() {
    let name = |name: &str| refusal(&json!({"architectures": [name]}));
    assert_eq!(name("MixtralForCausalLM"), "config.json: architecture `MixtralForCausalLM` is not supported");
    assert_eq!(
        name("Gemma3ForConditionalGeneration"),
        "config.json: architecture `Gemma3ForConditionalGeneration` is not supported"
    );
    assert_eq!(
        refusal(&json!({"architectures": null, "model_type": "olmo2"})),
        "config.json: model type `olmo2` is not supported"
    );
    assert_eq!(
        refusal(&json!({"model_type": "mistral"})),
        "config.json: architecture `LlamaForCausalLM` with model type `mistral` is not supported"
    );
    assert_eq!(
        refusal(&json!({"architectures": null, "model_type": null})),
        "config.json: `architectures` and `model_type` are missing"
    );
}

#[test]
fn settings_that_would_change_results_are_refused_by_name() {
    for (more, sentence) in [
        (json!({"hidden_act": "gelu"}), "`hidden_act` = \"gelu\""),
        (json!({"final_logit_softcapping": 30.0}), "`final_logit_softcapping` = 30.0"),
        (json!({"attention_multiplier": 0.5}), "`attention_multiplier` = 0.5"),
        (json!({"sliding_window": 4096}), "`sliding_window` = 4096"),
        (json!({"num_local_experts": 8}), "`num_local_experts` = 8"),
        (json!({"rope_interleaved": true}), "`rope_interleaved` = true"),
        (json!({"use_qk_norm": true}), "`use_qk_norm` = true"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "`rope_scaling.rope_type` = \"yarn\""),
        (json!({"rope_scaling": {"type": "linear", "factor": 4.0, "mscale": 2}}), "`rope_scaling.mscale` = 2"),
        (json!({"rope_scaling": {"partial_rotary_factor": 0.5}}), "`rope_scaling.partial_rotary_factor` = 0.5"),
        (json!({"quantization_config": {"quant_method": "hqq"}}), "quantization method `hqq`"),
        (json!({"rope_scaling": {"factor": 2.0}, "rope_parameters": {}}), "`rope_scaling` beside `rope_parameters`"),
    ] {
        assert_eq!(refusal(&more), format!("config.json: {sentence} is not supported"));
    }
}

#[test]
fn wrong_values_are_named_with_what_they_have_to_be() {
    for (more, sentence) in [
        (json!({"hidden_size": 0}), "`hidden_size` is 0, but has to be a whole number between 1 and 1048576"),
        (
            json!({"vocab_size": 1e12}),
            "`vocab_size` is 1000000000000.0, but has to be a whole number between 1 and 16777216",
        ),
        (json!({"num_hidden_layers": null}), "`num_hidden_layers` is missing"),
        (json!({"num_key_value_heads": 3}), "`num_key_value_heads` = 3 does not divide `num_attention_heads` = 4"),
        (
            json!({"num_attention_heads": 5}),
            "`num_attention_heads` = 5 does not divide `hidden_size` = 64, and `head_dim` is missing",
        ),
        (json!({"head_dim": 15}), "`head_dim` is 15; a rotary embedding needs an even width"),
        (json!({"head_dim": 1_000_000}), "`head_dim` = 1000000 times 4 heads is above 1048576"),
        (json!({"rms_norm_eps": -1.0}), "`rms_norm_eps` is -1.0, but has to be a positive number"),
        (json!({"tie_word_embeddings": 1}), "`tie_word_embeddings` is 1, but has to be true or false"),
        (json!({"eos_token_id": -1}), "`eos_token_id` is -1, but has to be a token id or a list of token ids"),
        (json!({"rope_scaling": [1]}), "`rope_scaling` is [1], but has to be an object"),
        (json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor` is missing"),
        (
            json!({"rope_scaling": {"type": "linear", "rope_type": "dynamic"}}),
            "`rope_scaling.rope_type` is `dynamic` but `type` is `linear`",
        ),
        (json!({"quantization_config": {"bits": 4}}), "`quantization_config.quant_method` is missing"),
    ] {
        assert_eq!(refusal(&more), format!("config.json: {sentence}"));
    }
    let sentence = read(&json!([])).unwrap_err().to_string();
    assert_eq!(sentence, "config.json: is not a JSON object");
}

#[test]
fn listed_layer_types_must_fit() {
    let qwen = json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"});
    let refusal = |more: &Value| read(&with(with(llama(), &qwen), more)).unwrap_err().to_string();
    let full = "full_attention";
    assert_eq!(
        refusal(&json!({"layer_types": [full]})),
        "config.json: `layer_types` has to be a list of `num_hidden_layers` = 3 types"
    );
    assert_eq!(
        refusal(&json!({"layer_types": [full, "chunked_attention", full]})),
        "config.json: layer type `\"chunked_attention\"` is not supported"
    );
    assert_eq!(
        refusal(&json!({"layer_types": [full, "sliding_attention", full]})),
        "config.json: `layer_types` names sliding layers, but the model has no sliding window"
    );
}

#[test]
fn notes_of_other_tools_and_switched_off_settings_pass() {
    let notes = json!({"transformers_version": "5.1.0", "_name_or_path": "x", "unsloth_version": "2026.1",
        "attention_dropout": 0.1, "attention_bias": false, "final_logit_softcapping": null, "use_cache": true,
        "rope_interleaved": false, "pretraining_tp": 1, "initializer_range": 0.02});
    assert_eq!(read(&with(llama(), &notes)).unwrap(), read(&llama()).unwrap());
}

/// The keys of published files, sizes included, lists of factors and unrelated keys shortened.
#[test]
fn published_files_are_read() {
    let smollm2 = json!({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_interleaved": false, "rope_scaling": null,
        "rope_theta": 100_000, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "vocab_size": 49152});
    let gemma = json!({"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": 512, "sliding_window_pattern": 6,
        "use_bidirectional_attention": false, "use_cache": true, "vocab_size": 262_144});
    let qwen3 = json!({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151_643, "eos_token_id": 151_645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1_000_000,
        "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151_936});
    let phi = json!({"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 199_999, "embd_pdrop": 0.0,
        "eos_token_id": 199_999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
        "interpolate_factor": 1, "intermediate_size": 8192, "lm_head_bias": false, "max_position_embeddings": 131_072,
        "mlp_bias": false, "model_type": "phi3", "num_attention_heads": 24, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "pad_token_id": 199_999,
        "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": {"long_factor": vec![2.0; 48], "short_factor": vec![1.0; 48], "type": "longrope"},
        "sliding_window": 262_144, "tie_word_embeddings": true, "use_cache": true, "vocab_size": 200_064});
    for json in [&smollm2, &gemma, &qwen3, &phi] {
        read(json).unwrap();
    }
    let phi = read(&phi).unwrap();
    assert_eq!(phi.ropes[0].frequencies(4096).len(), 48);
    assert_eq!(phi.ropes[0].frequencies(4097)[0], 0.5);
    assert!((phi.ropes[0].attention_factor - 1.190_238).abs() < 1e-6);
}

#[test]
fn hostile_values_never_panic() {
    let rope = json!({"rope_type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![1.0; 8],
        "original_max_position_embeddings": 1, "factor": 1e-300});
    let hostile =
        [json!(-1), json!(0), json!(1), json!(u64::MAX), json!(1e300), json!("x"), json!([]), json!({}), rope];
    for (architecture, model_type, _) in FAMILIES {
        let plain = with(llama(), &json!({"architectures": [architecture], "model_type": model_type}));
        let read_keys = [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "num_key_value_heads",
            "max_position_embeddings",
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "layer_types",
            "rope_scaling",
            "rope_parameters",
            "sliding_window",
            "sliding_window_pattern",
            "max_window_layers",
            "partial_rotary_factor",
            "query_pre_attn_scalar",
            "rope_local_base_freq",
            "eos_token_id",
            "architectures",
            "original_max_position_embeddings",
            "quantization_config",
            "hidden_act",
            "model_type",
        ];
        for (key, value) in read_keys.iter().flat_map(|key| hostile.iter().map(move |value| (key, value))) {
            let _ = read(&with(plain.clone(), &json!({*key: value})));
        }
    }
}
