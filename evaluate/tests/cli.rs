//! The command as people and scripts meet it.

#![allow(clippy::unwrap_used)]

mod toy;

use assert_cmd::Command;
use serde_json::Value;
use std::{fs, path::Path};
use tempfile::TempDir;
use toy::Toy;

fn evaluate(arguments: &[&str]) -> std::process::Output {
    Command::cargo_bin("evaluate").unwrap().args(arguments).env_remove("CALIPER_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

/// A text file of `count` known words in `folder`.
fn words(folder: &Path, count: usize) -> String {
    let path = folder.join("words.txt");
    fs::write(&path, toy::text(count)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_is_a_document() {
    insta::assert_snapshot!("help", text(&evaluate(&["--help"]).stdout));
}

#[test]
fn protocols_are_listed_with_their_rules() {
    insta::assert_snapshot!("protocols", text(&evaluate(&["protocols"]).stdout));
}

#[test]
fn a_run_prints_settings_on_stderr_and_tables_on_stdout() {
    let (model, folder) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let run = evaluate(&[path(&model), "--perplexity", &words(folder.path(), 300), "--threads", "1"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let settings = text(&run.stderr);
    assert!(settings.contains("protocol   gptq-2048 (window 64: the model's longest)"), "{settings}");
    assert!(settings.contains("300 tokens, 4 windows, 252 scored"), "{settings}");
    assert!(settings.contains("BOS        none: the tokenizer adds none"), "{settings}");
    let tables = text(&run.stdout);
    assert!(tables.starts_with("gptq-2048 (window 64: the model's longest)\n") && tables.contains("252"), "{tables}");
}

#[test]
fn json_holds_the_first_text_at_its_top_and_every_text_below() {
    let (model, folder) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let (model, words) = (path(&model), words(folder.path(), 300));
    let run = evaluate(&[model, "--baseline", model, "--perplexity", &words, "--perplexity", &words, "--json"]);
    let json: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(json["ratio"], 1.0);
    assert_eq!(json["log_ratio_interval_95"], serde_json::json!([0.0, 0.0]));
    assert_eq!(json["tokens_scored"], 252);
    assert!(json["perplexity"].as_f64().unwrap() > 1.0 && json["standard_error"].as_f64().unwrap() > 0.0);
    assert_eq!(json["texts"].as_array().unwrap().len(), 2);
    assert_eq!(json["texts"][1]["perplexity"], json["perplexity"]);
    assert_eq!(json["protocol"]["window"], 64);
    assert_eq!(json["files"][0]["sha256"].as_str().unwrap().len(), 64);
    let names: Vec<&str> =
        json["model"]["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn a_result_file_serves_as_the_baseline_of_the_same_windows_only() {
    let other = Toy { shift: 0.3, ..Toy::PLAIN }.write();
    let (model, folder) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let (words, base) = (words(folder.path(), 300), folder.path().join("base.json"));
    let base = base.to_str().unwrap();
    let measure =
        |model: &TempDir, more: &[&str]| evaluate(&[&[path(model), "--perplexity", &words, "--json"], more].concat());
    fs::write(base, measure(&model, &[]).stdout).unwrap();
    let run = |more: &[&str]| serde_json::from_slice::<Value>(&measure(&other, more).stdout).unwrap();
    let (stored, beside) = (run(&["--baseline", base]), run(&["--baseline", path(&model)]));
    for figure in ["ratio", "ratio_interval_95", "log_ratio_standard_error", "baseline_model"] {
        assert_eq!(stored[figure], beside[figure], "{figure}");
    }
    assert_ne!(stored["ratio"], 1.0);
    assert_eq!(stored["baseline"]["perplexity"], beside["baseline"]["perplexity"]);

    let fewer = measure(&other, &["--baseline", base, "--max-tokens", "200"]);
    assert_eq!(fewer.status.code(), Some(1));
    assert!(text(&fewer.stderr).contains("can't be the baseline: it has no figures for"), "{}", text(&fewer.stderr));
    fs::write(base, fs::read_to_string(base).unwrap().replace("\"weight\": 1.0", "\"weight\": 2.0")).unwrap();
    assert!(text(&measure(&other, &["--baseline", base]).stderr).contains("the file was changed"));
    fs::write(base, "{}").unwrap();
    assert!(text(&measure(&other, &["--baseline", base]).stderr).contains("not a result of `evaluate"));
}

#[test]
fn json_in_a_file_leaves_the_tables_on_stdout() {
    let (model, folder) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let out = folder.path().join("out.json");
    let attached = format!("--json={}", out.display());
    let run = evaluate(&[path(&model), "--perplexity", &words(folder.path(), 300), &attached]);
    assert!(text(&run.stdout).contains("perplexity"));
    let json: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert!(json.get("ratio").is_none() && json["perplexity"].is_number());
}

#[test]
fn a_ratio_above_the_limit_is_exit_code_3() {
    let (model, other, folder) =
        (Toy { shift: 1.0, ..Toy::PLAIN }.write(), Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let words = words(folder.path(), 300);
    let code = |limit| {
        let arguments = [path(&model), "--baseline", path(&other), "--perplexity", &words, "--limit-ratio", limit];
        evaluate(&arguments).status.code()
    };
    assert_eq!(code("0.0001"), Some(3));
    assert_eq!(code("1000000"), Some(0));
}

/// Exit code and stderr of a run that fails, folders replaced.
fn failure(arguments: &[&str], replaced: &[(&str, &str)]) -> String {
    let run = evaluate(arguments);
    let mut message = text(&run.stderr);
    for (from, to) in replaced {
        message = message.replace(from, to);
    }
    format!("exit code {}\n{message}", run.status.code().unwrap())
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let (model, other, folder) =
        (Toy::PLAIN.write(), Toy { reversed: true, ..Toy::PLAIN }.write(), tempfile::tempdir().unwrap());
    let words = words(folder.path(), 300);
    let (model, other) = (path(&model), path(&other));
    let replaced = [(model, "MODEL"), (other, "OTHER"), (path(&folder), "FOLDER")];
    let unwritable = format!("--json={}", folder.path().display());
    let cases: &[(&str, &[&str])] = &[
        ("no text", &[model]),
        ("unknown protocol", &[model, "--perplexity", &words, "--protocol", "wikitext"]),
        ("fixed window", &[model, "--perplexity", &words, "--window", "32"]),
        ("limit without baseline", &[model, "--perplexity", &words, "--limit-ratio", "1.1"]),
        ("too few tokens", &[model, "--perplexity", &words, "--max-tokens", "20"]),
        ("other tokenizer", &[model, "--baseline", other, "--perplexity", &words]),
        ("no such demo text", &[model, "--perplexity", "demo:poetry"]),
        ("no such hub file", &[model, "--perplexity", "hub:org/name"]),
        ("stride too long", &[model, "--perplexity", &words, "--protocol", "hf-sliding", "--stride", "100"]),
        ("output is a folder", &[model, "--perplexity", &words, &unwritable]),
    ];
    let report: Vec<String> =
        cases.iter().map(|(name, arguments)| format!("# {name}: {}", failure(arguments, &replaced))).collect();
    insta::assert_snapshot!("errors", report.join("\n"));
}
