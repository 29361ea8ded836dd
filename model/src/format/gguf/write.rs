//! Writing a GGUF file: metadata, tensor table, then tensor after tensor, a run of rows at a time.
//!
//! Matrices get the type that the caller says; those that a solver has brought into blocks are written as they are, all
//! others are rounded to the nearest. Everything with one dimension is float32. Rows of q and k of a Llama go where that
//! architecture has them: a permutation of whole rows, so it commutes with any block format.
//!
//! The finished file is opened and must describe the same model and the same tokenizer before it gets its name.

use super::{
    Architecture, GgufFile, Mixture, TensorType,
    describe::Description,
    exact,
    front::{self, Entry, Plan},
    names::{self, Change},
    types::FloatType,
    vocabulary,
};
use crate::{Checkpoint, Config, ModelError, config::Family, config::Rope, config::layout, format};
use half::{bf16, f16};
use kernels::kquant::{BlockMatrix, Weighting};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Values of a tensor that are in float32 at a time.
const MOST_VALUES: usize = 1 << 22;

/// What to write.
pub struct Contents<'a> {
    /// The model.
    pub source: &'a Checkpoint,
    /// `general.file_type`.
    pub file_type: u32,
    /// The type of the matrix with this Hugging Face name (with `.weight`) and this many columns.
    pub type_of: &'a dyn Fn(&str, usize) -> TensorType,
    /// The linears (names without `.weight`) whose blocks a solver has made.
    pub solved: &'a BTreeSet<String>,
    /// Brings the blocks of a solved linear, rows in Hugging Face's order; called when they are written.
    pub load: &'a dyn Fn(&str) -> Result<BlockMatrix, ModelError>,
    /// Further metadata: keys and texts, for people.
    pub notes: Vec<(String, String)>,
}

/// A tensor of the file and where it comes from.
struct Tensor {
    plan: Plan,
    /// Hugging Face name.
    name: String,
    change: Change,
}

/// Writes the file `path`. It is there whole or not at all.
pub fn write(path: &Path, contents: &Contents<'_>) -> Result<(), ModelError> {
    let description = Description::of(contents.source)?;
    let tensors = tensors(contents, description.architecture)?;
    let mut entries = description.entries;
    let quantized = tensors.iter().any(|tensor| matches!(tensor.plan.kind, TensorType::Block(_)));
    entries.push(("general.file_type".into(), Entry::U32(contents.file_type)));
    if quantized {
        entries.push(("general.quantization_version".into(), Entry::U32(2)));
    }
    entries.retain(|(key, _)| !contents.notes.iter().any(|(note, _)| note == key));
    entries.extend(contents.notes.iter().map(|(key, text)| (key.clone(), Entry::Text(text.clone()))));
    let setting =
        |name: &str, values: &[f32]| Plan { name: name.into(), shape: vec![values.len()], kind: TensorType::F32 };
    let settings = description.settings.iter().map(|tensor| setting(tensor.name, &tensor.values));
    let plans: Vec<Plan> = settings.chain(tensors.iter().map(|tensor| tensor.plan.clone())).collect();
    let written = front::write(path, &entries, &plans, |index, put| match description.settings.get(index) {
        Some(setting) => put(&floats(&setting.values, FloatType::F32)),
        None => tensors[index - description.settings.len()].write(contents, put),
    })?;
    if let Err(error) = same_model(contents, &written) {
        let _ = fs::remove_file(&written); // It says something else than it should; nobody must find it.
        return Err(error);
    }
    fs::rename(&written, path).map_err(ModelError::io(path))
}

/// Writes the integers of `contents`, solved for other formats, to the file `path`: linears in the base type of `mixture`,
/// which [`super::exact`] says can hold them, the rest as the mixture has it.
pub fn write_integers(path: &Path, mixture: Mixture, contents: &format::Contents<'_>) -> Result<(), ModelError> {
    let places: BTreeMap<&str, usize> =
        contents.modules.iter().enumerate().map(|(index, module)| (module.name.as_str(), index)).collect();
    let solved: BTreeSet<String> = places.keys().map(|name| (*name).to_owned()).collect();
    let type_of = |name: &str, inputs: usize| match name.strip_suffix(".weight") {
        Some(module) if solved.contains(module) => TensorType::Block(mixture.base()),
        _ => mixture.choose(&contents.source.config, name, inputs).used,
    };
    let load = |name: &str| {
        let matrix = (contents.load)(places[name])?;
        exact::blocks(&matrix, mixture.base()).map_err(|what| ModelError::Tensor { tensor: name.to_owned(), what })
    };
    let notes = vec![("caliper.settings".to_owned(), contents.meta.to_string())];
    let file_type = mixture.file_type();
    let source = contents.source;
    write(path, &Contents { source, file_type, type_of: &type_of, solved: &solved, load: &load, notes })
}

/// Every tensor of the model, in the order of computation.
fn tensors(contents: &Contents<'_>, architecture: Architecture) -> Result<Vec<Tensor>, ModelError> {
    let config = &contents.source.config;
    let layers = (0..config.layers.len()).flat_map(|layer| config.layer_tensors(layer));
    let mut listed: Vec<(String, Vec<usize>)> = config.outer_tensors();
    if config.tied_head && contents.solved.contains("lm_head") {
        listed.push((layout::HEAD.to_owned(), vec![config.vocabulary, config.hidden_size]));
    }
    listed.splice(1..1, layers);
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let stored = names::gguf_name(architecture, &name).ok_or_else(|| ModelError::Tensor {
            tensor: name.clone(),
            what: format!("has no name in GGUF files of architecture `{}`", architecture.name()),
        })?;
        let kind = if shape.len() == 1 { TensorType::F32 } else { (contents.type_of)(&name, shape[shape.len() - 1]) };
        let change = names::change(architecture, config.head_width, &name);
        Ok(Tensor { plan: Plan { name: stored, shape, kind }, name, change })
    };
    listed.into_iter().map(tensor).collect()
}

type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), ModelError>;

impl Tensor {
    fn write(&self, contents: &Contents<'_>, put: Put<'_>) -> Result<(), ModelError> {
        let [rows, columns] = self.plan.shape[..] else { return self.write_vector(contents, put) };
        let order: Vec<u32> = (0..rows).map(|row| self.source_row(row) as u32).collect();
        let module = self.name.strip_suffix(".weight").unwrap_or(&self.name);
        if contents.solved.contains(module) {
            return self.write_blocks(&(contents.load)(module)?, &order, put);
        }
        for run in order.chunks(MOST_VALUES.div_ceil(columns)) {
            let values = contents.source.tensors.read_rows(&self.name, run)?;
            put(&self.encoded(&values, columns)?)?;
        }
        Ok(())
    }

    /// The source's row that lies at `row` of the file.
    fn source_row(&self, row: usize) -> usize {
        match self.change {
            Change::Unpermute { head_width } => names::unpermuted_row(row, head_width),
            _ => row,
        }
    }

    fn write_vector(&self, contents: &Contents<'_>, put: Put<'_>) -> Result<(), ModelError> {
        let values = contents.source.tensors.read(&self.name)?;
        let added = if self.change == Change::MinusOne { 1.0 } else { 0.0 };
        let stored: Vec<f32> = (0..values.len()).map(|row| values[self.source_row(row)] + added).collect();
        put(&floats(&stored, FloatType::F32))
    }

    fn write_blocks(&self, matrix: &BlockMatrix, order: &[u32], put: Put<'_>) -> Result<(), ModelError> {
        let found = (TensorType::Block(matrix.kind), [matrix.outputs, matrix.inputs]);
        if found.0 != self.plan.kind || found.1[..] != self.plan.shape[..] {
            let what = format!(
                "was solved as {} {:?}, but {} {:?} is to be written",
                found.0.name(),
                found.1,
                self.plan.kind.name(),
                self.plan.shape
            );
            return Err(ModelError::Tensor { tensor: self.name.clone(), what });
        }
        let length = matrix.kind.row_bytes(matrix.inputs);
        let row = |row: &u32| &matrix.bytes[*row as usize * length..][..length];
        put(&order.iter().map(row).collect::<Vec<_>>().concat())
    }

    fn encoded(&self, values: &[f32], columns: usize) -> Result<Vec<u8>, ModelError> {
        let refuse = |what: String| Err(ModelError::Tensor { tensor: self.name.clone(), what });
        if values.iter().any(|value| !value.is_finite()) {
            return refuse("holds a value that is not finite".to_owned());
        }
        match self.plan.kind {
            TensorType::Block(kind) => Ok(BlockMatrix::quantize(values, columns, kind, Weighting::Plain).bytes),
            TensorType::Float(FloatType::F16) if values.iter().any(|value| value.abs() >= 65520.0) => {
                refuse("holds a value beyond float16's largest number, 65504".to_owned())
            }
            TensorType::Float(kind) => Ok(floats(values, kind)),
        }
    }
}

fn floats(values: &[f32], kind: FloatType) -> Vec<u8> {
    match kind {
        FloatType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        FloatType::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

/// Whether the file describes the source: the same arithmetic, the same tokens for the same text.
fn same_model(contents: &Contents<'_>, written: &Path) -> Result<(), ModelError> {
    let source = contents.source;
    let file = GgufFile::open(written)?;
    let read = Config::from_json(&file.config_json()?, written)?;
    let own_head = source.config.tied_head && contents.solved.contains("lm_head");
    if let Some(field) =
        differing_field(&Config { tied_head: source.config.tied_head && !own_head, ..source.config.clone() }, &read)
    {
        let what = format!("what the file says of the model differs from the source in {field}");
        return Err(ModelError::Unsupported { path: source.path.clone(), what });
    }
    match vocabulary::difference(&source.tokenizer, &file.tokenizer()?) {
        Some(text) => {
            let text: String = text.chars().take(60).collect();
            Err(ModelError::Tokenizer(format!("can't be written to a GGUF file: it would encode {text:?} differently")))
        }
        None => Ok(()),
    }
}

/// The first thing in which two descriptions differ that would change results.
fn differing_field(source: &Config, read: &Config) -> Option<String> {
    // A Mistral without windows computes as a Llama, and is stored as one.
    let family = |config: &Config| if config.family == Family::Mistral { Family::Llama } else { config.family };
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * a.abs();
    let same_ropes =
        source.ropes.len() == read.ropes.len() && source.ropes.iter().zip(&read.ropes).all(|(a, b)| same_rope(a, b));
    let checks = [
        ("family", family(source) == family(read)),
        ("biases", source.biases == read.biases),
        ("layers", source.layers == read.layers),
        ("ropes", same_ropes),
        ("norms", (source.qk_norm, source.post_norms) == (read.qk_norm, read.post_norms)),
        ("epsilon", close(source.norm_epsilon, read.norm_epsilon)),
        ("activation", source.activation == read.activation),
        ("attention scale", close(source.attention_scale, read.attention_scale)),
        ("embedding scale", close(source.embedding_scale, read.embedding_scale)),
        ("tied head", source.tied_head == read.tied_head),
        ("heads", (source.heads, source.kv_heads, source.head_width) == (read.heads, read.kv_heads, read.head_width)),
    ];
    checks.into_iter().find(|(_, same)| !same).map(|(field, _)| field.to_owned())
}

/// Frequencies go through float32 divisors: a few units in the last place.
fn same_rope(a: &Rope, b: &Rope) -> bool {
    let same = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-5 * a);
    let tokens = a.beyond.as_ref().map_or(1, |beyond| beyond.positions + 1);
    same(&a.inverse_frequencies, &b.inverse_frequencies)
        && same(&a.frequencies(tokens), &b.frequencies(tokens))
        && (a.attention_factor - b.attention_factor).abs() <= 1e-5
        && a.beyond.as_ref().map(|beyond| beyond.positions) == b.beyond.as_ref().map(|beyond| beyond.positions)
}
