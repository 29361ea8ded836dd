//! Folding factors into norms and linears leaves the model's output as it was, for every family.
//!
//! Tolerance: folding adds two float32 roundings to each weight, each norm and each of their products, so that logits
//! move as they do by another order of sums; `families.rs` derives 1e-5 of the largest logit for that and asserts 1e-4.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[path = "support/small_model.rs"]
mod small_model;

use model::{Checkpoint, Stage};
use serde_json::{Value, json};
use small_model::{SmallModel, config};
use std::collections::BTreeMap;

const TOLERANCE: f32 = 1e-4;

fn every_family() -> Vec<(&'static str, SmallModel)> {
    let model = |architecture, model_type, more: Value| {
        (model_type, SmallModel::new(config(architecture, model_type, &more), 3))
    };
    vec![
        model("LlamaForCausalLM", "llama", json!({"attention_bias": true, "mlp_bias": true})),
        model("MistralForCausalLM", "mistral", json!({"sliding_window": 7})),
        model("Qwen2ForCausalLM", "qwen2", json!({})),
        model("Qwen3ForCausalLM", "qwen3", json!({"head_dim": 32, "num_key_value_heads": 1})),
        model(
            "Gemma3ForCausalLM",
            "gemma3_text",
            json!({"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 20, "tie_word_embeddings": true,
                "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 5000.0,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
        ),
        model("Phi3ForCausalLM", "phi3", json!({"num_key_value_heads": 4, "sliding_window": null})),
        (
            "phi3, grouped queries",
            SmallModel::new(config("Phi3ForCausalLM", "phi3", &json!({"sliding_window": null})), 4),
        ),
    ]
}

fn tokens() -> Vec<u32> {
    (0..23u32).map(|i| (i * i * 7 + i * 13 + 5) % 100).collect()
}

/// Logits over all positions, each block changed by `change` before it runs.
fn logits(checkpoint: &Checkpoint, change: impl Fn(&mut model::Block)) -> Vec<f32> {
    let mut hidden = checkpoint.embed(&tokens()).unwrap();
    for index in 0..checkpoint.config.layers.len() {
        let mut block = checkpoint.block(index).unwrap();
        change(&mut block);
        hidden = block.forward(hidden, &mut |_, _| {});
    }
    checkpoint.head().unwrap().logits(&hidden)
}

fn open(model: &SmallModel) -> Checkpoint {
    Checkpoint::open(model.path().to_str().unwrap()).unwrap()
}

/// Factors between 1/20 and 20, one of them exactly 1.
fn factors(channels: &[usize]) -> Vec<f32> {
    let count = channels.iter().max().unwrap() + 1;
    (0..count).map(|i| if i == 3 { 1.0 } else { 20f32.powf(((i * 37 % 41) as f32 - 20.0) / 20.0) }).collect()
}

fn fold_all(block: &mut model::Block, stages: &[Stage]) {
    for &stage in stages {
        let factors = block.storable(stage, &factors(&block.channels(stage)));
        block.fold(stage, &factors);
    }
}

#[test]
fn the_output_of_every_family_stays_as_it_was() {
    for (family, model) in every_family() {
        let checkpoint = open(&model);
        let before = logits(&checkpoint, |_| {});
        let largest = before.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        for stages in [&Stage::ALL[..1], &Stage::ALL[1..2], &Stage::ALL[2..3], &Stage::ALL[3..], &Stage::ALL[..]] {
            let after = logits(&checkpoint, |block| fold_all(block, stages));
            let error = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error <= TOLERANCE * largest, "{family}, {stages:?}: {error} of {largest}");
        }
    }
}

#[test]
fn every_stage_s_input_is_divided_by_the_factors() {
    for (family, model) in every_family() {
        let checkpoint = open(&model);
        let (given, mut folded) = (checkpoint.block(1).unwrap(), checkpoint.block(1).unwrap());
        fold_all(&mut folded, &Stage::ALL);
        let inputs = |block: &model::Block| {
            let mut inputs = Vec::new();
            block.forward(checkpoint.embed(&tokens()).unwrap(), &mut |_, x| inputs.push(x.to_vec()));
            inputs
        };
        for ((stage, before), after) in Stage::ALL.into_iter().zip(inputs(&given)).zip(inputs(&folded)) {
            let channels = given.channels(stage);
            let factors = given.storable(stage, &factors(&channels));
            let largest = before.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            for (before, after) in before.chunks_exact(channels.len()).zip(after.chunks_exact(channels.len())) {
                for ((before, after), channel) in before.iter().zip(after).zip(&channels) {
                    let error = (before - after * factors[*channel]).abs();
                    assert!(error <= TOLERANCE * largest.max(1.0) * factors[*channel].max(1.0), "{family} {stage:?}");
                }
            }
        }
        // The factors asked for, but for the rounding of what is stored to eight bits.
        for stage in [Stage::Qkv, Stage::Down] {
            let asked = factors(&given.channels(stage));
            let near =
                asked.iter().zip(given.storable(stage, &asked)).filter(|(a, b)| (*a / b - 1.0).abs() < 0.01).count();
            assert!(near * 10 >= asked.len() * 8, "{family} {stage:?}: {near} of {}", asked.len());
        }
    }
}

#[test]
fn norms_and_biases_are_read_back_and_put_back_by_name() {
    for (family, model) in every_family() {
        let checkpoint = open(&model);
        let mut block = checkpoint.block(0).unwrap();
        let given = block.small_tensors();
        for (name, values) in &given {
            assert_eq!(&checkpoint.tensors.read(name).unwrap(), values, "{family}: {name}");
        }
        fold_all(&mut block, &Stage::ALL);
        let folded = block.small_tensors();
        assert_ne!(folded, given);
        let mut other = checkpoint.block(0).unwrap();
        for (name, values) in &folded {
            other.replace_small_tensor(name, values).unwrap();
        }
        assert_eq!(other.small_tensors(), folded);
        let error = other.replace_small_tensor("model.layers.0.nothing", &[]).unwrap_err().to_string();
        assert!(error.contains("no norm or bias of block 0"), "{error}");
        let (name, _) = folded.first_key_value().unwrap();
        assert!(other.replace_small_tensor(name, &[1.0]).is_err());
    }
}

#[test]
fn a_checkpoint_with_replaced_tensors_reads_them_and_nothing_else() {
    let (_, model) = every_family().swap_remove(0);
    let checkpoint = open(&model);
    let norm = "model.layers.0.input_layernorm.weight".to_owned();
    let values: Vec<f32> = (0..64u8).map(f32::from).collect();
    let replaced = checkpoint.replacing(BTreeMap::from([(norm.clone(), values.clone())])).unwrap();
    assert_eq!(replaced.tensors.read(&norm).unwrap(), values);
    assert_eq!(replaced.tensors.names(), checkpoint.tensors.names());
    let untouched = "model.layers.1.input_layernorm.weight";
    assert_eq!(replaced.tensors.read(untouched).unwrap(), checkpoint.tensors.read(untouched).unwrap());
    for (name, count) in [(norm.as_str(), 63), ("model.nothing", 1)] {
        let wrong = BTreeMap::from([(name.to_owned(), vec![0.0; count])]);
        assert!(checkpoint.replacing(wrong).is_err(), "{name}");
    }
}
