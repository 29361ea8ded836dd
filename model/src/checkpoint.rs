//! [`Checkpoint`]: a model on disk, opened; weights stay in the memory map until a block is asked for.
//!
//! Opening reads the description and the tokenizer and checks every tensor's name and shape against the description, in
//! both directions: what is missing and what nobody would use are refused alike.

use crate::{
    Config, ModelError,
    config::{self, layout},
    decoder::{Block, Head, Readable, RopeTables},
    demo,
    format::{
        TensorSource, awq::AwqFolder, compressed::CompressedFolder, gguf::GgufFile, gptq::GptqFolder,
        huggingface::SafetensorsFolder, replaced::Replaced,
    },
    hub::{self, HubId},
    text,
};
use kernels::{Compute, Engine, stored::StoredMatrix};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokenizers::Tokenizer;

/// Files that a Hugging Face folder may hold beside `config.json` and the tensors.
const COMPANIONS: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// One file a checkpoint was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Name inside the checkpoint's folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// An opened model.
pub struct Checkpoint {
    /// What the user called it.
    pub reference: String,
    /// Its description.
    pub config: Config,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The Jinja chat template, if it brings one.
    pub chat_template: Option<String>,
    /// Its tensors under Hugging Face names.
    pub tensors: Arc<dyn TensorSource>,
    /// `config.json` as a Hugging Face loader expects it (made up from the metadata for a GGUF file).
    pub config_json: Value,
    /// Where it lies: the folder, or the GGUF file.
    pub path: PathBuf,
    /// Companion files made up from metadata (GGUF): (name, bytes). A Hugging Face folder's are copied instead.
    pub companions: Vec<(String, Vec<u8>)>,
    /// The arithmetic of its dense products.
    pub compute: Compute,
    /// Where whole windows run, as far as it can take them ([`crate::decoder::device::obstacle`]).
    pub engine: Engine,
    files: Vec<PathBuf>,
    ropes: Arc<RopeTables>,
}

impl Checkpoint {
    /// Opens a folder, a GGUF file, `demo`, or `org/name[@revision]` on the hub.
    pub fn open(reference: &str) -> Result<Self, ModelError> {
        let path = locate(reference)?;
        if path.is_dir() { Self::open_folder(reference, &path) } else { Self::open_gguf(reference, &path) }
    }

    fn open_folder(reference: &str, folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join("config.json");
        let config_json = read_json(&config_path)?;
        let config = Config::from_json(&config_json, &config_path)?;
        let safetensors = SafetensorsFolder::open(folder)?;
        let mut files: Vec<PathBuf> = safetensors.files().map(Path::to_path_buf).collect();
        let others = COMPANIONS.iter().chain(&["config.json", "quantize_config.json"]).map(|name| folder.join(name));
        files.extend(others.filter(|path| path.is_file()));
        files.sort();
        let tensors: Arc<dyn TensorSource> = match config::quantization_method(&config_json, &config_path)? {
            None => Arc::new(safetensors),
            Some("awq") => Arc::new(AwqFolder::open(safetensors, &config_json, folder)?),
            Some("compressed-tensors") => Arc::new(CompressedFolder::open(safetensors, &config_json, folder)?),
            Some(_) => Arc::new(GptqFolder::open(safetensors, &config_json, folder)?),
        };
        let tokenizer = read_tokenizer(folder)?;
        let chat_template = read_chat_template(folder)?;
        let path = folder.to_path_buf();
        Self { chat_template, path, files, ..Self::new(reference, config, config_json, tokenizer, tensors) }.checked()
    }

    fn open_gguf(reference: &str, path: &Path) -> Result<Self, ModelError> {
        let file = GgufFile::open(path)?;
        let config_json = file.config_json()?;
        let config = Config::from_json(&config_json, path)?;
        let (tokenizer, companions, chat_template) = (file.tokenizer()?, file.companion_files()?, file.chat_template());
        let opened = Self::new(reference, config, config_json, tokenizer, Arc::new(file));
        let (files, path) = (vec![path.to_path_buf()], path.to_path_buf());
        Self { chat_template, path, companions, files, ..opened }.checked()
    }

    fn new(
        reference: &str,
        config: Config,
        config_json: Value,
        tokenizer: Tokenizer,
        tensors: Arc<dyn TensorSource>,
    ) -> Self {
        Self {
            reference: reference.to_owned(),
            ropes: Arc::new(RopeTables::new(&config.ropes)),
            config,
            tokenizer,
            chat_template: None,
            tensors,
            config_json,
            path: PathBuf::new(),
            companions: Vec::new(),
            compute: Compute::default(),
            engine: Engine::Cpu,
            files: Vec::new(),
        }
    }

    /// Holds the tensors against the description.
    fn checked(self) -> Result<Self, ModelError> {
        let names: BTreeSet<String> = self.tensors.names().into_iter().collect();
        let layers = (0..self.config.layers.len()).flat_map(|layer| self.config.layer_tensors(layer));
        let wanted: HashMap<String, Vec<usize>> = layers.chain(self.config.outer_tensors()).collect();
        // In the order of their names, so that the first complaint is always the same.
        let mut sorted: Vec<_> = wanted.iter().collect();
        sorted.sort();
        for (name, wanted_shape) in sorted {
            if !names.contains(name) {
                return Err(tensor_error(name, "the configuration needs it, but the checkpoint lacks it".to_owned()));
            }
            let shape = self.tensors.shape(name)?;
            if shape != *wanted_shape {
                let what = format!("has shape {shape:?}, but the configuration needs {wanted_shape:?}");
                return Err(tensor_error(name, what));
            }
        }
        for name in names.iter().filter(|name| !wanted.contains_key(*name)) {
            self.check_superfluous(name)?;
        }
        Ok(self)
    }

    /// Lets pass only tensors that the description has no use for and that can't matter: stored rope frequencies, biases
    /// that are zero throughout (some quantizers write them), a head equal to the embedding it is tied to.
    fn check_superfluous(&self, name: &str) -> Result<(), ModelError> {
        let idle = if name.ends_with("rotary_emb.inv_freq") {
            true
        } else if name.strip_suffix(".bias").is_some() {
            self.tensors.read(name)?.iter().all(|value| *value == 0.0)
        } else if name == layout::HEAD {
            self.tensors.read(name)? == self.tensors.read(layout::EMBEDDING)?
        } else {
            false
        };
        if idle {
            return Ok(());
        }
        let what = match name {
            layout::HEAD => "differs from the embedding, but the configuration ties the two (`tie_word_embeddings`)",
            _ => "is in the checkpoint, but the configuration has no use for it",
        };
        Err(tensor_error(name, what.to_owned()))
    }

    /// The same model, its dense products computed as `compute` says.
    #[must_use]
    pub fn computed(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// The same model, run where `engine` says.
    #[must_use]
    pub fn on(self, engine: Engine) -> Self {
        Self { engine, ..self }
    }

    /// The same model with other numbers in some of its float tensors, by name; every writer then writes those.
    pub fn replacing(&self, values: BTreeMap<String, Vec<f32>>) -> Result<Self, ModelError> {
        Ok(self.with_tensors(Arc::new(Replaced::new(Arc::clone(&self.tensors), values)?)))
    }

    /// The same model with its numbers read from `tensors`, which has all of its tensors under the same names and in the
    /// same shapes.
    #[must_use]
    pub fn with_tensors(&self, tensors: Arc<dyn TensorSource>) -> Self {
        Self {
            reference: self.reference.clone(),
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
            tensors,
            config_json: self.config_json.clone(),
            path: self.path.clone(),
            companions: self.companions.clone(),
            compute: self.compute,
            engine: self.engine.clone(),
            files: self.files.clone(),
            ropes: Arc::clone(&self.ropes),
        }
    }

    /// Block `index`, weights in float32.
    pub fn block(&self, index: usize) -> Result<Block, ModelError> {
        self.read_block(index)
    }

    /// Block `index`, weights as they are stored.
    pub fn stored_block(&self, index: usize) -> Result<Block<StoredMatrix>, ModelError> {
        self.read_block(index)
    }

    fn read_block<W: Readable>(&self, index: usize) -> Result<Block<W>, ModelError> {
        Block::read(&self.config, self.tensors.as_ref(), Arc::clone(&self.ropes), index, self.compute)
    }

    /// Embeddings of `tokens`, scaled as the model wants: `[tokens.len(), hidden_size]`.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let mut embeddings = self.tensors.read_rows(layout::EMBEDDING, tokens)?;
        if self.config.embedding_scale != 1.0 {
            for value in &mut embeddings {
                *value *= self.config.embedding_scale;
            }
        }
        Ok(embeddings)
    }

    /// The final norm and the head, in float32.
    pub fn head(&self) -> Result<Head, ModelError> {
        self.read_head()
    }

    /// The final norm, and the head as it is stored.
    pub fn stored_head(&self) -> Result<Head<StoredMatrix>, ModelError> {
        self.read_head()
    }

    fn read_head<W: Readable>(&self) -> Result<Head<W>, ModelError> {
        let name = if self.config.tied_head { layout::EMBEDDING } else { layout::HEAD };
        let (weight, norm) = (W::read(self.tensors.as_ref(), name)?, self.tensors.read(layout::FINAL_NORM)?);
        Ok(Head { weight, norm, config: self.config.clone(), compute: self.compute })
    }

    /// The residual stream after the last block, `[tokens.len(), hidden_size]`, reading each block once. For a single
    /// window; whoever has many walks block by block.
    pub fn hidden_states(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let layers = 0..self.config.layers.len();
        layers
            .into_iter()
            .try_fold(self.embed(tokens)?, |hidden, layer| Ok(self.block(layer)?.forward(hidden, &mut |_, _| {})))
    }

    /// Every file the checkpoint consists of, hashed (reads them whole).
    pub fn source_files(&self) -> Result<Vec<SourceFile>, ModelError> {
        let describe = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = fs::metadata(path).map_err(ModelError::io(path))?.len();
            Ok(SourceFile { name, bytes, sha256: text::sha256_of_file(path)? })
        };
        self.files.par_iter().map(describe).collect()
    }

    /// Writes tokenizer, generation config and chat template into `folder` as a Hugging Face loader expects them,
    /// copied where the source has them, else rebuilt; `config.json` is not among them. Returns the names written.
    pub fn copy_companions(&self, folder: &Path) -> Result<Vec<String>, ModelError> {
        let mut written = Vec::new();
        if self.path.is_dir() {
            for name in COMPANIONS.iter().filter(|name| self.path.join(name).is_file()) {
                let from = self.path.join(name);
                let content = fs::read(&from).map_err(ModelError::io(&from))?;
                written.push(write(folder, name, &content)?);
            }
            return Ok(written);
        }
        let tokenizer = self.tokenizer.to_string(true).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        written.push(write(folder, "tokenizer.json", tokenizer.as_bytes())?);
        for (name, content) in &self.companions {
            written.push(write(folder, name, content)?);
        }
        Ok(written)
    }

    /// Names of all tensors that belong to no block (embedding, final norm, head), in the order of the checkpoint.
    pub fn outer_tensors(&self) -> Vec<String> {
        let outer: BTreeSet<String> = self.config.outer_tensors().into_iter().map(|(name, _)| name).collect();
        self.tensors.names().into_iter().filter(|name| outer.contains(name)).collect()
    }
}

fn tensor_error(name: &str, what: String) -> ModelError {
    ModelError::Tensor { tensor: name.to_owned(), what }
}

/// The folder or GGUF file that `reference` names, fetched from the hub if need be.
pub(crate) fn locate(reference: &str) -> Result<PathBuf, ModelError> {
    let path = Path::new(reference);
    let gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let refuse = |what: &str| Err(ModelError::Reference { reference: reference.to_owned(), what: what.to_owned() });
    if reference == "demo" {
        demo::folder()
    } else if path.is_dir() || (path.is_file() && gguf) {
        Ok(path.to_path_buf())
    } else if path.exists() {
        refuse("is neither a folder nor a .gguf file; give the folder that holds config.json")
    } else if let (false, Some(id)) = (gguf || looks_like_path(reference), HubId::parse(reference)) {
        hub::model_folder(&id)
    } else {
        refuse("there is no such folder or .gguf file, and it is no hub id of the form org/name[@revision]")
    }
}

/// Whether `reference` can only be meant as a path on this machine.
fn looks_like_path(reference: &str) -> bool {
    reference.starts_with(['.', '/', '~']) || Path::new(reference).is_absolute()
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
    serde_json::from_str(&text).map_err(|e| ModelError::malformed(path, format!("is not JSON: {e}")))
}

fn write(folder: &Path, name: &str, content: &[u8]) -> Result<String, ModelError> {
    let path = folder.join(name);
    fs::write(&path, content).map_err(ModelError::io(&path))?;
    Ok(name.to_owned())
}

fn read_tokenizer(folder: &Path) -> Result<Tokenizer, ModelError> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        let what =
            "has no `tokenizer.json`, the only form of tokenizer read here; save the model's fast tokenizer there";
        return Err(ModelError::malformed(folder, what));
    }
    let refused = |e| ModelError::malformed(&path, format!("is not a tokenizer: {e}"));
    let mut tokenizer = Tokenizer::from_file(&path).map_err(refused)?;
    // A file may ask for truncation or padding; here a text is always encoded in full.
    tokenizer.with_truncation(None).map_err(refused)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`: a text, or a list of named ones of which
/// `default` is meant.
fn read_chat_template(folder: &Path) -> Result<Option<String>, ModelError> {
    let own_file = folder.join("chat_template.jinja");
    if own_file.is_file() {
        return fs::read_to_string(&own_file).map(Some).map_err(ModelError::io(&own_file));
    }
    let settings_path = folder.join("tokenizer_config.json");
    if !settings_path.is_file() {
        return Ok(None);
    }
    let settings = read_json(&settings_path)?;
    Ok(match settings.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned),
        _ => None,
    })
}
