//! AdamW (Loshchilov and Hutter, 2019) with clipping of the gradient's norm, and the learning rate's schedule.
//!
//! m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← w − η(m̂/(√v̂ + ε) + λw), m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ); λ on matrices
//! only. The rate η rises linearly, stays, and falls by a half cosine over the last part of the steps. Until the fall
//! begins nothing depends on the number of steps, so a run may be made longer or shorter while it stays flat.

use crate::network::Network;
use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.95;
const EPSILON: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.1;
const CLIP: f64 = 1.0;
const PEAK: f64 = 2e-3;
const FLOOR: f64 = 1e-5;
const WARM_UP: u64 = 100;
const FALL_SHARE: f64 = 0.4;

/// η of a step counted from 0.
pub(crate) fn learning_rate(step: u64, steps: u64) -> f64 {
    let rise = ((step + 1) as f64 / WARM_UP as f64).min(1.0);
    let begin = steps as f64 * (1.0 - FALL_SHARE);
    let fallen = ((step as f64 - begin) / (steps as f64 - begin)).clamp(0.0, 1.0);
    rise * (FLOOR + (PEAK - FLOOR) * 0.5 * (1.0 + (std::f64::consts::PI * fallen).cos()))
}

/// Moments m and v of each weight.
pub(crate) struct AdamW {
    pub(crate) moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    pub(crate) fn new(network: &Network) -> Self {
        let zero = |count| (vec![0f32; count], vec![0f32; count]);
        Self { moments: network.weights.iter().map(|(name, var)| (name.clone(), zero(var.elem_count()))).collect() }
    }

    /// One step, counted from 0. Returns the gradient's norm before clipping.
    pub(crate) fn step(&mut self, network: &Network, gradients: &GradStore, step: u64, rate: f64) -> Result<f64> {
        let mut flat = BTreeMap::new();
        for (name, var) in &network.weights {
            let gradient = gradients.get(var).with_context(|| format!("tensor `{name}` has no gradient"))?;
            flat.insert(name, gradient.flatten_all()?.to_vec1::<f32>()?);
        }
        let norm = flat.values().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
        let clip = (CLIP / norm.max(CLIP)) as f32;
        let time = i32::try_from(step + 1).context("too many steps")?;
        let rate_1 = (rate / (1.0 - BETA_1.powi(time))) as f32;
        let scale_2 = (1.0 / (1.0 - BETA_2.powi(time))) as f32;
        let (beta_1, beta_2) = (BETA_1 as f32, BETA_2 as f32);
        for (name, var) in &network.weights {
            let decay = if var.rank() > 1 { rate as f32 * WEIGHT_DECAY } else { 0.0 };
            let (m, v) = self.moments.get_mut(name).with_context(|| format!("tensor `{name}` has no moments"))?;
            let mut w = var.flatten_all()?.to_vec1::<f32>()?;
            for (i, g) in flat[name].iter().map(|g| g * clip).enumerate() {
                m[i] = beta_1 * m[i] + (1.0 - beta_1) * g;
                v[i] = beta_2 * v[i] + (1.0 - beta_2) * g * g;
                w[i] -= rate_1 * m[i] / ((v[i] * scale_2).sqrt() + EPSILON) + decay * w[i];
            }
            var.set(&Tensor::from_vec(w, var.dims(), &Device::Cpu)?)?;
        }
        Ok(norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_rises_stays_and_falls() {
        assert!(learning_rate(0, 1000) < 0.02 * PEAK);
        assert_eq!(learning_rate(WARM_UP - 1, 1000), PEAK);
        assert_eq!(learning_rate(600, 1000), PEAK);
        assert!(learning_rate(800, 1000) < 0.51 * PEAK);
        assert!(learning_rate(999, 1000) < 0.01 * PEAK);
    }

    #[test]
    fn number_of_steps_does_not_matter_before_the_fall() {
        for step in 0..600 {
            assert_eq!(learning_rate(step, 1000), learning_rate(step, 5000));
        }
    }
}
