//! What is done number by number on the device. The kernels are `elementwise.cu`.

use super::{
    Buffer, CudaError, Device,
    device::{MOST_BLOCKS, THREADS, grid},
    sources::ELEMENTWISE,
};
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Threads for `count` numbers, as far as they go.
fn threads(count: usize) -> LaunchConfig {
    grid([count.div_ceil(THREADS as usize).min(MOST_BLOCKS), 1], [THREADS, 1])
}

impl Device {
    /// `x += y`, number by number.
    pub fn add(&self, x: &mut Buffer<f32>, y: &Buffer<f32>) -> Result<(), CudaError> {
        assert_eq!(x.len(), y.len(), "shapes of x and y");
        if y.is_empty() {
            return Ok(());
        }
        let kernel = self.kernel(&ELEMENTWISE, "add")?;
        let count = y.len() as u64;
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(x).arg(y).arg(&count);
        // SAFETY: arguments as the kernel declares them; both have `count` numbers, and what lies beyond is left alone.
        unsafe { launch.launch(threads(count as usize)) }?;
        Ok(())
    }

    /// Adds `bias` to each row of `x` (`[rows, bias.len()]`).
    pub fn add_bias(&self, x: &mut Buffer<f32>, bias: &Buffer<f32>) -> Result<(), CudaError> {
        if x.is_empty() {
            return Ok(());
        }
        assert_eq!(x.len() % bias.len(), 0, "shapes of x and bias");
        let kernel = self.kernel(&ELEMENTWISE, "add_bias")?;
        let (count, width) = (x.len() as u64, bias.len() as u32);
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(x).arg(bias).arg(&count).arg(&width);
        // SAFETY: arguments as the kernel declares them; x has `count` numbers, bias `width`, and what lies beyond is left
        // alone.
        unsafe { launch.launch(threads(count as usize)) }?;
        Ok(())
    }

    /// The `columns` columns from `first` on of `x` (`[rows, width]`).
    pub fn take_columns(
        &self,
        x: &Buffer<f32>,
        width: usize,
        first: usize,
        columns: usize,
    ) -> Result<Buffer<f32>, CudaError> {
        assert!(x.len().is_multiple_of(width) && first + columns <= width, "shape of x");
        let count = x.len() / width * columns;
        let mut out = self.room(count, "columns of a matrix")?;
        if count > 0 {
            let kernel = self.kernel(&ELEMENTWISE, "take_columns")?;
            let [width, first, columns] = [width, first, columns].map(|size| size as u32);
            let numbers = count as u64;
            let mut launch = self.stream().launch_builder(&kernel);
            launch.arg(x).arg(&numbers).arg(&width).arg(&first).arg(&columns).arg(&mut out);
            // SAFETY: arguments as the kernel declares them; the columns lie inside x's rows, of which `out` has as many.
            unsafe { launch.launch(threads(count)) }?;
        }
        Ok(out)
    }

    /// `original / divisors - x`; `original` and `x` are `[rows, divisors.len()]`.
    pub(super) fn drift(
        &self,
        original: &Buffer<f32>,
        divisors: &Buffer<f32>,
        x: &Buffer<f32>,
    ) -> Result<Buffer<f32>, CudaError> {
        assert_eq!((original.len(), x.len() % divisors.len()), (x.len(), 0), "shapes of original, x and divisors");
        let mut d = self.room(x.len(), "the drift of an input")?;
        if !x.is_empty() {
            let kernel = self.kernel(&ELEMENTWISE, "take_drift")?;
            let (count, width) = (x.len() as u64, divisors.len() as u32);
            let mut launch = self.stream().launch_builder(&kernel);
            launch.arg(original).arg(divisors).arg(x).arg(&count).arg(&width).arg(&mut d);
            // SAFETY: arguments as the kernel declares them; original, x and d have `count` numbers, divisors `width`, and
            // what lies beyond is left alone.
            unsafe { launch.launch(threads(x.len())) }?;
        }
        Ok(d)
    }
}
