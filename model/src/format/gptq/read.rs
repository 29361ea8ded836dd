//! Reading a GPTQ checkpoint: the settings and the tensors must agree to the last number.

use super::{
    QuantizedModule, Settings,
    layout::{Packed, Part, bytes_to_words, check_group_index},
    tensor_error,
};
use crate::{
    ModelError,
    format::{StoredType, TensorSource, huggingface::SafetensorsFolder},
};
use kernels::QuantizedMatrix;
use std::{collections::BTreeMap, path::Path};

/// A GPTQ checkpoint seen as float tensors, and as integers through [`TensorSource::quantized`].
pub struct GptqFolder {
    tensors: SafetensorsFolder,
    settings: Settings,
    /// Quantized linears by name.
    modules: BTreeMap<String, QuantizedModule>,
}

impl GptqFolder {
    /// Checks `quantization_config` against the tensors' shapes and types.
    pub fn open(
        tensors: SafetensorsFolder,
        config_json: &serde_json::Value,
        folder: &Path,
    ) -> Result<Self, ModelError> {
        let settings = Settings::find(config_json, folder)?
            .ok_or_else(|| ModelError::malformed(folder.join("config.json"), "has no `quantization_config` of GPTQ"))?;
        let names = tensors.names();
        let mut modules = BTreeMap::new();
        for name in &names {
            if let Some(module) = name.strip_suffix(".qweight") {
                modules.insert(module.to_owned(), check_module(&tensors, &settings, module)?);
            }
        }
        for name in &names {
            check_belongs(name, &modules)?;
        }
        Ok(Self { tensors, settings, modules })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The quantized linears, in the order of their names.
    pub fn modules(&self) -> Vec<QuantizedModule> {
        self.modules.values().cloned().collect()
    }

    /// The quantized linear whose weight is called `name`.
    fn module_of(&self, name: &str) -> Option<&QuantizedModule> {
        self.modules.get(name.strip_suffix(".weight")?)
    }

    fn packed(&self, module: &QuantizedModule) -> Result<Packed<'_>, ModelError> {
        let part = |part| part_bytes(&self.tensors, module, part);
        Ok(Packed {
            codes: part(Part::Codes)?,
            zeros: part(Part::Zeros)?,
            scales: part(Part::Scales)?,
            group_index: bytes_to_words(part(Part::GroupIndex)?),
        })
    }

    fn matrix(&self, module: &QuantizedModule) -> Result<QuantizedMatrix, ModelError> {
        let zeros_error = |what| tensor_error(format!("{}.qzeros", module.name), what);
        self.packed(module)?.matrix(module, self.settings.version).map_err(zeros_error)
    }
}

/// Describes `module` and checks its four tensors.
fn check_module(tensors: &SafetensorsFolder, settings: &Settings, module: &str) -> Result<QuantizedModule, ModelError> {
    let name = format!("{module}.qweight");
    let setting = settings.module(module).ok_or_else(|| {
        tensor_error(&name, "is quantized, but the settings say that this module is left in full precision")
    })?;
    let (_, shape, _) = tensors.raw(&name)?;
    let &[words, outputs] = shape.as_slice() else {
        return Err(tensor_error(&name, format!("has shape {shape:?}, not two axes")));
    };
    let bits = setting.bits as usize;
    if outputs == 0 || words == 0 || !(words * 32).is_multiple_of(bits) || !(outputs * bits).is_multiple_of(32) {
        return Err(tensor_error(&name, format!("has shape {shape:?}, which no matrix of {bits} bits packs into")));
    }
    let inputs = words * 32 / bits;
    let described = settings.described(module, outputs, inputs).expect("the settings of this module were found above");
    described.spec.check().map_err(|error| tensor_error(&name, error.to_string()))?;
    for part in Part::ALL {
        part_bytes(tensors, &described, part)?;
    }
    let group_index = bytes_to_words(part_bytes(tensors, &described, Part::GroupIndex)?);
    check_group_index(&group_index, &described.spec, setting.desc_act)
        .map_err(|what| tensor_error(format!("{module}.g_idx"), what))?;
    Ok(described)
}

/// The bytes of one part, its type and shape checked.
fn part_bytes<'a>(
    tensors: &'a SafetensorsFolder,
    module: &QuantizedModule,
    part: Part,
) -> Result<&'a [u8], ModelError> {
    let name = format!("{}.{}", module.name, part.suffix());
    let (dtype, shape, bytes) = tensors.raw(&name)?;
    if dtype != part.dtype() {
        return Err(tensor_error(&name, format!("is of type {dtype:?}, not {:?}", part.dtype())));
    }
    let expected = part.shape(module.outputs, module.inputs, &module.spec);
    if shape != expected {
        let (bits, group) = (module.spec.bits, module.spec.group_size.map_or("-1".into(), |size| size.to_string()));
        let what = format!(
            "has shape {shape:?}, not {expected:?} as {} inputs, {} outputs, {bits} bits and group size {group} make it",
            module.inputs, module.outputs
        );
        return Err(tensor_error(&name, what));
    }
    Ok(bytes)
}

/// Refuses pieces of a quantized linear that has no codes, and a linear that is there twice.
fn check_belongs(name: &str, modules: &BTreeMap<String, QuantizedModule>) -> Result<(), ModelError> {
    let Some((module, suffix)) = name.rsplit_once('.') else { return Ok(()) };
    match (suffix, modules.contains_key(module)) {
        ("qzeros" | "scales" | "g_idx", false) => {
            Err(tensor_error(name, format!("has no `{module}.qweight` beside it")))
        }
        ("weight", true) => Err(tensor_error(name, format!("stands beside `{module}.qweight`: which one holds?"))),
        _ => Ok(()),
    }
}

impl TensorSource for GptqFolder {
    fn names(&self) -> Vec<String> {
        let is_part = |name: &String| {
            let (module, suffix) = name.rsplit_once('.').unwrap_or_default();
            self.modules.contains_key(module) && Part::ALL.iter().any(|part| part.suffix() == suffix)
        };
        let mut names: Vec<String> = self.tensors.names().into_iter().filter(|name| !is_part(name)).collect();
        names.extend(self.modules.keys().map(|module| format!("{module}.weight")));
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        match self.module_of(name) {
            Some(module) => Ok(vec![module.outputs, module.inputs]),
            None => self.tensors.shape(name),
        }
    }

    fn stored_type(&self, name: &str) -> Result<StoredType, ModelError> {
        match self.module_of(name) {
            Some(_) => Ok(StoredType::Quantized),
            None => self.tensors.stored_type(name),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        match self.module_of(name) {
            Some(module) => Ok(self.matrix(module)?.dequantize()),
            None => self.tensors.read(name),
        }
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        let Some(module) = self.module_of(name) else { return self.tensors.read_rows(name, rows) };
        if let Some(row) = rows.iter().find(|&&row| row as usize >= module.outputs) {
            return Err(tensor_error(name, format!("has no row {row}, only {}", module.outputs)));
        }
        let weight = self.matrix(module)?.dequantize();
        Ok(rows.iter().flat_map(|&row| &weight[row as usize * module.inputs..][..module.inputs]).copied().collect())
    }

    fn quantized(&self, module: &str) -> Result<Option<QuantizedMatrix>, ModelError> {
        self.modules.get(module).map(|module| self.matrix(module)).transpose()
    }
}
