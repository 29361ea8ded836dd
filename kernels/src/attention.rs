//! Causal attention with grouped key-value heads and an optional sliding window.
//!
//! `out[t] = sum_s softmax_s(scale * q[t]·k[s]) v[s]` over `max(0, t+1-window) <= s <= t`; query head `h` reads
//! key-value head `h / (heads / kv_heads)`.

/// Shapes and scale of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How many positions back (itself included) a token sees; `None` is all.
    pub window: Option<usize>,
}

impl Attention {
    /// `q` and `out` are `[tokens, heads * head_width]`, `k` and `v` `[tokens, kv_heads * head_width]`.
    pub fn causal(&self, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let d = self.head_width;
        let (q_width, kv_width) = (self.heads * d, self.kv_heads * d);
        let tokens = q.len() / q_width;
        let mut scores = vec![0.0f32; tokens];
        for h in 0..self.heads {
            let kv = h / (self.heads / self.kv_heads) * d;
            for t in 0..tokens {
                let first = self.window.map_or(0, |w| (t + 1).saturating_sub(w));
                let query = &q[t * q_width + h * d..][..d];
                let mut max = f32::NEG_INFINITY;
                for s in first..=t {
                    let key = &k[s * kv_width + kv..][..d];
                    scores[s] = self.scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>();
                    max = max.max(scores[s]);
                }
                let mut sum = 0.0;
                for s in &mut scores[first..=t] {
                    *s = (*s - max).exp();
                    sum += *s;
                }
                let out = &mut out[t * q_width + h * d..][..d];
                out.fill(0.0);
                for s in first..=t {
                    let p = scores[s] / sum;
                    for (out, v) in out.iter_mut().zip(&v[s * kv_width + kv..][..d]) {
                        *out += p * v;
                    }
                }
            }
        }
    }
}
