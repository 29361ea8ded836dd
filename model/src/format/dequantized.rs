//! Float safetensors: the weights that a loader of the packed checkpoint computes with, rounded once to the stored type.
//!
//! | tensor | shape | type |
//! |---|---|---|
//! | `<module>.weight` | `[out, in]` | float16, bfloat16 or float32 |
//!
//! Without a chosen type a weight gets that of `torch_dtype` (float16 where there is none) and other tensors keep theirs;
//! a chosen type is that of every tensor. Nothing in the folder says that it was quantized.

use super::{
    Contents, QuantizedModule, StoredType,
    layout::{Layout, Part},
    write::encode,
};
use crate::ModelError;
use half::{bf16, f16};
use kernels::QuantizedMatrix;
use safetensors::Dtype;
use serde_json::Value;

/// A float type on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    Bfloat16,
    /// IEEE single precision.
    Float32,
}

impl FloatType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Float16, Self::Bfloat16, Self::Float32];

    /// Its name in `torch_dtype`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Float16 => Dtype::F16,
            Self::Bfloat16 => Dtype::BF16,
            Self::Float32 => Dtype::F32,
        }
    }

    /// The type that `config.json` names.
    fn stated(config_json: &Value) -> Option<Self> {
        let name = ["torch_dtype", "dtype"].iter().find_map(|key| config_json.get(key)?.as_str())?;
        Self::ALL.into_iter().find(|float| float.name() == name)
    }
}

/// The layout with a chosen type, or that of the weights alone.
pub(super) struct Dequantized {
    chosen: Option<FloatType>,
    weights: FloatType,
}

impl Dequantized {
    pub(super) fn new(chosen: Option<FloatType>, config_json: &Value) -> Self {
        Self { chosen, weights: chosen.or(FloatType::stated(config_json)).unwrap_or(FloatType::Float16) }
    }

    /// `weight` as it comes back from the stored type.
    pub(super) fn round(&self, weight: &mut [f32]) {
        match self.weights {
            FloatType::Float16 => weight.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
            FloatType::Bfloat16 => weight.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
            FloatType::Float32 => {}
        }
    }
}

impl Layout for Dequantized {
    fn check(&self, _: &QuantizedModule) -> Result<(), String> {
        Ok(())
    }

    fn zero_points(&self) -> (u8, &'static str) {
        (0, "dequantized")
    }

    fn parts(&self, module: &QuantizedModule) -> Vec<Part> {
        vec![Part { suffix: "weight", dtype: self.weights.dtype(), shape: vec![module.outputs, module.inputs] }]
    }

    fn pack(&self, module: &QuantizedModule, _: usize, matrix: &QuantizedMatrix) -> Result<Vec<u8>, ModelError> {
        encode(&module.name, &matrix.dequantize(), self.weights.dtype())
    }

    fn float_type(&self, stored: StoredType, _: bool) -> Dtype {
        match (self.chosen, stored) {
            (Some(chosen), _) => chosen.dtype(),
            (None, StoredType::F32) => Dtype::F32,
            (None, StoredType::BF16) => Dtype::BF16,
            (None, StoredType::F16) => Dtype::F16,
            (None, StoredType::Quantized) => self.weights.dtype(),
        }
    }

    fn settings(&self, _: &Contents<'_>, _: &[String]) -> Result<Option<Value>, ModelError> {
        Ok(None)
    }

    fn torch_dtype(&self, _: &Contents<'_>) -> Option<&'static str> {
        Some(self.weights.name())
    }
}
