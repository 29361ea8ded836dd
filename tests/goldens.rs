//! Both real models against float32 Transformers: likelihood of every token, last logits, greedy continuation. (Token
//! ids are compared in `tokenizers.rs`.)
//!
//! The tolerances are the project's: 1e-3 nats a token, 2e-2 a logit. A greedy continuation is checked without
//! generating: fed with the text and the expected continuation, the model has to prefer each expected token at its place
//! (which by induction is what generating would have given).

#![allow(clippy::print_stderr, reason = "the measured differences are the test's report")]

use crate::real_models;
use model::Checkpoint;
use serde_json::Value;
use std::fs;

const NLL_TOLERANCE: f64 = 1e-3;
const LOGIT_TOLERANCE: f64 = 2e-2;

#[test]
#[ignore = "needs the real models: set CALIPER_MODELS and CALIPER_SHARED"]
fn smollm2_agrees_with_transformers() {
    agrees("smollm2-135m-instruct");
}

#[test]
#[ignore = "needs the real models: set CALIPER_MODELS and CALIPER_SHARED"]
fn qwen_2_5_coder_agrees_with_transformers() {
    agrees("qwen2.5-coder-0.5b-instruct");
}

fn agrees(name: &str) {
    let (models, shared) = real_models::folders();
    let path = models.join(format!("{name}.gguf"));
    let checkpoint = Checkpoint::open(path.to_str().expect("a path in UTF-8")).expect("the model opens");
    let golden = fs::read_to_string(shared.join(format!("golden/{name}.json"))).expect("the golden file is there");
    let golden: Value = serde_json::from_str(&golden).expect("the golden file is JSON");
    let head = checkpoint.head().expect("the head is read");
    let (width, vocabulary) = (checkpoint.config.hidden_size, checkpoint.config.vocabulary);
    let mut hidden: Vec<Vec<f32>> =
        list(&golden["texts"]).iter().map(|text| checkpoint.embed(&fed(text)).expect("tokens are embedded")).collect();
    for index in 0..checkpoint.config.layers.len() {
        let block = checkpoint.block(index).expect("the block is read");
        for hidden in &mut hidden {
            *hidden = block.forward(std::mem::take(hidden), &mut |_, _| {});
        }
    }
    for (text, hidden) in list(&golden["texts"]).iter().zip(&hidden) {
        let ids = ids(&text["ids"]);
        let ours = head.negative_log_likelihood(&hidden[..(ids.len() - 1) * width], &ids[1..]);
        let logits = head.logits(&hidden[(ids.len() - 1) * width..]);
        let label = format!("{name}, {}", text["label"]);
        compare_likelihoods(&label, text, &ours);
        compare_last_logits(&label, text, &logits[..vocabulary]);
        let greedy: Vec<usize> = logits.chunks_exact(vocabulary).map(argmax).collect();
        let expected: Vec<usize> = self::ids(&text["greedy_24_ids"]).iter().map(|id| *id as usize).collect();
        assert_eq!(greedy, expected, "greedy continuation of {label}");
    }
}

/// The text's tokens and all but the last of its continuation.
fn fed(text: &Value) -> Vec<u32> {
    let (mut tokens, continuation) = (ids(&text["ids"]), ids(&text["greedy_24_ids"]));
    tokens.extend(&continuation[..continuation.len() - 1]);
    tokens
}

fn compare_likelihoods(label: &str, text: &Value, ours: &[f32]) {
    let theirs: Vec<f64> = list(&text["nll"]).iter().map(number).collect();
    assert_eq!(ours.len(), theirs.len(), "{label}");
    let error = ours.iter().zip(&theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    eprintln!("{label}: largest difference of a token's likelihood {error:.1e} nats");
    assert!(error <= NLL_TOLERANCE, "{label}: {error} nats");
}

fn compare_last_logits(label: &str, text: &Value, ours: &[f32]) {
    let top = list(&text["last_logits_top20"]);
    let difference = |pair: &Value| (f64::from(ours[ids(&pair[0])[0] as usize]) - number(&pair[1])).abs();
    let error = top.iter().map(difference).fold(0.0, f64::max);
    let mean = ours.iter().map(|v| f64::from(*v)).sum::<f64>() / ours.len() as f64;
    let mean_error = (mean - number(&text["last_logits_mean"])).abs();
    eprintln!("{label}: largest difference of the last logits {error:.1e}, of their mean {mean_error:.1e}");
    assert!(error <= LOGIT_TOLERANCE && mean_error <= LOGIT_TOLERANCE, "{label}: {error}, mean {mean_error}");
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// A token id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().expect("a token id") as u32;
    value.as_array().map_or_else(|| vec![id(value)], |list| list.iter().map(id).collect())
}
