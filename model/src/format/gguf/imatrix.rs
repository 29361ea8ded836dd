//! Importance matrices as llama.cpp keeps them: a GGUF file with the sums of squared activations of every linear.
//!
//! ```text
//! general.type         "imatrix"
//! imatrix.datasets     list of texts: where the text came from
//! imatrix.chunk_count  u32, windows      imatrix.chunk_size  u32, tokens in each
//! NAME.in_sum2         F32 [1, inputs]   sum of x^2 of each input column; NAME is the weight's, `blk.0.attn_q.weight`
//! NAME.counts          F32 [1, 1]        how many activations were summed
//! ```
//!
//! The older `.dat` layout is not read. Files of a mixture of experts, with one row an expert, are refused.

use super::{
    Architecture, TensorType,
    container::Container,
    front::{self, Entry, Plan},
    map, names,
};
use crate::{Config, ModelError};
use std::{collections::BTreeMap, fs, path::Path};

/// Mean squared activations of each input column, by module (`model.layers.0.mlp.down_proj`).
pub type Importance = BTreeMap<String, Vec<f32>>;

/// Sums to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    /// `sum x^2` of each input column.
    pub squares: Vec<f32>,
    /// Activations summed.
    pub count: f32,
}

/// Reads the file at `path` for a model that `config` describes. Modules that it doesn't speak of have no entry.
pub fn read(path: &Path, config: &Config) -> Result<Importance, ModelError> {
    let file = map(path)?;
    if !file.starts_with(b"GGUF") {
        let what = "is no GGUF file; convert an older importance matrix with llama-imatrix";
        return Err(ModelError::malformed(path, what));
    }
    let container = Container::parse(path, &file)?;
    let architecture = Architecture::of_family(config.family);
    let mut numbers: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for tensor in &container.tensors {
        if tensor.kind != TensorType::F32 {
            return Err(ModelError::malformed(
                path,
                format!("tensor `{}` is {}, not F32", tensor.name, tensor.kind.name()),
            ));
        }
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.kind.decode(&file[tensor.bytes.clone()], &mut values);
        numbers.insert(&tensor.name, values);
    }
    let mut importance = Importance::new();
    for (name, sums) in &numbers {
        let Some(weight) = name.strip_suffix(".in_sum2") else { continue };
        let layers = config.layers.len() as u64;
        let Some(known) = names::hugging_face_name(path, architecture, layers, weight)? else { continue };
        let counts = numbers.get(&*format!("{weight}.counts"));
        let count = match counts.map(Vec::as_slice) {
            Some([count]) if *count > 0.0 && count.is_finite() => *count,
            Some(counts) if counts.len() > 1 => {
                let what = format!("`{weight}` has {} experts, which no model read here has", counts.len());
                return Err(ModelError::malformed(path, what));
            }
            _ => return Err(ModelError::malformed(path, format!("`{weight}.counts` is missing or no number above 0"))),
        };
        if sums.iter().any(|sum| !(*sum >= 0.0 && sum.is_finite())) {
            return Err(ModelError::malformed(path, format!("`{name}` holds a sum that is negative or not finite")));
        }
        let module = known.strip_suffix(".weight").unwrap_or(&known).to_owned();
        importance.insert(module, sums.iter().map(|sum| sum / count).collect());
    }
    if importance.is_empty() {
        return Err(ModelError::malformed(path, "holds no `.in_sum2` tensor: it is no importance matrix"));
    }
    Ok(importance)
}

/// Writes `sums` by module to `path`, with the sources of the text and how it was cut.
pub fn write(
    path: &Path,
    config: &Config,
    sums: &BTreeMap<String, Sums>,
    datasets: &[String],
    windows: usize,
    tokens_per_window: usize,
) -> Result<(), ModelError> {
    let architecture = Architecture::of_family(config.family);
    let entries = vec![
        ("general.type".to_owned(), Entry::Text("imatrix".to_owned())),
        ("imatrix.datasets".to_owned(), Entry::Texts(datasets.to_vec())),
        ("imatrix.chunk_count".to_owned(), Entry::U32(windows as u32)),
        ("imatrix.chunk_size".to_owned(), Entry::U32(tokens_per_window as u32)),
    ];
    let (mut plans, mut values): (Vec<Plan>, Vec<Vec<f32>>) = (Vec::new(), Vec::new());
    for (module, sums) in sums {
        let Some(name) = names::gguf_name(architecture, &format!("{module}.weight")) else { continue };
        let mut add = |part: &str, numbers: Vec<f32>| {
            let shape = vec![1, numbers.len()];
            plans.push(Plan { name: format!("{name}.{part}"), shape, kind: TensorType::F32 });
            values.push(numbers);
        };
        add("in_sum2", sums.squares.clone());
        add("counts", vec![sums.count]);
    }
    let written = front::write(path, &entries, &plans, |index, put| {
        put(&values[index].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    })?;
    fs::rename(&written, path).map_err(ModelError::io(path))
}
