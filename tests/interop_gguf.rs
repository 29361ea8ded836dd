//! Our GGUF writer against the reader that llama.cpp publishes: `interop/read_gguf.py` over the package `gguf`.
//!
//! The interpreter is `CALIPER_PYTHON`, else `python3`; one without the package means a skipped test.

use kernels::kquant::{BlockMatrix, BlockType};
use model::{
    Checkpoint, ModelError,
    format::gguf::{Contents, Mixture, TensorType, write},
};
use std::{collections::BTreeSet, fs, io::Write as _, path::Path, process::Command};

/// An interpreter with the package.
fn python() -> Option<String> {
    let python = std::env::var("CALIPER_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import numpy, gguf"]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

/// What the script prints for `file`.
fn read_with_python(python: &str, file: &Path, out: &Path) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/read_gguf.py");
    let output = Command::new(python).arg(script).arg(file).arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Ours and theirs, both float32; the order of multiplications may differ by a rounding or two.
fn assert_same(name: &str, ours: &[f32], theirs: &[u8]) {
    let theirs = theirs.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let largest = ours.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(worst <= 3e-7 * largest, "{name}: {worst} of {largest}");
}

#[test]
fn the_gguf_package_reads_what_we_write() {
    let Some(python) = python() else {
        let why = "python3 has no numpy and gguf; name an interpreter that has in CALIPER_PYTHON";
        // Past the test runner's capture: a skipped comparison must be seen.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED interop_gguf: {why}").unwrap();
        return;
    };
    let (source, solved) = (Checkpoint::open("demo").unwrap(), BTreeSet::new());
    let load = |name: &str| -> Result<BlockMatrix, ModelError> { panic!("{name} is not solved") };
    for kind in BlockType::ALL {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.gguf");
        let type_of = |_: &str, _: usize| TensorType::Block(kind);
        let mixture: Mixture = "Q4_K_M".parse().unwrap();
        let contents = Contents {
            source: &source,
            file_type: mixture.file_type(),
            type_of: &type_of,
            solved: &solved,
            load: &load,
            notes: Vec::new(),
        };
        write(&file, &contents).unwrap();
        let lines = read_with_python(&python, &file, folder.path());
        assert!(lines.contains(&"general.architecture = 'llama'".to_owned()), "{lines:?}");
        assert!(lines.contains(&format!("blk.2.ffn_down.weight {}", kind.name())), "{lines:?}");
        assert!(lines.contains(&"output_norm.weight F32".to_owned()), "{lines:?}");
        let ours = Checkpoint::open(&file.to_string_lossy()).unwrap();
        for (stored, name) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
            ("blk.2.ffn_down.weight", "model.layers.2.mlp.down_proj.weight"),
            ("blk.3.attn_norm.weight", "model.layers.3.input_layernorm.weight"),
        ] {
            let theirs = fs::read(folder.path().join(format!("{stored}.f32"))).unwrap();
            assert_same(&format!("{kind:?} {stored}"), &ours.tensors.read(name).unwrap(), &theirs);
        }
    }
}
