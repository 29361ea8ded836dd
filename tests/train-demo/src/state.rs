//! What is on disk: the state of an unfinished run, and the model in float16 as a Hugging Face folder.

use crate::network::{Network, Shape};
use crate::optimizer::AdamW;
use crate::tokenizer::END_OF_TEXT;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

/// Writes beside the file, then renames, so that a killed run leaves the old file or the new one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("the file has no folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Saves weights, moments and the number of steps done.
pub(crate) fn save(path: &Path, network: &Network, optimizer: &AdamW, step: u64, settings: &str) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, var) in &network.weights {
        let (m, v) = &optimizer.moments[name];
        tensors.insert(name.clone(), var.as_tensor().clone());
        tensors.insert(format!("m.{name}"), Tensor::new(m.as_slice(), &Device::Cpu)?);
        tensors.insert(format!("v.{name}"), Tensor::new(v.as_slice(), &Device::Cpu)?);
    }
    let metadata = HashMap::from([("step".to_owned(), step.to_string()), ("settings".to_owned(), settings.to_owned())]);
    write_atomically(path, &safetensors::serialize(&tensors, Some(metadata))?)
}

/// Reads what [`save`] wrote, refusing a run of other settings.
pub(crate) fn load(path: &Path, shape: Shape, settings: &str) -> Result<(Network, AdamW, u64)> {
    let bytes = std::fs::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let found = metadata.get("settings").map_or("", String::as_str);
    ensure!(found == settings, "{} is of another run:\n  {found}\nnot\n  {settings}", path.display());
    let step = metadata.get("step").context("no step in the state")?.parse()?;
    let mut tensors: BTreeMap<String, Tensor> =
        candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect();
    let mut moments = BTreeMap::new();
    for (name, _) in shape.tensors() {
        let mut take = |prefix: &str| -> Result<Vec<f32>> {
            let key = format!("{prefix}.{name}");
            Ok(tensors.remove(&key).with_context(|| format!("tensor `{key}` is missing"))?.to_vec1()?)
        };
        moments.insert(name.clone(), (take("m")?, take("v")?));
    }
    Ok((Network::from_tensors(shape, tensors)?, AdamW { moments }, step))
}

/// Writes the model and its settings; the tokenizer is there already.
pub(crate) fn export(folder: &Path, network: &Network, shape: &Shape) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, var) in &network.weights {
        tensors.insert(name.clone(), var.to_dtype(DType::F16)?);
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_atomically(&folder.join("model.safetensors"), &safetensors::serialize(&tensors, Some(metadata))?)?;
    for (name, value) in settings_files(shape)? {
        write_atomically(&folder.join(name), format!("{value:#}\n").as_bytes())?;
    }
    Ok(())
}

fn settings_files(shape: &Shape) -> Result<[(&'static str, Value); 3]> {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_scaling": null,
        "tie_word_embeddings": true,
        "use_cache": true,
        "bos_token_id": 0,
        "eos_token_id": 0,
    });
    let sizes = serde_json::to_value(shape)?;
    for (key, value) in sizes.as_object().context("a shape is an object")? {
        config[key] = value.clone();
    }
    // A float32 written as float64 would show its rounding.
    config["rms_norm_eps"] = json!(1e-5);
    let tokenizer = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "add_bos_token": false,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": shape.max_position_embeddings,
    });
    let generation = json!({ "bos_token_id": 0, "eos_token_id": 0 });
    Ok([("config.json", config), ("tokenizer_config.json", tokenizer), ("generation_config.json", generation)])
}

/// The float16 model of a folder.
pub(crate) fn import(folder: &Path, shape: Shape) -> Result<Network> {
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    Network::from_tensors(shape, tensors.into_iter().collect())
}
