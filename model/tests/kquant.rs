//! The block formats against candle: its dequantizers on our bytes, its quantizers against our fits.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere, helpers included")]

use candle_core::{
    CpuStorage, Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use kernels::kquant::{BlockMatrix, BlockType, Weighting};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::borrow::Cow;

/// candle's name of each type that it knows.
const KNOWN: [(BlockType, GgmlDType); 10] = [
    (BlockType::Q4_0, GgmlDType::Q4_0),
    (BlockType::Q4_1, GgmlDType::Q4_1),
    (BlockType::Q5_0, GgmlDType::Q5_0),
    (BlockType::Q5_1, GgmlDType::Q5_1),
    (BlockType::Q8_0, GgmlDType::Q8_0),
    (BlockType::Q2K, GgmlDType::Q2K),
    (BlockType::Q3K, GgmlDType::Q3K),
    (BlockType::Q4K, GgmlDType::Q4K),
    (BlockType::Q5K, GgmlDType::Q5K),
    (BlockType::Q6K, GgmlDType::Q6K),
];

const COLUMNS: usize = 512;

fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (0..12).map(|_| random.random_range(-0.5f32..0.5)).sum::<f32>()).collect()
}

/// A weight in thirty is eight times as large.
fn with_outliers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    gaussian(count, seed + 1).into_iter().map(|w| if random.random_range(0..30) == 0 { 8.0 * w } else { w }).collect()
}

fn by_candle(kind: GgmlDType, bytes: &[u8], count: usize) -> Vec<f32> {
    match kind.from_data(Cow::Borrowed(bytes)).dequantize(count).unwrap() {
        CpuStorage::F32(values) => values,
        _ => panic!("candle dequantizes to float32"),
    }
}

#[test]
fn candle_decodes_our_bytes_to_what_we_say() {
    for (kind, theirs) in KNOWN {
        for weight in [gaussian(COLUMNS * 30, 1), with_outliers(COLUMNS * 30, 2), vec![0.0; COLUMNS]] {
            let matrix = BlockMatrix::quantize(&weight, COLUMNS, kind, Weighting::Plain);
            assert!(by_candle(theirs, &matrix.bytes, weight.len()) == matrix.dequantize(), "{kind:?}");
        }
        // And any bytes at all whose scales are finite.
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..kind.row_bytes(256)).map(|_| random.random()).collect();
            let matrix = BlockMatrix { outputs: 1, inputs: 256, kind, bytes };
            let (a, b) = (by_candle(theirs, &matrix.bytes, 256), matrix.dequantize());
            assert!(a.iter().zip(&b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())), "{kind:?}");
        }
    }
}

fn error(weight: &[f32], changed: &[f32], by: &[f32]) -> f64 {
    let terms = weight.iter().zip(changed).zip(by.iter().cycle());
    terms.map(|((w, c), by)| f64::from(*by) * (f64::from(*w) - f64::from(*c)).powi(2)).sum()
}

/// The errors of ours and of candle's fit, without and with importance.
fn compared(kind: BlockType, theirs: GgmlDType, weight: &[f32]) -> [(f64, f64); 2] {
    let tensor = Tensor::from_slice(weight, (weight.len() / COLUMNS, COLUMNS), &Device::Cpu).unwrap();
    let flat = |tensor: QTensor| -> Vec<f32> {
        tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let importance: Vec<f32> = (0..COLUMNS).map(|_| random.random_range(-2.0f32..2.0).exp()).collect();
    let plain = flat(QTensor::quantize(&tensor, theirs).unwrap());
    let ours = |weighting| BlockMatrix::quantize(weight, COLUMNS, kind, weighting).dequantize();
    let mut pairs =
        [(error(weight, &ours(Weighting::Exact(&[1.0; COLUMNS])), &[1.0]), error(weight, &plain, &[1.0])); 2];
    // candle has no importance for the types of blocks of 32; there its plain fit is what there is.
    let weighted = match kind.columns() {
        256 => flat(QTensor::quantize_imatrix(&tensor, &importance, theirs).unwrap()),
        _ => plain,
    };
    pairs[1] =
        (error(weight, &ours(Weighting::Importance(&importance)), &importance), error(weight, &weighted, &importance));
    pairs
}

#[test]
fn our_fits_are_at_least_as_good_as_candle_s() {
    for (kind, theirs) in KNOWN {
        for (name, weight) in [("gaussian", gaussian(COLUMNS * 40, 4)), ("outliers", with_outliers(COLUMNS * 40, 5))] {
            let [plain, weighted] = compared(kind, theirs, &weight);
            assert!(
                plain.0 <= plain.1 * 1.003 && weighted.0 <= weighted.1 * 1.003,
                "{kind:?} {name}: {plain:?} {weighted:?}"
            );
        }
    }
}
