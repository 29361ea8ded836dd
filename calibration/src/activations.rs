//! The running activations of all windows, in memory or in a memory-mapped temporary file.
//!
//! ```text
//! Layout   window 0 | window 1 window 2 window 3 | window 4 | ...        batches of whole windows, at least 512 tokens
//! Area     slot of batch 0: tokens(batch) * widest float32 | slot of batch 1 | ...
//! ```
//!
//! Within its slot a batch's rows lie densely in their present width, `[tokens, width]` with `width <= widest`, so that
//! one slot serves all stages of a block and statistics run over whole batches. The cut into batches follows from the
//! windows' lengths alone: results depend neither on the number of threads nor on where an area lives.

use crate::CalibrationError;
use memmap2::MmapMut;
use std::{io::Write, ops::Range, path::Path};

/// A batch is closed when it holds this many tokens: enough for a Gram product to be worth its pass over the matrix.
const BATCH_TOKENS: usize = 512;

/// The windows' lengths and their cut into batches.
#[derive(Clone, Debug)]
pub struct Layout {
    lengths: Vec<usize>,
    batches: Vec<Range<usize>>,
}

impl Layout {
    /// The layout of windows of these lengths.
    pub fn new(lengths: Vec<usize>) -> Self {
        let mut batches = Vec::new();
        let (mut first, mut tokens) = (0, 0);
        for (window, length) in lengths.iter().enumerate() {
            tokens += length;
            if tokens >= BATCH_TOKENS || window + 1 == lengths.len() {
                batches.push(first..window + 1);
                (first, tokens) = (window + 1, 0);
            }
        }
        Self { lengths, batches }
    }

    /// The windows of each batch.
    pub fn batches(&self) -> &[Range<usize>] {
        &self.batches
    }

    /// The lengths of the windows in `batch`.
    pub fn lengths(&self, batch: &Range<usize>) -> &[usize] {
        &self.lengths[batch.clone()]
    }

    /// Tokens in `batch`.
    pub fn rows(&self, batch: &Range<usize>) -> usize {
        self.lengths(batch).iter().sum()
    }

    /// Tokens in all windows.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Rows for every token of a [`Layout`], a slot for each batch.
pub struct Area {
    storage: Storage,
    widest: usize,
    rows: Vec<usize>,
}

enum Storage {
    Memory(Vec<f32>),
    Spilled(MmapMut),
}

impl Area {
    /// An area for rows of at most `widest` numbers; in memory if it takes at most `memory` bytes, else in a temporary
    /// file in `folder`, which has no name and vanishes with the process. The file's space is taken at once, so that a
    /// full disk is an error here and not a fault later.
    pub fn new(layout: &Layout, widest: usize, memory: usize, folder: &Path) -> Result<Self, CalibrationError> {
        let rows: Vec<usize> = layout.batches().iter().map(|batch| layout.rows(batch)).collect();
        let bytes = layout.tokens().checked_mul(widest).and_then(|count| count.checked_mul(size_of::<f32>()));
        let bytes = bytes.ok_or_else(|| {
            let what = format!("{} tokens of width {widest} don't fit the address space", layout.tokens());
            CalibrationError::Option(what)
        })?;
        let storage = if bytes <= memory {
            Storage::Memory(vec![0.0; bytes / size_of::<f32>()])
        } else {
            let map = spill(bytes, folder).map_err(|source| {
                let what = format!("a temporary file of {bytes} bytes in {}: {source}", folder.display());
                std::io::Error::new(source.kind(), what)
            })?;
            Storage::Spilled(map)
        };
        Ok(Self { storage, widest, rows })
    }

    /// Bytes that the area takes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.numbers())
    }

    /// Whether the area lives in a file.
    pub fn is_spilled(&self) -> bool {
        matches!(self.storage, Storage::Spilled(_))
    }

    /// The slots of all batches, in order; each holds `rows * widest` numbers.
    pub fn slots_mut(&mut self) -> Vec<&mut [f32]> {
        let (lengths, widest) = (self.rows.clone(), self.widest);
        let mut rest = self.numbers_mut();
        let mut slots = Vec::with_capacity(lengths.len());
        for rows in lengths {
            let (slot, after) = std::mem::take(&mut rest).split_at_mut(rows * widest);
            slots.push(slot);
            rest = after;
        }
        slots
    }

    /// The rows of each batch, in order, at their present `width`: `[rows, width]`.
    pub fn batches(&self, width: usize) -> impl Iterator<Item = &[f32]> {
        assert!(width <= self.widest, "rows of {width} numbers in an area made for {}", self.widest);
        let mut rest = self.numbers();
        self.rows.iter().map(move |rows| {
            let (slot, after) = rest.split_at(rows * self.widest);
            rest = after;
            &slot[..rows * width]
        })
    }

    /// The rows of batch `batch` at their present `width`: `[rows, width]`.
    pub fn rows_of(&self, batch: usize, width: usize) -> &[f32] {
        let first = self.first_number(batch);
        &self.numbers()[first..][..self.rows[batch] * width]
    }

    /// The same, to be written.
    pub fn rows_of_mut(&mut self, batch: usize, width: usize) -> &mut [f32] {
        let (first, count) = (self.first_number(batch), self.rows[batch] * width);
        &mut self.numbers_mut()[first..][..count]
    }

    fn first_number(&self, batch: usize) -> usize {
        self.rows[..batch].iter().sum::<usize>() * self.widest
    }

    fn numbers_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::Memory(numbers) => numbers,
            Storage::Spilled(map) => bytemuck::cast_slice_mut(map),
        }
    }

    fn numbers(&self) -> &[f32] {
        match &self.storage {
            Storage::Memory(numbers) => numbers,
            Storage::Spilled(map) => bytemuck::cast_slice(map),
        }
    }
}

/// Maps a new unnamed file of `bytes` zeros.
#[allow(unsafe_code)]
fn spill(bytes: usize, folder: &Path) -> std::io::Result<MmapMut> {
    let mut file = tempfile::tempfile_in(folder)?;
    let zeros = vec![0; bytes.min(1 << 20)];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(zeros.len());
        file.write_all(&zeros[..count])?;
        left -= count;
    }
    // SAFETY: the file was created just now without a name, so no other process can open it, and the only handle is
    // dropped at the end of this function; nothing truncates or writes it while it is mapped.
    unsafe { MmapMut::map_mut(&file) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn batches_close_at_512_tokens() {
        let layout = Layout::new(vec![512, 100, 411, 1, 600, 7]);
        assert_eq!(layout.batches(), [0..1, 1..4, 4..5, 5..6]);
        assert_eq!(layout.rows(&(1..4)), 512);
        assert!(Layout::new(Vec::new()).batches().is_empty());
    }

    #[test]
    fn a_file_behaves_like_memory() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(vec![300, 300, 5]);
        let filled = |memory| {
            let mut area = Area::new(&layout, 3, memory, folder.path()).unwrap();
            assert_eq!(area.bytes(), 605 * 3 * 4);
            for (slot, batch) in area.slots_mut().into_iter().zip(layout.batches()) {
                assert_eq!(slot.len(), layout.rows(batch) * 3);
                assert!(slot.iter().all(|number| *number == 0.0));
                (0..slot.len()).for_each(|i| slot[i] = (i + batch.start) as f32);
            }
            let rows: Vec<Vec<f32>> = area.batches(2).map(<[f32]>::to_vec).collect();
            (area.is_spilled(), rows)
        };
        let ((spilled, file), (in_file, memory)) = (filled(605 * 3 * 4 - 1), filled(605 * 3 * 4));
        assert_eq!((spilled, in_file), (true, false));
        assert_eq!(file, memory);
        assert_eq!(file.iter().map(Vec::len).collect::<Vec<_>>(), [1200, 10]);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn an_area_for_rows_of_nothing_is_empty() {
        let layout = Layout::new(vec![5, 600]);
        let mut area = Area::new(&layout, 0, 0, Path::new("")).unwrap();
        assert!(area.slots_mut().iter().all(|slot| slot.is_empty()));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let layout = Layout::new(vec![1 << 40, 1 << 40]);
        assert!(Area::new(&layout, 1 << 40, 0, Path::new("")).is_err());
    }

    proptest! {
        #[test]
        fn batches_cover_all_windows_in_order(lengths in prop::collection::vec(1usize..1000, 0..40)) {
            let layout = Layout::new(lengths.clone());
            let windows: Vec<usize> = layout.batches().iter().cloned().flatten().collect();
            prop_assert_eq!(windows, (0..lengths.len()).collect::<Vec<_>>());
            let batches = layout.batches();
            for batch in &batches[..batches.len().saturating_sub(1)] {
                prop_assert!(layout.rows(batch) >= BATCH_TOKENS);
                prop_assert!(layout.rows(&(batch.start..batch.end - 1)) < BATCH_TOKENS);
            }
        }
    }
}
