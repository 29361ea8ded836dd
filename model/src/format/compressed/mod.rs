//! compressed-tensors checkpoints of the format `pack-quantized`: weights keep their orientation, one matrix of words.
//!
//! `w[o][i] = weight_scale[o][g] * (q[o][i] - z[o][g])` with `g = weight_g_idx[i]`, else `i / group_size`. For a linear of
//! `out` rows and `in` columns, `b` bits (4 or 8), `p = 32 / b` values to a word and `G` groups, `<module>.weight` is
//! replaced by
//!
//! | tensor | shape | type | |
//! |---|---|---|---|
//! | `<module>.weight_packed` | `[out, ceil(in / p)]` | int32 | a word holds `p` inputs, lowest bits first |
//! | `<module>.weight_scale` | `[out, G]` | float16; also read: bfloat16, float32 | |
//! | `<module>.weight_zero_point` | `[ceil(out / p), G]` | int32 | asymmetric only; a word holds `p` outputs |
//! | `<module>.weight_g_idx` | `[in]` | int32 | only with `actorder` `group` |
//! | `<module>.weight_shape` | `[2]` | int64; also read: int32 | `out`, `in` |
//!
//! Values are signed there and stored with `2^(b-1)` added, zero-points too; that is `q` and `z` as they are here.
//! Strategy `group` has `G = in / group_size`, `channel` has one group a row. The settings stand in `config.json` under
//! `quantization_config`: groups of settings, each with the linears it is for, and `ignore` for those left in full
//! precision. One group of settings is for the class `Linear`; several name their linears.
//!
//! Not read: other formats of the same method, quantized activations or caches, sparsity, transforms.

mod config;
mod layout;

pub use config::{Scheme, Settings};
pub(super) use layout::Compressed;

use crate::{
    ModelError,
    format::{PackedFolder, huggingface::SafetensorsFolder},
};
use serde_json::Value;
use std::path::Path;

/// A compressed-tensors checkpoint.
pub type CompressedFolder = PackedFolder<Settings>;

impl CompressedFolder {
    /// Checks the `quantization_config` of the `config.json` in `folder` against the tensors' shapes and types.
    pub fn open(tensors: SafetensorsFolder, config_json: &Value, folder: &Path) -> Result<Self, ModelError> {
        Self::new(tensors, Settings::parse(&config_json["quantization_config"], &folder.join("config.json"))?)
    }
}
