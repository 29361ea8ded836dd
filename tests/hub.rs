//! Data sets on a hub, as the two tools read them: from a server on this machine.

use crate::hub_server::{COMMIT, Server, sha256};
use assert_cmd::Command;
use serde_json::Value;

fn run(tool: &str, server: &Server, home: &tempfile::TempDir, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::cargo_bin(tool).unwrap();
    command.args(arguments).env("HF_ENDPOINT", &server.address).env("HF_HOME", home.path()).output().unwrap()
}

#[test]
fn both_tools_read_a_data_set_of_the_hub_as_they_read_a_file() {
    let row = |n: usize| serde_json::json!({ "text": format!("Row {n} says that {} is a number.\n", n * 7) });
    let rows: Vec<String> = (0..300).map(|n| row(n).to_string()).collect();
    let (home, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let local = work.path().join("rows.jsonl");
    std::fs::write(&local, rows.join("\n")).unwrap();
    let server = Server::start(&[("data/rows.jsonl", rows.join("\n").as_bytes())]);
    let sources = ["hub:org/texts/data/rows.jsonl", local.to_str().unwrap()];

    let perplexities = sources.map(|source| {
        let output =
            run("evaluate", &server, &home, &["demo", "--perplexity", source, "--max-tokens", "1024", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["perplexity"].as_f64().unwrap()
    });
    assert_eq!(perplexities[0], perplexities[1]);

    let asked = server.requests();
    let weights = sources.map(|source| {
        let out = work.path().join(if source == sources[0] { "from-hub" } else { "from-file" });
        let settings = ["--bits", "4", "--group-size", "128", "--samples", "4", "--sequence-length", "128"];
        let named = ["demo", "--calibration", source, "--out", out.to_str().unwrap()];
        let output = run("quantize", &server, &home, &[&named[..], &settings[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(out.join("model.safetensors")).unwrap()
    });
    assert!(weights[0] == weights[1], "the calibration text decides the integers, not where it came from");
    assert_eq!(server.requests(), asked, "the file was in the cache");
}

#[test]
fn a_task_s_data_comes_from_the_hub_only_where_it_is_asked_for_and_is_hashed() {
    let row = |n: usize| serde_json::json!({ "q": format!("Is {n} even?"), "gold": n % 2 }).to_string();
    let items: Vec<String> = (0..6).map(row).collect();
    let (home, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let task = work.path().join("even.yaml");
    let yaml = "task: even\ndataset_path: org/texts\ndataset_name: main\ntest_split: test\nfewshot_split: dev\n\
        output_type: multiple_choice\ndoc_to_text: \"{{q}}\"\ndoc_to_target: gold\ndoc_to_choice: [\"yes\", \"no\"]\n\
        num_fewshot: 1\nfewshot_config: {sampler: first_n}\n";
    std::fs::write(&task, yaml).unwrap();
    let content = items.join("\n");
    let packed = zstd::encode_all(content.as_bytes(), 1).unwrap();
    let server =
        Server::start(&[("main/test.jsonl.zst", &packed), ("main/dev.jsonl", content.as_bytes()), ("x", b"x")]);
    let arguments = ["demo", "--tasks", task.to_str().unwrap(), "--json"];

    let output =
        run("evaluate", &server, &home, &[&arguments[..], &["--data", work.path().to_str().unwrap()]].concat());
    assert!(!output.status.success() && server.requests() == 0, "nothing is fetched unasked");

    let from_hub = [&arguments[..], &["--data", "hub:org/texts"]].concat();
    let output = run("evaluate", &server, &home, &from_hub);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("hub:org/texts: asked for its list of files"), "{said}");
    let report = &serde_json::from_slice::<Value>(&output.stdout).unwrap()["tasks"][0];
    assert_eq!((&report["available"], &report["shots"]), (&6.into(), &1.into()));
    let files = report["files"].as_array().unwrap();
    assert_eq!((files.len(), files[1]["sha256"].as_str().unwrap()), (2, sha256(content.as_bytes()).as_str()));
    assert!(files[0]["path"].as_str().unwrap().contains(COMMIT), "the commit is in the path: {}", files[0]["path"]);

    // Offline, from the cache.
    let asked = server.requests();
    let mut command = Command::cargo_bin("evaluate").unwrap();
    command.args(&from_hub).env("HF_ENDPOINT", &server.address).env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", "1");
    let again = command.output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(server.requests(), asked);
}
