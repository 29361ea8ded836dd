//! A task of `evaluate` as an evaluation of a study: its questions, put to every configuration alike.
//!
//! Only tasks in which the model chooses: each question is scored by itself, so that two configurations are compared
//! question by question. What a model writes is `evaluate`'s business.

use crate::{StudyError, file::Evaluation, store::EvaluatedText};
use evaluate::{
    EvaluateError, choice,
    likelihood::{self, Encoder, Request},
    paired::clusters,
    records::Record,
    score::DEFAULT_MEMORY,
    source::sha256,
    statistics::Block,
    task::{
        Metric, Task,
        data::{TaskData, default_folder, draw},
        prompt::{Item, Templates},
    },
};
use model::Checkpoint;
use std::path::Path;

/// Seed of the draw where only some of the questions are put.
const DRAW: u64 = 0;

/// A task's questions as tokens of one model.
pub struct Questions {
    task: Task,
    items: Vec<Item>,
    requests: Vec<Request>,
    shots: usize,
    files_sha256: Vec<String>,
}

impl Questions {
    /// Those of the task `name`; data folders are meant from `folder` on.
    pub fn prepare(
        name: &str,
        evaluation: &Evaluation,
        folder: &Path,
        checkpoint: &Checkpoint,
    ) -> Result<Self, StudyError> {
        let own = folder.join(name);
        let task = Task::open(if own.is_file() { own.to_str().unwrap_or(name) } else { name })?;
        let metric = task.primary();
        if task.generate.is_some() || metric == Metric::Perplexity {
            return Err(StudyError::Settings(format!(
                "task {}: a study compares tasks in which the model chooses; run `evaluate MODEL --tasks {}` on a kept \
                 checkpoint (`keep = true`)",
                task.name, task.name
            )));
        }
        let shots = evaluation.shots.unwrap_or(task.shots);
        let mut folders: Vec<_> = evaluation.data.iter().map(|data| folder.join(data)).collect();
        if folders.is_empty() {
            folders.push(default_folder());
        }
        let data = TaskData::read(&task, &folders, shots > 0)?;
        let mut templates = Templates::new(&task)?;
        let chosen = draw(data.rows.len(), evaluation.limit, DRAW);
        let items = chosen.iter().map(|&index| templates.item(&data.rows[index], &data, shots));
        let items = items.collect::<Result<Vec<_>, EvaluateError>>()?;
        let requests = Encoder::new(checkpoint, checkpoint.config.max_positions).requests(&items)?;
        let files_sha256 = data.files.into_iter().map(|file| file.sha256).collect();
        drop(templates);
        Ok(Self { task, items, requests, shots, files_sha256 })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// The metric that judges an answer.
    pub fn metric(&self) -> Metric {
        self.task.primary()
    }

    /// Tokens that go through the model.
    pub fn tokens_fed(&self) -> usize {
        self.requests.iter().flat_map(|request| &request.sequences).map(|sequence| sequence.tokens.len()).sum()
    }

    /// What results say of them.
    pub fn record(&self) -> EvaluatedText {
        let asked: String = self.items.iter().map(Item::sha256).collect();
        let tokens: Vec<_> = self.requests.iter().flat_map(|request| &request.sequences).collect();
        EvaluatedText {
            text: self.task.name.clone(),
            protocol: format!(
                "{}, {} shots, {}, prompt of {}",
                self.task.name,
                self.shots,
                self.metric(),
                self.task.prompt_source
            ),
            files_sha256: self.files_sha256.clone(),
            prepared_sha256: sha256(asked),
            windows_sha256: sha256(format!("{tokens:?}")),
            bootstrap_run: 1,
        }
    }

    /// The answers of `checkpoint`.
    pub fn answers(&self, checkpoint: &Checkpoint) -> Result<Vec<Record>, StudyError> {
        let scored = likelihood::score(checkpoint, &self.requests, DEFAULT_MEMORY, &mut |_| {})?;
        let answered = self.items.iter().zip(&scored);
        Ok(answered.map(|(item, likelihoods)| choice::record(&self.task, item, likelihoods)).collect())
    }

    /// `1 − score` of each item, summed over subjects where there are several.
    pub fn blocks(&self, records: &[Record]) -> Vec<Block> {
        let metric = self.metric();
        let wrong = |record: &Record| Block { sum: 1.0 - record.metrics[&metric], weight: 1.0 };
        let wrong: Vec<Block> = records.iter().map(wrong).collect();
        let subjects: Vec<Option<&str>> = records.iter().map(|record| record.subject.as_deref()).collect();
        clusters(&subjects, &wrong)
    }
}
