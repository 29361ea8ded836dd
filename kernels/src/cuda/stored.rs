//! Products with a weight that stays packed on the device: [`PackedWeight`]. The kernels are `stored.cu`.

use super::{
    Buffer, CudaError, Device, DeviceMatrix,
    blas::{Right, product},
    device::{by_row, grid},
    sources::STORED,
};
use cudarc::driver::{DevicePtr, DeviceRepr, PushKernelArg};

/// Up to this many rows the weight is unpacked as it is read; for more it is unpacked once and multiplied by cuBLAS.
const FEW_ROWS: usize = 16;
/// As in the kernel: outputs of a block of threads, threads that share an output, rows that a thread takes on at a time.
const OUTPUTS: usize = 32;
const PARTS: u32 = 8;
const MOST_ROWS: usize = 8;

/// A quantized weight on the device in the words of a GPTQ checkpoint.
#[derive(Debug)]
pub struct PackedWeight {
    words: Buffer<u32>,
    /// `[groups, outputs]`.
    scales: Buffer<f32>,
    zeros: Buffer<u8>,
    group_index: Buffer<u32>,
    inputs: usize,
    outputs: usize,
    bits: u32,
}

/// `Packed` of `stored.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Packed {
    words: u64,
    scales: u64,
    zeros: u64,
    group_index: u64,
    inputs: u32,
    outputs: u32,
    bits: u32,
}

// SAFETY: four device addresses and three numbers in C's order, as the kernel's struct.
unsafe impl DeviceRepr for Packed {}

impl PackedWeight {
    /// Packs `matrix`.
    pub fn new(device: &Device, matrix: DeviceMatrix) -> Result<Self, CudaError> {
        Ok(Self {
            words: matrix.stream_words(device)?,
            group_index: device.upload(&matrix.group_index)?,
            inputs: matrix.inputs,
            outputs: matrix.outputs,
            bits: matrix.spec.bits,
            scales: matrix.scales,
            zeros: matrix.zeros,
        })
    }

    /// `out[r][o] = sum_i x[r][i] w[o][i]`; `x` is `[rows, inputs]`, the result `[rows, outputs]`.
    pub fn multiply(&self, device: &Device, x: &Buffer<f32>) -> Result<Buffer<f32>, CudaError> {
        assert_eq!(x.len() % self.inputs, 0, "shape of x");
        let rows = x.len() / self.inputs;
        let mut out = device.room(rows * self.outputs, "a product")?;
        if rows == 0 || self.outputs == 0 {
            return Ok(out);
        }
        if rows <= FEW_ROWS {
            self.multiply_few(device, x, rows, &mut out)?;
        } else {
            let weight = self.unpack(device)?;
            product(device, [rows, self.outputs, self.inputs], x, &weight, Right::AsIs, &mut out)?;
        }
        Ok(out)
    }

    fn multiply_few(
        &self,
        device: &Device,
        x: &Buffer<f32>,
        rows: usize,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let kernel = device.kernel(&STORED, "multiply_packed")?;
        let (packed, row_count) = (self.packed(device), rows as u32);
        let mut launch = device.stream().launch_builder(&kernel);
        launch.arg(x).arg(&packed).arg(&row_count).arg(out);
        let blocks = [self.outputs.div_ceil(OUTPUTS), rows.div_ceil(MOST_ROWS)];
        // SAFETY: arguments as the kernel declares them; the addresses are those of buffers that live as long as `self`,
        // on the stream that they were made on; rows and outputs beyond the last are left alone.
        unsafe { launch.launch(grid(blocks, [OUTPUTS as u32, PARTS])) }?;
        Ok(())
    }

    /// The whole weight, `[inputs, outputs]`.
    fn unpack(&self, device: &Device) -> Result<Buffer<f32>, CudaError> {
        let mut weight = device.room(self.inputs * self.outputs, "an unpacked weight")?;
        let kernel = device.kernel(&STORED, "unpack_weight")?;
        let packed = self.packed(device);
        let mut launch = device.stream().launch_builder(&kernel);
        launch.arg(&packed).arg(&mut weight);
        // SAFETY: as above.
        unsafe { launch.launch(by_row(self.outputs, self.inputs)) }?;
        Ok(weight)
    }

    fn packed(&self, device: &Device) -> Packed {
        let stream = device.stream();
        Packed {
            words: self.words.device_ptr(stream).0,
            scales: self.scales.device_ptr(stream).0,
            zeros: self.zeros.device_ptr(stream).0,
            group_index: self.group_index.device_ptr(stream).0,
            inputs: self.inputs as u32,
            outputs: self.outputs as u32,
            bits: self.bits,
        }
    }
}
