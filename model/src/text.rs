//! Text readers: plain text, JSON, JSON lines, CSV, Parquet; files, folders and globs.
//!
//! | ending | documents |
//! |---|---|
//! | `.jsonl`, `.ndjson` | one a line, from a field of the line's object |
//! | `.json` | one an element, from a field of each object of the list |
//! | `.csv` | one a row, from a column named in the first row |
//! | `.parquet` | one a row, from a column |
//! | anything else | the whole file, which must be UTF-8 |
//!
//! Each but Parquet may be compressed (`.gz`, `.bz2` or `.zst` behind the ending). A field is text, or a list of chat messages with the
//! keys `role` and `content`, or `from` and `value` (where `human` stands for `user` and `gpt` for `assistant`). A field
//! that is null is skipped; one that is missing is an error.

mod field;
mod parquet;
pub mod records;

use crate::ModelError;
use bzip2::read::MultiBzDecoder;
use field::Records;
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Files are read whole; one that holds more than this is refused rather than run out of memory.
const LARGEST_FILE: u64 = 4 << 30;

/// A piece of text that belongs together, or a list of chat messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Running text.
    Text(String),
    /// Messages as (role, content).
    Chat(Vec<(String, String)>),
}

/// A file that documents were read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// Where.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// What it holds, in order. A plain text file is one document.
    pub documents: Vec<Document>,
}

/// Reads a file, every file of a folder (not of the folders in it, nor hidden ones), or every match of a glob, in sorted
/// order. `field` names the column of JSON, JSON lines, CSV and Parquet (default: `text`, else `content`, else
/// `messages`/`conversations`; else an error that lists what there is).
pub fn read(pattern: &str, field: Option<&str>) -> Result<Vec<TextFile>, ModelError> {
    let paths = files(pattern)?;
    let files = paths.into_iter().map(|path| {
        let documents = documents(&path, field)?;
        Ok(TextFile { sha256: sha256_of_file(&path)?, path, documents })
    });
    let files = files.collect::<Result<Vec<_>, ModelError>>()?;
    if files.iter().all(|file| file.documents.is_empty()) {
        return Err(ModelError::malformed(pattern, "there is no text in it"));
    }
    Ok(files)
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256_of_file(path: &Path) -> Result<String, ModelError> {
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(ModelError::io(path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// `bytes` as lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// The files that `pattern` names, sorted.
fn files(pattern: &str) -> Result<Vec<PathBuf>, ModelError> {
    let path = Path::new(pattern);
    let reference = |what: String| ModelError::Reference { reference: pattern.into(), what };
    let mut files = if path.is_file() {
        vec![path.to_path_buf()]
    } else if path.is_dir() {
        let entries = path.read_dir().map_err(ModelError::io(path))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let paths = paths.collect::<Result<Vec<_>, _>>().map_err(ModelError::io(path))?;
        paths.into_iter().filter(|path| path.is_file() && !is_hidden(path)).collect()
    } else {
        let matches = glob::glob(pattern).map_err(|error| reference(format!("not a file, folder or glob: {error}")))?;
        let paths = matches.collect::<Result<Vec<_>, _>>();
        let paths = paths.map_err(|error| ModelError::io(error.path().to_path_buf())(error.into()))?;
        paths.into_iter().filter(|path| path.is_file()).collect()
    };
    files.sort();
    if files.is_empty() {
        return Err(reference("no such file, and no file in or under that name".into()));
    }
    Ok(files)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn documents(path: &Path, field: Option<&str>) -> Result<Vec<Document>, ModelError> {
    match ending(path).as_str() {
        "parquet" => parquet::documents(path, field),
        "jsonl" | "ndjson" => json_lines(path, &content(path)?, field),
        "json" => json(path, &content(path)?, field),
        "csv" => csv(path, &content(path)?, field),
        _ => Ok(Some(content(path)?).filter(|text| !text.is_empty()).map(Document::Text).into_iter().collect()),
    }
}

/// How a file is compressed, by its last ending.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Bzip2,
    Zstd,
}

fn compression(path: &Path) -> Compression {
    match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("gz") => Compression::Gzip,
        Some(extension) if extension.eq_ignore_ascii_case("bz2") => Compression::Bzip2,
        Some(extension) if extension.eq_ignore_ascii_case("zst") => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The ending that tells the format, in lower case, without that of a compression.
fn ending(path: &Path) -> String {
    let compressed = compression(path) != Compression::None;
    let path = if compressed { path.with_extension("") } else { path.to_path_buf() };
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The whole file as text, uncompressed, without a byte order mark.
fn content(path: &Path) -> Result<String, ModelError> {
    let file = File::open(path).map_err(ModelError::io(path))?;
    let mut bytes = Vec::new();
    match compression(path) {
        Compression::Gzip => MultiGzDecoder::new(file).take(LARGEST_FILE + 1).read_to_end(&mut bytes),
        Compression::Bzip2 => MultiBzDecoder::new(file).take(LARGEST_FILE + 1).read_to_end(&mut bytes),
        Compression::Zstd => {
            zstd::Decoder::new(file).and_then(|decoder| decoder.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        }
        Compression::None => file.take(LARGEST_FILE + 1).read_to_end(&mut bytes),
    }
    .map_err(ModelError::io(path))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(ModelError::malformed(path, format!("it holds more than {LARGEST_FILE} bytes of text: split it")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        ModelError::malformed(path, format!("not UTF-8 text: byte {offset} begins no character"))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

fn json_lines(path: &Path, text: &str, field: Option<&str>) -> Result<Vec<Document>, ModelError> {
    let mut records = Records::new(path, field);
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("line {}", number + 1);
        let value = serde_json::from_str(line);
        let value = value.map_err(|error| ModelError::malformed(path, format!("{place} is not JSON: {error}")))?;
        records.object(&place, value)?;
    }
    Ok(records.documents)
}

fn json(path: &Path, text: &str, field: Option<&str>) -> Result<Vec<Document>, ModelError> {
    let value = serde_json::from_str(text);
    let value = value.map_err(|error| ModelError::malformed(path, format!("not JSON: {error}")))?;
    let Value::Array(elements) = value else {
        return Err(ModelError::malformed(
            path,
            "its JSON is not a list of objects (for one object a line, name it .jsonl)",
        ));
    };
    let mut records = Records::new(path, field);
    for (number, element) in elements.into_iter().enumerate() {
        records.object(&format!("element {}", number + 1), element)?;
    }
    Ok(records.documents)
}

fn csv(path: &Path, text: &str, field: Option<&str>) -> Result<Vec<Document>, ModelError> {
    let malformed = |error: csv::Error| ModelError::malformed(path, format!("not CSV: {error}"));
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header: Vec<String> = reader.headers().map_err(malformed)?.iter().map(str::to_owned).collect();
    let column = field::choose(path, "the first row", header.iter().map(String::as_str), field)?;
    let index = header.iter().position(|name| *name == column).unwrap_or_default();
    let rows = reader.records().map(|row| {
        let row = row.map_err(malformed)?;
        Ok(Document::Text(row.get(index).unwrap_or_default().to_owned()))
    });
    rows.collect()
}
