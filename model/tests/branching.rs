//! Sequences that begin alike, computed as what comes before, a trunk and branches, against each computed whole.
//!
//! Both ways are float32 and differ in the order of sums only: the tolerance is that of `families.rs`, where it is derived.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[allow(dead_code)] // other tests use more of it
#[path = "support/small_model.rs"]
mod small_model;

use model::{
    Checkpoint,
    decoder::{Branching, KeyValues},
};
use serde_json::{Value, json};
use small_model::{SmallModel, config};

const TOLERANCE: f32 = 1e-4;

fn tokens(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i * 13 + seed * 31) % 100).collect()
}

/// Hidden states of each branch's sequence: (rows of the branch, rows of the trunk).
fn branched(checkpoint: &Checkpoint, before: &[u32], trunk: &[u32], branches: &[Vec<u32>]) -> (Vec<f32>, Vec<f32>) {
    let width = checkpoint.config.hidden_size;
    let first = Branching::plain(before.len());
    let then =
        Branching { before: before.len(), trunk: trunk.len(), branches: branches.iter().map(Vec::len).collect() };
    let all: Vec<u32> = trunk.iter().copied().chain(branches.iter().flatten().copied()).collect();
    assert_eq!(then.rows(), all.len());
    let (mut prefix, mut hidden) = (checkpoint.embed(before).unwrap(), checkpoint.embed(&all).unwrap());
    for index in 0..checkpoint.config.layers.len() {
        let block = checkpoint.block(index).unwrap();
        let keys;
        (prefix, keys) = block.forward_branching(prefix, &first, &KeyValues::default());
        hidden = block.forward_branching(hidden, &then, &keys).0;
    }
    let branches = hidden.split_off(trunk.len() * width);
    (branches, hidden)
}

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = theirs.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let error = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= TOLERANCE * largest, "{what}: error {error:e} of {largest}");
}

fn check(architecture: &str, model_type: &str, more: &Value) {
    let model = SmallModel::new(config(architecture, model_type, more), 5);
    let checkpoint = Checkpoint::open(model.path().to_str().unwrap()).unwrap();
    let width = checkpoint.config.hidden_size;
    for (before, trunk, lengths) in
        [(0, 9, &[3, 0, 14][..]), (20, 1, &[5, 2]), (7, 0, &[6, 6]), (11, 13, &[]), (0, 0, &[4]), (30, 40, &[1])]
    {
        let what = format!("{model_type}: {before} + {trunk} + {lengths:?}");
        let (before, trunk) = (tokens(before, 1), tokens(trunk, 2));
        let branches: Vec<Vec<u32>> = lengths.iter().zip(3..).map(|(length, seed)| tokens(*length, seed)).collect();
        let (ours, our_trunk) = branched(&checkpoint, &before, &trunk, &branches);
        let whole = checkpoint.hidden_states(&[before.clone(), trunk.clone()].concat()).unwrap();
        assert_close(&our_trunk, &whole[before.len() * width..], &what);
        let mut first = 0;
        for branch in &branches {
            let sequence = [before.clone(), trunk.clone(), branch.clone()].concat();
            let whole = checkpoint.hidden_states(&sequence).unwrap();
            let ours = &ours[first * width..][..branch.len() * width];
            assert_close(ours, &whole[(sequence.len() - branch.len()) * width..], &what);
            first += branch.len();
        }
    }
}

#[test]
fn llama() {
    check("LlamaForCausalLM", "llama", &json!({}));
}

#[test]
fn mistral_with_a_window() {
    check("MistralForCausalLM", "mistral", &json!({"sliding_window": 6}));
}

#[test]
fn qwen3_norms_queries_and_keys() {
    check("Qwen3ForCausalLM", "qwen3", &json!({"head_dim": 32}));
}

#[test]
fn phi3_with_fused_linears() {
    check("Phi3ForCausalLM", "phi3", &json!({"original_max_position_embeddings": 128}));
}
