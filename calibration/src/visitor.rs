//! What the driver calls back: where weights are replaced.

use crate::{CalibrationError, LayerStatistics};
use model::{Block, Linear, Stage, decoder::Head};
use std::collections::BTreeMap;

/// By what the columns of stages' inputs were divided.
pub type Divisors = BTreeMap<Stage, Vec<f32>>;

/// What the driver calls back.
pub trait Visitor {
    /// Puts the replaced weights of a block finished in an earlier run into `block`; `false` if there is none. The block
    /// is then only carried through, not captured.
    fn restore(&mut self, block: &mut Block) -> Result<bool, CalibrationError>;

    /// Whether any linear of this stage wants statistics (skipped modules don't).
    fn wants(&self, linears: &[Linear]) -> bool;

    /// Replaces the weights of `linears`, which share the input that `statistics` describes.
    fn stage(
        &mut self,
        block: usize,
        stage: Stage,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), CalibrationError>;

    /// Whether [`Visitor::prepare`] wants to see blocks before their stages are replaced.
    fn prepares(&self) -> bool {
        false
    }

    /// Tokens, about, of the windows whose residual stream [`Visitor::prepare`] wants to see.
    fn sample_tokens(&self) -> usize {
        0
    }

    /// Changes the weights of `block` in ways that leave what it computes as it was, given the statistics of the input of
    /// each wanted stage and, of a few windows, the residual stream before the block, `[tokens, hidden_size]`. Where that changes a stage's input, `captured` has to be changed alike, and by what its columns
    /// were divided is part of the result.
    fn prepare(
        &mut self,
        block: &mut Block,
        captured: &mut [(Stage, LayerStatistics)],
        sample: &[Vec<f32>],
    ) -> Result<Divisors, CalibrationError> {
        let _ = (block, captured, sample);
        Ok(Divisors::new())
    }

    /// A block is done, all its weights replaced; what the visitor wants to survive a crash it makes durable here.
    fn block_done(&mut self, block: &Block) -> Result<(), CalibrationError>;

    /// Whether the language-model head wants statistics. Then activations are carried past the last block.
    fn wants_head(&self) -> bool {
        false
    }

    /// Statistics of the head's input, the last block's output through the final norm.
    fn head(&mut self, head: &Head, statistics: &LayerStatistics) -> Result<(), CalibrationError> {
        let _ = (head, statistics);
        Ok(())
    }
}
