//! Scoring windows on a graphics processor: blocks one after the other, the next being copied while the present one works;
//! heads in tiles of the vocabulary.
//!
//! Hidden states of as many windows as fit stay on the device from block to block, the others go there and back. Neither
//! that nor the device changes more of a result than the order of float32 sums.

use crate::{EvaluateError, divergence::Known, score, window::Window};
use kernels::{
    Engine,
    cuda::{Buffer, CudaError, Device},
    divergence::Divergence,
};
use model::{
    Checkpoint,
    decoder::{
        Head,
        device::{self, DeviceActivations, DeviceBlock, DeviceHead},
    },
};
use std::{ops::Range, sync::Arc};

/// Windows are taken together until they have so many tokens: enough for products to be worth their pass over a weight.
const GROUP_TOKENS: usize = 2048;
/// Rows that go through a head together.
const HEAD_ROWS: usize = 2048;
/// Share of the free memory that hidden states take: the driver rounds what it hands out.
const SHARE: f64 = 0.9;

/// The device that `checkpoint` runs on, if it does.
pub(crate) fn of(checkpoint: &Checkpoint) -> Option<&Arc<Device>> {
    let Engine::Cuda(device) = &checkpoint.engine else { return None };
    device::obstacle(&checkpoint.config).is_none().then_some(device)
}

/// The residual stream of consecutive windows.
enum Stream {
    Here(Vec<f32>),
    There(Buffer<f32>),
}

/// Windows that go through a block together.
struct Group {
    /// Tokens of each.
    lengths: Vec<usize>,
    stream: Stream,
    /// Whether the stream stays on the device.
    stays: bool,
}

/// Hidden states after the last block; see [`score::forward`].
pub(crate) fn forward(
    device: &Arc<Device>,
    checkpoint: &Checkpoint,
    windows: &[Window],
    report: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<f32>>, EvaluateError> {
    let mut groups = groups(windows)
        .into_iter()
        .map(|range| embedded(checkpoint, &windows[range]))
        .collect::<Result<Vec<_>, _>>()?;
    settle(device, checkpoint, &mut groups)?;
    device::each_block(device, checkpoint, |block| {
        groups.iter_mut().try_for_each(|group| advance(device, &block, group))?;
        device.synchronize()?;
        report(block.index + 1);
        Ok::<(), EvaluateError>(())
    })?;
    let mut hidden = Vec::with_capacity(windows.len());
    for Group { lengths, stream, .. } in groups {
        let numbers = match stream {
            Stream::Here(numbers) => numbers,
            Stream::There(buffer) => device.download(&buffer)?,
        };
        let mut rest = numbers.as_slice();
        for tokens in lengths {
            let (window, after) = rest.split_at(tokens * checkpoint.config.hidden_size);
            hidden.push(window.to_vec());
            rest = after;
        }
    }
    Ok(hidden)
}

/// Consecutive windows that are taken together.
fn groups(windows: &[Window]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut tokens = GROUP_TOKENS;
    for (index, window) in windows.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if tokens < GROUP_TOKENS => group.end = index + 1,
            _ => {
                groups.push(index..index + 1);
                tokens = 0;
            }
        }
        tokens += window.tokens.len() - 1;
    }
    groups
}

fn embedded(checkpoint: &Checkpoint, windows: &[Window]) -> Result<Group, EvaluateError> {
    let fed = windows.iter().map(|window| &window.tokens[..window.tokens.len() - 1]);
    let lengths = fed.clone().map(<[u32]>::len).collect();
    let tokens: Vec<u32> = fed.flatten().copied().collect();
    Ok(Group { lengths, stream: Stream::Here(checkpoint.embed(&tokens)?), stays: false })
}

/// Lets as many groups stay on the device as fit beside two blocks and a group at work.
fn settle(device: &Device, checkpoint: &Checkpoint, groups: &mut [Group]) -> Result<(), CudaError> {
    let config = &checkpoint.config;
    let largest = groups.iter().map(|group| group.lengths.iter().sum()).max().unwrap_or(0);
    let working = device::block_bytes(config) + device::activation_bytes(config, largest);
    device.require(working, &format!("a block of {} and {largest} tokens", checkpoint.reference))?;
    let head = config.vocabulary * config.hidden_size * size_of::<f32>();
    device.require(head, &format!("the head of {}", checkpoint.reference))?;
    let working = working + device::block_bytes(config);
    let mut room = ((device.memory()?.0 as f64 * SHARE) as usize).saturating_sub(working);
    for group in groups {
        let bytes = group.lengths.iter().sum::<usize>() * config.hidden_size * size_of::<f32>();
        group.stays = bytes <= room;
        room = room.saturating_sub(bytes);
    }
    Ok(())
}

fn advance(device: &Device, block: &DeviceBlock, group: &mut Group) -> Result<(), CudaError> {
    let hidden = match std::mem::replace(&mut group.stream, Stream::Here(Vec::new())) {
        Stream::Here(numbers) => device.upload(&numbers)?,
        Stream::There(buffer) => buffer,
    };
    let mut activations = DeviceActivations { lengths: group.lengths.clone(), hidden: Some(hidden), input: None };
    block.forward(&mut activations)?;
    if let Some(hidden) = activations.hidden {
        group.stream = if group.stays { Stream::There(hidden) } else { Stream::Here(device.download(&hidden)?) };
    }
    Ok(())
}

/// `-log p` of every target of every window.
pub(crate) fn likelihoods(
    device: &Arc<Device>,
    head: &Head,
    windows: &[Window],
    hidden: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>, EvaluateError> {
    let width = head.config.hidden_size;
    let head = DeviceHead::upload(device, head)?;
    let scored = windows.iter().zip(hidden).map(|(window, hidden)| {
        let rows = score::rows(window, width, hidden).chunks(HEAD_ROWS * width);
        let chunks = rows.zip(window.targets().chunks(HEAD_ROWS)).map(|(rows, targets)| {
            let likelihoods = head.negative_log_likelihood(&device.upload(rows)?, targets)?;
            Ok(likelihoods)
        });
        Ok(chunks.collect::<Result<Vec<_>, CudaError>>()?.concat())
    });
    scored.collect()
}

/// The divergence at every target of every window.
pub(crate) fn divergences(
    device: &Arc<Device>,
    theirs: &Known<'_>,
    ours: &Known<'_>,
    windows: &[Window],
) -> Result<Vec<Vec<Divergence>>, EvaluateError> {
    let heads = [DeviceHead::upload(device, theirs.head)?, DeviceHead::upload(device, ours.head)?];
    let diverged = windows.iter().enumerate().map(|(index, window)| {
        let [theirs, ours] = [theirs, ours].map(|known| {
            let rows = known.states.rows(windows, index);
            rows.chunks(HEAD_ROWS * known.checkpoint.config.hidden_size)
        });
        let chunks = theirs.zip(ours).zip(window.targets().chunks(HEAD_ROWS)).map(|((theirs, ours), targets)| {
            heads[0].divergence(&device.upload(theirs)?, &heads[1], &device.upload(ours)?, targets)
        });
        Ok(chunks.collect::<Result<Vec<_>, CudaError>>()?.concat())
    });
    diverged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{protocol::Scored, stream::Stream as Tokens, window::cut};

    #[test]
    fn groups_hold_whole_windows_and_enough_tokens() {
        let windows = |length| cut(&Tokens::of(0..9000), Scored::New, length, length, None);
        assert_eq!(groups(&windows(1000)), [0..3, 3..6, 6..9]);
        assert_eq!(groups(&windows(4500)), [0..1, 1..2]);
        assert!(groups(&[]).is_empty());
    }
}
