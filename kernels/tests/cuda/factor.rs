//! Factors of Hessians, and what is found by them.

use crate::{device, random};
use kernels::{
    ActOrder, QuantSpec, Resident, ScaleSearch,
    cholesky::{Damped, NotPositiveDefinite, Precision},
    clip,
    cuda::{Device, DeviceFactor},
    factor::inverse_upper_factor,
};
use std::sync::Arc;

/// A Gram matrix of `3 width` rows of drawn numbers.
fn gram(width: usize, seed: u64) -> Vec<f32> {
    let x = random(3 * width * width, seed);
    let mut gram = vec![0.0f32; width * width];
    for row in x.chunks_exact(width) {
        for (at, entry) in gram.iter_mut().enumerate() {
            *entry += row[at / width] * row[at % width];
        }
    }
    gram
}

fn order(width: usize, seed: u64) -> Vec<usize> {
    let keys = random(width, seed);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
    order
}

/// `UᵀU H` is the identity within what `cholesky.rs` derives for the CPU's, on a Hessian whose condition is below 100; the
/// same entries as the CPU's to within that.
#[test]
fn factors_are_the_cpus_but_for_rounding() {
    let Some(device) = device() else { return };
    for width in [1, 2, 31, 33, 64, 130] {
        let (gram, order) = (gram(width, 1), order(width, 2));
        let scale = 2.0 / (3.0 * width as f32);
        let diagonal: Vec<f32> = order.iter().map(|&column| scale * gram[column * (width + 1)] + 0.1).collect();
        let damped = Damped { order: &order, scale, diagonal: &diagonal };
        let there = device.upload(&gram).unwrap();
        for (precision, unit) in [(Precision::Single, 2f32.powi(-24)), (Precision::Double, 2f32.powi(-50))] {
            let DeviceFactor { upper, pivots } =
                device.inverse_upper_factor(&there, &damped, precision).unwrap().unwrap();
            let got = device.download(&upper).unwrap();
            let host = inverse_upper_factor(&Resident::Host(gram[..].into()), &damped, precision).unwrap().unwrap();
            let expected = host.upper.to_host().unwrap();
            let largest = expected.iter().fold(0.0f32, |most, entry| most.max(entry.abs()));
            let bound = (100.0 * width as f32 * unit + 2f32.powi(-23)) * largest;
            for (at, (got, expected)) in got.iter().zip(expected.iter()).enumerate() {
                assert!((got - expected).abs() <= bound, "{width} {precision:?} at {at}: {got} {expected}");
                assert!(at % width >= at / width || *got == 0.0, "below the diagonal");
            }
            let on_diagonal: Vec<f32> = got.iter().step_by(width + 1).copied().collect();
            assert_eq!(pivots, on_diagonal);
        }
    }
}

#[test]
fn what_is_not_positive_definite_is_refused() {
    let Some(device) = device() else { return };
    let (width, order) = (40, order(40, 1));
    for (at, value) in [(0, -1.0), (20, 0.0), (39, f32::NAN), (5, f32::INFINITY), (7, 1e-38)] {
        let gram = device.upload(&gram(width, 3)).unwrap();
        let mut diagonal = vec![50.0; width];
        diagonal[at] = value;
        let damped = Damped { order: &order, scale: 1.0, diagonal: &diagonal };
        for precision in [Precision::Single, Precision::Double] {
            let found = device.inverse_upper_factor(&gram, &damped, precision).unwrap();
            assert!(matches!(found, Err(NotPositiveDefinite)), "{value} {precision:?}");
        }
    }
}

/// Singular in float32: two columns that are nearly equal.
#[test]
fn double_precision_rescues_what_single_cannot_factor() {
    let Some(device) = device() else { return };
    let close = 1.0 - f32::EPSILON / 2.0;
    let gram = device.upload(&[1.0, close, close, 1.0]).unwrap();
    let damped = Damped { order: &[0, 1], scale: 1.0, diagonal: &[1.0, 1.0] };
    let DeviceFactor { upper, .. } = device.inverse_upper_factor(&gram, &damped, Precision::Double).unwrap().unwrap();
    assert!(device.download(&upper).unwrap().iter().all(|entry| entry.is_finite()));
}

/// Whole rows are compared on the device, in sums of another order: a row may be decided otherwise only where both choices
/// cost the same but for rounding, which none here does.
#[test]
fn clipping_decides_as_on_the_cpu() {
    if device().is_none() {
        return;
    }
    let own = Arc::new(Device::open(0).unwrap());
    let (rows, width) = (150, 72);
    let spec = QuantSpec {
        bits: 3,
        group_size: Some(16),
        symmetric: false,
        act_order: ActOrder::None,
        scale_search: ScaleSearch::MinMax,
        smallest_zero: 0,
    };
    let weight: Vec<f32> = random(rows * width, 5).iter().map(|w| w * w * w).collect();
    let groups: Vec<u32> = (0..width).map(|column| (column / 16) as u32).collect();
    let gram = gram(width, 6);
    let numbers = own.upload(&gram).unwrap();
    let there = Resident::Device { device: own, numbers, host: Some(&gram) };
    let found = clip::search(&weight, &there, &groups, &spec).unwrap();
    let expected = clip::search(&weight, &Resident::Host(gram[..].into()), &groups, &spec).unwrap();
    assert!(found.keep.iter().any(|keep| *keep < 1.0));
    assert_eq!(found, expected);
}
