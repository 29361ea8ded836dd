//! One run of an operation, for counting its instructions: `instructions NAME`; without a name it lists them.
//!
//! `kernels/examples/instructions` (a script) runs each under callgrind and holds the counts against the committed ones.
//! Clocks are noisy where other work runs; counts are not.

#![allow(clippy::print_stdout, reason = "printing is this program's purpose")]

use kernels::{
    ActOrder, Compute, QuantSpec, ScaleSearch,
    activation::{Activation, gated},
    attention::Attention,
    block_solve::{ColumnPlan, compensate, round_to_nearest},
    cholesky::{Precision, inverse_upper_factor},
    compute::Prepared,
    gram,
    kquant::{BlockMatrix, BlockType, Weighting},
    log_probability::negative_log_likelihood,
    norm::rms_norm,
    pack,
    stored::{StoredMatrix, Weight},
};
use std::hint::black_box;

type Operation = (&'static str, fn());

const OPERATIONS: [Operation; 14] = [
    ("linear", || linear(64)),
    ("linear-few-rows", || linear(4)),
    ("linear-few-rows-4-bits", few_rows_stored),
    ("gram", || {
        let (x, mut sums) = (numbers(64 * INPUTS), vec![0.0; INPUTS * INPUTS]);
        measured(|| gram::accumulate(black_box(&mut sums), &x, INPUTS));
    }),
    ("attention", attention),
    ("log-probability", log_probability),
    ("gated-activation", || {
        let (mut gate, up) = (numbers(1 << 14), numbers(1 << 14));
        measured(|| gated(Activation::Silu, black_box(&mut gate), &up));
    }),
    ("norm", || {
        let (x, weight, mut out) = (numbers(1 << 14), numbers(256), vec![0.0; 1 << 14]);
        measured(|| rms_norm(&x, &weight, 0.0, 1e-6, black_box(&mut out)));
    }),
    ("inverse-factor", || {
        let h = gram_matrix();
        measured(|| drop(black_box(inverse_upper_factor(&h, INPUTS, Precision::Single))));
    }),
    ("compensate", solve),
    ("round-minmax", || round(ScaleSearch::MinMax)),
    ("round-mse", || round(ScaleSearch::Mse)),
    ("pack-3-bits", || measured(|| drop(black_box(pack::pack((0..1 << 14).map(|code| code as u8 & 7), 3))))),
    ("fit-q4-k", || {
        let weight = numbers(8 * 512);
        measured(|| drop(black_box(BlockMatrix::quantize(&weight, 512, BlockType::Q4K, Weighting::Plain))));
    }),
];

fn main() {
    // Everything on this thread, or callgrind would not see it inside `measured`.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global();
    pool.expect("no other pool was asked for");
    let name = std::env::args().nth(1);
    for (known, run) in OPERATIONS {
        match &name {
            None => println!("{known}"),
            Some(name) if name == known => run(),
            Some(_) => {}
        }
    }
}

/// What callgrind counts: `--toggle-collect` names this function.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
}

const INPUTS: usize = 192;
const OUTPUTS: usize = 128;

/// `count` reproducible numbers in [-1, 1).
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn linear(rows: usize) {
    let (x, w, mut out) = (numbers(rows * INPUTS), numbers(OUTPUTS * INPUTS), vec![0.0; rows * OUTPUTS]);
    measured(|| Compute::F32.linear(&x, &w, None, INPUTS, black_box(&mut out)));
}

fn few_rows_stored() {
    let (x, mut out) = (numbers(4 * INPUTS), vec![0.0; 4 * OUTPUTS]);
    let stored = StoredMatrix::from(&round_to_nearest(&numbers(OUTPUTS * INPUTS), INPUTS, &spec(ScaleSearch::MinMax)));
    measured(|| stored.linear(Compute::F32, &Prepared::default(), &x, None, INPUTS, black_box(&mut out)));
}

fn attention() {
    let shape = Attention { heads: 4, kv_heads: 2, head_width: 64, scale: 0.125, window: None };
    let (q, k) = (numbers(64 * 4 * 64), numbers(64 * 2 * 64));
    let mut out = vec![0.0; q.len()];
    measured(|| shape.causal(Compute::F32, &q, &k, &k, black_box(&mut out)));
}

fn log_probability() {
    let (x, head) = (numbers(32 * INPUTS), numbers(2000 * INPUTS));
    let targets: Vec<u32> = (0..32).collect();
    measured(|| drop(black_box(negative_log_likelihood(Compute::F32, &x, &head, INPUTS, &targets))));
}

fn gram_matrix() -> Vec<f32> {
    let mut h = vec![0.0; INPUTS * INPUTS];
    gram::accumulate(&mut h, &numbers(2 * INPUTS * INPUTS), INPUTS);
    (0..INPUTS).for_each(|i| h[i * INPUTS + i] *= 1.05);
    h
}

fn spec(scale_search: ScaleSearch) -> QuantSpec {
    let act_order = ActOrder::Static;
    QuantSpec { bits: 4, group_size: Some(64), symmetric: false, act_order, scale_search, smallest_zero: 1 }
}

fn round(scale_search: ScaleSearch) {
    let weight = numbers(OUTPUTS * INPUTS);
    measured(|| drop(black_box(round_to_nearest(&weight, INPUTS, &spec(scale_search)))));
}

fn solve() {
    let u = inverse_upper_factor(&gram_matrix(), INPUTS, Precision::Single).expect("a damped Gram matrix has a factor");
    let group_index = (0..INPUTS).map(|i| (i / 64) as u32).collect();
    let (weight, plan) =
        (numbers(OUTPUTS * INPUTS), ColumnPlan { order: (0..INPUTS).collect(), group_index, fixed_grids: true });
    measured(|| drop(black_box(compensate(&weight, &u, &plan, &spec(ScaleSearch::MinMax)))));
}
