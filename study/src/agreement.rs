//! `study agreement`: how alike the statistics of two texts are, or of two halves of one.
//!
//! ```text
//! similarity of Hessians    ⟨A, B⟩ / (‖A‖ ‖B‖) over all entries of XᵀX
//! correlation of diagonals  of log E[x²] over the columns of an input: which channels are large
//! ```
//!
//! Both are 1 for statistics that solvers can't tell apart (a factor common to all of a Hessian changes no solution).

use crate::{StudyError, solve::statistics_of};
use calibration::{LayerStatistics, captured::Statistics as _};
use model::{Checkpoint, Stage};
use serde::Serialize;
use std::path::Path;

/// How alike two texts' statistics of one stage's inputs are, over all blocks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// `qkv`, `output`, `gate-up`, `down`.
    pub stage: Stage,
    /// Mean over blocks.
    pub hessians: f64,
    /// The least of all blocks.
    pub least: f64,
    /// Mean correlation of the diagonals.
    pub diagonals: f64,
}

/// The agreement of the statistics in folders `first` and `second`, both of `model`.
pub fn agreement(model: &str, first: &Path, second: &Path) -> Result<Vec<Agreement>, StudyError> {
    let checkpoint = Checkpoint::open(model)?;
    let files = checkpoint.source_files()?;
    let [first, second] = [statistics_of(&checkpoint, &files, first)?, statistics_of(&checkpoint, &files, second)?];
    let mut stages = Stage::ALL.map(|stage| (stage, Vec::new(), Vec::new()));
    for block in 0..checkpoint.config.layers.len() {
        let both = first.block(&checkpoint.config, block)?.into_iter().zip(second.block(&checkpoint.config, block)?);
        for ((_, hessians, diagonals), ((_, a), (_, b))) in stages.iter_mut().zip(both) {
            hessians.push(similarity(&a.gram, &b.gram));
            diagonals.push(correlation(&logarithms(&a), &logarithms(&b)));
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let agreement = |(stage, hessians, diagonals): &(Stage, Vec<f64>, Vec<f64>)| Agreement {
        stage: *stage,
        hessians: mean(hessians),
        least: hessians.iter().copied().fold(f64::INFINITY, f64::min),
        diagonals: mean(diagonals),
    };
    Ok(stages.iter().map(agreement).collect())
}

fn similarity(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// `log E[x²]` of each column; a dead one as small as float32 has.
fn logarithms(statistics: &LayerStatistics) -> Vec<f64> {
    let tokens = statistics.tokens as f64;
    statistics.sum_square.iter().map(|sum| (sum / tokens).max(f64::from(f32::MIN_POSITIVE)).ln()).collect()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let products = |f: fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| f(a - mean_a, b - mean_b)).sum::<f64>();
    products(|a, b| a * b) / (products(|a, _| a * a) * products(|_, b| b * b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_changes_no_similarity_and_a_constant_no_correlation() {
        assert!((similarity(&[1.0, 2.0, -3.0], &[2.0, 4.0, -6.0]) - 1.0).abs() < 1e-12);
        assert!(similarity(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-12);
        assert!((correlation(&[1.0, 2.0, 4.0], &[11.0, 12.0, 14.0]) - 1.0).abs() < 1e-12);
        assert!((correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
    }
}
