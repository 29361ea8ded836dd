//! Integers and grids of the solvers, equal bit for bit.

use crate::{device, random};
use half::f16;
use kernels::{
    ActOrder, QuantSpec, QuantizedMatrix, ScaleSearch,
    block_solve::{self, ColumnPlan, Grids},
    cuda::{Device, DeviceMatrix},
};

pub(crate) fn spec(bits: u32, group_size: Option<usize>, symmetric: bool, scale_search: ScaleSearch) -> QuantSpec {
    QuantSpec { bits, group_size, symmetric, act_order: ActOrder::None, scale_search, smallest_zero: 0 }
}

/// Weights `[rows, columns]` with what bites: a zero row, large ones, tiny ones, some that are no numbers.
pub(crate) fn weights(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut weight = random(rows * columns, seed);
    for (row, weight) in weight.chunks_exact_mut(columns).enumerate() {
        match row % 11 {
            3 => weight.fill(0.0),
            // The zero-point at 4 bits is a half, which goes to the even code.
            4 => weight.iter_mut().enumerate().for_each(|(at, w)| *w = [-0.5, 14.5][at % 2]),
            5 => weight.iter_mut().for_each(|w| *w *= 1e-7),
            7 => weight.iter_mut().for_each(|w| *w *= 1e6),
            8 => weight.iter_mut().for_each(|w| *w = w.abs()),
            9 => weight[columns / 2] = f32::NAN,
            10 => (weight[0], weight[columns - 1]) = (f32::INFINITY, f32::NEG_INFINITY),
            _ => {}
        }
    }
    weight
}

/// An upper factor as an inverse Hessian has it: a diagonal well above what is right of it.
fn upper(columns: usize, seed: u64) -> Vec<f32> {
    let mut u = random(columns * columns, seed);
    for (at, entry) in u.iter_mut().enumerate() {
        let (row, column) = (at / columns, at % columns);
        *entry = match row.cmp(&column) {
            std::cmp::Ordering::Less => *entry * 0.2,
            std::cmp::Ordering::Equal => entry.abs() + 0.3,
            std::cmp::Ordering::Greater => 0.0,
        };
    }
    u
}

/// The order and groups of `act_order` on a diagonal that is drawn.
fn plan(columns: usize, spec: &QuantSpec, act_order: ActOrder, seed: u64) -> ColumnPlan {
    let importance = random(columns, seed);
    let size = spec.columns_per_group(columns);
    let mut order: Vec<usize> = (0..columns).collect();
    let stored: Vec<u32> = (0..columns).map(|column| (column / size) as u32).collect();
    match act_order {
        ActOrder::None => {}
        ActOrder::Desc | ActOrder::Static => order.sort_by(|a, b| importance[*b].total_cmp(&importance[*a])),
        ActOrder::Group => order.sort_by_key(|column| std::cmp::Reverse(stored[*column])),
    }
    let mut group_index = stored;
    if act_order == ActOrder::Desc {
        for (position, column) in order.iter().enumerate() {
            group_index[*column] = (position / size) as u32;
        }
    }
    ColumnPlan { order, group_index, fixed_grids: act_order == ActOrder::Static }
}

fn assert_equal(got: &QuantizedMatrix, expected: &QuantizedMatrix, case: &str) {
    let scales = |matrix: &QuantizedMatrix| matrix.scales.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>();
    assert_eq!(scales(got), scales(expected), "steps: {case}");
    assert_eq!(got.zeros, expected.zeros, "zero-points: {case}");
    let differ = got.codes.iter().zip(&expected.codes).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "codes that differ: {case}");
    assert!(got == expected, "{case}");
}

#[test]
fn rounding_gives_the_same_integers() {
    let Some(device) = device() else { return };
    let cases = [(1, 1), (1, 8), (3, 7), (11, 64), (130, 100), (257, 33)];
    for (at, (rows, columns)) in cases.into_iter().enumerate() {
        for bits in [2, 3, 4, 8] {
            for (group_size, symmetric) in [(None, true), (Some(8), false), (Some(32), true), (Some(32), false)] {
                for smallest_zero in [0, 1] {
                    let spec = QuantSpec { smallest_zero, ..spec(bits, group_size, symmetric, ScaleSearch::MinMax) };
                    let weight = weights(rows, columns, at as u64);
                    let got = device.round_to_nearest(&weight, columns, &spec).unwrap().download(device).unwrap();
                    let expected = block_solve::round_to_nearest(&weight, columns, &spec);
                    assert_equal(&got, &expected, &format!("{rows} x {columns}, {spec:?}"));
                }
            }
        }
    }
}

#[test]
fn the_search_for_scales_finds_the_same() {
    let Some(device) = device() else { return };
    for (bits, group_size, symmetric) in
        [(2, None, false), (3, Some(24), true), (4, Some(16), false), (8, Some(9), true)]
    {
        let spec = spec(bits, group_size, symmetric, ScaleSearch::Mse);
        let weight: Vec<f32> = weights(37, 50, 4).iter().map(|w| w * w * w).collect();
        let got = device.round_to_nearest(&weight, 50, &spec).unwrap().download(device).unwrap();
        assert_equal(&got, &block_solve::round_to_nearest(&weight, 50, &spec), &format!("{spec:?}"));
    }
}

#[test]
fn rounding_on_given_grids_gives_the_same_integers() {
    let Some(device) = device() else { return };
    let (rows, columns, spec) = (45, 40, spec(4, Some(8), false, ScaleSearch::MinMax));
    let group_index: Vec<u32> = (0..columns).map(|column| column as u32 * 7 % 5).collect();
    let grids = given_grids(rows, 5);
    let weight = weights(rows, columns, 5);
    let got = device.round_on(&weight, &group_index, &grids, &spec).unwrap().download(device).unwrap();
    assert_equal(&got, &block_solve::round_on(&weight, columns, &group_index, &grids, &spec), "given grids");
}

fn given_grids(rows: usize, groups: usize) -> Grids {
    let scales = random(rows * groups, 6).iter().map(|scale| f16::from_f32(scale.abs() * 0.2 + 0.01)).collect();
    Grids { scales, zeros: (0..rows * groups).map(|at| (at % 16) as u8).collect() }
}

fn compensated(
    device: &Device,
    weight: &[f32],
    u: &[f32],
    plan: &ColumnPlan,
    spec: &QuantSpec,
    grids: Option<&Grids>,
) -> DeviceMatrix {
    device.compensate(weight, &device.upload(u).unwrap(), plan, spec, grids).unwrap()
}

#[test]
fn error_compensation_gives_the_same_integers() {
    let Some(device) = device() else { return };
    let shapes = [(1, 1), (2, 130), (64, 128), (65, 129), (33, 300), (100, 257)];
    for (at, (rows, columns)) in shapes.into_iter().enumerate() {
        let (weight, u) = (weights(rows, columns, at as u64), upper(columns, at as u64));
        for act_order in [ActOrder::None, ActOrder::Desc, ActOrder::Static, ActOrder::Group] {
            for (bits, group_size, symmetric) in
                [(4, Some(128), false), (3, Some(32), true), (2, None, false), (4, Some(10), true)]
            {
                let spec = QuantSpec { act_order, ..spec(bits, group_size, symmetric, ScaleSearch::MinMax) };
                let plan = plan(columns, &spec, act_order, 3);
                let got = compensated(device, &weight, &u, &plan, &spec, None).download(device).unwrap();
                let expected = block_solve::compensate(&weight, &u, &plan, &spec);
                assert_equal(&got, &expected, &format!("{rows} x {columns}, {spec:?}"));
            }
        }
    }
}

#[test]
fn error_compensation_with_searched_and_with_given_grids() {
    let Some(device) = device() else { return };
    let (rows, columns) = (40, 150);
    let (weight, u) = (weights(rows, columns, 1), upper(columns, 2));
    let searched = spec(3, Some(32), false, ScaleSearch::Mse);
    let order = plan(columns, &searched, ActOrder::None, 3);
    let got = compensated(device, &weight, &u, &order, &searched, None).download(device).unwrap();
    assert_equal(&got, &block_solve::compensate(&weight, &u, &order, &searched), "searched");

    let spec = spec(4, Some(30), false, ScaleSearch::MinMax);
    let (order, grids) = (plan(columns, &spec, ActOrder::Static, 4), given_grids(rows, 5));
    let got = compensated(device, &weight, &u, &order, &spec, Some(&grids)).download(device).unwrap();
    assert_equal(&got, &block_solve::compensate_on(&weight, &u, &order, &spec, &grids), "given");
}

/// A layer as large as the demo model's, through several blocks and tiles of the far update.
#[test]
fn a_larger_weight() {
    let Some(device) = device() else { return };
    let (rows, columns, spec) = (200, 640, spec(4, Some(64), false, ScaleSearch::MinMax));
    let (weight, u) = (random(rows * columns, 1), upper(columns, 2));
    let plan = plan(columns, &spec, ActOrder::Static, 3);
    let got = compensated(device, &weight, &u, &plan, &spec, None).download(device).unwrap();
    assert_equal(&got, &block_solve::compensate(&weight, &u, &plan, &spec), "200 x 640");
}

#[test]
fn no_rows_are_no_reason_to_fail() {
    let Some(device) = device() else { return };
    let spec = spec(4, Some(8), false, ScaleSearch::MinMax);
    let empty = device.round_to_nearest(&[], 16, &spec).unwrap().download(device).unwrap();
    assert_eq!((empty.outputs, empty.codes.len()), (0, 0));
    let plan = plan(16, &spec, ActOrder::Static, 1);
    let empty = compensated(device, &[], &upper(16, 1), &plan, &spec, None).download(device).unwrap();
    assert_eq!((empty.outputs, empty.codes.len()), (0, 0));
}
