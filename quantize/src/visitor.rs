//! What the calibration driver calls back: solve a stage, keep its integers, make a finished block durable.

use crate::{
    Hessian, Journal, QuantizeError, Solver,
    awq::Awq,
    blocks::BlockSolver,
    fold::{self, FoldedBlock, Tensors},
    gptq::Gptq,
    journal::Solved,
    plan::{HEAD, Method, Objective, Options, ValidPlan},
    rtn::RoundToNearest,
    sublayer::SAMPLE_TOKENS,
};
use calibration::{
    CalibrationError, LayerStatistics, Visitor,
    adequacy::{StageAdequacy, check_statistics},
    driver::Divisors,
};
use console::Progress;
use kernels::Engine;
use model::{
    Block, Linear, Stage,
    decoder::Head,
    format::gguf::imatrix::{Importance, Sums},
};
use std::collections::BTreeMap;

/// Quantizes block after block into a journal.
pub struct Quantizer<'a> {
    pub(crate) plan: &'a ValidPlan,
    journal: &'a Journal,
    algorithm: Algorithm,
    block_solver: BlockSolver,
    importance: Option<&'a Importance>,
    /// Sums of squared activations of every module that was captured.
    pub sums: BTreeMap<String, Sums>,
    progress: &'a mut Progress,
    /// Where weights are solved.
    engine: Engine,
    /// Parts of the present block that are in the journal.
    parts: usize,
}

/// A method as this visitor needs it.
enum Algorithm {
    /// Linear by linear.
    Plain(Box<dyn Solver>),
    /// Looks at a whole block first.
    Awq(Awq),
}

impl<'a> Quantizer<'a> {
    /// For `plan`, into `journal`; every module is a step of `progress`; rounded on `engine`. `importance` weighs errors in block formats.
    pub fn new(
        plan: &'a ValidPlan,
        journal: &'a Journal,
        importance: Option<&'a Importance>,
        progress: &'a mut Progress,
        engine: &Engine,
    ) -> Self {
        Self::measuring(plan, journal, importance, progress, true, engine)
    }

    /// The same; the outputs' errors of error compensation are only `measured` where wanted.
    pub(crate) fn measuring(
        plan: &'a ValidPlan,
        journal: &'a Journal,
        importance: Option<&'a Importance>,
        progress: &'a mut Progress,
        measured: bool,
        engine: &Engine,
    ) -> Self {
        let Options { method, damping, input_correction, act_order, .. } = plan.options;
        let gptq = Gptq { damping, input_correction, measured, engine: engine.clone() };
        let awq = |compensation| Awq {
            options: plan.options.awq.clone(),
            compensation,
            folded: FoldedBlock::default(),
            engine: engine.clone(),
        };
        let algorithm = match method {
            Method::Gptq => Algorithm::Plain(Box::new(gptq)),
            Method::Rtn => Algorithm::Plain(Box::new(RoundToNearest { engine: engine.clone() })),
            Method::Awq => Algorithm::Awq(awq(None)),
            Method::AwqGptq => Algorithm::Awq(awq(Some(gptq))),
        };
        let block_solver = BlockSolver { method, damping, input_correction, act_order };
        let (sums, parts) = (BTreeMap::new(), 0);
        Self { plan, journal, algorithm, block_solver, importance, sums, progress, engine: engine.clone(), parts }
    }

    fn solver(&self) -> &dyn Solver {
        match &self.algorithm {
            Algorithm::Plain(solver) => solver.as_ref(),
            Algorithm::Awq(awq) => awq,
        }
    }

    /// Whether the head is to be quantized and no earlier run has done it.
    fn head_is_open(&self) -> bool {
        self.plan.spec_of(HEAD).is_some() && !self.journal.has(self.plan.blocks() - 1)
    }

    /// Solves `linears`, makes them durable as a part of block `index`, and lets them compute with what the file holds.
    fn solve_stage(
        &mut self,
        index: usize,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), QuantizeError> {
        let adequacy = check_statistics(&linears[0].name, statistics)?;
        let mut hessian = Hessian::on(&self.engine, statistics, &linears[0].name)?;
        self.solve_linears(index, linears, statistics, &adequacy, &mut hessian)
    }

    /// The same for linears whose shared input has `statistics`, with the factors that `hessian` has already.
    pub(crate) fn solve_linears(
        &mut self,
        index: usize,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
        adequacy: &StageAdequacy,
        hessian: &mut Hessian<'_>,
    ) -> Result<(), QuantizeError> {
        let mut solved = Vec::new();
        for linear in linears.iter() {
            let Some(spec) = self.plan.spec_of(&linear.name) else { continue };
            self.sums.insert(linear.name.clone(), sums_of(statistics));
            let (matrix, mut report): Solved = if let Some(kind) = self.plan.blocks_of(&linear.name) {
                let importance = self.importance.and_then(|known| known.get(&linear.name)).map(Vec::as_slice);
                let folded = match &self.algorithm {
                    Algorithm::Awq(awq) => awq.folded.modules.get(&linear.name),
                    Algorithm::Plain(_) => None,
                };
                let (matrix, report) = self.block_solver.solve(linear, kind, importance, hessian, folded)?;
                (matrix.into(), report)
            } else {
                let (matrix, report) = self.solver().solve(linear, spec, hessian)?;
                (matrix.into(), report)
            };
            report.near_dead_columns.clone_from(&adequacy.near_dead_columns);
            report.effective_rank = Some(adequacy.effective_rank);
            self.progress.step(&linear.name);
            solved.push((matrix, report));
        }
        let stored = self.journal.store_part(index, self.parts, &solved)?;
        self.parts += 1;
        for ((matrix, report), given) in stored.iter().zip(&solved) {
            // Then the errors in the report are those of what the file holds.
            if (matrix, report) != (&given.0, &given.1) {
                let what = "the file doesn't hold what the solver gave".to_owned();
                return Err(QuantizeError::Proof { module: given.1.module.clone(), what });
            }
            let linear =
                linears.iter_mut().find(|linear| linear.name == report.module).expect("it was solved just now");
            linear.weight = matrix.dequantize();
        }
        Ok(())
    }

    /// The present block is complete.
    fn close(&mut self, index: usize, tensors: &Tensors) -> Result<(), QuantizeError> {
        self.journal.close(index, std::mem::take(&mut self.parts), tensors)
    }
}

impl Visitor for Quantizer<'_> {
    fn restore(&mut self, block: &mut Block) -> Result<bool, CalibrationError> {
        if !self.journal.has(block.index) {
            return Ok(false);
        }
        let solved = self.journal.load(block.index)?;
        for stage in Stage::ALL {
            for linear in block.linears_mut(stage) {
                if let Some((matrix, _)) = solved.iter().find(|(_, report)| report.module == linear.name) {
                    linear.weight = matrix.dequantize();
                }
            }
        }
        for (name, values) in self.journal.tensors(block.index)?.iter() {
            block.replace_small_tensor(name, values)?;
        }
        Ok(true)
    }

    fn wants(&self, linears: &[Linear]) -> bool {
        linears.iter().any(|linear| self.plan.spec_of(&linear.name).is_some())
    }

    fn prepares(&self) -> bool {
        matches!(self.algorithm, Algorithm::Awq(_))
    }

    fn sample_tokens(&self) -> usize {
        if self.plan.options.awq.objective == Objective::Block { SAMPLE_TOKENS } else { 0 }
    }

    fn prepare(
        &mut self,
        block: &mut Block,
        captured: &mut [(Stage, LayerStatistics)],
        sample: &[Vec<f32>],
    ) -> Result<Divisors, CalibrationError> {
        let Algorithm::Awq(awq) = &mut self.algorithm else { return Ok(Divisors::new()) };
        awq.folded = fold::fold(&self.engine, self.plan, block, captured, sample)?;
        let first = |(stage, _): &(Stage, LayerStatistics)| {
            let folded = awq.folded.modules.get(&block.linears(*stage)[0].name);
            folded.map(|folded| (*stage, folded.columns.clone()))
        };
        Ok(captured.iter().filter_map(first).collect())
    }

    fn stage(
        &mut self,
        block: usize,
        _stage: Stage,
        linears: &mut [Linear],
        statistics: &LayerStatistics,
    ) -> Result<(), CalibrationError> {
        Ok(self.solve_stage(block, linears, statistics)?)
    }

    fn block_done(&mut self, block: &Block) -> Result<(), CalibrationError> {
        let folded = match &mut self.algorithm {
            Algorithm::Awq(awq) => std::mem::take(&mut awq.folded),
            Algorithm::Plain(_) => FoldedBlock::default(),
        };
        Ok(self.close(block.index, &folded.tensors)?)
    }

    fn wants_head(&self) -> bool {
        self.head_is_open()
    }

    fn head(&mut self, head: &Head, statistics: &LayerStatistics) -> Result<(), CalibrationError> {
        let index = self.plan.blocks() - 1;
        self.solve_stage(index, &mut [head_linear(head)], statistics)?;
        Ok(self.close(index, &Tensors::new())?)
    }
}

/// What an importance matrix holds of an input.
fn sums_of(statistics: &LayerStatistics) -> Sums {
    let squares = statistics.sum_square.iter().map(|sum| *sum as f32).collect();
    Sums { squares, count: statistics.tokens as f32 }
}

/// The head as a linear.
pub fn head_linear(head: &Head) -> Linear {
    Linear {
        name: HEAD.to_owned(),
        inputs: head.config.hidden_size,
        outputs: head.config.vocabulary,
        weight: head.weight.clone(),
        bias: None,
    }
}
