//! The arithmetic of the decoder's dense products, chosen by the user and recorded with every result.
//!
//! | name | operands | error of a product, beside that of the float32 sum |
//! |---|---|---|
//! | `f32` | float32 | none |
//! | `bf16x3` | each split into two bfloat16 numbers; three of the four products | 3 · 2^-16 of `sum \|x w\|` |
//! | `bf16` | rounded to bfloat16 | 2^-7 of `sum \|x w\|` |
//!
//! Sums are float32 in all of them. Attention's two products go the same way where the processor has bfloat16 products.
//! Gram matrices are of split numbers by either, where the processor has tiles for them, else float32
//! ([`crate::gram::accumulate_by`]). Norms, softmax and solvers are float32 always, and so are products of up to
//! [`FEW_ROWS`] rows, where the weight's way from memory takes the time.

use crate::{
    bfloat16,
    few_rows::{self, FEW_ROWS},
    gemm,
};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

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
    /// [`FEW_ROWS`].
    pub fn linear(self, x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
        self.linear_again(&Prepared::default(), x, w, bias, inputs, out);
    }

    /// [`Self::linear`] by a weight that is multiplied often: `prepared` begins as the default and has to do with this weight
    /// and this arithmetic only.
    pub fn linear_again(
        self,
        prepared: &Prepared,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        inputs: usize,
        out: &mut [f32],
    ) {
        if x.len() <= FEW_ROWS * inputs {
            return few_rows::linear(x, w, bias, inputs, out);
        }
        self.multiply(prepared, x, w, inputs, out);
        if let Some(bias) = bias {
            gemm::add_bias(out, bias);
        }
    }

    /// `out = x wᵀ` for any number of rows, by the instructions for many; otherwise as [`Self::linear_again`].
    pub(crate) fn multiply(self, prepared: &Prepared, x: &[f32], w: &[f32], inputs: usize, out: &mut [f32]) {
        match prepared.0.get_or_init(|| self.prepare(w, inputs)) {
            Operand::Float32 => gemm::linear(x, w, None, inputs, out),
            Operand::Rounded(w) => gemm::linear(&bfloat16::rounded(x), w, None, inputs, out),
            Operand::Packed(packed) => packed.multiply(x, out),
        }
    }

    fn prepare(self, w: &[f32], inputs: usize) -> Operand {
        match (self, self.split()) {
            (_, Some((split, unit))) => Operand::Packed(bfloat16::Packed::new(w, inputs, split, unit)),
            (Self::Bf16, None) => Operand::Rounded(bfloat16::rounded(w)),
            (Self::F32 | Self::Bf16x3, None) => Operand::Float32,
        }
    }

    /// Whether operands are split, and what multiplies them; nothing where it is float32 arithmetic.
    pub(crate) fn split(self) -> Option<(bool, bfloat16::Unit)> {
        (self != Self::F32).then(bfloat16::unit).flatten().map(|unit| (self == Self::Bf16x3, unit))
    }
}

/// A weight as products of many rows want it, made when the first comes: as large as the weight in float32 at most.
#[derive(Debug, Default)]
pub struct Prepared(OnceLock<Operand>);

#[derive(Debug)]
enum Operand {
    /// The weight as it is.
    Float32,
    /// Rounded to bfloat16.
    Rounded(Vec<f32>),
    /// In tiles.
    Packed(bfloat16::Packed),
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
