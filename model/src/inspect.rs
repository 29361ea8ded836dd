//! What a checkpoint holds, whoever made it: tensors, bits per weight measured on disk, settings, runtime verdicts.
//!
//! bits per weight = 8 × bytes of all tensors / parameters, where a packed linear counts `outputs × inputs` parameters.
//! For the quantized linears alone: codes, scales, zero-points and group index counted, biases not; in a GGUF file for
//! every quantized tensor, the embedding among them.
//!
//! Packed linears of GPTQ, AWQ and compressed-tensors are recognised by the tensors they consist of and measured from
//! shapes alone; GGUF types by the tensor table. What follows another layout is listed as it lies.

mod packed;

use crate::{
    Config, ModelError, checkpoint,
    format::{
        PackedFolder, Packing, QuantizedModule, Target, TensorSource,
        awq::AwqFolder,
        compressed::CompressedFolder,
        gguf,
        gptq::{self, GptqFolder},
        huggingface::SafetensorsFolder,
    },
    runtimes::{self, Verdict},
};
use kernels::{ActOrder, QuantSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A tensor as it lies on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// Its type as the file calls it.
    pub stored_type: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
}

/// Quantized linears with the same settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleGroup {
    /// The settings in words, e.g. `4 bits, groups of 128, symmetric`.
    pub settings: String,
    /// How many linears.
    pub modules: usize,
    /// Their weights.
    pub parameters: u64,
    /// Their bytes: codes, scales, zero-points, group index.
    pub bytes: u64,
}

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// Where it lies.
    pub path: PathBuf,
    /// `float`, `gptq`, `gptq_v2`, `awq`, `compressed-tensors`, `gguf`, or another method's name for itself.
    pub format: String,
    /// Weights, biases and norms, packed linears unpacked.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Over all parameters.
    pub bits_per_weight: f64,
    /// Over the quantized linears; `None` where there are none.
    pub bits_per_quantized_weight: Option<f64>,
    /// Quantized linears by their settings.
    pub modules: Vec<ModuleGroup>,
    /// The quantization settings as the checkpoint states them.
    pub settings: Option<Value>,
    /// What runtimes do with it; empty for an unquantized checkpoint.
    pub runtimes: Vec<Verdict>,
    /// What is wrong with it or could not be judged.
    pub problems: Vec<String>,
    /// Every tensor, in the order of names.
    pub tensors: Vec<StoredTensor>,
}

/// A quantized linear found in a checkpoint.
struct Found {
    settings: String,
    parameters: u64,
    bytes: u64,
}

/// Inspects a folder, a GGUF file, `demo`, or `org/name[@revision]` on the hub.
pub fn inspect(reference: &str) -> Result<Inspection, ModelError> {
    let path = checkpoint::locate(reference)?;
    if path.is_dir() { inspect_folder(&path) } else { inspect_gguf(&path) }
}

fn inspect_gguf(path: &Path) -> Result<Inspection, ModelError> {
    let tensors: Vec<StoredTensor> = gguf::list(path)?;
    let elements = |tensor: &StoredTensor| tensor.shape.iter().product::<usize>() as u64;
    let is_float = |tensor: &StoredTensor| matches!(&*tensor.stored_type, "F32" | "F16" | "BF16" | "F64");
    let found = tensors.iter().filter(|tensor| !is_float(tensor)).map(|tensor| Found {
        settings: tensor.stored_type.clone(),
        parameters: elements(tensor),
        bytes: tensor.bytes,
    });
    let modules = group(found);
    let parameters = tensors.iter().map(elements).sum();
    let runtimes = runtimes::unknown("a GGUF file: llama.cpp and its relatives load it, these runtimes read folders");
    let inspection = measured(path, "gguf", tensors, parameters, modules);
    Ok(Inspection { runtimes, ..inspection })
}

fn inspect_folder(folder: &Path) -> Result<Inspection, ModelError> {
    let files = SafetensorsFolder::open(folder)?;
    let config_json = read_config(folder)?;
    let mut tensors = Vec::new();
    for name in files.names() {
        let (dtype, shape, bytes) = files.raw(&name)?;
        tensors.push(StoredTensor { name, stored_type: format!("{dtype:?}"), shape, bytes: bytes.len() as u64 });
    }
    let settings = stated_settings(&config_json, folder)?;
    let layout = packed::Layout::named(method(settings.as_ref()).as_deref());
    let linears = packed::find(&tensors, layout, &files);
    let parameters = packed::parameters(&tensors, &linears);
    let mut modules = group(linears.iter().map(packed::Linear::found));
    let Judged { format, groups, runtimes, problems } = judge(folder, files, &config_json, settings.as_ref(), &linears);
    if let Some(groups) = groups {
        modules = groups;
    }
    let inspection = measured(folder, &format, tensors, parameters, modules);
    Ok(Inspection { settings, runtimes, problems, ..inspection })
}

/// `config.json`, or null where there is none: the tensors can be listed all the same.
fn read_config(folder: &Path) -> Result<Value, ModelError> {
    read_json(&folder.join("config.json"))
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
    serde_json::from_str(&text).map_err(|error| ModelError::malformed(path, error.to_string()))
}

/// The quantization settings in `config.json`, else in `quantize_config.json`.
fn stated_settings(config_json: &Value, folder: &Path) -> Result<Option<Value>, ModelError> {
    let stated = config_json.get("quantization_config").cloned();
    let settings = match stated {
        Some(settings) => settings,
        None => read_json(&folder.join("quantize_config.json"))?,
    };
    Ok(Some(settings).filter(|settings| !settings.is_null()))
}

/// The name of the quantization method; settings without one are GPTQ's, which had none at first.
fn method(settings: Option<&Value>) -> Option<String> {
    let settings = settings?;
    let stated = ["quant_method", "method"].iter().find_map(|key| settings.get(key)?.as_str());
    Some(stated.unwrap_or("gptq").to_owned())
}

/// What the settings add to the tensors.
struct Judged {
    format: String,
    groups: Option<Vec<ModuleGroup>>,
    runtimes: Vec<Verdict>,
    problems: Vec<String>,
}

fn judge(
    folder: &Path,
    files: SafetensorsFolder,
    config_json: &Value,
    settings: Option<&Value>,
    linears: &[packed::Linear],
) -> Judged {
    let place = Place { folder, config_json, linears };
    match method(settings).as_deref() {
        None => Judged { format: "float".into(), groups: None, runtimes: Vec::new(), problems: Vec::new() },
        Some("gptq") => {
            let target = |settings: &gptq::Settings| Target::Gptq(settings.version);
            place.judge("gptq", GptqFolder::open(files, config_json, folder), target)
        }
        Some("awq") => place.judge("awq", AwqFolder::open(files, config_json, folder), |_| Target::Awq),
        Some("compressed-tensors") => {
            let opened = CompressedFolder::open(files, config_json, folder);
            place.judge("compressed-tensors", opened, |_| Target::CompressedTensors)
        }
        Some(name) => {
            let problem =
                format!("the quantization method `{name}` is not known here: parameters are counted as they lie");
            Judged::unknown(name, "the quantization method is not known here", problem)
        }
    }
}

impl Judged {
    fn unknown(format: &str, reason: &str, problem: String) -> Self {
        Self { format: format.into(), groups: None, runtimes: runtimes::unknown(reason), problems: vec![problem] }
    }
}

/// A folder whose packed linears were found.
struct Place<'a> {
    folder: &'a Path,
    config_json: &'a Value,
    linears: &'a [packed::Linear],
}

impl Place<'_> {
    /// Judges the folder as opened in the format `name`, if it could be.
    fn judge<P: Packing>(
        &self,
        name: &str,
        opened: Result<PackedFolder<P>, ModelError>,
        target: impl Fn(&P) -> Target,
    ) -> Judged {
        match opened {
            Ok(checkpoint) => self.judge_modules(&checkpoint.modules(), target(checkpoint.settings())),
            Err(error) => Judged::unknown(name, "the settings and the tensors do not agree", error.to_string()),
        }
    }

    fn judge_modules(&self, modules: &[QuantizedModule], target: Target) -> Judged {
        let bytes: BTreeMap<&str, u64> =
            self.linears.iter().map(|linear| (linear.name(), linear.found().bytes)).collect();
        let groups = group(modules.iter().map(|module| Found {
            settings: in_words(&module.spec),
            parameters: (module.outputs * module.inputs) as u64,
            bytes: bytes.get(&*module.name).copied().unwrap_or(0),
        }));
        let config = Config::from_json(self.config_json, &self.folder.join("config.json")).ok();
        Judged {
            format: target.to_string(),
            groups: Some(groups),
            runtimes: runtimes::verdicts(modules, target, config.as_ref()),
            problems: Vec::new(),
        }
    }
}

/// Settings, e.g. `4 bits, groups of 128, symmetric`.
fn in_words(spec: &QuantSpec) -> String {
    let groups = spec.group_size.map_or("one group per row".into(), |size| format!("groups of {size}"));
    let grid = if spec.symmetric { "symmetric" } else { "asymmetric" };
    let order = if spec.act_order == ActOrder::Desc { ", act-order" } else { "" };
    format!("{} bits, {groups}, {grid}{order}", spec.bits)
}

/// Sums linears with the same settings, most weights first.
fn group(found: impl Iterator<Item = Found>) -> Vec<ModuleGroup> {
    let mut groups: BTreeMap<String, ModuleGroup> = BTreeMap::new();
    for Found { settings, parameters, bytes } in found {
        let group = groups.entry(settings).or_insert_with_key(|settings| ModuleGroup {
            settings: settings.clone(),
            modules: 0,
            parameters: 0,
            bytes: 0,
        });
        group.modules += 1;
        group.parameters += parameters;
        group.bytes += bytes;
    }
    let mut groups: Vec<ModuleGroup> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.parameters));
    groups
}

/// The figures that follow from tensors and modules; settings, verdicts and problems are left empty.
fn measured(
    path: &Path,
    format: &str,
    tensors: Vec<StoredTensor>,
    parameters: u64,
    modules: Vec<ModuleGroup>,
) -> Inspection {
    let ratio = |bytes: u64, parameters: u64| 8.0 * bytes as f64 / parameters as f64;
    let bytes = tensors.iter().map(|tensor| tensor.bytes).sum();
    let quantized = modules.iter().fold((0, 0), |sum, group| (sum.0 + group.bytes, sum.1 + group.parameters));
    Inspection {
        path: path.into(),
        format: format.into(),
        parameters,
        bytes,
        bits_per_weight: if parameters == 0 { 0.0 } else { ratio(bytes, parameters) },
        bits_per_quantized_weight: (quantized.1 > 0).then(|| ratio(quantized.0, quantized.1)),
        modules,
        settings: None,
        runtimes: Vec::new(),
        problems: Vec::new(),
        tensors,
    }
}
