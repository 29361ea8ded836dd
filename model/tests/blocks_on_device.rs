//! Blocks on a graphics processor against the CPU's, for every family. Runs where there is a CUDA driver, or the stand-in of
//! `tests/cuda-standin`; else it says that it is skipped.
//!
//! Both ways are float32 and differ in the order of sums: the tolerance is that of `families.rs`, where it is derived.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[allow(dead_code)] // other tests use more of it
#[path = "support/small_model.rs"]
mod small_model;

use kernels::{Compute, cuda::Device};
use model::{
    Checkpoint, Stage,
    decoder::device::{DeviceActivations, DeviceBlock, DeviceHead, obstacle},
};
use serde_json::{Value, json};
use small_model::{SmallModel, config};
use std::{io::Write, sync::Arc};

const TOLERANCE: f32 = 1e-4;
/// Windows of many lengths one after the other; the third is longer than the positions of some models' shorter rope.
const LENGTHS: [usize; 4] = [9, 1, 40, 23];

/// The device, if one can be used; says loudly that the test is skipped where not.
fn device() -> Option<Arc<Device>> {
    let error = match Device::open(0) {
        Ok(device) => return Some(Arc::new(device)),
        Err(error) => error,
    };
    assert!(std::env::var_os("CALIPER_CUDA_REQUIRED").is_none(), "a device is required: {error}");
    std::io::stderr().write_all(format!("!! SKIPPED, no block runs on a device: {error}\n").as_bytes()).unwrap();
    None
}

fn windows() -> Vec<Vec<u32>> {
    let token = |window: usize, at: usize| ((at * at * 7 + at * 13 + window * 31) % 100) as u32;
    LENGTHS.iter().enumerate().map(|(window, length)| (0..*length).map(|at| token(window, at)).collect()).collect()
}

fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = theirs.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let error = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= tolerance * largest, "{what}: error {error:e} of {largest}");
}

/// Every stage's input, the block's output and the likelihoods, block by block.
fn check(architecture: &str, model_type: &str, more: &Value) {
    check_computed(architecture, model_type, more, Compute::F32, TOLERANCE);
}

fn check_computed(architecture: &str, model_type: &str, more: &Value, compute: Compute, tolerance: f32) {
    let Some(device) = device() else { return };
    let model = SmallModel::new(config(architecture, model_type, more), 5);
    let checkpoint = Checkpoint::open(model.path().to_str().unwrap()).unwrap().computed(compute);
    assert_eq!(obstacle(&checkpoint.config), None);
    let mut hidden: Vec<Vec<f32>> = windows().iter().map(|window| checkpoint.embed(window).unwrap()).collect();
    let there = Some(device.upload(&hidden.concat()).unwrap());
    let mut activations = DeviceActivations { lengths: LENGTHS.to_vec(), hidden: there, input: None };
    for index in 0..checkpoint.config.layers.len() {
        let what = |stage| format!("{model_type} {more}, block {index}, {stage:?}");
        let block = checkpoint.block(index).unwrap();
        let mut inputs = vec![Vec::new(); 4];
        for window in &mut hidden {
            let tap = &mut |stage: Stage, input: &[f32]| inputs[stage as usize].extend_from_slice(input);
            *window = block.forward(std::mem::take(window), tap);
        }
        let mut on_device = DeviceBlock::upload(&device, &block).unwrap();
        on_device.renew(&block, Stage::GateUp).unwrap();
        on_device.begin(&mut activations).unwrap();
        for stage in Stage::ALL {
            let input = device.download(activations.input()).unwrap();
            assert_close(&input, &inputs[stage as usize], tolerance, &what(Some(stage)));
            on_device.advance(stage, &mut activations).unwrap();
        }
        let output = device.download(activations.hidden.as_ref().unwrap()).unwrap();
        assert_close(&output, &hidden.concat(), tolerance, &what(None));
    }
    let (head, targets) = (checkpoint.head().unwrap(), windows().concat());
    let expected = head.negative_log_likelihood(&hidden.concat(), &targets);
    let on_device = DeviceHead::upload(&device, &head).unwrap();
    let got = on_device.negative_log_likelihood(activations.hidden.as_ref().unwrap(), &targets).unwrap();
    assert_close(&got, &expected, tolerance, &format!("{model_type} {more}, likelihoods"));
}

#[test]
fn llama() {
    check("LlamaForCausalLM", "llama", &json!({}));
    check("LlamaForCausalLM", "llama", &json!({"attention_bias": true, "mlp_bias": true, "head_dim": 24}));
    check("LlamaForCausalLM", "llama", &json!({"num_attention_heads": 1, "num_key_value_heads": 1}));
}

/// Where the CPU multiplies bfloat16 in other places than the device (attention, few rows), and rounds what comes of that
/// again, numbers part by a few roundings of an operand: 2^-9 of `bf16`, 2^-17 of `bf16x3`.
#[test]
fn llama_in_bfloat16() {
    for (compute, tolerance) in [(Compute::Bf16, 0.03), (Compute::Bf16x3, 2e-4)] {
        check_computed("LlamaForCausalLM", "llama", &json!({"attention_bias": true}), compute, tolerance);
        check_computed(
            "Phi3ForCausalLM",
            "phi3",
            &json!({"original_max_position_embeddings": 128}),
            compute,
            tolerance,
        );
    }
}

/// The rope of the longest window is another than that of the shorter ones.
#[test]
fn llama_with_a_rope_for_each_length() {
    let scaling = json!({"rope_type": "dynamic", "factor": 2.0});
    check("LlamaForCausalLM", "llama", &json!({"rope_scaling": scaling, "max_position_embeddings": 30}));
}

#[test]
fn mistral_with_a_window() {
    check("MistralForCausalLM", "mistral", &json!({"sliding_window": 6}));
}

#[test]
fn qwen_2_with_biases_and_a_window_in_its_upper_layers() {
    let keys = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1});
    check("Qwen2ForCausalLM", "qwen2", &keys);
}

#[test]
fn qwen_3_norms_queries_and_keys() {
    check("Qwen3ForCausalLM", "qwen3", &json!({"head_dim": 32}));
}

#[test]
fn gemma_3_norms_what_it_adds() {
    let keys = json!({"head_dim": 24, "query_pre_attn_scalar": 50, "sliding_window": 7, "attention_bias": false,
        "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 5000.0, "sliding_window_pattern": 2});
    check("Gemma3ForCausalLM", "gemma3_text", &keys);
}

#[test]
fn phi_3_with_fused_linears() {
    let keys = json!({"original_max_position_embeddings": 128, "partial_rotary_factor": 0.75});
    check("Phi3ForCausalLM", "phi3", &keys);
}

#[test]
fn what_the_device_cant_do_is_named() {
    let model = SmallModel::new(config("LlamaForCausalLM", "llama", &json!({"head_dim": 258})), 5);
    let config = Checkpoint::open(model.path().to_str().unwrap()).unwrap().config;
    assert!(obstacle(&config).unwrap().contains("heads 258 wide"));
}
