//! Where evaluation text comes from: files (any kind the `model` crate reads), embedded texts, files on a hub.

use crate::EvaluateError;
use model::{
    hub::HubId,
    text::{Document, TextFile},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// One file and what it holds.
#[derive(Clone, Debug, Serialize)]
pub struct SourceFile {
    /// Its name.
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Its documents; a plain text file is one.
    #[serde(skip)]
    pub documents: Vec<String>,
}

/// An evaluation text before any protocol has handled it.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// What the user called it.
    pub reference: String,
    /// The files it consists of.
    pub files: Vec<SourceFile>,
}

impl Source {
    /// Reads `FILE` (a folder or glob too), `demo:NAME` or `hub:org/name/path[@revision]`. `field` names the column of
    /// JSON lines, CSV and Parquet.
    pub fn read(reference: &str, field: Option<&str>) -> Result<Self, EvaluateError> {
        let files = if let Some(name) = reference.strip_prefix("demo:") {
            vec![demo(reference, name)?]
        } else if let Some(path) = reference.strip_prefix("hub:") {
            let file = hub(reference, path)?;
            plain(reference, model::text::read(&file, field)?)?
        } else {
            plain(reference, model::text::read(reference, field)?)?
        };
        Ok(Self { reference: reference.to_owned(), files })
    }

    /// A text that is already in memory.
    pub fn from_text(reference: &str, text: &str) -> Self {
        Self { reference: reference.to_owned(), files: vec![SourceFile::new(reference, vec![text.to_owned()])] }
    }
}

impl SourceFile {
    fn new(name: &str, documents: Vec<String>) -> Self {
        Self { name: name.to_owned(), sha256: sha256(documents.concat()), documents }
    }
}

/// SHA-256 of a text, in hexadecimal.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hexadecimal, byte| {
        let _ = write!(hexadecimal, "{byte:02x}");
        hexadecimal
    })
}

fn wrong(reference: &str, what: impl Into<String>) -> EvaluateError {
    EvaluateError::Text { reference: reference.to_owned(), what: what.into() }
}

fn demo(reference: &str, name: &str) -> Result<SourceFile, EvaluateError> {
    let what = "there is no such embedded text; there are demo:prose-heldout and demo:code-heldout for evaluation";
    let text = model::demo::text(name).ok_or_else(|| wrong(reference, what))?;
    Ok(SourceFile::new(reference, vec![text.to_owned()]))
}

fn hub(reference: &str, path: &str) -> Result<String, EvaluateError> {
    let shape = || wrong(reference, "a file on a hub is written `hub:org/name/path/to/file[@revision]`");
    let (path, revision) = path.rsplit_once('@').map_or((path, "main"), |(path, revision)| (path, revision));
    let mut parts = path.splitn(3, '/');
    let (Some(owner), Some(name), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(shape());
    };
    let id = HubId::parse(&format!("{owner}/{name}@{revision}")).ok_or_else(shape)?;
    let local = model::hub::dataset_file(&id, file)?;
    local.into_os_string().into_string().map_err(|_| wrong(reference, "the cache folder's path is not valid UTF-8"))
}

fn plain(reference: &str, files: Vec<TextFile>) -> Result<Vec<SourceFile>, EvaluateError> {
    files
        .into_iter()
        .map(|file| {
            let name = file.path.display().to_string();
            let documents = file.documents.into_iter().map(|document| match document {
                Document::Text(text) => Ok(text),
                Document::Chat(_) => {
                    let what = format!(
                        "{name} holds chat messages; perplexity needs running text: name its column with `--field`"
                    );
                    Err(wrong(reference, what))
                }
            });
            Ok(SourceFile { documents: documents.collect::<Result<_, _>>()?, sha256: file.sha256, name: name.clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_name_nothing_say_what_shape_they_should_have() {
        let error = Source::read("hub:org/name", None).unwrap_err().to_string();
        assert!(error.contains("hub:org/name/path/to/file"), "{error}");
    }

    #[test]
    fn the_hash_is_sha256() {
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
