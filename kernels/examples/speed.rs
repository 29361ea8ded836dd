//! Speed of the heavy operations: `cargo run --release -p kernels --example speed [WORD]` runs those whose name contains
//! the word. Median of a few runs; the rate is per second of processor time (all threads together), which a busy machine
//! disturbs less than the wall clock.
#![allow(clippy::print_stdout, reason = "printing is this program's purpose")]

use kernels::attention::Attention;
use kernels::block_solve::{ColumnPlan, compensate, round_to_nearest};
use kernels::cholesky::{Precision, inverse_upper_factor};
use kernels::{ActOrder, Compute, QuantSpec, ScaleSearch, activation, gemm, gram, log_probability, norm};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let report = |name: &str, giga: f64, unit: &str, work: &mut dyn FnMut()| {
        if name.contains(&wanted) {
            let [wall, processor] = median_seconds(work);
            let (wall_ms, processor_ms, rate) = (wall * 1e3, processor * 1e3, giga / processor);
            println!("{name:44} {wall_ms:9.2} ms wall {processor_ms:9.2} ms cpu {rate:8.3} {unit}");
        }
    };
    products(&report);
    layers(&report);
    solvers(&report);
}

type Report<'a> = dyn Fn(&str, f64, &str, &mut dyn FnMut()) + 'a;

/// Medians of wall and processor time of one run; short ones are timed in batches, as processor time ticks slowly.
fn median_seconds(work: &mut dyn FnMut()) -> [f64; 2] {
    let start = Instant::now();
    work();
    let batch = (0.1 / start.elapsed().as_secs_f64()).ceil().max(1.0);
    let mut runs = Vec::new();
    while runs.len() < 3 || (runs.len() < 15 && start.elapsed().as_secs_f64() < 2.0) {
        let (start, processor) = (Instant::now(), processor_seconds());
        (0..batch as usize).for_each(|_| work());
        let wall = start.elapsed().as_secs_f64();
        let processor = processor.zip(processor_seconds()).map_or(wall, |(before, after)| after - before);
        runs.push([wall / batch, processor / batch]);
    }
    [0, 1].map(|which| {
        let mut seconds: Vec<f64> = runs.iter().map(|run| run[which]).collect();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    })
}

/// Time that this process's threads have run so far, where the system tells (Linux).
fn processor_seconds() -> Option<f64> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    Some(nanoseconds.sum::<f64>() * 1e-9)
}

/// `count` reproducible numbers in [-1, 1).
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn products(report: &Report) {
    for (rows, inputs, outputs) in [(512, 576, 1536), (2048, 896, 4864), (2048, 4864, 896), (2048, 576, 49152)] {
        let (x, w) = (numbers(rows * inputs), numbers(outputs * inputs));
        let mut out = vec![0.0; rows * outputs];
        let giga = 2e-9 * (rows * inputs * outputs) as f64;
        for compute in [Compute::F32, Compute::Bf16x3, Compute::Bf16] {
            report(&format!("linear {compute} {rows}x{inputs}x{outputs}"), giga, "GFLOP/s", &mut || {
                compute.linear(&x, &w, None, inputs, black_box(&mut out));
            });
        }
    }
    for (rows, inputs, outputs) in [(1, 896, 4864), (4, 896, 4864), (16, 896, 4864), (16, 4864, 896), (16, 576, 49152)]
    {
        let (x, w) = (numbers(rows * inputs), numbers(outputs * inputs));
        let mut out = vec![0.0; rows * outputs];
        let giga = 2e-9 * (rows * inputs * outputs) as f64;
        report(&format!("few rows {rows}x{inputs}x{outputs}"), giga, "GFLOP/s", &mut || {
            gemm::linear_few_rows(&x, &w, None, inputs, black_box(&mut out));
        });
    }
    for (rows, width) in [(2048, 576), (2048, 896), (2048, 1536), (2048, 4864), (512, 4864)] {
        let (x, mut sums) = (numbers(rows * width), vec![0.0; width * width]);
        let giga = 1e-9 * (rows * width * width) as f64;
        report(&format!("gram {rows}x{width}"), giga, "GFLOP/s (k n^2)", &mut || {
            gram::accumulate(black_box(&mut sums), &x, width);
        });
    }
}

fn layers(report: &Report) {
    for (heads, kv_heads, head_width, tokens) in
        [(9, 3, 64, 2048), (9, 3, 64, 512), (14, 2, 64, 2048), (8, 8, 128, 1024)]
    {
        let shape = Attention { heads, kv_heads, head_width, scale: 0.125, window: None };
        let q = numbers(tokens * heads * head_width);
        let (k, mut out) = (numbers(tokens * kv_heads * head_width), vec![0.0; q.len()]);
        let giga = 2e-9 * (heads * head_width * tokens * tokens) as f64;
        let name = format!("attention {tokens} tokens, {heads}/{kv_heads} heads of {head_width}");
        report(&name, giga, "GFLOP/s (causal half)", &mut || shape.causal(&q, &k, &k, black_box(&mut out)));
    }
    for (rows, inputs, vocabulary) in [(2048, 576, 49152), (512, 896, 151_936)] {
        let (x, head) = (numbers(rows * inputs), numbers(vocabulary * inputs));
        let targets: Vec<u32> = (0..rows as u32).collect();
        let giga = 2e-9 * (rows * inputs * vocabulary) as f64;
        report(&format!("log probability {rows}x{inputs}x{vocabulary}"), giga, "GFLOP/s", &mut || {
            black_box(log_probability::negative_log_likelihood(Compute::F32, &x, &head, inputs, &targets));
        });
    }
    let (mut gate, up) = (numbers(1 << 20), numbers(1 << 20));
    let given = gate.clone();
    for which in [activation::Activation::Silu, activation::Activation::GeluTanh] {
        report(&format!("activation {which:?}, 1 Mi"), 1.048e-3, "G elements/s", &mut || {
            gate.copy_from_slice(&given);
            activation::gated(which, black_box(&mut gate), &up);
        });
    }
    let (weight, mut out) = (numbers(1024), vec![0.0; 1 << 20]);
    report("norm 1024x1024", 1.048e-3, "G elements/s", &mut || norm::rms_norm(&up, &weight, 0.0, 1e-6, &mut out));
}

fn solvers(report: &Report) {
    for (outputs, inputs) in [(576, 576), (576, 1536), (896, 4864)] {
        let x = numbers(2 * inputs * inputs);
        let mut h = vec![0.0; inputs * inputs];
        gram::accumulate(&mut h, &x, inputs);
        (0..inputs).for_each(|i| h[i * inputs + i] *= 1.05);
        for precision in [Precision::Single, Precision::Double] {
            let giga = 2e-9 / 3.0 * (inputs as f64).powi(3);
            report(&format!("cholesky {inputs} {precision:?}"), giga, "GFLOP/s", &mut || {
                black_box(inverse_upper_factor(&h, inputs, precision)).ok();
            });
        }
        solve(report, outputs, inputs, &h);
    }
}

fn solve(report: &Report, outputs: usize, inputs: usize, h: &[f32]) {
    let mut spec = QuantSpec {
        bits: 4,
        group_size: Some(64),
        symmetric: false,
        act_order: ActOrder::Static,
        scale_search: ScaleSearch::MinMax,
        smallest_zero: 1,
    };
    let weight = numbers(outputs * inputs);
    let giga = 1e-9 * (outputs * inputs * inputs) as f64;
    let Ok(u) = inverse_upper_factor(h, inputs, Precision::Single) else { return };
    for fixed_grids in [true, false] {
        let group_index = (0..inputs).map(|i| (i / 64) as u32).collect();
        let plan = ColumnPlan { order: (0..inputs).collect(), group_index, fixed_grids };
        let name = format!("compensate {outputs}x{inputs}, fixed {fixed_grids}");
        report(&name, giga, "GFLOP/s", &mut || drop(black_box(compensate(&weight, &u, &plan, &spec))));
    }
    for scale_search in [ScaleSearch::MinMax, ScaleSearch::Mse] {
        spec.scale_search = scale_search;
        let name = format!("round {outputs}x{inputs} {scale_search:?}");
        let giga = 1e-9 * weight.len() as f64;
        report(&name, giga, "G weights/s", &mut || drop(black_box(round_to_nearest(&weight, inputs, &spec))));
    }
}
