//! What a format says of itself so that writing and reading a folder are the same for all: [`Layout`].

use super::{Contents, QuantizedModule, StoredType, tensor_error};
use crate::{ModelError, config::Family, runtimes::dividing_group_sizes};
use kernels::{ActOrder, QuantSpec, QuantizedMatrix};
use safetensors::Dtype;
use serde_json::Value;

/// One of the tensors that a quantized linear becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// What follows the module's name.
    pub(super) suffix: &'static str,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

/// How quantized linears lie in safetensors files, and what `config.json` says of them.
pub(super) trait Layout: Sync {
    /// Refuses a linear whose widths or settings the format can't hold, in a sentence about the linear.
    fn check(&self, module: &QuantizedModule) -> Result<(), String>;

    /// Refuses linears that the format can't hold in one checkpoint, naming one by its place.
    fn check_together(&self, modules: &[QuantizedModule]) -> Result<(), (usize, String)> {
        let _ = modules;
        Ok(())
    }

    /// The smallest zero-point that a field holds, and the format's name for a complaint.
    fn zero_points(&self) -> (u8, &'static str);

    /// The tensors of a linear, in the order in which they are written.
    fn parts(&self, module: &QuantizedModule) -> Vec<Part>;

    /// The bytes of `parts(module)[part]`; `matrix` has passed [`check_matrix`].
    fn pack(&self, module: &QuantizedModule, part: usize, matrix: &QuantizedMatrix) -> Result<Vec<u8>, ModelError>;

    /// The type that a float tensor gets which was `stored` in the source; `of_quantized` for the bias of a quantized
    /// linear.
    fn float_type(&self, stored: StoredType, of_quantized: bool) -> Dtype {
        match stored {
            _ if of_quantized => Dtype::F16,
            StoredType::F32 => Dtype::F32,
            StoredType::BF16 => Dtype::BF16,
            StoredType::F16 | StoredType::Quantized => Dtype::F16,
        }
    }

    /// `quantization_config`; `skipped` are the linears that stay in full precision. `None` where nothing is packed.
    fn settings(&self, contents: &Contents<'_>, skipped: &[String]) -> Result<Option<Value>, ModelError>;

    /// Another file for the same settings, where loaders look for one.
    fn settings_file(&self) -> Option<&'static str> {
        None
    }

    /// `torch_dtype`, where it must not stay what the source has.
    fn torch_dtype(&self, contents: &Contents<'_>) -> Option<&'static str>;
}

/// `torch_dtype` beside float16 scales: a bfloat16 run would round them; Gemma's activations alone need its range.
pub(super) fn dtype_beside_half_scales(contents: &Contents<'_>) -> &'static str {
    if contents.source.config.family == Family::Gemma3 { "bfloat16" } else { "float16" }
}

/// Refuses a matrix that is not what `module` announces or that the format cannot hold without loss.
pub(super) fn check_matrix(
    layout: &dyn Layout,
    module: &QuantizedModule,
    matrix: &QuantizedMatrix,
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
    check_values(module, matrix, layout.zero_points()).or_else(error)
}

/// The value checks of [`check_matrix`].
fn check_values(
    module: &QuantizedModule,
    matrix: &QuantizedMatrix,
    (smallest, format): (u8, &str),
) -> Result<(), String> {
    let max_code = matrix.spec.max_code();
    if let Some(code) = matrix.codes.iter().find(|&&code| u32::from(code) > max_code) {
        return Err(format!("code {code} does not fit {} bits", matrix.spec.bits));
    }
    if let Some(scale) = matrix.scales.iter().find(|scale| !scale.is_finite()) {
        return Err(format!("a scale is {scale}: the weight's range does not fit float16"));
    }
    for &zero in &matrix.zeros {
        if zero < smallest || u32::from(zero) > max_code {
            return Err(format!(
                "zero-point {zero} cannot be stored as `{format}`, which holds {smallest}..={max_code}"
            ));
        }
        if matrix.spec.symmetric && zero != middle(matrix.spec.bits) {
            return Err(format!(
                "zero-point {zero} in a symmetric matrix, whose zero-point is {}",
                middle(matrix.spec.bits)
            ));
        }
    }
    check_group_index(
        &matrix.group_index,
        &matrix.spec,
        Some(module.spec.act_order == ActOrder::Desc),
        "columns are in their stored order",
    )
}

/// The zero-point of every symmetric grid of `bits` bits.
pub(super) fn middle(bits: u32) -> u8 {
    1 << (bits - 1)
}

/// Refuses a group index out of range and, where `setting` says that columns were not reordered, one that is not
/// `i / group_size`: loaders then compute it themselves.
pub(super) fn check_group_index(
    index: &[u32],
    spec: &QuantSpec,
    ordered: Option<bool>,
    setting: &str,
) -> Result<(), String> {
    let (groups, columns) = (spec.groups(index.len()), spec.columns_per_group(index.len()));
    for (column, &group) in index.iter().enumerate() {
        if group as usize >= groups {
            return Err(format!("column {column} is in group {}, of {groups} groups", group.cast_signed()));
        }
        if ordered == Some(false) && group as usize != column / columns {
            return Err(format!(
                "column {column} is in group {group}, but {setting}, which puts it in group {}",
                column / columns
            ));
        }
    }
    Ok(())
}

/// Refuses groups that leave a shorter one at the end of a row of `inputs` columns.
pub(super) fn divides(spec: &QuantSpec, inputs: usize) -> Result<(), String> {
    let columns = spec.columns_per_group(inputs);
    if inputs.is_multiple_of(columns) {
        return Ok(());
    }
    let would = match dividing_group_sizes(inputs).as_slice() {
        [] => "only one group a row would".into(),
        sizes => format!("{sizes:?} would"),
    };
    Err(format!("groups of {columns} columns do not divide {inputs} inputs; {would}"))
}

/// `[rows, columns]` to `[columns, rows]`.
pub(super) fn transpose<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
    let columns = values.len() / rows;
    (0..columns).flat_map(|column| values[column..].iter().step_by(columns).copied()).collect()
}

pub(super) fn words_to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian int32 words, sign ignored.
pub(super) fn bytes_to_words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

/// Little-endian float16 numbers.
pub(super) fn bytes_to_halves(bytes: &[u8]) -> Vec<half::f16> {
    bytes.as_chunks::<2>().0.iter().map(|&half| half::f16::from_le_bytes(half)).collect()
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use half::f16;
    use kernels::ScaleSearch;
    use rand::{Rng, SeedableRng};

    /// A module called `m`.
    pub(in crate::format) fn module(
        outputs: usize,
        inputs: usize,
        bits: u32,
        group_size: Option<usize>,
        symmetric: bool,
    ) -> QuantizedModule {
        let spec = QuantSpec {
            bits,
            group_size,
            symmetric,
            act_order: ActOrder::None,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 0,
        };
        QuantizedModule { name: "m".into(), outputs, inputs, spec }
    }

    /// Random codes, scales, zero-points from `smallest_zero` on, and, in act-order, groups.
    pub(in crate::format) fn random_matrix(module: &QuantizedModule, smallest_zero: u8, seed: u64) -> QuantizedMatrix {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |count: usize, least: u32, most: u32| -> Vec<u32> {
            (0..count).map(|_| random.random_range(least..=most)).collect()
        };
        let bytes = |values: Vec<u32>| values.into_iter().map(|value| value as u8).collect();
        let QuantizedModule { outputs, inputs, spec, .. } = *module;
        let (groups, columns) = (spec.groups(inputs), spec.columns_per_group(inputs));
        let codes = bytes(draw(outputs * inputs, 0, spec.max_code()));
        let scales = draw(outputs * groups, 0, 0x7BFF).into_iter().map(|bits| f16::from_bits(bits as u16)).collect();
        let zeros = if spec.symmetric {
            vec![middle(spec.bits); outputs * groups]
        } else {
            bytes(draw(outputs * groups, smallest_zero.into(), spec.max_code()))
        };
        let group_index = if spec.act_order == ActOrder::Desc {
            draw(inputs, 0, groups as u32 - 1)
        } else {
            (0..inputs).map(|column| (column / columns) as u32).collect()
        };
        QuantizedMatrix { outputs, inputs, spec, codes, scales, zeros, group_index }
    }
}
