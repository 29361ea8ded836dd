//! The Hessian of a layer's output error and the factor of its inverse, shared by all linears that see the same input.
//!
//! `H = 2/tokens Σ x xᵀ + λ I`, `λ = damping · mean(diag H)` over the columns that are not dead; `H⁻¹ = Uᵀ U`, `U` upper.
//! A dead column (its input was never anything but zero) is decoupled by `H_ii = 1`. `1 / U_jj²` is what remains of
//! column `j`'s variance once the columns visited after it are known: a pivot that float32 can't tell from zero makes
//! the column degenerate.
//!
//! If the factorization fails, it is tried in float64, and only then with twice the damping; what was used is part of
//! the result, and if nothing helps the caller gets an error, never another method.

use crate::QuantizeError;
use calibration::LayerStatistics;
use kernels::{
    Engine, Resident,
    cholesky::{Damped, Precision},
    factor::inverse_upper_factor,
};
use rayon::prelude::*;
use std::rc::Rc;

/// Doublings of the damping before giving up: from the usual 0.01 to beyond 1, where `λ` exceeds the mean diagonal.
const DOUBLINGS: u32 = 7;
/// The first damping tried after 0, which can't be doubled.
const LEAST_DAMPING: f64 = 1e-4;
/// A pivot below this share of its diagonal entry has lost every digit of a float32 (epsilon 1.2e-7, a few roundings).
const DEGENERATE_PIVOT: f32 = 1e-6;

/// A factored Hessian.
#[derive(Debug)]
pub struct Factor {
    /// Position → stored column.
    pub order: Vec<usize>,
    /// `U`, `[width, width]`, in that order.
    pub upper: Resident<'static>,
    /// The damping that was used, relative to the mean diagonal.
    pub damping: f64,
    /// The arithmetic that was used.
    pub precision: Precision,
    /// Stored columns whose pivot float32 can't tell from zero.
    pub degenerate: Vec<usize>,
}

/// The statistics of one input as a Hessian, with the factors made of it so far.
pub struct Hessian<'a> {
    statistics: &'a LayerStatistics,
    gram: Resident<'a>,
    diagonal: Vec<f32>,
    dead: Vec<usize>,
    factors: Vec<(f64, Rc<Factor>)>,
}

impl<'a> Hessian<'a> {
    /// Of the input that `module` (named in errors) and its siblings share.
    pub fn new(statistics: &'a LayerStatistics, module: &str) -> Result<Self, QuantizeError> {
        Self::on(&Engine::Cpu, statistics, module)
    }

    /// The same, to be factored by `engine`.
    pub fn on(engine: &Engine, statistics: &'a LayerStatistics, module: &str) -> Result<Self, QuantizeError> {
        let not_finite = || QuantizeError::NotFinite { module: module.to_owned(), what: "its inputs are" };
        if statistics.gram.par_chunks(statistics.width.max(1)).any(|row| row.iter().any(|v| !v.is_finite())) {
            return Err(not_finite());
        }
        let scale = 2.0 / statistics.tokens.max(1) as f32;
        let diagonal: Vec<f32> =
            statistics.gram.iter().step_by(statistics.width + 1).map(|square| scale * square).collect();
        let dead = (0..statistics.width).filter(|&i| diagonal[i] <= 0.0).collect();
        let gram = Resident::new(engine, &statistics.gram)?;
        Ok(Self { statistics, gram, diagonal, dead, factors: Vec::new() })
    }

    /// Tokens behind it.
    pub fn tokens(&self) -> usize {
        self.statistics.tokens
    }

    /// `XᵀX`, `[width, width]`.
    pub fn gram(&self) -> &[f32] {
        &self.statistics.gram
    }

    /// The same where the engine works.
    pub fn resident(&self) -> &Resident<'a> {
        &self.gram
    }

    /// How far the input has drifted from the original model's: [`LayerStatistics::drift`], where that was captured.
    pub fn drift(&self) -> Option<&[f32]> {
        self.statistics.drift.as_deref()
    }

    /// What `H` is of `XᵀX`: `2 / tokens`.
    pub fn scale(&self) -> f32 {
        2.0 / self.tokens().max(1) as f32
    }

    /// `diag H`, undamped; 0 for dead columns.
    pub fn diagonal(&self) -> &[f32] {
        &self.diagonal
    }

    /// Columns whose input was always zero.
    pub fn dead(&self) -> &[usize] {
        &self.dead
    }

    /// The factor for columns visited in `order`; computed once for each order and damping.
    pub fn factor(&mut self, order: &[usize], damping: f64, module: &str) -> Result<Rc<Factor>, QuantizeError> {
        let known = self.factors.iter().find(|(asked, factor)| *asked == damping && factor.order == order);
        if let Some((_, factor)) = known {
            return Ok(Rc::clone(factor));
        }
        let factor = Rc::new(self.factor_with_rescue(order, damping, module)?);
        self.factors.push((damping, Rc::clone(&factor)));
        Ok(factor)
    }

    fn factor_with_rescue(&self, order: &[usize], damping: f64, module: &str) -> Result<Factor, QuantizeError> {
        let mut damping = damping;
        for _ in 0..=DOUBLINGS {
            let diagonal = self.damped_diagonal(order, damping);
            let damped = Damped { order, scale: self.scale(), diagonal: &diagonal };
            for precision in [Precision::Single, Precision::Double] {
                if let Ok(factor) = inverse_upper_factor(&self.gram, &damped, precision)? {
                    let degenerate = degenerate_columns(&diagonal, &factor.pivots, order);
                    return Ok(Factor { order: order.to_vec(), upper: factor.upper, damping, precision, degenerate });
                }
            }
            damping = (2.0 * damping).max(LEAST_DAMPING);
        }
        Err(QuantizeError::Factor { module: module.to_owned(), tokens: self.tokens(), damping: damping / 2.0 })
    }

    /// `diag H` with dead columns decoupled and `λ` added, in `order`.
    fn damped_diagonal(&self, order: &[usize], damping: f64) -> Vec<f32> {
        let lambda = damping * self.mean_diagonal();
        let entry = |column: usize| if self.diagonal[column] > 0.0 { f64::from(self.diagonal[column]) } else { 1.0 };
        order.iter().map(|&column| (entry(column) + lambda) as f32).collect()
    }

    fn mean_diagonal(&self) -> f64 {
        let alive = self.diagonal.len() - self.dead.len();
        self.diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / alive.max(1) as f64
    }
}

fn degenerate_columns(diagonal: &[f32], pivots: &[f32], order: &[usize]) -> Vec<usize> {
    let entries = diagonal.iter().zip(pivots).zip(order);
    let mut columns: Vec<usize> = entries
        .filter(|((entry, u), _)| 1.0 / (**u * **u) < DEGENERATE_PIVOT * **entry)
        .map(|(_, &column)| column)
        .collect();
    columns.sort_unstable();
    columns
}
