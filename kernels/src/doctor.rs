//! What the numerical loops find on this machine, and how fast they are on it.

use crate::{
    Compute,
    bfloat16::{self, Unit},
    cuda::{CudaError, Device},
};
use rayon::prelude::*;
use serde::Serialize;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Edge of the square product that is timed: its operands fit the second-level cache, so the figure is the processor's.
const EDGE: usize = 384;

/// What there is and what was chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Findings {
    /// Instruction set family.
    pub architecture: &'static str,
    /// Vector extensions granted by processor and system, of those that matter to dense products.
    pub extensions: Vec<&'static str>,
    /// The float32 product's instructions.
    pub product: &'static str,
    /// What multiplies bfloat16 numbers.
    pub bfloat16: &'static str,
    /// The other loops' instructions.
    pub loops: &'static str,
    /// Threads of the present pool.
    pub threads: usize,
    /// 10⁹ floating-point operations per second of a float32 product on one thread.
    pub gflops_one_thread: f64,
    /// The same on all threads together.
    pub gflops_all_threads: f64,
    /// Of a product of numbers rounded to bfloat16, on all threads together, where there are instructions for it.
    pub gflops_bfloat16_all_threads: Option<f64>,
    /// The graphics processors that can be used, or why there are none.
    pub cuda: String,
}

/// Looks, and times products for about a second: float32 on one thread and on all of the current pool, bfloat16 on all.
pub fn examine() -> Findings {
    let threads = rayon::current_num_threads();
    let extensions = extensions();
    let has = |names: &[&str]| names.iter().all(|name| extensions.contains(name));
    let third = Duration::from_millis(333);
    let all = |compute: Compute| (0..threads).into_par_iter().with_max_len(1).map(|_| gflops(compute, third)).sum();
    Findings {
        architecture: std::env::consts::ARCH,
        product: if has(&["avx512f"]) {
            "AVX-512"
        } else if has(&["avx2", "fma"]) {
            "AVX2"
        } else {
            "baseline of the architecture"
        },
        loops: if has(&["avx2", "fma"]) { "AVX2" } else { "baseline of the architecture" },
        extensions,
        threads,
        bfloat16: bfloat16::unit().map_or("no instructions", Unit::name),
        gflops_one_thread: gflops(Compute::F32, third),
        gflops_all_threads: all(Compute::F32),
        gflops_bfloat16_all_threads: bfloat16::unit().map(|_| all(Compute::Bf16)),
        cuda: cuda(),
    }
}

/// Every device by name, or why it can't be used.
fn cuda() -> String {
    let describe = |ordinal| match Device::open(ordinal) {
        Ok(device) => {
            let memory = device.memory().map_or(0, |(_, total)| total >> 30);
            format!("{}, sm_{}, {memory} GiB", device.name(), device.architecture())
        }
        Err(error) => error.to_string(),
    };
    match Device::count() {
        Ok(0) => CudaError::NoDevices.to_string(),
        Ok(count) => (0..count).map(describe).collect::<Vec<_>>().join("; "),
        Err(error) => error.to_string(),
    }
}

fn extensions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let granted = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("amx-bf16", bfloat16::unit() == Some(Unit::Amx)),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ];
        granted.into_iter().filter(|(_, granted)| *granted).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// The speed of a product on this thread, timed for `duration` at least.
fn gflops(compute: Compute, duration: Duration) -> f64 {
    let (x, w) = (vec![0.5; EDGE * EDGE], vec![0.25; EDGE * EDGE]);
    let mut out = vec![0.0; EDGE * EDGE];
    compute.linear(&x, &w, None, EDGE, &mut out);
    let (started, mut products) = (Instant::now(), 0);
    while started.elapsed() < duration {
        compute.linear(black_box(&x), &w, None, EDGE, black_box(&mut out));
        products += 1;
    }
    2e-9 * (products * EDGE.pow(3)) as f64 / started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_adds_to_the_speed_and_the_choice_follows_the_extensions() {
        let findings = crate::testing::with_threads(2, examine);
        assert_eq!(findings.threads, 2);
        assert!(findings.gflops_one_thread > 0.0 && findings.gflops_all_threads > 0.0);
        assert_eq!(findings.product == "AVX-512", findings.extensions.contains(&"avx512f"));
    }
}
