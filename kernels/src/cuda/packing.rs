//! Codes to the words of checkpoints, on the device. The kernels are `pack.cu`.

use super::{Buffer, CudaError, Device, DeviceMatrix, device::by_row, sources::PACK};
use cudarc::driver::PushKernelArg;

impl DeviceMatrix {
    /// Words of a GPTQ checkpoint, `[inputs * bits / 32 rounded up, outputs]`: column by column the stream of
    /// [`crate::pack::pack`].
    pub fn stream_words(&self, device: &Device) -> Result<Buffer<u32>, CudaError> {
        let bits = self.spec.bits;
        let words = (self.inputs * bits as usize).div_ceil(32);
        let mut out = device.room(words * self.outputs, "packed codes")?;
        if self.outputs > 0 {
            let kernel = device.kernel(&PACK, "pack_stream")?;
            let [columns, rows, words_each] = [self.inputs, self.outputs, words].map(|count| count as u32);
            let mut launch = device.stream().launch_builder(&kernel);
            launch.arg(&self.codes).arg(&columns).arg(&rows).arg(&bits).arg(&words_each).arg(&mut out);
            // SAFETY: arguments as the kernel declares them; codes are [columns, rows], `out` has the words of every
            // row, and rows and columns beyond the last are left alone.
            unsafe { launch.launch(by_row(self.outputs, words)) }?;
        }
        Ok(out)
    }

    /// Words of an AWQ checkpoint at 4 bits, `[inputs, outputs / 8]`: eight neighbouring outputs to a word, in the order
    /// 0 2 4 6 1 3 5 7 from the lowest bits on.
    ///
    /// # Errors
    /// Other bits, or outputs that don't fill words.
    pub fn interleaved_words(&self, device: &Device) -> Result<Buffer<u32>, CudaError> {
        if self.spec.bits != 4 || !self.outputs.is_multiple_of(8) {
            let what = format!("AWQ's words hold 8 outputs of 4 bits, not {} of {}", self.outputs, self.spec.bits);
            return Err(CudaError::Shape { what });
        }
        let words = self.outputs / 8;
        let mut out = device.room(words * self.inputs, "packed codes")?;
        if words > 0 {
            let kernel = device.kernel(&PACK, "pack_interleaved")?;
            let (columns, rows) = (self.inputs as u32, self.outputs as u32);
            let mut launch = device.stream().launch_builder(&kernel);
            launch.arg(&self.codes).arg(&columns).arg(&rows).arg(&mut out);
            // SAFETY: arguments as the kernel declares them; codes are [columns, rows], `out` is [columns, rows / 8], and
            // words beyond the last are left alone.
            unsafe { launch.launch(by_row(words, self.inputs)) }?;
        }
        Ok(out)
    }
}
