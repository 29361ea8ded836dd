//! The GGUF container: header, metadata, tensor table.
//!
//! ```text
//! "GGUF"  u32 version (2, 3)  u64 tensors  u64 entries
//! entry   = string key, u32 type, value          string = u64 length, bytes
//! tensor  = string name, u32 dimensions, u64 extent x dimensions (fastest first), u32 type, u64 offset
//! padding to `general.alignment` (32), then the data that offsets count from
//! ```
//!
//! Own parser and not candle's: that one expands every array element to 32 bytes, mends invalid UTF-8 silently and lets
//! a second entry of the same name win.

use super::TensorType;
use crate::ModelError;
use std::{collections::BTreeMap, ops::Range, path::Path};

/// More entries or tensors than this is a broken file, not a model.
const MOST_ENTRIES: u64 = 1 << 17;
/// As many axes as ggml knows.
const MOST_DIMENSIONS: u32 = 4;

/// A metadata value. Arrays stay in the file; only where they lie is kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Any integer type.
    Integer(i128),
    /// Single precision.
    F32(f32),
    /// Double precision.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// `count` elements of `kind` in these bytes of the file.
    Array { kind: u32, count: usize, bytes: Range<usize> },
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::F32(value) => write!(f, "{value}"),
            Self::F64(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "`{}`", text.chars().take(60).collect::<String>()),
            Self::Array { kind, count, .. } => write!(f, "a list of {count} values of metadata type {kind}"),
        }
    }
}

/// A row of the tensor table.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    /// Name in the file.
    pub(super) name: String,
    /// Slowest axis first.
    pub(super) shape: Vec<usize>,
    /// Block type.
    pub(super) kind: TensorType,
    /// Where its blocks lie in the file.
    pub(super) bytes: Range<usize>,
}

/// The parsed front matter of a file.
#[derive(Debug)]
pub(super) struct Container {
    /// All entries by key.
    pub(super) metadata: BTreeMap<String, Value>,
    /// Where the type and value of each entry lie in the file, in file order.
    pub(super) entries: Vec<(String, Range<usize>)>,
    /// The tensor table in file order.
    pub(super) tensors: Vec<TensorInfo>,
}

impl Container {
    /// Parses `file`, the whole content of the file at `path`. Nothing is allocated that the file's length doesn't cover.
    pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Self, ModelError> {
        let mut reader = Reader { path, file, at: 0 };
        if reader.take(4, "the magic number")? != b"GGUF" {
            return Err(ModelError::malformed(path, "the file doesn't begin with `GGUF`"));
        }
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(ModelError::Unsupported { path: path.into(), what: format!("GGUF version {version}") });
        }
        let tensors = reader.count("tensors")?;
        let entries = reader.count("metadata entries")?;
        let (metadata, entries) = reader.metadata(entries)?;
        let tensors = reader.tensor_table(tensors, alignment(path, &metadata)?)?;
        Ok(Self { metadata, entries, tensors })
    }
}

/// `general.alignment`, 32 unless given.
fn alignment(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<usize, ModelError> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Integer(value)) if *value >= 8 && *value <= 1 << 20 && value % 8 == 0 => Ok(*value as usize),
        Some(other) => Err(ModelError::malformed(
            path,
            format!("`general.alignment` is {other}; it must be a multiple of 8 between 8 and 1048576"),
        )),
    }
}

/// Names of the types that are known but not read, for the message.
fn foreign_type(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {number}"),
    };
    name.to_owned()
}

/// Bytes of one value of a fixed-size metadata type.
fn fixed_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Decodes a fixed-size value; `bytes` has the size that [`fixed_size`] says.
fn fixed_value(kind: u32, bytes: &[u8]) -> Option<Value> {
    let mut padded = [0; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(padded);
    Some(match kind {
        0 | 2 | 4 | 10 => Value::Integer(unsigned.into()),
        1 => Value::Integer((unsigned as i8).into()),
        3 => Value::Integer((unsigned as i16).into()),
        5 => Value::Integer((unsigned as i32).into()),
        11 => Value::Integer((unsigned as i64).into()),
        6 => Value::F32(f32::from_bits(unsigned as u32)),
        12 => Value::F64(f64::from_bits(unsigned)),
        7 if unsigned <= 1 => Value::Bool(unsigned == 1),
        _ => return None,
    })
}

/// Reads forward and never past the end.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    fn broken(&self, what: impl Into<String>) -> ModelError {
        ModelError::malformed(self.path, what)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], ModelError> {
        let rest = &self.file[self.at..];
        if count > rest.len() {
            return Err(self.broken(format!(
                "{what} at byte {} needs {count} bytes, but the file ends after {}; it may be cut short",
                self.at,
                rest.len()
            )));
        }
        self.at += count;
        Ok(&rest[..count])
    }

    fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4, what)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn count(&mut self, what: &str) -> Result<usize, ModelError> {
        let count = self.u64(what)?;
        if count > MOST_ENTRIES {
            return Err(self.broken(format!("the file claims {count} {what}; more than {MOST_ENTRIES} can't be right")));
        }
        Ok(count as usize)
    }

    /// A string where it lies.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, ModelError> {
        let start = self.at;
        let length = usize::try_from(self.u64(what)?).unwrap_or(usize::MAX);
        std::str::from_utf8(self.take(length, what)?)
            .map_err(|_| self.broken(format!("{what} at byte {start} is not UTF-8")))
    }

    #[allow(clippy::type_complexity, reason = "two fields of the container, made together")]
    fn metadata(
        &mut self,
        entries: usize,
    ) -> Result<(BTreeMap<String, Value>, Vec<(String, Range<usize>)>), ModelError> {
        let (mut metadata, mut places) = (BTreeMap::new(), Vec::new());
        for _ in 0..entries {
            let key = self.text("a metadata key")?;
            let start = self.at;
            let value = self.value(key)?;
            places.push((key.to_owned(), start..self.at));
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(self.broken(format!("the metadata key `{key}` occurs twice")));
            }
        }
        Ok((metadata, places))
    }

    fn value(&mut self, key: &str) -> Result<Value, ModelError> {
        let kind = self.u32(key)?;
        match kind {
            8 => Ok(Value::Text(self.text(key)?.to_owned())),
            9 => self.array(key),
            _ => {
                let size = fixed_size(kind)
                    .ok_or_else(|| self.broken(format!("`{key}` has the unknown metadata type {kind}")))?;
                let bytes = self.take(size, key)?;
                fixed_value(kind, bytes).ok_or_else(|| self.broken(format!("`{key}` is neither true nor false")))
            }
        }
    }

    fn array(&mut self, key: &str) -> Result<Value, ModelError> {
        let kind = self.u32(key)?;
        let count = usize::try_from(self.u64(key)?).unwrap_or(usize::MAX);
        let start = self.at;
        if let Some(size) = fixed_size(kind) {
            let length = count.saturating_mul(size);
            self.take(length, key)?;
        } else if kind == 8 {
            // A string takes 8 bytes at least, so a wild count ends at the end of the file.
            for _ in 0..count {
                let length = usize::try_from(self.u64(key)?).unwrap_or(usize::MAX);
                self.take(length, key)?;
            }
        } else {
            return Err(self.broken(format!("`{key}` is an array of metadata type {kind}, which is not known")));
        }
        Ok(Value::Array { kind, count, bytes: start..self.at })
    }

    fn tensor_table(&mut self, count: usize, alignment: usize) -> Result<Vec<TensorInfo>, ModelError> {
        let mut rows = Vec::new();
        for _ in 0..count {
            rows.push(self.tensor_row()?);
        }
        let data = self.at.next_multiple_of(alignment);
        rows.into_iter().map(|row| self.place(row, data, alignment)).collect()
    }

    /// Name, shape, type and offset as the file has them.
    fn tensor_row(&mut self) -> Result<(String, Vec<usize>, TensorType, u64), ModelError> {
        let name = self.text("a tensor name")?.to_owned();
        let dimensions = self.u32(&name)?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(self.broken(format!("tensor `{name}` has {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(usize::try_from(self.u64(&name)?).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let number = self.u32(&name)?;
        let kind = TensorType::of_number(number).ok_or_else(|| ModelError::Unsupported {
            path: self.path.into(),
            what: format!("tensor type {} (of `{name}`)", foreign_type(number)),
        })?;
        let offset = self.u64(&name)?;
        Ok((name, shape, kind, offset))
    }

    /// Checks that a tensor's blocks lie inside the file.
    fn place(
        &self,
        (name, shape, kind, offset): (String, Vec<usize>, TensorType, u64),
        data: usize,
        alignment: usize,
    ) -> Result<TensorInfo, ModelError> {
        let row = shape[shape.len() - 1];
        if shape.contains(&0) || row % kind.columns() != 0 {
            return Err(self.broken(format!(
                "tensor `{name}` has the shape {shape:?}, which {} blocks of {} can't fill",
                kind.name(),
                kind.columns()
            )));
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if offset % alignment != 0 {
            return Err(self.broken(format!("tensor `{name}` begins at {offset}, not a multiple of {alignment}")));
        }
        let range = shape
            .iter()
            .try_fold(1_usize, |product, extent| product.checked_mul(*extent))
            .and_then(|elements| kind.bytes(elements))
            .and_then(|length| Some((data.checked_add(offset)?, length)))
            .and_then(|(start, length)| Some(start..start.checked_add(length)?))
            .filter(|range| range.end <= self.file.len());
        let bytes = range.ok_or_else(|| {
            self.broken(format!(
                "tensor `{name}` of shape {shape:?} at offset {offset} ends beyond the file's {} bytes; it may be cut short",
                self.file.len()
            ))
        })?;
        Ok(TensorInfo { name, shape, kind, bytes })
    }
}
