//! What a model is compared with: a checkpoint that is run beside it, or what an earlier run of it left, its `--json` result
//! or its `--save-logits` file, so that it is run only once for many quantizations.

use crate::{
    EvaluateError, Measurement, Prepared, Resolved, compare::same_tokens, logits::StoredLogits, report::ModelReport,
    source::Source, statistics::Block,
};
use kernels::{Compute, Engine};
use model::Checkpoint;
use serde::Deserialize;
use std::{fs, path::Path};

/// The other side of a comparison.
pub enum Baseline {
    /// To be run.
    Model(Box<Checkpoint>),
    /// Has been run.
    Stored(Box<StoredResult>),
    /// Has been run, and its distributions are there.
    Logits(Box<StoredLogits>),
}

/// What a comparison needs of a result file.
#[derive(Debug, Deserialize)]
pub struct StoredResult {
    /// What the user called the file.
    #[serde(skip)]
    reference: String,
    /// The model that was run.
    pub model: ModelReport,
    texts: Vec<StoredText>,
}

#[derive(Debug, Deserialize)]
struct StoredText {
    windows_sha256: String,
    blocks: Vec<Block>,
    #[serde(flatten)]
    measurement: Measurement,
}

impl Baseline {
    /// The same; a model is run where `engine` says.
    #[must_use]
    pub fn on(self, engine: &Engine) -> Self {
        match self {
            Self::Model(checkpoint) => Self::Model(Box::new(checkpoint.on(engine.clone()))),
            other => other,
        }
    }

    /// Opens a file of log-probabilities or, where `reference` names a `.json` file, of results, and a checkpoint otherwise.
    /// What a file holds must come from the arithmetic that the model is run with.
    pub fn open(reference: &str, compute: Compute) -> Result<Self, EvaluateError> {
        let path = Path::new(reference);
        if StoredLogits::is_one(path) {
            let stored = StoredLogits::open(reference)?;
            same_arithmetic(reference, &stored.header.model, compute)?;
            return Ok(Self::Logits(Box::new(stored)));
        }
        if path.extension().is_some_and(|extension| extension == "json") && path.is_file() {
            let stored = |what: String| EvaluateError::StoredBaseline { file: reference.to_owned(), what };
            let text = fs::read(path).map_err(|error| stored(error.to_string()))?;
            let result: StoredResult = serde_json::from_slice(&text)
                .map_err(|error| stored(format!("it is not a result of `evaluate MODEL --json=FILE`: {error}")))?;
            same_arithmetic(reference, &result.model, compute)?;
            return Ok(Self::Stored(Box::new(StoredResult { reference: reference.to_owned(), ..result })));
        }
        Ok(Self::Model(Box::new(Checkpoint::open(reference)?.computed(compute))))
    }

    /// The longest sequence it takes; a result file sets no limit, as its windows must be the model's anyway.
    pub fn longest(&self) -> usize {
        match self {
            Self::Model(checkpoint) => checkpoint.config.max_positions,
            Self::Stored(_) | Self::Logits(_) => usize::MAX,
        }
    }

    /// Refuses a baseline that does not score exactly the windows of `prepared`.
    pub fn check(
        &self,
        checkpoint: &Checkpoint,
        source: &Source,
        prepared: &Prepared,
        resolved: Resolved,
    ) -> Result<(), EvaluateError> {
        match self {
            Self::Model(baseline) => {
                same_tokens(checkpoint, prepared, baseline, &Prepared::new(baseline, source, resolved)?)
            }
            Self::Stored(stored) => stored.find(prepared).map(|_| ()),
            Self::Logits(stored) => stored.find(prepared).map(|_| ()),
        }
    }
}

/// Refuses a file of a `model` that was run with another arithmetic than `compute`.
fn same_arithmetic(file: &str, model: &ModelReport, compute: Compute) -> Result<(), EvaluateError> {
    if model.compute == compute {
        return Ok(());
    }
    let what = format!("it was measured with `--compute {}`, not `{compute}`", model.compute);
    Err(EvaluateError::StoredBaseline { file: file.to_owned(), what })
}

impl StoredResult {
    /// The figures of the text that was cut into the windows of `prepared`.
    pub fn find(&self, prepared: &Prepared) -> Result<(Measurement, &[Block]), EvaluateError> {
        let windows = prepared.windows_sha256();
        let text = self.texts.iter().find(|text| text.windows_sha256 == windows);
        let refused = |what: String| EvaluateError::StoredBaseline { file: self.reference.clone(), what };
        let Some(text) = text else {
            return Err(refused(format!(
                "it has no figures for {} as it is cut here: the text, the protocol, `--max-tokens` or the tokenizer \
                 differ; give the baseline model itself, or measure it again with these options",
                prepared.reference
            )));
        };
        if !prepared.weights().eq(text.blocks.iter().map(|block| block.weight)) {
            return Err(refused("its blocks are not those of its windows: the file was changed".to_owned()));
        }
        Ok((text.measurement.clone(), &text.blocks))
    }
}
