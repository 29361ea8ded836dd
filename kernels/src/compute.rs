//! The arithmetic of the decoder's dense products, chosen by the user and recorded with every result.
//!
//! | name | operands | error of a product, beside that of the float32 sum |
//! |---|---|---|
//! | `f32` | float32 | none |
//! | `bf16x3` | each split into two bfloat16 numbers; three of the four products | 2^-16 of `sum \|x w\|` |
//! | `bf16` | rounded to bfloat16 | 2^-8 of `sum \|x w\|` |
//!
//! Sums are float32 in all of them. Norms, attention, Gram matrices and solvers are float32 always, and so are products
//! of up to [`gemm::FEW_ROWS`] rows, where the weight's way from memory takes the time.

use crate::{bfloat16, gemm};
use serde::{Deserialize, Serialize};

/// How operands enter a dense product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// As they are.
    #[default]
    F32,
    /// Split into two bfloat16 numbers each.
    Bf16x3,
    /// Rounded to bfloat16.
    Bf16,
}

impl Compute {
    /// What does the work on this machine.
    pub fn unit(self) -> &'static str {
        match (self, bfloat16::unit()) {
            (Self::F32, _) => "float32",
            (_, Some(unit)) => unit.name(),
            (Self::Bf16, None) => {
                "rounded to bfloat16, multiplied in float32 (this processor has no bfloat16 products)"
            }
            (Self::Bf16x3, None) => "float32 (this processor has no bfloat16 products)",
        }
    }

    /// `out[r][o] = sum_i x[r][i] w[o][i] + bias[o]` on the calling thread; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`,
    /// `out` `[rows, outputs]`. Row `r` of `out` depends on row `r` of `x` alone, and on whether there are more than
    /// [`gemm::FEW_ROWS`].
    pub fn linear(self, x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
        if x.len() <= gemm::FEW_ROWS * inputs {
            return gemm::linear_few_rows(x, w, bias, inputs, out);
        }
        self.prepare(w, inputs).multiply(x, out);
        if let Some(bias) = bias {
            gemm::add_bias(out, bias);
        }
    }

    /// The weight `w`, `[outputs, inputs]`, for many products.
    pub(crate) fn prepare(self, w: &[f32], inputs: usize) -> Prepared<'_> {
        match (self, bfloat16::unit()) {
            (Self::F32, _) | (Self::Bf16x3, None) => Prepared::Float32 { w, inputs },
            (Self::Bf16, None) => Prepared::Rounded { w: bfloat16::rounded(w), inputs },
            (Self::Bf16x3, Some(unit)) => Prepared::Packed(bfloat16::Packed::new(w, inputs, true, unit)),
            (Self::Bf16, Some(unit)) => Prepared::Packed(bfloat16::Packed::new(w, inputs, false, unit)),
        }
    }
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16x3 => "bf16x3",
            Self::Bf16 => "bf16",
        })
    }
}

/// A weight as the product wants it.
pub(crate) enum Prepared<'a> {
    /// As it is.
    Float32 { w: &'a [f32], inputs: usize },
    /// Rounded to bfloat16.
    Rounded { w: Vec<f32>, inputs: usize },
    /// In tiles.
    Packed(bfloat16::Packed),
}

impl Prepared<'_> {
    /// `out = x wᵀ` for `x` `[rows, inputs]`, any number of rows.
    pub(crate) fn multiply(&self, x: &[f32], out: &mut [f32]) {
        match self {
            Self::Float32 { w, inputs } => gemm::linear(x, w, None, *inputs, out),
            Self::Rounded { w, inputs } => gemm::linear(&bfloat16::rounded(x), w, None, *inputs, out),
            Self::Packed(packed) => packed.multiply(x, out),
        }
    }
}
