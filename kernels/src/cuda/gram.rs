//! Gram accumulation on the device, as [`crate::gram`]. The sums are cuBLAS's, the mirror is `gram.cu`.

use super::{Buffer, CudaError, Device, blas::add_gram, device::grid, sources::GRAM};
use cudarc::driver::PushKernelArg;

/// Rows of the input that are summed before they are added to what is there: the error of a float32 sum grows with the
/// number of its terms.
const CHUNK: usize = 8192;
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
