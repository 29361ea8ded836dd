//! Copies to the device beside its work, on a stream of their own: [`Device::upload_beside`].
//!
//! Numbers go through two pieces of page-locked memory in turn, since only from there does a copy run by itself. A piece is
//! filled again once the copy out of it is done. What uses the buffer on the device waits for its copy, by the events that
//! cudarc keeps for every buffer as soon as there is a second stream.

use super::{Buffer, CudaError, Device};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice};
use rayon::prelude::*;
use std::sync::{Arc, PoisonError};

/// Numbers of a piece: 16 MiB, large enough for the bus and small enough to be filled meanwhile.
const PIECE: usize = 4 << 20;
/// Numbers that a thread copies at a time.
const SHARE: usize = 1 << 18;

/// The stream, and what copies go through.
#[derive(Debug)]
pub(super) struct Copies {
    stream: Arc<CudaStream>,
    pieces: [Piece; 2],
    /// The piece to be filled next.
    next: usize,
}

#[derive(Debug)]
struct Piece {
    memory: PinnedHostSlice<f32>,
    /// Behind the last copy out of it.
    done: Option<CudaEvent>,
}

impl Piece {
    fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        // SAFETY: floats for which any bits are a value; every number is written before it is copied.
        Ok(Self { memory: unsafe { context.alloc_pinned(PIECE) }?, done: None })
    }
}

impl Copies {
    fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        let pieces = [Piece::new(context)?, Piece::new(context)?];
        Ok(Self { stream: context.new_stream()?, pieces, next: 0 })
    }

    /// Waits until everything copied is there, and what was given back is free.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        Ok(self.stream.synchronize()?)
    }

    fn upload(&mut self, numbers: &[f32]) -> Result<Buffer<f32>, CudaError> {
        // SAFETY: as above; the copies below cover the whole buffer.
        let mut buffer = unsafe { self.stream.alloc(numbers.len()) }?;
        for (index, part) in numbers.chunks(PIECE).enumerate() {
            let piece = &mut self.pieces[self.next];
            self.next = 1 - self.next;
            if let Some(done) = piece.done.take() {
                done.synchronize()?;
            }
            let memory = &mut piece.memory.as_mut_slice()?[..part.len()];
            // One thread alone copies slower than the bus.
            memory.par_chunks_mut(SHARE).zip(part.par_chunks(SHARE)).for_each(|(to, from)| to.copy_from_slice(from));
            let first = index * PIECE;
            let mut there = buffer.slice_mut(first..first + part.len());
            self.stream.memcpy_htod(&piece.memory.as_slice()?[..part.len()], &mut there)?;
            piece.done = Some(self.stream.record_event(None)?);
        }
        Ok(buffer)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // The pieces are given back next, and a copy may still read them. A stream that failed copies no more.
        let _ = self.synchronize();
    }
}

impl Device {
    /// Copies `numbers` to the device beside its work. The first to use the buffer waits for it.
    pub fn upload_beside(&self, numbers: &[f32]) -> Result<Buffer<f32>, CudaError> {
        self.require(size_of_val(numbers), "a copy")?;
        let mut copies = self.copies().lock().unwrap_or_else(PoisonError::into_inner);
        let copies = match &mut *copies {
            Some(copies) => copies,
            none => none.insert(Copies::new(self.context())?),
        };
        copies.upload(numbers)
    }
}
