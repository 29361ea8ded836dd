//! Reading a GPTQ checkpoint: the settings and the tensors must agree to the last number.

use super::{
    Settings,
    layout::{Packed, Part},
};
use crate::{
    ModelError,
    format::{
        PackedFolder, QuantizedModule,
        huggingface::SafetensorsFolder,
        layout::{bytes_to_words, check_group_index},
        packed::{Packing, part_bytes, two_axes},
        tensor_error,
    },
};
use kernels::QuantizedMatrix;
use std::path::Path;

/// A GPTQ checkpoint.
pub type GptqFolder = PackedFolder<Settings>;

impl GptqFolder {
    /// Checks `quantization_config` against the tensors' shapes and types.
    pub fn open(
        tensors: SafetensorsFolder,
        config_json: &serde_json::Value,
        folder: &Path,
    ) -> Result<Self, ModelError> {
        let settings = Settings::find(config_json, folder)?
            .ok_or_else(|| ModelError::malformed(folder.join("config.json"), "has no `quantization_config` of GPTQ"))?;
        Self::new(tensors, settings)
    }
}

impl Packing for Settings {
    const PARTS: &'static [&'static str] = &["qweight", "qzeros", "scales", "g_idx"];

    fn describe(&self, tensors: &SafetensorsFolder, module: &str) -> Result<QuantizedModule, ModelError> {
        let name = format!("{module}.qweight");
        let setting = self.module(module).ok_or_else(|| {
            tensor_error(&name, "is quantized, but the settings say that this module is left in full precision")
        })?;
        let [words, outputs] = two_axes(tensors, &name)?;
        let bits = setting.bits as usize;
        if outputs == 0 || words == 0 || !(words * 32).is_multiple_of(bits) || !(outputs * bits).is_multiple_of(32) {
            let shape = [words, outputs];
            return Err(tensor_error(&name, format!("has shape {shape:?}, which no matrix of {bits} bits packs into")));
        }
        let inputs = words * 32 / bits;
        let described = self.described(module, outputs, inputs).expect("the settings of this module were found above");
        described.spec.check().map_err(|error| tensor_error(&name, error.to_string()))?;
        for part in Part::ALL {
            bytes_of(tensors, &described, part)?;
        }
        let group_index = bytes_to_words(bytes_of(tensors, &described, Part::GroupIndex)?);
        check_group_index(&group_index, &described.spec, setting.desc_act, "`desc_act` is false")
            .map_err(|what| tensor_error(format!("{module}.g_idx"), what))?;
        Ok(described)
    }

    fn matrix(&self, tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<QuantizedMatrix, ModelError> {
        let part = |part| bytes_of(tensors, module, part);
        let packed = Packed {
            codes: part(Part::Codes)?,
            zeros: part(Part::Zeros)?,
            scales: part(Part::Scales)?,
            group_index: bytes_to_words(part(Part::GroupIndex)?),
        };
        packed
            .matrix(module, self.version)
            .map_err(|what| tensor_error(format!("{}.{}", module.name, Part::Zeros.suffix()), what))
    }
}

/// The bytes of one part, its type and shape checked.
fn bytes_of<'a>(tensors: &'a SafetensorsFolder, module: &QuantizedModule, part: Part) -> Result<&'a [u8], ModelError> {
    let shape = part.shape(module.outputs, module.inputs, &module.spec);
    Ok(part_bytes(tensors, module, part.suffix(), &[part.dtype()], &shape)?.1)
}
