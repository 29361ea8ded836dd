//! Gated activation of the feed-forward network: `out = act(gate) * up`, element by element.

use crate::dispatch::vectorized;
use crate::exponential::exp;
use serde::{Deserialize, Serialize};

/// The activation applied to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// `gate[i] = act(gate[i]) * up[i]`.
pub fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => silu(gate, up),
        Activation::GeluTanh => gelu_tanh(gate, up),
    }
}

vectorized! {
    fn silu(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }

    /// By `(1 + tanh(y)) / 2 = 1 / (1 + exp(-2y))`.
    fn gelu_tanh(gate: &mut [f32], up: &[f32]) {
        /// `-2 sqrt(2/pi)`.
        const FACTOR: f32 = -1.595_769;
        for (gate, up) in gate.iter_mut().zip(up) {
            let x = *gate;
            let y = FACTOR * (0.044_715 * x * x).mul_add(x, x);
            *gate = x / (1.0 + exp(y)) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn reference(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                // 1 + tanh in a form that keeps its digits for large negative arguments.
                x / (1.0 + (-2.0 * inner).exp())
            }
        }
    }

    /// The exponential's argument `y` is off by a few units, which the exponential turns into `|y|` times as much; where
    /// that matters (large negative gates) the result itself is tiny. Hence: 1e-6 absolute for |x| below 1, else relative
    /// to x.
    #[test]
    fn agrees_with_float64() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            for length in [0, 1, 7, 8, 1000] {
                let x: Vec<f32> = random(length, 1).iter().map(|v| v * 30.0).collect();
                let up = random(length, 2);
                let mut gate = x.clone();
                gated(activation, &mut gate, &up);
                for ((x, up), got) in x.iter().zip(&up).zip(&gate) {
                    let expected = reference(activation, f64::from(*x)) * f64::from(*up);
                    let bound = 1e-6 * f64::from(x.abs().max(1.0));
                    assert!((f64::from(*got) - expected).abs() <= bound, "{activation:?}({x}): {got} {expected}");
                }
            }
        }
    }

    #[test]
    fn far_out() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut gate = [1e4, -1e4, 0.0, f32::NAN, 1e30];
            gated(activation, &mut gate, &[1.0; 5]);
            assert_eq!((gate[0], gate[1], gate[2]), (1e4, 0.0, 0.0));
            assert!(gate[3].is_nan());
            assert_eq!(gate[4], 1e30);
        }
    }
}
