//! Files of records, every field of them: data sets of questions rather than running text.
//!
//! | ending | records |
//! |---|---|
//! | `.jsonl`, `.ndjson` | one object a line |
//! | `.json` | a list of objects |
//! | `.csv` | one a row; names from the first row, or given ones where it holds none of them |
//! | `.parquet` | one a row |
//! | `.txt`, `.lst` | so many lines a record, under given names |
//!
//! Each but Parquet may be compressed (`.gz`, `.bz2` or `.zst` behind the ending).

use super::{content, ending, parquet};
use crate::ModelError;
use serde_json::{Map, Value};
use std::path::Path;

/// A record's fields by name.
pub type Record = Map<String, Value>;

/// What a file itself doesn't say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout<'a> {
    /// Names of a CSV file's columns, for files without a first row of names; such a row is recognized by the first name.
    pub columns: &'a [String],
    /// Names of a text file's lines.
    pub lines: &'a [String],
}

/// The records of `path`, in order.
pub fn records(path: &Path, layout: Layout<'_>) -> Result<Vec<Record>, ModelError> {
    match ending(path).as_str() {
        "parquet" => parquet::records(path),
        "jsonl" | "ndjson" => json_lines(path, &content(path)?),
        "json" => json(path, &content(path)?),
        "csv" => csv(path, &content(path)?, layout.columns),
        "txt" | "lst" if !layout.lines.is_empty() => lines(path, &content(path)?, layout.lines),
        other => {
            let what = format!("records come from JSON lines, JSON, CSV or Parquet, and its ending is `{other}`");
            Err(ModelError::malformed(path, what))
        }
    }
}

fn object(path: &Path, place: &str, value: Value) -> Result<Record, ModelError> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(ModelError::malformed(path, format!("{place} is not an object with named fields"))),
    }
}

fn json_lines(path: &Path, text: &str) -> Result<Vec<Record>, ModelError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let record = |(number, line): (usize, &str)| {
        let place = format!("line {}", number + 1);
        let value = serde_json::from_str(line)
            .map_err(|error| ModelError::malformed(path, format!("{place} is not JSON: {error}")))?;
        object(path, &place, value)
    };
    lines.map(record).collect()
}

fn json(path: &Path, text: &str) -> Result<Vec<Record>, ModelError> {
    let value =
        serde_json::from_str(text).map_err(|error| ModelError::malformed(path, format!("not JSON: {error}")))?;
    let Value::Array(elements) = value else {
        return Err(ModelError::malformed(path, "its JSON is not a list of objects"));
    };
    let elements = elements.into_iter().enumerate();
    elements.map(|(number, element)| object(path, &format!("element {}", number + 1), element)).collect()
}

fn csv(path: &Path, text: &str, columns: &[String]) -> Result<Vec<Record>, ModelError> {
    let malformed = |error: csv::Error| ModelError::malformed(path, format!("not CSV: {error}"));
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    let mut rows = reader.records().peekable();
    let given = match rows.peek() {
        Some(Ok(first)) => {
            columns.first().is_some_and(|name| first.iter().all(|cell| !cell.trim().eq_ignore_ascii_case(name)))
        }
        _ => false,
    };
    let names: Vec<String> = if given {
        columns.to_vec()
    } else {
        match rows.next() {
            Some(first) => first.map_err(malformed)?.iter().map(str::to_owned).collect(),
            None => return Ok(Vec::new()),
        }
    };
    let record = |row: Result<csv::StringRecord, csv::Error>| {
        let row = row.map_err(malformed)?;
        if row.len() != names.len() {
            let what = format!("a row has {} columns, but there are names for {}", row.len(), names.len());
            return Err(ModelError::malformed(path, what));
        }
        Ok(names.iter().cloned().zip(row.iter().map(Value::from)).collect())
    };
    rows.map(record).collect()
}

fn lines(path: &Path, text: &str, names: &[String]) -> Result<Vec<Record>, ModelError> {
    let lines: Vec<&str> = text.lines().collect();
    if !lines.len().is_multiple_of(names.len()) {
        let what = format!("it has {} lines, not a multiple of the {} that make a record", lines.len(), names.len());
        return Err(ModelError::malformed(path, what));
    }
    let record = |lines: &[&str]| names.iter().cloned().zip(lines.iter().map(|line| Value::from(*line))).collect();
    Ok(lines.chunks_exact(names.len()).map(record).collect())
}
