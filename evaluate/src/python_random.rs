//! Python's `random.seed(n)`, `random.randint(a, b)` and `random.sample(range(n), k)`, for protocols that are defined by them.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998) seeded by its `init_by_array` with the 32-bit digits of the
//! seed. `randint` draws `k` bits, `k` the bit length of the number of choices, until they are below that number.

const LENGTH: usize = 624;
const MIDDLE: usize = 397;

/// The generator.
pub struct PythonRandom {
    state: [u32; LENGTH],
    next: usize,
}

impl PythonRandom {
    /// `random.seed(seed)` for a seed below 2³².
    pub fn seed(seed: u32) -> Self {
        let mut state = plain_seed(19_650_218);
        let mut i = 1;
        for _ in 0..LENGTH {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_664_525);
            state[i] = (state[i] ^ mixed).wrapping_add(seed);
            i = advance(i, &mut state);
        }
        for _ in 0..LENGTH - 1 {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_566_083_941);
            state[i] = (state[i] ^ mixed).wrapping_sub(i as u32);
            i = advance(i, &mut state);
        }
        state[0] = 0x8000_0000;
        Self { state, next: LENGTH }
    }

    /// `random.randint(0, choices - 1)`; `choices` is at least 1.
    pub fn below(&mut self, choices: u32) -> u32 {
        let bits = u32::BITS - choices.leading_zeros();
        loop {
            let drawn = self.word() >> (32 - bits);
            if drawn < choices {
                return drawn;
            }
        }
    }

    /// `random.sample(range(count), wanted)`; `wanted` is at most `count`. Few of many are drawn until they are distinct,
    /// otherwise each drawn one is replaced by the last of those left, whichever CPython finds smaller.
    pub fn sample(&mut self, count: u32, wanted: usize) -> Vec<u32> {
        let mut limit = 21;
        if wanted > 5 {
            limit += 4_u64.pow(((wanted as f64 * 3.0).ln() / 4_f64.ln()).ceil() as u32);
        }
        if u64::from(count) <= limit {
            let mut pool: Vec<u32> = (0..count).collect();
            let draw = |_| {
                let at = self.below(pool.len() as u32);
                pool.swap_remove(at as usize)
            };
            return (0..wanted).map(draw).collect();
        }
        let mut drawn: Vec<u32> = Vec::with_capacity(wanted);
        while drawn.len() < wanted {
            let next = self.below(count);
            if !drawn.contains(&next) {
                drawn.push(next);
            }
        }
        drawn
    }

    fn word(&mut self) -> u32 {
        if self.next == LENGTH {
            self.twist();
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..LENGTH {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % LENGTH] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + MIDDLE) % LENGTH] ^ (y >> 1) ^ odd;
        }
    }
}

fn plain_seed(seed: u32) -> [u32; LENGTH] {
    let mut state = [seed; LENGTH];
    for i in 1..LENGTH {
        let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_812_433_253);
        state[i] = mixed.wrapping_add(i as u32);
    }
    state
}

/// The index after `i`, where the end wraps to 1 and carries the last word to the front.
fn advance(i: usize, state: &mut [u32; LENGTH]) -> usize {
    if i + 1 < LENGTH {
        return i + 1;
    }
    state[0] = state[LENGTH - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_equal_those_of_cpython() {
        let mut random = PythonRandom::seed(0);
        let words: Vec<u32> = (0..4).map(|_| random.word()).collect();
        assert_eq!(words, [3_626_764_237, 1_654_615_998, 3_255_389_356, 3_823_568_514]);
        let mut random = PythonRandom::seed(0);
        let numbers: Vec<u32> = (0..10).map(|_| random.below(100)).collect();
        assert_eq!(numbers, [49, 97, 53, 5, 33, 65, 62, 51, 38, 61]);
        let mut random = PythonRandom::seed(0);
        let rows: Vec<u32> = (0..5).map(|_| random.below(45_576)).collect();
        assert_eq!(rows, [25_247, 27_562, 2_653, 16_968, 33_506]);
    }

    #[test]
    fn samples_equal_those_of_cpython() {
        let mut random = PythonRandom::seed(1234);
        assert_eq!(random.sample(7473, 5), [6374, 3610, 957, 61, 742]);
        assert_eq!(random.sample(7473, 5), [7462, 6610, 4769, 286, 5501]);
        assert_eq!(PythonRandom::seed(1234).sample(10, 3), [7, 1, 0]);
        let mut random = PythonRandom::seed(1234);
        assert_eq!(random.sample(50, 8), [49, 28, 7, 0, 5, 37, 2, 42]);
        assert_eq!(random.sample(1000, 8), [709, 85, 100, 784, 363, 242, 17, 31]);
        assert!(random.sample(3, 0).is_empty());
    }

    #[test]
    fn one_choice_is_no_choice() {
        assert_eq!(PythonRandom::seed(7).below(1), 0);
    }
}
