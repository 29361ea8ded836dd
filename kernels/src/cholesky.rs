//! The upper factor `U` of a Hessian's inverse, `H⁻¹ = UᵀU`, by one factorization and one triangular inverse: with `J`
//! the reversal of rows and columns, `J H J = L Lᵀ` gives `U = J L⁻¹ J`.

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

/// `h` is symmetric `[n, n]`, only its lower triangle is read; returns the upper factor `[n, n]`, zeros below the diagonal.
pub fn inverse_upper_factor(h: &[f32], n: usize, precision: Precision) -> Result<Vec<f32>, NotPositiveDefinite> {
    let _ = (h, n, precision);
    todo!("kernels helper")
}
