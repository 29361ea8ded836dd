//! `--device cuda` writes the bytes that `--device cpu` writes. Runs where there is a CUDA driver, or the stand-in of
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

#[test]
fn a_device_writes_the_same_bytes() {
    if !present() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let small = ["--samples", "4", "--sequence-length", "64"];
    let cases: [&[&str]; 4] = [
        &["--method", "rtn", "--scale-search", "mse"],
        &["--method", "gptq"],
        &["--method", "gptq", "--act-order", "none", "--bits", "3", "--group-size", "32", "--asymmetric"],
        &["--method", "awq+gptq", "--awq-steps", "2"],
    ];
    for (at, case) in cases.into_iter().enumerate() {
        let arguments = [&small[..], case].concat();
        let written = ["cpu", "cuda"].map(|device| {
            let out = folder.path().join(format!("{device}-{at}"));
            let output = quantize(&out, device, &arguments);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{case:?} on {device}: {said}");
            assert_eq!(said.contains("device: cuda ("), device == "cuda", "{said}");
            numbers(&out)
        });
        assert!(!written[0].is_empty());
        assert!(written[0] == written[1], "{case:?}");
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
        assert!(said.contains("--device: solving a weight of") && said.contains("MiB of device memory"), "{said}");
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
