//! One quantized matrix to the bytes of its tensors and back; the layout table is in the module above.

use super::{Settings, config};
use crate::{
    ModelError,
    format::{
        Contents, QuantizedModule,
        huggingface::{SafetensorsFolder, to_f32},
        layout::{
            Layout, Part, bytes_to_words, check_group_index, divides, dtype_beside_half_scales, middle, transpose,
            words_to_bytes,
        },
        packed::{Packing, part_bytes, two_axes},
        tensor_error,
    },
};
use half::f16;
use kernels::{
    ActOrder, QuantizedMatrix, pack,
    stored::{Grid, StoredMatrix},
};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

const CODES: &str = "weight_packed";
const SCALES: &str = "weight_scale";
const ZEROS: &str = "weight_zero_point";
const GROUP_INDEX: &str = "weight_g_idx";
const SHAPE: &str = "weight_shape";

/// The types that scales may have.
const SCALE_TYPES: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// The layout.
pub(in crate::format) struct Compressed;

/// Whether the groups of `module` need a group index.
fn indexed(module: &QuantizedModule) -> bool {
    module.spec.act_order == ActOrder::Desc && module.spec.group_size.is_some()
}

impl Layout for Compressed {
    fn check(&self, module: &QuantizedModule) -> Result<(), String> {
        let QuantizedModule { outputs, inputs, spec, .. } = module;
        if !matches!(spec.bits, 4 | 8) {
            return Err(format!("{} bits: compressed-tensors files hold 4 or 8 bits", spec.bits));
        }
        if *outputs == 0 || *inputs == 0 {
            return Err(format!("{outputs} outputs and {inputs} inputs are no matrix"));
        }
        divides(spec, *inputs)
    }

    fn zero_points(&self) -> (u8, &'static str) {
        (0, "compressed-tensors")
    }

    fn parts(&self, module: &QuantizedModule) -> Vec<Part> {
        let QuantizedModule { outputs, inputs, spec, .. } = module;
        let (to_a_word, groups) = (32 / spec.bits as usize, spec.groups(*inputs));
        let mut parts = vec![
            Part { suffix: CODES, dtype: Dtype::I32, shape: vec![*outputs, inputs.div_ceil(to_a_word)] },
            Part { suffix: SCALES, dtype: Dtype::F16, shape: vec![*outputs, groups] },
        ];
        if !spec.symmetric {
            parts.push(Part { suffix: ZEROS, dtype: Dtype::I32, shape: vec![outputs.div_ceil(to_a_word), groups] });
        }
        if indexed(module) {
            parts.push(Part { suffix: GROUP_INDEX, dtype: Dtype::I32, shape: vec![*inputs] });
        }
        parts.push(Part { suffix: SHAPE, dtype: Dtype::I64, shape: vec![2] });
        parts
    }

    fn pack(&self, module: &QuantizedModule, part: usize, matrix: &QuantizedMatrix) -> Result<Vec<u8>, ModelError> {
        let (bits, inputs) = (matrix.spec.bits, matrix.inputs);
        Ok(match self.parts(module)[part].suffix {
            CODES => {
                let rows = matrix.codes.par_chunks_exact(inputs);
                let words: Vec<u32> = rows.flat_map_iter(|row| pack::pack(row.iter().copied(), bits)).collect();
                words_to_bytes(&words)
            }
            SCALES => matrix.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            ZEROS => {
                // One stream of words down the outputs for each group, then word by word across the groups.
                let by_group = transpose(&matrix.zeros, matrix.outputs);
                let columns = by_group.chunks_exact(matrix.outputs);
                let words: Vec<u32> = columns.flat_map(|column| pack::pack(column.iter().copied(), bits)).collect();
                words_to_bytes(&transpose(&words, matrix.groups()))
            }
            GROUP_INDEX => words_to_bytes(&matrix.group_index),
            _ => [matrix.outputs, inputs].iter().flat_map(|&width| (width as i64).to_le_bytes()).collect(),
        })
    }

    fn settings(&self, contents: &Contents<'_>, skipped: &[String]) -> Result<Option<Value>, ModelError> {
        Ok(Some(config::to_json(contents, skipped)))
    }

    fn torch_dtype(&self, contents: &Contents<'_>) -> Option<&'static str> {
        Some(dtype_beside_half_scales(contents))
    }
}

impl Packing for Settings {
    const PARTS: &'static [&'static str] = &[CODES, SCALES, ZEROS, GROUP_INDEX, SHAPE];

    fn describe(&self, tensors: &SafetensorsFolder, module: &str) -> Result<QuantizedModule, ModelError> {
        let name = format!("{module}.{CODES}");
        let scheme = self.module(module).ok_or_else(|| {
            tensor_error(&name, "is quantized, but the settings say that this module is left in full precision")
        })?;
        let [outputs, words] = two_axes(tensors, &name)?;
        let inputs = stated_inputs(tensors, module, outputs)?;
        if outputs == 0 || inputs == 0 || inputs.div_ceil(32 / scheme.bits as usize) != words {
            let shape = [outputs, words];
            let what =
                format!("has shape {shape:?}, which no {outputs} x {inputs} matrix of {} bits packs into", scheme.bits);
            return Err(tensor_error(&name, what));
        }
        let described = self.described(module, outputs, inputs).expect("the settings of this module were found above");
        described.spec.check().map_err(|error| tensor_error(&name, error.to_string()))?;
        divides(&described.spec, inputs).map_err(|what| tensor_error(&name, what))?;
        for part in Compressed.parts(&described).iter().filter(|part| part.suffix != SHAPE) {
            bytes_of(tensors, &described, part)?;
        }
        check_optional(tensors, &described)?;
        Ok(described)
    }

    fn matrix(&self, tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<QuantizedMatrix, ModelError> {
        let Unpacked { codes, scales, zeros, group_index } = Unpacked::read(tensors, module)?;
        let exact = |scale: &f32| {
            let half = f16::from_f32(*scale);
            (half.to_f32() == *scale).then_some(half).ok_or_else(|| {
                let what =
                    format!("the scale {scale:e} is no float16 number, so these integers can't be kept elsewhere");
                tensor_error(format!("{}.{SCALES}", module.name), what)
            })
        };
        Ok(QuantizedMatrix {
            outputs: module.outputs,
            inputs: module.inputs,
            spec: module.spec,
            codes,
            scales: scales.iter().map(exact).collect::<Result<_, _>>()?,
            zeros,
            group_index,
        })
    }

    /// By the scales as they are stored, which need not be float16.
    fn stored(&self, tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<StoredMatrix, ModelError> {
        let Unpacked { codes, scales, zeros, group_index } = Unpacked::read(tensors, module)?;
        let (inputs, bits) = (module.inputs, module.spec.bits);
        let (codes, scales, zeros, group_index) = (&codes, &scales, &zeros, &group_index);
        Ok(StoredMatrix::integers(&Grid { inputs, bits, codes, scales, zeros, group_index }))
    }
}

/// The number of inputs in `weight_shape`, whose outputs must be `outputs`.
fn stated_inputs(tensors: &SafetensorsFolder, module: &str, outputs: usize) -> Result<usize, ModelError> {
    let name = format!("{module}.{SHAPE}");
    let (dtype, shape, bytes) = tensors.raw(&name)?;
    let widths: Vec<i64> = match dtype {
        Dtype::I64 => bytes.as_chunks().0.iter().map(|&number| i64::from_le_bytes(number)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|&number| i32::from_le_bytes(number).into()).collect(),
        _ => return Err(tensor_error(&name, format!("is of type {dtype:?}, not I64 or I32"))),
    };
    match (shape.as_slice(), widths.as_slice()) {
        ([2], &[rows, columns]) if usize::try_from(rows) == Ok(outputs) && columns > 0 => Ok(columns as usize),
        _ => Err(tensor_error(&name, format!("holds {widths:?}, but there are {outputs} rows of codes"))),
    }
}

/// The bytes of one part, its type and shape checked.
fn bytes_of<'a>(
    tensors: &'a SafetensorsFolder,
    module: &QuantizedModule,
    part: &Part,
) -> Result<(Dtype, &'a [u8]), ModelError> {
    let types = if part.suffix == SCALES { &SCALE_TYPES[..] } else { std::slice::from_ref(&part.dtype) };
    part_bytes(tensors, module, part.suffix, types, &part.shape)
}

/// Refuses zero-points that the settings don't speak of, and a group index that contradicts them.
fn check_optional(tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<(), ModelError> {
    let zeros = format!("{}.{ZEROS}", module.name);
    if module.spec.symmetric && tensors.raw(&zeros).is_ok() {
        return Err(tensor_error(zeros, "is there, but the settings say that the grid is symmetric"));
    }
    let name = format!("{}.{GROUP_INDEX}", module.name);
    if !indexed(module) && tensors.raw(&name).is_err() {
        return Ok(());
    }
    let (_, bytes) = part_bytes(tensors, module, GROUP_INDEX, &[Dtype::I32], &[module.inputs])?;
    check_group_index(&bytes_to_words(bytes), &module.spec, Some(indexed(module)), "`actorder` is not `group`")
        .map_err(|what| tensor_error(name, what))
}

/// The numbers of a linear.
struct Unpacked {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    group_index: Vec<u32>,
}

impl Unpacked {
    fn read(tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<Self, ModelError> {
        let QuantizedModule { outputs, inputs, spec, .. } = module;
        let (groups, columns) = (spec.groups(*inputs), spec.columns_per_group(*inputs));
        let mut unpacked = Self {
            codes: Vec::new(),
            scales: Vec::new(),
            zeros: vec![middle(spec.bits); outputs * groups],
            group_index: (0..*inputs).map(|column| (column / columns) as u32).collect(),
        };
        for part in Compressed.parts(module).iter().filter(|part| part.suffix != SHAPE) {
            let (dtype, bytes) = bytes_of(tensors, module, part)?;
            match part.suffix {
                CODES => unpacked.codes = unpack_rows(bytes, part.shape[1], spec.bits, *inputs),
                SCALES => unpacked.scales = to_f32(dtype, bytes).unwrap_or_default(),
                ZEROS => {
                    let by_group = words_to_bytes(&transpose(&bytes_to_words(bytes), part.shape[0]));
                    unpacked.zeros = transpose(&unpack_rows(&by_group, part.shape[0], spec.bits, *outputs), groups);
                }
                _ => unpacked.group_index = bytes_to_words(bytes),
            }
        }
        Ok(unpacked)
    }
}

/// The first `count` values of every row of `words` words.
fn unpack_rows(bytes: &[u8], words: usize, bits: u32, count: usize) -> Vec<u8> {
    let rows = bytes_to_words(bytes);
    rows.par_chunks_exact(words).with_min_len(16).flat_map_iter(|row| pack::unpack(row, bits, count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::layout::testing::{module, random_matrix};
    use proptest::prelude::*;

    fn part(suffix: &str, module: &QuantizedModule, matrix: &QuantizedMatrix) -> (Vec<usize>, Vec<u8>) {
        let parts = Compressed.parts(module);
        let index = parts.iter().position(|part| part.suffix == suffix).unwrap();
        (parts[index].shape.clone(), Compressed.pack(module, index, matrix).unwrap())
    }

    fn words(suffix: &str, module: &QuantizedModule, matrix: &QuantizedMatrix) -> (Vec<usize>, Vec<u32>) {
        let (shape, bytes) = part(suffix, module, matrix);
        (shape, bytes_to_words(&bytes))
    }

    /// Ten columns of 4 bits: eight in the first word, lowest bits first, two in the second, which is filled up with zeros.
    /// As signed numbers the first row is -8 … 1: `q - 8`.
    #[test]
    fn four_bits_by_hand() {
        let module = module(2, 10, 4, None, false);
        let matrix = QuantizedMatrix {
            outputs: 2,
            inputs: 10,
            spec: module.spec,
            codes: (0..10).chain((6..16).rev()).collect(),
            scales: vec![f16::ONE, f16::from_f32(-2.0)],
            zeros: vec![3, 12],
            group_index: vec![0; 10],
        };
        let rows = vec![0x7654_3210, 0x0000_0098, 0x89AB_CDEF, 0x0000_0067];
        assert_eq!(words(CODES, &module, &matrix), (vec![2, 2], rows));
        // Two outputs in one word, the first in the lowest bits.
        assert_eq!(words(ZEROS, &module, &matrix), (vec![1, 1], vec![0x0000_00C3]));
        // 1 is 0x3C00, -2 is 0xC000.
        assert_eq!(part(SCALES, &module, &matrix), (vec![2, 1], vec![0x00, 0x3C, 0x00, 0xC0]));
        let shape = vec![2, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(part(SHAPE, &module, &matrix), (vec![2], shape));
    }

    /// Five outputs, two groups of eight columns, 8 bits: four values to a word. `q[o][i] = 16 o + i`, `z[o][g] = 10 o + g`
    /// (in hexadecimal digits), groups dealt out in turn.
    #[test]
    fn eight_bits_by_hand() {
        let mut module = module(5, 16, 8, Some(8), false);
        module.spec.act_order = ActOrder::Desc;
        let matrix = QuantizedMatrix {
            outputs: 5,
            inputs: 16,
            spec: module.spec,
            codes: (0..80).collect(),
            scales: vec![f16::ONE; 10],
            zeros: vec![0x00, 0x01, 0x10, 0x11, 0x20, 0x21, 0x30, 0x31, 0x40, 0x41],
            group_index: (0..16).map(|column| column % 2).collect(),
        };
        let (shape, codes) = words(CODES, &module, &matrix);
        assert_eq!(
            (shape, &codes[..5]),
            (vec![5, 4], &[0x0302_0100, 0x0706_0504, 0x0B0A_0908, 0x0F0E_0D0C, 0x1312_1110][..])
        );
        // [ceil(5 / 4), 2]: outputs 0..4 of group 0, of group 1, then output 4 of each.
        let zeros = vec![0x3020_1000, 0x3121_1101, 0x0000_0040, 0x0000_0041];
        assert_eq!(words(ZEROS, &module, &matrix), (vec![2, 2], zeros));
        assert_eq!(words(GROUP_INDEX, &module, &matrix).1[..4], [0, 1, 0, 1]);
    }

    #[test]
    fn a_symmetric_matrix_has_neither_zeros_nor_index() {
        let suffixes: Vec<_> =
            Compressed.parts(&module(8, 64, 4, Some(32), true)).iter().map(|part| part.suffix).collect();
        assert_eq!(suffixes, [CODES, SCALES, SHAPE]);
    }

    #[test]
    fn what_it_cant_hold_is_said() {
        let complaint = |module: &QuantizedModule| Compressed.check(module).unwrap_err();
        assert_eq!(complaint(&module(8, 64, 3, Some(32), true)), "3 bits: compressed-tensors files hold 4 or 8 bits");
        assert!(
            complaint(&module(8, 48, 4, Some(32), true)).starts_with("groups of 32 columns do not divide 48 inputs")
        );
        assert_eq!(Compressed.check(&module(7, 45, 8, Some(9), false)), Ok(()));
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(
            (rows, groups, size) in (1usize..20, 1usize..5, 8usize..20), eight: bool, grouped: bool, seed: u64,
        ) {
            let bits = if eight { 8 } else { 4 };
            let module = module(rows, groups * size, bits, grouped.then_some(size), false);
            let matrix = random_matrix(&module, 0, seed);
            for (index, part) in Compressed.parts(&module).iter().enumerate() {
                let bytes = Compressed.pack(&module, index, &matrix).unwrap();
                prop_assert_eq!(bytes.len() * 8, part.shape.iter().product::<usize>() * part.dtype.bitsize());
            }
            let (shape, codes) = part(CODES, &module, &matrix);
            prop_assert_eq!(unpack_rows(&codes, shape[1], bits, module.inputs), matrix.codes.clone());
        }
    }
}
