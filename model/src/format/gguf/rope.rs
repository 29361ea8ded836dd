//! Rope scalings that a GGUF file stores as numbers: back to the parameters of `config.json`.
//!
//! Llama 3 (`rope_freqs.weight`, a divisor per frequency). With wavelength λᵢ = 2π θ^(2i/d) and original context L:
//!
//! ```text
//! divisor = 1                              λ < L / high
//!         = F                              λ > L / low
//!         = 1 / ((1 - s) / F + s)          between, s = (L / λ - low) / (high - low)
//! ```
//!
//! Only L/low and L/high show in the numbers; low is taken as 1, as every published model has it. Parameters that don't
//! give the stored numbers back are refused.

use crate::ModelError;
use std::{f64::consts::TAU, path::Path};

/// The parameters of the Llama 3 scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

impl Llama3 {
    /// The divisor at `wavelength`.
    fn divisor(&self, wavelength: f64) -> f64 {
        if wavelength < self.original / self.high {
            1.0
        } else if wavelength > self.original / self.low {
            self.factor
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            1.0 / ((1.0 - smooth) / self.factor + smooth)
        }
    }

    fn reproduces(&self, divisors: &[f32], wavelengths: &[f64]) -> bool {
        // The file holds single precision, computed in single precision: a few units in the last place.
        divisors.iter().zip(wavelengths).all(|(stored, wavelength)| {
            let (stored, ours) = (f64::from(*stored), self.divisor(*wavelength));
            (stored - ours).abs() <= 1e-5 * ours
        })
    }
}

/// The parameters behind the stored `divisors`; `None` where all are 1.
pub(super) fn recover_llama3(path: &Path, divisors: &[f32], theta: f64) -> Result<Option<Llama3>, ModelError> {
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Ok(None);
    }
    let pairs = divisors.len() as f64;
    let wavelengths: Vec<f64> = (0..divisors.len()).map(|i| TAU * theta.powf(i as f64 / pairs)).collect();
    let candidates = fitted(divisors, &wavelengths).into_iter().chain(published(divisors));
    candidates.into_iter().find(|candidate| candidate.reproduces(divisors, &wavelengths)).map(Some).ok_or_else(|| {
        ModelError::Unsupported {
            path: path.into(),
            what: "tensor `rope_freqs.weight`, which is no Llama 3 scaling of the rotary embedding,".into(),
        }
    })
}

/// Solves for the line 1/λ -> s through the outermost frequencies that lie between the two limits.
fn fitted(divisors: &[f32], wavelengths: &[f64]) -> Option<Llama3> {
    let factor = f64::from(*divisors.last()?);
    let between: Vec<(f64, f64)> = divisors
        .iter()
        .zip(wavelengths)
        .map(|(divisor, wavelength)| (f64::from(*divisor), 1.0 / wavelength))
        .filter(|(divisor, _)| *divisor > 1.0 && *divisor < factor)
        .map(|(divisor, frequency)| (frequency, (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor)))
        .collect();
    let ((f0, s0), (f1, s1)) = (*between.first()?, *between.last()?);
    let slope = (s0 - s1) / (f0 - f1);
    let constant = s0 - slope * f0;
    // slope = L / (high - low), constant = -low / (high - low), low = 1.
    let high = (1.0 - 1.0 / constant).round();
    let original = (slope * (high - 1.0)).round();
    (factor > 1.0 && high > 1.0 && original > 0.0).then_some(Llama3 { factor, low: 1.0, high, original })
}

/// What every published model has, for files with fewer than two frequencies between the limits.
fn published(divisors: &[f32]) -> Option<Llama3> {
    let factor = f64::from(*divisors.last()?);
    (factor > 1.0).then_some(Llama3 { factor, low: 1.0, high: 4.0, original: 8192.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divisors(scaling: &Llama3, theta: f64, pairs: u32) -> Vec<f32> {
        (0..pairs).map(|i| scaling.divisor(TAU * theta.powf(f64::from(i) / f64::from(pairs))) as f32).collect()
    }

    #[test]
    fn published_parameters_come_back() {
        for (factor, high, original, theta, pairs) in [
            (8.0, 4.0, 8192.0, 5e5, 64),
            (32.0, 4.0, 8192.0, 5e5, 32),
            (8.0, 8.0, 4096.0, 1e5, 16),
            (4.0, 4.0, 8192.0, 5e5, 4),
        ] {
            let scaling = Llama3 { factor, low: 1.0, high, original };
            let stored = divisors(&scaling, theta, pairs);
            let found = recover_llama3(Path::new("f"), &stored, theta).unwrap().unwrap();
            assert!(
                found.reproduces(
                    &stored,
                    &stored
                        .iter()
                        .enumerate()
                        .map(|(i, _)| TAU * theta.powf(i as f64 / f64::from(pairs)))
                        .collect::<Vec<_>>()
                )
            );
            if pairs >= 16 {
                assert_eq!(found, scaling);
            }
        }
    }

    #[test]
    fn other_numbers_are_refused() {
        let mut stored = divisors(&Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 }, 5e5, 64);
        stored[30] *= 1.01;
        for divisors in [stored, vec![2.0, 3.0, f32::NAN], vec![0.5; 8], vec![f32::INFINITY; 4]] {
            let error = recover_llama3(Path::new("f"), &divisors, 5e5).unwrap_err();
            assert!(error.to_string().contains("rope_freqs.weight"));
        }
        assert_eq!(recover_llama3(Path::new("f"), &[1.0; 8], 5e5).unwrap(), None);
    }
}
