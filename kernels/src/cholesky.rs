//! The upper factor `U` of a Hessian's inverse, `H⁻¹ = UᵀU`, by one factorization and one triangular inverse: with `J`
//! the reversal of rows and columns, `J H J = L Lᵀ` gives `U = J L⁻¹ J`.
//!
//! That is so because `UᵀU = J L⁻ᵀ L⁻¹ J = J (L Lᵀ)⁻¹ J = J (J H J)⁻¹ J = H⁻¹`, and `L⁻¹` reversed is upper triangular.

use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::traits::RealField;
use faer::{MatMut, MatRef, Par, Spec};

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
    widen: impl Fn(f32) -> T,
    narrow: impl Fn(T) -> f32,
) -> Result<Vec<f32>, NotPositiveDefinite> {
    // Column j of the reversed matrix, which faer stores contiguously, is row n-1-j of h read backwards.
    let mut lower = vec![zero; n * n];
    for (column, row) in lower.chunks_exact_mut(n.max(1)).zip(h.chunks_exact(n.max(1)).rev()) {
        for (to, from) in column.iter_mut().zip(row.iter().rev()) {
            *to = widen(*from);
        }
    }
    cholesky(&mut lower, n)?;
    let mut inverse = vec![zero; n * n];
    invert_lower_triangular(
        MatMut::from_column_major_slice_mut(&mut inverse, n, n),
        MatRef::from_column_major_slice(&lower, n, n),
        Par::Seq,
    );
    drop(lower);
    let upper = reversed_transpose(&inverse, n, narrow);
    // An overflow or a not-a-number anywhere means that the matrix was singular in this arithmetic.
    if upper.iter().all(|v| v.is_finite()) && (0..n).all(|i| upper[i * n + i] > 0.0) {
        Ok(upper)
    } else {
        Err(NotPositiveDefinite)
    }
}

/// Overwrites the lower triangle of the column-major `matrix` by its Cholesky factor.
fn cholesky<T: RealField>(matrix: &mut [T], n: usize) -> Result<(), NotPositiveDefinite> {
    let settings = Spec::default();
    let mut buffer = faer::dyn_stack::MemBuffer::new(cholesky_in_place_scratch::<T>(n, Par::Seq, settings));
    cholesky_in_place(
        MatMut::from_column_major_slice_mut(matrix, n, n),
        LltRegularization::default(),
        Par::Seq,
        faer::dyn_stack::MemStack::new(&mut buffer),
        settings,
    )
    .map(|_| ())
    .map_err(|_| NotPositiveDefinite)
}

/// The row-major `U[p][q] = X[n-1-p][n-1-q]` of the column-major lower triangle `X`, in tiles for the cache's sake.
fn reversed_transpose<T: Copy>(x: &[T], n: usize, narrow: impl Fn(T) -> f32) -> Vec<f32> {
    const TILE: usize = 32;
    let mut upper = vec![0.0; n * n];
    for rows in (0..n).step_by(TILE) {
        for columns in (rows..n).step_by(TILE) {
            for p in rows..(rows + TILE).min(n) {
                for q in columns.max(p)..(columns + TILE).min(n) {
                    upper[p * n + q] = narrow(x[(n - 1 - q) * n + (n - 1 - p)]);
                }
            }
        }
    }
    upper
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hessian;

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
