//! Single settings of a `quantization_config`, with errors that name the file and the setting.

use crate::ModelError;
use serde_json::Value;
use std::path::Path;

/// A JSON object of settings in a file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) object: &'a Value,
    pub(super) path: &'a Path,
}

impl<'a> Fields<'a> {
    /// The first of `keys` that is there and not null.
    pub(super) fn any(&self, keys: &[&str]) -> Result<Option<&'a Value>, ModelError> {
        if !self.object.is_object() {
            return Err(ModelError::malformed(self.path, "the quantization settings are no JSON object"));
        }
        Ok(keys.iter().find_map(|&key| self.object.get(key)).filter(|value| !value.is_null()))
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.any(&[key])? {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.malformed(key, value)),
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.any(&[key])? {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.malformed(key, value)),
        }
    }

    /// A list of texts, empty where there is none.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, ModelError> {
        let Some(value) = self.any(&[key])? else { return Ok(Vec::new()) };
        let texts =
            value.as_array().and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
        texts.ok_or_else(|| self.malformed(key, value))
    }

    pub(super) fn malformed(&self, key: &str, value: &Value) -> ModelError {
        ModelError::malformed(self.path, format!("quantization setting `{key}` is {value}"))
    }

    pub(super) fn missing(&self, key: &str) -> ModelError {
        ModelError::malformed(self.path, format!("the quantization setting `{key}` is missing"))
    }

    pub(super) fn unsupported(&self, what: String) -> ModelError {
        ModelError::Unsupported { path: self.path.into(), what }
    }
}

/// Columns that share a scale.
#[derive(Clone, Copy)]
pub(super) enum GroupSize {
    /// One group a row, stated as -1.
    Row,
    Columns(usize),
}

impl GroupSize {
    /// As a spec has it: `None` is one group a row.
    pub(super) fn columns(self) -> Option<usize> {
        match self {
            Self::Row => None,
            Self::Columns(columns) => Some(columns),
        }
    }
}

/// The group size, if it is stated; the first of `keys` names it in complaints.
pub(super) fn group_size(fields: &Fields<'_>, keys: &[&str]) -> Result<Option<GroupSize>, ModelError> {
    match fields.any(keys)? {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(-1) => Ok(Some(GroupSize::Row)),
            Some(size @ 1..) => Ok(Some(GroupSize::Columns(size as usize))),
            _ => Err(fields.malformed(keys[0], value)),
        },
    }
}
