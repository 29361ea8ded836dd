//! Random choices that anyone can repeat: ChaCha with 8 rounds, spelt out so that no library's habits enter.
//!
//! ```text
//! key      the seed's 8 bytes, little-endian, then 24 zero bytes
//! stream   the source's position in the command, from 0
//! below(n) floor(u n / 2^64), u the next 64 bits of the stream
//! ```
//!
//! `below` favours some numbers by less than `n / 2^64`, which is nothing.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The random numbers of one source.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    /// The numbers for the source at position `source`.
    pub(crate) fn new(seed: u64, source: usize) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(source as u64);
        Self(generator)
    }

    /// The next number, evenly from `0..count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.0.next_u64()) * count as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_pinned_and_differ_by_seed_and_source() {
        let first = |seed, source| {
            let mut draw = Draw::new(seed, source);
            [draw.below(1000), draw.below(1000), draw.below(1000)]
        };
        assert_eq!(first(0, 0), PINNED);
        assert_ne!(first(0, 0), first(1, 0));
        assert_ne!(first(0, 0), first(0, 1));
    }

    /// The published key stream of ChaCha8 under the zero key begins 3e00ef2f895f40d6 7f5bb8e81f09a5a1
    /// 2c840ec3ce9a7f3b; as little-endian numbers these are 0.8369, 0.6314 and 0.2324 of 2^64.
    const PINNED: [usize; 3] = [836, 631, 232];

    #[test]
    fn numbers_are_even() {
        let mut draw = Draw::new(7, 0);
        let mut counts = [0u32; 10];
        for _ in 0..10_000 {
            counts[draw.below(10)] += 1;
        }
        // Standard deviation of a count: sqrt(10000 * 0.1 * 0.9) = 30; five of them.
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 150), "{counts:?}");
    }
}
