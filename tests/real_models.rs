//! Where the real models and the shared files are, told by the environment.

#![allow(clippy::print_stderr, reason = "a test that is skipped has to say so")]

use std::{env, path::PathBuf};

/// The folders that `CALIPER_MODELS` and `CALIPER_SHARED` name; says so on standard error if one is not set.
pub(crate) fn folders() -> Option<(PathBuf, PathBuf)> {
    let folder = |name: &str| {
        let folder = env::var_os(name).map(PathBuf::from).filter(|path| path.is_dir());
        if folder.is_none() {
            eprintln!("skipped: {name} names no folder");
        }
        folder
    };
    Some((folder("CALIPER_MODELS")?, folder("CALIPER_SHARED")?))
}
