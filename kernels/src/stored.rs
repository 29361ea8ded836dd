//! A weight kept the way its checkpoint stores it, and multiplied without ever being inflated: [`StoredMatrix`].
//!
//! `out = x Wᵀ + bias`, a band of rows of `W` after the other: the band is brought to float32 in a buffer, which stays in
//! the processor's first cache where `x` has few rows, and multiplied like any other weight. A number of `W` is the one that
//! [`StoredMatrix::dequantize`] gives, so that only the order of float32 sums can tell the product from the one with the
//! inflated weight; for up to [`FEW_ROWS`] rows of `x` not even that, they are equal to the bit.

use crate::{
    Compute, QuantizedMatrix,
    compute::Prepared,
    dispatch::{one_at_a_time, vectorized},
    few_rows::{self, FEW_ROWS},
    gemm::add_bias,
    halves::{widen_bfloat16, widen_float16},
    kquant::{self, BlockMatrix},
};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// What a linear layer can multiply with: a weight `[outputs, inputs]`.
pub trait Weight: Send + Sync {
    /// `out[r][o] = sum_i x[r][i] w[o][i] + bias[o]`; `x` is `[rows, inputs]`, `out` `[rows, outputs]`. On the calling thread,
    /// unless the weight says otherwise. `prepared` begins as the default and has to do with this weight and this arithmetic only.
    fn linear(
        &self,
        compute: Compute,
        prepared: &Prepared,
        x: &[f32],
        bias: Option<&[f32]>,
        inputs: usize,
        out: &mut [f32],
    );
}

/// Row after row.
impl Weight for Vec<f32> {
    fn linear(
        &self,
        compute: Compute,
        prepared: &Prepared,
        x: &[f32],
        bias: Option<&[f32]>,
        inputs: usize,
        out: &mut [f32],
    ) {
        compute.linear_again(prepared, x, self, bias, inputs, out);
    }
}

/// A weight `[outputs, inputs]` in memory as a checkpoint has it on disk.
#[derive(Clone, Debug)]
pub struct StoredMatrix {
    outputs: usize,
    inputs: usize,
    numbers: Numbers,
}

#[derive(Clone, Debug)]
enum Numbers {
    Float32(Vec<f32>),
    Float16(Vec<f16>),
    Bfloat16(Vec<bf16>),
    Integers(Integers),
    Blocks(BlockMatrix),
}

impl StoredMatrix {
    /// `[outputs, inputs]` numbers in single precision.
    pub fn float32(numbers: Vec<f32>, inputs: usize) -> Self {
        Self { outputs: rows(numbers.len(), inputs), inputs, numbers: Numbers::Float32(numbers) }
    }

    /// `[outputs, inputs]` numbers in half precision.
    pub fn float16(numbers: Vec<f16>, inputs: usize) -> Self {
        Self { outputs: rows(numbers.len(), inputs), inputs, numbers: Numbers::Float16(numbers) }
    }

    /// `[outputs, inputs]` numbers in bfloat16.
    pub fn bfloat16(numbers: Vec<bf16>, inputs: usize) -> Self {
        Self { outputs: rows(numbers.len(), inputs), inputs, numbers: Numbers::Bfloat16(numbers) }
    }

    /// Integers on the grids of their groups.
    pub fn integers(grid: &Grid<'_>) -> Self {
        let outputs = rows(grid.codes.len(), grid.inputs);
        Self { outputs, inputs: grid.inputs, numbers: Numbers::Integers(Integers::new(grid)) }
    }

    /// Blocks of a GGUF file.
    pub fn blocks(blocks: BlockMatrix) -> Self {
        Self { outputs: blocks.outputs, inputs: blocks.inputs, numbers: Numbers::Blocks(blocks) }
    }

    /// Rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The whole weight in float32, rows in parallel.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.outputs * self.inputs];
        weight
            .par_chunks_mut(self.inputs)
            .enumerate()
            .with_min_len(16)
            .for_each(|(row, out)| self.read(row..row + 1, out));
        weight
    }

    /// Rows `rows` in float32 into `out`, `[rows.len(), inputs]`.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) {
        let inputs = self.inputs;
        assert_eq!(out.len(), rows.len() * inputs, "room for the rows of a stored weight");
        let numbers = rows.start * inputs..rows.end * inputs;
        match &self.numbers {
            Numbers::Float32(all) => out.copy_from_slice(&all[numbers]),
            Numbers::Float16(all) => widen_float16(&all[numbers], out),
            Numbers::Bfloat16(all) => widen_bfloat16(&all[numbers], out),
            Numbers::Integers(all) => all.read(rows, inputs, out),
            Numbers::Blocks(all) => {
                let length = all.kind.row_bytes(inputs);
                kquant::dequantize_row(all.kind, &all.bytes[rows.start * length..rows.end * length], out);
            }
        }
    }
}

fn rows(count: usize, inputs: usize) -> usize {
    assert!(inputs > 0 && count.is_multiple_of(inputs), "{count} numbers in rows of {inputs}");
    count / inputs
}

/// Numbers in a band for few rows of `x`: 32 KiB of float32, about the first level of a cache.
const SMALL_BAND: usize = 1 << 13;
/// Rows in a band for many: enough that rearranging `x` anew for each is a small part of the work.
const LARGE_BAND_ROWS: usize = 512;

/// Numbers of the weight that a thread multiplies by few rows at least: less is done sooner than another thread is woken.
const SMALLEST_PIECE: usize = 1 << 15;

impl StoredMatrix {
    /// Columns `outputs` of the product with a few rows, into `out` of `[rows, outputs.len()]`.
    fn multiply_few(&self, x: &[f32], outputs: Range<usize>, out: &mut [f32]) {
        let (inputs, width) = (self.inputs, outputs.len());
        let band = (SMALL_BAND / inputs).max(1).next_multiple_of(few_rows::OUTPUTS).min(width);
        let mut weight = vec![0.0; band * inputs];
        for first in outputs.clone().step_by(band.max(1)) {
            let rows = first..(first + band).min(outputs.end);
            let weight = &mut weight[..rows.len() * inputs];
            self.read(rows, weight);
            few_rows::products(x, weight, inputs, &mut out[first - outputs.start..], width);
        }
    }

    /// The product with a few rows, outputs shared by the threads of the current pool.
    fn multiply_few_in_parallel(&self, x: &[f32], out: &mut [f32]) {
        let pieces = (self.outputs * self.inputs / SMALLEST_PIECE).clamp(1, rayon::current_num_threads());
        if pieces == 1 {
            return self.multiply_few(x, 0..self.outputs, out);
        }
        let rows = x.len() / self.inputs;
        let width = self.outputs.div_ceil(pieces).next_multiple_of(few_rows::OUTPUTS);
        let firsts: Vec<usize> = (0..self.outputs).step_by(width).collect();
        let parts: Vec<Vec<f32>> = firsts
            .into_par_iter()
            .map(|first| {
                let outputs = first..(first + width).min(self.outputs);
                let mut part = vec![0.0; rows * outputs.len()];
                self.multiply_few(x, outputs, &mut part);
                part
            })
            .collect();
        for (row, out) in out.chunks_exact_mut(self.outputs).enumerate() {
            for (out, part) in out.chunks_mut(width).zip(&parts) {
                out.copy_from_slice(&part[row * out.len()..][..out.len()]);
            }
        }
    }

    /// The product with many rows, a band of the weight at a time.
    fn multiply_many(&self, compute: Compute, x: &[f32], out: &mut [f32]) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let (rows, band) = (x.len() / inputs, LARGE_BAND_ROWS.min(outputs));
        let (mut weight, mut part) = (vec![0.0; band * inputs], vec![0.0; rows * band]);
        for first in (0..outputs).step_by(band.max(1)) {
            let count = band.min(outputs - first);
            let (weight, part) = (&mut weight[..count * inputs], &mut part[..rows * count]);
            self.read(first..first + count, weight);
            compute.linear(x, weight, None, inputs, part);
            for (out, part) in out.chunks_exact_mut(outputs).zip(part.chunks_exact(count)) {
                out[first..first + count].copy_from_slice(part);
            }
        }
    }
}

impl Weight for StoredMatrix {
    /// A band at a time is read and multiplied; nothing is kept. Few rows are multiplied by all threads of the current pool.
    fn linear(&self, compute: Compute, _: &Prepared, x: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
        let (rows, outputs) = (x.len() / inputs, self.outputs);
        assert_eq!(
            (inputs, x.len(), out.len()),
            (self.inputs, rows * inputs, rows * outputs),
            "shapes of x, w and out"
        );
        match rows {
            0 => {}
            1..=FEW_ROWS => self.multiply_few_in_parallel(x, out),
            _ => self.multiply_many(compute, x, out),
        }
        if let Some(bias) = bias {
            add_bias(out, bias);
        }
    }
}

/// Codes with the grids they lie on, `w[o][i] = scales[o][g] (codes[o][i] - zeros[o][g])` with `g = group_index[i]`; `codes` is
/// `[outputs, inputs]`, `scales` and `zeros` `[outputs, groups]`.
#[derive(Clone, Copy, Debug)]
pub struct Grid<'a> {
    /// Columns.
    pub inputs: usize,
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// The codes.
    pub codes: &'a [u8],
    /// The scales.
    pub scales: &'a [f32],
    /// The zero-points.
    pub zeros: &'a [u8],
    /// The group of each column.
    pub group_index: &'a [u32],
}

impl From<&QuantizedMatrix> for StoredMatrix {
    fn from(matrix: &QuantizedMatrix) -> Self {
        let scales: Vec<f32> = matrix.scales.iter().map(|scale| scale.to_f32()).collect();
        Self::integers(&Grid {
            inputs: matrix.inputs,
            bits: matrix.spec.bits,
            codes: &matrix.codes,
            scales: &scales,
            zeros: &matrix.zeros,
            group_index: &matrix.group_index,
        })
    }
}

/// Bytes that codes are spread over at a time.
const LANES: usize = 8;

/// Codes in 2, 4 or 8 bits each (3 bits take 4), in an order that unpacks by whole registers: of `8 / width` times
/// [`LANES`] consecutive codes of a row, code `part * LANES + lane` is in byte `lane`, from bit `part * width` on. The last
/// run of a row is filled up with zeros.
#[derive(Clone, Debug)]
struct Integers {
    width: u32,
    /// Bytes of a row.
    row: usize,
    bytes: Vec<u8>,
    groups: usize,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    group_index: Vec<u32>,
    /// Columns of a group, where groups are runs of that length.
    run: Option<usize>,
}

impl Integers {
    fn new(grid: &Grid<'_>) -> Self {
        let Grid { inputs, bits, codes, scales, zeros, group_index } = *grid;
        let outputs = rows(codes.len(), inputs);
        let groups = scales.len().checked_div(outputs).unwrap_or(0);
        let sizes = (group_index.len(), scales.len(), zeros.len());
        assert_eq!(sizes, (inputs, outputs * groups, outputs * groups), "shapes of codes and their grids");
        assert!(outputs == 0 || group_index.iter().all(|group| (*group as usize) < groups), "every group has a grid");
        let width = bits.next_power_of_two().max(2);
        let codes_in_run = LANES * (8 / width) as usize;
        let mut bytes = Vec::with_capacity(outputs * inputs.div_ceil(codes_in_run) * LANES);
        for codes in codes.chunks_exact(inputs) {
            for run in codes.chunks(codes_in_run) {
                let mut packed = [0; LANES];
                for (at, code) in run.iter().enumerate() {
                    packed[at % LANES] |= code << ((at / LANES) as u32 * width);
                }
                bytes.extend_from_slice(&packed);
            }
        }
        Self {
            width,
            row: inputs.div_ceil(codes_in_run) * LANES,
            bytes,
            groups,
            scales: scales.to_vec(),
            zeros: zeros.iter().map(|zero| f32::from(*zero)).collect(),
            group_index: group_index.to_vec(),
            run: run_length(group_index),
        }
    }

    fn read(&self, rows: Range<usize>, inputs: usize, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(inputs)) {
            unpack(&self.bytes[row * self.row..][..self.row], self.width, out);
            let scales = &self.scales[row * self.groups..][..self.groups];
            let zeros = &self.zeros[row * self.groups..][..self.groups];
            match self.run {
                Some(run) => scale_runs(out, run, scales, zeros),
                None => scale_each(out, &self.group_index, scales, zeros),
            }
        }
    }
}

/// The columns of a group, if column `i` is of group `i / columns` throughout.
fn run_length(group_index: &[u32]) -> Option<usize> {
    let columns = group_index.iter().take_while(|group| **group == group_index[0]).count();
    let regular = group_index.iter().enumerate().all(|(column, group)| column / columns == *group as usize);
    (columns > 0 && regular).then_some(columns)
}

vectorized! {
    /// The codes of a row as numbers.
    fn unpack(bytes: &[u8], width: u32, out: &mut [f32]) {
        match width {
            2 => unpack_runs::<2, 32>(bytes, out),
            4 => unpack_runs::<4, 16>(bytes, out),
            _ => unpack_runs::<8, 8>(bytes, out),
        }
    }
}

/// `CODES` codes of `WIDTH` bits in every [`LANES`] bytes.
#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
fn unpack_runs<const WIDTH: u32, const CODES: usize>(bytes: &[u8], out: &mut [f32]) {
    let mask = (0xff_u32 >> (8 - WIDTH)) as u8;
    let (runs, rest) = out.as_chunks_mut::<CODES>();
    let bytes = bytes.as_chunks::<LANES>().0;
    for (run, bytes) in runs.iter_mut().zip(bytes) {
        for (part, values) in run.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for lane in 0..LANES {
                values[lane] = f32::from((bytes[lane] >> (part as u32 * WIDTH)) & mask);
            }
            one_at_a_time();
        }
    }
    if let Some(bytes) = bytes.get(runs.len()) {
        for (at, value) in rest.iter_mut().enumerate() {
            *value = f32::from((bytes[at % LANES] >> ((at / LANES) as u32 * WIDTH)) & mask);
        }
    }
}

vectorized! {
    /// Codes to weights where a group is a run of columns.
    fn scale_runs(out: &mut [f32], run: usize, scales: &[f32], zeros: &[f32]) {
        for ((out, scale), zero) in out.chunks_mut(run).zip(scales).zip(zeros) {
            for value in out {
                *value = scale * (*value - zero);
            }
            one_at_a_time();
        }
    }

    /// Codes to weights by the group of each column.
    fn scale_each(out: &mut [f32], group_index: &[u32], scales: &[f32], zeros: &[f32]) {
        for (value, group) in out.iter_mut().zip(group_index) {
            let group = *group as usize;
            *value = scales[group] * (*value - zeros[group]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ActOrder, QuantSpec, ScaleSearch,
        kquant::{BlockType, Weighting},
        testing::{random, with_threads},
    };

    fn matrix(outputs: usize, inputs: usize, bits: u32, group_size: Option<usize>, shuffled: bool) -> QuantizedMatrix {
        let spec = QuantSpec {
            bits,
            group_size,
            symmetric: false,
            act_order: ActOrder::None,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 0,
        };
        let (groups, columns) = (spec.groups(inputs), spec.columns_per_group(inputs));
        let number = |value: f32| ((value + 1.0) * 1000.0) as u32;
        let codes = |count, seed| random(count, seed).iter().map(|v| (number(*v) % (1 << bits)) as u8).collect();
        let place = |column: usize| if shuffled { column * 7 % inputs } else { column };
        QuantizedMatrix {
            outputs,
            inputs,
            spec,
            codes: codes(outputs * inputs, 1),
            scales: random(outputs * groups, 2).iter().map(|v| f16::from_f32(*v)).collect(),
            zeros: codes(outputs * groups, 3),
            group_index: (0..inputs).map(|column| (place(column) / columns) as u32).collect(),
        }
    }

    const SHAPES: [(usize, usize, Option<usize>); 7] = [
        (1, 1, None),
        (3, 17, Some(8)),
        (5, 64, Some(64)),
        (2, 100, Some(32)),
        (40, 96, None),
        (700, 9, Some(8)),
        (0, 16, Some(8)),
    ];

    #[test]
    fn integers_stand_for_the_weights_of_their_matrix_to_the_bit() {
        for bits in [2, 3, 4, 8] {
            for (outputs, inputs, group_size) in SHAPES {
                for shuffled in [false, true] {
                    let matrix = matrix(outputs, inputs, bits, group_size, shuffled);
                    assert_eq!(StoredMatrix::from(&matrix).dequantize(), matrix.dequantize(), "{bits} {inputs}");
                }
            }
        }
    }

    #[test]
    fn codes_lie_as_documented() {
        let matrix = QuantizedMatrix { codes: (0..16).collect(), ..matrix(1, 16, 4, None, false) };
        let Numbers::Integers(integers) = StoredMatrix::from(&matrix).numbers else { panic!("holds integers") };
        assert_eq!(integers.bytes, [0x80, 0x91, 0xa2, 0xb3, 0xc4, 0xd5, 0xe6, 0xf7]);
    }

    /// Every way of storing the same sixteen shapes, with the weight it stands for.
    fn stored(outputs: usize, inputs: usize) -> Vec<(StoredMatrix, Vec<f32>)> {
        let weight = random(outputs * inputs, 4);
        let halves: Vec<f16> = weight.iter().map(|v| f16::from_f32(*v)).collect();
        let shorts: Vec<bf16> = weight.iter().map(|v| bf16::from_f32(*v)).collect();
        let integers = matrix(outputs, inputs, 4, Some(32), false);
        let mut all = vec![
            (StoredMatrix::float16(halves.clone(), inputs), halves.iter().map(|v| v.to_f32()).collect()),
            (StoredMatrix::bfloat16(shorts.clone(), inputs), shorts.iter().map(|v| v.to_f32()).collect()),
            (StoredMatrix::from(&integers), integers.dequantize()),
        ];
        if inputs.is_multiple_of(256) {
            let blocks = BlockMatrix::quantize(&weight, inputs, BlockType::Q4K, Weighting::Plain);
            all.push((StoredMatrix::blocks(blocks.clone()), blocks.dequantize()));
        }
        all.push((StoredMatrix::float32(weight.clone(), inputs), weight));
        all
    }

    #[test]
    fn few_rows_give_the_same_bits_as_the_inflated_weight() {
        for (outputs, inputs) in [(1, 1), (3, 17), (130, 256), (300, 1100), (0, 8)] {
            let bias = random(outputs, 5);
            for (stored, weight) in stored(outputs, inputs) {
                for rows in [0, 1, 2, 5, FEW_ROWS] {
                    let x = random(rows * inputs, 6);
                    let mut expected = vec![0.0; rows * outputs];
                    weight.linear(Compute::F32, &Prepared::default(), &x, Some(&bias), inputs, &mut expected);
                    for threads in [1, 3] {
                        let mut got = vec![f32::NAN; rows * outputs];
                        let multiply =
                            || stored.linear(Compute::F32, &Prepared::default(), &x, Some(&bias), inputs, &mut got);
                        with_threads(threads, multiply);
                        assert_eq!(got, expected, "{rows} {outputs} {inputs}, {threads} threads");
                    }
                }
            }
        }
    }

    /// Two float32 sums of n products differ by at most 2 n u sum |terms|; bfloat16 operands are the same ones in both.
    #[test]
    fn many_rows_agree_but_for_the_order_of_sums() {
        for (rows, outputs, inputs) in [(FEW_ROWS + 1, 1, 9), (FEW_ROWS + 17, 700, 64), (FEW_ROWS + 4, 1030, 256)] {
            let (x, bias) = (random(rows * inputs, 7), random(outputs, 8));
            for (stored, weight) in stored(outputs, inputs) {
                for compute in [Compute::F32, Compute::Bf16x3, Compute::Bf16] {
                    let (mut expected, mut got) = (vec![0.0; rows * outputs], vec![f32::NAN; rows * outputs]);
                    weight.linear(compute, &Prepared::default(), &x, Some(&bias), inputs, &mut expected);
                    stored.linear(compute, &Prepared::default(), &x, Some(&bias), inputs, &mut got);
                    for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        let (x, w) =
                            (&x[at / outputs * inputs..][..inputs], &weight[at % outputs * inputs..][..inputs]);
                        let magnitude: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum::<f32>() + 1.0;
                        let bound = 2.0 * (3 * inputs + 1) as f32 * 2f32.powi(-24) * magnitude;
                        assert!((got - expected).abs() <= bound, "{compute} {rows} {outputs}: {got} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "every group has a grid")]
    fn a_group_without_a_grid_is_refused() {
        let grid = Grid { inputs: 2, bits: 4, codes: &[0, 0], scales: &[1.0], zeros: &[0], group_index: &[0, 1] };
        let _ = StoredMatrix::integers(&grid);
    }
}
