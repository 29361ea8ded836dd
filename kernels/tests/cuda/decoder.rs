//! What a decoder does between its products, against the CPU.

use crate::{device, random};
use kernels::{
    Compute,
    activation::{self, Activation},
    attention::Attention,
    log_probability, norm,
    rope::RopeTable,
};

/// The sum of squares is float32 here, float64 on the CPU: of `n / 256 + 13` roundings half reach the inverse root, four
/// more follow.
#[test]
fn norms() {
    let Some(device) = device() else { return };
    for (width, rows) in [(1, 3), (7, 1), (576, 5), (4096, 2)] {
        for offset in [0.0, 1.0] {
            let (mut x, weight) = (random(rows * width, 1), random(width, 2));
            x[..width].fill(0.0);
            let mut expected = vec![0.0; x.len()];
            norm::rms_norm(&x, &weight, offset, 1e-5, &mut expected);
            let (x, weight) = (device.upload(&x).unwrap(), device.upload(&weight).unwrap());
            let got = device.download(&device.rms_norm(&x, &weight, offset, 1e-5).unwrap()).unwrap();
            let bound = 2f32.powi(-24) * ((width / 256 + 13) as f32 / 2.0 + 8.0);
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() <= bound * expected.abs(), "width {width}: {got} {expected}");
            }
        }
    }
}

/// The same operations, none fused: equal to the bit.
#[test]
fn rotations() {
    let Some(device) = device() else { return };
    for (heads, head_width, frequencies, tokens) in [(1, 2, 1, 1), (3, 64, 32, 5), (2, 80, 20, 3)] {
        let inverse: Vec<f32> = (0..frequencies).map(|j| 1e4f32.powf(-(j as f32) / frequencies as f32)).collect();
        let table = RopeTable::new(&inverse, 40 + tokens, 1.25);
        let mut expected = random(tokens * heads * head_width, 3);
        let mut x = device.upload(&expected).unwrap();
        table.apply(&mut expected, heads, head_width, 40);
        device.rotate(&mut x, &device.upload_rope(&table).unwrap(), heads, head_width, 40).unwrap();
        assert_eq!(device.download(&x).unwrap(), expected, "{heads} heads of {head_width}");
    }
}

/// The same operations, fused where the CPU fuses: equal to the bit.
#[test]
fn gated_activations() {
    let Some(device) = device() else { return };
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for count in [1, 127, 1000] {
            let mut expected: Vec<f32> = random(count, 1).iter().map(|x| 20.0 * x * x * x).collect();
            expected[0] = -200.0;
            let up = random(count, 2);
            let mut gate = device.upload(&expected).unwrap();
            activation::gated(activation, &mut expected, &up);
            device.gated(activation, &mut gate, &device.upload(&up).unwrap()).unwrap();
            assert_eq!(device.download(&gate).unwrap(), expected, "{activation:?}, {count}");
        }
    }
}

/// Twice what `kernels::attention` states for itself against the formula: both sides err by as much at most.
#[test]
fn attention() {
    let Some(device) = device() else { return };
    for (heads, kv_heads, head_width) in [(3, 1, 16), (2, 2, 128), (4, 2, 7), (1, 1, 256), (1, 1, 1)] {
        for (queries, tokens) in [(1, 1), (16, 16), (17, 17), (40, 40), (1, 33), (5, 50)] {
            for window in [None, Some(1), Some(3), Some(20), Some(1000)] {
                let scale = 1.0 / (head_width as f32).sqrt();
                let attention = Attention { heads, kv_heads, head_width, scale, window };
                let (q, kv) = (random(queries * heads * head_width, 1), tokens * kv_heads * head_width);
                let (k, v) = (random(kv, 2), random(kv, 3));
                let mut expected = vec![0.0; q.len()];
                attention.causal(Compute::F32, &q, &k, &v, &mut expected);
                let [q, k, v] = [q, k, v].map(|x| device.upload(&x).unwrap());
                let got = device.download(&device.attend(&attention, &q, &k, &v).unwrap()).unwrap();
                let d = head_width as f64;
                let bound = 2f64.powi(-23) * (2.0 * (d + 2.0) * f64::from(scale) * d + tokens as f64 + 8.0);
                for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let error = f64::from(got - expected).abs();
                    assert!(error <= bound, "{attention:?}, {queries} of {tokens}, at {at}: {got} {expected}");
                }
            }
        }
    }
    let wide = Attention { heads: 1, kv_heads: 1, head_width: 257, scale: 1.0, window: None };
    let x = device.zeros(257).unwrap();
    assert!(device.attend(&wide, &x, &x, &x).unwrap_err().to_string().contains("257"));
}

/// Scores far apart and large: nothing overflows.
#[test]
fn attention_with_large_scores() {
    let Some(device) = device() else { return };
    let attention = Attention { heads: 2, kv_heads: 1, head_width: 8, scale: 300.0, window: None };
    let [q, k, v] =
        [(70 * 16, 1), (70 * 8, 2), (70 * 8, 3)].map(|(count, seed)| device.upload(&random(count, seed)).unwrap());
    let out = device.download(&device.attend(&attention, &q, &k, &v).unwrap()).unwrap();
    assert!(out.iter().all(|v| v.abs() <= 1.0 + 1e-5));
}

/// Logits err by `inputs` units of their terms, sums of exponentials by a few units: 3e-6 nats as on the CPU, twice.
#[test]
fn log_likelihoods() {
    let Some(device) = device() else { return };
    for (rows, vocabulary, inputs) in [(1, 1, 4), (3, 300, 16), (2, 8193, 2), (3, 20_000, 2), (5, 1000, 48), (0, 5, 4)]
    {
        let (x, mut head) = (random(rows * inputs, 1), random(vocabulary * inputs, 2));
        // The largest logits come late, so that sums are rescaled.
        head[vocabulary * inputs * 3 / 4..].iter_mut().for_each(|weight| *weight *= 3.0);
        let targets: Vec<u32> = (0..rows).map(|row| ((row * 7919 + vocabulary - 1) % vocabulary) as u32).collect();
        let expected = log_probability::negative_log_likelihood(Compute::F32, &x, &head, inputs, &targets);
        let (x, head) = (device.upload(&x).unwrap(), device.upload(&head).unwrap());
        let got = device.negative_log_likelihood(&x, &head, inputs, &targets).unwrap();
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() <= 6e-6, "{rows} x {vocabulary}: {got} {expected}");
        }
        assert_eq!(got.len(), rows);
    }
}
