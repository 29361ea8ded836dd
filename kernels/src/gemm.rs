//! Dense product of a linear layer: `out = x Wᵀ + bias`; and the strided product that the other operations share.
//!
//! All products run on the calling thread; whoever calls cuts the work for several.

#[cfg(target_arch = "x86_64")]
use crate::dispatch;
use crate::dispatch::vectorized;
use gemm::Parallelism;

/// A matrix inside a slice: entry `(i, j)` is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// [`Strided`], to be written.
pub(crate) struct StridedMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// What becomes of the old content of the product's destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Old {
    /// `out = factor * a b`.
    Overwrite,
    /// `out += factor * a b`.
    Add,
}

/// `out = factor * a b` or `out += factor * a b` with `out` `[m, n]`, `a` `[m, k]`, `b` `[k, n]`.
#[allow(unsafe_code)]
pub(crate) fn product(
    [m, n, k]: [usize; 3],
    out: StridedMut<'_>,
    old: Old,
    factor: f32,
    a: Strided<'_>,
    b: Strided<'_>,
) {
    let StridedMut { data: out, row: out_row, column: out_column } = out;
    assert_inside(out.len(), m, n, out_row, out_column);
    assert_inside(a.data.len(), m, k, a.row, a.column);
    assert_inside(b.data.len(), k, n, b.row, b.column);
    // SAFETY: each matrix was just checked to lie inside its slice; `out` is borrowed mutably, so it overlaps neither
    // of the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_column as isize,
            out_row as isize,
            old == Old::Add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn assert_inside(len: usize, rows: usize, columns: usize, row: usize, column: usize) {
    if rows > 0 && columns > 0 {
        let last = (rows - 1).checked_mul(row).zip((columns - 1).checked_mul(column));
        let last = last.and_then(|(a, b)| a.checked_add(b));
        assert!(last.is_some_and(|last| last < len), "a {rows} x {columns} matrix in a slice of {len}");
    }
}

/// `out[r][o] = sum_i x[r][i] w[o][i] + bias[o]` on the calling thread; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`,
/// `out` `[rows, outputs]`.
///
/// Row `r` of `out` depends on row `r` of `x` alone. The order of its sums may depend on the number of rows, since very small
/// products (a single row, or at most 64 rows and outputs) are computed another way: results then differ by at most
/// `2 inputs u sum |x w|`, `u = 2^-24`, as two float32 sums of the same terms do. From 2 rows and 257 outputs on they are
/// equal to the bit.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
    let rows = x.len() / inputs;
    let outputs = w.len() / inputs;
    assert_eq!(
        (x.len(), w.len(), out.len()),
        (rows * inputs, outputs * inputs, rows * outputs),
        "shapes of x, w and out"
    );
    product(
        [rows, outputs, inputs],
        StridedMut { data: out, row: outputs, column: 1 },
        Old::Overwrite,
        1.0,
        Strided { data: x, row: inputs, column: 1 },
        Strided { data: w, row: 1, column: inputs },
    );
    if let Some(bias) = bias {
        add_bias(out, bias);
    }
}

/// Adds `bias` to every row of `out`.
pub(crate) fn add_bias(out: &mut [f32], bias: &[f32]) {
    for row in out.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
    }
}

/// The most rows that [`linear_few_rows`] is meant for.
pub const FEW_ROWS: usize = 16;

/// [`linear`] for few rows, as a step of generation has them: the weight is read once as it lies, where the general
/// product would first rearrange all of it. Row `r` of `out` depends on row `r` of `x` alone, to the bit.
pub fn linear_few_rows(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert_eq!(
        (x.len(), w.len(), out.len()),
        (rows * inputs, outputs * inputs, rows * outputs),
        "shapes of x, w and out"
    );
    few_rows(x, w, inputs, out);
    if let Some(bias) = bias {
        add_bias(out, bias);
    }
}

/// Tiles of 8 rows and 4 outputs, or 4 and 2; what is left over goes one by one, summed in the same order.
fn few_rows(x: &[f32], w: &[f32], inputs: usize, out: &mut [f32]) {
    let (outputs, large, small) = (w.len() / inputs, large_tile(), small_tile());
    for (quad, w) in w.chunks(4 * inputs).enumerate() {
        for (eight, x) in x.chunks(8 * inputs).enumerate() {
            let mut put = |row: usize, column: usize, value| {
                out[(8 * eight + row) * outputs + 4 * quad + column] = value;
            };
            match large.filter(|_| x.len() == 8 * inputs && w.len() == 4 * inputs) {
                Some(tile) => put_all(&tile(x, w, inputs), [0, 0], &mut put),
                None => small_tiles(x, w, inputs, small, &mut put),
            }
        }
    }
}

/// The products of a few rows and outputs, by tiles of 4 and 2.
fn small_tiles(x: &[f32], w: &[f32], inputs: usize, tile: Option<Tile<4, 2>>, put: &mut impl FnMut(usize, usize, f32)) {
    for (pair, w) in w.chunks(2 * inputs).enumerate() {
        for (four, x) in x.chunks(4 * inputs).enumerate() {
            if let Some(tile) = tile.filter(|_| x.len() == 4 * inputs && w.len() == 2 * inputs) {
                put_all(&tile(x, w, inputs), [4 * four, 2 * pair], put);
                continue;
            }
            for (column, w) in w.chunks_exact(inputs).enumerate() {
                for (row, x) in x.chunks_exact(inputs).enumerate() {
                    put(4 * four + row, 2 * pair + column, single(x, w));
                }
            }
        }
    }
}

fn put_all<const ROWS: usize, const OUTPUTS: usize>(
    tile: &[[f32; OUTPUTS]; ROWS],
    [row, column]: [usize; 2],
    put: &mut impl FnMut(usize, usize, f32),
) {
    for (r, sums) in tile.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            put(row + r, column + c, *sum);
        }
    }
}

/// Running sums of one product.
type Lanes = [f32; 8];

/// The products of `ROWS` rows of the first with `OUTPUTS` rows of the second slice, rows being so wide.
type Tile<const ROWS: usize, const OUTPUTS: usize> = fn(&[f32], &[f32], usize) -> [[f32; OUTPUTS]; ROWS];

/// The tile for AVX2, if this processor has it.
fn small_tile() -> Option<Tile<4, 2>> {
    #[cfg(target_arch = "x86_64")]
    if dispatch::level() != dispatch::Level::Baseline {
        return Some(|x, w, inputs| {
            // SAFETY: the processor was just found to have the features that the function is compiled for.
            #[allow(unsafe_code)]
            unsafe {
                tile_avx2(x, w, inputs)
            }
        });
    }
    None
}

/// The tile for AVX-512, if this processor has it.
fn large_tile() -> Option<Tile<8, 4>> {
    #[cfg(target_arch = "x86_64")]
    if dispatch::level() == dispatch::Level::Avx512 {
        return Some(|x, w, inputs| {
            // SAFETY: the processor was just found to have the features that the function is compiled for.
            #[allow(unsafe_code)]
            unsafe {
                tile_avx512(x, w, inputs)
            }
        });
    }
    None
}

/// A register holds the running sums of two outputs, so that the order of sums is that of narrower registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
#[allow(unsafe_code)]
fn tile_avx512(x: &[f32], w: &[f32], inputs: usize) -> [[f32; 4]; 8] {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm512_broadcast_f32x8, _mm512_castps256_ps512, _mm512_fmadd_ps, _mm512_insertf32x8,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };
    let x: [&[f32]; 8] = std::array::from_fn(|row| &x[row * inputs..][..inputs]);
    let w: [&[f32]; 4] = std::array::from_fn(|row| &w[row * inputs..][..inputs]);
    let (mut sums, whole) = ([[_mm512_setzero_ps(); 2]; 8], inputs / 8 * 8);
    for at in (0..whole).step_by(8) {
        let mut both = [_mm512_setzero_ps(); 2];
        for pair in 0..2 {
            // SAFETY: every slice has `inputs` numbers, and at + 8 is at most that.
            let [low, high] = unsafe {
                [_mm256_loadu_ps(w[2 * pair].as_ptr().add(at)), _mm256_loadu_ps(w[2 * pair + 1].as_ptr().add(at))]
            };
            both[pair] = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
        }
        for row in 0..8 {
            // SAFETY: as above.
            let x = _mm512_broadcast_f32x8(unsafe { _mm256_loadu_ps(x[row].as_ptr().add(at)) });
            sums[row][0] = _mm512_fmadd_ps(x, both[0], sums[row][0]);
            sums[row][1] = _mm512_fmadd_ps(x, both[1], sums[row][1]);
        }
    }
    // No closures: they would keep the sums in memory rather than in registers.
    let mut totals = [[0.0; 4]; 8];
    for row in 0..8 {
        let mut lanes = [Lanes::default(); 4];
        // SAFETY: there is room for twice sixteen numbers.
        unsafe {
            _mm512_storeu_ps(lanes.as_mut_ptr().cast(), sums[row][0]);
            _mm512_storeu_ps(lanes.as_mut_ptr().add(2).cast(), sums[row][1]);
        }
        for column in 0..4 {
            totals[row][column] = total(lanes[column], &x[row][whole..], &w[column][whole..]);
        }
    }
    totals
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code)]
fn tile_avx2(x: &[f32], w: &[f32], inputs: usize) -> [[f32; 2]; 4] {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    let x: [&[f32]; 4] = std::array::from_fn(|row| &x[row * inputs..][..inputs]);
    let w: [&[f32]; 2] = std::array::from_fn(|row| &w[row * inputs..][..inputs]);
    let (mut sums, whole) = ([[_mm256_setzero_ps(); 2]; 4], inputs / 8 * 8);
    for at in (0..whole).step_by(8) {
        // SAFETY: every slice has `inputs` numbers, and at + 8 is at most that.
        let w = unsafe { [_mm256_loadu_ps(w[0].as_ptr().add(at)), _mm256_loadu_ps(w[1].as_ptr().add(at))] };
        for row in 0..4 {
            // SAFETY: as above.
            let x = unsafe { _mm256_loadu_ps(x[row].as_ptr().add(at)) };
            sums[row][0] = _mm256_fmadd_ps(x, w[0], sums[row][0]);
            sums[row][1] = _mm256_fmadd_ps(x, w[1], sums[row][1]);
        }
    }
    // No closures: they would keep the sums in memory rather than in registers.
    let mut totals = [[0.0; 2]; 4];
    for row in 0..4 {
        for column in 0..2 {
            let mut lanes = Lanes::default();
            // SAFETY: there is room for eight numbers.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[row][column]) };
            totals[row][column] = total(lanes, &x[row][whole..], &w[column][whole..]);
        }
    }
    totals
}

vectorized! {
    /// One of the products of a tile, summed in the same order.
    fn single(x: &[f32], w: &[f32]) -> f32 {
        let ((x, x_rest), (w, w_rest)) = (x.as_chunks::<8>(), w.as_chunks::<8>());
        let mut sums = Lanes::default();
        for (x, w) in x.iter().zip(w) {
            for lane in 0..8 {
                sums[lane] = x[lane].mul_add(w[lane], sums[lane]);
            }
        }
        total(sums, x_rest, w_rest)
    }
}

/// The sum of the running sums and of the products of what is left over.
#[allow(clippy::inline_always, reason = "compiled for its caller's instructions")]
#[inline(always)]
fn total(mut sums: Lanes, x: &[f32], w: &[f32]) -> f32 {
    for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
        *sum = x.mul_add(*w, *sum);
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// A float32 sum of n products errs by at most n u sum |terms|; the bias adds one rounding.
    #[test]
    fn agrees_with_the_triple_loop() {
        for (rows, outputs, inputs) in
            [(1, 1, 1), (1, 300, 40), (2, 1, 7), (3, 5, 2), (16, 16, 1500), (33, 65, 17), (70, 130, 600), (0, 4, 3)]
        {
            let (x, w, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            for bias in [None, Some(&bias[..])] {
                let mut out = vec![f32::NAN; rows * outputs];
                linear(&x, &w, bias, inputs, &mut out);
                for (at, got) in out.iter().enumerate() {
                    let (x, w) = (&x[at / outputs * inputs..][..inputs], &w[at % outputs * inputs..][..inputs]);
                    let terms = || x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    let bias = bias.map_or(0.0, |bias| f64::from(bias[at % outputs]));
                    let expected = terms().sum::<f64>() + bias;
                    let magnitude = terms().map(f64::abs).sum::<f64>() + bias.abs();
                    let bound = 2f64.powi(-24) * (inputs as f64 + 1.0) * magnitude;
                    assert!((f64::from(*got) - expected).abs() <= bound, "{rows} {outputs} {inputs}: {got} {expected}");
                }
            }
        }
    }

    /// The same bound, and rows by themselves to the bit.
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
            (0, 4, 3),
        ] {
            let (x, w, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            for bias in [None, Some(&bias[..])] {
                let mut out = vec![f32::NAN; rows * outputs];
                linear_few_rows(&x, &w, bias, inputs, &mut out);
                for (at, got) in out.iter().enumerate() {
                    let (x, w) = (&x[at / outputs * inputs..][..inputs], &w[at % outputs * inputs..][..inputs]);
                    let terms = || x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    let bias = bias.map_or(0.0, |bias| f64::from(bias[at % outputs]));
                    let magnitude = terms().map(f64::abs).sum::<f64>() + bias.abs();
                    let bound = 2f64.powi(-24) * (inputs as f64 + 1.0) * magnitude;
                    let error = (f64::from(*got) - terms().sum::<f64>() - bias).abs();
                    assert!(error <= bound, "{rows} {outputs} {inputs}: {error} of {bound}");
                }
                for row in 0..rows {
                    let mut alone = vec![0.0; outputs];
                    linear_few_rows(&x[row * inputs..][..inputs], &w, bias, inputs, &mut alone);
                    assert_eq!(alone, out[row * outputs..][..outputs]);
                }
            }
        }
    }

    #[test]
    fn other_rows_do_not_matter() {
        let (outputs, inputs) = (257, 700);
        let (x, w) = (random(300 * inputs, 4), random(outputs * inputs, 5));
        let run = |rows: usize| {
            let mut out = vec![0.0; rows * outputs];
            linear(&x[..rows * inputs], &w, None, inputs, &mut out);
            out
        };
        let all = run(300);
        for rows in [2, 3, 7, 8, 63, 64, 65, 129, 256] {
            assert_eq!(run(rows), all[..rows * outputs], "{rows} rows");
        }
        // Both sums err by at most n u sum |x w| <= n^2 u.
        let bound = 2.0 * (inputs * inputs) as f32 * 2f32.powi(-24);
        assert!(run(1).iter().zip(&all).all(|(one, all)| (one - all).abs() <= bound));
    }

    #[test]
    #[should_panic(expected = "in a slice of")]
    fn a_matrix_outside_its_slice_is_refused() {
        let mut out = [0.0; 4];
        let whole = Strided { data: &[1.0; 4], row: 2, column: 1 };
        product([2, 2, 2], StridedMut { data: &mut out, row: 3, column: 1 }, Old::Overwrite, 1.0, whole, whole);
    }
}
