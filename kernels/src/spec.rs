//! What a linear layer is quantized to: [`QuantSpec`].

use serde::{Deserialize, Serialize};

/// The order in which GPTQ visits the columns of a weight, and what of it stays visible on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActOrder {
    /// Columns in their stored order.
    None,
    /// Descending diagonal of the Hessian; groups are runs of that order, so the group index is written to disk.
    Desc,
    /// Descending diagonal; groups are runs of the stored order, their grids fixed beforehand on the given weights.
    #[default]
    Static,
    /// Groups ordered by their largest diagonal entry, columns ordered inside their group; no trace on disk.
    Group,
}

/// How a group's scale is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleSearch {
    /// The grid spans the smallest and the largest weight.
    #[default]
    MinMax,
    /// The grid is shrunk step by step to where the summed |error|^2.4 is least.
    Mse,
}

/// Settings of one quantized matrix; [`QuantSpec::check`] is called once, nothing downstream checks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantSpec {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Consecutive input columns that share a scale; `None` is one group for the whole row.
    pub group_size: Option<usize>,
    /// Whether the grid is symmetric around zero (zero-point fixed at `2^(bits-1)`).
    pub symmetric: bool,
    /// The order of columns in GPTQ.
    pub act_order: ActOrder,
    /// How scales are found.
    pub scale_search: ScaleSearch,
    /// The smallest zero-point allowed: 1 where the format stores `zero - 1` (GPTQ v1), else 0.
    pub smallest_zero: u8,
}

/// A setting that no quantizer here can follow.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Bits outside 2, 3, 4, 8.
    #[error("{bits} bits are not supported: choose 2, 3, 4 or 8")]
    Bits {
        /// The bits asked for.
        bits: u32,
    },
    /// Group size below 8.
    #[error("a group of {group_size} columns is too small: choose at least 8, or -1 for one group per row")]
    GroupSize {
        /// The group size asked for.
        group_size: usize,
    },
}

impl QuantSpec {
    /// Refuses settings that no quantizer here can follow.
    pub fn check(&self) -> Result<(), SpecError> {
        if !matches!(self.bits, 2 | 3 | 4 | 8) {
            return Err(SpecError::Bits { bits: self.bits });
        }
        match self.group_size {
            Some(group_size) if group_size < 8 => Err(SpecError::GroupSize { group_size }),
            _ => Ok(()),
        }
    }

    /// The largest code, `2^bits - 1`.
    pub fn max_code(&self) -> u32 {
        (1 << self.bits) - 1
    }

    /// Columns per group for a row of `inputs` columns.
    pub fn columns_per_group(&self, inputs: usize) -> usize {
        self.group_size.map_or(inputs, |size| size.min(inputs))
    }

    /// Groups per row of `inputs` columns; the last may be shorter.
    pub fn groups(&self, inputs: usize) -> usize {
        inputs.div_ceil(self.columns_per_group(inputs))
    }
}
