//! The formats that can be written: [`Target`].

use super::{
    FloatType, QuantizedModule,
    awq::Awq,
    compressed::Compressed,
    dequantized::Dequantized,
    gguf::{self, Mixture},
    gptq::{Gptq, Version},
    layout::Layout,
    tensor_error,
};
use crate::ModelError;
use kernels::QuantizedMatrix;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, str::FromStr};

/// A format to write, by the name that people give it: `gptq`, `gptq_v2`, `awq`, `compressed-tensors`, `dequantized`,
/// `dequantized:bfloat16`, `gguf:Q4_K_M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// GPTQ, zero-points as a version stores them.
    Gptq(Version),
    /// AWQ, version `gemm`.
    Awq,
    /// compressed-tensors, `pack-quantized`.
    CompressedTensors,
    /// Float weights, all tensors in the type chosen, if one is.
    Dequantized(Option<FloatType>),
    /// A GGUF file in a mixture of types.
    Gguf(Mixture),
}

/// A text that names no format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no format: write gptq, gptq_v2, awq, compressed-tensors, dequantized, dequantized:TYPE (float16, bfloat16, float32) or gguf:MIXTURE (Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q3_K_M, Q2_K, Q4_0, ...)"
)]
pub struct UnknownTarget(String);

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(text: &str) -> Result<Self, UnknownTarget> {
        let float = |name: &str| FloatType::ALL.into_iter().find(|float| float.name() == name);
        let (format, kind) = text.split_once(':').map_or((text, None), |(format, kind)| (format, Some(kind)));
        match (format, kind) {
            ("gptq", None) => Some(Self::Gptq(Version::V1)),
            ("gptq_v2", None) => Some(Self::Gptq(Version::V2)),
            ("awq", None) => Some(Self::Awq),
            ("compressed-tensors", None) => Some(Self::CompressedTensors),
            ("dequantized", None) => Some(Self::Dequantized(None)),
            ("dequantized", Some(name)) => float(name).map(|float| Self::Dequantized(Some(float))),
            ("gguf", Some(name)) => name.parse().ok().map(Self::Gguf),
            _ => None,
        }
        .ok_or_else(|| UnknownTarget(text.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gptq(version) => f.pad(version.name()),
            Self::Awq => f.pad("awq"),
            Self::CompressedTensors => f.pad("compressed-tensors"),
            Self::Dequantized(None) => f.pad("dequantized"),
            Self::Dequantized(Some(float)) => f.pad(&format!("dequantized:{}", float.name())),
            Self::Gguf(mixture) => f.pad(&format!("gguf:{}", mixture.name())),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = UnknownTarget;

    fn try_from(text: String) -> Result<Self, UnknownTarget> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl Target {
    /// What the output is called among others in one folder.
    pub fn file_name(self) -> String {
        let name = self.to_string().replace(':', "-");
        if self.is_file() { format!("{name}.gguf") } else { name }
    }

    /// Whether the output is one file instead of a folder.
    pub fn is_file(self) -> bool {
        matches!(self, Self::Gguf(_))
    }

    /// The smallest zero-point that the format can hold.
    pub fn smallest_zero(self) -> u8 {
        if self.is_file() {
            return 0;
        }
        self.layout(&Value::Null).zero_points().0
    }

    /// Refuses linears whose widths or settings the format can't hold, each alone or together in one checkpoint.
    pub fn check(self, modules: &[QuantizedModule]) -> Result<(), ModelError> {
        if let Self::Gguf(mixture) = self {
            let refused = |module: &QuantizedModule| {
                gguf::exact::objection(mixture, module).map(|what| tensor_error(&module.name, what))
            };
            return modules.iter().find_map(refused).map_or(Ok(()), Err);
        }
        let layout = self.layout(&Value::Null);
        for module in modules {
            layout.check(module).map_err(|what| tensor_error(&module.name, what))?;
        }
        layout.check_together(modules).map_err(|(index, what)| tensor_error(&modules[index].name, what))
    }

    /// What a reader must get for `matrix` written in this format. `config_json` is that of the checkpoint the other
    /// tensors come from.
    pub fn weight(self, matrix: &QuantizedMatrix, config_json: &Value) -> Vec<f32> {
        if let Self::Gguf(mixture) = self
            && let Ok(blocks) = gguf::exact::blocks(matrix, mixture.base())
        {
            return blocks.dequantize();
        }
        self.rounded(matrix.dequantize(), config_json)
    }

    /// What a reader must get for `weight` written in this format: rounded where the format rounds. `config_json` is
    /// that of the checkpoint the other tensors come from.
    pub fn rounded(self, mut weight: Vec<f32>, config_json: &Value) -> Vec<f32> {
        if let Self::Dequantized(chosen) = self {
            Dequantized::new(chosen, config_json).round(&mut weight);
        }
        weight
    }

    /// Whether it is made of integers, or of weights.
    pub fn takes_integers(self) -> bool {
        !matches!(self, Self::Dequantized(_))
    }

    /// Whether the integers can be read back, or only the weights.
    pub fn holds_integers(self) -> bool {
        !matches!(self, Self::Dequantized(_) | Self::Gguf(_))
    }

    pub(super) fn layout(self, config_json: &Value) -> Box<dyn Layout> {
        match self {
            Self::Gptq(version) => Box::new(Gptq(version)),
            Self::Awq => Box::new(Awq),
            Self::CompressedTensors => Box::new(Compressed),
            Self::Dequantized(chosen) => Box::new(Dequantized::new(chosen, config_json)),
            Self::Gguf(_) => unreachable!("a GGUF file is no folder of safetensors"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_name_and_is_found_by_it() {
        let named = [
            "gptq",
            "gptq_v2",
            "awq",
            "compressed-tensors",
            "dequantized",
            "dequantized:float16",
            "dequantized:bfloat16",
            "dequantized:float32",
        ];
        for name in named {
            assert_eq!(name.parse::<Target>().unwrap().to_string(), name);
        }
        assert_eq!("dequantized:float32".parse::<Target>().unwrap().file_name(), "dequantized-float32");
        let gguf: Target = "gguf:q4_k_m".parse().unwrap();
        assert_eq!((gguf.to_string().as_str(), gguf.file_name().as_str()), ("gguf:Q4_K_M", "gguf-Q4_K_M.gguf"));
        for wrong in ["", "GPTQ", "gptq:4", "dequantized:", "dequantized:int8", "gguf", "gguf:Q9"] {
            assert_eq!(wrong.parse::<Target>(), Err(UnknownTarget(wrong.to_owned())));
        }
    }
}
