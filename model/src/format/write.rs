//! Writing a folder of safetensors, the same for every format: the plan of shards first, then tensor after tensor into
//! each. What a linear becomes is the [`Layout`]'s part.
//!
//! Tensors are ordered by name, then cut into shards; inside a file safetensors orders them by type and name. Both
//! orders depend on names and sizes alone, so the same contents give the same bytes.

use super::{
    QuantizedModule, StoredType, Target, gguf,
    layout::{Layout, check_matrix},
    tensor_error,
};
use crate::ModelError;
use half::{bf16, f16};
use kernels::{QuantSpec, QuantizedMatrix};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensorError, View};
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Values of a copied tensor that are in float32 at a time.
const MOST_VALUES: usize = 1 << 24;
/// Numbers that a thread rounds at a time.
const ROUNDED: usize = 1 << 16;

/// What to write, whatever the format.
pub struct Contents<'a> {
    /// The model the other tensors are taken from.
    pub source: &'a crate::Checkpoint,
    /// The settings most modules share.
    pub spec: QuantSpec,
    /// Quantized linears.
    pub modules: &'a [QuantizedModule],
    /// Brings the integers of `modules[i]`; called when they are written (more than once, in the order of types), so
    /// that few are in memory at a time.
    pub load: &'a (dyn Fn(usize) -> Result<QuantizedMatrix, ModelError> + Sync),
    /// Provenance for formats whose loaders ignore a `meta`. An object, or null.
    pub meta: Value,
    /// Damping, for formats that state it.
    pub damping: f64,
    /// Whether the modules of a layer were solved in true sequence, for formats that state it.
    pub true_sequential: bool,
    /// A shard is closed when it would grow beyond this.
    pub shard_bytes: u64,
}

/// Writes `contents` as `target` into the folder `out`: safetensors, index, `config.json` and what else belongs to the
/// format, and the source's companion files. A GGUF target makes `out` a file that holds everything.
pub fn write(out: &Path, target: Target, contents: &Contents<'_>) -> Result<(), ModelError> {
    if let Target::Gguf(mixture) = target {
        target.check(contents.modules)?;
        return gguf::write_integers(out, mixture, contents);
    }
    let layout = target.layout(&contents.source.config_json);
    fs::create_dir_all(out).map_err(ModelError::io(out))?;
    let modules = modules_by_name(contents, target)?;
    let writer = Writer { contents, layout: &*layout, loaded: Mutex::new(None), failure: Mutex::new(None) };
    let tensors = plan_tensors(&writer, &modules)?;
    contents.source.copy_companions(out)?;
    write_configs(out, &writer, &skipped_linears(contents, &modules)?)?;
    write_shards(out, &writer, &tensors)
}

/// What the tensors of a folder come to, as `inspect` measures it on disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bits per weight over all parameters.
    pub bits_per_weight: f64,
    /// Over the quantized linears alone, with all that belongs to their codes.
    pub bits_per_quantized_weight: Option<f64>,
}

/// What [`write()`] would write into a folder, without loading or writing anything. GGUF files are measured when written.
pub fn sizes(target: Target, contents: &Contents<'_>) -> Result<Sizes, ModelError> {
    if matches!(target, Target::Gguf(_)) {
        return Err(tensor_error("every tensor", "the size of a GGUF file is known once it is written"));
    }
    let layout = target.layout(&contents.source.config_json);
    let modules = modules_by_name(contents, target)?;
    let writer = Writer { contents, layout: &*layout, loaded: Mutex::new(None), failure: Mutex::new(None) };
    let tensors = plan_tensors(&writer, &modules)?;
    let is_packed = |tensor: &&Tensor<'_>| matches!(tensor.content, Content::Quantized(..));
    let bytes = |packed: bool| -> u64 {
        tensors.iter().filter(|tensor| is_packed(tensor) == packed).map(|tensor| tensor.bytes() as u64).sum()
    };
    let copied =
        tensors.iter().filter(|tensor| !is_packed(tensor)).map(|tensor| tensor.shape.iter().product::<usize>());
    let weights: u64 = contents.modules.iter().map(|module| (module.outputs * module.inputs) as u64).sum();
    let parameters = weights + copied.sum::<usize>() as u64;
    let all = bytes(true) + bytes(false);
    Ok(Sizes {
        bytes: all,
        bits_per_weight: 8.0 * all as f64 / parameters as f64,
        bits_per_quantized_weight: (weights > 0).then(|| 8.0 * bytes(true) as f64 / weights as f64),
    })
}

/// What writing does to the tensors that are only copied: those of types that the format doesn't have become float16.
pub struct Rounding {
    halved: Vec<(StoredType, bool)>,
    modules: HashSet<String>,
}

impl Rounding {
    /// Of `target`, where `modules` are the quantized linears.
    pub fn new(target: Target, source: &crate::Checkpoint, modules: impl Iterator<Item = String>) -> Self {
        let layout = target.layout(&source.config_json);
        let types = [StoredType::F32, StoredType::F16, StoredType::BF16, StoredType::Quantized];
        let all = types.into_iter().flat_map(|stored| [(stored, false), (stored, true)]);
        let halved = all.filter(|(stored, of_quantized)| layout.float_type(*stored, *of_quantized) == Dtype::F16);
        Self { halved: halved.collect(), modules: modules.collect() }
    }

    /// The numbers of tensor `name` as a loader of the written folder has them.
    pub fn apply(&self, name: &str, stored: StoredType, mut values: Vec<f32>) -> Vec<f32> {
        let of_quantized = name.strip_suffix(".bias").is_some_and(|module| self.modules.contains(module));
        if self.halved.contains(&(stored, of_quantized)) {
            values.par_chunks_mut(ROUNDED).for_each(|values| {
                for value in values {
                    *value = f16::from_f32(*value).to_f32();
                }
            });
        }
        values
    }
}

/// The modules in the order of their names, each checked against the source.
fn modules_by_name<'a>(contents: &Contents<'a>, target: Target) -> Result<BTreeMap<&'a str, usize>, ModelError> {
    target.check(contents.modules)?;
    let mut modules = BTreeMap::new();
    for (index, module) in contents.modules.iter().enumerate() {
        let name = module.name.as_str();
        module.spec.check().map_err(|error| tensor_error(name, error.to_string()))?;
        if modules.insert(name, index).is_some() {
            return Err(tensor_error(name, "is to be written twice"));
        }
        if name == "lm_head" && contents.source.config.tied_head {
            continue; // The head is the embedding; it becomes a tensor of its own by being quantized.
        }
        let shape = contents.source.tensors.shape(&format!("{name}.weight"))?;
        if shape != [module.outputs, module.inputs] {
            let what = format!("is {shape:?} in the source, but {:?} quantized", [module.outputs, module.inputs]);
            return Err(tensor_error(name, what));
        }
    }
    Ok(modules)
}

/// The two-dimensional weights that stay in full precision although loaders expect them quantized: all but the
/// embedding and the head, which the settings treat apart.
fn skipped_linears(contents: &Contents<'_>, modules: &BTreeMap<&str, usize>) -> Result<Vec<String>, ModelError> {
    let mut skipped = Vec::new();
    for name in contents.source.tensors.names() {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        if module == "lm_head" || module.ends_with("embed_tokens") || modules.contains_key(module) {
            continue;
        }
        if contents.source.tensors.shape(&name)?.len() == 2 {
            skipped.push(module.to_owned());
        }
    }
    Ok(skipped)
}

/// What a tensor of the output is made of.
#[derive(Clone, Copy)]
enum Content {
    /// A part of `modules[index]`, by its place among the layout's.
    Quantized(usize, usize),
    /// The source's tensor of the same name.
    Copied,
}

/// A tensor of the output, its bytes made when it is written.
struct Tensor<'a> {
    writer: &'a Writer<'a>,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content,
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.writer.bytes_or_note_failure(self))
    }

    fn data_len(&self) -> usize {
        self.bytes()
    }
}

impl Tensor<'_> {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Every tensor of the output, in the order of names.
fn plan_tensors<'a>(writer: &'a Writer<'a>, modules: &BTreeMap<&str, usize>) -> Result<Vec<Tensor<'a>>, ModelError> {
    let contents = writer.contents;
    let mut tensors = Vec::new();
    for (&name, &index) in modules {
        let parts = writer.layout.parts(&contents.modules[index]).into_iter().enumerate();
        tensors.extend(parts.map(|(place, part)| Tensor {
            writer,
            name: format!("{name}.{}", part.suffix),
            dtype: part.dtype,
            shape: part.shape,
            content: Content::Quantized(index, place),
        }));
    }
    for name in contents.source.tensors.names() {
        let is = |suffix| name.strip_suffix(suffix).is_some_and(|module| modules.contains_key(module));
        let tied = name == "lm_head.weight" && contents.source.config.tied_head;
        if is(".weight") || tied {
            continue;
        }
        let stored = contents.source.tensors.stored_type(&name)?;
        let dtype = writer.layout.float_type(stored, is(".bias"));
        let shape = contents.source.tensors.shape(&name)?;
        tensors.push(Tensor { writer, name, dtype, shape, content: Content::Copied });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Makes the tensors' bytes; keeps the matrix loaded last, because a module's codes, zero-points and group index
/// follow each other.
struct Writer<'a> {
    contents: &'a Contents<'a>,
    layout: &'a dyn Layout,
    loaded: Mutex<Option<(usize, QuantizedMatrix)>>,
    /// The first error: a `View` cannot return one.
    failure: Mutex<Option<ModelError>>,
}

impl Writer<'_> {
    /// The bytes of `tensor`; after the first failure nothing, quickly.
    fn bytes_or_note_failure(&self, tensor: &Tensor<'_>) -> Vec<u8> {
        let mut failure = lock(&self.failure);
        if failure.is_some() {
            return Vec::new();
        }
        self.bytes(tensor).unwrap_or_else(|error| {
            *failure = Some(error);
            Vec::new()
        })
    }

    fn bytes(&self, tensor: &Tensor<'_>) -> Result<Vec<u8>, ModelError> {
        match tensor.content {
            Content::Quantized(index, part) => self.part(index, part),
            Content::Copied => self.copy(tensor),
        }
    }

    /// A tensor of the source, a run of rows at a time: a large embedding never stands in memory in float32.
    fn copy(&self, tensor: &Tensor<'_>) -> Result<Vec<u8>, ModelError> {
        let (source, Tensor { name, shape, dtype, .. }) = (&self.contents.source.tensors, tensor);
        let mut bytes = Vec::with_capacity(tensor.bytes());
        match *shape.as_slice() {
            [rows, columns] if rows * columns > MOST_VALUES => {
                let rows: Vec<u32> = (0..rows as u32).collect();
                for run in rows.chunks(MOST_VALUES.div_ceil(columns)) {
                    bytes.extend(encode(name, &source.read_rows(name, run)?, *dtype)?);
                }
            }
            _ => bytes = encode(name, &source.read(name)?, *dtype)?,
        }
        whole(tensor, bytes)
    }

    fn part(&self, index: usize, part: usize) -> Result<Vec<u8>, ModelError> {
        let mut loaded = lock(&self.loaded);
        if loaded.as_ref().is_none_or(|(held, _)| *held != index) {
            *loaded = None; // Two matrices are never in memory together.
            let matrix = (self.contents.load)(index)?;
            check_matrix(self.layout, &self.contents.modules[index], &matrix)?;
            *loaded = Some((index, matrix));
        }
        let (_, matrix) = loaded.as_ref().expect("the matrix was loaded above");
        self.layout.pack(&self.contents.modules[index], part, matrix)
    }
}

/// `bytes`, if they are all of `tensor`.
fn whole(tensor: &Tensor<'_>, bytes: Vec<u8>) -> Result<Vec<u8>, ModelError> {
    if bytes.len() != tensor.bytes() {
        let what = format!("gives {} bytes, not as many as its shape {:?} needs", bytes.len(), tensor.shape);
        return Err(tensor_error(&tensor.name, what));
    }
    Ok(bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `values` as `dtype`. float32 to the type they were stored in is exact; to float16 they are rounded, and refused
/// where float16 has no number for them.
pub(super) fn encode(name: &str, values: &[f32], dtype: Dtype) -> Result<Vec<u8>, ModelError> {
    match dtype {
        Dtype::F32 => Ok(encoded(values, f32::to_le_bytes)),
        Dtype::BF16 => Ok(encoded(values, |value| bf16::from_f32(value).to_le_bytes())),
        _ => {
            let beyond = |value: &&f32| value.is_finite() && f16::from_f32(**value).is_infinite();
            if let Some(value) = values.par_iter().find_first(beyond) {
                let what = format!("the value {value} is beyond float16's largest number, 65504");
                return Err(tensor_error(name, what));
            }
            Ok(encoded(values, |value| f16::from_f32(value).to_le_bytes()))
        }
    }
}

fn encoded<const BYTES: usize>(values: &[f32], encode: impl Fn(f32) -> [u8; BYTES] + Sync) -> Vec<u8> {
    let mut bytes = vec![0; BYTES * values.len()];
    bytes.par_chunks_mut(BYTES * ROUNDED).zip(values.par_chunks(ROUNDED)).for_each(|(bytes, values)| {
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = encode(*value));
    });
    bytes
}

/// `config.json`, and the settings once more where loaders of the format look for them.
fn write_configs(folder: &Path, writer: &Writer<'_>, skipped: &[String]) -> Result<(), ModelError> {
    let Writer { contents, layout, .. } = writer;
    let mut config_json = contents.source.config_json.clone();
    let Some(object) = config_json.as_object_mut() else {
        return Err(ModelError::malformed(&contents.source.path, "the source's config.json is no JSON object"));
    };
    if let Some(dtype) = layout.torch_dtype(contents) {
        object.insert("torch_dtype".into(), json!(dtype));
        if let Some(newer_name) = object.get_mut("dtype") {
            *newer_name = json!(dtype);
        }
    }
    if contents.modules.iter().any(|module| module.name == "lm_head") {
        object.insert("tie_word_embeddings".into(), json!(false));
    }
    object.shift_remove("quantization_config");
    if let Some(settings) = layout.settings(contents, skipped)? {
        if let Some(file) = layout.settings_file() {
            write_json(&folder.join(file), &settings)?;
        }
        object.insert("quantization_config".into(), settings);
    }
    write_json(&folder.join("config.json"), &config_json)
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    fs::write(path, format!("{value:#}\n")).map_err(ModelError::io(path))
}

/// Cuts the ordered tensors into runs that stay within `limit` bytes; a larger tensor is a shard of its own.
fn shards<'t, 'a>(tensors: &'t [Tensor<'a>], limit: u64) -> Vec<&'t [Tensor<'a>]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        let length = tensor.bytes() as u64;
        if index > start && bytes + length > limit {
            shards.push(&tensors[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += length;
    }
    shards.push(&tensors[start..]);
    shards
}

fn write_shards(folder: &Path, writer: &Writer<'_>, tensors: &[Tensor<'_>]) -> Result<(), ModelError> {
    let shards = shards(tensors, writer.contents.shard_bytes);
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        write_shard(&folder.join(&file), writer, shard)?;
        weight_map.extend(shard.iter().map(|tensor| (&tensor.name, file.clone())));
    }
    if shards.len() == 1 {
        return Ok(());
    }
    let total: usize = tensors.iter().map(Tensor::bytes).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&folder.join("model.safetensors.index.json"), &index)
}

fn write_shard(path: &Path, writer: &Writer<'_>, tensors: &[Tensor<'_>]) -> Result<(), ModelError> {
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(views, Some(metadata), path);
    if let Some(failure) = lock(&writer.failure).take() {
        let _ = fs::remove_file(path); // It is incomplete; the failure is what matters.
        return Err(failure);
    }
    written.map_err(|error| match error {
        SafeTensorError::IoError(source) => ModelError::Io { path: path.into(), source },
        other => ModelError::malformed(path, other.to_string()),
    })?;
    like_other_files(path)
}

/// safetensors writes through a temporary file that only its owner may read; gives `path` the permissions of
/// `config.json` beside it.
fn like_other_files(path: &Path) -> Result<(), ModelError> {
    let permissions = fs::metadata(path.with_file_name("config.json")).map_err(ModelError::io(path))?.permissions();
    fs::set_permissions(path, permissions).map_err(ModelError::io(path))
}
