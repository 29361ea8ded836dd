//! The operations on a graphics processor against those on the CPU.
//!
//! Runs on device 0 of whatever driver is loaded: a real one, or the stand-in of `tests/cuda-standin`. Without a driver
//! every test says loudly that it is skipped; with `CALIPER_CUDA_REQUIRED` set it fails instead.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like the tests")]

mod decoder;
mod device;
mod factor;
mod packing;
mod products;
mod solvers;

use kernels::cuda::{CudaError, Device};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{io::Write, sync::OnceLock};

/// The device under test; `None`, said loudly, where there is none.
fn device() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    DEVICE.get_or_init(open).as_ref()
}

fn open() -> Option<Device> {
    match Device::open(0) {
        Ok(device) => {
            say(&format!("tested on: {}, sm_{}", device.name(), device.architecture()));
            Some(device)
        }
        Err(error) => {
            assert!(std::env::var_os("CALIPER_CUDA_REQUIRED").is_none(), "a device is required: {error}");
            assert!(
                matches!(error, CudaError::NoDriver | CudaError::NoDevices | CudaError::Architecture { .. }),
                "there is a driver, but: {error}"
            );
            say(&format!("!! SKIPPED, nothing here is tested: {error}"));
            None
        }
    }
}

/// Writes past the test harness, which would keep it to itself.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).expect("standard error can be written");
}

/// `count` numbers uniform in [-1, 1).
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}
