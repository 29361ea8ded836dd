//! The grid of one block as it is stored, and rounding to it: the formula of the module above.

use super::BlockType;
use crate::{dispatch::one_at_a_time, halves::widened};
use half::f16;

/// Sub-blocks of a block at most.
pub(super) const MOST_SUB_BLOCKS: usize = 16;

/// The levels of IQ4_NL: closer together around zero, where weights are.
pub(super) const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The stored numbers of a block besides its codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockGrid {
    /// The unit of the steps.
    pub d: f16,
    /// The unit of what is subtracted; 0 where the format subtracts nothing.
    pub m: f16,
    /// `s` of each sub-block.
    pub steps: [i8; MOST_SUB_BLOCKS],
    /// `l` of each sub-block.
    pub lows: [u8; MOST_SUB_BLOCKS],
}

impl BlockGrid {
    /// The grid of a format that has one sub-block: `value = d level(code) - m`.
    pub fn single(d: f16, m: f16) -> Self {
        let mut grid = Self { d, m, ..Self::default() };
        (grid.steps[0], grid.lows[0]) = (1, 1);
        grid
    }

    /// The grid of sub-block `sub`.
    #[allow(clippy::inline_always, reason = "called for every few weights")]
    #[inline(always)]
    pub fn sub(&self, sub: usize) -> SubGrid {
        let (d, m) = (widened(self.d), widened(self.m));
        SubGrid { step: d * f32::from(self.steps[sub]), low: m * f32::from(self.lows[sub]) }
    }

    /// The weights that `codes` stand for, rounded as every loader rounds them.
    #[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
    #[inline(always)]
    pub fn values(&self, kind: BlockType, codes: &[u8], values: &mut [f32]) {
        let subs = codes.chunks_exact(kind.sub_block()).zip(values.chunks_exact_mut(kind.sub_block()));
        // No closure: it might be compiled by itself, for the baseline's instructions.
        for (sub, (codes, values)) in subs.enumerate() {
            self.sub(sub).values(kind.levels(), codes, values);
        }
    }

    /// The nearest codes of `weights`.
    pub fn nearest_codes(&self, kind: BlockType, weights: &[f32], codes: &mut [u8]) {
        let levels = kind.levels();
        let subs = weights.chunks_exact(kind.sub_block()).zip(codes.chunks_exact_mut(kind.sub_block()));
        for (sub, (weights, codes)) in subs.enumerate() {
            let grid = self.sub(sub);
            for (code, weight) in codes.iter_mut().zip(weights) {
                *code = grid.nearest(levels, *weight);
            }
        }
    }
}

/// The grid of a sub-block: `value = step level(code) - low`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubGrid {
    /// Between levels; may be negative, or 0.
    pub step: f32,
    /// Subtracted.
    pub low: f32,
}

impl SubGrid {
    /// The weights that `codes` stand for.
    #[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
    #[inline(always)]
    pub(super) fn values(self, levels: Levels, codes: &[u8], values: &mut [f32]) {
        let Self { step, low } = self;
        let values = values.iter_mut().zip(codes);
        // One loop for each kind of level: without a choice inside it, it runs by whole registers.
        match levels {
            Levels::Even { below, .. } => {
                let below = f32::from(below);
                values.for_each(|(value, code)| *value = step * (f32::from(*code) - below) - low);
            }
            Levels::Uneven => values.for_each(|(value, code)| *value = step * levels.level(*code) - low),
        }
        one_at_a_time();
    }

    /// The weight that `code` stands for, rounded as every loader rounds it.
    #[inline]
    pub(super) fn value(self, levels: Levels, code: u8) -> f32 {
        self.step * levels.level(code) - self.low
    }

    /// The code whose value is closest to `weight`; a not-a-number gets the code of zero or the lowest.
    #[inline]
    pub(super) fn nearest(self, levels: Levels, weight: f32) -> u8 {
        let inverse = if self.step == 0.0 { 0.0 } else { 1.0 / self.step };
        let scaled = (weight + self.low) * inverse;
        levels.nearest(if scaled.is_nan() { 0.0 } else { scaled })
    }
}

/// Which numbers codes stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Levels {
    /// `code - below`, codes up to `most`.
    Even { below: u8, most: u8 },
    /// [`UNEVEN`].
    Uneven,
}

impl Levels {
    /// The number that `code` stands for.
    #[inline]
    pub(super) fn level(self, code: u8) -> f32 {
        match self {
            Self::Even { below, .. } => f32::from(code) - f32::from(below),
            Self::Uneven => f32::from(UNEVEN[usize::from(code & 15)]),
        }
    }

    /// The code of the level nearest to `scaled`; halves go to the even level, or the lower of uneven ones.
    #[inline]
    pub(super) fn nearest(self, scaled: f32) -> u8 {
        match self {
            Self::Even { below, most } => {
                let (below, most) = (f32::from(below), f32::from(most));
                (scaled.clamp(-below, most - below).round_ties_even() + below) as u8
            }
            Self::Uneven => (0..15).filter(|&code| scaled > middle(code)).count() as u8,
        }
    }
}

/// Halfway from uneven level `code` to the next.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
pub(super) fn middle(code: usize) -> f32 {
    0.5 * (f32::from(UNEVEN[code]) + f32::from(UNEVEN[code + 1]))
}

impl BlockType {
    /// What its codes stand for.
    pub(super) fn levels(self) -> Levels {
        match self {
            Self::Q8_0 => Levels::Even { below: 128, most: 255 },
            Self::Q4_0 => Levels::Even { below: 8, most: 15 },
            Self::Q5_0 => Levels::Even { below: 16, most: 31 },
            Self::Q4_1 | Self::Q4K => Levels::Even { below: 0, most: 15 },
            Self::Q5_1 | Self::Q5K => Levels::Even { below: 0, most: 31 },
            Self::Q2K => Levels::Even { below: 0, most: 3 },
            Self::Q3K => Levels::Even { below: 4, most: 7 },
            Self::Q6K => Levels::Even { below: 32, most: 63 },
            Self::Iq4Nl => Levels::Uneven,
        }
    }
}
