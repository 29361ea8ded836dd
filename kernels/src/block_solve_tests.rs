//! [`compensate`] against the method written column by column in float64.

use super::*;
use crate::cholesky::{Precision, inverse_upper_factor};
use crate::testing::{hessian, random, with_threads};
use crate::{ActOrder, ScaleSearch};

fn spec(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantSpec {
    QuantSpec {
        bits,
        group_size,
        symmetric,
        act_order: ActOrder::None,
        scale_search: ScaleSearch::MinMax,
        smallest_zero: 0,
    }
}

/// A plan in the manner of each order, over an arbitrary "importance" of columns.
fn plan(order: ActOrder, inputs: usize, spec: &QuantSpec, importance: &[f32]) -> ColumnPlan {
    let columns = spec.columns_per_group(inputs);
    let group_of = |column: usize| column / columns;
    let descending = |a: &usize, b: &usize| importance[*b].total_cmp(&importance[*a]);
    let mut sequence: Vec<usize> = (0..inputs).collect();
    let mut group_index: Vec<u32> = (0..inputs).map(|column| group_of(column) as u32).collect();
    match order {
        ActOrder::None => {}
        ActOrder::Static => sequence.sort_by(descending),
        ActOrder::Desc => {
            sequence.sort_by(descending);
            for (position, &column) in sequence.iter().enumerate() {
                group_index[column] = group_of(position) as u32;
            }
        }
        ActOrder::Group => {
            let top = |group: usize| {
                let members = (0..inputs).filter(move |column| group_of(*column) == group);
                members.map(|column| importance[column]).fold(f32::MIN, f32::max)
            };
            sequence.sort_by(|a, b| {
                let (group_a, group_b) = (group_of(*a), group_of(*b));
                top(group_b).total_cmp(&top(group_a)).then(group_a.cmp(&group_b)).then(descending(a, b))
            });
        }
    }
    ColumnPlan { order: sequence, group_index, fixed_grids: order == ActOrder::Static }
}

/// `H` with rows and columns in the plan's order.
fn ordered(h: &[f32], plan: &ColumnPlan) -> Vec<f32> {
    let n = plan.order.len();
    plan.order.iter().flat_map(|&i| plan.order.iter().map(move |&j| h[i * n + j])).collect()
}

/// Column by column over the whole matrix, no blocks, float64 throughout but for the stored grid.
fn reference(weight: &[f32], u: &[f32], plan: &ColumnPlan, spec: &QuantSpec) -> QuantizedMatrix {
    let inputs = plan.order.len();
    let mut result = Unfilled::new(weight.len() / inputs, inputs, spec, plan.group_index.clone()).0;
    let groups = result.groups();
    for (row, given) in weight.chunks_exact(inputs).enumerate() {
        let mut w: Vec<f64> = given.iter().map(|w| f64::from(*w)).collect();
        let mut grids: Vec<Option<Grid>> = vec![None; groups];
        for (position, &column) in plan.order.iter().enumerate() {
            let group = plan.group_index[column];
            let grid = *grids[group as usize].get_or_insert_with(|| {
                let members = (0..inputs).filter(|column| plan.group_index[*column] == group);
                let from = |column: usize| if plan.fixed_grids { given[column] } else { w[column] as f32 };
                Grid::fit(&members.map(from).collect::<Vec<_>>(), spec)
            });
            let code = grid.code(w[column] as f32, spec.max_code());
            result.codes[row * inputs + column] = code;
            result.scales[row * groups + group as usize] = grid.scale;
            result.zeros[row * groups + group as usize] = grid.zero;
            let error = (w[column] - f64::from(grid.value(code))) / f64::from(u[position * inputs + position]);
            for later in position + 1..inputs {
                w[plan.order[later]] -= error * f64::from(u[position * inputs + later]);
            }
        }
    }
    result
}

/// `tr(D H Dᵀ)`, `D` the error of the dequantized weight.
fn loss(weight: &[f32], result: &QuantizedMatrix, h: &[f32]) -> f64 {
    let n = result.inputs;
    let error: Vec<f64> = weight.iter().zip(result.dequantize()).map(|(a, b)| f64::from(*a) - f64::from(b)).collect();
    let row_loss =
        |d: &[f64]| -> f64 { (0..n).map(|i| d[i] * (0..n).map(|j| f64::from(h[i * n + j]) * d[j]).sum::<f64>()).sum() };
    error.chunks_exact(n).map(row_loss).sum()
}

const ORDERS: [ActOrder; 4] = [ActOrder::None, ActOrder::Desc, ActOrder::Static, ActOrder::Group];

/// Shapes: one column, one row, below/at/above a block, ragged last groups, groups that do not divide a block, groups
/// wider than a block, one group per row.
const SHAPES: [(usize, usize, Option<usize>); 12] = [
    (1, 1, None),
    (3, 1, Some(8)),
    (1, 40, Some(16)),
    (5, 8, Some(8)),
    (66, 127, Some(8)),
    (4, 128, Some(128)),
    (4, 129, Some(48)),
    (7, 300, Some(100)),
    (3, 500, Some(192)),
    (2, 420, Some(300)),
    (130, 200, None),
    (2, 576, Some(128)),
];

/// A float32 weight that has been corrected n times is off by about n u |w|; the code differs only if it lay that close
/// to the middle of two codes, and then the row's later codes differ, too. So rows that agree must be nearly all, and the
/// loss the same within what such a near-tie is worth.
#[test]
fn agrees_with_column_by_column() {
    let (mut same, mut total) = (0, 0);
    for (case, (outputs, inputs, group_size)) in SHAPES.into_iter().enumerate() {
        let h = hessian(inputs, case as u64);
        for order in ORDERS {
            for (bits, symmetric) in [(4, false), (3, true), (2, false), (8, true)] {
                let spec = spec(bits, group_size, symmetric);
                let seed = case as u64 * 100 + u64::from(bits);
                let weight = random(outputs * inputs, seed);
                let importance: Vec<f32> = (0..inputs).map(|i| h[i * inputs + i]).collect();
                let plan = plan(order, inputs, &spec, &importance);
                let u = inverse_upper_factor(&ordered(&h, &plan), inputs, Precision::Double).unwrap();
                let (fast, slow) = (compensate(&weight, &u, &plan, &spec), reference(&weight, &u, &plan, &spec));
                assert_eq!(fast.group_index, slow.group_index);
                let rows = fast.codes.chunks_exact(inputs).zip(slow.codes.chunks_exact(inputs));
                same += rows.filter(|(fast, slow)| fast == slow).count();
                total += outputs;
                let (fast, slow) = (loss(&weight, &fast, &h), loss(&weight, &slow, &h));
                assert!(
                    (fast - slow).abs() <= 0.02 * slow,
                    "{outputs} x {inputs} {group_size:?} {order:?}: {fast} {slow}"
                );
            }
        }
    }
    assert!(same * 100 >= total * 97, "{same} of {total} rows equal");
}

#[test]
fn without_correlations_it_is_round_to_nearest() {
    for (outputs, inputs, group_size) in SHAPES {
        let mut u = vec![0.0; inputs * inputs];
        (0..inputs).for_each(|i| u[i * inputs + i] = 1.0);
        let weight = random(outputs * inputs, 4);
        for symmetric in [false, true] {
            let spec = spec(3, group_size, symmetric);
            let importance = random(inputs, 11);
            for order in [ActOrder::None, ActOrder::Static, ActOrder::Group] {
                let plan = plan(order, inputs, &spec, &importance);
                assert_eq!(compensate(&weight, &u, &plan, &spec), round_to_nearest(&weight, inputs, &spec));
            }
        }
    }
}

/// A plan's order is undone in the result: quantizing the permuted weight in its own order, then permuting back.
#[test]
fn codes_come_back_in_stored_order() {
    let (outputs, inputs) = (5, 150);
    let spec = spec(4, Some(32), false);
    let weight = random(outputs * inputs, 21);
    let h = hessian(inputs, 22);
    let importance = random(inputs, 23);
    let plan = plan(ActOrder::Desc, inputs, &spec, &importance);
    let u = inverse_upper_factor(&ordered(&h, &plan), inputs, Precision::Double).unwrap();
    let result = compensate(&weight, &u, &plan, &spec);
    let permuted: Vec<f32> = (0..outputs)
        .flat_map(|row| plan.order.iter().map(move |column| (row, *column)))
        .map(|(row, column)| weight[row * inputs + column])
        .collect();
    let straight = ColumnPlan {
        order: (0..inputs).collect(),
        group_index: (0..inputs).map(|i| (i / 32) as u32).collect(),
        fixed_grids: false,
    };
    let expected = compensate(&permuted, &u, &straight, &spec);
    for row in 0..outputs {
        for (position, &column) in plan.order.iter().enumerate() {
            assert_eq!(result.codes[row * inputs + column], expected.codes[row * inputs + position]);
        }
    }
    assert_eq!((&result.scales, &result.zeros), (&expected.scales, &expected.zeros));
}

/// On random correlated Hessians GPTQ wins by a wide margin; it is greedy, so a single row may lose, a matrix does not.
#[test]
fn compensation_lowers_the_loss() {
    let (mut wins, mut cases, mut log_ratio) = (0, 0, 0.0);
    for seed in 0..12 {
        for order in ORDERS {
            for bits in [2, 3, 4] {
                let (outputs, inputs) = (8, 64);
                let spec = spec(bits, Some(32), seed % 2 == 0);
                let weight = random(outputs * inputs, seed);
                let h = hessian(inputs, seed + 50);
                let importance: Vec<f32> = (0..inputs).map(|i| h[i * inputs + i]).collect();
                let plan = plan(order, inputs, &spec, &importance);
                let u = inverse_upper_factor(&ordered(&h, &plan), inputs, Precision::Double).unwrap();
                let compensated = loss(&weight, &compensate(&weight, &u, &plan, &spec), &h);
                let rounded = loss(&weight, &round_to_nearest(&weight, inputs, &spec), &h);
                cases += 1;
                wins += i32::from(compensated <= rounded);
                log_ratio += (compensated / rounded).ln();
            }
        }
    }
    let ratio = (log_ratio / f64::from(cases)).exp();
    assert!(wins * 100 >= cases * 95, "{wins} of {cases}");
    assert!(ratio < 0.6, "mean ratio {ratio}");
}

#[test]
fn threads_do_not_matter() {
    let (outputs, inputs) = (200, 190);
    let spec = spec(4, Some(64), false);
    let weight = random(outputs * inputs, 31);
    let h = hessian(inputs, 32);
    let plan = plan(ActOrder::Static, inputs, &spec, &random(inputs, 33));
    let u = inverse_upper_factor(&ordered(&h, &plan), inputs, Precision::Single).unwrap();
    let run = |threads| with_threads(threads, || compensate(&weight, &u, &plan, &spec));
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(7));
    // Nor do the other rows.
    let few = compensate(&weight[..3 * inputs], &u, &plan, &spec);
    assert_eq!(few.codes, run(1).codes[..3 * inputs]);
}

#[test]
fn a_bad_weight_stays_alone() {
    let (outputs, inputs) = (3, 48);
    let spec = spec(4, Some(16), false);
    let h = hessian(inputs, 41);
    let plan = plan(ActOrder::None, inputs, &spec, &[]);
    let u = inverse_upper_factor(&h, inputs, Precision::Double).unwrap();
    let mut weight = random(outputs * inputs, 42);
    let clean = compensate(&weight, &u, &plan, &spec);
    weight[inputs + 20] = f32::NAN;
    weight[inputs + 30] = f32::INFINITY;
    let result = compensate(&weight, &u, &plan, &spec);
    assert!(result.dequantize().iter().all(|w| w.is_finite()));
    assert_eq!(result.codes[..inputs], clean.codes[..inputs]);
    assert_eq!(result.codes[2 * inputs..], clean.codes[2 * inputs..]);
}

#[test]
fn blocks_respect_groups() {
    let cut = |groups: &[usize], fixed| {
        let group_at: Vec<u32> =
            groups.iter().enumerate().flat_map(|(group, size)| std::iter::repeat_n(group as u32, *size)).collect();
        blocks(&group_at, fixed).into_iter().map(|block| block.end).collect::<Vec<_>>()
    };
    assert_eq!(cut(&[64, 64, 64], false), [128, 192]);
    assert_eq!(cut(&[48, 48, 48, 6], false), [96, 150]);
    assert_eq!(cut(&[48, 48, 48, 6], true), [128, 150]);
    assert_eq!(cut(&[192, 192, 116], false), [128, 192, 320, 384, 500]);
    assert_eq!(cut(&[300], false), [128, 256, 300]);
    assert_eq!(cut(&[128, 128], false), [128, 256]);
    assert_eq!(cut(&[1], false), [1]);
}
