//! The demo model and its texts, embedded in the binary.
//!
//! The model is an ordinary Hugging Face folder (`model/demo` in the repository, whose README says how it was made),
//! so that everything that takes a folder takes it. [`folder`] writes it to
//! `<cache>/caliper/demo-<first 8 digits of its SHA-256>`; the cache is `CALIPER_CACHE`, or `XDG_CACHE_HOME`, or
//! `.cache` in the home folder. Each file is compared with the embedded one on every use, and one that is missing or
//! damaged is replaced by a rename: several programs may do so at once, for all of them write the same bytes.

use crate::ModelError;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Name and bytes of each file of the folder.
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// Names and contents of the embedded texts.
const TEXTS: [(&str, &str); 4] = [
    ("prose", include_str!("../demo/texts/prose.txt")),
    ("code", include_str!("../demo/texts/code.txt")),
    ("prose-heldout", include_str!("../demo/texts/prose-heldout.txt")),
    ("code-heldout", include_str!("../demo/texts/code-heldout.txt")),
];

/// The folder's name: another model gets another folder.
static NAME: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for (name, bytes) in FILES {
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize()[..4].iter().fold("demo-".to_owned(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
});

/// The folder (in the user's cache, written from the binary on first use, compared with it on every use) that holds
/// the demo model as a Hugging Face folder.
pub fn folder() -> Result<PathBuf, ModelError> {
    folder_in(&cache()?)
}

/// An embedded text by name: `prose`, `code` (for calibration), `prose-heldout`, `code-heldout` (for evaluation).
pub fn text(name: &str) -> Option<&'static str> {
    TEXTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Where the user keeps what can be made again.
fn cache() -> Result<PathBuf, ModelError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("CALIPER_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME"))
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .ok_or_else(|| ModelError::Reference {
            reference: "demo".to_owned(),
            what: "there is no cache folder to write the demo model to; set CALIPER_CACHE to a folder".to_owned(),
        })
}

fn folder_in(cache: &Path) -> Result<PathBuf, ModelError> {
    let folder = cache.join("caliper").join(NAME.as_str());
    std::fs::create_dir_all(&folder).map_err(ModelError::io(&folder))?;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if !holds(&path, bytes) {
            write(&folder, &path, bytes).map_err(ModelError::io(&path))?;
        }
    }
    Ok(folder)
}

/// Whether the file holds these bytes; its length is asked first, so that a wrong file of any size costs nothing.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let length = std::fs::metadata(path).map(|file| file.len());
    length.is_ok_and(|length| length == bytes.len() as u64) && std::fs::read(path).is_ok_and(|found| found == bytes)
}

/// Writes beside the file and renames: a reader sees the old file or the new one, never half of one.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::time::SystemTime;

    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(Result::unwrap)
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    fn assert_intact(folder: &Path) {
        let expected: Vec<_> = FILES.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        assert!(contents(folder) == expected, "the folder differs from the embedded files");
    }

    #[test]
    fn second_use_writes_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let modified = |folder: &Path| -> Vec<SystemTime> {
            FILES.iter().map(|(name, _)| folder.join(name).metadata().unwrap().modified().unwrap()).collect()
        };
        let first = folder_in(cache.path()).unwrap();
        let times = modified(&first);
        let second = folder_in(cache.path()).unwrap();
        assert_eq!(first, second);
        assert_eq!(times, modified(&second));
        assert_intact(&first);
    }

    #[test]
    fn damaged_and_missing_files_are_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let folder = folder_in(cache.path()).unwrap();
        let weights = folder.join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&weights, bytes).unwrap();
        std::fs::write(folder.join("config.json"), "{").unwrap();
        std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
        folder_in(cache.path()).unwrap();
        assert_intact(&folder);
    }

    #[test]
    fn several_at_once_agree() {
        let cache = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| folder_in(cache.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(folders.iter().all(|folder| *folder == folders[0]));
        assert_intact(&folders[0]);
    }

    #[test]
    fn weights_are_small_and_fit_every_group_size() {
        let [_, _, (_, weights), ..] = FILES;
        assert!(weights.len() <= 8_000_000);
        for (name, tensor) in safetensors::SafeTensors::deserialize(weights).unwrap().iter() {
            assert_eq!(tensor.dtype(), safetensors::Dtype::F16, "{name}");
            assert_eq!(tensor.shape().last().unwrap() % 256, 0, "{name}");
        }
    }

    #[test]
    fn texts_are_found_by_name_and_long_enough() {
        let lengths = [("prose", 25_000), ("code", 25_000), ("prose-heldout", 10_000), ("code-heldout", 10_000)];
        for (name, least) in lengths {
            assert!(text(name).unwrap().len() >= least, "{name}");
        }
        assert_eq!(text("verse"), None);
    }

    #[test]
    fn held_out_texts_share_no_long_line_with_the_others() {
        let long = |name| text(name).unwrap().lines().filter(|line| line.len() > 40);
        for (known, held_out) in [("prose", "prose-heldout"), ("code", "code-heldout")] {
            let seen: HashSet<&str> = long(known).collect();
            let shared: Vec<_> = long(held_out).filter(|line| seen.contains(line)).collect();
            assert!(shared.is_empty(), "{shared:?}");
        }
    }
}
