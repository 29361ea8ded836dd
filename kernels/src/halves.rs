//! Half precision and bfloat16 to float32: exact, and without asking the processor for its features at each call.

use crate::dispatch::vectorized;
use half::{bf16, f16};

/// `half` in float32, as `half.to_f32()` gives it.
#[allow(clippy::inline_always, reason = "called for every few weights")]
#[inline(always)]
pub(crate) fn widened(half: f16) -> f32 {
    /// 2^112: between the exponents' biases.
    const BIASES: f32 = f32::from_bits((112 + 127) << 23);
    let bits = u32::from(half.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * BIASES).to_bits();
    let magnitude = if bits & 0x7c00 == 0x7c00 { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(magnitude | (bits & 0x8000) << 16)
}

vectorized! {
    /// Every number of `halves` in float32.
    pub(crate) fn widen_float16(halves: &[f16], out: &mut [f32]) {
        halves.iter().zip(out).for_each(|(half, out)| *out = widened(*half));
    }

    /// Every number of `shorts` in float32: its upper half.
    pub(crate) fn widen_bfloat16(shorts: &[bf16], out: &mut [f32]) {
        shorts.iter().zip(out).for_each(|(short, out)| *out = f32::from_bits(u32::from(short.to_bits()) << 16));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_as_it_is_meant() {
        let (halves, shorts): (Vec<f16>, Vec<bf16>) =
            (0..=u16::MAX).map(|bits| (f16::from_bits(bits), bf16::from_bits(bits))).unzip();
        let mut ours = vec![0.0; halves.len()];
        let same = |ours: f32, theirs: f32| ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
        widen_float16(&halves, &mut ours);
        assert!(ours.iter().zip(&halves).all(|(ours, half)| same(*ours, half.to_f32())));
        widen_bfloat16(&shorts, &mut ours);
        assert!(ours.iter().zip(&shorts).all(|(ours, short)| same(*ours, short.to_f32())));
    }
}
