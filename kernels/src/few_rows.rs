//! The dense product of a linear layer for few rows, as a step of generation has them: `out = x Wᵀ + bias`, the weight
//! read once as it lies, where the general product ([`crate::gemm::linear`]) would first rearrange all of it.
//!
//! ```text
//! out[r][o] = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)) + bias[o]      s_l = sum of x[r][i] w[o][i] over i % 8 = l
//! ```
//!
//! Every version sums in this order by fused operations, so that row `r` of `out` depends on row `r` of `x` alone, to the
//! bit, whatever the processor.

#[cfg(target_arch = "x86_64")]
use crate::dispatch;
use crate::{dispatch::vectorized, gemm::add_bias};

/// The most rows that this product is meant for.
pub const FEW_ROWS: usize = 32;
/// Outputs of a tile.
pub(crate) const OUTPUTS: usize = 4;
/// Running sums of one product.
const LANES: usize = 8;

/// `out[r][o] = sum_i x[r][i] w[o][i] + bias[o]` on the calling thread; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`,
/// `out` `[rows, outputs]`.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert_eq!(
        (x.len(), w.len(), out.len()),
        (rows * inputs, outputs * inputs, rows * outputs),
        "shapes of x, w and out"
    );
    products(x, w, inputs, out, outputs);
    if let Some(bias) = bias {
        add_bias(out, bias);
    }
}

/// `out[r stride + o] = sum_i x[r][i] w[o][i]`.
pub(crate) fn products(x: &[f32], w: &[f32], inputs: usize, out: &mut [f32], stride: usize) {
    let rows = x.len() / inputs;
    #[cfg(target_arch = "x86_64")]
    let tiles = tiles(dispatch::level());
    #[cfg(not(target_arch = "x86_64"))]
    let tiles: &[(usize, Tile)] = &[];
    for (four, w) in w.chunks(OUTPUTS * inputs).enumerate() {
        let mut row = 0;
        while row < rows {
            let fits = |(count, _): &&(usize, Tile)| *count <= rows - row && w.len() == OUTPUTS * inputs;
            let (count, tile) = tiles.iter().find(fits).copied().unwrap_or((1, singles));
            let out = &mut out[row * stride + four * OUTPUTS..];
            tile(&x[row * inputs..][..count * inputs], w, inputs, out, stride);
            row += count;
        }
    }
}

/// The products of some rows `x` with some rows of the weight, to `out[row * stride + output]`.
type Tile = fn(x: &[f32], w: &[f32], inputs: usize, out: &mut [f32], stride: usize);

/// How many rows a tile has, and what computes it for [`OUTPUTS`] outputs on a processor of `level`; largest first.
#[cfg(target_arch = "x86_64")]
fn tiles(level: dispatch::Level) -> &'static [(usize, Tile)] {
    /// A tile as an ordinary function.
    macro_rules! tile {
        ($name:ident, $rows:literal) => {
            ($rows, |x, w, inputs, out, stride| {
                // SAFETY: the processor was found to have the features that the function is compiled for.
                #[allow(unsafe_code)]
                unsafe {
                    $name::<$rows>(x, w, inputs, out, stride)
                }
            })
        };
    }
    match level {
        dispatch::Level::Avx512 => &[tile!(avx512, 8), tile!(avx512, 4), tile!(avx512, 2), tile!(avx512, 1)],
        // Sixteen registers: eight sums, four weights and a number.
        dispatch::Level::Avx2 => &[tile!(avx2, 2), tile!(avx2, 1)],
        dispatch::Level::Baseline => &[(1, singles)],
    }
}

/// A register holds the running sums of two outputs, so that the order of sums is that of narrower registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn avx512<const ROWS: usize>(x: &[f32], w: &[f32], inputs: usize, out: &mut [f32], stride: usize) {
    use std::arch::x86_64::{
        _mm512_broadcast_f32x8, _mm512_castps256_ps512, _mm512_castps512_ps256, _mm512_extractf32x8_ps,
        _mm512_fmadd_ps, _mm512_insertf32x8, _mm512_setzero_ps,
    };
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    walk::<ROWS>(x, w, inputs, |x, w| {
        let both = [0, 2].map(|first| {
            let [low, high] = [load(w[first]), load(w[first + 1])];
            _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
        });
        for row in 0..ROWS {
            let x = _mm512_broadcast_f32x8(load(x[row]));
            sums[row][0] = _mm512_fmadd_ps(x, both[0], sums[row][0]);
            sums[row][1] = _mm512_fmadd_ps(x, both[1], sums[row][1]);
        }
    });
    for (row, [low, high]) in sums.iter().enumerate() {
        let four = [
            _mm512_castps512_ps256(*low),
            _mm512_extractf32x8_ps::<1>(*low),
            _mm512_castps512_ps256(*high),
            _mm512_extractf32x8_ps::<1>(*high),
        ];
        out[row * stride..][..OUTPUTS].copy_from_slice(&totals(four));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<const ROWS: usize>(x: &[f32], w: &[f32], inputs: usize, out: &mut [f32], stride: usize) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_setzero_ps};
    let mut sums = [[_mm256_setzero_ps(); OUTPUTS]; ROWS];
    walk::<ROWS>(x, w, inputs, |x, w| {
        let w = w.map(|w| load(w));
        for row in 0..ROWS {
            let x = load(x[row]);
            for output in 0..OUTPUTS {
                sums[row][output] = _mm256_fmadd_ps(x, w[output], sums[row][output]);
            }
        }
    });
    for (row, sums) in sums.iter().enumerate() {
        out[row * stride..][..OUTPUTS].copy_from_slice(&totals(*sums));
    }
}

#[cfg(target_arch = "x86_64")]
type Eight = [f32; LANES];

/// Goes along the rows of `x` and of the weight, eight columns at a time, the last filled up with zeros.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
fn walk<const ROWS: usize>(
    x: &[f32],
    w: &[f32],
    inputs: usize,
    mut step: impl FnMut([&Eight; ROWS], [&Eight; OUTPUTS]),
) {
    let whole = inputs / LANES;
    let x: [_; ROWS] = std::array::from_fn(|row| x[row * inputs..][..inputs].as_chunks::<LANES>());
    let w: [_; OUTPUTS] = std::array::from_fn(|row| w[row * inputs..][..inputs].as_chunks::<LANES>());
    {
        let (x, w) = (x.map(|(eights, _)| &eights[..whole]), w.map(|(eights, _)| &eights[..whole]));
        for at in 0..whole {
            step(std::array::from_fn(|row| &x[row][at]), std::array::from_fn(|row| &w[row][at]));
        }
    }
    if whole * LANES < inputs {
        let padded = |rest: &[f32]| {
            let mut eight = Eight::default();
            eight[..rest.len()].copy_from_slice(rest);
            eight
        };
        let (x, w) = (x.map(|(_, rest)| padded(rest)), w.map(|(_, rest)| padded(rest)));
        step(x.each_ref(), w.each_ref());
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
#[allow(unsafe_code)]
fn load(eight: &Eight) -> std::arch::x86_64::__m256 {
    // SAFETY: there are eight numbers.
    unsafe { std::arch::x86_64::_mm256_loadu_ps(eight.as_ptr()) }
}

/// The sum of each of four registers, in the order of the module's formula.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
#[allow(unsafe_code)]
fn totals([a, b, c, d]: [std::arch::x86_64::__m256; OUTPUTS]) -> [f32; OUTPUTS] {
    use std::arch::x86_64::{_mm_add_ps, _mm_storeu_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_hadd_ps};
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    let mut totals = [0.0; OUTPUTS];
    // SAFETY: there is room for four numbers.
    unsafe { _mm_storeu_ps(totals.as_mut_ptr(), sums) };
    totals
}

/// What no tile fits.
fn singles(x: &[f32], w: &[f32], inputs: usize, out: &mut [f32], stride: usize) {
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_mut(stride)) {
        for (w, out) in w.chunks_exact(inputs).zip(out) {
            *out = single(x, w);
        }
    }
}

vectorized! {
    fn single(x: &[f32], w: &[f32]) -> f32 {
        let ((x, x_rest), (w, w_rest)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>());
        let mut sums = [0.0f32; LANES];
        for (x, w) in x.iter().zip(w) {
            for lane in 0..LANES {
                sums[lane] = x[lane].mul_add(w[lane], sums[lane]);
            }
        }
        for ((sum, x), w) in sums.iter_mut().zip(x_rest).zip(w_rest) {
            *sum = x.mul_add(*w, *sum);
        }
        let [a, b, c, d, e, f, g, h] = sums;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_is_product, random};

    #[test]
    fn few_rows_agree_with_the_triple_loop_and_stand_alone() {
        for (rows, outputs, inputs) in [
            (1, 1, 1),
            (2, 3, 7),
            (4, 2, 8),
            (5, 4, 100),
            (8, 4, 9),
            (16, 33, 257),
            (13, 7, 64),
            (9, 1, 576),
            (FEW_ROWS, 9, 40),
            (0, 4, 3),
        ] {
            let (x, w, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            for bias in [None, Some(&bias[..])] {
                let mut out = vec![f32::NAN; rows * outputs];
                linear(&x, &w, bias, inputs, &mut out);
                assert_is_product(&x, &w, bias, inputs, &out);
                for row in 0..rows {
                    let mut alone = vec![0.0; outputs];
                    linear(&x[row * inputs..][..inputs], &w, bias, inputs, &mut alone);
                    assert_eq!(alone, out[row * outputs..][..outputs]);
                }
            }
        }
    }

    /// Also those that a better processor passes over.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn tiles_of_every_width_give_the_bits_of_single_products() {
        use dispatch::Level;
        for level in [Level::Avx2, Level::Avx512].into_iter().filter(|level| *level <= dispatch::level()) {
            for (rows, tile) in tiles(level) {
                for inputs in [1, 7, 8, 9, 63, 64, 576] {
                    let (x, w) = (random(rows * inputs, 1), random(OUTPUTS * inputs, 2));
                    let [mut expected, mut got] = [(); 2].map(|()| vec![0.0; rows * OUTPUTS]);
                    singles(&x, &w, inputs, &mut expected, OUTPUTS);
                    tile(&x, &w, inputs, &mut got, OUTPUTS);
                    assert_eq!(got, expected, "{level:?}, {rows} rows, {inputs} inputs");
                }
            }
        }
    }
}
