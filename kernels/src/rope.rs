//! Rotary position embedding in the half-split convention of Hugging Face: with `d` the head's width and `j < d/2`,
//! `(x[j], x[j+d/2])` is turned by the angle `position * inverse_frequency[j]`.

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

    /// Turns `x` (`[tokens, heads * head_width]`) in place; row `t` is at position `first + t`. Where the table has
    /// fewer frequencies than half a head (partial rotary), the rest of each head is left as it is.
    pub fn apply(&self, x: &mut [f32], heads: usize, head_width: usize, first: usize) {
        for (token, row) in x.chunks_exact_mut(heads * head_width).enumerate() {
            let at = (first + token) * self.half;
            let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
            for head in row.chunks_exact_mut(head_width) {
                let (low, high) = head[..2 * self.half].split_at_mut(self.half);
                for j in 0..self.half {
                    let (a, b) = (low[j], high[j]);
                    low[j] = a * cos[j] - b * sin[j];
                    high[j] = b * cos[j] + a * sin[j];
                }
            }
        }
    }
}
