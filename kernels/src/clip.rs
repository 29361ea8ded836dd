//! Clipping: how far to draw in the range of each group's grid, by what it costs the layer's output.
//!
//! ```text
//! e(p)    = w_g - round(w_g to the grid over p [min w_g, max w_g])      for each row and each group g of columns
//! cost(p) = e(p) G_gg e(p)ᵀ                                             G = XᵀX, G_gg its block of the group's columns
//! p       = 1, 0.95, .. 0.55, the least cost wins, ties the wider grid
//! ```
//!
//! `cost` is what the group alone does to the output. How the errors of different groups meet is left out while grids
//! are chosen one by one, and made good at the end: a row keeps its choice only where `e G eᵀ` over the whole row falls
//! by it. A row is therefore never worse than on the full grids (up to float32 rounding of the two sums).
//!
//! Weights are `[outputs, inputs]`. Rows are cut into chunks of [`ROWS`] whatever the number of threads.

use crate::block_solve::Grids;
use crate::cuda::CudaError;
use crate::gemm::{Old, Strided, StridedMut, product};
use crate::grid::Grid;
use crate::{QuantSpec, Resident};
use rayon::prelude::*;
use std::borrow::Cow;

/// Rows that one task searches: enough for the costs to be a matrix product.
const ROWS: usize = 64;
/// Shares of the range that are tried beside all of it.
const KEEPS: [f32; 9] = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55];

/// What a search came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clipped {
    /// The grids found.
    pub grids: Grids,
    /// `[outputs, groups]`: the share of the range that the grid spans.
    pub keep: Vec<f32>,
}

/// Searches a grid for every group of every row of `weight`; `gram` is `[inputs, inputs]`, `group_index[column]` the
/// group of a column. Grids are tried on the CPU; whole rows are compared where `gram` is.
///
/// # Errors
/// The device fails, or has too little memory.
pub fn search(
    weight: &[f32],
    gram: &Resident<'_>,
    group_index: &[u32],
    spec: &QuantSpec,
) -> Result<Clipped, CudaError> {
    let host = gram.to_host()?;
    let inputs = group_index.len();
    assert_eq!((weight.len() % inputs, host.len()), (0, inputs * inputs), "shapes of weight and gram");
    let members = members(group_index, spec.groups(inputs));
    let problem = Problem { gram: &host, inputs, members: &members, spec };
    let chunks = || weight.par_chunks(ROWS * inputs);
    let choices: Vec<Choice> = match gram {
        Resident::Host(_) => chunks().flat_map_iter(|weight| problem.solve(weight)).collect(),
        Resident::Device { device, numbers, .. } => {
            let tried: Vec<_> = chunks().map(|weight| problem.try_grids(weight)).collect();
            let (full, best): (Vec<_>, Vec<_>) = tried.into_iter().unzip();
            let (full, mut best) = (full.concat(), best.concat());
            let costs = |choices: &[Choice]| device.row_energies(&problem.errors(weight, choices), inputs, numbers);
            let (full_costs, best_costs) = (costs(&full)?, costs(&best)?);
            problem.keep_better((&full, &full_costs), (&mut best, &best_costs));
            best
        }
    };
    let mut found = Clipped::default();
    for choice in choices {
        found.grids.scales.push(choice.grid.scale);
        found.grids.zeros.push(choice.grid.zero);
        found.keep.push(choice.keep);
    }
    Ok(found)
}

/// The columns of each group, in stored order.
fn members(group_index: &[u32], groups: usize) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); groups];
    for (column, group) in group_index.iter().enumerate() {
        members[*group as usize].push(column);
    }
    members
}

/// A grid and the share of the range it spans.
#[derive(Clone, Copy)]
struct Choice {
    grid: Grid,
    keep: f32,
}

/// What all chunks of rows share.
struct Problem<'a> {
    gram: &'a [f32],
    inputs: usize,
    members: &'a [Vec<usize>],
    spec: &'a QuantSpec,
}

impl Problem<'_> {
    /// The choices for a chunk of rows, `[rows, groups]`.
    fn solve(&self, weight: &[f32]) -> Vec<Choice> {
        let (full, mut best) = self.try_grids(weight);
        let gram = Strided { data: self.gram, row: self.inputs, column: 1 };
        let costs = |choices: &[Choice]| energies(&self.errors(weight, choices), self.inputs, gram);
        let (full_costs, best_costs) = (costs(&full), costs(&best));
        self.keep_better((&full, &full_costs), (&mut best, &best_costs));
        best
    }

    /// For a chunk of rows the full grids, and those that are best each for itself, `[rows, groups]`.
    fn try_grids(&self, weight: &[f32]) -> (Vec<Choice>, Vec<Choice>) {
        let (rows, groups) = (weight.len() / self.inputs, self.members.len());
        let (mut full, mut best) = (Vec::with_capacity(rows * groups), Vec::with_capacity(rows * groups));
        for members in self.members {
            let (widest, least) = self.solve_group(weight, members);
            full.extend(widest);
            best.extend(least);
        }
        // Found group by group; wanted row by row.
        let by_row = |found: &[Choice]| -> Vec<Choice> {
            (0..rows * groups).map(|at| found[at % groups * rows + at / groups]).collect()
        };
        (by_row(&full), by_row(&best))
    }

    /// Puts the full grids in the place of the `best` ones in rows that cost no less with these.
    fn keep_better(&self, (full, full_costs): (&[Choice], &[f64]), (best, best_costs): (&mut [Choice], &[f64])) {
        let groups = self.members.len();
        let costs = best_costs.iter().zip(full_costs);
        for ((best, full), (best_cost, full_cost)) in best.chunks_mut(groups).zip(full.chunks(groups)).zip(costs) {
            let better = best_cost < full_cost; // Not so where a sum is no number.
            if !better {
                best.copy_from_slice(full);
            }
        }
    }

    /// For each row the full grid of the group and the best one.
    fn solve_group(&self, weight: &[f32], members: &[usize]) -> (Vec<Choice>, Vec<Choice>) {
        let width = members.len();
        let gathered: Vec<f32> =
            weight.chunks_exact(self.inputs).flat_map(|row| members.iter().map(|&column| row[column])).collect();
        let rows = || gathered.chunks_exact(width);
        let gram = self.gram_of(members);
        let gram = Strided { data: &gram.0, row: gram.1, column: 1 };
        let full: Vec<Choice> = rows().map(|row| Choice { grid: Grid::fit(row, self.spec), keep: 1.0 }).collect();
        let mut least = self.costs(&gathered, width, &full, gram);
        let mut best = full.clone();
        for keep in KEEPS {
            let drawn: Vec<Choice> =
                rows().map(|row| Choice { grid: Grid::over(row, keep, self.spec), keep }).collect();
            for (row, cost) in self.costs(&gathered, width, &drawn, gram).into_iter().enumerate() {
                if cost < least[row] {
                    (least[row], best[row]) = (cost, drawn[row]);
                }
            }
        }
        (full, best)
    }

    /// `e G eᵀ` of each row of a group's weights, `[rows, width]`.
    fn costs(&self, weights: &[f32], width: usize, choices: &[Choice], gram: Strided<'_>) -> Vec<f64> {
        let mut errors = weights.to_vec();
        for (row, choice) in errors.chunks_exact_mut(width).zip(choices) {
            choice.grid.rounding_errors(row, self.spec.max_code());
        }
        energies(&errors, width, gram)
    }

    /// What `choices` leave of each weight.
    fn errors(&self, weight: &[f32], choices: &[Choice]) -> Vec<f32> {
        let (groups, max_code) = (self.members.len(), self.spec.max_code());
        let mut errors = weight.to_vec();
        let rows = errors.par_chunks_exact_mut(self.inputs).zip(choices.par_chunks_exact(groups));
        rows.for_each(|(row, choices)| {
            for (members, choice) in self.members.iter().zip(choices) {
                for &column in members {
                    row[column] -= choice.grid.value(choice.grid.code(row[column], max_code));
                }
            }
        });
        errors
    }

    /// The block of the Gram matrix that belongs to `members` and the distance of its rows: a view where the columns
    /// follow each other, else a copy.
    fn gram_of(&self, members: &[usize]) -> (Cow<'_, [f32]>, usize) {
        let Some(&first) = members.first() else { return (Cow::Borrowed(&[]), 0) };
        if members.last() == Some(&(first + members.len() - 1)) {
            return (Cow::Borrowed(&self.gram[first * (self.inputs + 1)..]), self.inputs);
        }
        let entry = |&row: &usize| members.iter().map(move |&column| self.gram[row * self.inputs + column]);
        (members.iter().flat_map(entry).collect(), members.len())
    }
}

/// `e G eᵀ` of each row `e` of `errors`, `[rows, width]`; products in float32, sums in float64.
fn energies(errors: &[f32], width: usize, gram: Strided<'_>) -> Vec<f64> {
    let mut products = vec![0.0; errors.len()];
    let out = StridedMut { data: &mut products, row: width, column: 1 };
    let rows = errors.len() / width;
    product([rows, width, width], out, Old::Overwrite, 1.0, Strided { data: errors, row: width, column: 1 }, gram);
    let rows = errors.chunks_exact(width).zip(products.chunks_exact(width));
    rows.map(|(e, p)| e.iter().zip(p).map(|(e, p)| f64::from(*e) * f64::from(*p)).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Clipped, KEEPS, members};
    use crate::grid::Grid;
    use crate::testing::{hessian, random, with_threads};
    use crate::{ActOrder, ScaleSearch};
    use crate::{QuantSpec, Resident};
    use proptest::prelude::*;

    /// On the CPU.
    fn search(weight: &[f32], gram: &[f32], group_index: &[u32], spec: &QuantSpec) -> Clipped {
        let gram = Resident::Host(gram.into());
        super::search(weight, &gram, group_index, spec).expect("no device, no failure")
    }

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

    fn stored_groups(inputs: usize, spec: &QuantSpec) -> Vec<u32> {
        (0..inputs).map(|column| (column / spec.columns_per_group(inputs)) as u32).collect()
    }

    /// `e G eᵀ` over `columns` by its definition, in float64.
    fn slow_cost(row: &[f32], gram: &[f32], columns: &[usize], grid: impl Fn(usize) -> Grid, max_code: u32) -> f64 {
        let error = |column: usize| {
            let grid = grid(column);
            f64::from(row[column]) - f64::from(grid.value(grid.code(row[column], max_code)))
        };
        let term = |i: &usize, j: &usize| error(*i) * f64::from(gram[i * row.len() + j]) * error(*j);
        columns.iter().flat_map(|i| columns.iter().map(move |j| term(i, j))).sum()
    }

    #[test]
    fn by_hand() {
        // Two columns that matter and an outlier that doesn't. Steps are 2p wide: p = 1 rounds 0.8 to 0 at a cost of
        // 2 * 0.8^2 = 1.28; from 0.75 on it becomes one step, and p = 0.55 costs 2 * 0.3^2 = 0.18, the least.
        let gram = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        let weight = [0.8, -0.8, 3.0];
        let spec = spec(2, None, true);
        let found = search(&weight, &gram, &[0, 0, 0], &spec);
        let cost = |keep| slow_cost(&weight, &gram, &[0, 1, 2], |_| Grid::over(&weight, keep, &spec), 3);
        assert!((cost(1.0) - 1.28).abs() < 1e-3 && (cost(0.55) - 0.18).abs() < 1e-3);
        assert_eq!((found.keep[0], found.grids.zeros[0]), (0.55, 2));
        // 0.5 rounds to 0 whatever the share: ties keep the whole range.
        assert_eq!(search(&[0.5, -0.5, 3.0], &gram, &[0, 0, 0], &spec).keep[0], 1.0);
    }

    #[test]
    fn an_outlier_in_a_column_that_is_never_used_is_cut() {
        let inputs = 16;
        let mut gram = vec![0.0; inputs * inputs];
        (0..inputs - 1).for_each(|i| gram[i * inputs + i] = 1.0);
        let mut weight = random(2 * inputs, 4);
        // 0.55 of a range of 1.8 just holds the other weights, which lie in [-1, 1).
        weight[inputs - 1] = 1.8;
        let spec = spec(4, None, true);
        let found = search(&weight, &gram, &[0; 16], &spec);
        assert!(found.keep[0] < 0.7, "{:?}", found.keep);
    }

    #[test]
    fn the_best_of_all_shares_is_found_in_each_group() {
        for (bits, group_size, symmetric) in [(2, Some(8), false), (3, Some(16), true), (4, None, false)] {
            let (outputs, inputs) = (5, 27);
            let spec = spec(bits, group_size, symmetric);
            let weight: Vec<f32> = random(outputs * inputs, 7).iter().map(|w| w * w * w).collect();
            // A Gram matrix without ties between groups: what is best alone is best together.
            let groups = stored_groups(inputs, &spec);
            let mut gram = hessian(inputs, 3);
            for (at, entry) in gram.iter_mut().enumerate() {
                *entry *= f32::from(u8::from(groups[at / inputs] == groups[at % inputs]));
            }
            let found = search(&weight, &gram, &groups, &spec);
            for (row, keeps) in weight.chunks_exact(inputs).zip(found.keep.chunks_exact(spec.groups(inputs))) {
                for (members, keep) in members(&groups, spec.groups(inputs)).iter().zip(keeps) {
                    let group: Vec<f32> = members.iter().map(|&column| row[column]).collect();
                    let cost =
                        |keep| slow_cost(row, &gram, members, |_| Grid::over(&group, keep, &spec), spec.max_code());
                    let best = KEEPS.iter().map(|keep| cost(*keep)).fold(cost(1.0), f64::min);
                    // float32 products of 27 terms: relative errors below 1e-5 of terms that hardly cancel.
                    assert!(cost(*keep) <= best * (1.0 + 1e-4), "{spec:?}: {} against {best}", cost(*keep));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_row_is_worse_than_on_full_grids(
            (outputs, inputs) in (1usize..70, 1usize..50),
            bits in prop::sample::select(vec![2u32, 3, 4, 8]),
            group_size in prop::option::of(8usize..33),
            symmetric: bool,
            shuffled: bool,
            seed in 0u64..1000,
        ) {
            let spec = spec(bits, group_size, symmetric);
            let mut weight = random(outputs * inputs, seed);
            weight[0] = 30.0;
            weight[(outputs - 1) * inputs..].fill(0.0);
            let mut gram = hessian(inputs, seed);
            let dead = seed as usize % inputs;
            for i in 0..inputs {
                (gram[dead * inputs + i], gram[i * inputs + dead]) = (0.0, 0.0);
            }
            let mut groups = stored_groups(inputs, &spec);
            if shuffled {
                (0..inputs).for_each(|column| groups[column] = (column % spec.groups(inputs)) as u32);
            }
            let found = search(&weight, &gram, &groups, &spec);
            let columns: Vec<usize> = (0..inputs).collect();
            let members = members(&groups, spec.groups(inputs));
            for (number, row) in weight.chunks_exact(inputs).enumerate() {
                let grids = number * members.len()..;
                let (scales, zeros) = (&found.grids.scales[grids.clone()], &found.grids.zeros[grids]);
                let chosen = |column: usize| {
                    let group = groups[column] as usize;
                    Grid { scale: scales[group], zero: zeros[group] }
                };
                let full: Vec<Grid> = members
                    .iter()
                    .map(|m| Grid::fit(&m.iter().map(|&column| row[column]).collect::<Vec<_>>(), &spec))
                    .collect();
                let full = |column: usize| full[groups[column] as usize];
                let cost = |grid: &dyn Fn(usize) -> Grid| slow_cost(row, &gram, &columns, grid, spec.max_code());
                let (best, widest) = (cost(&chosen), cost(&full));
                // Both float32 sums err by at most 50 * 2^-24 of the terms' magnitudes, which the damped matrix of the
                // test keeps within a few hundred times the sum.
                prop_assert!(best <= widest * (1.0 + 2e-3) + 1e-9, "{} against {}", best, widest);
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit_and_nothing_is_no_reason_to_panic() {
        let (outputs, inputs) = (200, 96);
        let (weight, gram, spec) = (random(outputs * inputs, 1), hessian(inputs, 2), spec(3, Some(40), false));
        let groups = stored_groups(inputs, &spec);
        let run = |threads| with_threads(threads, || search(&weight, &gram, &groups, &spec));
        assert_eq!(run(1), run(2));
        let broken = search(&[f32::NAN, 1.0, f32::INFINITY, 2.0], &[f32::NAN; 4], &[0, 0], &spec);
        assert_eq!(broken.keep, [1.0; 2]);
    }
}
