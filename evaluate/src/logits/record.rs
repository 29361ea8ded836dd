//! One distribution as the file has it, and how far another is from it: the formulas of the module above.

use half::f16;
use kernels::divergence::Divergence;

/// `ln Σ exp(logit)`.
fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// A distribution as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    ids: Vec<u32>,
    log_probabilities: Vec<f16>,
    pub(super) target: f32,
    pub(super) tail: f32,
    tail_entropy: f32,
}

impl Record {
    pub(super) fn of(logits: &[f32], target: u32, top: usize) -> Self {
        let total = log_sum(logits);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top < ids.len() {
            ids.select_nth_unstable_by(top, order);
        }
        let (listed, rest) = ids.split_at_mut(top);
        listed.sort_unstable_by(order);
        let log_p = |id: &u32| f64::from(logits[*id as usize]) - total;
        let (tail, tail_entropy) = rest.iter().map(log_p).fold((0.0, 0.0), |(mass, entropy), log_p| {
            let p = log_p.exp();
            (mass + p, entropy + if p > 0.0 { p * log_p } else { 0.0 })
        });
        Self {
            log_probabilities: listed.iter().map(|id| f16::from_f64(log_p(id).max(f16::MIN.to_f64()))).collect(),
            ids: listed.to_vec(),
            target: log_p(&target) as f32,
            tail: tail as f32,
            tail_entropy: tail_entropy as f32,
        }
    }

    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(self.log_probabilities.iter().flat_map(|log_p| log_p.to_le_bytes()));
        bytes.extend([self.target, self.tail, self.tail_entropy].iter().flat_map(|number| number.to_le_bytes()));
    }

    /// The record in `bytes`, if it can be one.
    pub(super) fn read(bytes: &[u8], top: usize, vocabulary: usize) -> Result<Self, &'static str> {
        let (ids, rest) = bytes.split_at(4 * top);
        let (log_probabilities, rest) = rest.split_at(2 * top);
        let float = |at: usize| f32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let record = Self {
            ids: ids.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect(),
            log_probabilities: log_probabilities.chunks_exact(2).map(|p| f16::from_le_bytes([p[0], p[1]])).collect(),
            target: float(0),
            tail: float(4),
            tail_entropy: float(8),
        };
        let sum: f64 = record.log_probabilities.iter().map(|log_p| log_p.to_f64().exp()).sum();
        if record.ids.iter().any(|id| *id as usize >= vocabulary) {
            return Err("a token is outside the vocabulary");
        }
        if record.log_probabilities.iter().any(|log_p| !log_p.is_finite() || log_p.to_f64() > 0.0) {
            return Err("a log-probability is not a number below zero");
        }
        if !(record.target.is_finite() && record.target <= 1e-6) {
            return Err("the target's log-probability is not a number below zero");
        }
        let tail = f64::from(record.tail);
        // float16 rounds a log-probability by less than 0.4 % where a probability matters.
        if !(tail >= 0.0 && (0.99..=1.01).contains(&(sum + tail))) {
            return Err("its probabilities don't add up to one");
        }
        if !(record.tail_entropy.is_finite() && record.tail_entropy <= 0.0) {
            return Err("the entropy of the rest is not a number below zero");
        }
        Ok(record)
    }

    /// How far `logits` are from the stored distribution, and what its truncation may hide. `listed` is all false, and is so
    /// again afterwards.
    pub(super) fn compare(
        &self,
        logits: &[f32],
        target: u32,
        listed: &mut [bool],
    ) -> Result<(Divergence, Bounds), &'static str> {
        let total = log_sum(logits);
        let log_q = |id: u32| f64::from(logits[id as usize]) - total;
        let twice = self.ids.iter().any(|id| std::mem::replace(&mut listed[*id as usize], true));
        let rest = || logits.iter().zip(&*listed).filter(|(_, listed)| !**listed).map(|(logit, _)| f64::from(*logit));
        let tail_q: f64 = rest().map(|logit| (logit - total).exp()).sum();
        let least = rest().fold(f64::INFINITY, f64::min) - total;
        self.ids.iter().for_each(|id| listed[*id as usize] = false);
        if twice {
            return Err("a token is listed twice");
        }
        let stored: Vec<f64> = self.log_probabilities.iter().map(|log_p| log_p.to_f64()).collect();
        let tail = f64::from(self.tail);
        let sum = (stored.iter().map(|log_p| log_p.exp()).sum::<f64>() + tail).ln();
        let mut bounds = Bounds { mass: tail, ..Bounds::default() };
        let mut kl = 0.0;
        for ((id, log_p), half) in self.ids.iter().zip(&stored).zip(&self.log_probabilities) {
            kl += bounds.term(log_p - sum, log_q(*id), half_step(*half) + sum.abs());
        }
        if tail > 0.0 {
            kl += bounds.term(tail.ln() - sum, tail_q.ln(), f64::from(f32::EPSILON) + sum.abs());
            let hidden = f64::from(self.tail_entropy) - tail * least - tail * (tail.ln() - tail_q.ln());
            bounds.tail = hidden.max(0.0);
        }
        let top = (0..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
        let divergence = Divergence {
            kl: if kl < 0.0 { 0.0 } else { kl },
            same_top: self.ids.first() == Some(&(top as u32)),
            baseline: -f64::from(self.target),
            model: -log_q(target),
        };
        Ok((divergence, bounds))
    }
}

/// Half the distance from `value` to the next float16 further from zero.
fn half_step(value: f16) -> f64 {
    let next = f16::from_bits(value.to_bits() + 1);
    if next.is_finite() { (next.to_f64() - value.to_f64()).abs() / 2.0 } else { 16.0 }
}

/// What truncation and rounding may hide at a target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bounds {
    /// Probability of what is not listed.
    pub(super) mass: f64,
    /// How much higher the divergence may be for it.
    pub(super) tail: f64,
    /// How far off it may be for float16.
    pub(super) rounding: f64,
}

impl Bounds {
    /// `p ln(p / q)`; adds what an error of `error` in `ln p` may do.
    fn term(&mut self, log_p: f64, log_q: f64, error: f64) -> f64 {
        let (p, ratio) = (log_p.exp(), log_p - log_q);
        if p == 0.0 {
            return 0.0;
        }
        let factor = error.exp_m1();
        self.rounding += p * (factor * ratio.abs() + factor * factor);
        p * ratio
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn logits(seed: u64, spread: f32) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..500).map(|_| spread * random.random_range(-1.0_f32..1.0)).collect()
    }

    fn divergence(p: &[f32], q: &[f32]) -> f64 {
        let (a, b) = (log_sum(p), log_sum(q));
        p.iter().zip(q).map(|(p, q)| (f64::from(*p) - a).exp() * (f64::from(*p) - a - f64::from(*q) + b)).sum()
    }

    fn stored(p: &[f32], q: &[f32], top: usize) -> (Divergence, Bounds) {
        let mut bytes = Vec::new();
        Record::of(p, 7, top).write(&mut bytes);
        let mut listed = vec![false; p.len()];
        let found = Record::read(&bytes, top, p.len()).unwrap().compare(q, 7, &mut listed).unwrap();
        assert!(listed.iter().all(|listed| !listed));
        found
    }

    #[test]
    fn the_divergence_of_whole_distributions_lies_within_the_bounds() {
        for (seed, spread) in [(1, 1.0), (2, 8.0), (3, 30.0)] {
            for (top, noise) in [(1, 0.3), (16, 0.05), (16, 3.0), (499, 0.3), (500, 0.001)] {
                let p = logits(seed, spread);
                let q: Vec<f32> = p.iter().zip(logits(seed + 9, noise)).map(|(p, noise)| p + noise).collect();
                let (found, bounds) = stored(&p, &q, top);
                let exact = divergence(&p, &q);
                let low = found.kl - bounds.rounding - 1e-9;
                let high = found.kl + bounds.rounding + bounds.tail + 1e-9;
                assert!((low..=high).contains(&exact), "{spread} {top} {noise}: {exact} not in {low}..{high}");
                if top == 500 {
                    assert!(bounds.tail == 0.0 && bounds.mass == 0.0);
                }
                assert!((found.baseline + f64::from(p[7]) - log_sum(&p)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn equal_distributions_give_nothing_up_to_the_rounding() {
        for spread in [1.0, 10.0] {
            for top in [1, 8, 100, 500] {
                let p = logits(5, spread);
                let (found, bounds) = stored(&p, &p, top);
                assert!(found.kl <= bounds.rounding && found.kl < 1e-5 && found.same_top, "{found:?} {bounds:?}");
            }
        }
    }

    #[test]
    fn certainty_and_ties_are_kept() {
        let mut sure = vec![0.0; 500];
        sure[3] = 200.0;
        let (found, _) = stored(&sure, &sure, 4);
        assert_eq!((found.kl, found.same_top), (0.0, true));
        // All equal: the first are listed.
        assert_eq!(Record::of(&[1.0; 10], 0, 3).ids, [0, 1, 2]);
        let (found, bounds) = stored(&[1.0; 500], &[1.0; 500], 3);
        assert!(found.same_top && found.kl <= bounds.rounding);
    }

    #[test]
    fn records_that_cannot_be_are_refused() {
        let mut bytes = Vec::new();
        Record::of(&logits(1, 2.0), 7, 4).write(&mut bytes);
        let refused = |at: usize, new: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + new.len()].copy_from_slice(new);
            Record::read(&bytes, 4, 500).and_then(|r| r.compare(&logits(2, 1.0), 7, &mut [false; 500])).unwrap_err()
        };
        assert!(refused(0, &500_u32.to_le_bytes()).contains("outside the vocabulary"));
        assert!(refused(16, &f16::NAN.to_le_bytes()).contains("not a number"));
        assert!(refused(16, &f16::ONE.to_le_bytes()).contains("not a number"));
        assert!(refused(24, &f32::NAN.to_le_bytes()).contains("target"));
        assert!(refused(28, &2.0_f32.to_le_bytes()).contains("add up"));
        assert!(refused(28, &f32::NAN.to_le_bytes()).contains("add up"));
        assert!(refused(32, &f32::INFINITY.to_le_bytes()).contains("entropy"));
        let first = [bytes[0], bytes[1], bytes[2], bytes[3]];
        assert!(refused(4, &first).contains("twice"));
    }

    #[test]
    fn half_a_step_is_half_the_distance_of_neighbours() {
        assert_eq!(half_step(f16::from_f64(-1.0)), 2f64.powi(-11));
        assert_eq!(half_step(f16::from_f64(-8.5)), 2f64.powi(-8));
        assert_eq!(half_step(f16::MIN), 16.0);
    }
}
