//! Measuring a checkpoint on the evaluations of a study, with what cells have in common computed once.
//!
//! ```text
//! states(model, texts)     one walk over the model's blocks, for perplexity and divergence on all texts
//! states(baseline, text)   one walk for all configurations compared with it; kept while they fit [`KEPT`]
//! head(model)              read once, like the baseline's
//! ```
//!
//! What doesn't fit is computed side by side, a batch of windows at a time; the figures are the same to the bit.

use crate::{
    StudyError,
    measure::Measure,
    opened::{Given, Opened, PreparedText},
    places,
    questions::Questions,
    speed,
    store::{Answered, Diverged, Line},
};
use evaluate::{
    Prepared,
    divergence::{self, DivergenceReport, Known},
    score::{DEFAULT_MEMORY, States, score},
    statistics::{Block, ratio},
};
use model::{Checkpoint, decoder::Head};
use std::{collections::HashMap, rc::Rc, time::Instant};

/// Seed of the bootstrap behind single figures.
const SEED: u64 = 0;
/// Bytes of states kept of all baselines together.
const KEPT: u64 = DEFAULT_MEMORY;

/// Measures checkpoints; keeps what the next one needs too.
pub struct Evaluator<'a> {
    opened: &'a Opened,
    baselines: HashMap<String, Rc<States>>,
    /// Heads of the baselines, by model.
    heads: HashMap<String, Rc<Head>>,
    kept: u64,
}

/// What every measure of a checkpoint is read off.
#[derive(Default)]
pub struct Walked {
    /// Its states, by the windows they are of.
    states: HashMap<String, States>,
    /// Its head, where there are states.
    head: Option<Head>,
}

impl Walked {
    /// Walks `checkpoint` over those of `texts` whose states fit together.
    pub fn over<'t>(
        checkpoint: &Checkpoint,
        texts: impl Iterator<Item = &'t PreparedText>,
    ) -> Result<Self, StudyError> {
        let (mut keys, mut windows, mut bytes) = (Vec::new(), Vec::new(), 0);
        for text in texts {
            let key = &text.record.windows_sha256;
            let Some(prepared) = text.text().filter(|_| !text.measure.is_timed()) else { continue };
            let more = States::bytes(checkpoint, &prepared.windows);
            if !keys.contains(key) && bytes + more <= DEFAULT_MEMORY {
                keys.push(key.clone());
                windows.push(&prepared.windows[..]);
                bytes += more;
            }
        }
        if keys.is_empty() {
            return Ok(Self::default());
        }
        let states = keys.into_iter().zip(States::of_each(checkpoint, &windows)?).collect();
        Ok(Self { states, head: Some(checkpoint.head()?) })
    }

    /// The head and the states on `text`, where they were computed.
    fn on(&self, text: &PreparedText) -> Option<(&Head, &States)> {
        self.head.as_ref().zip(self.states.get(&text.record.windows_sha256))
    }
}

impl<'a> Evaluator<'a> {
    /// For the evaluations of `opened`.
    pub fn new(opened: &'a Opened) -> Self {
        Self { opened, baselines: HashMap::new(), heads: HashMap::new(), kept: 0 }
    }

    /// `line` with the figures of `checkpoint` on `text`. `walked` holds what was computed of this checkpoint.
    pub fn measure(
        &mut self,
        line: Line,
        checkpoint: &Checkpoint,
        text: &PreparedText,
        walked: &Walked,
    ) -> Result<Line, StudyError> {
        let started = Instant::now();
        match (&text.given, text.measure) {
            (Given::Task(questions), _) => answered(line, checkpoint, questions, started),
            (Given::Text(prepared), measure) if measure.is_timed() => {
                let timed = speed::timed(measure, checkpoint, prepared)?;
                Ok(Line { blocks: timed.blocks(), timed: Some(timed), ..line })
            }
            (Given::Text(prepared), Measure::Divergence) => {
                self.diverged(line, checkpoint, text, prepared, walked, started)
            }
            (Given::Text(prepared), _) => {
                let scores = match walked.on(text) {
                    Some((head, states)) => states.likelihoods(checkpoint, head, &prepared.windows)?,
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
        walked: &Walked,
        started: Instant,
    ) -> Result<Line, StudyError> {
        let baseline = &self.opened.models[&text.model].checkpoint;
        let windows = &prepared.windows;
        let theirs = self.baseline(baseline, text, prepared)?;
        let targets = match walked.on(text).zip(theirs) {
            Some(((head, states), theirs)) => {
                let their_head = self.baseline_head(&text.model, baseline)?;
                let theirs = Known { checkpoint: baseline, head: &their_head, states: &theirs };
                divergence::between(&theirs, &Known { checkpoint, head, states }, windows)?
            }
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

    /// The head of the unquantized model called `name`.
    fn baseline_head(&mut self, name: &str, baseline: &Checkpoint) -> Result<Rc<Head>, StudyError> {
        if let Some(head) = self.heads.get(name) {
            return Ok(Rc::clone(head));
        }
        let head = Rc::new(baseline.head()?);
        self.heads.insert(name.to_owned(), Rc::clone(&head));
        Ok(head)
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
