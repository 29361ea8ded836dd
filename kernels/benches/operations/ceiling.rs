//! What one thread can compute at most: fused multiply-additions on registers and nothing else.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Independent sums: more than latency times issue width of any processor that this was written for.
const SUMS: usize = 16;

/// 10⁹ float32 operations per second by the widest instructions that this processor has, timed for `duration` at least.
pub(crate) fn gflops(duration: Duration) -> f64 {
    let (lanes, work) = widest();
    let (rounds, started, mut calls) = (100_000, Instant::now(), 0);
    while started.elapsed() < duration {
        black_box(work(rounds, black_box(0.5)));
        calls += 1;
    }
    2e-9 * (calls * rounds * SUMS * lanes) as f64 / started.elapsed().as_secs_f64()
}

/// Numbers to an instruction, and a loop of so many rounds over all sums.
fn widest() -> (usize, fn(usize, f32) -> f32) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor was just found to have the features that the function is compiled for.
            return (16, |rounds, x| unsafe { avx512(rounds, x) });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return (8, |rounds, x| unsafe { avx2(rounds, x) });
        }
    }
    (4, portable)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(rounds: usize, x: f32) -> f32 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (x, mut sums) = (_mm512_set1_ps(x), [_mm512_set1_ps(x); SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, x, x);
        }
    }
    sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: usize, x: f32) -> f32 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (x, mut sums) = (_mm256_set1_ps(x), [_mm256_set1_ps(x); SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, x, x);
        }
    }
    sums.iter().map(|sum| _mm256_cvtss_f32(*sum)).sum()
}

fn portable(rounds: usize, x: f32) -> f32 {
    let mut sums = [[x; 4]; SUMS];
    for _ in 0..rounds {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * x + x;
        }
    }
    sums.as_flattened().iter().sum()
}
