//! Typed access to the metadata, with the key in every complaint.

use super::container::{Reader, Value};
use crate::ModelError;
use std::{collections::BTreeMap, path::Path};

/// The metadata of a file together with the bytes that its arrays lie in.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a [u8],
    pub(super) entries: &'a BTreeMap<String, Value>,
}

impl<'a> Metadata<'a> {
    fn wrong(&self, key: &str, value: &Value, expected: &str) -> ModelError {
        ModelError::malformed(self.path, format!("`{key}` is {value}, but {expected} is needed"))
    }

    /// The complaint about a key that must be there.
    pub(super) fn missing(&self, key: &str) -> ModelError {
        ModelError::malformed(self.path, format!("the metadata key `{key}` is missing"))
    }

    /// A setting that is refused, by name and value.
    pub(super) fn unsupported(&self, what: impl Into<String>) -> ModelError {
        ModelError::Unsupported { path: self.path.into(), what: what.into() }
    }

    /// A text, if the key is there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }

    /// A number that isn't negative, if the key is there.
    pub(super) fn size(&self, key: &str) -> Result<Option<u64>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Integer(value)) if u64::try_from(*value).is_ok() => Ok(Some(*value as u64)),
            Some(other) => Err(self.wrong(key, other, "a whole number of at least 0")),
        }
    }

    /// A number that isn't negative.
    pub(super) fn required_size(&self, key: &str) -> Result<u64, ModelError> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number, if the key is there. Single precision becomes the shortest decimal that means the same number,
    /// so that 1e-5 stays 1e-5.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::F32(value)) if value.is_finite() => Ok(Some(shortest(*value))),
            Some(Value::F64(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::Integer(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(self.wrong(key, other, "a finite number")),
        }
    }

    /// True or false, if the key is there.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A list of texts, if the key is there.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array { kind: 8, count, bytes }) => {
                let mut reader = Reader { path: self.path, file: &self.file[..bytes.end], at: bytes.start };
                (0..*count).map(|_| reader.text(key)).collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(self.wrong(key, other, "a list of texts")),
        }
    }

    /// A list of 32-bit values of one of `kinds`, as bits, if the key is there.
    fn words(&self, key: &str, kinds: &[u32], expected: &str) -> Result<Option<Vec<u32>>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, bytes, .. }) if kinds.contains(kind) => {
                let (words, _) = self.file[bytes.clone()].as_chunks::<4>();
                Ok(Some(words.iter().map(|word| u32::from_le_bytes(*word)).collect()))
            }
            Some(other) => Err(self.wrong(key, other, expected)),
        }
    }

    /// A list of 32-bit integers, if the key is there.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<u32>>, ModelError> {
        self.words(key, &[4, 5], "a list of 32-bit integers")
    }

    /// A list of single-precision numbers, if the key is there.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let words = self.words(key, &[6], "a list of single-precision numbers")?;
        Ok(words.map(|words| words.into_iter().map(f32::from_bits).collect()))
    }
}

/// The double with the shortest decimal that rounds to `value` in single precision.
pub(super) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
