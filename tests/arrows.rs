//! Which crate may use which: read from the Cargo.toml files, any other arrow fails.

use std::{collections::BTreeSet, fs, path::Path};

/// Crate → crates of this workspace it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("model", &["kernels"]),
    ("calibration", &["kernels", "model"]),
    ("quantize", &["calibration", "console", "kernels", "model"]),
    ("evaluate", &["console", "kernels", "model"]),
    ("study", &["calibration", "console", "evaluate", "model", "quantize"]),
    ("console", &[]),
];

fn workspace_dependencies(folder: &Path) -> BTreeSet<String> {
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a crate of the workspace has a Cargo.toml");
    let section = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    section
        .lines()
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| ARROWS.iter().any(|(ours, _)| ours == name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    for (name, allowed) in ARROWS {
        let used = workspace_dependencies(&root.join(name));
        let forbidden: Vec<_> = used.iter().filter(|used| !allowed.contains(&used.as_str())).collect();
        assert!(forbidden.is_empty(), "`{name}` must not depend on {forbidden:?}");
    }
}

#[test]
fn the_check_sees_dependencies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    assert!(workspace_dependencies(&root.join("quantize")).contains("calibration"));
}
