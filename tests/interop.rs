//! Our writers against independent readers: `interop/read_*.py`, numpy and safetensors, written from the layout tables
//! alone.
//!
//! The interpreter is `CALIPER_PYTHON`, else `python3`; one without numpy and safetensors means a skipped test, unless
//! `CALIPER_PYTHON` was given: then it has to work.

#[allow(dead_code)] // Shared with the tests of `model`, which use all of it.
#[path = "../model/tests/toy/mod.rs"]
mod toy;

use kernels::{ActOrder, QuantSpec};
use model::{
    Checkpoint,
    format::{QuantizedModule, Target, gptq::Version},
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

/// Runs a Python reader over `checkpoint`; the names of the modules it found.
fn read_with_python(python: &str, reader: &str, checkpoint: &Path, out: &Path) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop").join(reader);
    let output = Command::new(python).arg(script).arg(checkpoint).arg(out).output().unwrap();
    assert!(output.status.success(), "{reader}: {}", String::from_utf8_lossy(&output.stderr));
    let mut found: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    found.sort();
    found
}

/// A checkpoint of the toy model and what Python reads in it.
struct Comparison {
    folder: tempfile::TempDir,
    modules: Vec<QuantizedModule>,
}

impl Comparison {
    /// The toy model, all linears but the last to be quantized by `shared`.
    fn new(shared: QuantSpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        toy::write_source(&folder.path().join("source"), true);
        let mut modules = toy::all_modules(shared);
        modules.pop();
        Self { folder, modules }
    }

    /// Writes the checkpoint, lets Python dequantize it and compares every weight bit for bit: both sides multiply one
    /// float16 scale by one small integer in float32, which is exact in the same way.
    fn check(&self, python: &str, reader: &str, target: Target) {
        let shared = self.modules[0].spec;
        let path = |name: &str| self.folder.path().join(name);
        let (checkpoint, out) = (path("checkpoint"), path("out"));
        fs::create_dir(&out).unwrap();
        toy::write_checkpoint(&path("source"), &checkpoint, shared, &self.modules, target, 20_000).unwrap();
        let found = read_with_python(python, reader, &checkpoint, &out);
        let mut expected: Vec<String> = self.modules.iter().map(|module| module.name.clone()).collect();
        if !target.holds_integers() {
            expected = toy::linears().into_iter().map(|(name, ..)| name).collect();
        }
        expected.sort_unstable();
        assert_eq!(found, expected);
        let ours = Checkpoint::open(&checkpoint.to_string_lossy()).unwrap();
        for name in found {
            let theirs = fs::read(out.join(format!("{name}.f32"))).unwrap();
            let ours = ours.tensors.read(&format!("{name}.weight")).unwrap();
            let ours: Vec<u8> = ours.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert!(ours == theirs, "{name} of {shared:?} as {target}");
        }
    }
}

/// An interpreter, or a word past the test runner's capture that there is none: a skipped comparison must be seen.
fn python_or_skip(what: &str) -> Option<String> {
    let python = python();
    if python.is_none() {
        let why = "python3 has no numpy and safetensors; name an interpreter that has in CALIPER_PYTHON";
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED interop of {what}: {why}").unwrap();
    }
    python
}

#[test]
fn python_reads_our_gptq() {
    let Some(python) = python_or_skip("gptq") else { return };
    for (bits, group_size, symmetric) in
        [(2, Some(16), false), (3, Some(64), true), (4, Some(32), false), (8, None, false)]
    {
        let plain = toy::spec(bits, group_size, symmetric);
        let ordered = QuantSpec { act_order: ActOrder::Desc, smallest_zero: 0, ..plain };
        for (shared, version) in [(plain, Version::V1), (ordered, Version::V2)] {
            let mut comparison = Comparison::new(shared);
            let other = QuantSpec { bits: if bits == 4 { 3 } else { 4 }, group_size: None, ..shared };
            comparison.modules[6].spec = other;
            comparison.check(&python, "read_gptq.py", Target::Gptq(version));
        }
    }
}

#[test]
fn python_reads_our_awq() {
    let Some(python) = python_or_skip("awq") else { return };
    for (group_size, symmetric) in [(Some(32), false), (Some(16), true), (None, false)] {
        let shared = QuantSpec { smallest_zero: 0, ..toy::spec(4, group_size, symmetric) };
        Comparison::new(shared).check(&python, "read_awq.py", Target::Awq);
    }
}

#[test]
fn python_reads_our_compressed_tensors() {
    let Some(python) = python_or_skip("compressed-tensors") else { return };
    for (bits, group_size, symmetric, act_order) in [
        (4, Some(32), true, ActOrder::None),
        (4, Some(16), false, ActOrder::Desc),
        (8, None, true, ActOrder::Static),
        (8, Some(32), false, ActOrder::Static),
    ] {
        let shared = QuantSpec { smallest_zero: 0, act_order, ..toy::spec(bits, group_size, symmetric) };
        let mut comparison = Comparison::new(shared);
        comparison.modules[6].spec = QuantSpec { bits: 12 - bits, group_size: None, symmetric: !symmetric, ..shared };
        comparison.check(&python, "read_compressed.py", Target::CompressedTensors);
    }
}

#[test]
fn python_reads_our_float_weights() {
    let Some(python) = python_or_skip("dequantized") else { return };
    for format in ["dequantized", "dequantized:float16", "dequantized:float32"] {
        Comparison::new(toy::spec(4, Some(32), false)).check(&python, "read_float.py", format.parse().unwrap());
    }
}
