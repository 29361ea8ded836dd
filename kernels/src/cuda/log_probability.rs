//! Negative log-likelihood under the head on the device, as [`crate::log_probability`]. The kernel is
//! `log_probability.cu`, the logits are cuBLAS's.

use super::{Buffer, CudaError, Device, Operand, device::grid, sources::LOG_PROBABILITY};
use cudarc::driver::PushKernelArg;
use std::borrow::Borrow;

/// Entries of the vocabulary whose logits exist at a time.
const COLUMNS: usize = 8192;
/// Threads that take a row.
const THREADS: u32 = 256;

impl Device {
    /// `log sum_v exp(x[r]·head[v]) - x[r]·head[target[r]]` in nats, without writing the logits whole; `x` is
    /// `[targets.len(), inputs]`, `head` `[vocabulary, inputs]`.
    pub fn negative_log_likelihood<B: Borrow<Buffer<f32>>>(
        &self,
        x: &Operand<B>,
        head: &Operand,
        targets: &[u32],
    ) -> Result<Vec<f32>, CudaError> {
        let (rows, vocabulary) = (targets.len(), head.rows());
        assert_eq!(x.rows(), rows, "a row of x for each target");
        assert!(targets.iter().all(|target| (*target as usize) < vocabulary), "every target is in the vocabulary");
        if rows == 0 {
            return Ok(Vec::new());
        }
        let kernel = self.kernel(&LOG_PROBABILITY, "absorb")?;
        let targets = self.upload(targets)?;
        let mut largest = self.upload(&vec![f32::NEG_INFINITY; rows])?;
        let (mut sums, mut target_logits) = (self.zeros::<f64>(rows)?, self.zeros::<f32>(rows)?);
        let mut logits = self.room(rows * COLUMNS.min(vocabulary), "logits")?;
        for first in (0..vocabulary).step_by(COLUMNS) {
            let columns = COLUMNS.min(vocabulary - first);
            self.multiply_rows(x, head, first..first + columns, &mut logits)?;
            let (columns, first) = (columns as u32, first as u32);
            let mut launch = self.stream().launch_builder(&kernel);
            launch.arg(&logits).arg(&targets).arg(&columns).arg(&first);
            launch.arg(&mut largest).arg(&mut sums).arg(&mut target_logits);
            // SAFETY: arguments as the kernel declares them; a block of threads for each row, of which there are `rows`
            // everywhere.
            unsafe { launch.launch(grid([rows, 1], [THREADS, 1])) }?;
        }
        let (largest, sums) = (self.download(&largest)?, self.download(&sums)?);
        let rows = largest.iter().zip(&sums).zip(self.download(&target_logits)?);
        Ok(rows.map(|((largest, sum), logit)| (f64::from(*largest) - f64::from(logit) + sum.ln()) as f32).collect())
    }
}
