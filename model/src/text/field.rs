//! From a record with named fields to a document: which field, and what its value says.

use super::Document;
use crate::ModelError;
use serde_json::{Map, Value};
use std::path::Path;

/// The fields looked for when none is named, in this order.
const USUAL: [&str; 4] = ["text", "content", "messages", "conversations"];

/// The field to read: `wanted`, or the first usual one there is.
pub(super) fn choose<'a>(
    path: &Path,
    place: &str,
    names: impl Iterator<Item = &'a str> + Clone,
    wanted: Option<&str>,
) -> Result<String, ModelError> {
    let candidates = wanted.map_or(USUAL.to_vec(), |wanted| vec![wanted]);
    let found = candidates.iter().find(|candidate| names.clone().any(|name| name == **candidate));
    found.map(|name| (*name).to_owned()).ok_or_else(|| {
        let there: Vec<String> = names.map(|name| format!("`{name}`")).collect();
        let missing = candidates.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let there = if there.is_empty() { "nothing".into() } else { there.join(", ") };
        ModelError::malformed(path, format!("{place} has no field {missing}; there is {there}: name one of them"))
    })
}

/// Gathers the documents of a file's records. The field is chosen at the first record.
pub(super) struct Records<'a> {
    path: &'a Path,
    field: Option<String>,
    pub(super) documents: Vec<Document>,
}

impl<'a> Records<'a> {
    pub(super) fn new(path: &'a Path, field: Option<&str>) -> Self {
        Self { path, field: field.map(str::to_owned), documents: Vec::new() }
    }

    /// Adds the document of one record; `place` says where it stands in the file.
    pub(super) fn object(&mut self, place: &str, record: Value) -> Result<(), ModelError> {
        let Value::Object(mut fields) = record else {
            let what = format!("{place} is {}, not an object with named fields", kind(&record));
            return Err(ModelError::malformed(self.path, what));
        };
        let names = fields.keys().map(String::as_str);
        let field = choose(self.path, place, names, self.field.as_deref())?;
        let value = fields.remove(&field).unwrap_or_default();
        self.value(place, &field, value)?;
        self.field = Some(field);
        Ok(())
    }

    /// Adds the document that `value` of `field` says, if it isn't null.
    pub(super) fn value(&mut self, place: &str, field: &str, value: Value) -> Result<(), ModelError> {
        let document = match value {
            Value::Null => return Ok(()),
            Value::String(text) => Some(Document::Text(text)),
            Value::Array(messages) => messages.into_iter().map(message).collect::<Option<Vec<_>>>().map(Document::Chat),
            other => {
                let what = format!("field `{field}` in {place} is {}, not text or a list of messages", kind(&other));
                return Err(ModelError::malformed(self.path, what));
            }
        };
        self.documents.push(document.ok_or_else(|| {
            let what = format!(
                "field `{field}` in {place} is a list, but not one of messages with `role` and `content` (or `from` and `value`)"
            );
            ModelError::malformed(self.path, what)
        })?);
        Ok(())
    }
}

/// A message's role and content; `None` where it has another shape.
fn message(value: Value) -> Option<(String, String)> {
    let Value::Object(mut fields) = value else { return None };
    let role = take_string(&mut fields, "role").or_else(|| take_string(&mut fields, "from"))?;
    let content = match fields.remove("content").or_else(|| fields.remove("value"))? {
        Value::String(text) => text,
        // A message that only calls a tool has no content.
        Value::Null => String::new(),
        Value::Array(parts) => parts.into_iter().map(part).collect::<Option<String>>()?,
        _ => return None,
    };
    let role = match role.as_str() {
        "human" => "user".into(),
        "gpt" => "assistant".into(),
        _ => role,
    };
    Some((role, content))
}

/// The text of one part of a content that comes in parts: `{"type": "text", "text": ...}`.
fn part(value: Value) -> Option<String> {
    let Value::Object(mut fields) = value else { return None };
    take_string(&mut fields, "text")
}

fn take_string(fields: &mut Map<String, Value>, name: &str) -> Option<String> {
    match fields.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
