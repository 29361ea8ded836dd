//! The obvious decoder, in float64 and loops, told in plain numbers what the configuration says in words. It stands in
//! where candle has no decoder for a setting or computes something else than Transformers.

use super::small_model::Tensors;

/// One layer's own settings.
#[derive(Clone)]
pub(crate) struct Layer {
    /// Tokens seen, itself included.
    pub(crate) window: Option<usize>,
    /// One per turned pair.
    pub(crate) frequencies: Vec<f64>,
}

pub(crate) struct Reference<'a> {
    pub(crate) tensors: &'a Tensors,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) epsilon: f64,
    /// 1 for Gemma.
    pub(crate) norm_offset: f64,
    pub(crate) embedding_scale: f64,
    pub(crate) attention_scale: f64,
    /// Factor of cosine and sine.
    pub(crate) rope_factor: f64,
    pub(crate) gelu: bool,
    pub(crate) layers: Vec<Layer>,
}

/// `base^(-2j/width)`.
pub(crate) fn frequencies(base: f64, width: usize) -> Vec<f64> {
    (0..width / 2).map(|j| base.powf(-((2 * j) as f64) / width as f64)).collect()
}

type Rows = Vec<Vec<f64>>;

impl Reference<'_> {
    /// Logits after every token.
    pub(crate) fn logits(&self, tokens: &[u32]) -> Rows {
        let embedding = self.matrix("model.embed_tokens.weight").expect("an embedding");
        let row = |&token: &u32| embedding[token as usize].iter().map(|v| v * self.embedding_scale).collect();
        let mut hidden: Rows = tokens.iter().map(row).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            self.layer(&format!("model.layers.{index}"), layer, &mut hidden);
        }
        let head = self.matrix("lm_head.weight").unwrap_or(embedding);
        let norm = self.vector("model.norm.weight").expect("a final norm");
        hidden.iter().map(|row| product(&head, &self.norm(row, &norm))).collect()
    }

    fn layer(&self, name: &str, layer: &Layer, hidden: &mut Rows) {
        let normed = |hidden: &Rows, norm: &str| -> Rows {
            let weight = self.vector(&format!("{name}.{norm}.weight")).expect("a norm");
            hidden.iter().map(|row| self.norm(row, &weight)).collect()
        };
        let gemma = self.tensors.contains_key(&format!("{name}.pre_feedforward_layernorm.weight"));
        let attended = self.attention(name, layer, &normed(hidden, "input_layernorm"));
        let mut out = self.linear(&format!("{name}.self_attn.o_proj"), &attended);
        if gemma {
            out = normed(&out, "post_attention_layernorm");
        }
        add(hidden, &out);
        let x = normed(hidden, if gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" });
        let (gate, up) = match self.matrix(&format!("{name}.mlp.gate_up_proj.weight")) {
            Some(_) => split(&self.linear(&format!("{name}.mlp.gate_up_proj"), &x)),
            None => {
                (self.linear(&format!("{name}.mlp.gate_proj"), &x), self.linear(&format!("{name}.mlp.up_proj"), &x))
            }
        };
        let gated = |gate: &Vec<f64>, up: &Vec<f64>| gate.iter().zip(up).map(|(g, u)| self.activate(*g) * u).collect();
        let x: Rows = gate.iter().zip(&up).map(|(gate, up)| gated(gate, up)).collect();
        let mut out = self.linear(&format!("{name}.mlp.down_proj"), &x);
        if gemma {
            out = normed(&out, "post_feedforward_layernorm");
        }
        add(hidden, &out);
    }

    fn attention(&self, name: &str, layer: &Layer, x: &Rows) -> Rows {
        let (d, kv_width) = (self.head_width, self.kv_heads * self.head_width);
        let (mut q, mut k, v) = if self.tensors.contains_key(&format!("{name}.self_attn.qkv_proj.weight")) {
            let all = self.linear(&format!("{name}.self_attn.qkv_proj"), x);
            let part = |from: usize, width: usize| all.iter().map(|row| row[from..from + width].to_vec()).collect();
            let q_width = self.heads * d;
            (part(0, q_width), part(q_width, kv_width), part(q_width + kv_width, kv_width))
        } else {
            let projected = |p: &str| self.linear(&format!("{name}.self_attn.{p}_proj"), x);
            (projected("q"), projected("k"), projected("v"))
        };
        for (rows, norm) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
            let weight = self.vector(&format!("{name}.self_attn.{norm}.weight"));
            for (position, row) in rows.iter_mut().enumerate() {
                for head in row.chunks_mut(d) {
                    if let Some(weight) = &weight {
                        head.copy_from_slice(&self.norm(head, weight));
                    }
                    self.turn(head, position, &layer.frequencies);
                }
            }
        }
        (0..x.len()).map(|t| self.attend(t, layer.window, &q, &k, &v)).collect()
    }

    fn attend(&self, t: usize, window: Option<usize>, q: &Rows, k: &Rows, v: &Rows) -> Vec<f64> {
        let d = self.head_width;
        let mut out = Vec::new();
        for head in 0..self.heads {
            let kv = head / (self.heads / self.kv_heads) * d;
            let seen: Vec<usize> = (0..=t).filter(|s| window.is_none_or(|window| s + window > t)).collect();
            let dot = |s: usize| -> f64 { (0..d).map(|i| q[t][head * d + i] * k[s][kv + i]).sum() };
            let weights: Vec<f64> = seen.iter().map(|&s| (self.attention_scale * dot(s)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| seen.iter().zip(&weights).map(|(&s, w)| w / sum * v[s][kv + i]).sum::<f64>()));
        }
        out
    }

    fn turn(&self, head: &mut [f64], position: usize, frequencies: &[f64]) {
        let half = frequencies.len();
        for (j, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[j], head[j + half]);
            head[j] = self.rope_factor * (a * cos - b * sin);
            head[j + half] = self.rope_factor * (b * cos + a * sin);
        }
    }

    fn norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean + self.epsilon).sqrt() * (self.norm_offset + w)).collect()
    }

    fn activate(&self, x: f64) -> f64 {
        if self.gelu {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        } else {
            x / (1.0 + (-x).exp())
        }
    }

    fn linear(&self, name: &str, x: &Rows) -> Rows {
        let weight = self.matrix(&format!("{name}.weight")).expect("a weight");
        let bias = self.vector(&format!("{name}.bias")).unwrap_or_else(|| vec![0.0; weight.len()]);
        x.iter().map(|row| product(&weight, row).iter().zip(&bias).map(|(y, b)| y + b).collect()).collect()
    }

    fn vector(&self, name: &str) -> Option<Vec<f64>> {
        self.tensors.get(name).map(|(_, values)| values.iter().map(|v| f64::from(*v)).collect())
    }

    fn matrix(&self, name: &str) -> Option<Rows> {
        let width = self.tensors.get(name)?.0[1];
        self.vector(name).map(|values| values.chunks(width).map(<[f64]>::to_vec).collect())
    }
}

fn product(matrix: &Rows, x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn add(hidden: &mut Rows, out: &Rows) {
    for (hidden, out) in hidden.iter_mut().flatten().zip(out.iter().flatten()) {
        *hidden += out;
    }
}

fn split(rows: &Rows) -> (Rows, Rows) {
    rows.iter().map(|row| (row[..row.len() / 2].to_vec(), row[row.len() / 2..].to_vec())).unzip()
}
