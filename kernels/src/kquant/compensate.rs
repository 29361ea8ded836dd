//! GPTQ's walk over columns on the grids of a block format; `quantize::gptq` explains the method and
//! [`crate::block_solve`] the same walk on grids of one scale and zero-point.
//!
//! A block's grid is whole before its first column is rounded, so that codes can be packed as they are: either all grids
//! are fitted beforehand on the given weights, and columns may come in any order, or each when its first column comes,
//! on the weights as the columns before have left them, and then blocks follow each other whole. The lazy updates end
//! where a block of 256 does, since 128 divides it.

use super::{BlockGrid, BlockMatrix, BlockType, LARGEST, Weighting, fit, grid::SubGrid};
use crate::dispatch::vectorized;
use crate::gemm::{Old, Strided, StridedMut, product};
use rayon::prelude::*;
use std::ops::Range;

/// Columns whose corrections of the columns behind them are put off and applied together.
const BLOCK: usize = 128;
/// Rows that one task solves.
const ROWS: usize = 64;

/// How the columns are visited and which grids they meet.
#[derive(Clone, Copy, Debug)]
pub struct BlockPlan<'a> {
    /// The format.
    pub kind: BlockType,
    /// Position → stored column. Unless `fixed_grids`, the columns of a block follow each other.
    pub order: &'a [usize],
    /// Whether grids are fitted beforehand.
    pub fixed_grids: bool,
    /// How grids are fitted.
    pub weighting: Weighting<'a>,
}

/// Quantizes with error compensation; `u` is `[inputs, inputs]` in the order of `plan`. Rows run in parallel; the result
/// doesn't depend on how many.
pub fn compensate(weight: &[f32], u: &[f32], plan: &BlockPlan<'_>) -> BlockMatrix {
    let inputs = plan.order.len();
    assert_eq!(
        (inputs % plan.kind.columns(), u.len(), weight.len() % inputs),
        (0, inputs * inputs, 0),
        "shapes of the plan, u and weight"
    );
    let mut matrix = BlockMatrix::unfilled(weight.len() / inputs, inputs, plan.kind);
    let chunks = matrix.bytes.par_chunks_mut(ROWS * plan.kind.row_bytes(inputs));
    chunks.zip(weight.par_chunks(ROWS * inputs)).for_each(|(bytes, weight)| {
        let mut walk = Walk::new(plan, u, weight);
        walk.run();
        walk.pack(bytes);
    });
    matrix
}

/// One chunk of rows on its way through the columns.
struct Walk<'a> {
    plan: &'a BlockPlan<'a>,
    u: &'a [f32],
    inputs: usize,
    rows: Vec<Row>,
    /// `[rows, inputs]`, columns by position: the weights as corrected so far.
    weight: Vec<f32>,
    /// `[rows, BLOCK]`: the errors of the current lazy block.
    errors: Vec<f32>,
}

/// What becomes of one row, by stored column.
struct Row {
    grids: Vec<BlockGrid>,
    codes: Vec<u8>,
}

impl<'a> Walk<'a> {
    fn new(plan: &'a BlockPlan<'a>, u: &'a [f32], given: &[f32]) -> Self {
        let inputs = plan.order.len();
        let row = |weights: &[f32]| Row {
            grids: if plan.fixed_grids {
                fit::row(plan.kind, weights, plan.weighting)
            } else {
                vec![BlockGrid::default(); inputs / plan.kind.columns()]
            },
            codes: vec![0; inputs],
        };
        let rows: Vec<Row> = given.chunks_exact(inputs).map(row).collect();
        let weight = given.chunks_exact(inputs).flat_map(|row| plan.order.iter().map(|&column| row[column])).collect();
        let errors = vec![0.0; rows.len() * BLOCK];
        Self { plan, u, inputs, rows, weight, errors }
    }

    fn run(&mut self) {
        for start in (0..self.inputs).step_by(BLOCK) {
            let block = start..(start + BLOCK).min(self.inputs);
            let weights = self.weight.chunks_exact_mut(self.inputs).zip(self.errors.chunks_exact_mut(BLOCK));
            for (row, (weight, errors)) in self.rows.iter_mut().zip(weights) {
                solve(self.plan, self.u, &block, row, weight, errors);
            }
            self.correct_behind(&block);
        }
    }

    /// `W[:, behind] -= E U[block, behind]`.
    fn correct_behind(&mut self, block: &Range<usize>) {
        let (inputs, behind) = (self.inputs, self.inputs - block.end);
        if behind > 0 {
            product(
                [self.rows.len(), behind, block.len()],
                StridedMut { data: &mut self.weight[block.end..], row: inputs, column: 1 },
                Old::Add,
                -1.0,
                Strided { data: &self.errors, row: BLOCK, column: 1 },
                Strided { data: &self.u[block.start * inputs + block.end..], row: inputs, column: 1 },
            );
        }
    }

    fn pack(&self, bytes: &mut [u8]) {
        let kind = self.plan.kind;
        for (row, bytes) in self.rows.iter().zip(bytes.chunks_exact_mut(kind.row_bytes(self.inputs))) {
            let blocks = bytes.chunks_exact_mut(kind.bytes()).zip(row.codes.chunks_exact(kind.columns()));
            for ((block, codes), grid) in blocks.zip(&row.grids) {
                kind.pack(grid, codes, block);
            }
        }
    }
}

/// The grid of block `block`, whose columns lie from `position` on, fitted on `weight` as it is now.
fn fitted(plan: &BlockPlan<'_>, position: usize, block: usize, weight: &[f32]) -> BlockGrid {
    let columns = plan.kind.columns();
    let mut stored = [0.0; LARGEST];
    for (column, weight) in plan.order[position..position + columns].iter().zip(&weight[position..]) {
        stored[column - block * columns] = *weight;
    }
    fit::one(plan.kind, &stored[..columns], plan.weighting, block * columns)
}

vectorized! {
    /// Quantizes one row's columns of a lazy block, each correcting those behind it.
    fn solve(plan: &BlockPlan<'_>, u: &[f32], block: &Range<usize>, row: &mut Row, weight: &mut [f32], errors: &mut [f32]) {
        let (levels, columns, inputs) = (plan.kind.levels(), plan.kind.columns(), plan.order.len());
        for position in block.clone() {
            let column = plan.order[position];
            if !plan.fixed_grids && position % columns == 0 {
                row.grids[column / columns] = fitted(plan, position, column / columns, weight);
            }
            let grid: SubGrid = row.grids[column / columns].sub(column % columns / plan.kind.sub_block());
            let (weight, behind) = weight[position..block.end].split_at_mut(1);
            let (diagonal, u) = u[position * inputs..][position..block.end].split_at(1);
            let code = grid.nearest(levels, weight[0]);
            row.codes[column] = code;
            let error = (weight[0] - grid.value(levels, code)) / diagonal[0];
            let error = if error.is_finite() { error } else { 0.0 };
            errors[position - block.start] = error;
            for (weight, u) in behind.iter_mut().zip(u) {
                *weight = u.mul_add(-error, *weight);
            }
        }
    }
}
