//! AWQ's search against its definition in float64, by hand, and over whole models of every family.

#![allow(clippy::unwrap_used)] // helpers of tests may panic like the tests

#[path = "../../model/tests/support/small_model.rs"]
mod small_model;

use calibration::LayerStatistics;
use kernels::{ActOrder, Engine, QuantSpec, Resident, ScaleSearch, block_solve};
use model::{Block, Checkpoint, Linear, Stage, decoder::Activations};
use proptest::prelude::*;
use quantize::{
    AwqOptions, Hessian, Solver,
    awq::{Awq, Choice, Rounding, best, candidates},
    fold::FoldedBlock,
    gptq::Gptq,
    measure,
    sublayer::Trial,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use small_model::{SmallModel, config};
use std::{fs, process::Command};

fn spec(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantSpec {
    QuantSpec {
        bits,
        group_size,
        symmetric,
        act_order: ActOrder::None,
        scale_search: ScaleSearch::MinMax,
        smallest_zero: 0,
    }
}

fn linear(inputs: usize, weight: Vec<f32>) -> Linear {
    let outputs = weight.len() / inputs;
    Linear { name: "model.layers.0.mlp.down_proj".into(), inputs, outputs, weight, bias: None }
}

/// The statistics of `rows` of `width` numbers, by definition.
fn statistics(rows: &[f32], width: usize) -> LayerStatistics {
    let mut sums = LayerStatistics::empty(width);
    sums.tokens = rows.len() / width;
    let mut gram = vec![0.0f64; width * width];
    for row in rows.chunks_exact(width) {
        for i in 0..width {
            sums.sum_absolute[i] += f64::from(row[i].abs());
            sums.sum_square[i] += f64::from(row[i]).powi(2);
            (0..width).for_each(|j| gram[i * width + j] += f64::from(row[i]) * f64::from(row[j]));
        }
    }
    sums.gram = gram.into_iter().map(|sum| sum as f32).collect();
    sums
}

/// `‖E X‖²` by definition: every output of every row of `x`.
fn loss(weight: &[f32], changed: &[f32], x: &[f32], width: usize) -> f64 {
    let delta: Vec<f64> = weight.iter().zip(changed).map(|(w, c)| f64::from(*c) - f64::from(*w)).collect();
    let output = |row: &[f64], x: &[f32]| row.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum::<f64>();
    x.chunks_exact(width).flat_map(|x| delta.chunks_exact(width).map(move |row| output(row, x).powi(2))).sum()
}

/// `round(W·s)/s` with the kernels' rounding.
fn scaled_and_rounded(linear: &Linear, factors: &[f32], spec: &QuantSpec) -> Vec<f32> {
    let columns = || factors.iter().cycle();
    let scaled: Vec<f32> = linear.weight.iter().zip(columns()).map(|(w, s)| w * s).collect();
    let rounded = block_solve::round_to_nearest(&scaled, linear.inputs, spec).dequantize();
    rounded.iter().zip(columns()).map(|(q, s)| q / s).collect()
}

/// The exponent that loses least of the linears' outputs.
fn search(
    linears: &[(&Linear, Rounding<'_>)],
    statistics: &LayerStatistics,
    channels: &[usize],
    steps: u32,
    storable: impl Fn(&[f32]) -> Vec<f32>,
) -> Choice {
    best(candidates(statistics, channels, steps, storable), channels, |columns| {
        let gram = Resident::new(&Engine::Cpu, &statistics.gram)?;
        let lost = |(linear, rounding): &(&Linear, Rounding<'_>)| {
            measure::Trial::new(&linear.weight, linear.inputs, &gram, *rounding)?.rounding_energy(columns)
        };
        linears.iter().map(lost).sum()
    })
    .unwrap()
}

#[test]
fn two_columns_by_hand() {
    // One token, x = (1, 16), W = (3, 0.4), two bits from 0 to the maximum. Unscaled, steps of 1 make (3, 0): the error
    // 0.4 meets 16, (0.4 · 16)² = 40.96. r = 1/2 scales by (1/2, 2): (1.5, 0.8) in steps of 0.5 is (1.5, 1), an error
    // of 0.2 / 2 that meets 16: 2.56. r = 1 scales by (1/4, 4): (0.75, 1.6) in steps of 1.6 / 3 is (0.533, 1.6), an
    // error of 0.217 · 4 that meets 1: 0.751.
    let linear = linear(2, vec![3.0, 0.4]);
    let (spec, statistics) = (spec(2, None, false), statistics(&[1.0, 16.0], 2));
    let find = |steps| search(&[(&linear, Rounding::Groups(&spec))], &statistics, &[0, 1], steps, <[f32]>::to_vec);
    let found = find(2);
    assert_eq!((found.exponent, found.factors.as_slice()), (1.0, &[0.25, 4.0][..]));
    assert!((found.loss_unscaled - 40.96).abs() < 1e-4 && (found.loss - 0.751).abs() < 0.01, "{found:?}");
    // Where what is stored allows only the identity, it is the identity.
    let stuck =
        search(&[(&linear, Rounding::Groups(&spec))], &statistics, &[0, 1], 20, |factors| vec![1.0; factors.len()]);
    assert_eq!((stuck.exponent, stuck.loss), (0.0, stuck.loss_unscaled));
    assert_eq!(find(0).exponent, 0.0);
    // Tied channels share the mean magnitude, and with one channel there is nothing to scale.
    let tied = search(&[(&linear, Rounding::Groups(&spec))], &statistics, &[0, 0], 20, <[f32]>::to_vec);
    assert_eq!((tied.exponent, tied.factors.as_slice()), (0.0, &[1.0][..]));
}

/// Two linears on one input that has a few dear columns, one of them never used; a zero row and an outlier.
fn problem(seed: u64, outputs: usize, inputs: usize, tokens: usize) -> (Vec<Linear>, Vec<f32>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let gain: Vec<f32> = (0..inputs).map(|i| if i % 9 == 4 { 40.0 } else { random.random_range(0.01..1.5) }).collect();
    let dead = random.random_range(0..inputs);
    let mut x: Vec<f32> =
        (0..tokens * inputs).map(|at| gain[at % inputs] * random.random_range(-1.0..1.0f32)).collect();
    x.iter_mut().skip(dead).step_by(inputs).for_each(|x| *x = 0.0);
    let mut linear = |rows: usize| {
        let mut weight: Vec<f32> = (0..rows * inputs).map(|_| random.random_range(-1.0..1.0f32).powi(3)).collect();
        weight[0] = 20.0;
        weight[(rows - 1) * inputs..].fill(0.0);
        self::linear(inputs, weight)
    };
    (vec![linear(outputs), linear(outputs + 2)], x)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_loss_is_that_of_the_definition_and_never_above_rounding_to_nearest(
        (outputs, inputs, tokens) in (1usize..9, 1usize..60, 1usize..40),
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        group_size in prop::option::of(8usize..33),
        symmetric: bool,
        seed in 0u64..1000,
    ) {
        let (linears, x) = problem(seed, outputs, inputs, tokens);
        let (statistics, spec) = (statistics(&x, inputs), spec(bits, group_size, symmetric));
        let pairs: Vec<(&Linear, Rounding<'_>)> = linears.iter().map(|linear| (linear, Rounding::Groups(&spec))).collect();
        let channels: Vec<usize> = (0..inputs).collect();
        let found = search(&pairs, &statistics, &channels, 20, <[f32]>::to_vec);
        prop_assert!(found.loss <= found.loss_unscaled);
        prop_assert!(found.factors.iter().all(|factor| factor.is_finite() && *factor > 0.0));
        let wanted = |factors: &[f32]| -> f64 {
            linears.iter().map(|l| loss(&l.weight, &scaled_and_rounded(l, factors, &spec), &x, inputs)).sum()
        };
        let energy: f64 = linears.iter().map(|l| loss(&l.weight, &vec![0.0; l.weight.len()], &x, inputs)).sum();
        // The Gram matrix and the products are float32, and outputs may cancel: relative errors of 100 · 2^-24 of the
        // outputs' energy.
        let bound = |loss: f64| 1e-4 * loss + 1e-6 * energy;
        prop_assert!((found.loss - wanted(&found.factors)).abs() <= bound(found.loss));
        prop_assert!((found.loss_unscaled - wanted(&vec![1.0; inputs])).abs() <= bound(found.loss_unscaled));
    }

    #[test]
    fn clipping_never_ends_above_rounding_to_nearest(
        (outputs, inputs) in (1usize..9, 1usize..60),
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        group_size in prop::option::of(8usize..33),
        symmetric: bool,
        seed in 0u64..1000,
    ) {
        let (linears, x) = problem(seed, outputs, inputs, 30);
        let (statistics, spec) = (statistics(&x, inputs), spec(bits, group_size, symmetric));
        let (_, report) = awq(AwqOptions::default(), None, &linears[0], &spec, &statistics).unwrap();
        let (error, nearest) = (report.error.unwrap(), report.error_round_to_nearest.unwrap());
        prop_assert!(error <= nearest * (1.0 + 1e-3) + 1e-9, "{} against {}", error, nearest);
        prop_assert_eq!(report.clipping.unwrap().groups, outputs * spec.groups(inputs));
    }
}

type Solved = Result<(kernels::QuantizedMatrix, quantize::LayerReport), quantize::QuantizeError>;

fn awq(
    options: AwqOptions,
    compensation: Option<Gptq>,
    linear: &Linear,
    spec: &QuantSpec,
    statistics: &LayerStatistics,
) -> Solved {
    let mut hessian = Hessian::new(statistics, &linear.name)?;
    Awq { options, compensation, folded: FoldedBlock::default(), engine: Engine::Cpu }.solve(linear, spec, &mut hessian)
}

#[test]
fn without_clipping_and_scaling_the_integers_are_those_of_the_plain_methods() {
    let (linears, x) = problem(3, 12, 40, 90);
    let statistics = statistics(&x, 40);
    let plain = AwqOptions { clip: false, ..AwqOptions::default() };
    for act_order in [ActOrder::None, ActOrder::Desc, ActOrder::Static, ActOrder::Group] {
        let spec = QuantSpec { act_order, ..spec(3, Some(16), false) };
        let gptq = || Gptq { measured: true, damping: 0.01, input_correction: 0.0, engine: Engine::Cpu };
        let (ours, report) = awq(plain.clone(), Some(gptq()), &linears[0], &spec, &statistics).unwrap();
        let mut hessian = Hessian::new(&statistics, "q").unwrap();
        let (theirs, plain_report) = gptq().solve(&linears[0], &spec, &mut hessian).unwrap();
        assert_eq!(ours, theirs);
        assert_eq!(report.factorization, plain_report.factorization);
        let (a, b) = (report.error.unwrap(), plain_report.error.unwrap());
        assert!((a / b - 1.0).abs() < 1e-4, "{a} and {b}");
    }
    let spec = spec(3, Some(16), false);
    let (ours, _) = awq(plain, None, &linears[0], &spec, &statistics).unwrap();
    assert_eq!(ours, block_solve::round_to_nearest(&linears[0].weight, 40, &spec));
}

#[test]
fn compensation_beats_rounding_on_the_same_clipped_grids() {
    let (linears, mut x) = problem(5, 16, 64, 200);
    for row in x.chunks_exact_mut(64) {
        // Every column moves with a dear one, so that there is something to compensate with.
        let common = row[4];
        row.iter_mut().enumerate().for_each(|(i, x)| *x += 0.1 * (i % 3 + 1) as f32 * common);
    }
    let statistics = statistics(&x, 64);
    let solve = |act_order, compensation| {
        let spec = QuantSpec { act_order, ..spec(3, Some(16), false) };
        awq(AwqOptions::default(), compensation, &linears[0], &spec, &statistics).unwrap()
    };
    let gptq = || Some(Gptq { measured: true, damping: 0.01, input_correction: 0.0, engine: Engine::Cpu });
    for act_order in [ActOrder::None, ActOrder::Static, ActOrder::Group] {
        let ((compensated, after), (rounded, before)) = (solve(act_order, gptq()), solve(act_order, None));
        assert_eq!(after.clipping, before.clipping);
        assert!(before.clipping.unwrap().clipped > 0);
        assert_eq!((&compensated.scales, &compensated.zeros), (&rounded.scales, &rounded.zeros));
        assert!(after.error < before.error, "{act_order:?}: {:?} {:?}", after.error, before.error);
    }
    // Groups that follow the order have grids of their own, clipped as well.
    let (matrix, report) = solve(ActOrder::Desc, gptq());
    assert!(matrix.group_index.windows(2).any(|pair| pair[0] > pair[1]));
    assert!(report.clipping.unwrap().clipped > 0);
}

#[test]
fn numbers_that_are_none_are_refused_by_name() {
    let (mut linears, x) = problem(1, 4, 16, 20);
    let (statistics, spec) = (statistics(&x, 16), spec(4, None, true));
    linears[0].weight[5] = f32::NAN;
    let error = awq(AwqOptions::default(), None, &linears[0], &spec, &statistics).unwrap_err().to_string();
    assert!(error.starts_with("model.layers.0.mlp.down_proj: its weights are not finite"), "{error}");
}

/// The logits after each of some words.
fn logits(folder: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let words: Vec<u32> = (0..40u32).map(|i| (i * i * 7 + i * 13 + 5) % 100).collect();
    checkpoint.head().unwrap().logits(&checkpoint.hidden_states(&words).unwrap())
}

#[test]
fn what_was_folded_reaches_the_checkpoint_in_every_family() {
    for (architecture, model_type, more) in [
        ("LlamaForCausalLM", "llama", json!({"attention_bias": true, "mlp_bias": true})),
        ("MistralForCausalLM", "mistral", json!({"sliding_window": 7})),
        ("Qwen2ForCausalLM", "qwen2", json!({})),
        ("Qwen3ForCausalLM", "qwen3", json!({"head_dim": 32, "num_key_value_heads": 1})),
        ("Gemma3ForCausalLM", "gemma3_text", json!({"head_dim": 32, "tie_word_embeddings": true})),
        ("Phi3ForCausalLM", "phi3", json!({"sliding_window": null})),
    ] {
        let model = SmallModel::new(config(architecture, model_type, &more), 5);
        let words: Vec<String> = (0..6000).map(|i| format!("w{}", (i * i * 31 + i / 7) % 100)).collect();
        fs::write(model.path().join("text.txt"), words.join(" ")).unwrap();
        let run = |arguments: &str, out: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
            command
                .current_dir(model.path())
                .arg(".")
                .args(arguments.split_whitespace())
                .args(["--out", out, "--json"]);
            command.args("--calibration text.txt --samples 16 --sequence-length 64 --group-size 32".split_whitespace());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{model_type}: {}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
        };
        // Eight bits change little, so that a factor that got lost on the way would show.
        let outcome = run("--method awq --bits 8 --awq-no-clip", "eight");
        let scaled = outcome["modules"].as_array().unwrap().iter().filter(|m| m["scaling"]["exponent"] != 0.0).count();
        assert!(scaled > 0 && outcome["proof"]["tensors"].as_u64().unwrap() > 0, "{model_type}: nothing was scaled");
        let path = |name: &str| model.path().join(name).to_string_lossy().into_owned();
        let (given, written) = (logits(&path(".")), logits(&path("eight")));
        let energy: f32 = given.iter().map(|v| v * v).sum();
        let lost: f32 = given.iter().zip(&written).map(|(a, b)| (a - b).powi(2)).sum();
        assert!(lost < 0.002 * energy, "{model_type}: {lost} of {energy}");
        for (sequence, method, objective) in [("module", "awq+gptq", "linears"), ("block", "awq", "block")] {
            let settings = format!("--sequence {sequence} --awq-objective {objective}");
            let outcome = run(&format!("--method {method} --bits 3 --asymmetric {settings}"), method);
            let totals = &outcome["totals"];
            assert!(
                totals["error"].as_f64() < totals["error_round_to_nearest"].as_f64(),
                "{model_type} {method}: {totals}"
            );
        }
    }
}

/// Attention with its norms around it, and the feed-forward network with its own (Gemma has both behind the linears too).
#[test]
fn the_block_objective_is_the_error_of_what_a_half_adds() {
    for (architecture, model_type, more) in [
        ("Qwen2ForCausalLM", "qwen2", json!({})),
        ("Gemma3ForCausalLM", "gemma3_text", json!({"head_dim": 32, "tie_word_embeddings": true})),
    ] {
        let model = SmallModel::new(config(architecture, model_type, &more), 7);
        let checkpoint = Checkpoint::open(model.path().to_str().unwrap()).unwrap();
        let window = |from: u32, count: u32| {
            let words: Vec<u32> = (from..from + count).map(|i| (i * i * 7 + i * 13 + 5) % 100).collect();
            checkpoint.block(0).unwrap().forward(checkpoint.embed(&words).unwrap(), &mut |_, _| {})
        };
        let sample = [window(0, 30), window(50, 7)];
        for (stage, stages) in [(Stage::Qkv, 2), (Stage::GateUp, 4)] {
            let rounded = |block: &Block| -> Vec<Vec<f32>> {
                let linears = block.linears(stage).iter();
                let spec = spec(2, None, false);
                linears.map(|l| block_solve::round_to_nearest(&l.weight, l.inputs, &spec).dequantize()).collect()
            };
            let after = |block: &Block, hidden: &Vec<f32>| {
                let mut activations = Activations { hidden: hidden.clone(), input: Vec::new() };
                block.begin(&mut activations);
                Stage::ALL[..stages].iter().for_each(|stage| block.advance(*stage, &mut activations));
                activations.hidden
            };
            let (mut block, mut changed) = (checkpoint.block(1).unwrap(), checkpoint.block(1).unwrap());
            let weights = rounded(&block);
            for (linear, weight) in changed.linears_mut(stage).iter_mut().zip(&weights) {
                linear.weight.clone_from(weight);
            }
            let lost = |hidden: &Vec<f32>| -> f64 {
                let both = after(&changed, hidden).into_iter().zip(after(&block, hidden));
                both.map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            let expected: f64 = sample.iter().map(lost).sum();
            let given: Vec<Vec<f32>> = block.linears(stage).iter().map(|linear| linear.weight.clone()).collect();
            let mut trial = Trial::new(&mut block, stage, &sample).unwrap();
            assert!(expected > 0.0);
            assert_eq!(trial.loss(weights), expected, "{model_type} {stage:?}");
            assert_eq!(trial.loss(given.clone()), 0.0, "{model_type} {stage:?}");
            assert!(block.linears(stage).iter().zip(given).all(|(linear, given)| linear.weight == given));
        }
        let mut block = checkpoint.block(1).unwrap();
        assert!(Trial::new(&mut block, Stage::Output, &sample).is_none());
        assert!(Trial::new(&mut block, Stage::Qkv, &[]).is_none());
    }
}

/// Mean negative log-likelihood of the demo model's held-out texts, in windows of 256 tokens.
fn held_out(model: &str) -> f64 {
    let checkpoint = Checkpoint::open(model).unwrap();
    let text = |name| model::demo::text(name).unwrap();
    let texts = [text("prose-heldout"), text("code-heldout")];
    let tokens: Vec<Vec<u32>> =
        texts.iter().map(|text| model::tokenizer::encode(&checkpoint.tokenizer, text, false).unwrap()).collect();
    let head = checkpoint.head().unwrap();
    let losses: Vec<f32> = tokens
        .iter()
        .flat_map(|tokens| tokens.chunks_exact(256))
        .flat_map(|window| {
            let hidden = checkpoint.hidden_states(&window[..255]).unwrap();
            head.negative_log_likelihood(&hidden, &window[1..])
        })
        .collect();
    losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64
}

#[test]
fn the_demo_model_loses_less_than_by_rounding_to_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let given = held_out("demo");
    for bits in [4, 3, 2] {
        let lost = |method: &str| {
            let out = folder.path().join(format!("{method}-{bits}")).to_string_lossy().into_owned();
            let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
            command.args(["demo", "--asymmetric", "--group-size", "64", "--method", method, "--out", &out]);
            let output = command.args(["--bits", &bits.to_string()]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            held_out(&out) - given
        };
        let (nearest, awq, both) = (lost("rtn"), lost("awq"), lost("awq+gptq"));
        assert!(awq < nearest, "{bits} bits: {awq} against {nearest}");
        assert!(both < awq.max(0.004), "{bits} bits: {both} against {awq}");
    }
}
