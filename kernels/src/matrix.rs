//! A quantized weight as the solver left it: [`QuantizedMatrix`]. The integers are the truth; every format packs them.
//!
//! `w[o][i] = scale[o][g(i)] * (code[o][i] - zero[o][g(i)])` with `g = group_index`.

use crate::QuantSpec;
use half::f16;
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
        let mut weight = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks_exact(self.inputs).enumerate() {
            let scales = &self.scales[row * groups..][..groups];
            let zeros = &self.zeros[row * groups..][..groups];
            weight.extend(codes.iter().zip(&self.group_index).map(|(&code, &group)| {
                let group = group as usize;
                scales[group].to_f32() * (f32::from(code) - f32::from(zeros[group]))
            }));
        }
        weight
    }
}
