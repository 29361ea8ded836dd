//! The upper factor `U` of a Hessian's inverse, `H⁻¹ = UᵀU`, by one factorization and one triangular inverse: with `J`
//! the reversal of rows and columns, `J H J = L Lᵀ` gives `U = J L⁻¹ J`.
//!
//! That is so because `UᵀU = J L⁻ᵀ L⁻¹ J = J (L Lᵀ)⁻¹ J = J (J H J)⁻¹ J = H⁻¹`, and `L⁻¹` reversed is upper triangular.

use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::prelude::{Reborrow, ReborrowMut};
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par, Spec};
use rayon::prelude::*;

/// Columns, or rows, of a block. Whatever the number of threads, blocks are the same and each is one thread's.
const BLOCK: usize = 256;

/// The matrix is not positive definite in the arithmetic used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the matrix is not positive definite: the factorization failed")]
pub struct NotPositiveDefinite;

/// The arithmetic of a factorization; the result is float32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// float32.
    Single,
    /// float64.
    Double,
}

/// A damped Hessian, as a Gram matrix `G` makes it: `H[p][q] = scale · G[order[p]][order[q]]`, and on the diagonal
/// `diagonal[p]`.
#[derive(Clone, Copy, Debug)]
pub struct Damped<'a> {
    /// The stored column at each position.
    pub order: &'a [usize],
    /// What the sums are multiplied by.
    pub scale: f32,
    /// By position.
    pub diagonal: &'a [f32],
}

impl Damped<'_> {
    /// `H`, `[width, width]`, of `gram`.
    pub fn of(&self, gram: &[f32]) -> Vec<f32> {
        let width = self.order.len();
        assert_eq!((gram.len(), self.diagonal.len()), (width * width, width), "shapes of gram and diagonal");
        let mut h = Vec::with_capacity(width * width);
        for (position, &row) in self.order.iter().enumerate() {
            let gram = &gram[row * width..][..width];
            h.extend(self.order.iter().map(|&column| self.scale * gram[column]));
            h[position * width + position] = self.diagonal[position];
        }
        h
    }
}

/// `h` is symmetric `[n, n]`, only its lower triangle is read; returns the upper factor `[n, n]`, zeros below the diagonal.
pub fn inverse_upper_factor(h: &[f32], n: usize, precision: Precision) -> Result<Vec<f32>, NotPositiveDefinite> {
    assert_eq!(h.len(), n * n, "shape of h");
    match precision {
        Precision::Single => factor(h, n, 0.0f32, |v| v, |v| v),
        Precision::Double => factor(h, n, 0.0f64, f64::from, |v| v as f32),
    }
}

fn factor<T: RealField + Copy>(
    h: &[f32],
    n: usize,
    zero: T,
    widen: impl Fn(f32) -> T + Sync,
    narrow: impl Fn(T) -> f32 + Sync,
) -> Result<Vec<f32>, NotPositiveDefinite> {
    // Column j of the reversed matrix, which faer stores contiguously, is row n-1-j of h read backwards.
    let mut lower = vec![zero; n * n];
    lower.par_chunks_mut(n.max(1)).zip(h.par_chunks(n.max(1)).rev()).for_each(|(column, row)| {
        for (to, from) in column.iter_mut().zip(row.iter().rev()) {
            *to = widen(*from);
        }
    });
    cholesky(&mut lower, n)?;
    let inverse = inverse_by_rows(&lower, n, zero);
    drop(lower);
    // Row p of U is row n-1-p of the inverse, read backwards.
    let upper: Vec<f32> = inverse.par_iter().rev().map(|entry| narrow(*entry)).collect();
    // An overflow or a not-a-number anywhere means that the matrix was singular in this arithmetic.
    if upper.par_iter().all(|v| v.is_finite()) && (0..n).all(|i| upper[i * n + i] > 0.0) {
        Ok(upper)
    } else {
        Err(NotPositiveDefinite)
    }
}

/// Overwrites the lower triangle of the column-major `matrix` by its Cholesky factor, a block of columns at a time: the
/// block's own factor, what is below it, and then, in parallel, what that takes off the columns behind.
fn cholesky<T: RealField + Copy>(matrix: &mut [T], n: usize) -> Result<(), NotPositiveDefinite> {
    let mut left = matrix;
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let (panel, behind) = left.split_at_mut(width * n);
        let rows = MatMut::from_column_major_slice_mut(panel, n, width).subrows_mut(first, n - first);
        let (mut own, below) = rows.split_at_row_mut(width);
        cholesky_of_block(own.rb_mut())?;
        solve_lower_triangular_in_place(own.rb(), below.transpose_mut(), Par::Seq);
        let panel = MatRef::from_column_major_slice(panel, n, width);
        behind.par_chunks_mut(BLOCK * n).enumerate().with_max_len(1).for_each(|(index, columns)| {
            let (start, count) = (first + width + index * BLOCK, columns.len() / n);
            let columns = MatMut::from_column_major_slice_mut(columns, n, count).subrows_mut(start, n - start);
            let (below, own) = (panel.subrows(start, n - start), panel.subrows(start, count));
            matmul(columns, Accum::Add, below, own.transpose(), -T::one_impl(), Par::Seq);
        });
        left = behind;
    }
    Ok(())
}

fn cholesky_of_block<T: RealField>(block: MatMut<'_, T>) -> Result<(), NotPositiveDefinite> {
    let settings = Spec::default();
    let mut buffer = faer::dyn_stack::MemBuffer::new(cholesky_in_place_scratch::<T>(block.nrows(), Par::Seq, settings));
    let stack = faer::dyn_stack::MemStack::new(&mut buffer);
    let factored = cholesky_in_place(block, LltRegularization::default(), Par::Seq, stack, settings);
    factored.map(|_| ()).map_err(|_| NotPositiveDefinite)
}

/// The inverse of the column-major lower triangle `lower`, row after row. A block of rows `X` of it, in parallel: at the
/// diagonal the inverse of the block there, `X_d = L_d⁻¹`, and left of it what solves `X L = −X_d L_x`, where `L_x` is what stands
/// left of `L_d` and `L` is above that.
fn inverse_by_rows<T: RealField + Copy>(lower: &[T], n: usize, zero: T) -> Vec<T> {
    let mut inverse = vec![zero; n * n];
    let lower = MatRef::from_column_major_slice(lower, n, n);
    // The last rows are the longest: started first, they leave the short ones to even out the threads.
    inverse.par_chunks_mut((BLOCK * n).max(1)).enumerate().rev().with_max_len(1).for_each(|(index, rows)| {
        let (start, count) = (index * BLOCK, rows.len() / n);
        let transposed = MatMut::from_column_major_slice_mut(rows, n, count).subrows_mut(0, start + count);
        let (mut left, mut own) = transposed.split_at_row_mut(start);
        invert_lower_triangular(own.rb_mut().transpose_mut(), lower.submatrix(start, start, count, count), Par::Seq);
        let beside = lower.submatrix(start, 0, count, start).transpose();
        matmul(left.rb_mut(), Accum::Replace, beside, own.rb(), -T::one_impl(), Par::Seq);
        solve_upper_triangular_in_place(lower.submatrix(0, 0, start, start).transpose(), left, Par::Seq);
    });
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hessian, with_threads};

    /// The slow, obvious way in float64: invert by Gauss-Jordan, then the textbook Cholesky factor of the inverse.
    fn reference(h: &[f32], n: usize) -> Vec<f64> {
        let inverse = gauss_jordan(h.iter().map(|v| f64::from(*v)).collect(), n);
        let mut u = vec![0.0; n * n];
        for i in 0..n {
            let pivot = (inverse[i * n + i] - (0..i).map(|k| u[k * n + i] * u[k * n + i]).sum::<f64>()).sqrt();
            for j in i..n {
                u[i * n + j] = (inverse[i * n + j] - (0..i).map(|k| u[k * n + i] * u[k * n + j]).sum::<f64>()) / pivot;
            }
        }
        u
    }

    fn gauss_jordan(mut a: Vec<f64>, n: usize) -> Vec<f64> {
        let mut inverse: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
        for pivot in 0..n {
            let scale = 1.0 / a[pivot * n + pivot];
            for j in 0..n {
                a[pivot * n + j] *= scale;
                inverse[pivot * n + j] *= scale;
            }
            for i in (0..n).filter(|i| *i != pivot) {
                let factor = a[i * n + pivot];
                for j in 0..n {
                    a[i * n + j] -= factor * a[pivot * n + j];
                    inverse[i * n + j] -= factor * inverse[pivot * n + j];
                }
            }
        }
        inverse
    }

    const SIZES: [usize; 8] = [1, 2, 3, 8, 31, 64, 127, 240];

    /// To first order in the unit roundoff u: the factor `V = U⁻¹` of `H = V Vᵀ` has a backward error of at most
    /// `(n+1) u |V||Vᵀ|`, its inverse a residual `D = U V - I` of at most `(n+1) u |U||V|`; `UᵀU H - I` is then
    /// `Uᵀ (D + Dᵀ) Vᵀ` plus the backward error under `UᵀU`, that is at most `3 (n+1) u |U|ᵀ (|U||V| + (|U||V|)ᵀ) |V|ᵀ`.
    /// Rounding `U` to float32 adds `2 u |U|ᵀ|U||H|`.
    #[test]
    fn the_factor_inverts_the_matrix() {
        for n in SIZES {
            let h: Vec<f64> = hessian(n, n as u64).iter().map(|v| f64::from(*v)).collect();
            let narrow: Vec<f32> = h.iter().map(|v| *v as f32).collect();
            for (precision, unit) in [(Precision::Single, 2f64.powi(-24)), (Precision::Double, 2f64.powi(-53))] {
                let u = inverse_upper_factor(&narrow, n, precision).expect("positive definite");
                let u: Vec<f64> = u.iter().map(|v| f64::from(*v)).collect();
                let product = multiply(&transpose(&u, n), &multiply(&u, &h, n), n);
                let v = magnitudes(&multiply(&h, &transpose(&u, n), n));
                let (h, u) = (magnitudes(&h), magnitudes(&u));
                let inner = multiply(&u, &v, n);
                let inner: Vec<f64> = inner.iter().zip(transpose(&inner, n)).map(|(a, b)| a + b).collect();
                let factor = multiply(&multiply(&transpose(&u, n), &inner, n), &transpose(&v, n), n);
                let rounding = multiply(&transpose(&u, n), &multiply(&u, &h, n), n);
                for (at, value) in product.iter().enumerate() {
                    let bound = 3.0 * (n as f64 + 1.0) * unit * factor[at] + 2f64.powi(-23) * rounding[at];
                    let expected = f64::from(u8::from(at / n == at % n));
                    assert!((value - expected).abs() <= bound, "n {n} {precision:?} at {at}: {value} (bound {bound})");
                }
            }
        }
    }

    fn multiply(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n * n];
        for i in 0..n {
            for k in 0..n {
                for j in 0..n {
                    out[i * n + j] += a[i * n + k] * b[k * n + j];
                }
            }
        }
        out
    }

    fn transpose(a: &[f64], n: usize) -> Vec<f64> {
        (0..n * n).map(|at| a[at % n * n + at / n]).collect()
    }

    fn magnitudes(a: &[f64]) -> Vec<f64> {
        a.iter().map(|v| v.abs()).collect()
    }

    /// In float64 both ways err by about n 2^-53 times a condition number below 1e4, so one rounding to float32 remains.
    #[test]
    fn it_is_the_cholesky_factor_of_the_inverse() {
        for n in SIZES {
            let h = hessian(n, n as u64);
            let expected = reference(&h, n);
            let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let u = inverse_upper_factor(&h, n, Precision::Double).expect("positive definite");
            for (at, (got, expected)) in u.iter().zip(&expected).enumerate() {
                let bound = 2f64.powi(-24) * expected.abs() + 1e-9 * largest;
                assert!((f64::from(*got) - expected).abs() <= bound, "n {n} at {at}: {got} {expected}");
                assert!(at % n >= at / n || *got == 0.0, "below the diagonal");
            }
        }
    }

    /// Several blocks, the last one ragged: against the one of double precision, and by one thread and by three.
    #[test]
    fn blocks_join_and_threads_change_nothing() {
        for n in [257, 600] {
            let h = hessian(n, n as u64);
            let run =
                |threads, precision| with_threads(threads, || inverse_upper_factor(&h, n, precision).expect("it is"));
            let [single, double] = [Precision::Single, Precision::Double].map(|precision| run(1, precision));
            assert_eq!(single, run(3, Precision::Single));
            assert_eq!(double, run(3, Precision::Double));
            let largest = double.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            let slow = reference_of_triangle(&h, &double, n);
            assert!(slow < 1e-4, "UᵀU H is the identity but for {slow}");
            for (single, double) in single.iter().zip(&double) {
                assert!((single - double).abs() < 1e-4 * largest);
            }
        }
    }

    /// The largest entry of `UᵀU H − I` in float64.
    fn reference_of_triangle(h: &[f32], u: &[f32], n: usize) -> f64 {
        let [h, u] = [h, u].map(|all| all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        let product = multiply(&transpose(&u, n), &multiply(&u, &h, n), n);
        let error = |(at, value): (usize, &f64)| (value - f64::from(u8::from(at % n == at / n))).abs();
        product.iter().enumerate().map(error).fold(0.0, f64::max)
    }

    #[test]
    fn only_the_lower_triangle_is_read() {
        let n = 33;
        let h = hessian(n, 1);
        let mut half = h.clone();
        for i in 0..n {
            half[i * n + i + 1..(i + 1) * n].fill(f32::NAN);
        }
        for precision in [Precision::Single, Precision::Double] {
            assert_eq!(inverse_upper_factor(&half, n, precision), inverse_upper_factor(&h, n, precision));
        }
    }

    #[test]
    fn refuses_what_is_not_positive_definite() {
        for n in SIZES {
            let h = hessian(n, 7);
            for value in [0.0, -1.0, f32::NAN, f32::NEG_INFINITY] {
                for at in [0, n / 2, n - 1] {
                    let mut h = h.clone();
                    h[at * n + at] = value;
                    for precision in [Precision::Single, Precision::Double] {
                        let result = inverse_upper_factor(&h, n, precision);
                        assert_eq!(result, Err(NotPositiveDefinite), "n {n}, {value} at {at}, {precision:?}");
                    }
                }
            }
        }
        // A not-a-number off the diagonal, an indefinite 2 x 2, a singular 2 x 2.
        for h in [[1.0, 0.0, f32::NAN, 1.0], [1.0, 0.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]] {
            assert_eq!(inverse_upper_factor(&h, 2, Precision::Double), Err(NotPositiveDefinite));
            assert_eq!(inverse_upper_factor(&h, 2, Precision::Single), Err(NotPositiveDefinite));
        }
    }

    #[test]
    fn double_precision_rescues_what_single_cannot_factor() {
        // Two nearly equal columns, relative gap 2^-23: singular once the product is rounded to float32.
        let close = 1.0 - f32::EPSILON / 2.0;
        let h = [1.0, close, close, 1.0];
        assert!(inverse_upper_factor(&h, 2, Precision::Double).is_ok());
    }
}
