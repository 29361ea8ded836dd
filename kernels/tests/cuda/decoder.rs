//! What a decoder does between its products, against the CPU.

use crate::{device, random};
use kernels::{
    Compute,
    activation::{self, Activation},
    attention::Attention,
    cuda::{Device, Operand},
    divergence::{Side, Window, divergence},
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
        device.rotate(&mut x.as_view_mut(), &device.upload_rope(&table).unwrap(), heads, head_width, 40).unwrap();
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
        for (queries, tokens) in [(1, 1), (17, 17), (64, 64), (1, 33), (5, 50), (70, 133)] {
            for window in [None, Some(1), Some(3), Some(20), Some(1000)] {
                let scale = 1.0 / (head_width as f32).sqrt();
                let attention = Attention { heads, kv_heads, head_width, scale, window };
                let (q, kv) = (random(queries * heads * head_width, 1), tokens * kv_heads * head_width);
                let (k, v) = (random(kv, 2), random(kv, 3));
                let mut expected = vec![0.0; q.len()];
                attention.causal(Compute::F32, &q, &k, &v, &mut expected);
                let got = attend(device, &attention, [&q, &k, &v]);
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
    let (x, mut out) = (device.zeros(257).unwrap(), device.zeros(257).unwrap());
    let refused = device.attend(&wide, [&x.as_view(), &x.as_view(), &x.as_view()], &mut out.as_view_mut());
    assert!(refused.unwrap_err().to_string().contains("257"));
}

pub(crate) fn operand(device: &Device, compute: Compute, numbers: &[f32], width: usize) -> Operand {
    device.operand(compute, device.upload(numbers).unwrap(), width).unwrap()
}

fn attend(device: &Device, attention: &Attention, operands: [&[f32]; 3]) -> Vec<f32> {
    let [q, k, v] = operands.map(|x| device.upload(x).unwrap());
    let mut out = device.zeros(q.len()).unwrap();
    device.attend(attention, [&q.as_view(), &k.as_view(), &v.as_view()], &mut out.as_view_mut()).unwrap();
    device.download(&out).unwrap()
}

/// Scores far apart and large: nothing overflows.
#[test]
fn attention_with_large_scores() {
    let Some(device) = device() else { return };
    let attention = Attention { heads: 2, kv_heads: 1, head_width: 8, scale: 300.0, window: None };
    let [q, k, v] = [(70 * 16, 1), (70 * 8, 2), (70 * 8, 3)].map(|(count, seed)| random(count, seed));
    let out = attend(device, &attention, [&q, &k, &v]);
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
        let [x, head] = [x, head].map(|numbers| operand(device, Compute::F32, &numbers, inputs));
        let got = device.negative_log_likelihood(&x, &head, &targets).unwrap();
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() <= 6e-6, "{rows} x {vocabulary}: {got} {expected}");
        }
        assert_eq!(got.len(), rows);
    }
}

/// The same operations, one to a number: equal to the bit.
#[test]
fn sums_with_biases_and_residuals_and_columns_taken_apart() {
    let Some(device) = device() else { return };
    for (rows, width) in [(0, 3), (1, 1), (5, 77), (300, 129)] {
        let (x, y, bias) = (random(rows * width, 1), random(rows * width, 2), random(width, 3));
        let [y_there, bias_there] = [&y, &bias].map(|numbers| device.upload(numbers).unwrap());
        let mut there = device.upload(&x).unwrap();
        device.add(&mut there, &y_there).unwrap();
        device.add_bias(&mut there, &bias_there).unwrap();
        let expected: Vec<f32> = x.iter().zip(&y).enumerate().map(|(at, (x, y))| x + y + bias[at % width]).collect();
        assert_eq!(device.download(&there).unwrap(), expected, "{rows} x {width}");
        for (first, columns) in [(0, width), (width / 2, width - width / 2), (width - 1, 1)] {
            let taken = device.download(&device.take_columns(&there, width, first, columns).unwrap()).unwrap();
            let expected: Vec<f32> =
                expected.chunks_exact(width).flat_map(|row| &row[first..first + columns]).copied().collect();
            assert_eq!(taken, expected, "{columns} of {width} from {first}");
        }
    }
}

/// A logit errs by at most `width` units of the sum of its terms' sizes on either side; the divergence moves by at most
/// twice the largest error, a likelihood too. Equal models diverge by exactly nothing.
#[test]
fn divergences() {
    let Some(device) = device() else { return };
    for (rows, vocabulary, widths, spread) in [
        (1, 1, [1, 1], 1.0),
        (3, 10, [4, 4], 1.0),
        (1, 8200, [2, 3], 1.0),
        (2, 8200, [16, 24], 3.0),
        (40, 300, [33, 17], 1.0),
        (2, 3000, [64, 64], 20.0),
        (0, 7, [3, 3], 1.0),
    ] {
        let x = widths.map(|width| random(rows * width, 1).iter().map(|v| v * spread).collect::<Vec<f32>>());
        let mut heads = widths.map(|width| random(vocabulary * width, width as u64));
        // A lone row's largest logits come last, in the second tile where there is one, so that sums are rescaled.
        for ((head, x), width) in heads.iter_mut().zip(&x).zip(widths).filter(|_| rows == 1) {
            let last = head.len() - width..;
            let square: f32 = x.iter().map(|x| x * x).sum();
            head[last].iter_mut().zip(x).for_each(|(weight, x)| *weight = 4.0 * x / square);
        }
        let side = |at: usize| Side { head: &heads[at], width: widths[at], compute: Compute::F32 };
        let targets: Vec<u32> = (0..rows).map(|row| ((row * 7919 + vocabulary - 1) % vocabulary) as u32).collect();
        let window = Window { baseline: &x[0], model: &x[1], targets: &targets };
        let expected = divergence(side(0), side(1), &[window]).remove(0);
        let there = [0, 1].map(|at| [&x[at], &heads[at]].map(|all| operand(device, Compute::F32, all, widths[at])));
        let side = |at: usize| (&there[at][0], &there[at][1]);
        let got = device.divergence(side(0), side(1), &targets).unwrap();
        assert_eq!(got.len(), rows);
        let width = widths[0].max(widths[1]) as f64;
        let bound = 2f64.powi(-24) * 8.0 * width * width * f64::from(spread) + 1e-12;
        for (got, expected) in got.iter().zip(&expected) {
            let error = [got.kl - expected.kl, got.baseline - expected.baseline, got.model - expected.model];
            assert!(error.iter().all(|e| e.abs() <= bound), "{got:?} {expected:?} {bound}");
            assert!(got.same_top == expected.same_top, "{got:?} {expected:?}");
        }
        assert!(device.divergence(side(0), side(0), &targets).unwrap().iter().all(|at| at.kl == 0.0 && at.same_top));
    }
}

/// Of equal logits the first is preferred, wherever the tiles and the threads' shares end.
#[test]
fn the_first_of_equal_logits_is_preferred() {
    let Some(device) = device() else { return };
    for (first, second) in [(5, 8195), (7, 8), (255, 256), (0, 300), (3, 259)] {
        let head = |places: &[usize]| {
            let mut head = vec![0.0f32; 8200];
            for place in places {
                head[*place] = 1.0;
            }
            operand(device, Compute::F32, &head, 1)
        };
        let (x, both, one, other) =
            (operand(device, Compute::F32, &[1.0], 1), head(&[first, second]), head(&[first]), head(&[second]));
        let same = |a, b| device.divergence((&x, a), (&x, b), &[0]).unwrap()[0].same_top;
        assert!(same(&both, &one) && same(&one, &both) && !same(&both, &other), "{first} and {second}");
    }
}
