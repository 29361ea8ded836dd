//! One quantized matrix to the bytes of its four tensors and back; the layout table is in the module above.

use super::{Version, config};
use crate::{
    ModelError,
    format::{
        Contents, QuantizedModule,
        layout::{self, Layout, bytes_to_halves, bytes_to_words, middle, transpose, words_to_bytes},
    },
};
use kernels::{QuantSpec, QuantizedMatrix, pack};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

/// The layout with the zero-points of a version.
pub(in crate::format) struct Gptq(pub(in crate::format) Version);

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

    /// The tensor's bytes; `matrix` has passed [`layout::check_matrix`].
    pub(super) fn bytes(self, matrix: &QuantizedMatrix, version: Version) -> Vec<u8> {
        match self {
            Self::GroupIndex => words_to_bytes(&matrix.group_index),
            Self::Codes => codes_to_bytes(matrix),
            Self::Zeros => zeros_to_bytes(matrix, version),
            Self::Scales => scales_to_bytes(matrix),
        }
    }
}

/// Refuses widths the layout cannot hold: packers and kernels take 32 values at a time on both axes.
fn check_widths(outputs: usize, inputs: usize) -> Result<(), String> {
    for (axis, width) in [("inputs", inputs), ("outputs", outputs)] {
        if width == 0 || !width.is_multiple_of(32) {
            return Err(format!(
                "{width} {axis} are not a multiple of 32, which GPTQ files need on both axes: leave this module in full \
                 precision"
            ));
        }
    }
    Ok(())
}

impl Layout for Gptq {
    fn check(&self, module: &QuantizedModule) -> Result<(), String> {
        check_widths(module.outputs, module.inputs)
    }

    fn zero_points(&self) -> (u8, &'static str) {
        (self.0.offset(), self.0.name())
    }

    fn parts(&self, module: &QuantizedModule) -> Vec<layout::Part> {
        let part = |part: Part| layout::Part {
            suffix: part.suffix(),
            dtype: part.dtype(),
            shape: part.shape(module.outputs, module.inputs, &module.spec),
        };
        Part::ALL.map(part).into()
    }

    fn pack(&self, _: &QuantizedModule, part: usize, matrix: &QuantizedMatrix) -> Result<Vec<u8>, ModelError> {
        Ok(Part::ALL[part].bytes(matrix, self.0))
    }

    fn settings(&self, contents: &Contents<'_>, skipped: &[String]) -> Result<Option<Value>, ModelError> {
        Ok(Some(config::to_json(contents, self.0, skipped)))
    }

    fn settings_file(&self) -> Option<&'static str> {
        Some("quantize_config.json")
    }

    fn torch_dtype(&self, contents: &Contents<'_>) -> Option<&'static str> {
        Some(layout::dtype_beside_half_scales(contents))
    }
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
        let words = outputs * spec.bits as usize / 32;
        let mut zeros = Vec::with_capacity(groups * outputs);
        for group in bytes_to_words(self.zeros).chunks_exact(words) {
            for field in pack::unpack(group, spec.bits, outputs) {
                zeros.push(zero_point(field, &spec, version)?);
            }
        }
        Ok(QuantizedMatrix {
            outputs,
            inputs,
            spec,
            codes: self.unpack_codes(module),
            scales: transpose(&bytes_to_halves(self.scales), groups),
            zeros: transpose(&zeros, groups),
            group_index: self.group_index.clone(),
        })
    }

    /// The codes, `[outputs, inputs]`.
    fn unpack_codes(&self, module: &QuantizedModule) -> Vec<u8> {
        let (bits, outputs) = (module.spec.bits, module.outputs);
        let words = self.codes.as_chunks::<4>().0;
        let unpack_row = |row: usize| {
            let stream: Vec<u32> = words[row..].iter().step_by(outputs).map(|&word| u32::from_le_bytes(word)).collect();
            pack::unpack(&stream, bits, module.inputs)
        };
        (0..outputs).into_par_iter().with_min_len(16).flat_map_iter(unpack_row).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::layout::{
        check_matrix,
        testing::{module, random_matrix},
    };
    use half::f16;
    use kernels::ActOrder;
    use proptest::prelude::*;

    /// A matrix whose values are functions of row and column or group.
    fn matrix(
        module: &QuantizedModule,
        code: impl Fn(usize, usize) -> usize,
        zero: impl Fn(usize, usize) -> usize,
    ) -> QuantizedMatrix {
        let QuantizedModule { outputs, inputs, spec, .. } = *module;
        let (groups, columns) = (spec.groups(inputs), spec.columns_per_group(inputs));
        let cells = |width: usize| (0..outputs).flat_map(move |row| (0..width).map(move |column| (row, column)));
        QuantizedMatrix {
            outputs,
            inputs,
            spec,
            codes: cells(inputs).map(|(row, column)| code(row, column) as u8).collect(),
            scales: cells(groups).map(|(row, group)| f16::from_f32((row * groups + group) as f32)).collect(),
            zeros: cells(groups).map(|(row, group)| zero(row, group) as u8).collect(),
            group_index: (0..inputs).map(|column| (column / columns) as u32).collect(),
        }
    }

    fn words(part: Part, matrix: &QuantizedMatrix, version: Version) -> Vec<u32> {
        bytes_to_words(&part.bytes(matrix, version))
    }

    #[test]
    fn codes_by_hand() {
        let four = module(8, 8, 4, None, true);
        let expected: Vec<u32> = vec![
            0x7654_3210,
            0x8765_4321,
            0x9876_5432,
            0xA987_6543,
            0xBA98_7654,
            0xCBA9_8765,
            0xDCBA_9876,
            0xEDCB_A987,
        ];
        assert_eq!(words(Part::Codes, &matrix(&four, |row, column| row + column, |_, _| 8), Version::V1), expected);
        let eight = module(4, 4, 8, None, true);
        let codes = matrix(&eight, |row, column| 16 * row + column, |_, _| 128);
        assert_eq!(words(Part::Codes, &codes, Version::V1), [0x0302_0100, 0x1312_1110, 0x2322_2120, 0x3332_3130]);
        let two = matrix(&module(16, 16, 2, None, true), |_, column| column % 4, |_, _| 2);
        assert_eq!(words(Part::Codes, &two, Version::V1), [0xE4E4_E4E4; 16]);
        let three = matrix(&module(32, 32, 3, None, true), |_, column| column % 8, |_, _| 4);
        let expected = [[0x88FA_C688; 32], [0xC688_FAC6; 32], [0xFAC6_88FA; 32]].concat();
        assert_eq!(words(Part::Codes, &three, Version::V1), expected);
    }

    #[test]
    fn codes_of_several_words_run_along_the_inputs() {
        let tall =
            matrix(&module(8, 16, 4, None, true), |row, column| if column < 8 { row } else { 15 - row }, |_, _| 8);
        let expected: Vec<u32> =
            (0..8).map(|row| row * 0x1111_1111).chain((0..8).map(|row| (15 - row) * 0x1111_1111)).collect();
        assert_eq!(words(Part::Codes, &tall, Version::V1), expected);
    }

    #[test]
    fn symmetric_zeros_by_hand() {
        let cases = [
            (2, 16, vec![0x5555_5555], vec![0xAAAA_AAAA]),
            (3, 32, vec![0xDB6D_B6DB, 0xB6DB_6DB6, 0x6DB6_DB6D], vec![0x2492_4924, 0x4924_9249, 0x9249_2492]),
            (4, 8, vec![0x7777_7777], vec![0x8888_8888]),
            (8, 4, vec![0x7F7F_7F7F], vec![0x8080_8080]),
        ];
        for (bits, width, first, second) in cases {
            let module = module(width, width, bits, None, true);
            let matrix = matrix(&module, |_, _| 0, |_, _| usize::from(middle(bits)));
            assert_eq!(words(Part::Zeros, &matrix, Version::V1), first);
            assert_eq!(words(Part::Zeros, &matrix, Version::V2), second);
        }
    }

    #[test]
    fn asymmetric_zeros_run_along_the_outputs_field_by_field() {
        let grouped = matrix(&module(8, 16, 4, Some(8), false), |_, _| 0, |row, group| 1 + row + 7 * group);
        assert_eq!(words(Part::Zeros, &grouped, Version::V1), [0x7654_3210, 0xEDCB_A987]);
        assert_eq!(words(Part::Zeros, &grouped, Version::V2), [0x8765_4321, 0xFEDC_BA98]);
    }

    #[test]
    fn scales_and_group_index_by_hand() {
        let ragged = matrix(&module(2, 20, 4, Some(8), true), |_, _| 0, |_, _| 8);
        let expected: Vec<u8> =
            [0.0, 3.0, 1.0, 4.0, 2.0, 5.0].iter().flat_map(|&s| f16::from_f32(s).to_le_bytes()).collect();
        assert_eq!(Part::Scales.bytes(&ragged, Version::V1), expected);
        let index: Vec<u32> = [[0; 8], [1; 8]].concat().into_iter().chain([2; 4]).collect();
        assert_eq!(words(Part::GroupIndex, &ragged, Version::V1), index);
        assert_eq!(Part::Scales.shape(2, 20, &ragged.spec), [3, 2]);
    }

    /// 32 values of 3 bits as three words, spelled out: ten values, two bits of the eleventh, and so on.
    fn three_words(v: &[u8]) -> [u32; 3] {
        let v: Vec<u32> = v.iter().map(|&v| u32::from(v)).collect();
        let run = |first: usize, shift: u32| (0..10).map(|j| v[first + j] << (3 * j as u32 + shift)).sum::<u32>();
        [run(0, 0) | (v[10] & 3) << 30, v[10] >> 2 | run(11, 1) | (v[21] & 1) << 31, v[21] >> 1 | run(22, 2)]
    }

    fn any_module() -> impl Strategy<Value = (QuantizedModule, Version, u64)> {
        let bits = prop::sample::select(vec![2u32, 3, 4, 8]);
        (1usize..4, 1usize..5, bits, prop::option::of(8usize..150), any::<[bool; 3]>(), any::<u64>()).prop_map(
            |(rows, columns, bits, group_size, [symmetric, first, desc], seed)| {
                let mut module = module(32 * rows, 32 * columns, bits, group_size, symmetric);
                module.spec.act_order = if desc { ActOrder::Desc } else { ActOrder::None };
                let version = if first { Version::V1 } else { Version::V2 };
                module.spec.smallest_zero = version.offset();
                (module, version, seed)
            },
        )
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing((module, version, seed) in any_module()) {
            let matrix = random_matrix(&module, version.offset(), seed);
            prop_assert_eq!(check_matrix(&Gptq(version), &module, &matrix).map_err(|e| e.to_string()), Ok(()));
            let [group_index, codes, zeros, scales] = Part::ALL.map(|part| part.bytes(&matrix, version));
            for (part, bytes) in Part::ALL.iter().zip([&group_index, &codes, &zeros, &scales]) {
                let elements: usize = part.shape(module.outputs, module.inputs, &module.spec).iter().product();
                prop_assert_eq!(bytes.len() * 8, elements * part.dtype().bitsize());
            }
            let packed =
                Packed { codes: &codes, zeros: &zeros, scales: &scales, group_index: bytes_to_words(&group_index) };
            prop_assert_eq!(packed.matrix(&module, version), Ok(matrix));
        }

        #[test]
        fn three_bits_follow_the_spelled_out_recipe(seed: u64) {
            let module = module(32, 64, 3, None, true);
            let matrix = random_matrix(&module, 1, seed);
            let packed = words(Part::Codes, &matrix, Version::V1);
            for row in 0..32 {
                let column: Vec<u32> = packed[row..].iter().step_by(32).copied().collect();
                let expected: Vec<u32> = matrix.codes[64 * row..][..64].chunks(32).flat_map(three_words).collect();
                prop_assert_eq!(column, expected);
            }
        }
    }

    #[test]
    fn matrices_that_cannot_be_stored_are_refused() {
        let plain = module(32, 32, 4, Some(16), true);
        let good = matrix(&plain, |_, _| 15, |_, _| 8);
        let complaint = |change: &dyn Fn(&mut QuantizedMatrix)| {
            let mut spoiled = good.clone();
            change(&mut spoiled);
            check_matrix(&Gptq(Version::V1), &plain, &spoiled).unwrap_err().to_string()
        };
        assert!(check_matrix(&Gptq(Version::V1), &plain, &good).is_ok());
        let code = complaint(&|m| m.codes[7] = 16);
        assert_eq!(code, "tensor `m`: code 16 does not fit 4 bits");
        assert!(complaint(&|m| m.scales[0] = f16::INFINITY).contains("a scale is inf"));
        assert!(complaint(&|m| m.zeros[0] = 0).contains("zero-point 0 cannot be stored as `gptq`, which holds 1..=15"));
        assert!(complaint(&|m| m.zeros[0] = 7).contains("zero-point 7 in a symmetric matrix, whose zero-point is 8"));
        assert!(
            complaint(&|m| m.group_index[0] = 1)
                .contains("column 0 is in group 1, but columns are in their stored order")
        );
        assert!(complaint(&|m| m.group_index[0] = 2).contains("column 0 is in group 2, of 2 groups"));
        assert!(complaint(&|m| m.codes.truncate(1023)).contains("1023"));
        assert!(complaint(&|m| m.inputs = 64).contains("is 32 x 64, the module 32 x 32"));
        assert!(complaint(&|m| m.spec.symmetric = false).contains("was announced"));
    }
}
