//! Whether a calibration set is enough for a model: tokens against input width per stage, rank, dead and near-dead
//! columns.
//!
//! ```text
//! rank deficit     max(0, width - tokens)    directions of the Hessian that no token can reach; damping alone decides there
//! thin             tokens < 4 width          full rank, but its small eigenvalues are noise of the sample
//! dead column      G[i][i] = 0               the input is always zero: the column's weights don't matter
//! near-dead        G[i][i] < 1e-8 mean_j G[j][j]   below what float32 sums resolve beside the others
//! effective rank   trace(G)² / |G|²          = (sum of eigenvalues)² / sum of their squares, 1 to width
//! ```
//!
//! The factor 4 is a convention: for white inputs the sample's smallest eigenvalue, `(1 - sqrt(width/tokens))²` of the
//! true one, is then a quarter of it. [`check_tokens`] needs no forward pass and comes first.

use crate::{CalibrationError, LayerStatistics};
use model::{Config, Stage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Tokens per input column below which a set is called thin.
const THIN: usize = 4;
/// The share of the mean diagonal below which a column is called near-dead.
const NEAR_DEAD: f64 = 1e-8;

/// Tokens against the width of a stage's input; the same in every block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenCheck {
    /// The stage.
    pub stage: Stage,
    /// The width of its input.
    pub width: usize,
    /// Tokens of the set.
    pub tokens: usize,
    /// By how many the Hessian's rank must fall short of its width.
    pub rank_deficit: usize,
    /// What to know about it, in a sentence; `None` if all is well.
    pub warning: Option<String>,
}

/// Holds a set of `tokens` tokens against the input widths of a model, before any work.
pub fn check_tokens(config: &Config, tokens: usize) -> Vec<TokenCheck> {
    let widths = [config.hidden_size, config.heads * config.head_width, config.hidden_size, config.intermediate_size];
    let checks = Stage::ALL.into_iter().zip(widths).map(|(stage, width)| TokenCheck {
        stage,
        width,
        tokens,
        rank_deficit: width.saturating_sub(tokens),
        warning: token_warning(&format!("stage {stage:?}"), width, tokens),
    });
    checks.collect()
}

fn token_warning(name: &str, width: usize, tokens: usize) -> Option<String> {
    let enough = THIN * width;
    if tokens < width {
        Some(format!(
            "{name}: {tokens} calibration tokens can't tell {width} input columns apart ({} directions are left to damping); give at least {enough} tokens",
            width - tokens
        ))
    } else if tokens < enough {
        Some(format!(
            "{name}: {tokens} calibration tokens are thin for {width} input columns; {enough} or more are advised"
        ))
    } else {
        None
    }
}

/// What a stage's statistics say about the set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageAdequacy {
    /// The first linear that reads the input.
    pub module: String,
    /// The width of the input.
    pub width: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// By how many the Hessian's rank must fall short of its width.
    pub rank_deficit: usize,
    /// Columns whose input is always zero.
    pub dead_columns: Vec<usize>,
    /// Columns whose input is almost always zero.
    pub near_dead_columns: Vec<usize>,
    /// How many directions the input really uses: `trace² / |G|²`.
    pub effective_rank: f64,
    /// What to know about it, in sentences; none if all is well.
    pub warnings: Vec<String>,
}

/// Reads the adequacy of the set for `module` off the statistics of its input.
pub fn check_statistics(module: &str, statistics: &LayerStatistics) -> Result<StageAdequacy, CalibrationError> {
    let LayerStatistics { width, tokens, .. } = *statistics;
    let diagonal: Vec<f64> = (0..width).map(|i| f64::from(statistics.gram[i * width + i])).collect();
    let trace: f64 = diagonal.iter().sum();
    let threshold = NEAR_DEAD * trace / width as f64;
    let columns = |wanted: &dyn Fn(f64) -> bool| (0..width).filter(|i| wanted(diagonal[*i])).collect::<Vec<_>>();
    let dead_columns = columns(&|value| value == 0.0);
    let near_dead_columns = columns(&|value| value > 0.0 && value < threshold);
    let square = |row: &[f32]| row.iter().map(|value| f64::from(*value).powi(2)).sum();
    let squares: Vec<f64> = statistics.gram.par_chunks(width.max(1)).map(square).collect();
    let squares: f64 = squares.iter().sum();
    if !(trace.is_finite() && squares.is_finite()) {
        return Err(CalibrationError::NotFinite { module: module.to_owned() });
    }
    let effective_rank = if squares > 0.0 { trace * trace / squares } else { 0.0 };
    let mut warnings: Vec<String> = token_warning(module, width, tokens).into_iter().collect();
    for (kind, columns) in [("never", &dead_columns), ("almost never", &near_dead_columns)] {
        if !columns.is_empty() {
            warnings.push(format!(
                "{module}: {} of {width} input columns are {kind} used by this calibration text ({})",
                columns.len(),
                listed(columns)
            ));
        }
    }
    Ok(StageAdequacy {
        module: module.to_owned(),
        width,
        tokens,
        rank_deficit: width.saturating_sub(tokens),
        dead_columns,
        near_dead_columns,
        effective_rank,
        warnings,
    })
}

/// The first few numbers of a list.
fn listed(columns: &[usize]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = columns.iter().take(SHOWN).map(usize::to_string).collect();
    let dots = if columns.len() > SHOWN { ", …" } else { "" };
    format!("{}{dots}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Accumulator;
    use proptest::prelude::*;

    fn statistics(rows: &[f32], width: usize) -> LayerStatistics {
        let mut accumulator = Accumulator::new(width, kernels::Compute::F32);
        accumulator.add(rows);
        accumulator.finish()
    }

    #[test]
    fn dead_and_near_dead_columns_are_named() {
        // Column 1 is zero; column 2 is 1e-5 of column 0, so its diagonal is 1e-10 of that one's.
        let rows: Vec<f32> = (0..64).flat_map(|t| [(t % 5) as f32 - 2.0, 0.0, 1e-5 * (t % 3) as f32, 1.0]).collect();
        let report = check_statistics("m", &statistics(&rows, 4)).unwrap();
        assert_eq!(
            (report.dead_columns.as_slice(), report.near_dead_columns.as_slice()),
            ([1].as_slice(), [2].as_slice())
        );
        assert_eq!((report.rank_deficit, report.warnings.len()), (0, 2));
        assert!(report.warnings[0].contains("1 of 4") && report.warnings[0].contains("(1)"), "{:?}", report.warnings);
    }

    #[test]
    fn few_tokens_leave_a_deficit() {
        let report = check_statistics("m", &statistics(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3)).unwrap();
        assert_eq!(report.rank_deficit, 1);
        assert!(report.warnings[0].contains("at least 12 tokens"), "{:?}", report.warnings);
    }

    #[test]
    fn effective_rank_counts_equal_directions() {
        let identity: Vec<f32> = (0..25).map(|i| if i % 6 == 0 { 3.0 } else { 0.0 }).collect();
        assert!((check_statistics("m", &statistics(&identity, 5)).unwrap().effective_rank - 5.0).abs() < 1e-6);
        assert!((check_statistics("m", &statistics(&[2.0; 35], 5)).unwrap().effective_rank - 1.0).abs() < 1e-6);
        assert_eq!(check_statistics("m", &statistics(&[0.0; 10], 5)).unwrap().effective_rank, 0.0);
    }

    #[test]
    fn sums_that_are_no_numbers_are_refused() {
        assert!(check_statistics("m", &statistics(&[f32::NAN, 1.0], 2)).is_err());
    }

    #[test]
    fn widths_are_held_against_tokens() {
        let warning = |tokens| token_warning("stage", 100, tokens);
        assert!(warning(99).unwrap().contains("1 directions"));
        assert!(warning(100).unwrap().contains("thin") && warning(399).is_some() && warning(400).is_none());
    }

    proptest! {
        #[test]
        fn effective_rank_is_between_one_and_the_width(rows in prop::collection::vec(-10.0f32..10.0, 24)) {
            prop_assume!(rows.iter().any(|value| value.abs() > 0.1));
            let rank = check_statistics("m", &statistics(&rows, 6)).unwrap().effective_rank;
            // At most the number of rows as well; float32 sums leave 1e-4.
            prop_assert!((0.999..=4.001).contains(&rank), "{rank}");
        }
    }
}
