//! Statistics on disk: one safetensors file for any number of layers.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `<module>.gram` | float32 | `[width, width]` |
//! | `<module>.sum_absolute` | float64 | `[width]` |
//! | `<module>.sum_square` | float64 | `[width]` |
//! | `<module>.tokens` | uint64 | `[1]` |
//!
//! `<module>` is the first linear that reads the input. The file's metadata names the layout and its version.

use crate::{CalibrationError, LayerStatistics};
use safetensors::{Dtype, SafeTensors, View, tensor::serialize_to_file};
use std::{borrow::Cow, collections::HashMap, fs, path::Path};

const LAYOUT: (&str, &str) = ("caliper_statistics", "1");

/// Writes the statistics of modules (name, statistics) to `path`.
pub fn save(path: &Path, layers: &[(String, &LayerStatistics)]) -> Result<(), CalibrationError> {
    let tensors = layers.iter().flat_map(|(module, statistics)| {
        let LayerStatistics { width, tokens, gram, sum_absolute, sum_square, drift: _ } = *statistics;
        let tokens = (*tokens as u64).to_le_bytes().to_vec();
        [
            (format!("{module}.gram"), Numbers::new(Dtype::F32, vec![*width, *width], bytemuck::cast_slice(gram))),
            (
                format!("{module}.sum_absolute"),
                Numbers::new(Dtype::F64, vec![*width], bytemuck::cast_slice(sum_absolute)),
            ),
            (format!("{module}.sum_square"), Numbers::new(Dtype::F64, vec![*width], bytemuck::cast_slice(sum_square))),
            (format!("{module}.tokens"), Numbers { dtype: Dtype::U64, shape: vec![1], bytes: Cow::Owned(tokens) }),
        ]
    });
    let metadata = HashMap::from([(LAYOUT.0.to_owned(), LAYOUT.1.to_owned())]);
    serialize_to_file(tensors, Some(metadata), path).map_err(|error| wrong(path, error.to_string()))
}

/// Reads what [`save`] wrote, sorted by module.
pub fn load(path: &Path) -> Result<Vec<(String, LayerStatistics)>, CalibrationError> {
    let bytes = fs::read(path).map_err(|error| wrong(path, error.to_string()))?;
    let malformed = |error: safetensors::SafeTensorError| wrong(path, format!("not a statistics file: {error}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(malformed)?;
    let version = header.metadata().as_ref().and_then(|metadata| metadata.get(LAYOUT.0));
    if version.map(String::as_str) != Some(LAYOUT.1) {
        return Err(wrong(path, format!("not a statistics file of layout {}", LAYOUT.1)));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(malformed)?;
    let mut names: Vec<&str> = tensors.names().into_iter().filter_map(|name| name.strip_suffix(".gram")).collect();
    names.sort_unstable();
    names.into_iter().map(|module| Ok((module.to_owned(), layer(path, &tensors, module)?))).collect()
}

fn layer(path: &Path, tensors: &SafeTensors<'_>, module: &str) -> Result<LayerStatistics, CalibrationError> {
    let read = |part: &str, dtype: Dtype, shape: &[usize]| {
        let name = format!("{module}.{part}");
        let tensor = tensors.tensor(&name).map_err(|error| wrong(path, format!("tensor `{name}`: {error}")))?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            let what = format!("is {:?} {:?}, not {dtype:?} {shape:?}", tensor.dtype(), tensor.shape());
            return Err(wrong(path, format!("tensor `{name}` {what}")));
        }
        Ok(tensor.data())
    };
    let gram = tensors.tensor(&format!("{module}.gram"));
    let width = gram.ok().and_then(|gram| gram.shape().first().copied()).unwrap_or(0);
    let tokens = read("tokens", Dtype::U64, &[1])?;
    Ok(LayerStatistics {
        width,
        tokens: tokens.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)),
        gram: numbers(read("gram", Dtype::F32, &[width, width])?, f32::from_le_bytes),
        sum_absolute: numbers(read("sum_absolute", Dtype::F64, &[width])?, f64::from_le_bytes),
        sum_square: numbers(read("sum_square", Dtype::F64, &[width])?, f64::from_le_bytes),
        drift: None,
    })
}

fn numbers<T, const N: usize>(bytes: &[u8], number: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}

fn wrong(path: &Path, what: String) -> CalibrationError {
    CalibrationError::Statistics { path: path.to_path_buf(), what }
}

/// A tensor to be written.
struct Numbers<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Numbers<'a> {
    fn new(dtype: Dtype, shape: Vec<usize>, bytes: &'a [u8]) -> Self {
        Self { dtype, shape, bytes: Cow::Borrowed(bytes) }
    }
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Accumulator;

    fn example(width: usize) -> LayerStatistics {
        let mut accumulator = Accumulator::new(width, kernels::Compute::F32);
        accumulator.add(&(0..3 * width).map(|i| (i as f32).sin()).collect::<Vec<_>>());
        accumulator.finish()
    }

    #[test]
    fn what_is_saved_is_loaded_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.safetensors");
        let (a, b) = (example(7), example(1));
        save(&path, &[("b.down_proj".into(), &b), ("a.q_proj".into(), &a)]).unwrap();
        assert_eq!(load(&path).unwrap(), [("a.q_proj".into(), a), ("b.down_proj".into(), b)]);
    }

    #[test]
    fn damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.safetensors");
        assert!(load(&path).unwrap_err().to_string().contains("statistics.safetensors"));
        save(&path, &[("a".into(), &example(3))]).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(load(&path).is_err(), "cut at {length}");
        }
        let text = String::from_utf8_lossy(&whole).into_owned();
        assert!(text.contains("a.sum_square"));
        let renamed: Vec<u8> = {
            let at = text.find("a.sum_square").unwrap();
            let mut bytes = whole.clone();
            bytes[at] = b'z';
            bytes
        };
        fs::write(&path, renamed).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("a.sum_square"));
    }
}
