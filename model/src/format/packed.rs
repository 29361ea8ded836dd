//! Reading a folder of packed linears, whichever way they are packed: [`PackedFolder`] over a [`Packing`].

use super::{QuantizedModule, StoredType, TensorSource, huggingface::SafetensorsFolder, tensor_error};
use crate::ModelError;
use kernels::{QuantizedMatrix, stored::StoredMatrix};
use safetensors::Dtype;
use std::collections::BTreeMap;

/// The settings of a checkpoint as the reader of its linears.
pub trait Packing: Send + Sync {
    /// Suffixes of the tensors that a linear can consist of; a linear is where the first is.
    const PARTS: &'static [&'static str];

    /// Describes linear `module` and checks shapes and types of its tensors against the settings.
    fn describe(&self, tensors: &SafetensorsFolder, module: &str) -> Result<QuantizedModule, ModelError>;

    /// The integers of `module`.
    fn matrix(&self, tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<QuantizedMatrix, ModelError>;

    /// The weight as it is stored.
    fn stored(&self, tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<StoredMatrix, ModelError> {
        Ok(StoredMatrix::from(&self.matrix(tensors, module)?))
    }
}

/// A packed checkpoint seen as float tensors, and as integers through [`TensorSource::quantized`].
pub struct PackedFolder<P> {
    tensors: SafetensorsFolder,
    settings: P,
    /// Quantized linears by name.
    modules: BTreeMap<String, QuantizedModule>,
}

impl<P: Packing> PackedFolder<P> {
    /// Checks the settings against the tensors' shapes and types.
    pub(super) fn new(tensors: SafetensorsFolder, settings: P) -> Result<Self, ModelError> {
        let names = tensors.names();
        let mut modules = BTreeMap::new();
        for name in &names {
            if let Some((module, suffix)) = name.rsplit_once('.')
                && suffix == P::PARTS[0]
            {
                modules.insert(module.to_owned(), settings.describe(&tensors, module)?);
            }
        }
        for name in &names {
            check_belongs::<P>(name, &modules)?;
        }
        Ok(Self { tensors, settings, modules })
    }

    /// The settings.
    pub fn settings(&self) -> &P {
        &self.settings
    }

    /// The quantized linears, in the order of their names.
    pub fn modules(&self) -> Vec<QuantizedModule> {
        self.modules.values().cloned().collect()
    }

    /// The quantized linear whose weight is called `name`.
    fn module_of(&self, name: &str) -> Option<&QuantizedModule> {
        self.modules.get(name.strip_suffix(".weight")?)
    }
}

/// Refuses pieces of a quantized linear that has no codes, and a linear that is there twice.
fn check_belongs<P: Packing>(name: &str, modules: &BTreeMap<String, QuantizedModule>) -> Result<(), ModelError> {
    let Some((module, suffix)) = name.rsplit_once('.') else { return Ok(()) };
    let codes = P::PARTS[0];
    let quantized = modules.contains_key(module);
    if !quantized && P::PARTS.contains(&suffix) {
        return Err(tensor_error(name, format!("has no `{module}.{codes}` beside it")));
    }
    if quantized && suffix == "weight" {
        return Err(tensor_error(name, format!("stands beside `{module}.{codes}`: which one holds?")));
    }
    Ok(())
}

/// The bytes of one part of a linear, its type (one of `types`) and shape checked.
pub(super) fn part_bytes<'a>(
    tensors: &'a SafetensorsFolder,
    module: &QuantizedModule,
    suffix: &str,
    types: &[Dtype],
    expected: &[usize],
) -> Result<(Dtype, &'a [u8]), ModelError> {
    let name = format!("{}.{suffix}", module.name);
    let (dtype, shape, bytes) = tensors.raw(&name)?;
    if !types.contains(&dtype) {
        let allowed: Vec<String> = types.iter().map(|dtype| format!("{dtype:?}")).collect();
        return Err(tensor_error(&name, format!("is of type {dtype:?}, not {}", allowed.join(" or "))));
    }
    if shape != expected {
        let (bits, group) = (module.spec.bits, module.spec.group_size.map_or("-1".into(), |size| size.to_string()));
        let what = format!(
            "has shape {shape:?}, not {expected:?} as {} inputs, {} outputs, {bits} bits and group size {group} make it",
            module.inputs, module.outputs
        );
        return Err(tensor_error(&name, what));
    }
    Ok((dtype, bytes))
}

/// The two axes of the codes of `module`.
pub(super) fn two_axes(tensors: &SafetensorsFolder, name: &str) -> Result<[usize; 2], ModelError> {
    let (_, shape, _) = tensors.raw(name)?;
    match *shape.as_slice() {
        [rows, columns] => Ok([rows, columns]),
        _ => Err(tensor_error(name, format!("has shape {shape:?}, not two axes"))),
    }
}

impl<P: Packing> TensorSource for PackedFolder<P> {
    fn names(&self) -> Vec<String> {
        let is_part = |name: &String| {
            let (module, suffix) = name.rsplit_once('.').unwrap_or_default();
            self.modules.contains_key(module) && P::PARTS.contains(&suffix)
        };
        let mut names: Vec<String> = self.tensors.names().into_iter().filter(|name| !is_part(name)).collect();
        names.extend(self.modules.keys().map(|module| format!("{module}.weight")));
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        match self.module_of(name) {
            Some(module) => Ok(vec![module.outputs, module.inputs]),
            None => self.tensors.shape(name),
        }
    }

    fn stored_type(&self, name: &str) -> Result<StoredType, ModelError> {
        match self.module_of(name) {
            Some(_) => Ok(StoredType::Quantized),
            None => self.tensors.stored_type(name),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        match self.module_of(name) {
            Some(module) => Ok(self.settings.stored(&self.tensors, module)?.dequantize()),
            None => self.tensors.read(name),
        }
    }

    fn stored(&self, name: &str) -> Result<StoredMatrix, ModelError> {
        match self.module_of(name) {
            Some(module) => self.settings.stored(&self.tensors, module),
            None => self.tensors.stored(name),
        }
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, ModelError> {
        let Some(module) = self.module_of(name) else { return self.tensors.read_rows(name, rows) };
        if let Some(row) = rows.iter().find(|&&row| row as usize >= module.outputs) {
            return Err(tensor_error(name, format!("has no row {row}, only {}", module.outputs)));
        }
        let weight = self.settings.stored(&self.tensors, module)?;
        let mut values = vec![0.0; rows.len() * module.inputs];
        for (&row, out) in rows.iter().zip(values.chunks_exact_mut(module.inputs)) {
            weight.read(row as usize..row as usize + 1, out);
        }
        Ok(values)
    }

    fn quantized(&self, module: &str) -> Result<Option<QuantizedMatrix>, ModelError> {
        self.modules.get(module).map(|module| self.settings.matrix(&self.tensors, module)).transpose()
    }
}
