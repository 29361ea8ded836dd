//! The divergence of two models' distributions on the device, as [`crate::divergence`]. The kernel is `divergence.cu`, the
//! logits are cuBLAS's.

use super::{Buffer, CudaError, Device, Operand, device::grid, sources::DIVERGENCE};
use crate::divergence::{Divergence, Row, Softmax};
use cudarc::driver::{DeviceRepr, PushKernelArg};
use std::borrow::Borrow;

/// Entries of the vocabulary whose logits exist at a time.
const COLUMNS: usize = 8192;
/// Threads that take a row.
const THREADS: u32 = 256;

/// One side on the device: its normed hidden states `[rows, width]` and its head `[vocabulary, width]`.
pub type DeviceSide<'a, B> = (&'a Operand<B>, &'a Operand);

/// `Sums` of `divergence.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Sums {
    largest: [f64; 2],
    sum: [f64; 2],
    target: [f64; 2],
    weighted: f64,
    top: [u32; 2],
}

// SAFETY: seven numbers of 8 bytes and two of 4 in C's order without gaps, as the kernel's struct.
unsafe impl DeviceRepr for Sums {}

impl Sums {
    const START: Self =
        Self { largest: [f64::NEG_INFINITY; 2], sum: [0.0; 2], target: [0.0; 2], weighted: 0.0, top: [0; 2] };

    fn finish(&self, target: u32) -> Divergence {
        let [baseline, model] = std::array::from_fn(|side| Softmax {
            largest: self.largest[side],
            top: self.top[side] as usize,
            sum: self.sum[side],
            target: self.target[side],
        });
        Row { target: target as usize, baseline, model, weighted: self.weighted }.finish()
    }
}

impl Device {
    /// The divergence at each of `targets.len()` rows, without writing logits whole; see [`crate::divergence::divergence`].
    pub fn divergence<B: Borrow<Buffer<f32>>>(
        &self,
        baseline: DeviceSide<'_, B>,
        model: DeviceSide<'_, B>,
        targets: &[u32],
    ) -> Result<Vec<Divergence>, CudaError> {
        let (rows, vocabulary) = (targets.len(), baseline.1.rows());
        for (x, head) in [baseline, model] {
            assert_eq!(head.rows(), vocabulary, "both heads have the same vocabulary");
            assert_eq!(x.rows(), rows, "a row of hidden states for each target");
        }
        assert!(targets.iter().all(|target| (*target as usize) < vocabulary), "every target is in the vocabulary");
        if rows == 0 {
            return Ok(Vec::new());
        }
        let kernel = self.kernel(&DIVERGENCE, "diverge")?;
        let targets_there = self.upload(targets)?;
        let mut sums = self.upload(&vec![Sums::START; rows])?;
        let tile = rows * COLUMNS.min(vocabulary);
        let mut logits = [self.room(tile, "logits")?, self.room(tile, "logits")?];
        for first in (0..vocabulary).step_by(COLUMNS) {
            let columns = COLUMNS.min(vocabulary - first);
            for ((x, head), logits) in [baseline, model].into_iter().zip(&mut logits) {
                self.multiply_rows(x, head, first..first + columns, logits)?;
            }
            let ([a, b], columns, first) = (&logits, columns as u32, first as u32);
            let mut launch = self.stream().launch_builder(&kernel);
            launch.arg(a).arg(b).arg(&targets_there).arg(&columns).arg(&first).arg(&mut sums);
            // SAFETY: arguments as the kernel declares them; a block of threads for each row, of which there are `rows`
            // everywhere.
            unsafe { launch.launch(grid([rows, 1], [THREADS, 1])) }?;
        }
        let sums = self.download(&sums)?;
        Ok(sums.iter().zip(targets).map(|(sums, target)| sums.finish(*target)).collect())
    }
}
