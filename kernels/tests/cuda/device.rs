//! Opening a device and compiling for it.

use crate::device;
use kernels::cuda::{CudaError, Device, sources::Source};
use rayon::prelude::*;

#[test]
fn what_is_missing_is_said() {
    if device().is_none() {
        return;
    }
    let count = Device::count().unwrap();
    let error = Device::open(count).unwrap_err();
    assert!(matches!(error, CudaError::NoSuchDevice { ordinal, count: found } if (ordinal, found) == (count, count)));
    assert_eq!(error.to_string(), format!("there is no CUDA device {count}: the driver finds {count}, counted from 0"));
}

#[test]
fn too_little_memory_is_said_with_the_amount() {
    let Some(device) = device() else { return };
    let (_, total) = device.memory().unwrap();
    let error = device.require(total + 1, "everything").unwrap_err().to_string();
    assert!(error.starts_with(&format!("everything needs {} MiB", (total + 1).div_ceil(1 << 20))), "{error}");
    assert!(device.zeros::<f32>(1 << 50).unwrap_err().to_string().contains("MiB of device memory"));
}

#[test]
fn every_source_compiles_and_a_broken_one_gives_the_compilers_words() {
    let Some(device) = device() else { return };
    device.compile_all().unwrap();
    let broken = Source::new("broken.cu", "extern \"C\" __global__ void broken(float* x) { x[0] = not_declared; }");
    let error = device.try_compile(&broken).unwrap_err().to_string();
    assert!(error.contains("broken.cu") && error.contains("not_declared"), "{error}");
}

#[test]
fn numbers_come_back_as_they_went() {
    let Some(device) = device() else { return };
    let numbers: Vec<u32> = (0..1000).collect();
    assert_eq!(device.download(&device.upload(&numbers).unwrap()).unwrap(), numbers);
    assert_eq!(device.download(&device.zeros::<u32>(3).unwrap()).unwrap(), [0; 3]);
    assert_eq!(device.download(&device.upload::<u32>(&[]).unwrap()).unwrap(), [0u32; 0]);
}

/// More pieces than there are, so that each is filled again while copies of others are under way.
#[test]
fn copies_beside_the_work_are_there_when_they_are_used() {
    let Some(device) = device() else { return };
    let numbers: Vec<f32> = (0..(11 << 20)).map(|number| number as f32).collect();
    let long = device.upload_beside(&numbers).unwrap();
    let short = device.upload_beside(&[1.0, -2.0]).unwrap();
    let mut sum = device.upload(&[0.5f32, 0.25]).unwrap();
    device.add(&mut sum, &short).unwrap();
    assert_eq!(device.download(&sum).unwrap(), [1.5, -1.75]);
    let twice = device.duplicate(&long).unwrap();
    assert!(device.download(&twice).unwrap() == numbers && device.download_large(&twice).unwrap() == numbers);
    assert!(device.download_large(&device.zeros(0).unwrap()).unwrap().is_empty());
    drop(device.upload_beside(&numbers[..5]).unwrap());
    let (free, total) = device.memory().unwrap();
    assert!(free <= total);
}

/// Copies large enough for several pieces and threads each, asked for by many tasks at once: each gets its own numbers.
#[test]
fn tasks_of_a_pool_copy_side_by_side() {
    let Some(device) = device() else { return };
    let numbers: Vec<f32> = (0..(3 << 20)).map(|number| number as f32).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(8).build().unwrap();
    pool.install(|| {
        (0..64).into_par_iter().for_each(|first| {
            let there = device.upload_beside(&numbers[first..]).unwrap();
            assert!(device.download_large(&there).unwrap() == numbers[first..]);
        });
    });
}
