//! Blocks by hand, round trips, fits against the obvious reference, edge cases. Agreement with candle's dequantizers is
//! tested where candle is known, in the crate `model`.

use super::compensate::{BlockPlan, compensate};
use super::*;
use crate::testing::{hessian, random};
use crate::{cholesky, cholesky::Precision};
use half::f16;
use proptest::prelude::*;

/// Roughly normal, with the seed's own numbers.
fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let uniform = random(count * 12, seed);
    uniform.chunks_exact(12).map(|parts| parts.iter().sum::<f32>() / 2.0).collect()
}

fn error(weight: &[f32], changed: &[f32], by: &[f32]) -> f64 {
    let terms = weight.iter().zip(changed).zip(by.iter().cycle());
    terms.map(|((w, c), by)| f64::from(*by) * (f64::from(*w) - f64::from(*c)).powi(2)).sum()
}

#[test]
fn small_blocks_by_hand() {
    let one = f16::ONE.to_le_bytes();
    let codes: Vec<u8> = (0..32).map(|i| i % 16).collect();
    let nibbles: Vec<u8> = (0..16).map(|i| i | i << 4).collect();
    let packed = |kind: BlockType, grid: &BlockGrid, codes: &[u8]| {
        let mut block = vec![0xee; kind.bytes()];
        kind.pack(grid, codes, &mut block);
        block
    };
    let grid = BlockGrid::single(f16::ONE, f16::from_f32(2.0));
    assert_eq!(packed(BlockType::Q4_0, &grid, &codes), [&one[..], &nibbles].concat());
    assert_eq!(packed(BlockType::Iq4Nl, &grid, &codes), [&one[..], &nibbles].concat());
    // The file holds what is added: -2 in float16 is 0xc000.
    assert_eq!(packed(BlockType::Q4_1, &grid, &codes), [&one[..], &[0x00, 0xc0], &nibbles].concat());
    // Codes 0..31: the fifth bit is set from weight 16 on, and the nibbles are as before.
    let wide: Vec<u8> = (0..32).collect();
    assert_eq!(packed(BlockType::Q5_0, &grid, &wide), [&one[..], &[0, 0, 0xff, 0xff], &nibbles].concat());
    assert_eq!(packed(BlockType::Q5_1, &grid, &wide), [&one[..], &[0x00, 0xc0, 0, 0, 0xff, 0xff], &nibbles].concat());
    let bytes: Vec<u8> = (0..32).map(|i| 240 + i % 16).collect();
    let wanted: Vec<u8> = (0..32).map(|i| 112 + i % 16).collect();
    assert_eq!(packed(BlockType::Q8_0, &grid, &bytes), [&one[..], &wanted].concat());
    let value = |kind: BlockType, code| {
        let mut values = [0.0; 32];
        BlockGrid::single(f16::from_f32(0.5), f16::from_f32(2.0)).values(kind, &[code; 32], &mut values);
        values[0]
    };
    // d = 0.5: 0.5 (15 - 8) - 2 for what subtracts and 15 alone; formats without a minimum have m = 0 in files.
    assert_eq!(value(BlockType::Q4_1, 15), 5.5);
    assert_eq!(value(BlockType::Q5_1, 31), 13.5);
}

/// A super-block in which one weight after the other is 1 beyond the lowest code.
#[test]
fn super_blocks_by_hand() {
    let at = |kind: BlockType, i: usize, code: u8| {
        let mut codes = [0; 256];
        codes[i] = code;
        let mut block = vec![0; kind.bytes()];
        kind.pack(&BlockGrid::default(), &codes, &mut block);
        let set: Vec<(usize, u8)> = block.iter().copied().enumerate().filter(|(_, byte)| *byte != 0).collect();
        set
    };
    // Q2_K: 16 bytes of scales; weight 200 is in the second half (32 bytes on), 72 in it: byte 8, third pair.
    assert_eq!(at(BlockType::Q2K, 200, 3), [(16 + 32 + 8, 3 << 4)]);
    // Q4_K: after 16 bytes; weight 100 is in the second 64, 36 in it: high nibble of byte 4 of its 32.
    assert_eq!(at(BlockType::Q4K, 100, 15), [(16 + 32 + 4, 15 << 4)]);
    // Q5_K: the fifth bit of weight 100 is bit 3 of byte 4.
    assert_eq!(at(BlockType::Q5K, 100, 31), [(16 + 4, 1 << 3), (48 + 32 + 4, 15 << 4)]);
    // Q6_K: weight 100 of 128 has its low nibble high in byte 36 and its upper two at bit 6 of byte 128 + 4.
    assert_eq!(at(BlockType::Q6K, 100, 63), [(36, 15 << 4), (132, 3 << 6)]);
    // Q3_K: the third bit of weight 200 is bit 6 of byte 8; s = 0 is stored as 32, its upper two bits 10.
    let q3 = at(BlockType::Q3K, 200, 7);
    assert_eq!(q3, [(8, 1 << 6), (32 + 40, 3 << 4), (104, 0xaa), (105, 0xaa), (106, 0xaa), (107, 0xaa)]);
}

#[test]
fn scales_by_hand() {
    let mut grid = BlockGrid { d: f16::ONE, m: f16::from_f32(2.0), ..BlockGrid::default() };
    grid.steps[..8].copy_from_slice(&[1, 2, 3, 63, 0b10_0101, 0b11_0000, 0, 63]);
    grid.lows[..8].copy_from_slice(&[4, 5, 6, 63, 0b01_1111, 0, 0b11_0011, 63]);
    let mut block = vec![0; 144];
    BlockType::Q4K.pack(&grid, &[0; 256], &mut block);
    let scales = [
        1 | 0b10 << 6,
        2 | 0b11 << 6,
        3,
        63 | 0b11 << 6,
        4 | 0b01 << 6,
        5,
        6 | 0b11 << 6,
        63 | 0b11 << 6,
        0b0101 | 0b1111 << 4,
        0,
        0b0011 << 4,
        0xff,
    ];
    assert_eq!(block[..16], [&[0, 0x3c, 0, 0x40][..], &scales].concat());
    let steps = [-32, -31, 31, 0, -1, 15, 16, 17, -32, -32, 31, 31, 1, 2, 3, 4];
    let grid = BlockGrid { steps, ..BlockGrid::default() };
    let mut block = vec![0; 110];
    BlockType::Q3K.pack(&grid, &[0; 256], &mut block);
    // Stored s + 32: 0, 1, 63, 32, 31, 47, 48, 49, 0, 0, 63, 63, 33, 34, 35, 36. Upper pairs of sub-blocks 12, 8, 4, 0 and
    // so on: 10 00 01 00, 10 00 10 00, 10 11 11 11, 10 11 11 10.
    let low = [0, 1, 0xff, 0xf0, 0x1f, 0x2f, 0x30, 0x41];
    let high = [0b1000_0100, 0b1000_1000, 0b1011_1111, 0b1011_1110];
    assert_eq!(block[96..108], [&low[..], &high].concat());
}

proptest! {
    /// Any bytes are a block, and packing what they hold gives them back.
    #[test]
    fn packing_undoes_unpacking(kind in prop::sample::select(BlockType::ALL.to_vec()), seed: u64) {
        let block: Vec<u8> = random(kind.bytes(), seed).iter().map(|v| (v * 128.0 + 128.0) as u8).collect();
        let mut codes = vec![0; kind.columns()];
        let grid = kind.unpack(&block, &mut codes);
        let mut again = vec![0; kind.bytes()];
        kind.pack(&grid, &codes, &mut again);
        prop_assert_eq!(again, block);
    }

    /// The code found is the nearest of all.
    #[test]
    fn codes_are_nearest(
        kind in prop::sample::select(BlockType::ALL.to_vec()),
        weight in -3.0f32..3.0,
        step in -0.5f32..0.5,
        low in 0.0f32..1.0,
    ) {
        let (grid, levels) = (grid::SubGrid { step, low }, kind.levels());
        let distance = |code| (f64::from(grid.value(levels, code)) - f64::from(weight)).abs();
        let most = match levels { grid::Levels::Even { most, .. } => most, grid::Levels::Uneven => 15 };
        let best = (0..=most).map(distance).fold(f64::INFINITY, f64::min);
        prop_assert!(distance(grid.nearest(levels, weight)) <= best + 1e-6);
    }
}

/// Half the largest step inside a block bounds the error of a fit that cuts nothing off; a fit may cut, but only to do
/// better in sum. So the error is compared with the plainest grid there is: steps over the whole range of a sub-block,
/// not even rounded to what can be stored.
#[test]
fn fits_beat_the_plainest_grid() {
    for kind in BlockType::ALL {
        let weight = gaussian(256 * 40, 5);
        let fitted = BlockMatrix::quantize(&weight, 256, kind, Weighting::Exact(&[1.0; 256])).dequantize();
        let levels = match kind.levels() {
            grid::Levels::Even { most, .. } => f32::from(most),
            grid::Levels::Uneven => 15.0,
        };
        let plainest: Vec<f32> = weight
            .chunks_exact(kind.sub_block())
            .flat_map(|x| {
                let (least, most) = x.iter().fold((0.0f32, 0.0f32), |(a, b), x| (a.min(*x), b.max(*x)));
                let (least, most) = if matches!(kind.levels(), grid::Levels::Even { below: 0, .. }) {
                    (least, most)
                } else {
                    (-most.max(-least), most.max(-least))
                };
                let step = (most - least) / levels;
                x.iter().map(move |x| ((x - least) / step).round() * step + least).collect::<Vec<_>>()
            })
            .collect();
        let (ours, plain) = (error(&weight, &fitted, &[1.0]), error(&weight, &plainest, &[1.0]));
        assert!(ours < plain, "{kind:?}: {ours} against {plain}");
    }
}

#[test]
fn importance_moves_the_error_to_where_it_costs_less() {
    let mut importance = [1.0f32; 256];
    for (i, importance) in importance.iter_mut().enumerate() {
        *importance = if i % 3 == 0 { 20.0 } else { 0.1 };
    }
    for kind in BlockType::ALL {
        let weight = gaussian(256 * 20, 8);
        let by =
            |weighting| error(&weight, &BlockMatrix::quantize(&weight, 256, kind, weighting).dequantize(), &importance);
        let (plain, weighted) = (by(Weighting::Plain), by(Weighting::Importance(&importance)));
        let exact = by(Weighting::Exact(&importance));
        assert!(weighted < plain && exact <= weighted * 1.002, "{kind:?}: {plain}, {weighted}, {exact}");
    }
}

#[test]
fn rows_that_bite() {
    let mut outlier = gaussian(256, 3);
    outlier[77] = 4000.0;
    let cases: [(&str, Vec<f32>); 9] = [
        ("zeros", vec![0.0; 256]),
        ("negative zeros", vec![-0.0; 256]),
        ("one value", vec![0.375; 256]),
        ("one negative value", vec![-0.375; 256]),
        ("outlier", outlier),
        ("not-a-number", vec![f32::NAN; 256]),
        ("infinities", [f32::INFINITY, f32::NEG_INFINITY].repeat(128)),
        ("tiny", gaussian(256, 4).iter().map(|w| w * 1e-30).collect()),
        ("subnormal scales", gaussian(256, 4).iter().map(|w| w * 1e-6).collect()),
    ];
    for kind in BlockType::ALL {
        for (name, row) in &cases {
            for weighting in [Weighting::Plain, Weighting::Importance(&[0.0; 256]), Weighting::Exact(&[f32::NAN; 256])]
            {
                let values = BlockMatrix::quantize(row, 256, kind, weighting).dequantize();
                assert!(values.iter().all(|v| v.is_finite()), "{kind:?} {name}");
                let largest = row.iter().filter(|w| w.is_finite()).fold(0.0f32, |a, w| a.max(w.abs()));
                if !matches!(*name, "infinities") {
                    // Levels of 0.6 of the range at the least, and float16's own error among subnormal steps.
                    let bound = 0.6 * largest + 1e-5;
                    assert!(
                        row.iter().zip(&values).all(|(w, v)| w.is_nan() || (w - v).abs() <= bound),
                        "{kind:?} {name}"
                    );
                }
                if matches!(*name, "zeros" | "negative zeros" | "not-a-number" | "tiny") {
                    assert!(values.iter().all(|v| *v == 0.0), "{kind:?} {name}");
                }
            }
        }
    }
}

fn upper(n: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let h = hessian(n, seed);
    let u = cholesky::inverse_upper_factor(&h, n, Precision::Double).unwrap();
    (h, u)
}

/// The walk in float64 without lazy updates, over grids fitted beforehand.
fn slow_walk(weight: &[f32], u: &[f32], plan: &BlockPlan<'_>) -> Vec<u8> {
    let (n, kind) = (plan.order.len(), plan.kind);
    let mut all = Vec::new();
    for row in weight.chunks_exact(n) {
        let grids = fit::row(kind, row, plan.weighting);
        let mut w: Vec<f64> = plan.order.iter().map(|&c| f64::from(row[c])).collect();
        let mut codes = vec![0; n];
        for p in 0..n {
            let column = plan.order[p];
            let grid = grids[column / kind.columns()].sub(column % kind.columns() / kind.sub_block());
            codes[column] = grid.nearest(kind.levels(), w[p] as f32);
            let e = (w[p] - f64::from(grid.value(kind.levels(), codes[column]))) / f64::from(u[p * n + p]);
            for q in p + 1..n {
                w[q] -= e * f64::from(u[p * n + q]);
            }
        }
        all.extend(codes);
    }
    all
}

#[test]
fn the_walk_is_the_textbook_s() {
    for (kind, n) in [(BlockType::Q4K, 512), (BlockType::Q2K, 256), (BlockType::Q5_0, 160), (BlockType::Iq4Nl, 96)] {
        let (h, _) = upper(n, 2);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| h[b * n + b].total_cmp(&h[a * n + a]));
        let ordered: Vec<f32> =
            order.iter().flat_map(|&i| order.iter().map(move |&j| (i, j))).map(|(i, j)| h[i * n + j]).collect();
        let u = cholesky::inverse_upper_factor(&ordered, n, Precision::Double).unwrap();
        let diagonal: Vec<f32> = h.iter().step_by(n + 1).copied().collect();
        let plan = BlockPlan { kind, order: &order, fixed_grids: true, weighting: Weighting::Exact(&diagonal) };
        let weight = random(n * 3, 9);
        let solved = compensate(&weight, &u, &plan);
        let mut codes = vec![0; kind.columns()];
        let fast: Vec<u8> = solved
            .bytes
            .chunks_exact(kind.bytes())
            .flat_map(|block| {
                kind.unpack(block, &mut codes);
                codes.clone()
            })
            .collect();
        let slow = slow_walk(&weight, &u, &plan);
        // float32 corrections may tip a weight that lies between two codes, and then what follows it.
        let differing = fast.iter().zip(&slow).filter(|(a, b)| a != b).count();
        assert!(differing * 100 < fast.len(), "{kind:?}: {differing} of {} codes differ", fast.len());
    }
}

#[test]
fn compensation_lowers_the_output_error_in_every_format() {
    let n = 512;
    let (h, u) = upper(n, 4);
    let diagonal: Vec<f32> = h.iter().step_by(n + 1).copied().collect();
    let order: Vec<usize> = (0..n).collect();
    let weight = gaussian(n * 8, 1);
    let output_error = |changed: &[f32]| -> f64 {
        let delta: Vec<f64> = weight.iter().zip(changed).map(|(w, c)| f64::from(*w) - f64::from(*c)).collect();
        delta
            .chunks_exact(n)
            .map(|row| (0..n * n).map(|at| row[at / n] * f64::from(h[at]) * row[at % n]).sum::<f64>())
            .sum()
    };
    for kind in BlockType::ALL {
        let weighting = Weighting::Exact(&diagonal);
        let nearest = output_error(&BlockMatrix::quantize(&weight, n, kind, weighting).dequantize());
        for fixed_grids in [false, true] {
            let plan = BlockPlan { kind, order: &order, fixed_grids, weighting };
            let compensated = output_error(&compensate(&weight, &u, &plan).dequantize());
            assert!(compensated < 0.9 * nearest, "{kind:?} {fixed_grids}: {compensated} against {nearest}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let (_, u) = upper(256, 1);
    let (weight, order) = (random(256 * 200, 2), (0..256).collect::<Vec<_>>());
    let plan = BlockPlan { kind: BlockType::Q3K, order: &order, fixed_grids: false, weighting: Weighting::Plain };
    let run = |threads| crate::testing::with_threads(threads, || compensate(&weight, &u, &plan));
    assert_eq!(run(1), run(3));
}
