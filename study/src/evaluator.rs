//! Measuring a checkpoint on the evaluations of a study, with what cells have in common computed once.
//!
//! ```text
//! states(model, text)     one walk over the model's blocks, for perplexity and divergence on the same windows
//! states(baseline, text)  one walk for all configurations compared with it; kept while they fit [`KEPT`]
//! ```
//!
//! What doesn't fit is computed side by side, a batch of windows at a time; the figures are the same to the bit.

use crate::{
    StudyError,
    measure::Measure,
    opened::{Given, Opened, PreparedText},
    places,
    questions::Questions,
    store::{Answered, Diverged, Line},
};
use evaluate::{
    Prepared,
    divergence::{self, DivergenceReport},
    score::{DEFAULT_MEMORY, States, score},
    statistics::{Block, ratio},
};
use model::Checkpoint;
use std::{collections::HashMap, rc::Rc, time::Instant};

/// Seed of the bootstrap behind single figures.
const SEED: u64 = 0;
/// Bytes of states kept of all baselines together.
const KEPT: u64 = DEFAULT_MEMORY;

/// Measures checkpoints; keeps what the next one needs too.
pub struct Evaluator<'a> {
    opened: &'a Opened,
    baselines: HashMap<String, Rc<States>>,
    kept: u64,
}

/// States of the checkpoint at hand, by the windows they are of.
pub type Walked = HashMap<String, Rc<States>>;

impl<'a> Evaluator<'a> {
    /// For the evaluations of `opened`.
    pub fn new(opened: &'a Opened) -> Self {
        Self { opened, baselines: HashMap::new(), kept: 0 }
    }

    /// `line` with the figures of `checkpoint` on `text`. `walked` holds what was computed of this checkpoint.
    pub fn measure(
        &mut self,
        line: Line,
        checkpoint: &Checkpoint,
        text: &PreparedText,
        walked: &mut Walked,
    ) -> Result<Line, StudyError> {
        let started = Instant::now();
        match (&text.given, text.measure) {
            (Given::Task(questions), _) => answered(line, checkpoint, questions, started),
            (Given::Text(prepared), Measure::Divergence) => {
                self.diverged(line, checkpoint, text, prepared, walked, started)
            }
            (Given::Text(prepared), _) => {
                let scores = match states(checkpoint, text, prepared, walked)? {
                    Some(states) => states.likelihoods(checkpoint, &prepared.windows)?,
                    None => score(checkpoint, &prepared.windows, DEFAULT_MEMORY, &mut |_| {})?,
                };
                let measured = prepared.measure(&scores, SEED, started.elapsed().as_secs_f64());
                Ok(Line { measured: Some(measured), blocks: prepared.blocks(&scores), ..line })
            }
        }
    }

    fn diverged(
        &mut self,
        line: Line,
        checkpoint: &Checkpoint,
        text: &PreparedText,
        prepared: &Prepared,
        walked: &mut Walked,
        started: Instant,
    ) -> Result<Line, StudyError> {
        let baseline = &self.opened.models[&text.model].checkpoint;
        let windows = &prepared.windows;
        let ours = states(checkpoint, text, prepared, walked)?;
        let theirs = self.baseline(baseline, text, prepared)?;
        let targets = match ours.zip(theirs) {
            Some((ours, theirs)) => divergence::between((baseline, &theirs), (checkpoint, &ours), windows)?,
            None => divergence::run(baseline, checkpoint, windows, DEFAULT_MEMORY, &mut |_| {})?.targets,
        };
        let blocks: Vec<Block> = targets
            .iter()
            .map(|window| Block { sum: window.iter().map(|at| at.kl).sum(), weight: window.len() as f64 })
            .collect();
        let kl: Vec<Vec<f64>> = targets.iter().map(|window| window.iter().map(|at| at.kl).collect()).collect();
        let places = places::of(&places::classes(baseline, windows), &kl, prepared.bootstrap(SEED));
        let report = DivergenceReport::new(prepared, &targets, SEED);
        let diverged = Diverged {
            mean: ratio(blocks.iter().copied()),
            median: report.kl_median,
            quantile_99: report.kl_99,
            largest: report.kl_max,
            same_top: report.same_top.value,
            places,
            tokens: report.tokens,
            windows: windows.len(),
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(Line { divergence: Some(diverged), blocks, ..line })
    }

    /// The states of the unquantized model, kept where they fit.
    fn baseline(
        &mut self,
        baseline: &Checkpoint,
        text: &PreparedText,
        prepared: &Prepared,
    ) -> Result<Option<Rc<States>>, StudyError> {
        let key = format!("{} {}", text.model, text.record.windows_sha256);
        if let Some(states) = self.baselines.get(&key) {
            return Ok(Some(Rc::clone(states)));
        }
        let bytes = States::bytes(baseline, &prepared.windows);
        if self.kept + bytes > KEPT {
            return Ok(None);
        }
        let states = Rc::new(States::of(baseline, &prepared.windows, &mut |_| {})?);
        self.kept += bytes;
        self.baselines.insert(key, Rc::clone(&states));
        Ok(Some(states))
    }
}

/// The states of `checkpoint` on a text, of which only the last is kept; none where they don't fit.
fn states(
    checkpoint: &Checkpoint,
    text: &PreparedText,
    prepared: &Prepared,
    walked: &mut Walked,
) -> Result<Option<Rc<States>>, StudyError> {
    let key = &text.record.windows_sha256;
    if let Some(states) = walked.get(key) {
        return Ok(Some(Rc::clone(states)));
    }
    if States::bytes(checkpoint, &prepared.windows) > DEFAULT_MEMORY {
        return Ok(None);
    }
    let states = Rc::new(States::of(checkpoint, &prepared.windows, &mut |_| {})?);
    walked.clear();
    walked.insert(key.clone(), Rc::clone(&states));
    Ok(Some(states))
}

fn answered(line: Line, checkpoint: &Checkpoint, questions: &Questions, started: Instant) -> Result<Line, StudyError> {
    let records = questions.answers(checkpoint)?;
    let blocks = questions.blocks(&records);
    let answers = Answered {
        metric: questions.metric(),
        score: 1.0 - ratio(blocks.iter().copied()),
        items: records.len(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(Line { answers: Some(answers), blocks, ..line })
}
