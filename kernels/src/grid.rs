//! The quantization grid of a group: finding it, rounding to it.
//!
//! Asymmetric: `scale = (max - min) / max_code` with `min <= 0 <= max`, `zero = round(-min / scale)`. Symmetric:
//! `scale = 2 max|w| / max_code`, `zero = (max_code + 1) / 2`. The scale is rounded to float16 before anything is
//! quantized with it. `code = clamp(round(w / scale) + zero, 0, max_code)`.

use crate::QuantSpec;
use half::f16;

/// Scale and zero-point of one group of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// The step, as it will be stored.
    pub scale: f16,
    /// The code that stands for zero.
    pub zero: u8,
}

impl Grid {
    /// The grid for `weights` under `spec` (bits, symmetry, scale search, smallest zero-point).
    pub fn fit(weights: &[f32], spec: &QuantSpec) -> Self {
        let _ = (weights, spec);
        todo!("kernels helper")
    }

    /// The nearest code.
    pub fn code(&self, weight: f32, max_code: u32) -> u8 {
        let _ = (weight, max_code);
        todo!("kernels helper")
    }

    /// The weight that `code` stands for.
    pub fn value(&self, code: u8) -> f32 {
        self.scale.to_f32() * (f32::from(code) - f32::from(self.zero))
    }
}
