//! Cutting tokens into the windows that are fed to a model, and which of their tokens are targets.
//!
//! A target is predicted from the tokens before it in its window, so a window's first token never is one, and a window
//! without targets is never made: a mean over no targets would be NaN, the fate of loops that reach a last window of
//! one token.

use crate::{protocol::Scored, stream::Stream};
use std::ops::Range;

/// Consecutive tokens fed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What is fed.
    pub tokens: Vec<u32>,
    /// Which of `tokens` are targets; starts at 1 or later, never empty.
    pub scored: Range<usize>,
    /// The document it comes from.
    pub document: usize,
    /// The first target's position among the document's tokens.
    pub first_target: usize,
}

impl Window {
    /// A window over `range` of `stream` with targets from `first_target` on; `None` if no target is left.
    fn cut(stream: &Stream, document: usize, range: Range<usize>, first_target: usize) -> Option<Self> {
        let scored = first_target.max(range.start + 1) - range.start..range.len();
        let first_target = range.start + scored.start;
        (!scored.is_empty()).then(|| Self { tokens: stream.tokens[range].to_vec(), scored, document, first_target })
    }

    /// The targets' ids.
    pub fn targets(&self) -> &[u32] {
        &self.tokens[self.scored.clone()]
    }

    /// The targets' positions among the document's tokens.
    pub fn positions(&self) -> Range<usize> {
        self.first_target..self.first_target + self.scored.len()
    }
}

/// The windows of a long stream. `beginning` replaces each window's first token, where the protocol wants it.
pub fn cut(stream: &Stream, scored: Scored, length: usize, stride: usize, beginning: Option<u32>) -> Vec<Window> {
    let mut windows = match scored {
        Scored::AllOfFullWindows => full(stream, length, 1),
        Scored::SecondHalf => full(stream, length, length / 2 + 1),
        Scored::New => overlapping(stream, length, stride, true),
        Scored::AllEveryTime => overlapping(stream, length, stride, false),
        Scored::Rolling => rolling(stream, 0, beginning.unwrap_or_default(), length),
    };
    if let (Some(token), false) = (beginning, scored == Scored::Rolling) {
        for window in &mut windows {
            window.tokens[0] = token;
        }
    }
    windows
}

fn full(stream: &Stream, length: usize, skipped: usize) -> Vec<Window> {
    let starts = (0..stream.tokens.len() / length).map(|index| index * length);
    starts.filter_map(|start| Window::cut(stream, 0, start..start + length, start + skipped)).collect()
}

fn overlapping(stream: &Stream, length: usize, stride: usize, only_new: bool) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut reached) = (0_usize, 0);
    loop {
        let end = start.saturating_add(length).min(stream.tokens.len());
        windows.extend(Window::cut(stream, 0, start..end, if only_new { reached } else { 0 }));
        if end == stream.tokens.len() {
            return windows;
        }
        (start, reached) = (start + stride, end);
    }
}

/// Every token of a document is a target once. The first window is `prefix` and the first `length − 1` tokens before
/// the last of its `length` targets; each later window predicts the next `length` from the token before them on; the
/// last is filled up with what came earlier.
pub fn rolling(stream: &Stream, document: usize, prefix: u32, length: usize) -> Vec<Window> {
    let total = stream.tokens.len();
    let mut windows = Vec::new();
    let mut reached = 0;
    while reached < total {
        let end = total.min(reached.saturating_add(length));
        let mut tokens = if reached == 0 { vec![prefix] } else { Vec::new() };
        let start = if reached == 0 { 0 } else { end - length - 1 };
        tokens.extend(&stream.tokens[start..end]);
        let scored = tokens.len() - (end - reached)..tokens.len();
        windows.push(Window { tokens, scored, document, first_target: reached });
        reached = end;
    }
    windows
}

/// Targets that are scored at least once: their number, and the bytes they stand for.
pub fn coverage(windows: &[Window], streams: &[Stream]) -> (usize, usize) {
    let mut ranges: Vec<(usize, Range<usize>)> = windows.iter().map(|w| (w.document, w.positions())).collect();
    ranges.sort_by_key(|(document, range)| (*document, range.start));
    let (mut targets, mut bytes) = (0, 0);
    let mut reached = (0, 0);
    for (document, range) in ranges {
        let start = if reached.0 == document { range.start.max(reached.1) } else { range.start };
        if start < range.end {
            targets += range.end - start;
            bytes += streams[document].bytes(start, range.end);
            reached = (document, range.end);
        }
    }
    (targets, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(windows: &[Window]) -> usize {
        windows.iter().map(|window| window.scored.len()).sum()
    }

    #[test]
    fn full_windows_drop_the_tail() {
        let stream = Stream::of(0..32_768 + 5);
        let windows = cut(&stream, Scored::AllOfFullWindows, 2048, 2048, None);
        assert_eq!((windows.len(), count(&windows)), (16, 32_752));
        assert!(cut(&Stream::of(0..2047), Scored::AllOfFullWindows, 2048, 2048, None).is_empty());
    }

    #[test]
    fn second_halves_have_255_targets_with_at_least_256_tokens_of_context_and_bos_in_front() {
        let stream = Stream::of(0..1024);
        let windows = cut(&stream, Scored::SecondHalf, 512, 512, Some(9));
        assert_eq!((windows.len(), count(&windows)), (2, 510));
        assert_eq!((windows[1].tokens[0], windows[1].targets()[0]), (9, 512 + 257));
        assert_eq!(windows[1].positions(), 512 + 257..1024);
    }

    #[test]
    fn nothing_masked_scores_the_interior_twice() {
        let stream = Stream::of(0..16_384);
        let windows = cut(&stream, Scored::AllEveryTime, 1024, 512, None);
        assert_eq!((windows.len(), count(&windows)), (31, 31 * 1023));
        assert_eq!(coverage(&windows, &[stream]), (16_383, 16_383));
    }

    #[test]
    fn masking_scores_every_token_but_the_first_once() {
        let stream = Stream::of(0..16_384);
        let windows = cut(&stream, Scored::New, 1024, 512, None);
        assert_eq!((windows.len(), count(&windows)), (31, 16_383));
        assert!(windows[1..].iter().all(|window| window.scored == (512..1024)));
    }

    #[test]
    fn no_length_of_text_makes_a_window_without_targets() {
        for total in [2, 511, 512, 513, 1023, 1024, 1025, 1536, 1537, 2049] {
            let stream = Stream::of(0..total);
            for (scored, stride) in [(Scored::New, 512), (Scored::New, 1024), (Scored::AllEveryTime, 512)] {
                let windows = cut(&stream, scored, 1024, stride, None);
                assert!(!windows.is_empty() && windows.iter().all(|window| !window.scored.is_empty()), "{total}");
            }
        }
        for empty in [0, 1] {
            assert!(cut(&Stream::of(0..empty), Scored::AllEveryTime, 1024, 512, None).is_empty());
        }
    }

    #[test]
    fn a_disjoint_last_window_of_one_token_is_left_out() {
        let windows = cut(&Stream::of(0..2049), Scored::New, 1024, 1024, None);
        assert_eq!((windows.len(), count(&windows)), (2, 2046));
    }

    #[test]
    fn rolling_predicts_every_token_once_and_fills_the_last_window() {
        let stream = Stream::of(0..10);
        let windows = rolling(&stream, 0, 99, 4);
        assert_eq!(windows[0].tokens, [99, 0, 1, 2, 3]);
        assert_eq!(
            (windows[1].tokens.as_slice(), windows[1].targets()),
            ([3, 4, 5, 6, 7].as_slice(), [4, 5, 6, 7].as_slice())
        );
        assert_eq!(
            (windows[2].tokens.as_slice(), windows[2].targets()),
            ([5, 6, 7, 8, 9].as_slice(), [8, 9].as_slice())
        );
        assert_eq!(count(&windows), 10);
        assert_eq!(rolling(&Stream::of(0..2), 3, 99, 4)[0].tokens, [99, 0, 1]);
    }

    proptest! {
        #[test]
        fn targets_come_right_after_their_context(total in 0_usize..200, length in 2_usize..40, stride in 1_usize..40) {
            let stream = Stream::of(0..total as u32);
            for scored in [Scored::AllOfFullWindows, Scored::SecondHalf, Scored::New, Scored::AllEveryTime] {
                for window in cut(&stream, scored, length, stride.min(length), None) {
                    prop_assert!(window.scored.start >= 1 && window.scored.end == window.tokens.len());
                    let ids: Vec<u32> = window.positions().map(|position| position as u32).collect();
                    prop_assert_eq!(window.targets(), ids);
                }
            }
            let rolled = rolling(&stream, 0, 0, length);
            let (targets, bytes) = coverage(&rolled, std::slice::from_ref(&stream));
            prop_assert_eq!((targets, bytes, count(&rolled)), (total, total, total));
            prop_assert!(rolled.iter().all(|window| window.tokens.len() <= length + 1));
        }

        #[test]
        fn disjoint_is_sliding_with_the_stride_of_a_window(total in 0_usize..200, length in 2_usize..40) {
            let stream = Stream::of(0..total as u32);
            let windows = cut(&stream, Scored::New, length, length, None);
            let targets: Vec<u32> = windows.iter().flat_map(|window| window.targets().to_vec()).collect();
            let expected: Vec<u32> = (0..total as u32).filter(|id| !(*id as usize).is_multiple_of(length)).collect();
            prop_assert_eq!(targets, expected);
        }
    }
}
