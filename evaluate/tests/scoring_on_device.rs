//! `--device cuda` against `--device cpu`. Runs where there is a CUDA driver, or the stand-in of `tests/cuda-standin`; else it
//! says that it is skipped.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[allow(dead_code)] // other tests use more of it
mod toy;

use evaluate::{
    Prepared, Protocol,
    divergence::{self, Known},
    protocol::Changes,
    score::{States, score},
    source::Source,
};
use kernels::{Engine, cuda::Device};
use model::Checkpoint;
use serde_json::Value;
use std::{collections::BTreeMap, io::Write, process::Command, sync::Arc};
use toy::Toy;

/// The device, if one can be used; says loudly that the test is skipped where not.
fn engine() -> Option<Engine> {
    let error = match Device::open(0) {
        Ok(device) => return Some(Engine::Cuda(Arc::new(device))),
        Err(error) => error,
    };
    assert!(std::env::var_os("CALIPER_CUDA_REQUIRED").is_none(), "a device is required: {error}");
    std::io::stderr().write_all(format!("!! SKIPPED, nothing is scored on a device: {error}\n").as_bytes()).unwrap();
    None
}

fn windows(checkpoint: &Checkpoint, window: usize, text: &str) -> Prepared {
    let changes = Changes { window: Some(window), stride: None, text: None, max_tokens: None };
    let protocol = Protocol::named("hf-disjoint").unwrap();
    let resolved = changes.resolve(protocol, checkpoint.config.max_positions).unwrap();
    Prepared::new(checkpoint, &Source::from_text("words", text), resolved).unwrap()
}

/// Logits agree within 1e-4 of their size, which is a few units, as `model/tests/families.rs` derives it.
const TOLERANCE: f64 = 1e-3;

/// Windows long and short, budgets that hold all and one.
#[test]
fn likelihoods_and_divergences_are_the_cpus() {
    let Some(engine) = engine() else { return };
    let (_a, baseline) = Toy::PLAIN.open();
    let (_b, model) = Toy { shift: 0.03, ..Toy::PLAIN }.open();
    for (window, memory) in [(48, 1 << 20), (7, 1), (64, 1 << 20)] {
        let windows = windows(&baseline, window, &toy::text(300)).windows;
        let expected = score(&model, &windows, memory, &mut |_| {}).unwrap();
        let joint = divergence::run(&baseline, &model, &windows, memory, &mut |_| {}).unwrap();
        let on = |checkpoint: &Checkpoint| checkpoint.with_tensors(Arc::clone(&checkpoint.tensors)).on(engine.clone());
        let (baseline, model) = (on(&baseline), on(&model));
        let got = score(&model, &windows, memory, &mut |_| {}).unwrap();
        for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
            assert!(f64::from(got - expected).abs() <= TOLERANCE, "{window}: {got} {expected}");
        }
        let diverged = divergence::run(&baseline, &model, &windows, memory, &mut |_| {}).unwrap();
        for (got, expected) in diverged.targets.iter().flatten().zip(joint.targets.iter().flatten()) {
            let error = [got.kl - expected.kl, got.baseline - expected.baseline, got.model - expected.model];
            assert!(error.iter().all(|error| error.abs() <= TOLERANCE), "{window}: {got:?} {expected:?}");
        }
        assert_eq!(diverged.targets.iter().flatten().count(), joint.targets.iter().flatten().count());
    }
}

/// The states of one walk give what scoring gives, to the bit; a model against itself diverges by nothing.
#[test]
fn states_on_a_device_are_those_of_scoring() {
    let Some(engine) = engine() else { return };
    let (_folder, model) = Toy::PLAIN.open();
    let model = model.on(engine);
    let windows = windows(&model, 40, &toy::text(200)).windows;
    let states = States::of(&model, &windows, &mut |_| {}).unwrap();
    let scores = score(&model, &windows, 1 << 20, &mut |_| {}).unwrap();
    let head = model.head().unwrap();
    assert_eq!(states.likelihoods(&model, &head, &windows).unwrap(), scores);
    let known = || Known { checkpoint: &model, head: &head, states: &states };
    let same = divergence::between(&known(), &known(), &windows).unwrap();
    assert!(same.iter().flatten().all(|at| at.kl == 0.0 && at.same_top));
}

fn evaluate(arguments: &[&str], environment: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evaluate"));
    command.args(arguments).envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn the_command_gives_the_same_perplexity_and_names_the_device() {
    if engine().is_none() {
        return;
    }
    let run = |device: &str| {
        let common = ["demo", "--max-tokens", "200", "--protocol", "hf-disjoint", "--window", "100", "--json"];
        let output =
            evaluate(&[&common[..], &["--baseline", "demo", "--divergence", "--device", device]].concat(), &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("device     cuda ("), device == "cuda", "{said}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let [cpu, cuda] = ["cpu", "cuda"].map(run);
    let [expected, got] = [&cpu, &cuda].map(|results| results["perplexity"].as_f64().unwrap());
    assert!((got - expected).abs() <= 1e-4 * expected, "{got} {expected}");
    assert!(cuda["model"]["device"].as_str().unwrap().contains("sm_") && cpu["model"].get("device").is_none());
    let diverged = &cuda["texts"][0]["divergence"]["kl_mean"]["value"];
    assert_eq!(diverged.as_f64().unwrap(), 0.0, "{cuda}");
}

/// Only the stand-in's memory can be set.
#[test]
fn too_little_memory_is_said_with_the_amount() {
    let Some(Engine::Cuda(device)) = engine() else { return };
    if device.name().contains("stand-in") {
        let output = evaluate(&["demo", "--max-tokens", "300", "--device", "cuda"], &[("STANDIN_MEMORY", "1000000")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("MiB of device memory"), "{said}");
    }
}

/// With room for one block and not for two, each is copied when the one before is done; results are the same.
#[test]
fn a_device_with_room_for_one_block_gives_the_same() {
    let Some(Engine::Cuda(device)) = engine() else { return };
    if !device.name().contains("stand-in") {
        return;
    }
    let common = ["demo", "--max-tokens", "200", "--protocol", "hf-disjoint", "--window", "100", "--json"];
    let arguments = [&common[..], &["--device", "cuda"]].concat();
    let perplexity = |memory: &str, compute: &str| {
        let output = evaluate(&[&arguments[..], &["--compute", compute]].concat(), &[("STANDIN_MEMORY", memory)]);
        assert!(output.status.success(), "{memory}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<BTreeMap<String, Value>>(&output.stdout).unwrap().remove("perplexity").unwrap()
    };
    assert_eq!(perplexity("7000000", "f32"), perplexity("2000000000", "f32"));
    // Beside the work, rounding to bfloat16 comes after the copy on the same stream.
    assert_eq!(perplexity("7000000", "bf16x3"), perplexity("2000000000", "bf16x3"));
}
