//! Divergence of toy models against its definition over the full softmax.

#![allow(clippy::unwrap_used)]

mod toy;

use assert_cmd::Command;
use evaluate::{
    Prepared, Protocol,
    divergence::{self, DivergenceReport},
    protocol::Changes,
    score::score,
    source::Source,
};
use model::Checkpoint;
use serde_json::Value;
use std::fs;
use toy::Toy;

fn prepared(checkpoint: &Checkpoint, text: &str) -> Prepared {
    let protocol = Protocol::named("llamacpp-512").unwrap();
    let resolved = Changes::default().resolve(protocol, checkpoint.config.max_positions).unwrap();
    Prepared::new(checkpoint, &Source::from_text("words", text), resolved).unwrap()
}

/// Log-probabilities after each token, by softmax over all logits in float64.
fn log_softmax(checkpoint: &Checkpoint, tokens: &[u32]) -> Vec<Vec<f64>> {
    let hidden = checkpoint.hidden_states(tokens).unwrap();
    let logits = checkpoint.head().unwrap().logits(&hidden);
    let row = |row: &[f32]| {
        let log_sum = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
        row.iter().map(|&logit| f64::from(logit) - log_sum).collect()
    };
    logits.chunks_exact(checkpoint.config.vocabulary).map(row).collect()
}

#[test]
fn every_target_diverges_as_defined() {
    let (_a, baseline) = Toy::PLAIN.open();
    let (_b, model) = Toy { shift: 0.03, ..Toy::PLAIN }.open();
    let prepared = prepared(&baseline, &toy::text(300));
    let joint = divergence::run(&baseline, &model, &prepared.windows, 1 << 20, &mut |_| {}).unwrap();
    let mut total = 0.0;
    for (window, targets) in prepared.windows.iter().zip(&joint.targets) {
        let fed = &window.tokens[..window.tokens.len() - 1];
        let (p, q) = (log_softmax(&baseline, fed), log_softmax(&model, fed));
        for (position, ours) in window.scored.clone().zip(targets) {
            let (p, q) = (&p[position - 1], &q[position - 1]);
            let kl: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
            assert!((ours.kl - kl).abs() < 1e-5, "{} {kl}", ours.kl);
            let target = window.tokens[position] as usize;
            assert!((ours.baseline + p[target]).abs() < 1e-5 && (ours.model + q[target]).abs() < 1e-5);
            total += kl;
        }
    }
    let report = DivergenceReport::new(&prepared, &joint.targets, 0);
    assert!((report.kl_mean.value / (total / report.tokens as f64) - 1.0).abs() < 1e-4);
    assert!(report.kl_mean.value > 0.0 && report.kl_max >= report.kl_99_9 && report.kl_99 >= report.kl_median);
    // Likelihoods are those of scoring each model by itself, but for a rounding.
    for (checkpoint, scores) in [(&baseline, joint.baseline_scores()), (&model, joint.model_scores())] {
        let alone = score(checkpoint, &prepared.windows, 1 << 20, &mut |_| {}).unwrap();
        let pairs = alone.iter().flatten().zip(scores.iter().flatten());
        assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 3e-6);
    }
}

#[test]
fn neither_memory_nor_threads_change_a_divergence() {
    let (_a, baseline) = Toy::PLAIN.open();
    let (_b, model) = Toy { shift: 0.03, ..Toy::PLAIN }.open();
    let prepared = prepared(&baseline, &toy::text(300));
    let run = |memory, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| divergence::run(&baseline, &model, &prepared.windows, memory, &mut |_| {}).unwrap().targets)
    };
    let expected = run(1 << 30, 1);
    assert_eq!(run(0, 1), expected);
    assert_eq!(run(10_000, 3), expected);
    let mut steps = 0;
    divergence::run(&baseline, &model, &prepared.windows, 0, &mut |_| steps += 1).unwrap();
    assert_eq!(steps, divergence::steps(&baseline, &model, &prepared.windows, 0));
}

#[test]
fn a_model_against_itself_diverges_by_exactly_nothing() {
    let model = Toy::PLAIN.write();
    let (model, folder) = (model.path().to_str().unwrap(), tempfile::tempdir().unwrap());
    let words = folder.path().join("words.txt");
    fs::write(&words, toy::text(300)).unwrap();
    let words = words.to_str().unwrap();
    let arguments = [model, "--baseline", model, "--perplexity", words, "--divergence"];
    let run = |more: &[&str]| {
        let run = Command::cargo_bin("evaluate").unwrap().args(arguments).args(more).output().unwrap();
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    };
    let json: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    let figures = &json["divergence"];
    assert_eq!(figures["kl_mean"]["value"], 0.0);
    assert_eq!(figures["kl_mean"]["interval_95"], serde_json::json!([0.0, 0.0]));
    assert_eq!((&figures["kl_max"], &figures["rms_delta_p"]["value"]), (&0.0.into(), &0.0.into()));
    assert_eq!((&figures["same_top"]["value"], &figures["correlation"]["value"]), (&1.0.into(), &1.0.into()));
    assert_eq!((&json["ratio"], &json["log_ratio"]), (&1.0.into(), &0.0.into()));
    assert_eq!(json["texts"][0]["divergence"], *figures);
    let tables = run(&[]);
    assert!(tables.contains("KL(baseline || model)") && tables.contains("100.000 %"), "{tables}");
}

#[test]
fn stored_log_probabilities_take_the_place_of_the_baseline_up_to_their_bounds() {
    let (baseline, model) = (Toy::PLAIN.write(), Toy { shift: 0.03, ..Toy::PLAIN }.write());
    let folder = tempfile::tempdir().unwrap();
    let [words, file] = ["words.txt", "base.logits"].map(|name| folder.path().join(name));
    fs::write(&words, toy::text(300)).unwrap();
    let [baseline, model] = [&baseline, &model].map(|folder| folder.path().to_str().unwrap());
    let (words, file) = (words.to_str().unwrap(), file.to_str().unwrap());
    let run = |arguments: &[&str]| {
        let arguments = [arguments, &["--perplexity", words, "--json"]].concat();
        Command::cargo_bin("evaluate").unwrap().args(arguments).output().unwrap()
    };
    let json = |arguments: &[&str]| -> Value {
        let run = run(arguments);
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let number = |value: &Value| value.as_f64().unwrap();
    let beside = json(&[model, "--baseline", baseline, "--divergence"]);
    for top in ["4", "39", "400"] {
        let saved = json(&[baseline, "--save-logits", file, "--logits-top", top]);
        let stored = json(&[model, "--baseline", file]);
        let (exact, found) = (number(&beside["divergence"]["kl_mean"]["value"]), &stored["divergence"]);
        let [rounding, tail] = ["rounding_bound", "tail_bound"].map(|bound| number(&found["truncation"][bound]));
        let kl = number(&found["kl_mean"]["value"]);
        assert!((kl - rounding - 1e-6..=kl + rounding + tail + 1e-6).contains(&exact), "{top}: {kl} {exact}");
        assert!(top != "400" || (tail == 0.0 && (kl / exact - 1.0).abs() < 0.05), "{kl} {exact}");
        assert_eq!(found["same_top"]["value"], beside["divergence"]["same_top"]["value"]);
        for (value, expected) in [
            (&stored["ratio"], &beside["ratio"]),
            (&stored["baseline"]["perplexity"], &saved["perplexity"]),
            (&found["rms_delta_p"]["value"], &beside["divergence"]["rms_delta_p"]["value"]),
        ] {
            assert!((number(value) / number(expected) - 1.0).abs() < 1e-5, "{value} {expected}");
        }
        let own = json(&[baseline, "--baseline", file]);
        let [kl, bound] =
            [&own["divergence"]["kl_mean"]["value"], &own["divergence"]["truncation"]["rounding_bound"]].map(number);
        assert!(kl <= bound && kl < 1e-6 && own["ratio"] == 1.0, "{kl} {bound}");
    }

    let whole = fs::read(file).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(file, bytes).unwrap();
        let run = run(&[model, "--baseline", file]);
        assert_eq!(run.status.code(), Some(1));
        String::from_utf8(run.stderr).unwrap()
    };
    assert!(refused(&whole[..whole.len() - 1]).contains("cut or changed"));
    assert!(refused(&whole[..10]).contains("base.logits"));
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    assert!(refused(&changed).contains("hash"));
    changed = whole.clone();
    changed[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(refused(&changed).contains("not a whole file"));
    fs::write(file, &whole).unwrap();
    let fewer = run(&[model, "--baseline", file, "--max-tokens", "200"]);
    assert!(String::from_utf8(fewer.stderr).unwrap().contains("save it again with these options"));
}
