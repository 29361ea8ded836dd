//! Rotary position embedding in the half-split convention of Hugging Face: with `d` the head's width and `j < d/2`,
//! `(x[j], x[j+d/2])` is turned by the angle `position * inverse_frequency[j]`.

use crate::dispatch::vectorized;

/// Cosine and sine for each position and frequency, times `attention_factor`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for `positions` positions. Angles are computed in float32, as Transformers does.
    pub fn new(inverse_frequencies: &[f32], positions: usize, attention_factor: f32) -> Self {
        let angles = (0..positions).flat_map(|p| inverse_frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos() * attention_factor, a.sin() * attention_factor)).unzip();
        Self { half: inverse_frequencies.len(), cos, sin }
    }

    /// Frequencies, and the cosines and sines, `[positions, frequencies]`.
    pub(crate) fn parts(&self) -> (usize, &[f32], &[f32]) {
        (self.half, &self.cos, &self.sin)
    }

    /// Turns `x` (`[tokens, heads * head_width]`) in place; row `t` is at position `first + t`. Where the table has
    /// fewer frequencies than half a head (partial rotary), the rest of each head is left as it is.
    pub fn apply(&self, x: &mut [f32], heads: usize, head_width: usize, first: usize) {
        for (token, row) in x.chunks_exact_mut(heads * head_width).enumerate() {
            let at = (first + token) * self.half;
            let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
            for head in row.chunks_exact_mut(head_width) {
                let (low, high) = head[..2 * self.half].split_at_mut(self.half);
                turn(low, high, cos, sin);
            }
        }
    }
}

vectorized! {
    fn turn(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// The rotation in float64 by the angle as float32 holds it. Two products and a sum: three half units of 2^-23 on
    /// numbers up to |low| + |high| <= 2, and half a unit each from the stored cosine and sine.
    #[test]
    fn agrees_with_float64() {
        for (heads, head_width, frequencies) in [(1, 2, 1), (3, 64, 32), (2, 96, 48), (2, 80, 20)] {
            let inverse: Vec<f32> = (0..frequencies).map(|j| 1e4f32.powf(-(j as f32) / frequencies as f32)).collect();
            let (tokens, first, factor) = (5, 40, 1.25);
            let table = RopeTable::new(&inverse, first + tokens, factor);
            let start = random(tokens * heads * head_width, 3);
            let mut x = start.clone();
            table.apply(&mut x, heads, head_width, first);
            for (at, got) in x.iter().enumerate() {
                let (j, token) = (at % head_width, at / (heads * head_width));
                let angle = |j: usize| f64::from((first + token) as f32 * inverse[j]);
                let value = |at: usize| f64::from(start[at]) * f64::from(factor);
                let expected = if j < frequencies {
                    value(at) * angle(j).cos() - value(at + frequencies) * angle(j).sin()
                } else if j < 2 * frequencies {
                    let j = j - frequencies;
                    value(at) * angle(j).cos() + value(at - frequencies) * angle(j).sin()
                } else {
                    f64::from(start[at])
                };
                assert!((f64::from(*got) - expected).abs() <= 6e-7, "{got} {expected}");
            }
        }
    }
}
