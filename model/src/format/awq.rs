//! AWQ checkpoints, version `gemm`: a Hugging Face folder in which every quantized linear is four tensors of 4-bit codes.
//!
//! `w[o][i] = scales[g][o] * (q[i][o] - z[g][o])` with `g = i / group_size`. For a linear of `out` rows and `in` columns
//! and `G = in / group_size` groups, `<module>.weight` is replaced by
//!
//! | tensor | shape | type | |
//! |---|---|---|---|
//! | `<module>.qweight` | `[in, out / 8]` | int32 | a word holds eight outputs |
//! | `<module>.qzeros` | `[G, out / 8]` | int32 | likewise, the zero-points as they are |
//! | `<module>.scales` | `[G, out]` | float16 | |
//! | `<module>.bias` | `[out]` | float16 | only if the layer has one |
//!
//! Bits `4s .. 4s + 4` of the word for outputs `8c .. 8c + 8` hold output `8c + ORDER[s]`, [`ORDER`] = 0 2 4 6 1 3 5 7.
//! The settings stand in `config.json` under `quantization_config`. One group size holds for all linears, and there is no
//! group index: columns in act-order can't be stored. `modules_to_not_convert` lists parts of the names of linears that
//! stay in full precision. A symmetric matrix is written with the zero-point 8 spelled out: loaders that leave it out
//! (`zero_point` false) don't agree on what they read instead.
//!
//! Not read: the layouts `gemv`, `gemv_fast`, `marlin` and `llm-awq`'s own files.

use super::{
    Contents, PackedFolder, QuantizedModule,
    huggingface::SafetensorsFolder,
    layout::{Layout, Part, bytes_to_halves, bytes_to_words, divides, dtype_beside_half_scales, transpose},
    packed::{Packing, part_bytes, two_axes},
    settings::{self, Fields},
    tensor_error,
};
use crate::ModelError;
use kernels::{ActOrder, QuantSpec, QuantizedMatrix, ScaleSearch};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::path::Path;

/// The output, among the eight of a word, that each four bits hold, lowest bits first.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
const BITS: u32 = 4;
/// The zero-point of a symmetric matrix.
const MIDDLE: u8 = 8;

/// The names of a linear's tensors.
const CODES: &str = "qweight";
const ZEROS: &str = "qzeros";
const SCALES: &str = "scales";

/// Eight values to a word, `values.len()` a multiple of eight.
fn pack(values: impl ExactSizeIterator<Item = u8>) -> Vec<u32> {
    let values: Vec<u8> = values.collect();
    let word = |eight: &[u8; 8]| ORDER.iter().rev().fold(0, |word, &output| word << BITS | u32::from(eight[output]));
    values.as_chunks::<8>().0.iter().map(word).collect()
}

/// The values of `words`.
fn unpack(words: &[u32]) -> Vec<u8> {
    let mut values = vec![0; words.len() * 8];
    for (word, eight) in words.iter().zip(values.as_chunks_mut::<8>().0) {
        for (slot, output) in ORDER.into_iter().enumerate() {
            eight[output] = (word >> (4 * slot) & 15) as u8;
        }
    }
    values
}

/// The layout.
pub(super) struct Awq;

impl Layout for Awq {
    fn check(&self, module: &QuantizedModule) -> Result<(), String> {
        let QuantizedModule { outputs, inputs, spec, .. } = module;
        if spec.bits != BITS {
            return Err(format!("{} bits: AWQ files hold 4 bits only", spec.bits));
        }
        if *outputs == 0 || *inputs == 0 || !outputs.is_multiple_of(8) {
            return Err(format!("{outputs} outputs are not a multiple of 8, which AWQ files pack into a word"));
        }
        divides(spec, *inputs)?;
        if spec.act_order == ActOrder::Desc && spec.groups(*inputs) > 1 {
            return Err("its columns are in act-order (desc), and AWQ files have no group index".into());
        }
        Ok(())
    }

    fn check_together(&self, modules: &[QuantizedModule]) -> Result<(), (usize, String)> {
        let size = |module: &QuantizedModule| module.spec.columns_per_group(module.inputs);
        let Some(first) = modules.first() else { return Ok(()) };
        // One group a row is the one setting that means other sizes for other widths.
        let alike = |module: &QuantizedModule| match first.spec.group_size {
            None => size(module) == module.inputs,
            Some(_) => size(module) == size(first) && module.spec.group_size.is_some(),
        };
        match modules.iter().position(|module| !alike(module)) {
            None => Ok(()),
            Some(index) => Err((
                index,
                format!(
                    "{} columns share a scale, in `{}` {}: AWQ files have one group size for all linears",
                    size(&modules[index]),
                    first.name,
                    size(first)
                ),
            )),
        }
    }

    fn zero_points(&self) -> (u8, &'static str) {
        (0, "awq")
    }

    fn parts(&self, module: &QuantizedModule) -> Vec<Part> {
        let QuantizedModule { outputs, inputs, .. } = *module;
        let groups = module.spec.groups(inputs);
        vec![
            Part { suffix: CODES, dtype: Dtype::I32, shape: vec![inputs, outputs / 8] },
            Part { suffix: ZEROS, dtype: Dtype::I32, shape: vec![groups, outputs / 8] },
            Part { suffix: SCALES, dtype: Dtype::F16, shape: vec![groups, outputs] },
        ]
    }

    fn pack(&self, _: &QuantizedModule, part: usize, matrix: &QuantizedMatrix) -> Result<Vec<u8>, ModelError> {
        Ok(match part {
            0 => pack_columns(&matrix.codes, matrix.outputs),
            1 => pack_columns(&matrix.zeros, matrix.outputs),
            _ => transpose(&matrix.scales, matrix.outputs).iter().flat_map(|scale| scale.to_le_bytes()).collect(),
        })
    }

    fn settings(&self, contents: &Contents<'_>, skipped: &[String]) -> Result<Option<Value>, ModelError> {
        let head = contents.modules.iter().any(|module| module.name == "lm_head");
        let mut kept: Vec<&str> = skipped.iter().map(String::as_str).collect();
        kept.extend((!head).then_some("lm_head"));
        // Loaders look for each as a part of a name.
        for name in &kept {
            if let Some(module) = contents.modules.iter().find(|module| module.name.contains(name)) {
                let what =
                    format!("AWQ loaders would leave `{}` in full precision with it: skip both or none", module.name);
                return Err(tensor_error(*name, what));
            }
        }
        let group_size = contents.modules.first().and_then(|module| module.spec.group_size);
        Ok(Some(json!({
            "quant_method": "awq",
            "bits": BITS,
            "group_size": group_size.map_or(json!(-1), |size| json!(size)),
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": if kept.is_empty() { Value::Null } else { json!(kept) },
            "lm_head": head,
        })))
    }

    fn torch_dtype(&self, contents: &Contents<'_>) -> Option<&'static str> {
        Some(dtype_beside_half_scales(contents))
    }
}

/// Every column of `[outputs, columns]` as words, column after column.
fn pack_columns(values: &[u8], outputs: usize) -> Vec<u8> {
    let columns = values.len() / outputs;
    let pack_column = |column: usize| pack(values[column..].iter().step_by(columns).copied());
    let words = (0..columns).into_par_iter().with_min_len(16).flat_map_iter(pack_column);
    words.flat_map_iter(u32::to_le_bytes).collect()
}

/// `[outputs, columns]` from the words of every column.
fn unpack_columns(bytes: &[u8], outputs: usize) -> Vec<u8> {
    let values = unpack(&bytes_to_words(bytes));
    let columns = values.len() / outputs;
    transpose(&values, columns)
}

/// The settings of an AWQ checkpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Columns per group; `None` is one group a row.
    pub group_size: Option<usize>,
    /// Whether zero-points are free; if not, all are 8.
    pub zero_point: bool,
    /// Parts of names of linears in full precision.
    pub kept: Vec<String>,
}

impl Settings {
    /// The settings in `quantization_config`, which is `object` in the file `path`.
    pub fn parse(object: &Value, path: &Path) -> Result<Self, ModelError> {
        let fields = Fields { object, path };
        if let Some(version) = fields.text("version")?.filter(|version| !version.eq_ignore_ascii_case("gemm")) {
            return Err(fields.unsupported(format!("the AWQ version `{version}`")));
        }
        match fields.any(&["bits", "w_bit"])? {
            Some(value) if value.as_u64() == Some(BITS.into()) => {}
            Some(value) => return Err(fields.unsupported(format!("AWQ with {value} bits"))),
            None => return Err(fields.missing("bits")),
        }
        let group_size = settings::group_size(&fields, &["group_size", "q_group_size"])?;
        let kept = fields.texts("modules_to_not_convert")?;
        Ok(Self {
            group_size: group_size.ok_or_else(|| fields.missing("group_size"))?.columns(),
            zero_point: fields.flag("zero_point")?.unwrap_or(true),
            kept,
        })
    }

    fn spec(&self) -> QuantSpec {
        QuantSpec {
            bits: BITS,
            group_size: self.group_size,
            symmetric: !self.zero_point,
            act_order: ActOrder::None,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 0,
        }
    }
}

/// An AWQ checkpoint.
pub type AwqFolder = PackedFolder<Settings>;

impl AwqFolder {
    /// Checks the `quantization_config` of the `config.json` in `folder` against the tensors' shapes and types.
    pub fn open(tensors: SafetensorsFolder, config_json: &Value, folder: &Path) -> Result<Self, ModelError> {
        Self::new(tensors, Settings::parse(&config_json["quantization_config"], &folder.join("config.json"))?)
    }
}

impl Packing for Settings {
    const PARTS: &'static [&'static str] = &[CODES, ZEROS, SCALES];

    fn describe(&self, tensors: &SafetensorsFolder, module: &str) -> Result<QuantizedModule, ModelError> {
        let name = format!("{module}.{CODES}");
        if let Some(part) = self.kept.iter().find(|part| module.contains(&***part)) {
            let what = format!("is quantized, but `modules_to_not_convert` leaves `{part}` in full precision");
            return Err(tensor_error(name, what));
        }
        let [inputs, words] = two_axes(tensors, &name)?;
        if inputs == 0 || words == 0 {
            return Err(tensor_error(&name, format!("has shape {:?}, which holds nothing", [inputs, words])));
        }
        let described = QuantizedModule { name: module.into(), outputs: words * 8, inputs, spec: self.spec() };
        described.spec.check().map_err(|error| tensor_error(&name, error.to_string()))?;
        divides(&described.spec, inputs).map_err(|what| tensor_error(&name, what))?;
        for part in Awq.parts(&described) {
            part_bytes(tensors, &described, part.suffix, &[part.dtype], &part.shape)?;
        }
        Ok(described)
    }

    fn matrix(&self, tensors: &SafetensorsFolder, module: &QuantizedModule) -> Result<QuantizedMatrix, ModelError> {
        let bytes = |part: &Part| part_bytes(tensors, module, part.suffix, &[part.dtype], &part.shape);
        let parts = Awq.parts(module);
        let (codes, zeros, scales) = (bytes(&parts[0])?.1, bytes(&parts[1])?.1, bytes(&parts[2])?.1);
        let QuantizedModule { outputs, inputs, spec, .. } = *module;
        let zeros = unpack_columns(zeros, outputs);
        if let Some(zero) = zeros.iter().find(|&&zero| !self.zero_point && zero != MIDDLE) {
            let what = format!("holds the zero-point {zero}, but `zero_point` is false, which makes them all {MIDDLE}");
            return Err(tensor_error(format!("{}.{ZEROS}", module.name), what));
        }
        let columns = spec.columns_per_group(inputs);
        Ok(QuantizedMatrix {
            outputs,
            inputs,
            spec,
            codes: unpack_columns(codes, outputs),
            scales: transpose(&bytes_to_halves(scales), spec.groups(inputs)),
            zeros,
            group_index: (0..inputs).map(|column| (column / columns) as u32).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::layout::testing::{module, random_matrix};
    use half::f16;
    use proptest::prelude::*;

    fn words(layout_part: usize, module: &QuantizedModule, matrix: &QuantizedMatrix) -> Vec<u32> {
        bytes_to_words(&Awq.pack(module, layout_part, matrix).unwrap())
    }

    /// Bits 0..4 hold output 0, 4..8 output 2, 8..12 output 4, 12..16 output 6, 16..20 output 1, 20..24 output 3, 24..28
    /// output 5, 28..32 output 7: read from the top, outputs 7 5 3 1 6 4 2 0.
    #[test]
    fn a_word_by_hand() {
        assert_eq!(pack([0, 1, 2, 3, 4, 5, 6, 7].into_iter()), [0x7531_6420]);
        assert_eq!(pack([15, 0, 0, 0, 0, 0, 0, 0].into_iter()), [0x0000_000F]);
        assert_eq!(pack([0, 15, 0, 0, 0, 0, 0, 0].into_iter()), [0x000F_0000]);
        assert_eq!(pack([0, 0, 0, 0, 0, 0, 0, 15].into_iter()), [0xF000_0000]);
        assert_eq!(unpack(&[0x7531_6420]), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    /// Two input columns, sixteen outputs, one group: `q[o][0] = o`, `q[o][1] = 15 - o`, `z[o] = 8`, `s[o] = o`.
    ///
    /// qweight [2, 2]: column 0 is outputs 0..8 (0x75316420), then outputs 8..16, which are eight more each (0xFDB9ECA8);
    /// column 1 counts down: outputs 0..8 are 15 … 8, so from the top (7 5 3 1 6 4 2 0) 8 A C E 9 B D F, then eight less.
    #[test]
    fn a_matrix_by_hand() {
        let module = module(16, 2, 4, None, true);
        let matrix = QuantizedMatrix {
            outputs: 16,
            inputs: 2,
            spec: module.spec,
            codes: (0..16).flat_map(|output| [output, 15 - output]).collect(),
            scales: (0..16u8).map(|output| f16::from_f32(f32::from(output))).collect(),
            zeros: vec![8; 16],
            group_index: vec![0; 2],
        };
        assert_eq!(words(0, &module, &matrix), [0x7531_6420, 0xFDB9_ECA8, 0x8ACE_9BDF, 0x0246_1357]);
        assert_eq!(words(1, &module, &matrix), [0x8888_8888; 2]);
        // float16: 0, 1 = 0x3C00, 2 = 0x4000, 3 = 0x4200, 4 = 0x4400.
        assert_eq!(Awq.pack(&module, 2, &matrix).unwrap()[..10], [0, 0, 0, 0x3C, 0, 0x40, 0, 0x42, 0, 0x44]);
        let shapes: Vec<Vec<usize>> = Awq.parts(&module).into_iter().map(|part| part.shape).collect();
        assert_eq!(shapes, [vec![2, 2], vec![1, 2], vec![1, 16]]);
    }

    #[test]
    fn what_it_cant_hold_is_said() {
        let complaint = |module: &QuantizedModule| Awq.check(module).unwrap_err();
        assert_eq!(complaint(&module(8, 64, 3, Some(32), true)), "3 bits: AWQ files hold 4 bits only");
        assert_eq!(complaint(&module(8, 64, 8, Some(32), true)), "8 bits: AWQ files hold 4 bits only");
        assert!(complaint(&module(12, 64, 4, Some(32), true)).starts_with("12 outputs are not a multiple of 8"));
        assert!(
            complaint(&module(8, 48, 4, Some(32), true)).starts_with("groups of 32 columns do not divide 48 inputs")
        );
        let mut ordered = module(8, 64, 4, Some(32), true);
        ordered.spec.act_order = ActOrder::Desc;
        assert!(complaint(&ordered).contains("no group index"));
        ordered.spec.group_size = None;
        assert_eq!(Awq.check(&ordered), Ok(()), "one group needs no index");
        let together = |sizes: [Option<usize>; 2]| {
            Awq.check_together(&sizes.map(|size| module(8, 64, 4, size, true))).err().map(|(index, _)| index)
        };
        assert_eq!(together([Some(32), Some(32)]), None);
        assert_eq!(together([Some(32), Some(16)]), Some(1));
        assert_eq!(together([None, Some(64)]), None);
        assert_eq!(together([Some(64), None]), Some(1));
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(rows in 1usize..6, columns in 1usize..70, values: [u8; 32]) {
            let values: Vec<u8> = values.iter().cycle().take(rows * 8 * columns).map(|value| value & 15).collect();
            let bytes = pack_columns(&values, rows * 8);
            prop_assert_eq!(bytes.len(), rows * columns * 4);
            prop_assert_eq!(unpack_columns(&bytes, rows * 8), values);
        }

        #[test]
        fn parts_have_the_announced_size(rows in 1usize..6, groups in 1usize..5, size in 8usize..20, seed: u64) {
            let module = module(rows * 8, groups * size, 4, Some(size), false);
            let matrix = random_matrix(&module, 0, seed);
            for (index, part) in Awq.parts(&module).iter().enumerate() {
                let bytes = Awq.pack(&module, index, &matrix).unwrap();
                prop_assert_eq!(bytes.len() * 8, part.shape.iter().product::<usize>() * part.dtype.bitsize());
            }
        }
    }
}
