//! Gram accumulation on the device, as [`crate::gram`]. The sums are cuBLAS's, the mirror is `gram.cu`.

use super::{
    Buffer, CudaError, Device,
    blas::{add_bfloat16_panel, add_gram},
    device::grid,
    sources::GRAM,
};
use crate::Compute;
use cudarc::driver::PushKernelArg;

/// Rows of the input that are summed before they are added to what is there: the error of a float32 sum grows with the
/// number of its terms.
const CHUNK: usize = 8192;
/// Rows of a panel of the Gram matrix, of which only what is left of the diagonal's end is computed: cuBLAS has no product of
/// bfloat16 numbers that leaves out a triangle.
const PANEL: usize = 1024;
/// Edge of a tile of the mirror, and its rows of threads.
const SQUARE: usize = 32;
const ROWS: u32 = 8;

impl Device {
    /// Adds `xᵀx` to the lower triangle of `gram` (`[width, width]`); `x` is `[rows, width]`. Entries above the diagonal
    /// are left alone.
    pub fn accumulate_gram(&self, gram: &mut Buffer<f32>, x: &Buffer<f32>, width: usize) -> Result<(), CudaError> {
        assert_eq!(x.len() % width, 0, "shape of x");
        for start in (0..x.len()).step_by(CHUNK * width) {
            let chunk = x.slice(start..(start + CHUNK * width).min(x.len()));
            add_gram(self, gram, &chunk, width)?;
        }
        Ok(())
    }

    /// The same by the arithmetic of `compute`, as [`crate::gram::accumulate_by`]: where its operands are bfloat16, each number
    /// enters as the sum of two such, and of four products the smallest is left out. Entries above the diagonal are of no
    /// use afterwards.
    pub fn accumulate_gram_by(
        &self,
        compute: Compute,
        gram: &mut Buffer<f32>,
        x: &Buffer<f32>,
        width: usize,
    ) -> Result<(), CudaError> {
        if compute == Compute::F32 || x.is_empty() {
            return self.accumulate_gram(gram, x, width);
        }
        assert_eq!(x.len() % width, 0, "shape of x");
        let (high, low) = self.to_bfloat16(x, true)?;
        let low = low.expect("it was asked for");
        for start in (0..x.len()).step_by(CHUNK * width) {
            let [high, low] = [&high, &low].map(|half| half.slice(start..(start + CHUNK * width).min(x.len())));
            for first in (0..width).step_by(PANEL) {
                let panel = first..(first + PANEL).min(width);
                // Small terms first.
                for pair in [(&low, &high), (&high, &low), (&high, &high)] {
                    add_bfloat16_panel(self, gram, pair, width, panel.clone())?;
                }
            }
        }
        Ok(())
    }

    /// Copies the lower triangle of `gram` onto the upper one.
    pub fn mirror_gram(&self, gram: &mut Buffer<f32>, width: usize) -> Result<(), CudaError> {
        assert_eq!(gram.len(), width * width, "shape of gram");
        let kernel = self.kernel(&GRAM, "mirror")?;
        let (squares, width) = (width.div_ceil(SQUARE), width as u32);
        let mut launch = self.stream().launch_builder(&kernel);
        launch.arg(gram).arg(&width);
        // SAFETY: arguments as the kernel declares them; what lies beyond the edges is left alone, and no thread reads
        // above the diagonal, where others write.
        unsafe { launch.launch(grid([squares, squares], [SQUARE as u32, ROWS])) }?;
        Ok(())
    }
}
