//! Data sets on a hub, as the two tools read them: from a server on this machine.

use crate::hub_server::Server;
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
