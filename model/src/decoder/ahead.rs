//! Blocks for a device one after the other, the next being read and copied while the present one works.

use super::{
    Block,
    device::{DeviceBlock, block_bytes},
};
use crate::{Checkpoint, ModelError};
use kernels::cuda::{CudaError, Device};
use std::{
    sync::Arc,
    thread::{self, Scope, ScopedJoinHandle},
};

/// A block that was brought in.
enum Fetched {
    /// Its copy is under way beside the work.
    There(Box<DeviceBlock>),
    /// The device had no room for it beside the present one.
    Here(Box<Block>),
}

/// Takes every block of `checkpoint` through `work`, on the device. Where the device has no room for two blocks, the next
/// one is only read meanwhile.
pub fn each_block<E: From<ModelError> + From<CudaError> + Send>(
    device: &Arc<Device>,
    checkpoint: &Checkpoint,
    mut work: impl FnMut(DeviceBlock) -> Result<(), E>,
) -> Result<(), E> {
    let blocks = checkpoint.config.layers.len();
    thread::scope(|scope| {
        let mut next = (blocks > 0).then(|| fetch(scope, device, checkpoint, 0));
        for index in 1..=blocks {
            let Some(fetching) = next.take() else { break };
            let fetched: Result<Fetched, E> = fetching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let block = match fetched? {
                Fetched::There(block) => *block,
                Fetched::Here(block) => DeviceBlock::upload(device, &block)?,
            };
            next = (index < blocks).then(|| fetch(scope, device, checkpoint, index));
            work(block)?;
        }
        Ok(())
    })
}

fn fetch<'scope, E: From<ModelError> + From<CudaError> + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    device: &'scope Arc<Device>,
    checkpoint: &'scope Checkpoint,
    index: usize,
) -> ScopedJoinHandle<'scope, Result<Fetched, E>> {
    scope.spawn(move || {
        let block = checkpoint.block(index)?;
        // What the present block makes of activations needs room as well, and was counted with one block more.
        if device.memory()?.0 < 2 * block_bytes(&checkpoint.config) {
            return Ok(Fetched::Here(Box::new(block)));
        }
        Ok(Fetched::There(Box::new(DeviceBlock::upload_beside(device, &block)?)))
    })
}
