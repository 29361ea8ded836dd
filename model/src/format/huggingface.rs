//! Hugging Face folders: one or many safetensors files, memory-mapped, many of them named by an index.
//!
//! ```text
//! file     u64 length of the header, little-endian | header (JSON) | data
//! header   tensor name -> dtype, shape, data_offsets (begin, end) in the data; may hold "__metadata__"
//! index    model.safetensors.index.json: {"weight_map": {tensor name: file name}}
//! ```
//!
//! The header is parsed and checked by the `safetensors` crate: offsets cover the data without gaps and agree with
//! shapes and types. A file name in the index must be a plain name: it can't leave the folder.

use crate::{
    ModelError,
    format::{StoredType, TensorSource},
};
use half::{bf16, f16};
use kernels::stored::StoredMatrix;
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::{self, File},
    path::{Component, Path, PathBuf},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The memory-mapped safetensors files of a folder.
pub struct SafetensorsFolder {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Place>,
    /// The index, if the folder has one.
    index: Option<PathBuf>,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes in the file.
    bytes: std::ops::Range<usize>,
}

impl SafetensorsFolder {
    /// Maps `model.safetensors`, or every shard that `model.safetensors.index.json` names.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        let mut opened = Self { files: Vec::new(), tensors: BTreeMap::new(), index: None };
        if index.is_file() {
            opened.map_shards(folder, &index)?;
            opened.index = Some(index);
        } else if single.is_file() {
            opened.map(single)?;
        } else {
            let what = format!("has neither `{SINGLE}` nor `{INDEX}`; convert the weights to safetensors first");
            return Err(ModelError::malformed(folder, what));
        }
        Ok(opened)
    }

    /// The files the tensors are read from, the index among them.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.index.iter().chain(self.files.iter().map(|(path, _)| path)).map(PathBuf::as_path)
    }

    /// The bytes of tensor `name` as stored, with its safetensors type and shape.
    pub fn raw(&self, name: &str) -> Result<(Dtype, Vec<usize>, &[u8]), ModelError> {
        let place = self.place(name)?;
        Ok((place.dtype, place.shape.clone(), self.bytes(place)))
    }

    fn map_shards(&mut self, folder: &Path, index: &Path) -> Result<(), ModelError> {
        let shards = shard_names(index)?;
        let names: BTreeSet<&String> = shards.values().collect();
        for name in names {
            self.map(folder.join(name))?;
        }
        match shards.iter().find(|(tensor, _)| !self.tensors.contains_key(*tensor)) {
            Some((tensor, shard)) => {
                Err(ModelError::malformed(index, format!("places tensor `{tensor}` in `{shard}`, which lacks it")))
            }
            None => Ok(()),
        }
    }

    fn map(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let map = map(&path)?;
        let wrong = |error: safetensors::SafeTensorError| {
            let what = format!("not a whole safetensors file of {} bytes: {error}", map.len());
            ModelError::malformed(&path, what)
        };
        for (name, view) in SafeTensors::deserialize(&map).map_err(wrong)?.tensors() {
            let begin = view.data().as_ptr() as usize - map.as_ptr() as usize;
            let place = Place {
                file: self.files.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: begin..begin + view.data().len(),
            };
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(place),
                Entry::Occupied(entry) => {
                    let first = self.files[entry.get().file].0.display().to_string();
                    let what = format!("tensor `{}` is in `{first}` as well", entry.key());
                    return Err(ModelError::malformed(&path, what));
                }
            };
        }
        self.files.push((path, map));
        Ok(())
    }

    fn place(&self, name: &str) -> Result<&Place, ModelError> {
        self.tensors.get(name).ok_or_else(|| tensor_error(name, "is missing in the safetensors files"))
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        &self.files[place.file].1[place.bytes.clone()]
    }
}

impl TensorSource for SafetensorsFolder {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        Ok(self.place(name)?.shape.clone())
    }

    fn stored_type(&self, name: &str) -> Result<StoredType, ModelError> {
        let place = self.place(name)?;
        match place.dtype {
            Dtype::F32 => Ok(StoredType::F32),
            Dtype::F16 => Ok(StoredType::F16),
            Dtype::BF16 => Ok(StoredType::BF16),
            Dtype::I32 | Dtype::U8 | Dtype::I8 | Dtype::U32 => Ok(StoredType::Quantized),
            _ => Err(self.wrong_type(name, place)),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let place = self.place(name)?;
        to_f32(place.dtype, self.bytes(place)).ok_or_else(|| self.wrong_type(name, place))
    }

    fn stored(&self, name: &str) -> Result<StoredMatrix, ModelError> {
        let place = self.place(name)?;
        let (bytes, inputs) = (self.bytes(place), place.shape.last().copied().unwrap_or_default().max(1));
        Ok(match place.dtype {
            Dtype::F16 => StoredMatrix::float16(to_f16(bytes), inputs),
            Dtype::BF16 => {
                StoredMatrix::bfloat16(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b)).collect(), inputs)
            }
            _ => StoredMatrix::float32(self.read(name)?, inputs),
        })
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        let place = self.place(name)?;
        let [height, width] = place.shape[..] else {
            return Err(tensor_error(name, &format!("has shape {:?}, but rows are asked for", place.shape)));
        };
        let bytes = self.bytes(place);
        let row_bytes = bytes.len().checked_div(height).unwrap_or(0);
        let mut values = Vec::with_capacity(rows.len() * width);
        for &row in rows {
            if row as usize >= height {
                return Err(tensor_error(name, &format!("has {height} rows, row {row} is asked for")));
            }
            let row = &bytes[row as usize * row_bytes..][..row_bytes];
            values.extend(to_f32(place.dtype, row).ok_or_else(|| self.wrong_type(name, place))?);
        }
        Ok(values)
    }
}

impl SafetensorsFolder {
    fn wrong_type(&self, name: &str, place: &Place) -> ModelError {
        ModelError::Unsupported {
            path: self.files[place.file].0.clone(),
            what: format!("reading tensor `{name}` of type {}", place.dtype),
        }
    }
}

fn tensor_error(name: &str, what: &str) -> ModelError {
    ModelError::Tensor { tensor: name.to_owned(), what: what.to_owned() }
}

/// Little-endian floats to float32; `None` for other types.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F32 => Some(decoded(bytes, f32::from_le_bytes)),
        Dtype::BF16 => Some(decoded(bytes, |number| bf16::from_le_bytes(number).to_f32())),
        Dtype::F16 => Some(decoded(bytes, |number| f16::from_le_bytes(number).to_f32())),
        _ => None,
    }
}

/// Numbers that a thread decodes at a time.
const DECODED: usize = 1 << 16;

fn decoded<const BYTES: usize>(bytes: &[u8], decode: impl Fn([u8; BYTES]) -> f32 + Sync) -> Vec<f32> {
    if bytes.len() <= BYTES * DECODED {
        return bytes.as_chunks().0.iter().map(|number| decode(*number)).collect();
    }
    let mut values = vec![0.0; bytes.len() / BYTES];
    values.par_chunks_mut(DECODED).zip(bytes.par_chunks(BYTES * DECODED)).for_each(|(values, bytes)| {
        values.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, number)| *value = decode(*number));
    });
    values
}

fn to_f16(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect()
}

/// Maps the file at `path`.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(ModelError::io(path))?;
    // SAFETY: the map is only ever read, as bytes, for which any content is valid. Someone who truncates the file while
    // it is mapped ends this process by a signal; that is the accepted price of not copying a checkpoint into memory.
    unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))
}

/// The `weight_map` of an index: tensor to file name, every name checked to stay in the folder.
pub(crate) fn shard_names(index: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read_to_string(index).map_err(ModelError::io(index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| ModelError::malformed(index, e.to_string()))?;
    for (tensor, file) in &parsed.weight_map {
        let mut parts = Path::new(file).components();
        let plain =
            matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == file.as_str());
        if !plain || file.contains('\\') {
            let what = format!("places tensor `{tensor}` in `{file}`, which is not a plain file name");
            return Err(ModelError::malformed(index, what));
        }
    }
    Ok(parsed.weight_map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn write(folder: &Path, name: &str, header: &serde_json::Value, data: &[u8]) {
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(folder.join(name), [&length, header.as_bytes(), data].concat()).unwrap();
    }

    fn refusal(folder: &Path) -> String {
        let error = SafetensorsFolder::open(folder).err().expect("is refused").to_string();
        error.replace(&folder.display().to_string(), "FOLDER")
    }

    #[test]
    fn every_float_type_is_read_whole_and_by_rows() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.0f32, -2.5, 0.0, 3.25, f32::INFINITY, -0.5];
        let mut data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        data.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        data.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
        let header = json!({"a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
            "b": {"dtype": "F16", "shape": [3, 2], "data_offsets": [24, 36]},
            "c": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [36, 48]}});
        write(folder.path(), SINGLE, &header, &data);
        let opened = SafetensorsFolder::open(folder.path()).unwrap();
        assert_eq!(opened.names(), ["a", "b", "c"]);
        for (name, stored) in [("a", StoredType::F32), ("b", StoredType::F16), ("c", StoredType::BF16)] {
            assert_eq!(opened.stored_type(name).unwrap(), stored);
            assert_eq!(opened.shape(name).unwrap(), [3, 2]);
            assert_eq!(opened.read(name).unwrap(), values);
            assert_eq!(
                opened.read_rows(name, &[2, 0, 2]).unwrap(),
                [f32::INFINITY, -0.5, 1.0, -2.5, f32::INFINITY, -0.5]
            );
            assert_eq!(
                opened.read_rows(name, &[3]).unwrap_err().to_string(),
                format!("tensor `{name}`: has 3 rows, row 3 is asked for")
            );
        }
        assert_eq!(opened.raw("b").unwrap().2, &data[24..36]);
        assert_eq!(opened.read("d").unwrap_err().to_string(), "tensor `d`: is missing in the safetensors files");
    }

    #[test]
    fn packed_integers_are_no_floats() {
        let folder = tempfile::tempdir().unwrap();
        let header = json!({"a": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}});
        write(folder.path(), SINGLE, &header, &[0; 4]);
        let opened = SafetensorsFolder::open(folder.path()).unwrap();
        assert_eq!(opened.stored_type("a").unwrap(), StoredType::Quantized);
        assert!(opened.read("a").unwrap_err().to_string().ends_with("reading tensor `a` of type I32 is not supported"));
    }

    #[test]
    fn a_folder_without_tensors_says_what_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            refusal(folder.path()),
            "FOLDER: has neither `model.safetensors` nor `model.safetensors.index.json`; convert the weights to \
             safetensors first"
        );
    }

    #[test]
    fn shards_are_read_through_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let header = |name: &str| json!({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
        write(folder.path(), "one.safetensors", &header("a"), &1.0f32.to_le_bytes());
        write(folder.path(), "two.safetensors", &header("b"), &2.0f32.to_le_bytes());
        let index = |map: serde_json::Value| {
            fs::write(folder.path().join(INDEX), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
        };
        index(json!({"a": "one.safetensors", "b": "two.safetensors"}));
        let opened = SafetensorsFolder::open(folder.path()).unwrap();
        assert_eq!((opened.read("a").unwrap(), opened.read("b").unwrap()), (vec![1.0], vec![2.0]));
        assert_eq!(opened.files().count(), 3);
        index(json!({"a": "one.safetensors", "c": "two.safetensors"}));
        assert_eq!(
            refusal(folder.path()),
            "FOLDER/model.safetensors.index.json: places tensor `c` in `two.safetensors`, which lacks it"
        );
        write(folder.path(), "two.safetensors", &header("a"), &2.0f32.to_le_bytes());
        index(json!({"a": "one.safetensors", "b": "two.safetensors"}));
        assert_eq!(refusal(folder.path()), "FOLDER/two.safetensors: tensor `a` is in `FOLDER/one.safetensors` as well");
    }

    #[test]
    fn an_index_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "./a", "a/", "..\\x"] {
            let index = json!({"weight_map": {"a": name}}).to_string();
            fs::write(folder.path().join(INDEX), index).unwrap();
            assert_eq!(
                refusal(folder.path()),
                format!(
                    "FOLDER/model.safetensors.index.json: places tensor `a` in `{name}`, which is not a plain file name"
                )
            );
        }
    }

    #[test]
    fn truncated_and_corrupt_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SINGLE);
        let header = json!({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}});
        write(folder.path(), SINGLE, &header, &[0; 8]);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(refusal(folder.path()).contains(&format!("not a whole safetensors file of {length} bytes")));
        }
        let huge = json!({"a": {"dtype": "F32", "shape": [u64::MAX, 4], "data_offsets": [0, 8]}});
        write(folder.path(), SINGLE, &huge, &[0; 8]);
        assert!(refusal(folder.path()).contains("overflow"));
        let wrong = json!({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}});
        write(folder.path(), SINGLE, &wrong, &[0; 8]);
        assert!(refusal(folder.path()).contains("invalid shape, data type, or offset"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(SINGLE), &bytes).unwrap();
            prop_assert!(SafetensorsFolder::open(folder.path()).is_err());
        }
    }
}
