//! Copies through page-locked memory, on a stream of their own: to the device beside its work, [`Device::upload_beside`], and
//! large ones back, [`Device::download_large`].
//!
//! Numbers go through two pieces of page-locked memory in turn, since only from there does a copy run by itself. A piece is
//! filled again once the copy out of it is done. What uses the buffer on the device waits for its copy, by the events that
//! cudarc keeps for every buffer as soon as there is a second stream.

use super::{Buffer, CudaError, Device};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice};
use std::{
    sync::{Arc, PoisonError},
    thread,
};

/// Numbers of a piece: 16 MiB, large enough for the bus and small enough to be filled meanwhile.
const PIECE: usize = 4 << 20;
/// Numbers that a thread copies at a time.
const SHARE: usize = PIECE / 4;

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

    /// Fills `out` with what was copied here.
    fn take(&mut self, out: &mut [f32]) -> Result<(), CudaError> {
        if let Some(done) = self.done.take() {
            done.synchronize()?;
        }
        copy(&self.memory.as_slice()?[..out.len()], out);
        Ok(())
    }
}

/// By several threads: one alone is slower than the bus. They are not the pool's, which would take up other work while they
/// wait here, and that may want the copies too.
fn copy(from: &[f32], to: &mut [f32]) {
    if from.len() <= SHARE {
        return to.copy_from_slice(from);
    }
    thread::scope(|scope| {
        for (to, from) in to.chunks_mut(SHARE).zip(from.chunks(SHARE)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
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
            copy(part, &mut piece.memory.as_mut_slice()?[..part.len()]);
            let first = index * PIECE;
            let mut there = buffer.slice_mut(first..first + part.len());
            self.stream.memcpy_htod(&piece.memory.as_slice()?[..part.len()], &mut there)?;
            piece.done = Some(self.stream.record_event(None)?);
        }
        Ok(buffer)
    }

    fn download(&mut self, numbers: &Buffer<f32>, out: &mut [f32]) -> Result<(), CudaError> {
        let mut waiting: Option<(usize, &mut [f32])> = None;
        for (index, part) in out.chunks_mut(PIECE).enumerate() {
            let first = index * PIECE;
            let there = numbers.slice(first..first + part.len());
            let number = self.next;
            self.next = 1 - self.next;
            let piece = &mut self.pieces[number];
            if let Some(done) = piece.done.take() {
                done.synchronize()?;
            }
            self.stream.memcpy_dtoh(&there, &mut piece.memory.as_mut_slice()?[..part.len()])?;
            piece.done = Some(self.stream.record_event(None)?);
            if let Some((number, part)) = waiting.replace((number, part)) {
                self.pieces[number].take(part)?;
            }
        }
        waiting.map_or(Ok(()), |(number, part)| self.pieces[number].take(part))
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
        self.with_copies(|copies| copies.upload(numbers))
    }

    /// Copies many numbers back, when everything asked for before is done.
    pub fn download_large(&self, numbers: &Buffer<f32>) -> Result<Vec<f32>, CudaError> {
        let mut out = vec![0.0; numbers.len()];
        self.with_copies(|copies| copies.download(numbers, &mut out))?;
        Ok(out)
    }

    fn with_copies<T>(&self, work: impl FnOnce(&mut Copies) -> Result<T, CudaError>) -> Result<T, CudaError> {
        let mut copies = self.copies().lock().unwrap_or_else(PoisonError::into_inner);
        let copies = match &mut *copies {
            Some(copies) => copies,
            none => none.insert(Copies::new(self.context())?),
        };
        work(copies)
    }
}
