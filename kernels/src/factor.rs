//! The upper factor of a damped Hessian's inverse ([`crate::cholesky`]), made where the Gram matrix is.

use crate::{
    cholesky::{self, Damped, NotPositiveDefinite, Precision},
    cuda::{CudaError, DeviceFactor},
    resident::Resident,
};
use std::{borrow::Cow, sync::Arc};

/// `U` with `H⁻¹ = UᵀU`.
#[derive(Debug)]
pub struct Factor {
    /// `[width, width]`, zeros below the diagonal.
    pub upper: Resident<'static>,
    /// Its diagonal.
    pub pivots: Vec<f32>,
}

/// Of the Hessian that `damped` makes of `gram`, `[width, width]`.
///
/// # Errors
/// The device fails, or has too little memory.
pub fn inverse_upper_factor(
    gram: &Resident<'_>,
    damped: &Damped<'_>,
    precision: Precision,
) -> Result<Result<Factor, NotPositiveDefinite>, CudaError> {
    match gram {
        Resident::Host(gram) => {
            let width = damped.order.len();
            let upper = cholesky::inverse_upper_factor(&damped.of(gram), width, precision);
            Ok(upper.map(|upper| Factor {
                pivots: upper.iter().step_by(width + 1).copied().collect(),
                upper: Resident::Host(Cow::Owned(upper)),
            }))
        }
        Resident::Device { device, numbers, .. } => {
            let found = device.inverse_upper_factor(numbers, damped, precision)?;
            Ok(found.map(|DeviceFactor { upper: numbers, pivots }| Factor {
                upper: Resident::Device { device: Arc::clone(device), numbers, host: None },
                pivots,
            }))
        }
    }
}
