//! Gram matrices, losses and products with packed weights, within the error of float32 sums.

use crate::{
    decoder::operand,
    device, random,
    solvers::{spec, weights},
};
use half::{bf16, f16};
use kernels::{
    Compute, QuantSpec, ScaleSearch,
    block_solve::{self, Grids},
    cuda::{Buffer, Device, PackedWeight, Sums, Trial},
    moments,
};

/// Half a unit of float32's last place.
const UNIT: f64 = f64::EPSILON * 268_435_456.0; // 2^-24

#[test]
fn gram_matrices_agree_with_the_triple_loop() {
    let Some(device) = device() else { return };
    for (width, rows) in [(1, 1), (7, 0), (33, 64), (70, 5), (2, 20_000)] {
        let (x, start) = (random(rows * width, 1), random(width * width, 2));
        let mut gram = device.upload(&start).unwrap();
        device.accumulate_gram(&mut gram, &device.upload(&x).unwrap(), width).unwrap();
        let lower = device.download(&gram).unwrap();
        device.mirror_gram(&mut gram, width).unwrap();
        let whole = device.download(&gram).unwrap();
        for i in 0..width {
            for j in 0..=i {
                let terms = x.chunks_exact(width).map(|row| f64::from(row[i]) * f64::from(row[j]));
                let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
                let (got, before) = (f64::from(lower[i * width + j]), f64::from(start[i * width + j]));
                let bound = UNIT * (rows as f64 + 1.0) * (magnitude + before.abs());
                assert!((got - before - sum).abs() <= bound, "{width} x {rows} at {i},{j}");
                assert_eq!(whole[j * width + i].to_bits(), lower[i * width + j].to_bits());
                assert_eq!(whole[i * width + j].to_bits(), lower[i * width + j].to_bits());
                if j < i {
                    assert_eq!(lower[j * width + i], start[j * width + i], "above the diagonal");
                }
            }
        }
    }
}

/// Four products of halves have the whole but for `3 · 2^-16` of each, and three have their own sums. More columns than a
/// panel has.
#[test]
fn gram_matrices_of_split_numbers_agree_with_the_triple_loop() {
    let Some(device) = device() else { return };
    for (width, rows) in [(1, 1), (7, 0), (33, 64), (1030, 3)] {
        let x = random(rows * width, 1);
        let mut gram = device.zeros(width * width).unwrap();
        let there = device.upload(&x).unwrap();
        for _ in 0..2 {
            device.accumulate_gram_by(Compute::Bf16x3, &mut gram, &there, width).unwrap();
        }
        let lower = device.download(&gram).unwrap();
        for i in 0..width {
            for j in 0..=i {
                let terms = x.chunks_exact(width).map(|row| 2.0 * f64::from(row[i]) * f64::from(row[j]));
                let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
                let bound = (3.0 * 2f64.powi(-16) + 6.0 * UNIT * (rows as f64 + 1.0)) * magnitude;
                assert!((f64::from(lower[i * width + j]) - sum).abs() <= bound, "{width} x {rows} at {i},{j}");
            }
        }
    }
}

/// Gram matrix and drift within the bound of their sums in any order; what is summed in float64 is summed in the CPU's order.
#[test]
fn an_inputs_sums_agree_with_their_formulas() {
    let Some(device) = device() else { return };
    for (width, rows, divided) in [(1, 1, false), (7, 0, false), (33, 64, true), (130, 9, true), (5, 700, false)] {
        let (x, original) = (random(rows * width, 1), random(rows * width, 2));
        let divisors: Option<Vec<f32>> = divided.then(|| random(width, 3).iter().map(|f| 1.5 + f).collect());
        let mut sums = Sums::new(device, width, Compute::F32).unwrap();
        let (mut absolute, mut square) = (vec![0.0; width], vec![0.0; width]);
        let half = rows / 2 * width;
        for part in [0..half, half..x.len()] {
            let there = device.upload(&x[part.clone()]).unwrap();
            sums.add(device, &there).unwrap();
            let original = device.upload(&original[part.clone()]).unwrap();
            sums.add_drift(device, &there, &original, divisors.as_deref()).unwrap();
            moments::accumulate(&mut absolute, &mut square, &x[part]);
        }
        let totals = sums.finish(device).unwrap();
        assert_eq!((totals.rows, &totals.absolute, &totals.square), (rows, &absolute, &square));
        let by = |at: usize| divisors.as_ref().map_or(1.0, |divisors| divisors[at % width]);
        let d: Vec<f32> = original.iter().zip(&x).enumerate().map(|(at, (o, x))| o / by(at) - x).collect();
        check_sums(&totals.gram, [&x, &x], width);
        check_sums(&totals.drift.unwrap(), [&d, &x], width);
    }
}

/// `sums = aᵀ b` within what float32 sums of its terms may err.
fn check_sums(sums: &[f32], [a, b]: [&[f32]; 2], width: usize) {
    for (at, got) in sums.iter().enumerate() {
        let rows = a.chunks_exact(width).zip(b.chunks_exact(width));
        let terms = rows.map(|(a, b)| f64::from(a[at / width]) * f64::from(b[at % width]));
        let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
        let bound = UNIT * ((a.len() / width) as f64 + 1.0) * magnitude;
        assert!((f64::from(*got) - sum).abs() <= bound, "width {width} at {at}: {got} {sum}");
    }
}

#[test]
fn linear_layers_agree_with_the_definition() {
    let Some(device) = device() else { return };
    for (rows, outputs, inputs) in [(1, 1, 1), (3, 17, 40), (20, 9, 128), (0, 4, 8)] {
        let (x, w) = (random(rows * inputs, 1), random(outputs * inputs, 2));
        let case = format!("{rows} x {outputs} x {inputs}");
        let [float32, rounded, split] = [Compute::F32, Compute::Bf16, Compute::Bf16x3].map(|compute| {
            let [x, w] = [&x, &w].map(|numbers| operand(device, compute, numbers, inputs));
            device.download(&device.multiply(&x, &w).unwrap()).unwrap()
        });
        check_product(&float32, &x, &w, inputs, 0.0, &case);
        // Products of bfloat16 numbers are exact in float32.
        let [x_rounded, w_rounded] =
            [&x, &w].map(|all| all.iter().map(|v| bf16::from_f32(*v).to_f32()).collect::<Vec<f32>>());
        check_product(&rounded, &x_rounded, &w_rounded, inputs, 0.0, &case);
        // Three sums, and what the fourth and the rounding of the lower halves leave out.
        check_product(&split, &x, &w, inputs, 2f64.powi(-16) + 3.0 * UNIT * (inputs as f64 + 1.0), &case);
    }
}

/// Ties go to the even neighbour, sizes of every order keep theirs, what is no number stays none.
#[test]
fn numbers_are_rounded_to_bfloat16_as_on_the_cpu() {
    let Some(device) = device() else { return };
    let mut numbers = vec![0.0, -0.0, 1.0, f32::MIN_POSITIVE, 1e-40, f32::MAX, -f32::INFINITY];
    // Half-way between neighbours, below an even one and above.
    numbers.extend([1.0, 3.0].map(|halves| 1.0 + halves * 2f32.powi(-8)));
    numbers.extend(random(1000, 1).iter().zip(0..).map(|(v, at)| v * 2f32.powi(at % 200 - 100)));
    // One times a number, summed with nothing, is the number.
    let one = operand(device, Compute::Bf16, &[1.0], 1);
    let there = operand(device, Compute::Bf16, &numbers, 1);
    let got = device.download(&device.multiply(&one, &there).unwrap()).unwrap();
    let expected: Vec<f32> = numbers.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
    assert_eq!(got, expected);
    // Carrying into the sign would make a number of the second.
    for nothing in [f32::NAN, f32::from_bits(0x7fff_ffff)].map(|nothing| operand(device, Compute::Bf16, &[nothing], 1))
    {
        assert!(device.download(&device.multiply(&one, &nothing).unwrap()).unwrap()[0].is_nan());
    }
}

/// `out = x wᵀ` within what a float32 sum of `inputs` products in any order may err, and `more` of their sizes.
fn check_product(out: &[f32], x: &[f32], w: &[f32], inputs: usize, more: f64, case: &str) {
    let outputs = w.len() / inputs;
    assert_eq!(out.len(), x.len() / inputs * outputs);
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (output, w) in w.chunks_exact(inputs).enumerate() {
            let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
            let error = (f64::from(out[row * outputs + output]) - sum).abs();
            assert!(error <= (UNIT * (inputs as f64 + 1.0) + more) * magnitude, "{case}: {error} at {row},{output}");
        }
    }
}

#[test]
fn packed_weights_multiply_like_the_weights_they_stand_for() {
    let Some(device) = device() else { return };
    for bits in [2, 3, 4, 8] {
        for (outputs, inputs) in [(1, 8), (33, 100), (70, 64), (9, 600)] {
            let spec = spec(bits, Some(16), false, ScaleSearch::MinMax);
            let weight = random(outputs * inputs, 3);
            let matrix = device.round_to_nearest(&weight, inputs, &spec).unwrap();
            let dequantized = matrix.download(device).unwrap().dequantize();
            let packed = PackedWeight::new(device, matrix).unwrap();
            for rows in [0, 1, 2, 8, 9, 16, 17, 40] {
                let x = random(rows * inputs, rows as u64);
                let out = packed.multiply(device, &device.upload(&x).unwrap()).unwrap();
                let case = format!("{bits} bits, {rows} x {outputs} x {inputs}");
                check_product(&device.download(&out).unwrap(), &x, &dequantized, inputs, 0.0, &case);
            }
        }
    }
}

/// `e G eᵀ` in float64 for the errors that the CPU finds.
fn energies(weight: &[f32], factors: &[f32], gram: &[f32], spec: &QuantSpec) -> Vec<(f64, f64)> {
    let inputs = factors.len();
    let mut errors: Vec<f32> = weight.iter().enumerate().map(|(at, w)| w * factors[at % inputs]).collect();
    block_solve::rounding_errors(&mut errors, inputs, spec);
    errors.iter_mut().enumerate().for_each(|(at, error)| *error /= factors[at % inputs]);
    errors.chunks_exact(inputs).map(|e| energy(e, gram)).collect()
}

/// `e G eᵀ` in float64, and the sum of its terms' sizes.
fn energy(e: &[f32], gram: &[f32]) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for (i, row) in gram.chunks_exact(e.len()).enumerate() {
        for (entry, other) in row.iter().zip(e) {
            let term = f64::from(e[i]) * f64::from(*entry) * f64::from(*other);
            sums = (sums.0 + term, sums.1 + term.abs());
        }
    }
    sums
}

/// The energies of the weight and of the errors that codes leave, whose groups don't follow each other.
fn check_measured(
    device: &Device,
    trial: &Trial,
    weight: &[f32],
    (host, gram): (&[f32], &Buffer<f32>),
    spec: &QuantSpec,
) {
    let inputs = host.len().isqrt();
    let group_index: Vec<u32> = (0..inputs).map(|column| (column % spec.groups(inputs)) as u32).collect();
    let count = weight.len() / inputs * spec.groups(inputs);
    let scales = random(count, 4).iter().map(|scale| f16::from_f32(scale.abs() * 0.2 + 0.01)).collect();
    let grids = Grids { scales, zeros: (0..count).map(|at| (at % 16) as u8).collect() };
    let matrix = device.round_on(weight, &group_index, &grids, spec).unwrap();
    let rounded = matrix.download(device).unwrap().dequantize();
    let errors: Vec<f32> = weight.iter().zip(rounded).map(|(w, q)| w - q).collect();
    let got = [trial.energies(device, gram).unwrap(), trial.error_energies(device, &matrix, gram).unwrap()];
    for (got, rows) in got.iter().zip([weight, &errors]) {
        for (got, row) in got.iter().zip(rows.chunks_exact(inputs)) {
            let (energy, magnitude) = energy(row, host);
            assert!((got - energy).abs() <= UNIT * (inputs as f64 + 1.0) * magnitude, "{got} {energy}");
        }
    }
}

#[test]
fn the_loss_that_awq_searches_by_is_that_of_the_cpus_errors() {
    let Some(device) = device() else { return };
    for (rows, inputs) in [(1, 8), (150, 40), (9, 129)] {
        for scale_search in [ScaleSearch::MinMax, ScaleSearch::Mse] {
            let spec = spec(4, Some(16), false, scale_search);
            let x = random(3 * inputs * inputs, 1);
            let mut gram = device.zeros(inputs * inputs).unwrap();
            device.accumulate_gram(&mut gram, &device.upload(&x).unwrap(), inputs).unwrap();
            device.mirror_gram(&mut gram, inputs).unwrap();
            let factors: Vec<f32> = random(inputs, 2).iter().map(|f| 1.5 + f).collect();
            let weight: Vec<f32> =
                weights(rows, inputs, 3).into_iter().map(|w| if w.is_finite() { w } else { 0.5 }).collect();
            let trial = Trial::new(device, &weight, inputs, &spec).unwrap();
            trial.rounding_energies(device, &random(inputs, 9), &gram).unwrap(); // leaves the weight as it was
            let got = trial.rounding_energies(device, &factors, &gram).unwrap();
            let host = device.download(&gram).unwrap();
            check_measured(device, &trial, &weight, (&host, &gram), &spec);
            let expected = energies(&weight, &factors, &host, &spec);
            for (row, (got, (energy, magnitude))) in got.iter().zip(expected).enumerate() {
                // The products' float32 sums; what is summed over them is float64.
                let bound = UNIT * (inputs as f64 + 1.0) * magnitude;
                assert!((got - energy).abs() <= bound, "{rows} x {inputs}, row {row}: {got} {energy}");
            }
        }
    }
}
