//! The work folder `OUT.partial`: what survives a crash, and what must match for work to go on in it.
//!
//! ```text
//! OUT.partial/plan.json           every setting that shapes the output, hashes of model and calibration
//! OUT.partial/lock                held while a run works here
//! OUT.partial/block-00007.0       a part of block 7, one for each stage: integers, scales, zero-points, group indices, reports
//! OUT.partial/block-00007.solved  says that block 7 is complete: how many parts it has, and what was folded into it
//! OUT.partial/checkpoint/         what will become OUT; checkpoint.gguf where that is a file
//! ```
//!
//! These are safetensors files. A part holds `<module>.codes` u8 `[outputs, inputs]`, `.scales` f16 and `.zeros` u8
//! `[outputs, groups]`, `.group_index` u32 `[inputs]`, of a block format only `.blocks` u8, and the reports as JSON in its
//! metadata; the closing file `<tensor>.folded` f32 for norms and biases that the method changed. Each is written under
//! another name, flushed and renamed: it is there whole or not at all, whenever the process dies.

use crate::{LayerReport, Matrix, QuantizeError, fold::Tensors};
use console::files::write_atomically;
use half::f16;
use kernels::{QuantizedMatrix, kquant::BlockMatrix};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A quantized module with its report.
pub type Solved = (Matrix, LayerReport);

/// How many differing settings an error names.
const DIFFERENCES_NAMED: usize = 4;

/// A block as it was stored.
#[derive(Clone)]
struct Finished {
    modules: Arc<Vec<Solved>>,
    tensors: Arc<Tensors>,
}

/// What float tensors are called in a closing file.
const FOLDED: &str = ".folded";

/// An opened work folder.
pub struct Journal {
    folder: PathBuf,
    _lock: File,
    last: Mutex<Option<(usize, Finished)>>,
}

impl Journal {
    /// The work folder that belongs to the output `out`.
    pub fn folder_of(out: &Path) -> PathBuf {
        let mut name = out.as_os_str().to_owned();
        name.push(".partial");
        PathBuf::from(name)
    }

    /// Opens or makes the work folder of `out` for the run that `plan` describes. A folder of another plan is refused,
    /// or emptied if `overwrite`.
    pub fn open(out: &Path, plan: &Value, overwrite: bool) -> Result<Self, QuantizeError> {
        let folder = Self::folder_of(out);
        fs::create_dir_all(&folder).map_err(QuantizeError::io(&folder))?;
        let lock = lock(&folder)?;
        let path = folder.join("plan.json");
        if let Some(old) = read_plan(&path)? {
            let differences = differences(&old, plan);
            if !differences.is_empty() && !overwrite {
                return Err(QuantizeError::OtherCommand { path: folder, differences: listed(&differences) });
            }
            if !differences.is_empty() {
                empty(&folder)?;
            }
        } else if !others(&folder)?.is_empty() {
            let what = "is in the way: it holds files but no plan.json of a run; move it away".to_owned();
            return Err(QuantizeError::Option(format!("{} {what}", folder.display())));
        }
        let text = serde_json::to_vec_pretty(plan).expect("a plan is plain data");
        write_atomically(&path, &text).map_err(QuantizeError::io(&path))?;
        Ok(Self { folder, _lock: lock, last: Mutex::new(None) })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether block `index` is finished.
    pub fn has(&self, index: usize) -> bool {
        self.path(index).exists()
    }

    /// Writes part `part` of block `index` and reads it back from the file.
    pub fn store_part(&self, index: usize, part: usize, modules: &[Solved]) -> Result<Vec<Solved>, QuantizeError> {
        let path = self.part_path(index, part);
        write(&path, encode(modules))?;
        read(&path, decode)
    }

    /// Block `index` is complete with its first `parts` parts and the norms and biases that became others.
    pub fn close(&self, index: usize, parts: usize, tensors: &Tensors) -> Result<(), QuantizeError> {
        write(&self.path(index), encode_closing(parts, tensors))
    }

    /// Block `index` as it was stored. The last block read is kept, since its modules are asked for one by one.
    pub fn load(&self, index: usize) -> Result<Arc<Vec<Solved>>, QuantizeError> {
        Ok(self.finished(index)?.modules)
    }

    /// The norms and biases that became others in block `index`.
    pub fn tensors(&self, index: usize) -> Result<Arc<Tensors>, QuantizeError> {
        Ok(self.finished(index)?.tensors)
    }

    fn finished(&self, index: usize) -> Result<Finished, QuantizeError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, block)) = last.as_ref().filter(|(known, _)| *known == index) {
            return Ok(block.clone());
        }
        let (parts, tensors) = read(&self.path(index), decode_closing)?;
        let mut modules = Vec::new();
        for part in 0..parts {
            modules.extend(read(&self.part_path(index, part), decode)?);
        }
        let block = Finished { modules: Arc::new(modules), tensors: Arc::new(tensors) };
        *last = Some((index, block.clone()));
        Ok(block)
    }

    /// Removes the work folder.
    pub fn remove(self) -> Result<(), QuantizeError> {
        fs::remove_dir_all(&self.folder).map_err(QuantizeError::io(&self.folder))
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("block-{index:05}.solved"))
    }

    fn part_path(&self, index: usize, part: usize) -> PathBuf {
        self.folder.join(format!("block-{index:05}.{part}"))
    }
}

fn write(path: &Path, bytes: Result<Vec<u8>, String>) -> Result<(), QuantizeError> {
    let bytes = bytes.map_err(|what| QuantizeError::Journal { path: path.to_owned(), what })?;
    write_atomically(path, &bytes).map_err(QuantizeError::io(path))
}

/// What `decode` makes of the file at `path`.
fn read<T>(path: &Path, decode: fn(&[u8]) -> Result<T, String>) -> Result<T, QuantizeError> {
    let bytes = fs::read(path).map_err(QuantizeError::io(path))?;
    decode(&bytes).map_err(|what| QuantizeError::Journal { path: path.to_owned(), what })
}

/// The lock goes with the process, however it ends.
fn lock(folder: &Path) -> Result<File, QuantizeError> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(QuantizeError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(QuantizeError::Busy { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(QuantizeError::Io { path, source }),
    }
}

fn read_plan(path: &Path) -> Result<Option<Value>, QuantizeError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| QuantizeError::Journal { path: path.to_owned(), what: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(QuantizeError::io(path)(error)),
    }
}

/// Removes everything but the lock, the plan last: a folder without a plan is not taken for ours.
fn empty(folder: &Path) -> Result<(), QuantizeError> {
    for path in others(folder)? {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(QuantizeError::io(&path))?;
    }
    let plan = folder.join("plan.json");
    fs::remove_file(&plan).map_err(QuantizeError::io(&plan))
}

/// What the folder holds beside the lock, the plan and temporary files that a crash left.
fn others(folder: &Path) -> Result<Vec<PathBuf>, QuantizeError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(QuantizeError::io(folder))? {
        let path = entry.map_err(QuantizeError::io(folder))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name != "lock" && name != "plan.json" && !name.starts_with(".tmp") {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// `field: old → new` for every leaf in which two plans differ.
pub fn differences(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    found
}

fn compare(field: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    let inside = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|name| !old.contains_key(*name));
            for name in old.keys().chain(added) {
                let side = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or(Value::Null);
                compare(&inside(name), &side(old), &side(new), found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&inside(&i.to_string()), old, new, found);
            }
        }
        _ if old != new => found.push(format!("{field}: {} → {}", short(old), short(new))),
        _ => {}
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

fn listed(differences: &[String]) -> String {
    let named = differences[..differences.len().min(DIFFERENCES_NAMED)].join(", ");
    match differences.len().saturating_sub(DIFFERENCES_NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// A tensor as it goes into a file: name, type, shape, bytes.
type Entry<'a> = (String, Dtype, Vec<usize>, Cow<'a, [u8]>);

fn encode(modules: &[Solved]) -> Result<Vec<u8>, String> {
    let mut stored: Vec<Entry<'_>> = Vec::new();
    for (matrix, report) in modules {
        let name = |part: &str| format!("{}.{part}", report.module);
        let matrix = match matrix {
            Matrix::Grid(matrix) => matrix,
            Matrix::Blocks(matrix) => {
                stored.push((name("blocks"), Dtype::U8, vec![matrix.bytes.len()], Cow::Borrowed(&matrix.bytes[..])));
                continue;
            }
        };
        let (outputs, inputs, groups) = (matrix.outputs, matrix.inputs, matrix.groups());
        let scales = matrix.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let group_index = matrix.group_index.iter().flat_map(|group| group.to_le_bytes()).collect();
        stored.push((name("codes"), Dtype::U8, vec![outputs, inputs], Cow::Borrowed(&matrix.codes[..])));
        stored.push((name("scales"), Dtype::F16, vec![outputs, groups], Cow::Owned(scales)));
        stored.push((name("zeros"), Dtype::U8, vec![outputs, groups], Cow::Borrowed(&matrix.zeros[..])));
        stored.push((name("group_index"), Dtype::U32, vec![inputs], Cow::Owned(group_index)));
    }
    let reports: Vec<&LayerReport> = modules.iter().map(|(_, report)| report).collect();
    serialize(&stored, "reports", serde_json::to_string(&reports).map_err(|error| error.to_string())?)
}

fn encode_closing(parts: usize, tensors: &Tensors) -> Result<Vec<u8>, String> {
    let entry = |(name, values): (&String, &Vec<f32>)| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (format!("{name}{FOLDED}"), Dtype::F32, vec![values.len()], Cow::Owned(bytes))
    };
    serialize(&tensors.iter().map(entry).collect::<Vec<_>>(), "parts", parts.to_string())
}

/// A safetensors file of `stored`, with one line of metadata.
fn serialize(stored: &[Entry<'_>], key: &str, value: String) -> Result<Vec<u8>, String> {
    let views = stored
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| error.to_string())?;
    safetensors::serialize(views, Some(HashMap::from([(key.to_owned(), value)]))).map_err(|e| e.to_string())
}

fn decode(bytes: &[u8]) -> Result<Vec<Solved>, String> {
    let (file, reports) = deserialize(bytes, "reports")?;
    let reports: Vec<LayerReport> = serde_json::from_str(&reports).map_err(|error| error.to_string())?;
    reports.into_iter().map(|report| Ok((matrix_of(&report, &file)?, report))).collect()
}

fn decode_closing(bytes: &[u8]) -> Result<(usize, Tensors), String> {
    let (file, parts) = deserialize(bytes, "parts")?;
    Ok((parts.parse().map_err(|_| format!("`{parts}` is no number of parts"))?, folded(&file)?))
}

/// A safetensors file and the line of its metadata.
fn deserialize<'a>(bytes: &'a [u8], key: &str) -> Result<(SafeTensors<'a>, String), String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let value = metadata.metadata().as_ref().and_then(|map| map.get(key)).ok_or_else(|| format!("it has no {key}"))?;
    Ok((file, value.clone()))
}

/// The float tensors of a closing file.
fn folded(file: &SafeTensors<'_>) -> Result<Tensors, String> {
    let mut tensors = Tensors::new();
    for (name, tensor) in file.iter() {
        let Some(name) = name.strip_suffix(FOLDED) else { continue };
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("{name} is {:?}, not F32", tensor.dtype()));
        }
        let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        tensors.insert(name.to_owned(), values);
    }
    Ok(tensors)
}

fn matrix_of(report: &LayerReport, file: &SafeTensors<'_>) -> Result<Matrix, String> {
    let (outputs, inputs) = (report.outputs, report.inputs);
    let groups = report.spec.groups(inputs);
    let part = |part: &str, dtype: Dtype, shape: &[usize]| {
        let name = format!("{}.{part}", report.module);
        let tensor = file.tensor(&name).map_err(|error| format!("{name}: {error}"))?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            return Err(format!("{name} has shape {:?}, its report says {shape:?}", tensor.shape()));
        }
        Ok(tensor.data().to_vec())
    };
    if let Some(kind) = report.blocks {
        let bytes = part("blocks", Dtype::U8, &[outputs * kind.row_bytes(inputs)])?;
        return Ok(BlockMatrix { outputs, inputs, kind, bytes }.into());
    }
    let scales = part("scales", Dtype::F16, &[outputs, groups])?;
    let group_index = part("group_index", Dtype::U32, &[inputs])?;
    Ok(Matrix::Grid(QuantizedMatrix {
        outputs,
        inputs,
        spec: report.spec,
        codes: part("codes", Dtype::U8, &[outputs, inputs])?,
        scales: scales.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect(),
        zeros: part("zeros", Dtype::U8, &[outputs, groups])?,
        group_index: group_index.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{ActOrder, QuantSpec, ScaleSearch};
    use model::Linear;
    use serde_json::json;

    fn solved(name: &str, outputs: usize, inputs: usize) -> Solved {
        let spec = QuantSpec {
            bits: 4,
            group_size: Some(8),
            symmetric: false,
            act_order: ActOrder::Desc,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 1,
        };
        let groups = spec.groups(inputs);
        let matrix = QuantizedMatrix {
            outputs,
            inputs,
            spec,
            codes: (0..outputs * inputs).map(|i| (i % 16) as u8).collect(),
            scales: (0..outputs * groups).map(|i| f16::from_f32(0.1 + i as f32)).collect(),
            zeros: (0..outputs * groups).map(|i| (1 + i % 15) as u8).collect(),
            group_index: (0..inputs).rev().map(|i| (i / 8) as u32).collect(),
        };
        let linear = Linear { name: name.to_owned(), inputs, outputs, weight: Vec::new(), bias: None };
        let report = LayerReport {
            tokens: 7,
            error_round_to_nearest: Some(1.0 / 3.0),
            error: Some(1e-300),
            dead_columns: vec![3],
            seconds: 0.25,
            ..LayerReport::unmeasured(&linear, &spec)
        };
        (matrix.into(), report)
    }

    fn solved_in_blocks(name: &str) -> Solved {
        let kind = kernels::kquant::BlockType::Q4_0;
        let matrix = BlockMatrix { outputs: 2, inputs: 64, kind, bytes: (0..72).collect() };
        let linear = Linear { name: name.to_owned(), inputs: 64, outputs: 2, weight: Vec::new(), bias: None };
        let spec = crate::blocks::spec(kind, ActOrder::None);
        let report = LayerReport { blocks: Some(kind), ..LayerReport::unmeasured(&linear, &spec) };
        (matrix.into(), report)
    }

    #[test]
    fn a_block_comes_back_as_it_was_stored() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let block = vec![solved("a", 3, 20), solved("b", 1, 1), solved("c", 2, 8), solved_in_blocks("d")];
        let journal = Journal::open(&out, &json!({"bits": 4}), false).unwrap();
        assert!(!journal.has(2));
        let tensors = Tensors::from([("a.weight".to_owned(), vec![1.5, -0.25]), ("b.bias".to_owned(), vec![1e-30])]);
        let (first, second) = block.split_at(3);
        assert_eq!(journal.store_part(2, 0, first).unwrap(), first);
        assert_eq!(journal.store_part(2, 1, second).unwrap(), second);
        assert!(!journal.has(2), "it is not closed");
        journal.close(2, 2, &tensors).unwrap();
        drop(journal);
        let journal = Journal::open(&out, &json!({"bits": 4}), false).unwrap();
        assert!(journal.has(2) && !journal.has(1));
        assert_eq!(*journal.load(2).unwrap(), block);
        assert_eq!(*journal.tensors(2).unwrap(), tensors);
        journal.remove().unwrap();
        assert!(!Journal::folder_of(&out).exists());
    }

    #[test]
    fn another_plan_is_refused_with_the_difference_and_overwrite_starts_afresh() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let journal = Journal::open(&out, &json!({"settings": {"bits": 4, "skip": []}}), false).unwrap();
        journal.store_part(0, 0, &[solved("a", 1, 8)]).unwrap();
        journal.close(0, 1, &Tensors::new()).unwrap();
        drop(journal);
        let other = json!({"settings": {"bits": 3, "skip": []}});
        let error = Journal::open(&out, &other, false).err().unwrap().to_string();
        assert!(error.contains("settings.bits: 4 → 3"), "{error}");
        let journal = Journal::open(&out, &other, true).unwrap();
        assert!(!journal.has(0));
    }

    #[test]
    fn a_second_run_in_the_same_folder_and_a_stranger_s_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let _first = Journal::open(&out, &json!({}), false).unwrap();
        assert!(matches!(Journal::open(&out, &json!({}), false), Err(QuantizeError::Busy { .. })));
        let stranger = folder.path().join("photos");
        fs::create_dir(Journal::folder_of(&stranger)).unwrap();
        fs::write(Journal::folder_of(&stranger).join("holiday.jpg"), b"!").unwrap();
        for overwrite in [false, true] {
            assert!(Journal::open(&stranger, &json!({}), overwrite).is_err());
        }
        assert!(Journal::folder_of(&stranger).join("holiday.jpg").exists());
    }

    #[test]
    fn damaged_blocks_are_errors() {
        let part = encode(&[solved("a", 3, 20)]).unwrap();
        let closing = encode_closing(3, &Tensors::from([("a".to_owned(), vec![1.0])])).unwrap();
        assert!(decode(&part).is_ok() && decode_closing(&closing).is_ok());
        assert!(decode(&closing).is_err() && decode_closing(&part).is_err(), "one is not the other");
        for length in [0, 7, 8, 40] {
            assert!(decode(&part[..length]).is_err() && decode_closing(&closing[..length]).is_err(), "{length}");
        }
        assert!(decode(&part[..part.len() - 1]).is_err() && decode_closing(&closing[..closing.len() - 1]).is_err());
    }

    #[test]
    fn differences_name_fields_that_came_and_went() {
        let found = differences(
            &json!({"a": 1, "b": [1, 2], "c": {"d": "x"}}),
            &json!({"b": [1, 3], "c": {"d": "x", "e": null, "f": 2}}),
        );
        assert_eq!(found, ["a: 1 → nothing", "b.1: 2 → 3", "c.f: nothing → 2"]);
        assert_eq!(listed(&["a".into(), "b".into(), "c".into(), "d".into(), "e".into()]), "a, b, c, d and 1 more");
    }
}
