//! The contiguous little-endian bit stream of GPTQ checkpoints: value `i` occupies bits `[bits*i, bits*(i+1))`.
//!
//! Bit `b` of the stream is bit `b % 32` of word `b / 32`. At 2, 4 and 8 bits no value straddles two words; at 3 bits
//! 32 values fill 3 words and values 10 and 21 straddle.

/// Packs `values` into 32-bit words; the last word is filled up with zeros. Only the low `bits` (1 to 8) of a value count.
pub fn pack(values: impl IntoIterator<Item = u8>, bits: u32) -> Vec<u32> {
    let values = values.into_iter();
    let mask = mask(bits);
    let mut words = Vec::with_capacity((values.size_hint().0 * bits as usize).div_ceil(32));
    let (mut pending, mut filled) = (0u64, 0);
    for value in values {
        pending |= (u64::from(value) & mask) << filled;
        filled += bits;
        if filled >= 32 {
            words.push(pending as u32);
            pending >>= 32;
            filled -= 32;
        }
    }
    if filled > 0 {
        words.push(pending as u32);
    }
    words
}

/// The first `count` values of the stream `words`; fewer where the stream ends before.
pub fn unpack(words: &[u32], bits: u32, count: usize) -> Vec<u8> {
    let mask = mask(bits);
    let count = count.min(words.len() * 32 / bits as usize);
    let mut words = words.iter();
    let (mut pending, mut filled) = (0u64, 0);
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        if filled < bits {
            pending |= u64::from(words.next().copied().unwrap_or(0)) << filled;
            filled += 32;
        }
        values.push((pending & mask) as u8);
        pending >>= bits;
        filled -= bits;
    }
    values
}

/// `2^bits - 1`.
fn mask(bits: u32) -> u64 {
    assert!((1..=8).contains(&bits), "a packed value has 1 to 8 bits, not {bits}");
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_by_hand() {
        assert_eq!(pack([1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0], 2), [0x3939_3939]);
        assert_eq!(pack([1, 2, 3, 4, 5, 6, 7, 8], 4), [0x8765_4321]);
        assert_eq!(pack([1, 2, 3, 4, 5], 8), [0x0403_0201, 5]);
        assert_eq!(pack([8; 16], 4), [0x8888_8888; 2]);
        assert_eq!(pack([0; 0], 3), [0u32; 0]);
        // Value 10 (bits 30, 31, 32) straddles: 0b101 leaves 01 at the top of the first word and 1 in the second.
        assert_eq!(pack([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0b101], 3), [0b01 << 30, 1]);
    }

    #[test]
    fn bits_beyond_the_width_do_not_reach_the_neighbour() {
        assert_eq!(pack([0xff, 0], 3), [0b111]);
    }

    #[test]
    fn a_short_stream_gives_what_it_holds() {
        assert_eq!(unpack(&[u32::MAX], 3, usize::MAX), [7; 10]);
        assert_eq!(unpack(&[], 4, 5), [0u8; 0]);
    }

    /// The recipe for 3 bits as GPTQ's packers spell it out: ten values, a straddler, ten values, a straddler, ten.
    fn three_bit_recipe(v: &[u8]) -> [u32; 3] {
        let v: Vec<u32> = v.iter().map(|&v| u32::from(v)).collect();
        let mut words = [0u32; 3];
        for j in 0..10 {
            words[0] |= v[j] << (3 * j);
            words[1] |= v[11 + j] << (3 * j + 1);
            words[2] |= v[22 + j] << (3 * j + 2);
        }
        words[0] |= v[10] << 30;
        words[1] |= (v[10] >> 2) & 1;
        words[1] |= v[21] << 31;
        words[2] |= (v[21] >> 1) & 3;
        words
    }

    proptest! {
        #[test]
        fn three_bits_follow_the_recipe(values in prop::collection::vec(0u8..8, 32)) {
            prop_assert_eq!(pack(values.clone(), 3), three_bit_recipe(&values));
        }

        #[test]
        fn unpack_inverts_pack(bits in 1u32..=8, values in prop::collection::vec(any::<u8>(), 0..200)) {
            let values: Vec<u8> = values.iter().map(|v| (u32::from(*v) & ((1 << bits) - 1)) as u8).collect();
            let words = pack(values.clone(), bits);
            prop_assert_eq!(words.len(), (values.len() * bits as usize).div_ceil(32));
            prop_assert_eq!(unpack(&words, bits, values.len()), values);
        }
    }
}
