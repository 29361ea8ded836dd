//! Speed of the heavy operations on one thread: `cargo bench -p kernels [-- WORD]`, WORD being part of a name.
//!
//! Rates are GFLOP/s, with the share of what this processor reached in a loop of nothing but float32 fused
//! multiply-additions on registers, timed in this process before anything else. bfloat16 products may exceed it.

#![allow(missing_docs, unsafe_code, clippy::print_stderr, reason = "a benchmark, which times instructions and prints")]

mod ceiling;

use criterion::{
    BenchmarkGroup, Criterion, Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use kernels::{
    ActOrder, Compute, QuantSpec, ScaleSearch,
    activation::{Activation, gated},
    attention::Attention,
    block_solve::{ColumnPlan, compensate, round_to_nearest},
    cholesky::{Precision, inverse_upper_factor},
    compute::Prepared,
    few_rows, gram,
    kquant::{BlockMatrix, BlockType, Weighting},
    log_probability::negative_log_likelihood,
    norm::rms_norm,
    stored::{StoredMatrix, Weight},
};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("no other pool was asked for");
    let ceiling = ceiling::gflops(Duration::from_millis(500));
    eprintln!("ceiling: {ceiling:.0} GFLOP/s on one thread (float32, registers only)");
    let criterion = Criterion::default().with_measurement(Rate(Formatter { ceiling }));
    let mut criterion = criterion.sample_size(10).measurement_time(Duration::from_secs(2)).configure_from_args();
    dense(&mut criterion);
    stored(&mut criterion);
    decoder(&mut criterion);
    solvers(&mut criterion);
    criterion.final_summary();
}

/// Wall time, throughput told as a rate and a share.
struct Rate(Formatter);

struct Formatter {
    ceiling: f64,
}

impl Measurement for Rate {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }

    fn end(&self, started: Instant) -> Duration {
        WallTime.end(started)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }

    fn zero(&self) -> Duration {
        WallTime.zero()
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &self.0
    }
}

impl ValueFormatter for Formatter {
    fn format_throughput(&self, throughput: &Throughput, nanoseconds: f64) -> String {
        match throughput {
            Throughput::Elements(operations) => {
                let rate = *operations as f64 / nanoseconds;
                format!("{rate:.1} GFLOP/s, {:.0} %", 100.0 * rate / self.ceiling)
            }
            other => WallTime.formatter().format_throughput(other, nanoseconds),
        }
    }

    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_throughputs(typical, throughput, values)
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

type Group<'a> = BenchmarkGroup<'a, Rate>;

/// One operation of so many floating-point operations.
fn rated(group: &mut Group, name: &str, operations: usize, mut work: impl FnMut()) {
    group.throughput(Throughput::Elements(operations as u64));
    group.bench_function(name, |bencher| bencher.iter(&mut work));
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

/// Shapes of both real models, and of a larger one: rows, inputs, outputs.
const SHAPES: [[usize; 3]; 5] =
    [[2048, 576, 576], [2048, 576, 1536], [2048, 896, 4864], [2048, 4864, 896], [2048, 2048, 8192]];

fn dense(criterion: &mut Criterion<Rate>) {
    let mut group = criterion.benchmark_group("linear");
    for [rows, inputs, outputs] in SHAPES {
        let (x, w, mut out) = (numbers(rows * inputs), numbers(outputs * inputs), vec![0.0; rows * outputs]);
        for compute in [Compute::F32, Compute::Bf16x3, Compute::Bf16] {
            let prepared = Prepared::default();
            rated(&mut group, &format!("{compute} {rows}x{inputs}x{outputs}"), 2 * rows * inputs * outputs, || {
                compute.linear_again(&prepared, &x, &w, None, inputs, black_box(&mut out));
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("gram");
    for width in [576, 896, 1536, 4864] {
        let (x, mut sums) = (numbers(2048 * width), vec![0.0; width * width]);
        for compute in [Compute::F32, Compute::Bf16x3] {
            rated(&mut group, &format!("2048x{width}/{compute}"), 2048 * width * width, || {
                gram::accumulate_by(compute, black_box(&mut sums), &x, width);
            });
        }
    }
    group.finish();
}

/// What a step of generation multiplies: few rows with weights in float32, and as they are stored.
fn stored(criterion: &mut Criterion<Rate>) {
    let mut group = criterion.benchmark_group("few rows");
    let (inputs, outputs) = (1024, 4864);
    let w = numbers(outputs * inputs);
    let blocks = |kind| StoredMatrix::blocks(BlockMatrix::quantize(&w, inputs, kind, Weighting::Plain));
    let integers = |bits| StoredMatrix::from(&round_to_nearest(&w, inputs, &spec(bits, ScaleSearch::MinMax)));
    let stored = [
        ("float16", StoredMatrix::float16(w.iter().map(|w| half::f16::from_f32(*w)).collect(), inputs)),
        ("2 bits", integers(2)),
        ("4 bits", integers(4)),
        ("8 bits", integers(8)),
    ];
    let stored = stored.into_iter().chain(BlockType::ALL.map(|kind| (kind.name(), blocks(kind)))).collect::<Vec<_>>();
    for rows in [1, 4, 16, 32] {
        let (x, mut out) = (numbers(rows * inputs), vec![0.0; rows * outputs]);
        let operations = 2 * rows * inputs * outputs;
        rated(&mut group, &format!("{rows}x{inputs}x{outputs} float32"), operations, || {
            few_rows::linear(&x, &w, None, inputs, black_box(&mut out));
        });
        for (name, stored) in &stored {
            rated(&mut group, &format!("{rows}x{inputs}x{outputs} {name}"), operations, || {
                stored.linear(Compute::F32, &Prepared::default(), &x, None, inputs, black_box(&mut out));
            });
        }
    }
    group.finish();
}

fn decoder(criterion: &mut Criterion<Rate>) {
    let mut group = criterion.benchmark_group("attention");
    for (heads, kv_heads, tokens) in [(9, 3, 512), (9, 3, 2048), (14, 2, 2048)] {
        let shape = Attention { heads, kv_heads, head_width: 64, scale: 0.125, window: None };
        let (q, k) = (numbers(tokens * heads * 64), numbers(tokens * kv_heads * 64));
        let mut out = vec![0.0; q.len()];
        // Two products, of which the causal half is computed.
        for compute in [Compute::F32, Compute::Bf16x3, Compute::Bf16] {
            let name = format!("{compute} {tokens} tokens, {heads}/{kv_heads} heads of 64");
            rated(&mut group, &name, 2 * heads * 64 * tokens * tokens, || {
                shape.causal(compute, &q, &k, &k, black_box(&mut out));
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("log probability");
    for (rows, inputs, vocabulary) in [(2048, 576, 49_152), (512, 896, 151_936)] {
        let (x, head) = (numbers(rows * inputs), numbers(vocabulary * inputs));
        let targets: Vec<u32> = (0..rows as u32).collect();
        rated(&mut group, &format!("{rows}x{inputs}x{vocabulary}"), 2 * rows * inputs * vocabulary, || {
            black_box(negative_log_likelihood(Compute::F32, &x, &head, inputs, &targets));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("elementwise");
    let (mut gate, up, mut out, weight) = (numbers(1 << 20), numbers(1 << 20), vec![0.0; 1 << 20], numbers(1024));
    group.throughput(Throughput::Bytes(3 << 22));
    for which in [Activation::Silu, Activation::GeluTanh] {
        group.bench_function(format!("{which:?}, 1 Mi"), |bencher| {
            bencher.iter(|| gated(which, black_box(&mut gate), &up));
        });
    }
    group.throughput(Throughput::Bytes(2 << 22));
    group.bench_function("norm 1024x1024", |bencher| {
        bencher.iter(|| rms_norm(&up, &weight, 0.0, 1e-6, black_box(&mut out)));
    });
    group.finish();
}

fn spec(bits: u32, scale_search: ScaleSearch) -> QuantSpec {
    let act_order = ActOrder::Static;
    QuantSpec { bits, group_size: Some(64), symmetric: false, act_order, scale_search, smallest_zero: 1 }
}

fn solvers(criterion: &mut Criterion<Rate>) {
    for (outputs, inputs) in [(576, 1536), (896, 4864)] {
        let (x, weight) = (numbers(2 * inputs * inputs), numbers(outputs * inputs));
        let mut h = vec![0.0; inputs * inputs];
        gram::accumulate(&mut h, &x, inputs);
        (0..inputs).for_each(|i| h[i * inputs + i] *= 1.05);
        let mut group = criterion.benchmark_group("cholesky");
        for precision in [Precision::Single, Precision::Double] {
            rated(&mut group, &format!("{inputs} {precision:?}"), 2 * inputs.pow(3) / 3, || {
                black_box(inverse_upper_factor(&h, inputs, precision)).ok();
            });
        }
        group.finish();
        let u = inverse_upper_factor(&h, inputs, Precision::Double).expect("a damped Gram matrix has a factor");
        let mut group = criterion.benchmark_group("solve");
        for fixed_grids in [true, false] {
            let group_index = (0..inputs).map(|i| (i / 64) as u32).collect();
            let plan = ColumnPlan { order: (0..inputs).collect(), group_index, fixed_grids };
            let name = format!("compensate {outputs}x{inputs}, grids fixed: {fixed_grids}");
            rated(&mut group, &name, outputs * inputs * inputs, || {
                black_box(compensate(&weight, &u, &plan, &spec(4, ScaleSearch::MinMax)));
            });
        }
        group.throughput(Throughput::Bytes(4 * weight.len() as u64));
        for scale_search in [ScaleSearch::MinMax, ScaleSearch::Mse] {
            group.bench_function(format!("round {outputs}x{inputs} {scale_search:?}"), |bencher| {
                bencher.iter(|| round_to_nearest(&weight, inputs, &spec(4, scale_search)));
            });
        }
        group.finish();
    }
}
