//! The inner loops of round-to-nearest and GPTQ over a whole weight; `quantize::gptq` explains the method.
//!
//! For each row on its own, columns in the given order, `U` the upper factor of the inverse Hessian in that order:
//! `q_j = round(w_j)`, `e = (w_j - q_j) / U_jj`, `w_k -= e U_jk` for all later `k`.
//!
//! The update is lazy: inside a block of at most [`BLOCK`] columns each column corrects the rest of the block at once;
//! when the block is done, one product `W -= E U` corrects all columns behind it. Where grids are fitted on the way, a
//! block never cuts into a group that starts inside it, so that a group is fitted on weights that all columns before it
//! have corrected; a group wider than a block starts a block of its own and continues over several.
//!
//! Rows are cut into chunks of [`ROWS`] whatever the number of threads.

use crate::dispatch::vectorized;
use crate::gemm::{Old, Strided, StridedMut, product};
use crate::grid::Grid;
use crate::{QuantSpec, QuantizedMatrix};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// Columns whose corrections of the columns behind them are put off and applied together.
pub(crate) const BLOCK: usize = 128;
/// Rows that one task solves: enough for the far update to be a matrix product, few enough to spread over threads.
const ROWS: usize = 64;

/// How the columns of a weight are visited and grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnPlan {
    /// Position → stored column.
    pub order: Vec<usize>,
    /// Stored column → group.
    pub group_index: Vec<u32>,
    /// Whether the grids are fitted beforehand on the given weights (else at a group's first column, on the weights as
    /// the columns before have left them; the columns of a group then follow each other in `order`).
    pub fixed_grids: bool,
}

/// The grids of a weight, `[outputs, groups]`, found before it is rounded.
#[derive(Default, Clone, Debug, PartialEq)]
pub struct Grids {
    /// Steps, as they will be stored.
    pub scales: Vec<f16>,
    /// Codes that stand for zero.
    pub zeros: Vec<u8>,
}

/// Rounds every weight (`[outputs, inputs]`) to the nearest code of its group.
pub fn round_to_nearest(weight: &[f32], inputs: usize, spec: &QuantSpec) -> QuantizedMatrix {
    let columns = spec.columns_per_group(inputs);
    let group_index: Vec<u32> = (0..inputs).map(|column| (column / columns) as u32).collect();
    let mut result = Unfilled::new(weight.len() / inputs, inputs, spec, group_index);
    result.chunks().zip(weight.par_chunks(ROWS * inputs)).for_each(|(chunk, weight)| {
        let rows = weight.chunks_exact(inputs).zip(chunk.codes.chunks_exact_mut(inputs));
        for (row, (weight, codes)) in rows.enumerate() {
            let groups = weight.chunks(columns).zip(codes.chunks_mut(columns));
            for (group, (weight, codes)) in groups.enumerate() {
                let grid = Grid::fit(weight, spec);
                chunk.scales[row * chunk.groups + group] = grid.scale;
                chunk.zeros[row * chunk.groups + group] = grid.zero;
                grid.codes(weight, spec.max_code(), codes);
            }
        }
    });
    result.0
}

/// Rounds every weight (`[outputs, inputs]`) to the nearest code of the grid given for its group.
pub fn round_on(
    weight: &[f32],
    inputs: usize,
    group_index: &[u32],
    grids: &Grids,
    spec: &QuantSpec,
) -> QuantizedMatrix {
    let mut result = Unfilled::new(weight.len() / inputs, inputs, spec, group_index.to_vec());
    result.take(grids);
    result.chunks().zip(weight.par_chunks(ROWS * inputs)).for_each(|(chunk, weight)| {
        let rows = weight.chunks_exact(inputs).zip(chunk.codes.chunks_exact_mut(inputs));
        for (row, (weight, codes)) in rows.enumerate() {
            let grids = row * chunk.groups..;
            let (scales, zeros) = (&chunk.scales[grids.clone()], &chunk.zeros[grids]);
            for ((weight, code), group) in weight.iter().zip(codes).zip(group_index) {
                let group = *group as usize;
                *code = Grid { scale: scales[group], zero: zeros[group] }.code(*weight, spec.max_code());
            }
        }
    });
    result.0
}

/// Puts `w - value(nearest code)` in the place of each weight (`[outputs, inputs]`), on the calling thread.
pub fn rounding_errors(weight: &mut [f32], inputs: usize, spec: &QuantSpec) {
    let columns = spec.columns_per_group(inputs);
    for row in weight.chunks_exact_mut(inputs) {
        for group in row.chunks_mut(columns) {
            Grid::fit(group, spec).rounding_errors(group, spec.max_code());
        }
    }
}

/// Quantizes with error compensation; `u` is `[inputs, inputs]` in the order of `plan`. Rows run in parallel.
///
/// A weight that is not finite gets the code that [`Grid`] gives it and passes no error on.
pub fn compensate(weight: &[f32], u: &[f32], plan: &ColumnPlan, spec: &QuantSpec) -> QuantizedMatrix {
    solve(weight, u, plan, spec, None)
}

/// [`compensate`] on grids given beforehand, whatever the plan says of fitting.
pub fn compensate_on(weight: &[f32], u: &[f32], plan: &ColumnPlan, spec: &QuantSpec, grids: &Grids) -> QuantizedMatrix {
    solve(weight, u, &ColumnPlan { fixed_grids: true, ..plan.clone() }, spec, Some(grids))
}

fn solve(weight: &[f32], u: &[f32], plan: &ColumnPlan, spec: &QuantSpec, grids: Option<&Grids>) -> QuantizedMatrix {
    let inputs = plan.order.len();
    assert_eq!(
        (plan.group_index.len(), u.len(), weight.len() % inputs),
        (inputs, inputs * inputs, 0),
        "shapes of the plan, u and weight"
    );
    let walk = Walk { grids_given: grids.is_some(), ..Walk::new(u, plan, spec) };
    let mut result = Unfilled::new(weight.len() / inputs, inputs, spec, plan.group_index.clone());
    if let Some(grids) = grids {
        result.take(grids);
    }
    result
        .chunks()
        .zip(weight.par_chunks(ROWS * inputs))
        .for_each(|(chunk, weight)| Solve::new(&walk, chunk, weight).run());
    result.0
}

/// A result whose codes and grids are about to be filled, chunk of rows by chunk of rows.
struct Unfilled(QuantizedMatrix);

/// The part of a result that belongs to one chunk of rows.
struct Chunk<'a> {
    groups: usize,
    codes: &'a mut [u8],
    scales: &'a mut [f16],
    zeros: &'a mut [u8],
}

impl Unfilled {
    fn new(outputs: usize, inputs: usize, spec: &QuantSpec, group_index: Vec<u32>) -> Self {
        let groups = spec.groups(inputs);
        Self(QuantizedMatrix {
            outputs,
            inputs,
            spec: *spec,
            codes: vec![0; outputs * inputs],
            scales: vec![f16::ZERO; outputs * groups],
            zeros: vec![0; outputs * groups],
            group_index,
        })
    }

    /// Takes over grids found before.
    fn take(&mut self, grids: &Grids) {
        self.0.scales.copy_from_slice(&grids.scales);
        self.0.zeros.copy_from_slice(&grids.zeros);
    }

    fn chunks(&mut self) -> impl IndexedParallelIterator<Item = Chunk<'_>> {
        let groups = self.0.groups();
        let grids = self.0.scales.par_chunks_mut(ROWS * groups).zip(self.0.zeros.par_chunks_mut(ROWS * groups));
        let codes = self.0.codes.par_chunks_mut(ROWS * self.0.inputs);
        codes.zip(grids).map(move |(codes, (scales, zeros))| Chunk { groups, codes, scales, zeros })
    }
}

/// What all rows share: the plan, cut into blocks.
struct Walk<'a> {
    u: &'a [f32],
    spec: &'a QuantSpec,
    plan: &'a ColumnPlan,
    inputs: usize,
    /// Whether the result holds its grids already.
    grids_given: bool,
    /// Position → group.
    group_at: Vec<u32>,
    blocks: Vec<Range<usize>>,
}

impl<'a> Walk<'a> {
    fn new(u: &'a [f32], plan: &'a ColumnPlan, spec: &'a QuantSpec) -> Self {
        let group_at: Vec<u32> = plan.order.iter().map(|&column| plan.group_index[column]).collect();
        let blocks = blocks(&group_at, plan.fixed_grids);
        Self { u, spec, plan, inputs: plan.order.len(), grids_given: false, group_at, blocks }
    }

    /// Whether a group begins at `position`.
    fn starts_group(&self, position: usize) -> bool {
        position == 0 || self.group_at[position] != self.group_at[position - 1]
    }

    /// The positions of the group that starts at `position`.
    fn group_from(&self, position: usize) -> Range<usize> {
        let rest = &self.group_at[position..];
        let length = rest.iter().position(|group| *group != rest[0]).unwrap_or(rest.len());
        position..position + length
    }
}

/// Cuts the positions into blocks of at most [`BLOCK`]; see the module's text for where.
pub(crate) fn blocks(group_at: &[u32], fixed_grids: bool) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let mut start = 0;
    while start < group_at.len() {
        let mut end = (start + BLOCK).min(group_at.len());
        if !fixed_grids && end < group_at.len() && group_at[end] == group_at[end - 1] {
            let same = group_at[start..end].iter().rev().take_while(|group| **group == group_at[end]).count();
            if end - same > start {
                end -= same;
            }
        }
        blocks.push(start..end);
        start = end;
    }
    blocks
}

/// The state of one chunk of rows on its way through the columns.
struct Solve<'a> {
    walk: &'a Walk<'a>,
    chunk: Chunk<'a>,
    rows: usize,
    /// `[rows, inputs]`, columns by position: the weights as corrected so far.
    weight: Vec<f32>,
    /// `[rows, BLOCK]`: the errors of the current block.
    errors: Vec<f32>,
}

impl<'a> Solve<'a> {
    fn new(walk: &'a Walk<'a>, chunk: Chunk<'a>, given: &[f32]) -> Self {
        let rows = given.len() / walk.inputs;
        let ordered = given.chunks_exact(walk.inputs).flat_map(|row| walk.plan.order.iter().map(|&column| row[column]));
        let mut solve = Self { walk, chunk, rows, weight: ordered.collect(), errors: vec![0.0; rows * BLOCK] };
        if walk.plan.fixed_grids && !walk.grids_given {
            solve.fit_all();
        }
        solve
    }

    fn run(mut self) {
        for block in &self.walk.blocks {
            let inputs = self.walk.inputs;
            let grids = self.chunk.scales.chunks_exact_mut(self.chunk.groups);
            let grids = grids.zip(self.chunk.zeros.chunks_exact_mut(self.chunk.groups));
            let weights = self.weight.chunks_exact_mut(inputs).zip(self.errors.chunks_exact_mut(BLOCK));
            let rows = weights.zip(self.chunk.codes.chunks_exact_mut(inputs)).zip(grids);
            for (((weight, errors), codes), (scales, zeros)) in rows {
                solve_block(self.walk, block, Row { weight, errors, codes, scales, zeros });
            }
            self.correct_behind(block.clone());
        }
    }

    /// Fits every grid on the given weights.
    fn fit_all(&mut self) {
        let mut members = vec![Vec::new(); self.chunk.groups];
        for (position, group) in self.walk.group_at.iter().enumerate() {
            members[*group as usize].push(position);
        }
        for row in 0..self.rows {
            let weight = &self.weight[row * self.walk.inputs..][..self.walk.inputs];
            for (group, members) in members.iter().enumerate() {
                let weights: Vec<f32> = members.iter().map(|&position| weight[position]).collect();
                let grid = Grid::fit(&weights, self.walk.spec);
                self.chunk.scales[row * self.chunk.groups + group] = grid.scale;
                self.chunk.zeros[row * self.chunk.groups + group] = grid.zero;
            }
        }
    }

    /// `W[:, behind] -= E U[block, behind]`.
    fn correct_behind(&mut self, block: Range<usize>) {
        let (inputs, behind) = (self.walk.inputs, self.walk.inputs - block.end);
        if behind == 1 || self.rows == 1 || block.len() <= 2 {
            // Here the product would sum in another order than it does everywhere else.
            self.correct_one_by_one(block);
        } else if behind > 0 {
            product(
                [self.rows, behind, block.len()],
                StridedMut { data: &mut self.weight[block.end..], row: inputs, column: 1 },
                Old::Add,
                -1.0,
                Strided { data: &self.errors, row: BLOCK, column: 1 },
                Strided { data: &self.walk.u[block.start * inputs + block.end..], row: inputs, column: 1 },
            );
        }
    }

    /// The same by its definition, which a device follows to the bit: a fused sum in the order of the block's columns,
    /// then one subtraction.
    fn correct_one_by_one(&mut self, block: Range<usize>) {
        let inputs = self.walk.inputs;
        let rows = self.weight.chunks_exact_mut(inputs).zip(self.errors.chunks_exact(BLOCK));
        for (weight, errors) in rows {
            for (position, weight) in weight.iter_mut().enumerate().skip(block.end) {
                let terms = errors.iter().zip(block.clone());
                *weight -= terms.fold(0.0, |sum, (error, k)| error.mul_add(self.walk.u[k * inputs + position], sum));
            }
        }
    }
}

/// One row of a chunk: weights by position, errors of the block, codes by stored column, grids by group.
struct Row<'a> {
    weight: &'a mut [f32],
    errors: &'a mut [f32],
    codes: &'a mut [u8],
    scales: &'a mut [f16],
    zeros: &'a mut [u8],
}

vectorized! {
    /// Quantizes one row's columns of a block, each correcting those of the block behind it.
    fn solve_block(walk: &Walk, block: &Range<usize>, row: Row) {
        let max_code = walk.spec.max_code();
        for position in block.clone() {
            let group = walk.group_at[position] as usize;
            if !walk.plan.fixed_grids && walk.starts_group(position) {
                let grid = Grid::fit(&row.weight[walk.group_from(position)], walk.spec);
                (row.scales[group], row.zeros[group]) = (grid.scale, grid.zero);
            }
            let grid = Grid { scale: row.scales[group], zero: row.zeros[group] };
            let (weight, behind) = row.weight[position..block.end].split_at_mut(1);
            let (diagonal, u) = walk.u[position * walk.inputs..][position..block.end].split_at(1);
            let code = grid.code(weight[0], max_code);
            row.codes[walk.plan.order[position]] = code;
            let error = (weight[0] - grid.value(code)) / diagonal[0];
            let error = if error.is_finite() { error } else { 0.0 };
            row.errors[position - block.start] = error;
            for (weight, u) in behind.iter_mut().zip(u) {
                *weight = u.mul_add(-error, *weight);
            }
        }
    }
}

#[cfg(test)]
#[path = "block_solve_tests.rs"]
mod tests;
