//! Our GPTQ writer against an independent reader: `interop/read_gptq.py`, numpy and safetensors, written from the
//! layout table alone.
//!
//! The interpreter is `CALIPER_PYTHON`, else `python3`; one without numpy and safetensors means a skipped test, unless
//! `CALIPER_PYTHON` was given: then it has to work.

#[allow(dead_code)] // Shared with the tests of `model`, which use all of it.
#[path = "../model/tests/toy/mod.rs"]
mod toy;

use kernels::{ActOrder, QuantSpec};
use model::{
    Checkpoint,
    format::{Target, gptq::Version},
};
use std::io::Write as _;
use std::{fs, path::Path, process::Command};

/// An interpreter with the two packages.
fn python() -> Option<String> {
    let given = std::env::var("CALIPER_PYTHON").ok();
    let python = given.clone().unwrap_or_else(|| "python3".into());
    let found = Command::new(&python).args(["-c", "import numpy, safetensors"]).output();
    match found {
        Ok(output) if output.status.success() => Some(python),
        _ if given.is_some() => panic!("CALIPER_PYTHON = {python} has no numpy and safetensors: {found:?}"),
        _ => None,
    }
}

/// Runs the Python reader over `checkpoint`; the names of the modules it found.
fn read_with_python(python: &str, checkpoint: &Path, out: &Path) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/read_gptq.py");
    let output = Command::new(python).arg(script).arg(checkpoint).arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Writes a checkpoint of `shared`, one module with other bits, and compares every dequantized weight bit for bit: both
/// sides multiply one float16 scale by one small integer in float32, which is exact in the same way.
fn compare(python: &str, shared: QuantSpec, version: Version) {
    let folder = tempfile::tempdir().unwrap();
    let (source, checkpoint, out) =
        (folder.path().join("source"), folder.path().join("checkpoint"), folder.path().join("out"));
    fs::create_dir(&out).unwrap();
    toy::write_source(&source, true);
    let mut modules = toy::all_modules(shared);
    modules[6].spec = QuantSpec { bits: if shared.bits == 4 { 3 } else { 4 }, group_size: None, ..shared };
    modules.pop();
    toy::write_checkpoint(&source, &checkpoint, shared, &modules, Target::Gptq(version), 20_000).unwrap();
    let mut found = read_with_python(python, &checkpoint, &out);
    found.sort();
    let mut expected: Vec<&str> = modules.iter().map(|module| &*module.name).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let ours = Checkpoint::open(&checkpoint.to_string_lossy()).unwrap();
    for name in found {
        let theirs = fs::read(out.join(format!("{name}.f32"))).unwrap();
        let ours = ours.tensors.read(&format!("{name}.weight")).unwrap();
        let ours: Vec<u8> = ours.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(ours == theirs, "{name} of {shared:?}, {version:?}");
    }
}

#[test]
fn python_reads_what_we_write() {
    let Some(python) = python() else {
        let why = "python3 has no numpy and safetensors; name an interpreter that has in CALIPER_PYTHON";
        // Past the test runner's capture: a skipped comparison must be seen.
        writeln!(std::io::stderr(), "SKIPPED interop: {why}").unwrap();
        return;
    };
    for (bits, group_size, symmetric) in
        [(2, Some(16), false), (3, Some(64), true), (4, Some(32), false), (8, None, false)]
    {
        compare(&python, toy::spec(bits, group_size, symmetric), Version::V1);
        let ordered =
            QuantSpec { act_order: ActOrder::Desc, smallest_zero: 0, ..toy::spec(bits, group_size, symmetric) };
        compare(&python, ordered, Version::V2);
    }
}
