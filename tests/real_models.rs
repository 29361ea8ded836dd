//! Where the real models and the shared files are, told by the environment.
//!
//! Tests that need them are `#[ignore]`d and so counted as ignored; asked for without the folders, they fail.

use std::{env, path::PathBuf};

/// The folders that `CALIPER_MODELS` and `CALIPER_SHARED` name.
pub(crate) fn folders() -> (PathBuf, PathBuf) {
    let folder = |name: &str| {
        let folder = env::var_os(name).map(PathBuf::from).filter(|path| path.is_dir());
        folder.unwrap_or_else(|| panic!("{name} names no folder"))
    };
    (folder("CALIPER_MODELS"), folder("CALIPER_SHARED"))
}

#[test]
#[ignore = "needs the real models"]
fn inspection_of_a_gguf_file() {
    let file = folders().0.join("smollm2-135m-instruct.gguf");
    let inspection = model::inspect::inspect(&file.to_string_lossy()).unwrap();
    assert_eq!((&*inspection.format, inspection.parameters), ("gguf", 134_515_008));
    assert!(!inspection.modules.is_empty() && inspection.bits_per_weight > 1.0);
}
