//! Where outputs lie, and how they appear: whole or not at all.

use crate::{QuantizeError, card};
use model::format::Target;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

/// Where a format's checkpoint lies: `out` itself, or inside it where there are several.
pub(crate) fn place(out: &Path, formats: &[Target], format: Target) -> PathBuf {
    if formats.len() == 1 { out.to_owned() } else { out.join(format.file_name()) }
}

/// Where an output is put together inside `folder`: a file where the only format is one, else a folder.
pub(crate) fn unpublished(folder: &Path, formats: &[Target]) -> PathBuf {
    match formats {
        [format] if format.is_file() => folder.join("checkpoint.gguf"),
        _ => folder.join("checkpoint"),
    }
}

/// Refuses a name that doesn't fit what is written to it.
pub(crate) fn check_name(out: &Path, formats: &[Target]) -> Result<(), QuantizeError> {
    let gguf = out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    match formats {
        [format] if format.is_file() && !gguf => {
            Err(QuantizeError::Option(format!("--format {format} writes a file: let --out end in .gguf")))
        }
        [format] if !format.is_file() && gguf => {
            Err(QuantizeError::Option(format!("--format {format} writes a folder: --out can't end in .gguf")))
        }
        _ => Ok(()),
    }
}

/// Puts the finished `unpublished` in its place; what was there before goes to `aside`.
pub(crate) fn publish(unpublished: &Path, out: &Path, aside: &Path) -> Result<(), QuantizeError> {
    flush(unpublished)?;
    if out.exists() {
        if aside.is_dir() {
            fs::remove_dir_all(aside).map_err(QuantizeError::io(aside))?;
        }
        fs::rename(out, aside).map_err(QuantizeError::io(out))?;
    }
    if unpublished.is_file() {
        let (record, place) = (card::beside(unpublished), card::beside(out));
        fs::rename(&record, &place).map_err(QuantizeError::io(&record))?;
    }
    fs::rename(unpublished, out).map_err(QuantizeError::io(out))
}

/// Everything below `folder` on the disk before it takes its final name.
fn flush(folder: &Path) -> Result<(), QuantizeError> {
    if folder.is_file() {
        return File::open(folder).and_then(|file| file.sync_all()).map_err(QuantizeError::io(folder));
    }
    for entry in fs::read_dir(folder).map_err(QuantizeError::io(folder))? {
        let path = entry.map_err(QuantizeError::io(folder))?.path();
        if path.is_dir() {
            flush(&path)?;
        }
        File::open(&path).and_then(|file| file.sync_all()).map_err(QuantizeError::io(&path))?;
    }
    Ok(())
}

/// A folder beside an output for what is not finished, removed with everything in it.
pub(crate) struct WorkFolder(tempfile::TempDir);

impl WorkFolder {
    /// Beside `out`, so that renaming stays on one disk.
    pub(crate) fn beside(out: &Path) -> Result<Self, QuantizeError> {
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(QuantizeError::io(parent))?;
        tempfile::Builder::new().prefix(".tmp-").tempdir_in(parent).map(Self).map_err(QuantizeError::io(parent))
    }

    /// What will become the output.
    pub(crate) fn unpublished(&self, formats: &[Target]) -> PathBuf {
        unpublished(self.0.path(), formats)
    }

    /// Where an output that is replaced goes.
    pub(crate) fn aside(&self) -> PathBuf {
        self.0.path().join("replaced")
    }
}
