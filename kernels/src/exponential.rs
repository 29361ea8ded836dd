//! `exp` and a power as polynomials that vectorize, for softmax, activations and the scale search.
//!
//! `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)` and `r = x - n ln 2`, `|r| <= ln(2) / 2`; `exp(r)` by its Taylor series
//! up to `r^7`, whose rest is below 6e-9. Relative error at most 2.5 units of 2^-24 (measured over the whole range),
//! where the result is a normal number; subnormal results are off by at most one of their steps.

use crate::dispatch::vectorized;
use std::ops::AddAssign;

/// Lanes of a sum: two AVX2 registers.
pub(crate) const LANES: usize = 16;

/// 1.5 * 2^23: adding it rounds a float32 below 2^22 to an integer, which is then in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// `exp(x)`; 0 below -104, infinite above 88.73, not-a-number stays so.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = std::f32::consts::LN_2;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - LN2_HIGH as f64) as f32;
    // Comparisons in this form keep a not-a-number.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = r.mul_add(sum, coefficient);
    }
    // 2^n as a product of two, so that neither leaves the normal numbers.
    let n = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed();
    let half = n >> 1;
    sum * power_of_two(half) * power_of_two(n - half)
}

/// `2^n` for `-126 <= n <= 127`.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
}

/// `exp(x)` in float64 for `x` up to 709, relative error at most 2 units of 2^-53 (measured); 0 below -708, not-a-number
/// stays so. As [`exp`], with the series up to `r^13`, whose rest is below 5e-18.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
pub(crate) fn exp64(x: f64) -> f64 {
    /// 1.5 * 2^52, as [`ROUNDER`].
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    /// `ln 2` to 32 bits, so that its products with `n` are exact, and the rest.
    const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    /// `1 / k!`, from the highest power down.
    const SERIES: [f64; 12] = [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
    ];
    // Comparisons in this form keep a not-a-number.
    let inside = if x < -708.0 { -708.0 } else { x };
    let shifted = inside.mul_add(std::f64::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, inside));
    let mut sum = 1.0 / 6_227_020_800.0;
    for coefficient in SERIES {
        sum = r.mul_add(sum, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(1023);
    let result = r.mul_add(sum, 1.0) * f64::from_bits(exponent << 52);
    if x < -708.0 { 0.0 } else { result }
}

/// `ln(x)` for a positive normal number, relative error of `exp` of it below 1e-5: `x = 2^n m` with `m` around 1, and
/// `ln(m) = 2 artanh((m - 1) / (m + 1))` by its series. At zero it gives about -88.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
fn ln(x: f32) -> f32 {
    /// The bits of `sqrt(1/2)`, the smallest `m`.
    const LOWEST: u32 = 0x3f35_04f3;
    let bits = x.to_bits();
    let n = bits.wrapping_sub(LOWEST).cast_signed() >> 23;
    let m = f32::from_bits(bits.wrapping_sub((n << 23).cast_unsigned()));
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let series = square.mul_add(square.mul_add(square.mul_add(2.0 / 7.0, 2.0 / 5.0), 2.0 / 3.0), 2.0);
    (n as f32).mul_add(std::f32::consts::LN_2, s * series)
}

/// `|x|^2.4`, relative error below 1e-4 where `x^2` is a normal number; nearly zero below.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
pub(crate) fn power_2_4(x: f32) -> f32 {
    exp(1.2 * ln(x * x))
}

/// The sum of the lanes, halves first.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller's loop")]
#[inline(always)]
pub(crate) fn sum_lanes<T: Copy + AddAssign>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

vectorized! {
    /// The largest number, -infinity for none; a not-a-number is passed over.
    pub(crate) fn largest(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
    }

    /// `x = exp(x - shift)` in place; returns the sum.
    pub(crate) fn exp_and_sum(x: &mut [f32], shift: f32) -> f32 {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = exp(*x - shift);
                *lane += *x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *x = exp(*x - shift);
            *lane += *x;
        }
        sum_lanes(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    vectorized! {
        fn exp_all(x: &mut [f32]) {
            for x in x {
                *x = exp(*x);
            }
        }
    }

    #[test]
    fn exp_is_close_over_the_whole_range() {
        let x: Vec<f32> = (-1_060_000..=900_000).map(|i| i as f32 * 1e-4).collect();
        let mut y = x.clone();
        exp_all(&mut y);
        let mut worst = 0.0f64;
        for (x, y) in x.iter().zip(&y) {
            let exact = f64::from(*x).exp();
            if exact > f64::from(f32::MAX) {
                assert!(*y == f32::INFINITY || *y == f32::MAX, "exp({x}) = {y}");
            } else if exact >= f64::from(f32::MIN_POSITIVE) {
                worst = worst.max((f64::from(*y) / exact - 1.0).abs() * 2f64.powi(24));
            } else {
                assert!((f64::from(*y) - exact).abs() <= 1.5e-45, "exp({x}) = {y}");
            }
            assert_eq!(y.to_bits(), exp(*x).to_bits(), "both versions give the same bits");
        }
        assert!(worst <= 2.5, "relative error {worst} units of 2^-24");
    }

    vectorized! {
        fn exp64_all(x: &mut [f64]) {
            for x in x {
                *x = exp64(*x);
            }
        }
    }

    #[test]
    fn exp64_is_close_over_the_whole_range() {
        let x: Vec<f64> = (-7_080_000..=7_090_000).map(|i| f64::from(i) * 1e-4).collect();
        let mut y = x.clone();
        exp64_all(&mut y);
        let mut worst = 0.0f64;
        for (x, y) in x.iter().zip(&y) {
            worst = worst.max((y / x.exp() - 1.0).abs() * 2f64.powi(53));
            assert_eq!(y.to_bits(), exp64(*x).to_bits(), "every version gives the same bits");
        }
        // The reference itself errs by up to one.
        assert!(worst <= 3.0, "relative error {worst} units of 2^-53");
        let mut ends = [0.0, -0.0, -708.1, f64::NEG_INFINITY, f64::NAN, 1e-300];
        exp64_all(&mut ends);
        assert_eq!((ends[0], ends[1], ends[2], ends[3], ends[5]), (1.0, 1.0, 0.0, 0.0, 1.0));
        assert!(ends[4].is_nan());
    }

    #[test]
    fn exp_at_its_ends() {
        let mut x =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::NAN, 88.72, -87.33, -200.0, 1e-30];
        exp_all(&mut x);
        assert_eq!((x[0], x[1], x[2], x[3], x[4], x[5]), (1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0));
        assert!(x[6].is_nan());
        assert!(x[7].is_finite() && x[8] >= f32::MIN_POSITIVE);
        assert_eq!((x[9], x[10]), (0.0, 1.0));
    }

    #[test]
    fn power_is_close() {
        for (x, scale) in random(20_000, 1).into_iter().zip([1e-6f32, 1e-3, 1.0, 1e3, 1e6].into_iter().cycle()) {
            let x = x * scale;
            let exact = f64::from(x).abs().powf(2.4);
            assert!((f64::from(power_2_4(x)) / exact - 1.0).abs() < 1e-4, "{x}");
        }
        assert!(power_2_4(0.0) < 1e-37);
    }

    #[test]
    fn sums_and_maxima_of_any_length() {
        for length in [0usize, 1, 2, 15, 16, 17, 100, 1000] {
            let x = random(length, length as u64);
            let shift = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&x), shift);
            let mut y = x.clone();
            let sum = exp_and_sum(&mut y, shift);
            let exact: f64 = x.iter().map(|x| f64::from(x - shift).exp()).sum();
            assert!((f64::from(sum) - exact).abs() <= 1e-6 * exact, "{sum} {exact}");
        }
        assert_eq!(largest(&[f32::NAN, 1.0]), 1.0);
        assert!(exp_and_sum(&mut [f32::NAN, 1.0], 1.0).is_nan());
    }
}
