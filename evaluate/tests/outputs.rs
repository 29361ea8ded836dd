//! The files that results are written to: what is in them, and HTML pages as a browser shows them, light and dark, wide and
//! narrow. The latter needs Chromium.

#![allow(clippy::unwrap_used)]

#[path = "../../console/tests/browser/mod.rs"]
mod browser;
mod toy;

use assert_cmd::Command;
use browser::check;
use serde_json::{Value, json};
use std::{fmt::Write as _, fs, path::Path};
use toy::Toy;

fn evaluate(arguments: &[&str]) -> std::process::Output {
    let run = Command::cargo_bin("evaluate").unwrap().args(arguments).env_remove("CALIPER_LOG").output().unwrap();
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    run
}

/// Records of `items` items of a task, right but where `wrong` says so.
fn records(folder: &Path, task: &str, capability: &str, items: usize, wrong: impl Fn(usize) -> bool) {
    fs::create_dir_all(folder).unwrap();
    let mut lines = String::new();
    for item in 0..items {
        let right = !wrong(item);
        let mut record = json!({
            "schema": 1, "task": task, "id": item.to_string(), "capability": capability, "prompt_sha256": "p",
            "metric": "acc", "answer": 0, "prediction": usize::from(!right), "correct": right,
            "log_probabilities": [-1.0, if right { -2.0 } else { -0.5 }], "greedy": [false, false], "tokens": [1, 1],
            "metrics": {"acc": f64::from(u8::from(right)), "acc_norm": 1.0},
        });
        if task == "writing" {
            record["response"] = format!("<answer> {item} & more\nsecond line").into();
            record["answer"] = Value::Null;
        }
        writeln!(lines, "{record}").unwrap();
    }
    fs::write(folder.join(format!("{task}.jsonl")), lines).unwrap();
}

#[test]
fn a_page_of_compared_records_is_whole_in_every_light_and_width() {
    let folder = tempfile::tempdir().unwrap();
    let [base, model, page] = ["base", "model", "page.html"].map(|name| folder.path().join(name));
    for (task, capability, items, every) in [
        ("a_task_whose_name_is_longer_than_there_is_room_for", "knowledge", 200, 9),
        ("writing", "mathematics", 90, 3),
        ("steady", "code", 60, 1000),
    ] {
        records(&base, task, capability, items, |item| item % 7 == 3);
        records(&model, task, capability, items, |item| item % 7 == 3 && item % 2 == 0 || item % every == 1);
    }
    let (base, model, page) = (base.to_str().unwrap(), model.to_str().unwrap(), page.to_str().unwrap());
    let printed = evaluate(&["compare", base, model, "--html", page]).stdout;
    assert!(
        String::from_utf8(printed).unwrap().trim_end().lines().last().unwrap().starts_with("Mathematics lost most")
    );
    let html = fs::read_to_string(page).unwrap();
    assert!(html.contains("Mathematics lost most") && html.contains("&lt;answer&gt; 1 &amp; more"));
    if let Some(found) = check(&html, 2) {
        assert!(found["tables"].as_u64().unwrap() >= 5 && found["searchable"].as_u64().unwrap() >= 2, "{found}");
        assert!(found["details"].as_u64().unwrap() > 20, "{found}");
    }
}

#[test]
fn a_page_of_a_divergence_is_whole_in_every_light_and_width() {
    let (baseline, model) = (Toy::PLAIN.write(), Toy { shift: 0.03, ..Toy::PLAIN }.write());
    let folder = tempfile::tempdir().unwrap();
    let [words, page] = ["words.txt", "page.html"].map(|name| folder.path().join(name));
    fs::write(&words, toy::text(2000)).unwrap();
    let [baseline, model] = [&baseline, &model].map(|folder| folder.path().to_str().unwrap());
    let (words, page) = (words.to_str().unwrap(), page.to_str().unwrap());
    evaluate(&[model, "--baseline", baseline, "--perplexity", words, "--divergence", "--html", page]);
    // By position, by frequency, along the text.
    check(&fs::read_to_string(page).unwrap(), 3);
}

#[test]
fn compared_records_leave_as_files_of_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (base, model) = (place("base"), place("model"));
    records(base.as_ref(), "arc_easy", "reasoning", 40, |item| item % 7 == 3);
    records(model.as_ref(), "arc_easy", "reasoning", 40, |item| item % 4 == 3);
    let (csv, markdown, lm_eval) = (place("out.csv"), place("out.md"), place("harness"));
    let arguments = ["compare", &base, &model, "--csv", &csv, "--markdown", &markdown, "--lm-eval", &lm_eval];
    evaluate(&arguments);
    let lines = fs::read_to_string(&csv).unwrap();
    assert!(lines.starts_with("model,on,part,metric,figure,value,standard_error,low_95,high_95,items\n"));
    // Items 3, 10, 17, … are wrong in the one, 3, 7, 11, … in the other: 3 and 31 in both.
    assert!(lines.contains(",arc_easy,all,acc,lost,8.0,,,,40\n") && lines.contains(",gained,4.0,,,,40\n"), "{lines}");
    assert!(fs::read_to_string(&markdown).unwrap().contains("| arc_easy | acc | 40 |"));
    let name = model.replace('/', "__");
    let results = fs::read(Path::new(&lm_eval).join(name).join("results_caliper.json")).unwrap();
    let results: Value = serde_json::from_slice(&results).unwrap();
    assert_eq!(results["results"]["arc_easy"]["acc,none"], 0.75);
    assert_eq!(results["n-samples"]["arc_easy"]["effective"], 40);
    assert_eq!(fs::read_dir(&lm_eval).unwrap().count(), 2);
    let same = Command::cargo_bin("evaluate").unwrap().args(["compare", &base, &base, "--lm-eval", &lm_eval]).output();
    assert!(String::from_utf8(same.unwrap().stderr).unwrap().contains("different names"));
}
