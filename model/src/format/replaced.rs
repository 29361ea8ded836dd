//! A checkpoint's tensors with other numbers in some of them: what a quantizer folded into norms and biases.

use super::{StoredType, TensorSource};
use crate::ModelError;
use kernels::{QuantizedMatrix, stored::StoredMatrix};
use std::{collections::BTreeMap, sync::Arc};

/// Tensors of `source`, some of them replaced.
pub struct Replaced {
    source: Arc<dyn TensorSource>,
    values: BTreeMap<String, Vec<f32>>,
}

impl Replaced {
    /// Puts `values` in the place of `source`'s tensors of the same names and sizes.
    pub fn new(source: Arc<dyn TensorSource>, values: BTreeMap<String, Vec<f32>>) -> Result<Self, ModelError> {
        for (name, values) in &values {
            let count: usize = source.shape(name)?.iter().product();
            let what = if values.len() != count {
                format!("is to be replaced by {} numbers, but has {count}", values.len())
            } else if source.stored_type(name)? == StoredType::Quantized {
                "is to be replaced by floats, but is quantized".to_owned()
            } else {
                continue;
            };
            return Err(ModelError::Tensor { tensor: name.clone(), what });
        }
        Ok(Self { source, values })
    }
}

impl TensorSource for Replaced {
    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        self.source.shape(name)
    }

    fn stored_type(&self, name: &str) -> Result<StoredType, ModelError> {
        self.source.stored_type(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.values.get(name).map_or_else(|| self.source.read(name), |values| Ok(values.clone()))
    }

    fn stored(&self, name: &str) -> Result<StoredMatrix, ModelError> {
        let Some(values) = self.values.get(name) else { return self.source.stored(name) };
        let inputs = self.source.shape(name)?.last().copied().unwrap_or_default().max(1);
        Ok(StoredMatrix::float32(values.clone(), inputs))
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        let Some(values) = self.values.get(name) else { return self.source.read_rows(name, rows) };
        let shape = self.source.shape(name)?;
        let width: usize = shape.iter().skip(1).product();
        let row = |&row: &u32| {
            let missing = || ModelError::Tensor { tensor: name.to_owned(), what: format!("has no row {row}") };
            values.chunks_exact(width).nth(row as usize).ok_or_else(missing)
        };
        Ok(rows.iter().map(row).collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn quantized(&self, module: &str) -> Result<Option<QuantizedMatrix>, ModelError> {
        self.source.quantized(module)
    }
}
