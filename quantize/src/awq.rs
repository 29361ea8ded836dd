//! AWQ (Lin et al. 2023): weights that meet large inputs are worth more, so scale them up before rounding and their
//! inputs down, which changes nothing but the rounding; then draw in each group's range where that costs less.
//!
//! ```text
//! a    = mean |x|, per channel of the input x that a stage's linears share
//! s_r  = a^r / sqrt(max a^r · min a^r)             r = 0, 1/20, 2/20 .. 1; s_0 = 1 is the identity
//! E    = round(W·s_r) / s_r − W                    W·s: column c of W times s_c; rounded to nearest on W's grid
//! r    = argmin Σ tr(E G Eᵀ), G = XᵀX              over the stage's linears W; ties the smaller exponent
//! W    = W·s_r, producer of x = producer / s_r     exact: see `model::decoder::fold`
//! grid = the range of each group drawn in to where its rounding costs least (`kernels::clip`)
//! Q    = round(W to grid), or, with GPTQ, W compensated on that grid
//! ```
//!
//! The objective `Σ tr(E G Eᵀ) = Σ ‖E X‖²` is the squared error of the linears' outputs, exactly; it needs no forward
//! pass, so that statistics are captured once and every candidate is tried on them. What attention or the
//! feed-forward network make of that error is left out, unless the user asks for the paper's objective
//! ([`crate::sublayer`], for q, k, v and for gate and up). Since the identity is a candidate of the search and of the
//! clipping, AWQ never ends above rounding to nearest on its objective.
//!
//! In GGUF's block formats the factors are searched for rounding on the format's own grids, fitted with the input's mean
//! squares as importance; that fit looks for the best range itself, and nothing is clipped beside it.
//!
//! Errors in the report are in the units of the model as it was given: outputs scaled by the next stage's search are
//! scaled back before they are measured, so that they compare with other methods'.

use crate::{
    Hessian, QuantizeError,
    fold::{Folded, FoldedBlock},
    gptq::Gptq,
    measure::{output_energy, relative},
    plan::AwqOptions,
    solver::{ClippingReport, Factorization, LayerReport, Solver, check_finite},
};
use calibration::LayerStatistics;
use kernels::{
    Engine, QuantSpec, QuantizedMatrix, Resident,
    block_solve::{self, Grids},
    clip,
    cuda::CudaError,
    kquant::BlockType,
};
use model::Linear;
use std::time::Instant;

/// Factors outside this are no gain in accuracy but a risk for float16.
const LARGEST_FACTOR: f64 = 1e4;

/// The factors found for a stage's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// `r`; 0 is the identity.
    pub exponent: f64,
    /// `s_r`, one a channel.
    pub factors: Vec<f32>,
    /// The objective with them.
    pub loss: f64,
    /// The same without scaling.
    pub loss_unscaled: f64,
}

/// On which grid a linear will be rounded.
#[derive(Clone, Copy, Debug)]
pub enum Rounding<'a> {
    /// One with a scale and a zero-point for each group.
    Groups(&'a QuantSpec),
    /// That of a GGUF block format.
    Blocks(BlockType),
}

/// The exponents to try, the identity's 0 first, each with its factors, one a channel.
pub fn candidates(
    statistics: &LayerStatistics,
    channels: &[usize],
    steps: u32,
    storable: impl Fn(&[f32]) -> Vec<f32>,
) -> Vec<(f64, Vec<f32>)> {
    let magnitudes = magnitudes(statistics, channels);
    let scaled = (1..=steps).map(|step| {
        let exponent = f64::from(step) / f64::from(steps);
        (exponent, storable(&scale(&magnitudes, exponent)))
    });
    std::iter::once((0.0, vec![1.0; magnitudes.len()])).chain(scaled).collect()
}

/// The candidate of least `loss`, which is given the factor of each column; of equals the first.
pub fn best(
    candidates: Vec<(f64, Vec<f32>)>,
    channels: &[usize],
    mut loss: impl FnMut(&[f32]) -> Result<f64, CudaError>,
) -> Result<Choice, CudaError> {
    let mut best: Option<Choice> = None;
    for (exponent, factors) in candidates {
        let columns: Vec<f32> = channels.iter().map(|&channel| factors[channel]).collect();
        let loss = loss(&columns)?;
        let loss_unscaled = best.as_ref().map_or(loss, |best| best.loss_unscaled);
        if best.as_ref().is_none_or(|best| loss < best.loss) {
            best = Some(Choice { exponent, factors, loss, loss_unscaled });
        }
    }
    Ok(best.expect("the identity is a candidate"))
}

/// `mean |x|` of each channel, over tokens and over the columns that belong to it.
fn magnitudes(statistics: &LayerStatistics, channels: &[usize]) -> Vec<f64> {
    let count = channels.iter().max().map_or(0, |last| last + 1);
    let (mut sums, mut columns) = (vec![0.0; count], vec![0usize; count]);
    for (&channel, sum) in channels.iter().zip(&statistics.sum_absolute) {
        sums[channel] += sum;
        columns[channel] += 1;
    }
    let tokens = statistics.tokens.max(1);
    sums.iter().zip(columns).map(|(sum, columns)| sum / (columns * tokens).max(1) as f64).collect()
}

/// `a^r / sqrt(max a^r · min a^r)` over channels that are ever used; 1 for the others.
fn scale(magnitudes: &[f64], exponent: f64) -> Vec<f32> {
    let used = || magnitudes.iter().copied().filter(|magnitude| *magnitude > 0.0);
    let (least, most) = (used().fold(f64::INFINITY, f64::min), used().fold(0.0, f64::max));
    let middle = (least.powf(exponent) * most.powf(exponent)).sqrt();
    let factor = |magnitude: f64| (magnitude.powf(exponent) / middle).clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR);
    magnitudes.iter().map(|&magnitude| if magnitude > 0.0 { factor(magnitude) as f32 } else { 1.0 }).collect()
}

/// Rounds (or compensates) what is left of the method when a block's factors are folded.
pub struct Awq {
    /// The method's settings.
    pub options: AwqOptions,
    /// GPTQ on the scaled weights, instead of rounding to nearest.
    pub compensation: Option<Gptq>,
    /// What was folded into the present block.
    pub folded: FoldedBlock,
    /// Where rounding is done.
    pub engine: Engine,
}

impl Solver for Awq {
    fn solve(
        &self,
        linear: &Linear,
        spec: &QuantSpec,
        hessian: &mut Hessian<'_>,
    ) -> Result<(QuantizedMatrix, LayerReport), QuantizeError> {
        let started = Instant::now();
        check_finite(linear)?;
        let mut clipping = None;
        let mut grids =
            |weight: &[f32], gram: &Resident<'_>, group_index: &[u32]| -> Result<Option<Grids>, CudaError> {
                if !self.options.clip {
                    return Ok(None);
                }
                let clipped = clip::search(weight, gram, group_index, spec)?;
                clipping = Some(ClippingReport::of(&clipped.keep));
                Ok(Some(clipped.grids))
            };
        let (matrix, factorization) = if let Some(gptq) = &self.compensation {
            let (solution, factor) = gptq.compensate(linear, spec, hessian, grids)?;
            (solution.matrix, Some(Factorization::of(&factor, gptq.damping)))
        } else {
            let grids = grids(&linear.weight, hessian.resident(), &stored_groups(linear, spec))?;
            (self.round(linear, spec, grids)?, None)
        };
        let mut report = self.measure(linear, &matrix, hessian)?;
        report.factorization = factorization;
        report.clipping = clipping;
        report.seconds = started.elapsed().as_secs_f64();
        Ok((matrix, report))
    }
}

impl Awq {
    /// Rounded to nearest on `grids`, or on full ones.
    fn round(&self, linear: &Linear, spec: &QuantSpec, grids: Option<Grids>) -> Result<QuantizedMatrix, CudaError> {
        match grids {
            Some(grids) => self.engine.round_on(&linear.weight, &stored_groups(linear, spec), &grids, spec),
            None => self.engine.round_to_nearest(&linear.weight, linear.inputs, spec),
        }
    }

    /// What the integers cost, and what rounding the weights as they were given would have, both in the outputs of the
    /// model as it was given.
    fn measure(
        &self,
        linear: &Linear,
        matrix: &QuantizedMatrix,
        hessian: &Hessian<'_>,
    ) -> Result<LayerReport, CudaError> {
        let (gram, width) = (hessian.resident(), linear.inputs);
        let none = Folded::nothing(linear);
        let folded = self.folded.modules.get(&linear.name).unwrap_or(&none);
        let whole = output_energy(&folded.rows_restored(&linear.weight, width), gram, width)?;
        // The input is `x / s`, so that an error E of the given weight does as much harm as E·s here.
        let mut nearest = folded.given(&linear.weight, width);
        block_solve::rounding_errors(&mut nearest, width, &matrix.spec);
        folded.multiply_columns(&mut nearest);
        Ok(LayerReport {
            tokens: hessian.tokens(),
            error_round_to_nearest: Some(relative(output_energy(&nearest, gram, width)?, whole)),
            error: Some(folded.output_error(linear, &matrix.dequantize(), hessian)?),
            dead_columns: hessian.dead().to_vec(),
            scaling: folded.report.clone(),
            ..LayerReport::unmeasured(linear, &matrix.spec)
        })
    }
}

fn stored_groups(linear: &Linear, spec: &QuantSpec) -> Vec<u32> {
    let columns = spec.columns_per_group(linear.inputs);
    (0..linear.inputs).map(|column| (column / columns) as u32).collect()
}
