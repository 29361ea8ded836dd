//! Every family against an independent decoder, on small random models: logits after every token of a sequence.
//!
//! The independent decoder is candle-transformers' wherever it computes what Transformers computes. It differs in these
//! points, found by reading both, and there the slow reference of `support/reference.rs` takes its place:
//! - its sliding windows are one token longer (a token at distance `window` is seen): it is given `window - 1`;
//! - Qwen2: one window for all layers instead of the layers from `max_window_layers` on; Qwen3: no window;
//! - Gemma 3: ignores `query_pre_attn_scalar` (it takes the head width), knows no `layer_types`, and fails on more than
//!   one key-value head ("slice-set only supports contiguous tensors");
//! - Phi-3: no sliding window; `longrope` multiplies by the factors instead of dividing, switches by position instead of
//!   by length, and has no attention factor;
//! - Llama: no biases, no `linear` and `dynamic` rope scaling, no `head_dim`.
//!
//! Tolerance: both sides are float32 (or float64) and differ in the order of sums only. A sum of k <= 96 terms carries a
//! relative error near sqrt(k) 2^-24 = 6e-7; seven linears and three layers keep that below 1e-5 of the largest logit.
//! Asserted is 1e-4.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

mod support;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models as candle;
use kernels::Compute;
use model::{Checkpoint, Stage};
use serde_json::{Value, json};
use std::collections::HashMap;
use support::{
    reference::{Layer, Reference, frequencies},
    small_model::{SmallModel, config},
};

const TOLERANCE: f64 = 1e-4;

/// Twenty-three tokens: longer than every window used here, and a length no tile divides.
fn tokens() -> Vec<u32> {
    (0..23u32).map(|i| (i * i * 7 + i * 13 + 5) % 100).collect()
}

fn our_logits(model: &SmallModel, tokens: &[u32]) -> Vec<Vec<f64>> {
    let checkpoint = Checkpoint::open(model.path().to_str().expect("a path in UTF-8")).expect("the model opens");
    let hidden = checkpoint.hidden_states(tokens).expect("the forward pass runs");
    let logits = checkpoint.head().expect("the head is read").logits(&hidden);
    logits.chunks(checkpoint.config.vocabulary).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}

/// Logits after each prefix of `tokens`, by a decoder that gives those of the last position only.
fn prefixes(tokens: &[u32], mut last: impl FnMut(&Tensor) -> candle_core::Result<Tensor>) -> Vec<Vec<f64>> {
    let mut row = |end: usize| -> candle_core::Result<Vec<f64>> {
        let input = Tensor::new(&tokens[..end], &Device::Cpu)?.unsqueeze(0)?;
        last(&input)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
    };
    (1..=tokens.len()).map(|end| row(end).expect("candle runs")).collect()
}

fn variables(model: &SmallModel) -> VarBuilder<'static> {
    let tensor = |shape: &[usize], values: &[f32]| Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor");
    let tensors: HashMap<String, Tensor> =
        model.tensors.iter().map(|(name, (shape, values))| (name.clone(), tensor(shape, values))).collect();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

/// The configuration as candle's own type, some keys changed for it.
fn candle_config<T: serde::de::DeserializeOwned>(model: &SmallModel, changes: &Value) -> T {
    let mut config = model.config.clone();
    for (key, value) in changes.as_object().expect("an object of keys") {
        config[key] = value.clone();
    }
    serde_json::from_value(config).expect("candle reads the configuration")
}

fn assert_close(ours: &[Vec<f64>], theirs: &[Vec<f64>]) {
    assert_eq!(ours.len(), theirs.len());
    for (position, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let largest = theirs.iter().fold(0.0f64, |max, v| max.max(v.abs()));
        let error = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(largest > 0.1, "logits that say nothing at position {position}: {largest}");
        assert!(error <= TOLERANCE * largest, "position {position}: error {error:e} of {largest}");
    }
}

/// The slow reference for `model`, with the settings that most of these models share.
fn reference(model: &SmallModel) -> Reference<'_> {
    Reference {
        tensors: &model.tensors,
        heads: 4,
        kv_heads: 2,
        head_width: 16,
        epsilon: 1e-5,
        norm_offset: 0.0,
        embedding_scale: 1.0,
        attention_scale: 0.25,
        rope_factor: 1.0,
        gelu: false,
        layers: vec![Layer { window: None, frequencies: frequencies(1e4, 16) }; 3],
    }
}

fn llama(more: &Value) -> SmallModel {
    SmallModel::new(config("LlamaForCausalLM", "llama", more), 1)
}

fn candle_llama(model: &SmallModel) -> Vec<Vec<f64>> {
    let config: candle::llama::LlamaConfig = candle_config(model, &json!({}));
    let config = config.into_config(false);
    let llama = candle::llama::Llama::load(variables(model), &config).expect("candle loads it");
    prefixes(&tokens(), |input| {
        let mut cache = candle::llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
        llama.forward(input, 0, &mut cache)
    })
}

#[test]
fn llama_with_a_head_of_its_own() {
    let model = llama(&json!({}));
    assert_close(&our_logits(&model, &tokens()), &candle_llama(&model));
}

#[test]
fn llama_with_a_tied_head() {
    let model = llama(&json!({"tie_word_embeddings": true}));
    assert_close(&our_logits(&model, &tokens()), &candle_llama(&model));
}

#[test]
fn llama_3_rope_scaling() {
    // Wavelengths 6.3, 20, 63, 199, ...: below 16 kept, above 64 divided, two between blended.
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let model = llama(&json!({"rope_scaling": scaling}));
    let ours = our_logits(&model, &tokens());
    assert_close(&ours, &candle_llama(&model));
    assert_ne!(ours, our_logits(&llama(&json!({})), &tokens()), "the scaling is seen in the logits");
}

#[test]
fn llama_with_the_rope_keys_of_newer_files() {
    let parameters = json!({"rope_type": "default", "rope_theta": 10000.0});
    let model = llama(&json!({"rope_parameters": parameters, "rope_theta": null}));
    assert_eq!(our_logits(&model, &tokens()), our_logits(&llama(&json!({})), &tokens()));
}

#[test]
fn llama_with_biases_and_wide_heads() {
    let model = llama(&json!({"attention_bias": true, "mlp_bias": true, "head_dim": 24}));
    let mut reference = Reference { head_width: 24, attention_scale: 24f64.powf(-0.5), ..reference(&model) };
    reference.layers.iter_mut().for_each(|layer| layer.frequencies = frequencies(1e4, 24));
    assert_close(&our_logits(&model, &tokens()), &reference.logits(&tokens()));
}

#[test]
fn llama_with_linear_rope_scaling() {
    let model = llama(&json!({"rope_scaling": {"type": "linear", "factor": 4.0}}));
    let mut reference = reference(&model);
    reference.layers.iter_mut().flat_map(|layer| &mut layer.frequencies).for_each(|f| *f /= 4.0);
    assert_close(&our_logits(&model, &tokens()), &reference.logits(&tokens()));
}

#[test]
fn llama_with_dynamic_rope_scaling_within_and_beyond_the_trained_length() {
    let scaling = json!({"rope_type": "dynamic", "factor": 2.0});
    let model = llama(&json!({"rope_scaling": scaling, "max_position_embeddings": 16}));
    let mut reference = reference(&model);
    assert_close(&our_logits(&model, &tokens()[..16]), &reference.logits(&tokens()[..16]));
    let base = 1e4 * (2.0 * 23.0 / 16.0 - 1.0f64).powf(16.0 / 14.0);
    reference.layers.iter_mut().for_each(|layer| layer.frequencies = frequencies(base, 16));
    assert_close(&our_logits(&model, &tokens()), &reference.logits(&tokens()));
}

#[test]
fn mistral_beyond_its_window() {
    let model = SmallModel::new(config("MistralForCausalLM", "mistral", &json!({"sliding_window": 7})), 2);
    let theirs: candle::mistral::Config = candle_config(&model, &json!({"sliding_window": 6}));
    let variables = variables(&model);
    let theirs =
        prefixes(&tokens(), |input| candle::mistral::Model::new(&theirs, variables.clone())?.forward(input, 0));
    assert_close(&our_logits(&model, &tokens()), &theirs);
    let mut reference = reference(&model);
    reference.layers.iter_mut().for_each(|layer| layer.window = Some(7));
    assert_close(&our_logits(&model, &tokens()), &reference.logits(&tokens()));
}

#[test]
fn mistral_without_a_window() {
    let model = SmallModel::new(config("MistralForCausalLM", "mistral", &json!({"sliding_window": null})), 2);
    assert_close(&our_logits(&model, &tokens()), &reference(&model).logits(&tokens()));
}

fn qwen2(more: &Value) -> SmallModel {
    SmallModel::new(config("Qwen2ForCausalLM", "qwen2", more), 3)
}

#[test]
fn qwen_2_with_biases() {
    for tied in [false, true] {
        let model = qwen2(&json!({"use_sliding_window": false, "sliding_window": 5, "max_window_layers": 1,
            "hidden_act": "silu", "tie_word_embeddings": tied}));
        let theirs: candle::qwen2::Config = candle_config(&model, &json!({"sliding_window": 1000}));
        let variables = variables(&model);
        let theirs = prefixes(&tokens(), |input| {
            candle::qwen2::ModelForCausalLM::new(&theirs, variables.clone())?.forward(input, 0)
        });
        assert_close(&our_logits(&model, &tokens()), &theirs);
    }
}

#[test]
fn qwen_2_with_a_window_in_its_upper_layers() {
    let model = qwen2(&json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1}));
    let mut reference = reference(&model);
    reference.layers[1..].iter_mut().for_each(|layer| layer.window = Some(5));
    assert_close(&our_logits(&model, &tokens()), &reference.logits(&tokens()));
}

fn qwen3(more: &Value) -> SmallModel {
    let mut keys = json!({"head_dim": 24, "use_sliding_window": false, "sliding_window": null, "max_window_layers": 3,
        "hidden_act": "silu", "attention_bias": false});
    more.as_object().expect("an object").iter().for_each(|(key, value)| keys[key] = value.clone());
    SmallModel::new(config("Qwen3ForCausalLM", "qwen3", &keys), 4)
}

#[test]
fn qwen_3_with_query_and_key_norms() {
    for (bias, tied) in [(false, true), (true, false)] {
        let model = qwen3(&json!({"attention_bias": bias, "tie_word_embeddings": tied}));
        let theirs: candle::qwen3::Config = candle_config(&model, &json!({}));
        let variables = variables(&model);
        let theirs = prefixes(&tokens(), |input| {
            candle::qwen3::ModelForCausalLM::new(&theirs, variables.clone())?.forward(input, 0)
        });
        assert_close(&our_logits(&model, &tokens()), &theirs);
    }
}

#[test]
fn qwen_3_with_listed_layer_types() {
    let types = ["sliding_attention", "full_attention", "sliding_attention"];
    let model = qwen3(&json!({"layer_types": types, "use_sliding_window": true, "sliding_window": 6}));
    let full = Layer { window: None, frequencies: frequencies(1e4, 24) };
    let sliding = Layer { window: Some(6), ..full.clone() };
    let layers = vec![sliding.clone(), full, sliding];
    let reference = Reference { head_width: 24, attention_scale: 24f64.powf(-0.5), layers, ..reference(&model) };
    assert_close(&our_logits(&model, &tokens()), &reference.logits(&tokens()));
}

fn gemma3(more: &Value) -> SmallModel {
    let mut keys = json!({"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 7, "attention_bias": false,
        "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "attn_logit_softcapping": null, "final_logit_softcapping": null, "tie_word_embeddings": true});
    more.as_object().expect("an object").iter().for_each(|(key, value)| keys[key] = value.clone());
    SmallModel::new(config("Gemma3ForCausalLM", "gemma3_text", &keys), 5)
}

#[test]
fn gemma_3_with_local_and_global_layers() {
    let model = gemma3(&json!({"sliding_window_pattern": 2, "num_key_value_heads": 1}));
    let theirs: candle::gemma3::Config = candle_config(&model, &json!({"sliding_window": 6}));
    let variables = variables(&model);
    let theirs =
        prefixes(&tokens(), |input| candle::gemma3::Model::new(false, &theirs, variables.clone())?.forward(input, 0));
    assert_close(&our_logits(&model, &tokens()), &theirs);
}

#[test]
fn gemma_3_with_listed_layer_types_and_a_scale_of_its_own() {
    let types = ["full_attention", "sliding_attention", "full_attention"];
    let full = Layer { window: None, frequencies: frequencies(1e6, 24).iter().map(|f| f / 8.0).collect() };
    let sliding = Layer { window: Some(7), frequencies: frequencies(1e4, 24) };
    let older = json!({"layer_types": types, "query_pre_attn_scalar": 50,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let newer = json!({"layer_types": types, "query_pre_attn_scalar": 50, "rope_theta": null,
        "rope_local_base_freq": null, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
    for keys in [older, newer] {
        let model = gemma3(&keys);
        let reference = Reference {
            head_width: 24,
            norm_offset: 1.0,
            embedding_scale: 8.0,
            attention_scale: 50f64.powf(-0.5),
            gelu: true,
            layers: vec![full.clone(), sliding.clone(), full.clone()],
            ..reference(&model)
        };
        assert_close(&our_logits(&model, &tokens()), &reference.logits(&tokens()));
    }
}

/// What was prepared of a weight for products goes when the weight may change.
#[test]
fn a_replaced_weight_is_the_one_that_is_multiplied() {
    let [given, other] = [5, 6].map(|seed| SmallModel::new(config("LlamaForCausalLM", "llama", &json!({})), seed));
    for compute in [Compute::F32, Compute::Bf16x3, Compute::Bf16] {
        let open = |model: &SmallModel| Checkpoint::open(model.path().to_str().unwrap()).unwrap().computed(compute);
        let (given, other) = (open(&given), open(&other));
        let hidden = given.embed(&tokens()).unwrap();
        let (mut block, others) = (given.block(1).unwrap(), other.block(1).unwrap());
        let before = block.forward(hidden.clone(), &mut |_, _| {});
        for stage in Stage::ALL {
            block.linears_mut(stage).clone_from_slice(others.linears(stage));
        }
        let after = block.forward(hidden.clone(), &mut |_, _| {});
        assert_ne!(before, after);
        let mut fresh = given.block(1).unwrap();
        for stage in Stage::ALL {
            fresh.linears_mut(stage).clone_from_slice(others.linears(stage));
        }
        assert_eq!(after, fresh.forward(hidden, &mut |_, _| {}), "{compute}");
    }
}

fn phi3(more: &Value) -> SmallModel {
    let mut keys = json!({"hidden_act": "silu", "sliding_window": null, "attention_bias": false,
        "original_max_position_embeddings": 128, "eos_token_id": 2});
    more.as_object().expect("an object").iter().for_each(|(key, value)| keys[key] = value.clone());
    SmallModel::new(config("Phi3ForCausalLM", "phi3", &keys), 6)
}

#[test]
fn phi_3_with_fused_projections() {
    for keys in [json!({}), json!({"partial_rotary_factor": 0.75, "tie_word_embeddings": true})] {
        let model = phi3(&keys);
        let theirs: candle::phi3::Config = candle_config(&model, &json!({"head_dim": null}));
        let variables = variables(&model);
        let theirs =
            prefixes(&tokens(), |input| candle::phi3::Model::new(&theirs, variables.clone())?.forward(input, 0));
        assert_close(&our_logits(&model, &tokens()), &theirs);
    }
}

#[test]
fn phi_3_with_long_rope_and_a_window() {
    let short: Vec<f64> = (0..8).map(|j| 1.0 + 0.1 * f64::from(j)).collect();
    let long: Vec<f64> = (0..8).map(|j| 1.5 + 0.7 * f64::from(j)).collect();
    let scaling = json!({"type": "longrope", "short_factor": short, "long_factor": long});
    let model = phi3(&json!({"rope_scaling": scaling, "original_max_position_embeddings": 16, "sliding_window": 9}));
    let rope_factor = (1.0 + (128.0f64 / 16.0).ln() / 16.0f64.ln()).sqrt();
    for (length, factors) in [(16, short), (23, long)] {
        let frequencies = frequencies(1e4, 16).iter().zip(&factors).map(|(f, factor)| f / factor).collect();
        let layers = vec![Layer { window: Some(9), frequencies }; 3];
        let reference = Reference { rope_factor, layers, ..reference(&model) };
        assert_close(&our_logits(&model, &tokens()[..length]), &reference.logits(&tokens()[..length]));
    }
}

#[test]
fn the_rows_of_a_window_do_not_depend_on_what_was_computed_before() {
    // A longer window first, then a shorter one, from one opened checkpoint: rope tables are shared and grow.
    let model = llama(&json!({}));
    let checkpoint = Checkpoint::open(model.path().to_str().expect("UTF-8")).expect("the model opens");
    let long = checkpoint.hidden_states(&tokens()).expect("runs");
    let short = checkpoint.hidden_states(&tokens()[..9]).expect("runs");
    for (long, short) in long.iter().zip(&short) {
        assert!((long - short).abs() <= 1e-5 * long.abs().max(1.0), "{long} and {short}");
    }
}
