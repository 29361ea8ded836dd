//! What of a walk has room on a device: one block, its statistics and a batch of windows always, and of the activations
//! those of as many windows as are asked for, or fit.

use crate::{QuantizeError, plan::ValidPlan};
use calibration::device;
use kernels::{Engine, cuda};
use model::{Checkpoint, decoder::device::obstacle};

/// Share of the free memory that activations take without being asked to take less: the driver rounds what it hands out.
const SHARE: f64 = 0.9;

/// Whether the model runs on the device, and statistics are summed there.
pub(crate) fn captures(engine: &Engine, checkpoint: &Checkpoint) -> bool {
    matches!(engine, Engine::Cuda(_)) && obstacle(&checkpoint.config).is_none()
}

/// How many windows' activations stay on the device: `wanted`, else as many as fit beside all that has to.
///
/// # Errors
/// What has to be there doesn't fit, or not with those wanted; with the amount that is needed.
pub(crate) fn windows(
    engine: &Engine,
    checkpoint: &Checkpoint,
    plan: &ValidPlan,
    windows: &[Vec<u32>],
    wanted: Option<usize>,
) -> Result<usize, QuantizeError> {
    let Engine::Cuda(device) = engine else { return Ok(0) };
    if windows.is_empty() || !captures(engine, checkpoint) {
        return Ok(0);
    }
    let (config, compared) = (&checkpoint.config, plan.options.corrects());
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    let working = device::working_bytes(config, &lengths, compared) + bytes_to_solve(plan);
    let of_windows = lengths.iter().scan(0, |sum, tokens| {
        *sum += device::resident_bytes(config, *tokens, compared);
        Some(*sum)
    });
    let of_windows: Vec<usize> = of_windows.collect();
    if let Some(wanted) = wanted {
        let wanted = wanted.min(windows.len());
        let staying = wanted.checked_sub(1).map_or(0, |last| of_windows[last]);
        device.require(working + staying, &format!("a block, its statistics and {wanted} windows"))?;
        return Ok(wanted);
    }
    device.require(working, "a block, its statistics and a batch of windows")?;
    let room = (device.memory()?.0 as f64 * SHARE) as usize;
    Ok(of_windows.iter().take_while(|bytes| working + **bytes <= room).count())
}

/// Bytes that solving takes beside the block, at most.
fn bytes_to_solve(plan: &ValidPlan) -> usize {
    let solved = plan.quantized().filter(|module| module.blocks.is_none());
    let bytes = solved.filter_map(|module| {
        module.spec.as_ref().map(|spec| cuda::bytes_to_solve(module.outputs, module.inputs, spec))
    });
    bytes.max().unwrap_or(0)
}

/// Where the model runs, for people.
pub(crate) fn describe(checkpoint: &Checkpoint, staying: usize, windows: usize) -> String {
    match obstacle(&checkpoint.config) {
        Some(what) => format!("the model runs on the CPU: {what}"),
        None => format!("the model runs on the device; the activations of {staying} of {windows} windows stay there"),
    }
}
