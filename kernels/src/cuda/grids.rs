//! Grids on the device: fitting them, rounding to them. The kernels are `grid.cu`.

use super::{
    Buffer, CudaError, Device,
    device::{MOST_BLOCKS, by_row},
    sources::GRID,
};
use crate::{QuantSpec, ScaleSearch};
use cudarc::driver::{DeviceRepr, PushKernelArg};

/// `GridSpec` of `grid.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct GridSpec {
    max_code: f32,
    smallest_zero: f32,
    symmetric: u32,
    search: u32,
}

// SAFETY: four numbers of 4 bytes in C's order, as the kernel's struct.
unsafe impl DeviceRepr for GridSpec {}

impl From<&QuantSpec> for GridSpec {
    fn from(spec: &QuantSpec) -> Self {
        Self {
            max_code: spec.max_code() as f32,
            smallest_zero: f32::from(spec.smallest_zero),
            symmetric: u32::from(spec.symmetric),
            search: u32::from(spec.scale_search == ScaleSearch::Mse),
        }
    }
}

/// Weights `[columns, rows]` on the device, about to be rounded.
#[derive(Debug)]
pub(super) struct Arranged {
    pub(super) weight: Buffer<f32>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// The groups of columns, on the device.
#[derive(Debug)]
pub(super) struct Groups {
    /// The columns, in the order of their groups.
    members: Buffer<u32>,
    /// `[groups + 1]`: where each group begins among the members.
    starts: Buffer<u32>,
    /// `[columns]`.
    pub(super) of_column: Buffer<u32>,
    pub(super) count: usize,
}

impl Groups {
    /// Of `index`, the group of each column, below `count`.
    pub(super) fn new(device: &Device, index: &[u32], count: usize) -> Result<Self, CudaError> {
        if count > MOST_BLOCKS {
            return Err(CudaError::Shape {
                what: format!("{count} groups in a row; at most {MOST_BLOCKS} are possible"),
            });
        }
        let mut members: Vec<u32> = (0..index.len() as u32).collect();
        members.sort_by_key(|column| index[*column as usize]);
        let below = |group: u32| members.partition_point(|column| index[*column as usize] < group) as u32;
        let starts: Vec<u32> = (0..=count as u32).map(below).collect();
        Ok(Self {
            members: device.upload(&members)?,
            starts: device.upload(&starts)?,
            of_column: device.upload(index)?,
            count,
        })
    }
}

/// `[groups, rows]` each.
pub(super) struct DeviceGrids {
    /// Steps, float16 numbers in float32.
    pub(super) scales: Buffer<f32>,
    pub(super) zeros: Buffer<u8>,
}

impl DeviceGrids {
    pub(super) fn room(device: &Device, groups: usize, rows: usize) -> Result<Self, CudaError> {
        let count = groups * rows;
        Ok(Self { scales: device.room(count, "the grids' steps")?, zeros: device.room(count, "the zero-points")? })
    }

    /// Fits `count` groups from `first` on to `weight`.
    pub(super) fn fit(
        &mut self,
        device: &Device,
        weight: &Arranged,
        groups: &Groups,
        first: usize,
        count: usize,
        spec: &QuantSpec,
    ) -> Result<(), CudaError> {
        if weight.rows == 0 || count == 0 {
            return Ok(());
        }
        let kernel = device.kernel(&GRID, "fit_grids")?;
        let (first, rows, spec) = (first as u32, weight.rows as u32, GridSpec::from(spec));
        let mut launch = device.stream().launch_builder(&kernel);
        launch.arg(&weight.weight).arg(&groups.members).arg(&groups.starts);
        launch.arg(&first).arg(&rows).arg(&spec).arg(&mut self.scales).arg(&mut self.zeros);
        // SAFETY: arguments as the kernel declares them; members are columns of the weight, the groups are below the
        // number that grids have room for, and rows beyond the last are left alone.
        unsafe { launch.launch(by_row(weight.rows, count)) }?;
        Ok(())
    }

    /// The nearest codes of `weight`, `[columns, rows]`.
    pub(super) fn codes(
        &self,
        device: &Device,
        weight: &Arranged,
        groups: &Groups,
        max_code: u32,
    ) -> Result<Buffer<u8>, CudaError> {
        let mut codes = device.room(weight.rows * weight.columns, "codes")?;
        if weight.rows > 0 {
            let kernel = device.kernel(&GRID, "nearest_codes")?;
            let (columns, rows, max_code) = (weight.columns as u32, weight.rows as u32, max_code as f32);
            let mut launch = device.stream().launch_builder(&kernel);
            launch.arg(&weight.weight).arg(&groups.of_column).arg(&self.scales).arg(&self.zeros);
            launch.arg(&columns).arg(&rows).arg(&max_code).arg(&mut codes);
            // SAFETY: arguments as the kernel declares them; weight and codes are [columns, rows], every column's group
            // has a grid, and rows beyond the last are left alone.
            unsafe { launch.launch(by_row(weight.rows, weight.columns)) }?;
        }
        Ok(codes)
    }
}
