//! Operands of the decoder's dense products in the arithmetic of [`Compute`], and the products. The kernel is `bfloat16.cu`,
//! the products are cuBLAS's, with float32 sums.

use super::{
    Buffer, CudaError, Device,
    blas::{Right, add_bfloat16_product, product},
    device::{MOST_BLOCKS, THREADS, grid},
    sources::BFLOAT16,
};
use crate::Compute;
use cudarc::driver::PushKernelArg;
use std::{borrow::Borrow, ops::Range};

/// A matrix `[rows, width]` as products of some arithmetic want it.
#[derive(Debug)]
pub struct Operand<B = Buffer<f32>> {
    width: usize,
    numbers: Numbers<B>,
}

#[derive(Debug)]
enum Numbers<B> {
    /// As they were.
    Float32(B),
    /// Rounded to bfloat16, and what that left, where it matters.
    Bfloat16(Buffer<u16>, Option<Buffer<u16>>),
}

impl<B: Borrow<Buffer<f32>>> Operand<B> {
    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        let numbers = match &self.numbers {
            Numbers::Float32(numbers) => numbers.borrow().len(),
            Numbers::Bfloat16(high, _) => high.len(),
        };
        numbers / self.width
    }
}

impl Device {
    /// `x` (`[rows, width]`) for products in `compute`. Weights are given away, activations are lent.
    pub fn operand<B: Borrow<Buffer<f32>>>(
        &self,
        compute: Compute,
        x: B,
        width: usize,
    ) -> Result<Operand<B>, CudaError> {
        assert_eq!(x.borrow().len() % width, 0, "shape of x");
        let numbers = match compute {
            Compute::F32 => Numbers::Float32(x),
            Compute::Bf16 | Compute::Bf16x3 => {
                let (high, low) = self.to_bfloat16(x.borrow(), compute == Compute::Bf16x3)?;
                Numbers::Bfloat16(high, low)
            }
        };
        Ok(Operand { width, numbers })
    }

    /// `x` rounded to bfloat16 and, with `split`, what that left, rounded. Done where `x` came to be: on the stream of the
    /// copies, what was copied beside the work.
    pub(super) fn to_bfloat16(
        &self,
        x: &Buffer<f32>,
        split: bool,
    ) -> Result<(Buffer<u16>, Option<Buffer<u16>>), CudaError> {
        let stream = x.stream();
        let room = || {
            self.require(x.len() * size_of::<u16>(), "a matrix in bfloat16")?;
            // SAFETY: numbers for which any bits are a value; the kernel writes all of them.
            Ok::<_, CudaError>(unsafe { stream.alloc::<u16>(x.len()) }?)
        };
        let (mut high, mut low) = (room()?, split.then(room).transpose()?);
        if x.is_empty() {
            return Ok((high, low));
        }
        let kernel = self.kernel(&BFLOAT16, "to_bfloat16")?;
        let (count, split, nowhere) = (x.len() as u64, u32::from(split), 0u64);
        let blocks = x.len().div_ceil(THREADS as usize).min(MOST_BLOCKS);
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(x).arg(&count).arg(&split).arg(&mut high);
        match &mut low {
            Some(low) => launch.arg(low),
            None => launch.arg(&nowhere),
        };
        // SAFETY: arguments as the kernel declares them; all buffers have `count` numbers, `low` is written only where it is
        // one, and what lies beyond is left alone.
        unsafe { launch.launch(grid([blocks, 1], [THREADS, 1])) }?;
        drop(launch);
        Ok((high, low))
    }

    /// `x wᵀ`: `[rows of x, rows of w]`. Both are of the same arithmetic.
    pub fn multiply<A: Borrow<Buffer<f32>>, B: Borrow<Buffer<f32>>>(
        &self,
        x: &Operand<A>,
        w: &Operand<B>,
    ) -> Result<Buffer<f32>, CudaError> {
        let mut out = self.room(x.rows() * w.rows(), "a product")?;
        self.multiply_rows(x, w, 0..w.rows(), &mut out)?;
        Ok(out)
    }

    /// The same with some `rows` of `w`, into the beginning of `out`.
    pub(super) fn multiply_rows<A: Borrow<Buffer<f32>>, B: Borrow<Buffer<f32>>>(
        &self,
        x: &Operand<A>,
        w: &Operand<B>,
        rows: Range<usize>,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        assert_eq!(x.width, w.width, "rows of x and w");
        let sizes = [x.rows(), rows.len(), x.width];
        let part = rows.start * w.width..rows.end * w.width;
        match (&x.numbers, &w.numbers) {
            (Numbers::Float32(x), Numbers::Float32(w)) => {
                product(self, sizes, x.borrow(), &w.borrow().slice(part), Right::Transposed, out)
            }
            (Numbers::Bfloat16(x, x_low), Numbers::Bfloat16(w, w_low)) => {
                let w_high = w.slice(part.clone());
                // Small terms first.
                let mut kept = false;
                if let (Some(x_low), Some(w_low)) = (x_low, w_low) {
                    add_bfloat16_product(self, sizes, x_low, &w_high, kept, out)?;
                    add_bfloat16_product(self, sizes, x, &w_low.slice(part), true, out)?;
                    kept = true;
                }
                add_bfloat16_product(self, sizes, x, &w_high, kept, out)
            }
            _ => unreachable!("operands of two arithmetics are never multiplied"),
        }
    }
}
