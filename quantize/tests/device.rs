//! `--device cuda` against `--device cpu`: the same bytes where nothing is captured, else the same errors. Runs where there is a CUDA driver, or the stand-in of
//! `tests/cuda-standin`; else it says that it is skipped.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    process::{Command, Output},
};

/// Whether a device can be used; says loudly that the test is skipped where not.
fn present() -> bool {
    let Err(error) = kernels::cuda::Device::open(0) else { return true };
    assert!(std::env::var_os("CALIPER_CUDA_REQUIRED").is_none(), "a device is required: {error}");
    std::io::stderr().write_all(format!("!! SKIPPED, --device is not tested: {error}\n").as_bytes()).unwrap();
    false
}

fn quantize(out: &Path, device: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
    command.args(["demo", "--device", device, "--out"]).arg(out).args(arguments);
    command.output().unwrap()
}

/// What holds numbers, by name; the card and the record also tell how long it took.
fn numbers(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let holds = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "safetensors");
    files
        .filter(holds)
        .map(|path| (path.file_name().unwrap().to_string_lossy().into(), fs::read(path).unwrap()))
        .collect()
}

/// Quantizes on `device`; gives what holds numbers, and the mean error of the outputs.
fn quantized(out: &Path, device: &str, arguments: &[&str]) -> (BTreeMap<String, Vec<u8>>, f64) {
    let output = quantize(out, device, &[arguments, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?} on {device}: {said}");
    assert_eq!(said.contains("device: cuda ("), device == "cuda", "{said}");
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let numbers = numbers(out);
    assert!(!numbers.is_empty());
    (numbers, outcome["totals"]["error"].as_f64().unwrap_or_default())
}

const SMALL: [&str; 4] = ["--samples", "4", "--sequence-length", "64"];

#[test]
fn rounding_on_a_device_writes_the_same_bytes() {
    if !present() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = [&SMALL[..], &["--method", "rtn", "--scale-search", "mse"]].concat();
    let [cpu, cuda] = ["cpu", "cuda"].map(|device| quantized(&folder.path().join(device), device, &arguments).0);
    assert!(cpu == cuda);
}

/// Statistics captured on the device differ by rounding. So few tokens leave directions of the inputs open, in which that
/// decides over codes; the errors of the outputs hardly notice. What stays on the device changes no byte.
#[test]
fn what_is_captured_on_a_device_leads_to_the_same_errors() {
    if !present() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 4] = [
        &["--method", "gptq"],
        &["--method", "gptq", "--act-order", "none", "--bits", "3", "--group-size", "32", "--asymmetric"],
        &["--method", "gptq", "--input-correction", "0.5"],
        &["--method", "awq+gptq", "--awq-steps", "2"],
    ];
    for (at, case) in cases.into_iter().enumerate() {
        let arguments = [&SMALL[..], case].concat();
        let place = |name: &str| folder.path().join(format!("{name}-{at}"));
        let (_, error) = quantized(&place("cpu"), "cpu", &arguments);
        let (cuda, on_device) = quantized(&place("cuda"), "cuda", &arguments);
        assert!(error > 0.0 && (on_device - error).abs() <= 0.01 * error, "{case:?}: {on_device} and {error}");
        if at == 0 {
            let streamed = [&arguments[..], &["--device-windows", "0"]].concat();
            assert!(quantized(&place("streamed"), "cuda", &streamed).0 == cuda);
        }
    }
}

/// The message says how much is needed. Only the stand-in's memory can be set.
#[test]
fn too_little_memory_is_said_before_any_work() {
    if !present() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
    command.args(["demo", "--device", "cuda", "--dry-run", "--samples", "2", "--out"]).arg(folder.path().join("out"));
    let output = command.env("STANDIN_MEMORY", "100000").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("stand-in") || !output.status.success() {
        assert!(
            said.contains("--device: ") && said.contains(" needs ") && said.contains("MiB of device memory"),
            "{said}"
        );
    }
}

/// What a machine without a device says.
#[test]
fn a_device_that_is_not_there_is_an_error_and_auto_takes_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let output = quantize(&out, "cuda:99", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--device: "), "{said}");
    assert!(
        said.contains("no CUDA driver") || said.contains("finds no device") || said.contains("no CUDA device 99"),
        "{said}"
    );
    let output = quantize(&out, "auto", &["--dry-run", "--samples", "2"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("device: c"), "{said}");
    assert!(!quantize(&out, "gpu", &[]).status.success());
}
