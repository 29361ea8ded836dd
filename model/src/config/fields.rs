//! Typed access to the keys of `config.json`, and the rule for keys nobody asked for.
//!
//! A key that is read is understood. A key that is never read is harmless if it is null or false, or if nothing in its
//! name hints at arithmetic; else it is refused by name ([`Fields::refuse_unread`]). So a setting that would change the
//! results, and that this decoder doesn't know, can't be dropped in silence, while tools may leave notes of their own.

use crate::ModelError;
use serde_json::{Map, Value};
use std::{cell::RefCell, collections::BTreeSet, path::Path};

/// Parts of names of settings that change what a decoder computes.
const ARITHMETIC: [&str; 25] = [
    "act_fn",
    "activation",
    "adapter",
    "alibi",
    "attention",
    "attn",
    "bias",
    "clip",
    "compress",
    "expert",
    "hidden_act",
    "layer_types",
    "logit",
    "lora",
    "moe",
    "multiplier",
    "norm",
    "per_layer",
    "quantiz",
    "residual",
    "rope",
    "rotary",
    "scal",
    "softcap",
    "window",
];

/// Names that match [`ARITHMETIC`] and yet change nothing at inference.
const HARMLESS: [&str; 8] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "attention_dropout",
    "attn_implementation",
    "attn_pdrop",
    "full_attn_mod", // in Phi-4-mini's file; no model class reads it
    "output_attentions",
];

/// A JSON object of `config.json` that remembers which of its keys were read.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a Path,
    /// Where the object lies in the file, as a prefix of its keys: empty or `rope_scaling.`.
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value, path: &'a Path) -> Result<Self, ModelError> {
        let object = value.as_object().ok_or_else(|| ModelError::malformed(path, "is not a JSON object"))?;
        Ok(Self { object, path, prefix: String::new(), read: RefCell::default() })
    }

    /// The value of `key`; null counts as absent.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether `key` is there at all, null included.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// The object under `key`.
    pub(super) fn nested(&self, key: &str) -> Result<Option<Self>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.wrong(key, value, "an object"))?;
        Ok(Some(Self { object, path: self.path, prefix: format!("{}{key}.", self.prefix), read: RefCell::default() }))
    }

    /// A positive whole number up to `limit`.
    pub(super) fn size(&self, key: &str, limit: usize) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match size {
            Some(size) if (1..=limit).contains(&size) => Ok(Some(size)),
            _ => Err(self.wrong(key, value, &format!("a whole number between 1 and {limit}"))),
        }
    }

    /// A positive whole number that the file has to state.
    pub(super) fn required_size(&self, key: &str, limit: usize) -> Result<usize, ModelError> {
        self.size(key, limit)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number, zero included.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.map(Some).ok_or_else(|| self.wrong(key, value, "a whole number"))
    }

    /// A finite positive number.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => Err(self.wrong(key, value, "a positive number")),
        }
    }

    /// A finite positive number that the file has to state.
    pub(super) fn required_positive(&self, key: &str) -> Result<f64, ModelError> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A list of `count` finite positive numbers.
    pub(super) fn positives(&self, key: &str, count: usize) -> Result<Vec<f64>, ModelError> {
        let value = self.value(key).ok_or_else(|| self.missing(key))?;
        let positive = |v: &Value| v.as_f64().filter(|v| v.is_finite() && *v > 0.0);
        value
            .as_array()
            .and_then(|list| list.iter().map(positive).collect::<Option<Vec<f64>>>())
            .filter(|list| list.len() == count)
            .ok_or_else(|| self.malformed(key, &format!("has to be a list of {count} positive numbers")))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a text"))
    }

    /// A token id or a list of them.
    pub(super) fn tokens(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        list.iter()
            .map(id)
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids"))
    }

    /// Refuses `key` with its value.
    pub(super) fn unsupported(&self, key: &str) -> ModelError {
        let value = self.object.get(key).map_or_else(String::new, |value| format!(" = {}", shortened(value)));
        self.unsupported_feature(format!("`{}{key}`{value}", self.prefix))
    }

    /// Refuses a feature described in words.
    pub(super) fn unsupported_feature(&self, what: String) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), what }
    }

    /// `key` is wrong: `what`.
    pub(super) fn malformed(&self, key: &str, what: &str) -> ModelError {
        ModelError::malformed(self.path, format!("`{}{key}` {what}", self.prefix))
    }

    pub(super) fn missing(&self, key: &str) -> ModelError {
        self.malformed(key, "is missing")
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> ModelError {
        self.malformed(key, &format!("is {}, but has to be {wanted}", shortened(value)))
    }

    /// Refuses keys that were not read and whose names hint at arithmetic, unless null or false.
    pub(super) fn refuse_unread(&self) -> Result<(), ModelError> {
        let arithmetic = |key: &str| ARITHMETIC.iter().any(|part| key.contains(part)) && !HARMLESS.contains(&key);
        self.refuse_unread_where(arithmetic)
    }

    /// Refuses every key that was not read, unless null or false.
    pub(super) fn refuse_all_unread(&self) -> Result<(), ModelError> {
        self.refuse_unread_where(|_| true)
    }

    fn refuse_unread_where(&self, suspect: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let read = self.read.borrow();
        let idle = |value: &Value| value.is_null() || value == &Value::Bool(false);
        match self.object.iter().find(|(key, value)| !read.contains(*key) && !idle(value) && suspect(key)) {
            Some((key, _)) => Err(self.unsupported(key)),
            None => Ok(()),
        }
    }
}

/// The value as JSON, cut to a length that fits into a sentence.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
