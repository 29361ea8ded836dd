//! GPTQ checkpoints (v1 and v2): a Hugging Face folder in which every quantized linear is five tensors.
//!
//! `w[o][i] = scales[g][o] * (q[i][o] - z[g][o])` with `g = g_idx[i]`. For a linear of `out` rows and `in` columns,
//! `b` bits and `G = ceil(in / group_size)` groups, `<module>.weight` is replaced by
//!
//! | tensor | shape | type | |
//! |---|---|---|---|
//! | `<module>.qweight` | `[in * b / 32, out]` | int32 | one bit stream per output, running along the inputs |
//! | `<module>.qzeros` | `[G, out * b / 32]` | int32 | one bit stream per group, running along the outputs |
//! | `<module>.scales` | `[G, out]` | float16 | |
//! | `<module>.g_idx` | `[in]` | int32 | group of each column, written even where it is `i / group_size` |
//! | `<module>.bias` | `[out]` | float16 | only if the layer has one |
//!
//! In the stream value `i` occupies bits `[b * i, b * (i + 1))`, least significant bit first, across word borders
//! ([`kernels::pack`]). Version 1 stores `z - 1` in every field and its loaders add the one back, so `z = 0` does not
//! exist there; version 2 stores `z`. The settings stand in `config.json` under `quantization_config` and, the same
//! object, in `quantize_config.json`; modules that differ are named in its `dynamic` table.
//!
//! Not read: `gptq_p` planes, Marlin-packed files, packing into other words than int32.

mod config;
mod layout;
mod read;

pub use config::{ModuleSettings, Settings};
pub(super) use layout::Gptq;
pub use read::GptqFolder;

/// How zero-points are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Minus one: what every loader reads.
    #[default]
    V1,
    /// As they are.
    V2,
}

impl Version {
    /// What is added to a stored field to make the zero-point.
    pub(super) fn offset(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 0,
        }
    }

    /// Its name in `checkpoint_format`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "gptq",
            Self::V2 => "gptq_v2",
        }
    }
}
