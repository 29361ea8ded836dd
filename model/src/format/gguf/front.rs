//! The front matter of a file to be written: the layout of [`super::container`] from the other side.

use super::TensorType;
use crate::ModelError;
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// Where tensors begin: multiples of this.
const ALIGNMENT: usize = 32;

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
    /// Type and value as another file holds them.
    Copied(Vec<u8>),
}

/// Keys and values in the order of the file.
pub(super) type Entries = Vec<(String, Entry)>;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Name in the file.
    pub(super) name: String,
    /// Slowest axis first.
    pub(super) shape: Vec<usize>,
    pub(super) kind: TensorType,
}

impl Plan {
    fn bytes(&self) -> usize {
        self.kind.bytes(self.shape.iter().product()).expect("a tensor that was read has a size")
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_list<T>(out: &mut Vec<u8>, kind: u32, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    for item in items {
        put(out, item);
    }
}

impl Entry {
    fn put(&self, out: &mut Vec<u8>) {
        let mut typed = |kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U32(value) => typed(4, &value.to_le_bytes()),
            Self::F32(value) => typed(6, &value.to_le_bytes()),
            Self::Bool(value) => typed(7, &[u8::from(*value)]),
            Self::Text(text) => {
                typed(8, &[]);
                put_text(out, text);
            }
            Self::Texts(texts) => put_list(out, 8, texts, |out, text| put_text(out, text)),
            Self::Ints(values) => put_list(out, 5, values, |out, value| out.extend(value.to_le_bytes())),
            Self::Floats(values) => put_list(out, 6, values, |out, value| out.extend(value.to_le_bytes())),
            Self::Copied(bytes) => out.extend(bytes),
        }
    }
}

/// Everything before the data, padded to where it begins.
fn front(entries: &[(String, Entry)], tensors: &[Plan]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        put_text(&mut out, key);
        value.put(&mut out);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|extent| out.extend((*extent as u64).to_le_bytes()));
        out.extend(tensor.kind.number().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// Writes a file tensor by tensor: `data(index, write)` hands the bytes of `tensors[index]` to `write`, in as many parts
/// as it likes. The file has the name `path` with `.writing` behind it; whoever asked for it gives it its own name.
pub(super) fn write(
    path: &Path,
    entries: &[(String, Entry)],
    tensors: &[Plan],
    mut data: impl FnMut(usize, &mut dyn FnMut(&[u8]) -> Result<(), ModelError>) -> Result<(), ModelError>,
) -> Result<PathBuf, ModelError> {
    let temporary = temporary_of(path);
    let result = (|| {
        let mut file = BufWriter::new(File::create(&temporary).map_err(ModelError::io(&temporary))?);
        file.write_all(&front(entries, tensors)).map_err(ModelError::io(&temporary))?;
        for (index, tensor) in tensors.iter().enumerate() {
            let mut written = 0;
            data(index, &mut |bytes| {
                written += bytes.len();
                file.write_all(bytes).map_err(ModelError::io(&temporary))
            })?;
            if written != tensor.bytes() {
                let what = format!("gives {written} bytes, but its shape {:?} needs {}", tensor.shape, tensor.bytes());
                return Err(ModelError::Tensor { tensor: tensor.name.clone(), what });
            }
            let padding = written.next_multiple_of(ALIGNMENT) - written;
            file.write_all(&[0; ALIGNMENT][..padding]).map_err(ModelError::io(&temporary))?;
        }
        let file = file.into_inner().map_err(|error| ModelError::io(&temporary)(error.into_error()))?;
        file.sync_all().map_err(ModelError::io(&temporary))
    })();
    if let Err(error) = result {
        let _ = fs::remove_file(&temporary); // It is incomplete; the failure is what matters.
        return Err(error);
    }
    Ok(temporary)
}

fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".writing");
    PathBuf::from(name)
}
