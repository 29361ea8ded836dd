//! One quantized matrix to the bytes of its four tensors and back; the layout table is in the module above.

use super::{QuantizedModule, Version, tensor_error};
use crate::ModelError;
use kernels::{ActOrder, QuantSpec, QuantizedMatrix, pack};
use rayon::prelude::*;
use safetensors::Dtype;

/// The four tensors of a quantized linear, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    GroupIndex,
    Codes,
    Zeros,
    Scales,
}

impl Part {
    pub(super) const ALL: [Self; 4] = [Self::GroupIndex, Self::Codes, Self::Zeros, Self::Scales];

    /// What follows the module's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::GroupIndex => "g_idx",
            Self::Codes => "qweight",
            Self::Zeros => "qzeros",
            Self::Scales => "scales",
        }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::Scales => Dtype::F16,
            _ => Dtype::I32,
        }
    }

    pub(super) fn shape(self, outputs: usize, inputs: usize, spec: &QuantSpec) -> Vec<usize> {
        let bits = spec.bits as usize;
        match self {
            Self::GroupIndex => vec![inputs],
            Self::Codes => vec![inputs * bits / 32, outputs],
            Self::Zeros => vec![spec.groups(inputs), outputs * bits / 32],
            Self::Scales => vec![spec.groups(inputs), outputs],
        }
    }

    /// The tensor's bytes; `matrix` has passed [`check_matrix`].
    pub(super) fn bytes(self, matrix: &QuantizedMatrix, version: Version) -> Vec<u8> {
        match self {
            Self::GroupIndex => words_to_bytes(&matrix.group_index),
            Self::Codes => codes_to_bytes(matrix),
            Self::Zeros => zeros_to_bytes(matrix, version),
            Self::Scales => scales_to_bytes(matrix),
        }
    }
}

/// Refuses a linear whose widths the layout cannot hold: packers and kernels take 32 values at a time on both axes.
pub fn check_shape(module: &str, outputs: usize, inputs: usize) -> Result<(), ModelError> {
    for (axis, width) in [("inputs", inputs), ("outputs", outputs)] {
        if width == 0 || !width.is_multiple_of(32) {
            let what = format!(
                "{width} {axis} are not a multiple of 32, which GPTQ files need on both axes: leave this module in full \
                 precision"
            );
            return Err(tensor_error(module, what));
        }
    }
    Ok(())
}

/// Refuses a matrix that is not what `module` announces or that `version` cannot hold without loss.
pub(super) fn check_matrix(
    module: &QuantizedModule,
    matrix: &QuantizedMatrix,
    version: Version,
) -> Result<(), ModelError> {
    let error = |what: String| Err(tensor_error(&module.name, what));
    if (matrix.outputs, matrix.inputs) != (module.outputs, module.inputs) {
        return error(format!(
            "the quantized matrix is {} x {}, the module {} x {}",
            matrix.outputs, matrix.inputs, module.outputs, module.inputs
        ));
    }
    if matrix.spec != module.spec {
        return error(format!("quantized with {:?} where {:?} was announced", matrix.spec, module.spec));
    }
    let groups = matrix.groups();
    let lengths = [matrix.codes.len(), matrix.scales.len(), matrix.zeros.len(), matrix.group_index.len()];
    let expected = [matrix.outputs * matrix.inputs, matrix.outputs * groups, matrix.outputs * groups, matrix.inputs];
    if lengths != expected {
        return error(format!("codes, scales, zeros and group index hold {lengths:?} values, not {expected:?}"));
    }
    check_values(module, matrix, version).or_else(error)
}

/// The value checks of [`check_matrix`].
fn check_values(module: &QuantizedModule, matrix: &QuantizedMatrix, version: Version) -> Result<(), String> {
    let max_code = matrix.spec.max_code();
    if let Some(code) = matrix.codes.iter().find(|&&code| u32::from(code) > max_code) {
        return Err(format!("code {code} does not fit {} bits", matrix.spec.bits));
    }
    if let Some(scale) = matrix.scales.iter().find(|scale| !scale.is_finite()) {
        return Err(format!("a scale is {scale}: the weight's range does not fit float16"));
    }
    let smallest = version.offset();
    for &zero in &matrix.zeros {
        if zero < smallest || u32::from(zero) > max_code {
            return Err(format!(
                "zero-point {zero} cannot be stored as `{}`, which holds {smallest}..={max_code}",
                version.name()
            ));
        }
        if matrix.spec.symmetric && zero != middle(matrix.spec.bits) {
            return Err(format!(
                "zero-point {zero} in a symmetric matrix, whose zero-point is {}",
                middle(matrix.spec.bits)
            ));
        }
    }
    check_group_index(&matrix.group_index, &matrix.spec, Some(module.spec.act_order == ActOrder::Desc))
}

/// The zero-point of every symmetric grid of `bits` bits.
pub(super) fn middle(bits: u32) -> u8 {
    1 << (bits - 1)
}

/// Refuses a group index out of range and, where the settings say that columns were not reordered (`desc_act` is
/// false), one that is not `i / group_size`: loaders then compute it themselves.
pub(super) fn check_group_index(index: &[u32], spec: &QuantSpec, desc_act: Option<bool>) -> Result<(), String> {
    let (groups, columns) = (spec.groups(index.len()), spec.columns_per_group(index.len()));
    for (column, &group) in index.iter().enumerate() {
        if group as usize >= groups {
            return Err(format!("column {column} is in group {}, of {groups} groups", group.cast_signed()));
        }
        if desc_act == Some(false) && group as usize != column / columns {
            return Err(format!(
                "column {column} is in group {group}, but `desc_act` is false, which puts it in group {}",
                column / columns
            ));
        }
    }
    Ok(())
}

fn codes_to_bytes(matrix: &QuantizedMatrix) -> Vec<u8> {
    let (inputs, bits) = (matrix.inputs, matrix.spec.bits);
    let streams: Vec<u32> =
        matrix.codes.par_chunks_exact(inputs).flat_map_iter(|row| pack::pack(row.iter().copied(), bits)).collect();
    words_to_bytes(&transpose(&streams, matrix.outputs))
}

fn zeros_to_bytes(matrix: &QuantizedMatrix, version: Version) -> Vec<u8> {
    let offset = version.offset();
    let fields = transpose(&matrix.zeros, matrix.outputs);
    let words: Vec<u32> = fields
        .chunks_exact(matrix.outputs)
        .flat_map(|group| pack::pack(group.iter().map(|zero| zero - offset), matrix.spec.bits))
        .collect();
    words_to_bytes(&words)
}

fn scales_to_bytes(matrix: &QuantizedMatrix) -> Vec<u8> {
    transpose(&matrix.scales, matrix.outputs).iter().flat_map(|scale| scale.to_le_bytes()).collect()
}

/// The bytes of a linear's four tensors, as mapped.
pub(super) struct Packed<'a> {
    pub(super) codes: &'a [u8],
    pub(super) zeros: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) group_index: Vec<u32>,
}

impl Packed<'_> {
    /// The matrix; lengths have been checked against [`Part::shape`]. Fails on a zero-point without a sure meaning.
    pub(super) fn matrix(&self, module: &QuantizedModule, version: Version) -> Result<QuantizedMatrix, String> {
        let QuantizedModule { outputs, inputs, spec, .. } = *module;
        let groups = spec.groups(inputs);
        let every_output: Vec<usize> = (0..outputs).collect();
        let words = outputs * spec.bits as usize / 32;
        let mut zeros = Vec::with_capacity(groups * outputs);
        for group in bytes_to_words(self.zeros).chunks_exact(words) {
            for field in pack::unpack(group, spec.bits, outputs) {
                zeros.push(zero_point(field, &spec, version)?);
            }
        }
        let scales: Vec<half::f16> =
            self.scales.as_chunks::<2>().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes)).collect();
        Ok(QuantizedMatrix {
            outputs,
            inputs,
            spec,
            codes: self.codes_of(&every_output, module),
            scales: transpose(&scales, groups),
            zeros: transpose(&zeros, groups),
            group_index: self.group_index.clone(),
        })
    }

    /// The codes of some rows of the weight, `[rows, inputs]`.
    pub(super) fn codes_of(&self, rows: &[usize], module: &QuantizedModule) -> Vec<u8> {
        let (bits, outputs) = (module.spec.bits, module.outputs);
        let words = self.codes.as_chunks::<4>().0;
        let unpack_row = |&row: &usize| {
            let stream: Vec<u32> = words[row..].iter().step_by(outputs).map(|&word| u32::from_le_bytes(word)).collect();
            pack::unpack(&stream, bits, module.inputs)
        };
        rows.par_iter().with_min_len(16).flat_map_iter(unpack_row).collect()
    }
}

/// The zero-point that a stored `field` means.
fn zero_point(field: u8, spec: &QuantSpec, version: Version) -> Result<u8, String> {
    let max_code = spec.max_code();
    if spec.symmetric && u32::from(field) + u32::from(version.offset()) != u32::from(middle(spec.bits)) {
        return Err(format!(
            "the stored zero-point {field} is not that of a symmetric `{}` grid of {} bits",
            version.name(),
            spec.bits
        ));
    }
    if u32::from(field) + u32::from(version.offset()) > max_code {
        return Err(format!(
            "the stored zero-point {field} is ambiguous: some loaders read {}, some 0; write the file as `gptq_v2`",
            u32::from(field) + 1
        ));
    }
    Ok(field + version.offset())
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
    let columns = values.len() / rows;
    (0..columns).flat_map(|column| values[column..].iter().step_by(columns).copied()).collect()
}

fn words_to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian int32 words, sign ignored.
pub(super) fn bytes_to_words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}
