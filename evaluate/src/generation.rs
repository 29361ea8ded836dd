//! Tasks in which a model writes: from exercises to records.
//!
//! Prompts are tokenized as a tokenizer does by itself, and cut on the left where prompt and answer don't fit the model.
//! Generation is greedy; what is written ends before the first of the task's stops. The same exercise gives the same text
//! in every batch and on every number of threads, but for ties within the rounding of float32 sums.

use crate::{
    EvaluateError,
    answer::Extractor,
    records::{Record, SCHEMA},
    sandbox::{Sandbox, Verdict},
    task::{Generate, Metric, Task, exercise::Exercise},
};
use model::{
    Checkpoint,
    generate::{Generator, Request},
};
use rayon::prelude::*;
use std::sync::Mutex;

/// Sequences that a thread works on at a time.
pub const BATCH: usize = 16;

/// An exercise as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What the model goes on from.
    pub request: Request,
    /// Whether tokens were dropped from the left.
    pub truncated: bool,
}

/// Makes a prompt of `tokens`.
pub fn prompt(checkpoint: &Checkpoint, generate: &Generate, mut tokens: Vec<u32>) -> Result<Prompt, EvaluateError> {
    let positions = checkpoint.config.max_positions;
    let longest = generate.longest.min(positions / 2);
    let excess = (tokens.len() + longest).saturating_sub(positions);
    tokens.drain(..excess);
    if tokens.is_empty() {
        let what = "a prompt is empty, and there is nothing to go on from".to_owned();
        return Err(EvaluateError::Task { task: checkpoint.reference.clone(), what });
    }
    Ok(Prompt { request: Request { prompt: tokens, longest }, truncated: excess > 0 })
}

/// What the model writes after each prompt, stops cut off; `finished` hears of each as it ends.
pub fn write(
    checkpoint: &Checkpoint,
    generate: &Generate,
    prompts: &[Prompt],
    finished: &mut (dyn FnMut() + Send),
) -> Result<Vec<String>, EvaluateError> {
    let requests: Vec<Request> = prompts.iter().map(|prompt| prompt.request.clone()).collect();
    let text = |tokens: &[u32]| checkpoint.tokenizer.decode(tokens, true).unwrap_or_default();
    let enough = |_, tokens: &[u32]| cut(&text(tokens), &generate.stops).1;
    let generator = Generator::new(checkpoint)?;
    let finished = Mutex::new(finished);
    let generated = generator.generate(&requests, BATCH, &enough, &mut |_, _| {
        finished.lock().unwrap_or_else(std::sync::PoisonError::into_inner)();
    })?;
    Ok(generated.iter().map(|generated| cut(&text(&generated.tokens), &generate.stops).0).collect())
}

/// `text` before the first of `stops`, and whether there was one.
fn cut(text: &str, stops: &[String]) -> (String, bool) {
    let first = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
    (text[..first.unwrap_or(text.len())].to_owned(), first.is_some())
}

/// Judges what was written to each exercise; programs in `sandbox`.
pub fn judge(
    task: &Task,
    generate: &Generate,
    exercises: &[Exercise],
    responses: Vec<String>,
    sandbox: Option<&Sandbox>,
) -> Result<Vec<Record>, EvaluateError> {
    let extractor = Extractor::new(generate);
    let both = exercises.par_iter().zip(responses);
    both.map(|(exercise, response)| {
        let verdict = verdict(exercise, &response, sandbox)?;
        Ok(record(task, exercise, response, verdict, &extractor))
    })
    .collect()
}

fn verdict(exercise: &Exercise, response: &str, sandbox: Option<&Sandbox>) -> Result<Option<Verdict>, EvaluateError> {
    let (Some(trial), Some(sandbox)) = (&exercise.trial, sandbox) else { return Ok(None) };
    let mut trial = trial.clone();
    trial.solution += response;
    sandbox.judge(&trial).map(Some)
}

fn record(
    task: &Task,
    exercise: &Exercise,
    response: String,
    verdict: Option<Verdict>,
    extractor: &Extractor,
) -> Record {
    let value = |metric: Metric| {
        let right = match metric {
            Metric::PassAt1 => verdict == Some(Verdict::Passed),
            metric => extractor.is_right(metric, &response, &exercise.answer),
        };
        f64::from(u8::from(right))
    };
    let metrics = task.metrics.iter().map(|metric| (*metric, value(*metric))).collect();
    Record {
        schema: SCHEMA,
        task: task.name.clone(),
        id: exercise.id.clone(),
        subject: exercise.subject.clone(),
        category: exercise.subject.as_deref().and_then(|subject| task.category(subject)).map(str::to_owned),
        capability: task.capability,
        prompt_sha256: exercise.sha256(),
        metric: task.primary(),
        answer: None,
        prediction: None,
        correct: Some(value(task.primary()) == 1.0),
        log_probabilities: Vec::new(),
        greedy: Vec::new(),
        tokens: Vec::new(),
        metrics,
        verdict: verdict.map(|verdict| match verdict {
            Verdict::Passed => "passed".to_owned(),
            Verdict::Failed(why) => format!("failed: {why}"),
            Verdict::TimedOut => "timed out".to_owned(),
        }),
        response: Some(response),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_before_the_first_stop() {
        let stops = ["\ndef".to_owned(), "#".to_owned()];
        assert_eq!(cut("a\n# b\ndef c", &stops), ("a\n".to_owned(), true));
        assert_eq!(cut("a def", &stops), ("a def".to_owned(), false));
        assert_eq!(cut("", &stops), (String::new(), false));
    }
}
