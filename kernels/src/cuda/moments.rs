//! All sums over an input that solvers need, taken where the input is: [`Sums`]. The kernels are `moments.cu`, `gram.cu` and
//! `elementwise.cu`, the large products cuBLAS's.

use super::{
    Buffer, CudaError, Device,
    blas::add_transposed_product,
    device::{THREADS, grid},
    sources::MOMENTS,
};
use crate::Compute;
use cudarc::driver::PushKernelArg;

/// Sums over the rows `x` of an input of some width, on the device.
pub struct Sums {
    width: usize,
    compute: Compute,
    rows: usize,
    /// `Σ xᵀx`, `[width, width]`: the lower triangle.
    gram: Buffer<f32>,
    absolute: Buffer<f64>,
    square: Buffer<f64>,
    /// `Σ dᵀx`, `[width, width]`, once there was something to compare with.
    drift: Option<Buffer<f32>>,
}

/// The same sums, brought back.
pub struct Totals {
    /// Rows seen.
    pub rows: usize,
    /// `Σ xᵀx`, `[width, width]`, both triangles.
    pub gram: Vec<f32>,
    /// `Σ |x|` of each column.
    pub absolute: Vec<f64>,
    /// `Σ x²` of each column.
    pub square: Vec<f64>,
    /// `Σ dᵀx`, `[width, width]`, where inputs were compared.
    pub drift: Option<Vec<f32>>,
}

impl Sums {
    /// Bytes of device memory for an input of `width` columns; `compared` with another model's or not.
    pub fn bytes(width: usize, compared: bool) -> usize {
        let matrices = if compared { 2 } else { 1 };
        width * (matrices * width * size_of::<f32>() + 2 * size_of::<f64>())
    }

    /// Sums of no rows, the Gram matrix by the arithmetic of `compute`.
    pub fn new(device: &Device, width: usize, compute: Compute) -> Result<Self, CudaError> {
        let (gram, absolute) = (device.zeros(width * width)?, device.zeros(width)?);
        Ok(Self { width, compute, rows: 0, gram, absolute, square: device.zeros(width)?, drift: None })
    }

    /// Adds rows `x` (`[rows, width]`).
    pub fn add(&mut self, device: &Device, x: &Buffer<f32>) -> Result<(), CudaError> {
        device.accumulate_gram_by(self.compute, &mut self.gram, x, self.width)?;
        self.rows += x.len() / self.width;
        if x.is_empty() {
            return Ok(());
        }
        let kernel = device.kernel(&MOMENTS, "add_moments")?;
        let (rows, width) = ((x.len() / self.width) as u32, self.width as u32);
        let mut launch = device.stream().launch_builder(&kernel);
        launch.arg(x).arg(&rows).arg(&width).arg(&mut self.absolute).arg(&mut self.square);
        // SAFETY: arguments as the kernel declares them; x is [rows, width], both sums have `width` numbers, and columns
        // beyond the last are left alone.
        unsafe { launch.launch(grid([self.width.div_ceil(THREADS as usize), 1], [THREADS, 1])) }?;
        Ok(())
    }

    /// Adds `dᵀx` for `d = original / divisors - x`, column by column; `x` was added already.
    pub fn add_drift(
        &mut self,
        device: &Device,
        x: &Buffer<f32>,
        original: &Buffer<f32>,
        divisors: Option<&[f32]>,
    ) -> Result<(), CudaError> {
        let divisors = match divisors {
            Some(divisors) => device.upload(divisors)?,
            None => device.upload(&vec![1.0; self.width])?,
        };
        let d = device.drift(original, &divisors, x)?;
        let drift = match &mut self.drift {
            Some(drift) => drift,
            none => none.insert(device.zeros(self.width * self.width)?),
        };
        add_transposed_product(device, drift, &d, x, self.width)
    }

    /// Brings the sums back.
    pub fn finish(mut self, device: &Device) -> Result<Totals, CudaError> {
        device.mirror_gram(&mut self.gram, self.width)?;
        Ok(Totals {
            rows: self.rows,
            gram: device.download_large(&self.gram)?,
            absolute: device.download(&self.absolute)?,
            square: device.download(&self.square)?,
            drift: self.drift.as_ref().map(|drift| device.download_large(drift)).transpose()?,
        })
    }
}
