//! The inner loops of round-to-nearest and GPTQ over a whole weight; `quantize::gptq` explains the method.
//!
//! For each row on its own, columns in the given order, `U` the upper factor of the inverse Hessian in that order:
//! `q_j = round(w_j)`, `e = (w_j - q_j) / U_jj`, `w_k -= e U_jk` for all later `k`.

use crate::{QuantSpec, QuantizedMatrix};

/// How the columns of a weight are visited and grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnPlan {
    /// Position → stored column.
    pub order: Vec<usize>,
    /// Stored column → group.
    pub group_index: Vec<u32>,
    /// Whether the grids are fitted beforehand on the given weights (else at a group's first column, on the weights as
    /// the columns before have left them; the columns of a group then follow each other in `order`).
    pub fixed_grids: bool,
}

/// Rounds every weight (`[outputs, inputs]`) to the nearest code of its group.
pub fn round_to_nearest(weight: &[f32], inputs: usize, spec: &QuantSpec) -> QuantizedMatrix {
    let _ = (weight, inputs, spec);
    todo!("kernels helper")
}

/// Quantizes with error compensation; `u` is `[inputs, inputs]` in the order of `plan`. Rows run in parallel.
pub fn compensate(weight: &[f32], u: &[f32], plan: &ColumnPlan, spec: &QuantSpec) -> QuantizedMatrix {
    let _ = (weight, u, plan, spec);
    todo!("kernels helper")
}
