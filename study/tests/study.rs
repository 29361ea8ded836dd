//! The command as people and scripts meet it, on the embedded demo model.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[path = "../../console/tests/browser/mod.rs"]
mod browser;

use assert_cmd::Command;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};
use tempfile::TempDir;

/// Rounding at two widths and GPTQ with two seeds, on two short texts: nine configurations' worth in seconds.
const SMALL: &str = r#"
name = "small"
question = "Does anything work?"

[settings]
model = "demo"
method = ["rtn", "gptq"]
bits = 2
group-size = [64, -1]
symmetric = false
calibration = ["prose", "code"]
seed = [0, 1]

[[exclude]]
method = "gptq"
group-size = -1

[calibration.prose]
sources = ["demo:prose"]
samples = 4
sequence-length = 64

[calibration.code]
sources = ["demo:code"]
samples = 4
sequence-length = 64

[evaluation.prose]
text = "demo:prose-heldout"
protocol = "hf-disjoint"
window = 64
max-tokens = 640

[evaluation.code]
text = "demo:code-heldout"
protocol = "hf-disjoint"
window = 64
max-tokens = 640
"#;

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new(study: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("study.toml"), study).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn study(&self, arguments: &[&str]) -> Output {
        let mut command = Command::cargo_bin("study").unwrap();
        command.current_dir(self.folder.path()).args(arguments).env_remove("CALIPER_LOG").output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> (String, String) {
        let output = self.study(arguments);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        (out, err)
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.study(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Rewrites the study.
    fn change(&self, from: &str, to: &str) {
        let path = self.path("study.toml");
        let study = fs::read_to_string(&path).unwrap();
        assert!(study.contains(from));
        fs::write(path, study.replace(from, to)).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn lines(folder: &Path) -> Vec<Value> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            lines.extend(fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()));
        }
    }
    lines
}

#[test]
fn help_is_a_document() {
    insta::assert_snapshot!(text(&Bench::new("").study(&["--help"]).stdout));
}

#[test]
fn a_study_is_checked_run_once_reported_and_exported() {
    let bench = Bench::new(SMALL);
    let (checked, _) = bench.succeed(&["check"]);
    // Twelve of sixteen combinations are left; rounding has one for each group size.
    assert!(checked.contains("configurations: 6 (of 16 combinations, 4 excluded"), "{checked}");
    assert!(checked.contains("cells: 14, of 2 evaluations"), "{checked}");
    assert!(checked.contains("text with nothing in common: 4 of 4"), "{checked}");
    assert!(checked.contains("needs time: about"), "{checked}");

    let (ran, told) = bench.succeed(&["run"]);
    assert!(ran.contains("measured 14 cells, 0 were there already, 0 failed"), "{ran}");
    assert!(
        told.contains("[7/7] gptq, groups of 64, calibrated on code, seed 1") && told.contains("prose x "),
        "{told}"
    );
    assert!(!told.contains("quantizing"), "{told}");
    let results = bench.path("study.results");
    assert_eq!(lines(&results).len(), 14);
    assert!(!results.join("work").exists() && !results.join("checkpoints").exists());
    let (again, _) = bench.succeed(&["run"]);
    assert!(again.contains("measured 0 cells, 14 were there already"), "{again}");
    assert!(bench.succeed(&["status"]).0.contains("14 of 14 cells measured, 0 failed, 0 open"));

    let (answer, _) = bench.succeed(&["report"]);
    assert!(answer.contains("Calibrating on another domain than the text's own changes perplexity"), "{answer}");
    let html = fs::read_to_string(results.join("report.html")).unwrap();
    for part in ["<svg", "<caption>", "prefers-color-scheme: dark", "What these data can", "SHA-256 of what went in"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("NaN") && !html.contains("https://"), "{html}");
    browser::check(&html, html.matches("<figure").count());
    let markdown = fs::read_to_string(results.join("report.md")).unwrap();
    for figure in markdown.split("(figures/").skip(1) {
        let name = figure.split(')').next().unwrap();
        assert!(results.join("figures").join(name).is_file(), "{name}");
    }

    assert!(markdown.contains("How stable the solution is") && markdown.contains("between seeds"), "{markdown}");
    let fits = |size: &str| bench.succeed(&["report", "--within", size]).0;
    assert!(fits("1GiB").contains("Within 1.00 GiB, rtn, groups of 64 loses least: +"), "{}", fits("1GiB"));
    assert!(fits("10KiB").contains("Nothing measured of demo fits into 10.00 KiB: the smallest"), "{}", fits("10KiB"));

    let (csv, _) = bench.succeed(&["export"]);
    assert_eq!(csv.lines().count(), 15);
    assert!(csv.starts_with("cell,configuration,model,method,bits,"), "{csv}");
    let (jsonl, _) = bench.succeed(&["export", "--format", "jsonl"]);
    let rows: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ratio = |row: &Value| row["ratio"].as_f64().unwrap();
    assert!(rows.iter().filter(|row| row["method"].is_null()).all(|row| ratio(row) == 1.0));
    assert!(rows.iter().filter(|row| row["method"] == "rtn").all(|row| ratio(row) > 1.0 && row["seed"].is_null()));
}

#[test]
fn studies_are_put_side_by_side() {
    let bench = Bench::new(&SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\""));
    let study = fs::read_to_string(bench.path("study.toml")).unwrap();
    let other = study.replace("bits = 2", "bits = [2, 4]").replace("name = \"small\"", "name = \"other\"");
    fs::write(bench.path("other.toml"), other).unwrap();
    bench.succeed(&["run"]);
    bench.succeed(&["run", "other.toml"]);
    bench.succeed(&["report", "--beside", "other.toml"]);
    let markdown = fs::read_to_string(bench.path("study.results/report.md")).unwrap();
    assert!(markdown.contains("## Beside other studies") && markdown.contains("| configuration | small | other |"));
    assert!(
        markdown.contains("2 bits, groups of 64 | +") && !markdown.contains("4 bits, groups of 64 | +"),
        "{markdown}"
    );
    assert!(bench.fail(&["report", "--beside", "missing.toml"]).contains("missing"));
}

#[test]
fn a_changed_study_computes_only_what_is_new() {
    let bench = Bench::new(&SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\""));
    assert!(bench.succeed(&["run"]).0.contains("measured 6 cells"));
    bench.change("bits = 2", "bits = [2, 3]");
    assert!(bench.succeed(&["status"]).0.contains("has changed since it was run"));
    bench.change("[calibration.prose]", "[calibration.novel]");
    bench.change("calibration = [\"prose\", \"code\"]", "calibration = [\"novel\", \"code\"]");
    let (ran, _) = bench.succeed(&["run"]);
    assert!(ran.contains("measured 4 cells, 6 were there already"), "{ran}");
}

/// Sixteen questions that ask for nothing but a copy.
const COPYING: &str = r#"
name = "copying"
about = "Which letter comes again?"
prompt_source = "this test"
metrics = ["acc"]

[data]
test = ["copying/items.jsonl"]

[prompt]
context = "{{ word }} {{ word }}"
choices = "[word, other]"
answer = "0"
"#;

#[test]
fn divergences_and_tasks_are_measured_like_perplexity() {
    let bench = Bench::new(&SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\"").replace("bits = 2", "bits = [2, 8]"));
    fs::write(bench.path("copying.toml"), COPYING).unwrap();
    fs::create_dir_all(bench.path("data/copying")).unwrap();
    let item = |index: usize| format!("{{\"word\": \"red{index}\", \"other\": \"blue{index}\"}}");
    let items: Vec<String> = (0..16).map(item).collect();
    fs::write(bench.path("data/copying/items.jsonl"), items.join("\n")).unwrap();
    let more = "[evaluation.kl]\ntext = \"demo:prose-heldout\"\nmeasure = \"divergence\"\nprotocol = \"hf-disjoint\"\n\
                window = 64\nmax-tokens = 640\n[evaluation.copy]\ntask = \"copying.toml\"\ndata = [\"data\"]\n\n[evaluation.code]";
    bench.change("[evaluation.code]", more);
    let (checked, _) = bench.succeed(&["check"]);
    assert!(checked.contains("kl for demo: KL divergence") && checked.contains("tasks, copying, 0 shots"), "{checked}");
    // Four configurations on four evaluations; the unquantized model is what divergences are from.
    let (ran, told) = bench.succeed(&["run"]);
    assert!(ran.contains("measured 19 cells"), "{ran}");
    assert!(told.contains(" nats") && told.contains("copy acc "), "{told}");
    let (answer, _) = bench.succeed(&["report"]);
    for part in ["By perplexity: ", "By KL divergence: ", "By tasks: "] {
        assert!(answer.contains(part), "{answer}");
    }
    let (jsonl, _) = bench.succeed(&["export", "--format", "jsonl"]);
    let rows: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kl = |bits: u64| -> Vec<f64> {
        let of = rows.iter().filter(|row| row["measure"] == "divergence" && row["bits"] == bits);
        of.map(|row| row["kl_mean"].as_f64().unwrap()).collect()
    };
    assert!(
        kl(8).iter().zip(kl(2)).all(|(fine, coarse)| 0.0 < *fine && *fine < coarse / 10.0),
        "{:?} {:?}",
        kl(8),
        kl(2)
    );
    let scores = rows.iter().filter(|row| row["measure"] == "task");
    assert!(scores.filter(|row| row["bits"] == 8).all(|row| row["score"] == row["baseline_score"]));
}

#[test]
fn times_are_measured_on_checkpoints_as_they_are_stored() {
    let study = SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\"").replace("group-size = [64, -1]", "group-size = 64");
    let study = study.replace("protocol =", "measure = \"writing-time\"\nprotocol =").replacen("writing", "reading", 1);
    let bench = Bench::new(&study);
    let (_, told) = bench.succeed(&["run"]);
    assert!(told.contains("tokens/s"), "{told}");
    for line in lines(&bench.path("study.results")) {
        let timed = &line["timed"];
        assert_eq!(timed["seconds"].as_array().unwrap().len(), 5);
        assert!(timed["tokens"].as_u64().unwrap() > 0 && line["measured"].is_null());
        assert_eq!(line["blocks"].as_array().unwrap().len(), 5);
    }
    bench.succeed(&["report"]);
    let markdown = fs::read_to_string(bench.path("study.results/report.md")).unwrap();
    for part in ["time to read", "time to write", "tokens per second"] {
        assert!(markdown.contains(part), "{part}: {markdown}");
    }
    assert!(!markdown.contains("not speed"), "{markdown}");
}

#[test]
fn an_evaluation_that_contradicts_itself_is_refused() {
    for (text, part) in [
        ("task = \"piqa\"\ntext = \"demo:prose-heldout\"", "not both"),
        ("task = \"gsm8k\"", "in which the model chooses"),
        ("task = \"piqa\"\nmeasure = \"divergence\"", "leave `measure` out"),
        ("window = 64", "give `text ="),
    ] {
        let bench = Bench::new(&format!("{SMALL}[evaluation.odd]\n{text}\n"));
        let error = bench.fail(&["check"]);
        assert!(error.contains("evaluation.odd") && error.contains(part), "{error}");
    }
}

/// Eight configurations on the original model's statistics, and one of each method solved both ways.
fn sharing() -> String {
    let study = SMALL
        .replace("\"rtn\", \"gptq\"", "\"gptq\", \"awq\"")
        .replace("bits = 2", "bits = [4, 3]\ninputs = \"original\"");
    study
        .replace("seed = [0, 1]", "seed = 0")
        .replace("[\"prose\", \"code\"]", "\"prose\"")
        .replace("[64, -1]", "[64, 32]")
}

#[test]
fn shared_statistics_give_what_single_runs_give_to_the_bit() {
    let shared = Bench::new(&sharing().replace("question =", "shortcut-check = false\nquestion ="));
    let (_, told) = shared.succeed(&["run"]);
    assert!(
        told.contains("8 configurations share their statistics") && told.contains("8 configurations solved"),
        "{told}"
    );
    assert!(!shared.path("study.results/work").exists());
    let alone = Bench::new(&sharing().replace("question =", "keep = true\nshortcut-check = false\nquestion ="));
    assert!(!alone.succeed(&["run"]).1.contains("share their statistics"));
    let figures = |bench: &Bench| {
        let mut lines = lines(&bench.path("study.results"));
        lines.sort_by_key(|line| line["cell"].as_str().unwrap().to_owned());
        let of = |line: &Value| {
            let quantized = &line["quantized"];
            let sizes = ["bits_per_weight", "bits_per_weight_all", "bytes"].map(|name| quantized[name].clone());
            (line["cell"].clone(), line["blocks"].clone(), sizes)
        };
        lines.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(figures(&shared), figures(&alone));
    assert_eq!(figures(&shared).len(), 18);
    // What was captured serves the next study: nothing of the model is run again.
    shared.change("bits = [4, 3]", "bits = [4, 3, 2]");
    let (ran, _) = shared.succeed(&["run"]);
    assert!(ran.contains("measured 8 cells, 18 were there already"), "{ran}");
}

#[test]
fn what_sharing_costs_is_measured_on_one_configuration_of_each_method() {
    let bench = Bench::new(&sharing());
    let (ran, told) = bench.succeed(&["run"]);
    assert!(
        ran.contains("measured 22 cells") && told.contains("in true sequence, to measure the shortcut"),
        "{ran}{told}"
    );
    let (answer, _) = bench.succeed(&["report"]);
    assert!(
        answer.contains("All of this was solved on the original model's statistics; against true sequence"),
        "{answer}"
    );
    let markdown = fs::read_to_string(bench.path("study.results/report.md")).unwrap();
    assert!(markdown.contains("What sharing statistics costs") && markdown.contains("inputs: original"), "{markdown}");
}

#[test]
fn statistics_are_captured_mixed_and_solved_without_the_model_running() {
    let bench = Bench::new("");
    for (source, out) in [("demo:prose", "prose"), ("demo:code", "code")] {
        let window = ["--samples", "4", "--sequence-length", "64"];
        bench.succeed(&[&["capture", "demo", "--calibration", source, "--out", out][..], &window].concat());
    }
    let solve = |out: &str, more: &[&str]| {
        bench
            .succeed(
                &[&["solve", "demo", "--statistics", "prose", "--bits", "3", "--group-size", "64", "--out", out], more]
                    .concat(),
            )
            .0
    };
    let told = solve("one", &[]);
    assert!(told.contains("solved: ") && told.contains("bits per quantized weight"), "{told}");
    solve("mixed", &["--statistics", "code=3"]);
    let weights = |folder: &str| fs::read(bench.path(folder).join("model.safetensors")).unwrap();
    assert_ne!(weights("one"), weights("mixed"));
    assert!(bench.fail(&["solve", "demo", "--statistics", "prose", "--out", "one"]).contains("one"));
    let agreement = |first: &str, second: &str| {
        let (json, _) = bench.succeed(&["agreement", "demo", first, second, "--json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        json.as_array().unwrap().iter().map(|stage| stage["hessians"].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    assert!(agreement("prose", "prose").iter().all(|similarity| (similarity - 1.0).abs() < 1e-9));
    assert!(agreement("prose", "code").iter().all(|similarity| (0.1..0.999).contains(similarity)));
    assert!(bench.succeed(&["agreement", "demo", "prose", "code"]).0.contains("gate-up"));
    let origin = bench.path("prose/statistics.json");
    let mut of_another: Value = serde_json::from_slice(&fs::read(&origin).unwrap()).unwrap();
    of_another["model_sha256"] = Value::Array(vec!["0".repeat(64).into()]);
    fs::write(&origin, of_another.to_string()).unwrap();
    for refused in
        [&["agreement", "demo", "code", "prose"][..], &["solve", "demo", "--statistics", "prose", "--out", "x"]]
    {
        assert!(bench.fail(refused).contains("prose holds statistics of another model than demo"));
    }
    fs::remove_file(bench.path("code/block-00000.safetensors")).unwrap();
    let error = bench.fail(&["solve", "demo", "--statistics", "code", "--out", "other"]);
    assert!(error.contains("block 0 of"), "{error}");
}

#[test]
fn a_model_writes_text_that_it_can_be_calibrated_on() {
    let bench = Bench::new("");
    let write = |out: &str, more: &[&str]| {
        bench.succeed(&[&["sample", "demo", "--texts", "6", "--length", "40", "--out", out], more].concat());
        fs::read_to_string(bench.path(out)).unwrap()
    };
    let texts = write("own.jsonl", &[]);
    assert_eq!(texts.lines().count(), 6);
    for line in texts.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(!line["text"].as_str().unwrap().is_empty() && (1..=40).contains(&line["tokens"].as_u64().unwrap()));
    }
    assert_eq!(write("again.jsonl", &["--threads", "1"]), texts);
    assert_ne!(write("other.jsonl", &["--seed", "1"]), texts);
    let capture = ["capture", "demo", "--calibration", "own.jsonl", "--out", "statistics"];
    bench.succeed(&[&capture[..], &["--samples", "2", "--sequence-length", "32"]].concat());
}

#[test]
fn processes_share_the_work() {
    let bench = Bench::new(&SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\""));
    let (ran, told) = bench.succeed(&["run", "--on", "local", "--jobs", "2"]);
    assert!(ran.contains("measured 6 cells, 0 were there already, 0 failed"), "{ran}");
    assert!(told.contains("2 workers are through"), "{told}");
    let results = bench.path("study.results");
    let files = fs::read_dir(&results)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("cells-"));
    assert_eq!(files.count(), 2);
    assert!(bench.succeed(&["run", "--on", "local"]).0.contains("measured 0 cells, 6 were there already"));
    assert!(bench.succeed(&["report"]).0.contains("does best"));
}

/// The processes that `process` has started and that still are.
fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let started = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(started).collect::<String>().split_whitespace().map(|id| id.parse().unwrap()).collect()
}

#[test]
fn a_killed_process_is_started_again() {
    let bench = Bench::new(&SMALL.replace("samples = 4", "samples = 64"));
    let run = std::process::Command::new(assert_cmd::cargo::cargo_bin("study"))
        .args(["run", "--on", "local", "--jobs", "1", "--chunk-size", "1"])
        .current_dir(bench.folder.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let worker = loop {
        match children(run.id()).first() {
            Some(worker) => break *worker,
            None => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    };
    let killed = std::process::Command::new("kill").args(["-9", &worker.to_string()]).status().unwrap();
    assert!(killed.success());
    let output = run.wait_with_output().unwrap();
    let (ran, told) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{ran}\n{told}");
    assert!(ran.contains("measured 14 cells, 0 were there already, 0 failed"), "{ran}");
    assert!(told.contains("; 1 were killed and started again"), "{told}");
}

#[test]
fn parts_together_are_the_whole() {
    let bench = Bench::new(&SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\""));
    assert!(bench.succeed(&["run", "--part", "1/2"]).0.contains("measured 4 cells"));
    assert!(bench.succeed(&["status"]).0.contains("4 of 6 cells measured, 0 failed, 2 open"));
    assert!(bench.succeed(&["report"]).0.contains("Only 4 of 6 cells are measured"));
    assert!(bench.succeed(&["run", "--part", "2/2"]).0.contains("measured 2 cells"));
    assert!(bench.succeed(&["run"]).0.contains("measured 0 cells, 6 were there already"));
}

#[test]
fn checkpoints_are_kept_where_asked_and_serve_another_text() {
    let study = SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\"").replace("question =", "keep = true\nquestion =");
    let bench = Bench::new(&study);
    bench.succeed(&["run"]);
    let kept: Vec<_> = fs::read_dir(bench.path("study.results/checkpoints")).unwrap().collect();
    assert_eq!(kept.len(), 2);
    bench.change("max-tokens = 640", "max-tokens = 512");
    let (ran, _) = bench.succeed(&["run"]);
    assert!(ran.contains("measured 6 cells, 0 were there already"), "{ran}");
}

#[test]
fn a_failed_cell_keeps_its_error_and_is_retried_alone() {
    let bench = Bench::new(&SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\""));
    // A file where the work folder is to be: every quantization fails, the unquantized model does not need it.
    fs::create_dir(bench.path("study.results")).unwrap();
    fs::write(bench.path("study.results/work"), "in the way").unwrap();
    let error = bench.fail(&["run"]);
    assert!(error.contains("4 cells failed") && error.contains("study retry"), "{error}");
    let output = bench.study(&["status"]);
    let status = text(&output.stdout);
    assert!(status.contains("2 of 6 cells measured, 4 failed, 0 open") && status.contains("failed: "), "{status}");
    assert!(bench.fail(&["run"]).contains("4 cells failed"), "what failed is not tried again by itself");
    fs::remove_file(bench.path("study.results/work")).unwrap();
    let (retried, _) = bench.succeed(&["retry"]);
    assert!(retried.contains("measured 4 cells, 2 were there already, 0 failed"), "{retried}");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let bench = Bench::new(SMALL);
    bench.change("demo:prose-heldout", "missing.txt");
    bench.change("samples = 4", "samples = 4000");
    bench.change("group-size = [64, -1]", "group-size = [64, 3]");
    bench.change("bits = 2", "bits = [2, 5]");
    let error = bench.fail(&["check"]);
    for part in [
        "evaluation.prose",
        "missing.txt",
        "calibration.prose",
        "calibration.code",
        "not enough calibration text",
        "5 bits",
        "groups of 3",
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[test]
fn text_in_common_and_seeds_that_change_nothing_are_warned_of() {
    let bench = Bench::new(SMALL);
    bench.change("demo:prose-heldout", "demo:prose");
    bench.change("sequence-length = 64", "sequence-length = 64\npacking = \"consecutive\"");
    let (checked, _) = bench.succeed(&["check"]);
    assert!(checked.contains("100.0 % of the 13-grams of evaluation.prose are also in calibration.prose"), "{checked}");
    assert!(checked.contains("cut the same windows and count once"), "{checked}");
}

#[test]
fn a_study_beyond_its_budget_is_not_run() {
    let bench = Bench::new(&format!("{SMALL}\n[budget]\ncells = 3\n"));
    let error = bench.fail(&["run"]);
    assert!(error.contains("14 cells are more than budget.cells = 3"), "{error}");
    assert!(!bench.path("study.results").exists());
}

#[test]
fn init_writes_a_study_that_checks_and_never_overwrites() {
    let bench = Bench::new("");
    bench.succeed(&["init", "new.toml", "--template", "methods"]);
    assert!(bench.succeed(&["check", "new.toml"]).0.contains("methods: How much better"));
    assert!(bench.fail(&["init", "new.toml"]).contains("is there already"));
}

/// The texts of the demo model, under other names.
#[test]
fn init_takes_models_settings_and_texts() {
    let bench = Bench::new("");
    let texts =
        ["--calibration", "a=demo:prose", "--calibration", "b=demo:code", "--evaluation", "a=demo:prose-heldout"];
    let settings = ["--template", "group-size", "--bits", "4,3", "--group-size", "32,-1", "--seed", "0"];
    bench.succeed(&[&["init", "new.toml"], &settings[..], &texts].concat());
    let (said, _) = bench.succeed(&["check", "new.toml"]);
    // Two widths, two sizes, two sets; one text, and the model itself.
    assert!(said.contains("configurations: 8") && said.contains("cells: 9"), "{said}");
    assert!(bench.fail(&["init", "other.toml", "--method", "magic"]).contains("this makes no study"));
    assert!(!bench.path("other.toml").exists());
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let bench = Bench::new("name = 'n'\nquestion = 'q'\n[settings]\nbitz = 4\n");
    let error = bench.fail(&["check"]);
    assert!(error.contains("study.toml is no study") && error.contains("unknown field `bitz`"), "{error}");
    assert!(bench.fail(&["report"]).contains("holds no results of this study"));
    assert!(bench.fail(&["check", "none.toml"]).contains("none.toml: No such file"));
}

#[test]
fn parts_are_ranked_and_bits_suggested_under_a_budget() {
    let study = SMALL.replace("\"rtn\", \"gptq\"", "\"gptq\"").replace("seed = [0, 1]", "seed = 0");
    let study =
        study.replace("bits = 2", "bits = [4, 2]\ninputs = \"original\"\npart = [\"all\", \"only each layer stage\"]");
    let study = study.replace("group-size = [64, -1]", "group-size = 64").replace("[\"prose\", \"code\"]", "\"prose\"");
    let study = study.replace("protocol =", "measure = \"divergence\"\nprotocol =");
    let bench = Bench::new(&format!("shortcut-check = false\n{study}"));
    bench.succeed(&["run"]);
    let (answer, _) = bench.succeed(&["report"]);
    assert!(answer.contains("uantized alone, most damage of a stage of a layer does layer "), "{answer}");
    assert!(answer.contains("and everything at once does"), "{answer}");
    let markdown = fs::read_to_string(bench.path("study.results/report.md")).unwrap();
    assert!(
        markdown.contains("Damage of each stage of a layer alone, 4 bits") && markdown.contains("| punctuation |"),
        "{markdown}"
    );
    let html = fs::read_to_string(bench.path("study.results/report.html")).unwrap();
    browser::check(&html, html.matches("<figure").count());
    let suggested = |bytes: &str| {
        let (json, _) = bench.succeed(&["suggest", "--bytes", bytes, "--json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        let suggestion = &json["suggestion"];
        let two = suggestion["choices"].as_array().unwrap().iter().filter(|choice| choice["bits"] == 2).count();
        (suggestion["bytes"].as_u64().unwrap(), two)
    };
    let all = suggested("1GiB");
    assert_eq!(all.1, 0);
    let less = suggested(&format!("{}B", all.0 - 100_000));
    assert!(less.0 <= all.0 - 100_000 && less.1 > 0, "{less:?}");
    // What the sizes of single parts add up to is what everything together takes.
    let lines = lines(&bench.path("study.results"));
    let whole = lines.iter().find(|line| line["settings"]["bits"] == 4 && line["settings"]["part"].is_null()).unwrap();
    assert_eq!(whole["quantized"]["bytes"], all.0);
    assert!(bench.fail(&["suggest", "--bytes", "1KiB"]).contains("too few"));
}

#[test]
fn blocks_of_gguf_are_a_format_like_others() {
    let study = SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\", \"rtn+importance\"").replace("seed = [0, 1]", "seed = 0");
    let study = study.replace("bits = 2", "bits = [4, 3]\nformat = [\"gguf:Q4_0\", \"gguf:Q8_0\"]");
    let bench = Bench::new(&study.replace("[\"prose\", \"code\"]", "\"prose\""));
    let (ran, told) = bench.succeed(&["run"]);
    // Bits and groups make no cells: two formats, two methods, and the unquantized model, on two texts.
    assert!(ran.contains("measured 10 cells, 0 were there already, 0 failed"), "{ran}{told}");
    assert!(!bench.path("study.results/work").exists());
    let (answer, _) = bench.succeed(&["report"]);
    assert!(answer.contains("format gguf:Q8_0 does best"), "{answer}");
}

#[test]
fn a_table_is_exported_to_parquet() {
    let bench = Bench::new(&SMALL.replace("\"rtn\", \"gptq\"", "\"rtn\""));
    bench.succeed(&["run"]);
    bench.succeed(&["export", "--format", "parquet", "--out", "cells.parquet"]);
    let bytes = fs::read(bench.path("cells.parquet")).unwrap();
    assert!(fs::read(bench.path("study.results/cells.parquet")).unwrap() == bytes, "the store's own table");
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
}
