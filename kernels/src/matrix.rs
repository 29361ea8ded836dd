//! A quantized weight as the solver left it: [`QuantizedMatrix`]. The integers are the truth; every format packs them.
//!
//! `w[o][i] = scale[o][g(i)] * (code[o][i] - zero[o][g(i)])` with `g = group_index`.

use crate::QuantSpec;
use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Codes, scales and zero-points of one weight `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedMatrix {
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// The settings it was made with.
    pub spec: QuantSpec,
    /// `[outputs, inputs]`, columns in their stored order.
    pub codes: Vec<u8>,
    /// `[outputs, groups]`, already rounded to the stored type.
    pub scales: Vec<f16>,
    /// `[outputs, groups]`.
    pub zeros: Vec<u8>,
    /// `[inputs]`: the group of each column.
    pub group_index: Vec<u32>,
}

impl QuantizedMatrix {
    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.spec.groups(self.inputs)
    }

    /// The weight that a loader will compute with, `[outputs, inputs]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let groups = self.groups();
        let mut weight = vec![0.0; self.codes.len()];
        let rows = weight.par_chunks_exact_mut(self.inputs).zip(self.codes.par_chunks_exact(self.inputs)).enumerate();
        rows.with_min_len(4).for_each(|(row, (weight, codes))| {
            let scales: Vec<f32> = self.scales[row * groups..][..groups].iter().map(|scale| scale.to_f32()).collect();
            let zeros = &self.zeros[row * groups..][..groups];
            for ((weight, code), group) in weight.iter_mut().zip(codes).zip(&self.group_index) {
                let group = *group as usize;
                *weight = scales[group] * (f32::from(*code) - f32::from(zeros[group]));
            }
        });
        weight
    }
}
