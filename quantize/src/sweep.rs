//! Many plans on the same statistics: what they have in common is computed once.
//!
//! ```text
//! per block:   weights and statistics are read once
//! per stage:   one Hessian; one factor for every order of columns and damping that occurs, whatever bits and group size
//! per plan:    integers into its own journal
//! ```
//!
//! The statistics are those of the original model ([`calibration::captured`]), so that this is, to the bit, what a run
//! with `inputs = original` solves. What is left out is measuring the outputs' errors, which takes longer than solving.

use crate::{
    Hessian, Journal, QuantizeError,
    plan::{HEAD, Objective, ValidPlan},
    visitor::Quantizer,
};
use calibration::{
    Visitor as _,
    adequacy::check_statistics,
    captured::{BlockStatistics, Statistics},
};
use console::{Progress, Silence};
use kernels::Engine;
use model::Checkpoint;

/// A plan and where its blocks go.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// The plan.
    pub plan: &'a ValidPlan,
    /// Its journal; blocks that it has are not solved again.
    pub journal: &'a Journal,
}

/// Solves every block of every member. `done` hears of each finished block.
pub fn sweep(
    checkpoint: &Checkpoint,
    members: &[Member<'_>],
    statistics: &dyn Statistics,
    done: &mut dyn FnMut(usize),
) -> Result<(), QuantizeError> {
    if members.iter().any(|member| member.plan.spec_of(HEAD).is_some()) {
        let what =
            "statistics are captured of the blocks, not of the head: leave --lm-head out, or run with calibration";
        return Err(QuantizeError::Option(what.to_owned()));
    }
    if members.iter().any(|member| member.plan.options.awq.objective == Objective::Block) {
        let what = "the block objective of AWQ needs windows, not only their statistics: leave it at `linears`";
        return Err(QuantizeError::Option(what.to_owned()));
    }
    // Each quantizer counts its own modules; what is shown is told once for all.
    let silence = Silence::begin();
    let mut counted: Vec<Progress> = members.iter().map(|_| Progress::new("", 0, 0)).collect();
    drop(silence);
    let quantizers = members.iter().zip(&mut counted);
    let mut quantizers: Vec<Quantizer<'_>> = quantizers
        .map(|(member, progress)| {
            Quantizer::measuring(member.plan, member.journal, None, progress, false, &Engine::Cpu)
        })
        .collect();
    for index in 0..checkpoint.config.layers.len() {
        let open: Vec<&mut Quantizer<'_>> =
            quantizers.iter_mut().zip(members).filter(|(_, m)| !m.journal.has(index)).map(|(q, _)| q).collect();
        if !open.is_empty() {
            let captured = statistics.block(&checkpoint.config, index).map_err(QuantizeError::from_driver)?;
            solve_block(checkpoint, index, open, &captured)?;
        }
        done(index);
    }
    Ok(())
}

fn solve_block(
    checkpoint: &Checkpoint,
    index: usize,
    open: Vec<&mut Quantizer<'_>>,
    captured: &BlockStatistics,
) -> Result<(), QuantizeError> {
    let block = checkpoint.block(index)?;
    let (scaling, mut plain): (Vec<_>, Vec<_>) = open.into_iter().partition(|quantizer| quantizer.prepares());
    for (stage, statistics) in captured {
        let linears = block.linears(*stage);
        if !plain.iter().any(|quantizer| quantizer.wants(linears)) {
            continue;
        }
        let adequacy = check_statistics(&linears[0].name, statistics)?;
        let mut hessian = Hessian::new(statistics, &linears[0].name)?;
        for quantizer in plain.iter_mut().filter(|quantizer| quantizer.wants(linears)) {
            quantizer.solve_linears(index, &mut linears.to_vec(), statistics, &adequacy, &mut hessian)?;
        }
    }
    for quantizer in plain {
        quantizer.block_done(&block).map_err(QuantizeError::from_driver)?;
    }
    scaling.into_iter().try_for_each(|quantizer| scaled(checkpoint, index, quantizer, captured))
}

/// A method that changes the block before it solves it has block and statistics to itself.
fn scaled(
    checkpoint: &Checkpoint,
    index: usize,
    quantizer: &mut Quantizer<'_>,
    captured: &BlockStatistics,
) -> Result<(), QuantizeError> {
    let mut block = checkpoint.block(index)?;
    let mut captured = captured.clone();
    captured.retain(|(stage, _)| quantizer.wants(block.linears(*stage)));
    let mut solve = || {
        quantizer.prepare(&mut block, &mut captured, &[])?;
        for (stage, statistics) in &captured {
            quantizer.stage(index, *stage, block.linears_mut(*stage), statistics)?;
        }
        quantizer.block_done(&block)
    };
    solve().map_err(QuantizeError::from_driver)
}
