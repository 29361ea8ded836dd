//! Round-to-nearest and GPTQ over a whole weight on the device, with the integers that [`crate::block_solve`] gives. The
//! kernels are `grid.cu` and `block_solve.cu`.

use super::{
    Buffer, CudaError, Device,
    device::{MOST_BLOCKS, grid},
    factor::bytes_to_factor,
    grids::{Arranged, DeviceGrids, Groups},
    sources::BLOCK_SOLVE,
};
use crate::{
    QuantSpec, QuantizedMatrix,
    block_solve::{BLOCK, ColumnPlan, Grids, blocks},
};
use cudarc::driver::PushKernelArg;
use half::f16;
use std::ops::Range;

/// Edge of a tile of the transpositions.
const SQUARE: usize = 32;
/// Rows that a block of threads solves, and threads that share a row.
const ROWS: usize = 32;
const PARTS: u32 = 8;
/// Edge of an output tile of the far update, and of what a thread computes of it.
const TILE: usize = 64;
const EACH: usize = 4;

/// A quantized weight on the device: codes `[inputs, outputs]`, grids `[groups, outputs]`.
#[derive(Debug)]
pub struct DeviceMatrix {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) spec: QuantSpec,
    pub(super) codes: Buffer<u8>,
    pub(super) scales: Buffer<f32>,
    pub(super) zeros: Buffer<u8>,
    pub(super) group_index: Vec<u32>,
}

/// Bytes of device memory that solving a weight `[outputs, inputs]` with error compensation takes at most, beside the factor:
/// the weight as given and arranged, its codes twice, the errors of a block, the grids.
fn bytes_to_compensate(outputs: usize, inputs: usize, spec: &QuantSpec) -> usize {
    let (weight, number) = (outputs * inputs, size_of::<f32>());
    let grids = outputs * spec.groups(inputs) * (number + 1);
    weight * (2 * number + 2) + BLOCK * outputs * number + grids
}

/// Bytes of device memory that a weight `[outputs, inputs]` takes at most: making the factor; solving beside the Gram matrix
/// and it; measuring outputs beside them, for which the weight is there three times.
pub fn bytes_to_solve(outputs: usize, inputs: usize, spec: &QuantSpec) -> usize {
    let square = inputs * inputs * size_of::<f32>();
    let measuring = 3 * outputs * inputs * size_of::<f32>();
    bytes_to_factor(inputs).max(2 * square + bytes_to_compensate(outputs, inputs, spec).max(measuring))
}

impl Device {
    /// Rounds every weight (`[outputs, inputs]`) to the nearest code of its group, as
    /// [`crate::block_solve::round_to_nearest`].
    pub fn round_to_nearest(&self, weight: &[f32], inputs: usize, spec: &QuantSpec) -> Result<DeviceMatrix, CudaError> {
        let size = spec.columns_per_group(inputs);
        let group_index: Vec<u32> = (0..inputs).map(|column| (column / size) as u32).collect();
        self.round(weight, group_index, spec, None)
    }

    /// Rounds every weight to the nearest code of the grid given for its group, as [`crate::block_solve::round_on`].
    pub fn round_on(
        &self,
        weight: &[f32],
        group_index: &[u32],
        grids: &Grids,
        spec: &QuantSpec,
    ) -> Result<DeviceMatrix, CudaError> {
        self.round(weight, group_index.to_vec(), spec, Some(grids))
    }

    fn round(
        &self,
        weight: &[f32],
        group_index: Vec<u32>,
        spec: &QuantSpec,
        grids: Option<&Grids>,
    ) -> Result<DeviceMatrix, CudaError> {
        let order: Vec<usize> = (0..group_index.len()).collect();
        let columns = self.arrange(weight, &order)?;
        let groups = Groups::new(self, &group_index, spec.groups(columns.columns))?;
        let grids = if let Some(grids) = grids {
            upload_grids(self, grids, groups.count, columns.rows)?
        } else {
            let mut fitted = DeviceGrids::room(self, groups.count, columns.rows)?;
            fitted.fit(self, &columns, &groups, 0, groups.count, spec)?;
            fitted
        };
        let codes = grids.codes(self, &columns, &groups, spec.max_code())?;
        Ok(DeviceMatrix::new(&columns, spec, codes, grids, group_index))
    }

    /// Quantizes with error compensation, as [`crate::block_solve::compensate`]; `u` is `[inputs, inputs]` in the order of
    /// `plan`. On `grids` where they are given, whatever the plan says of fitting, as [`crate::block_solve::compensate_on`].
    pub fn compensate(
        &self,
        weight: &[f32],
        u: &Buffer<f32>,
        plan: &ColumnPlan,
        spec: &QuantSpec,
        grids: Option<&Grids>,
    ) -> Result<DeviceMatrix, CudaError> {
        let inputs = plan.order.len();
        assert_eq!((plan.group_index.len(), u.len()), (inputs, inputs * inputs), "shapes of the plan and u");
        let outputs = weight.len() / inputs;
        self.require(bytes_to_compensate(outputs, inputs, spec), &format!("solving a weight of {outputs} x {inputs}"))?;
        let columns = self.arrange(weight, &plan.order)?;
        let group_at: Vec<u32> = plan.order.iter().map(|&column| plan.group_index[column]).collect();
        let groups = Groups::new(self, &group_at, spec.groups(inputs))?;
        let fixed = plan.fixed_grids || grids.is_some();
        let mut solve = Solve {
            device: self,
            u,
            order: self.upload(&plan.order.iter().map(|&column| column as u32).collect::<Vec<_>>())?,
            codes: self.room(columns.rows * inputs, "codes")?,
            errors: self.room(BLOCK * columns.rows, "errors of a block")?,
            grids: match grids {
                Some(grids) => upload_grids(self, grids, groups.count, columns.rows)?,
                None => DeviceGrids::room(self, groups.count, columns.rows)?,
            },
            groups,
            columns,
            spec,
        };
        if fixed && grids.is_none() {
            solve.grids.fit(self, &solve.columns, &solve.groups, 0, solve.groups.count, spec)?;
        }
        if solve.columns.rows > 0 {
            for block in blocks(&group_at, fixed) {
                solve.block(&block, &group_at, fixed)?;
            }
        }
        Ok(DeviceMatrix::new(&solve.columns, spec, solve.codes, solve.grids, plan.group_index.clone()))
    }

    /// `weight` (`[rows, columns]`) on the device as `[columns, rows]`, columns in `order`.
    pub(super) fn arrange(&self, weight: &[f32], order: &[usize]) -> Result<Arranged, CudaError> {
        let columns = order.len();
        assert_eq!(weight.len() % columns, 0, "shape of the weight");
        let rows = weight.len() / columns;
        if columns.div_ceil(SQUARE) > MOST_BLOCKS || rows > u32::MAX as usize {
            return Err(CudaError::Shape {
                what: format!("a weight of {rows} x {columns} is too large for the kernels"),
            });
        }
        // The copy, its rearrangement and the codes.
        self.require(weight.len() * 9, "a weight that is being solved")?;
        let given = self.upload_beside(weight)?;
        let order: Vec<u32> = order.iter().map(|&column| column as u32).collect();
        let order = self.upload(&order)?;
        let mut arranged = self.room(weight.len(), "a weight by columns")?;
        if rows > 0 {
            let kernel = self.kernel(&BLOCK_SOLVE, "arrange")?;
            let (row_count, column_count) = (rows as u32, columns as u32);
            let mut launch = self.stream().launch_builder(&kernel);
            launch.arg(&given).arg(&order).arg(&row_count).arg(&column_count).arg(&mut arranged);
            // SAFETY: arguments as the kernel declares them; both weights have rows x columns numbers, the order names
            // columns, and what lies beyond the edges is left alone.
            unsafe { launch.launch(squares(rows, columns)) }?;
        }
        Ok(Arranged { weight: arranged, rows, columns })
    }
}

fn squares(rows: usize, columns: usize) -> cudarc::driver::LaunchConfig {
    grid([rows.div_ceil(SQUARE), columns.div_ceil(SQUARE)], [SQUARE as u32, PARTS])
}

/// Grids `[outputs, groups]` as the device has them.
fn upload_grids(device: &Device, grids: &Grids, groups: usize, rows: usize) -> Result<DeviceGrids, CudaError> {
    let count = groups * rows;
    assert_eq!((grids.scales.len(), grids.zeros.len()), (count, count), "a grid for every group of every row");
    let by_group = || (0..count).map(|at| at % rows * groups + at / rows);
    let scales: Vec<f32> = by_group().map(|at| grids.scales[at].to_f32()).collect();
    let zeros: Vec<u8> = by_group().map(|at| grids.zeros[at]).collect();
    Ok(DeviceGrids { scales: device.upload(&scales)?, zeros: device.upload(&zeros)? })
}

/// GPTQ on its way through the columns.
struct Solve<'a> {
    device: &'a Device,
    spec: &'a QuantSpec,
    columns: Arranged,
    u: &'a Buffer<f32>,
    /// Position → stored column.
    order: Buffer<u32>,
    /// By position.
    groups: Groups,
    grids: DeviceGrids,
    codes: Buffer<u8>,
    /// `[BLOCK, rows]`.
    errors: Buffer<f32>,
}

impl Solve<'_> {
    /// A block: where grids are fitted on the way, each group once its weights are corrected by all before them.
    fn block(&mut self, block: &Range<usize>, group_at: &[u32], fixed: bool) -> Result<(), CudaError> {
        let mut first = block.start;
        while first < block.end {
            let group = group_at[first];
            let begins = first == 0 || group_at[first - 1] != group;
            if !fixed && begins {
                self.grids.fit(self.device, &self.columns, &self.groups, group as usize, 1, self.spec)?;
            }
            let length = group_at[first..block.end].iter().take_while(|other| **other == group).count();
            let solved = if fixed { block.end } else { first + length };
            self.solve_columns(block, first, solved)?;
            first = solved;
        }
        self.correct_behind(block)
    }

    fn solve_columns(&mut self, block: &Range<usize>, first: usize, solved: usize) -> Result<(), CudaError> {
        let kernel = self.device.kernel(&BLOCK_SOLVE, "solve_columns")?;
        let Arranged { weight, rows, columns } = &mut self.columns;
        let max_code = self.spec.max_code() as f32;
        let (row_count, column_count) = (*rows as u32, *columns as u32);
        let [start, first, solved, end] = [block.start, first, solved, block.end].map(|at| at as u32);
        let mut launch = self.device.stream().launch_builder(&kernel);
        launch.arg(weight).arg(self.u).arg(&self.order).arg(&self.groups.of_column);
        launch.arg(&self.grids.scales).arg(&self.grids.zeros).arg(&max_code).arg(&row_count).arg(&column_count);
        launch.arg(&start).arg(&first).arg(&solved).arg(&end).arg(&mut self.codes).arg(&mut self.errors);
        // SAFETY: arguments as the kernel declares them; start <= first < solved <= end <= columns and a block has at
        // most BLOCK positions, which is what its tile and the errors have room for; rows beyond the last are left alone.
        unsafe { launch.launch(grid([rows.div_ceil(ROWS), 1], [ROWS as u32, PARTS])) }?;
        Ok(())
    }

    /// `W[behind] -= E U[block, behind]`.
    fn correct_behind(&mut self, block: &Range<usize>) -> Result<(), CudaError> {
        let Arranged { weight, rows, columns } = &mut self.columns;
        let behind = *columns - block.end;
        if behind == 0 {
            return Ok(());
        }
        let kernel = self.device.kernel(&BLOCK_SOLVE, "correct_behind")?;
        let [row_count, column_count, first, count] = [*rows, *columns, block.start, block.len()].map(|at| at as u32);
        let threads = (TILE / EACH) as u32;
        let mut launch = self.device.stream().launch_builder(&kernel);
        launch.arg(weight).arg(self.u).arg(&self.errors);
        launch.arg(&row_count).arg(&column_count).arg(&first).arg(&count);
        // SAFETY: arguments as the kernel declares them; the errors of this block's positions were just written, and
        // rows and positions beyond the last are left alone.
        unsafe { launch.launch(grid([rows.div_ceil(TILE), behind.div_ceil(TILE)], [threads, threads])) }?;
        Ok(())
    }
}

impl DeviceMatrix {
    fn new(columns: &Arranged, spec: &QuantSpec, codes: Buffer<u8>, grids: DeviceGrids, group_index: Vec<u32>) -> Self {
        Self {
            outputs: columns.rows,
            inputs: columns.columns,
            spec: *spec,
            codes,
            scales: grids.scales,
            zeros: grids.zeros,
            group_index,
        }
    }

    /// Copies the matrix back.
    pub fn download(&self, device: &Device) -> Result<QuantizedMatrix, CudaError> {
        let (outputs, groups) = (self.outputs, self.spec.groups(self.inputs));
        let (scales, zeros) = (device.download(&self.scales)?, device.download(&self.zeros)?);
        let by_row = || (0..outputs * groups).map(|at| at % groups * outputs + at / groups);
        Ok(QuantizedMatrix {
            outputs,
            inputs: self.inputs,
            spec: self.spec,
            codes: device.download(&self.codes_by_row(device)?)?,
            // Exact: they are float16 numbers.
            scales: by_row().map(|at| f16::from_f32(scales[at])).collect(),
            zeros: by_row().map(|at| zeros[at]).collect(),
            group_index: self.group_index.clone(),
        })
    }

    /// The codes as `[outputs, inputs]`.
    fn codes_by_row(&self, device: &Device) -> Result<Buffer<u8>, CudaError> {
        let mut out = device.room(self.codes.len(), "codes by row")?;
        if self.outputs > 0 {
            let kernel = device.kernel(&BLOCK_SOLVE, "codes_by_row")?;
            let (rows, columns) = (self.outputs as u32, self.inputs as u32);
            let mut launch = device.stream().launch_builder(&kernel);
            launch.arg(&self.codes).arg(&rows).arg(&columns).arg(&mut out);
            // SAFETY: arguments as the kernel declares them; both have rows x columns codes, and what lies beyond the
            // edges is left alone.
            unsafe { launch.launch(squares(self.outputs, self.inputs)) }?;
        }
        Ok(out)
    }
}
