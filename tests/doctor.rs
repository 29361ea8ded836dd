//! `doctor` of every tool.

use assert_cmd::Command;
use serde_json::Value;

#[test]
fn every_tool_describes_the_machine_and_measures_it() {
    for tool in ["quantize", "evaluate"] {
        let output = Command::cargo_bin(tool).unwrap().args(["doctor", "--json"]).output().unwrap();
        assert!(output.status.success());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["tool"].as_str().unwrap().contains(tool), "{report}");
        assert!(report["gflops_all_threads"].as_f64().unwrap() > 0.0, "{report}");
        assert!(report["memory_bytes"].as_u64().unwrap() >= report["memory_available_bytes"].as_u64().unwrap());
    }
}
