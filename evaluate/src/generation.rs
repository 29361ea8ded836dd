//! Tasks in which a model writes: from exercises to records.
//!
//! Prompts are tokenized as a tokenizer does by itself, and cut on the left where prompt and answer don't fit the model.
//! Generation is greedy, or draws tokens with a seed made of the run's, the item's id and the answer's number; what is
//! written ends before the first of the task's stops. The same exercise gives the same text in every batch and on every
//! number of threads, but for ties within the rounding of float32 sums.
//!
//! Of `n` programs written to a problem, `c` pass; the share of draws of `k` of them that hold one that passes is
//!
//! ```text
//! pass@k = 1 − C(n−c, k) / C(n, k) = 1 − ∏_{i = n−c+1..n} (1 − k / i)      without bias for any n ≥ k (arXiv 2107.03374)
//! ```

use crate::{
    EvaluateError,
    answer::Extractor,
    framing::Framing,
    instructions::Followed,
    records::{Record, SCHEMA, Sample, TIMED_OUT},
    sandbox::{Sandbox, Verdict},
    source::sha256,
    task::{Generate, Metric, Task, exercise::Exercise},
};
use model::{
    Checkpoint,
    generate::{Generator, Request, Sampling},
};
use rayon::prelude::*;
use serde::Serialize;
use std::{fmt, sync::Mutex};

/// How answers are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drawing {
    /// Answers to each exercise.
    pub samples: usize,
    /// What logits are divided by.
    pub temperature: f64,
    /// Probability that the tokens drawn from must have together.
    pub top_p: f64,
    /// The run's seed.
    pub seed: u64,
}

impl Drawing {
    /// For answer number `sample` to the item `id`: nothing else decides what is drawn.
    fn sampling(&self, id: &str, sample: usize) -> Sampling {
        let hash = sha256(format!("{} {sample} {id}", self.seed));
        // Sixteen hexadecimal digits always are a number.
        let seed = u64::from_str_radix(&hash[..16], 16).unwrap_or_default();
        Sampling { temperature: self.temperature, top_p: self.top_p, seed }
    }
}

impl fmt::Display for Drawing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, temperature, top_p, seed } = self;
        write!(f, "{samples} answers each, drawn with temperature {temperature}, top-p {top_p}, seed {seed}")
    }
}

/// An exercise as tokens.
#[derive(Clone, Debug, PartialEq)]
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
    Ok(Prompt { request: Request { prompt: tokens, longest, sampling: None }, truncated: excess > 0 })
}

/// What the model writes after the prompt of each of `exercises`, stops cut off; `finished` hears of each answer as it ends.
pub fn write(
    checkpoint: &Checkpoint,
    generate: &Generate,
    (exercises, prompts): (&[Exercise], &[Prompt]),
    drawing: Option<&Drawing>,
    finished: &mut (dyn FnMut() + Send),
) -> Result<Vec<Vec<String>>, EvaluateError> {
    let samples = drawing.map_or(1, |drawing| drawing.samples);
    let both = exercises.iter().zip(prompts);
    let requests: Vec<Request> = both
        .flat_map(|(exercise, prompt)| {
            (0..samples).map(|sample| Request {
                sampling: drawing.map(|drawing| drawing.sampling(&exercise.id, sample)),
                ..prompt.request.clone()
            })
        })
        .collect();
    let text = |tokens: &[u32]| checkpoint.tokenizer.decode(tokens, true).unwrap_or_default();
    let enough = |_, tokens: &[u32]| cut(&text(tokens), &generate.stops).1;
    let generator = Generator::new(checkpoint)?;
    let finished = Mutex::new(finished);
    let generated = generator.generate(&requests, generator.batch(&requests), &enough, &mut |_, _| {
        finished.lock().unwrap_or_else(std::sync::PoisonError::into_inner)();
    })?;
    let texts: Vec<String> =
        generated.iter().map(|generated| cut(&text(&generated.tokens), &generate.stops).0).collect();
    Ok(texts.chunks(samples).map(<[String]>::to_vec).collect())
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
    responses: Vec<Vec<String>>,
    sandbox: Option<&Sandbox>,
) -> Result<Vec<Record>, EvaluateError> {
    let extractor = Extractor::new(generate);
    let both = exercises.par_iter().zip(responses);
    both.map(|(exercise, responses)| {
        let judged = responses.into_par_iter().map(|response| Judged::new(exercise, response, sandbox));
        record(task, exercise, judged.collect::<Result<_, _>>()?, &extractor)
    })
    .collect()
}

/// An answer with what became of its program.
struct Judged {
    response: String,
    verdict: Option<Verdict>,
}

impl Judged {
    fn new(exercise: &Exercise, response: String, sandbox: Option<&Sandbox>) -> Result<Self, EvaluateError> {
        let verdict = match (&exercise.trial, sandbox) {
            (Some(trial), Some(sandbox)) => {
                let mut trial = trial.clone();
                trial.solution += &response;
                Some(sandbox.judge(&trial)?)
            }
            _ => None,
        };
        Ok(Self { response, verdict })
    }

    fn sample(self) -> Sample {
        let verdict = self.verdict.map(|verdict| match verdict {
            Verdict::Passed => "passed".to_owned(),
            Verdict::Failed(why) => format!("failed: {why}"),
            Verdict::TimedOut => TIMED_OUT.to_owned(),
        });
        Sample { response: self.response, verdict }
    }
}

fn record(
    task: &Task,
    exercise: &Exercise,
    mut judged: Vec<Judged>,
    extractor: &Extractor,
) -> Result<Record, EvaluateError> {
    let wrong = |what: String| EvaluateError::Item { item: exercise.id.clone(), what };
    let first = judged.first().map_or("", |judged| judged.response.as_str());
    let instructions = exercise.instructions.iter().map(|instruction| instruction.judge(first).map_err(wrong));
    let instructions = instructions.collect::<Result<Vec<Followed>, _>>()?;
    let (count, passed) =
        (judged.len(), judged.iter().filter(|judged| judged.verdict == Some(Verdict::Passed)).count());
    let value = |metric: Metric| match metric.attempts() {
        Some(k) => pass_at(count, passed, k),
        None if metric.is_of_instructions() => followed(metric, &instructions),
        None => f64::from(u8::from(extractor.is_right(metric, first, &exercise.answer))),
    };
    let metrics = metrics(task, count).map(|metric| (metric, value(metric))).collect();
    let correct = (count == 1).then(|| value(task.primary()) == 1.0);
    let single = if count == 1 { judged.pop().map(Judged::sample) } else { None };
    let (response, verdict) = single.map_or((None, None), |single| (Some(single.response), single.verdict));
    Ok(Record {
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
        correct,
        log_probabilities: Vec::new(),
        greedy: Vec::new(),
        tokens: Vec::new(),
        metrics,
        response,
        verdict,
        samples: judged.into_iter().map(Judged::sample).collect(),
        instructions,
        framing: Framing::default(),
    })
}

/// The task's metrics, and of `count` programs pass@k for each k up to it.
fn metrics(task: &Task, count: usize) -> impl Iterator<Item = Metric> {
    let programs = task.metrics.contains(&Metric::PassAt1);
    let further = move |metric: &Metric| programs && metric.attempts().is_some_and(|k| k > 1 && k <= count);
    task.metrics.iter().copied().chain(Metric::ALL.into_iter().filter(further))
}

/// The share of draws of `k` of `n` that hold one of `c`.
pub fn pass_at(n: usize, c: usize, k: usize) -> f64 {
    if n - c < k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// Whether all are followed, or the share that is.
fn followed(metric: Metric, instructions: &[Followed]) -> f64 {
    let loose = matches!(metric, Metric::PromptLevelLooseAcc | Metric::InstLevelLooseAcc);
    let count = instructions.iter().filter(|one| if loose { one.loose } else { one.strict }).count();
    if metric.weighs_instructions() {
        return count as f64 / instructions.len() as f64;
    }
    f64::from(u8::from(count == instructions.len()))
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

    /// Every draw of `k` of `n`, counted.
    #[test]
    fn pass_at_k_is_the_share_of_draws_that_hold_one_that_passes() {
        for n in 1..=8_usize {
            for c in 0..=n {
                for k in 1..=n {
                    let draws = (0..1_u32 << n).filter(|draw| draw.count_ones() as usize == k);
                    let (all, good) =
                        draws.fold((0, 0), |(all, good), draw| (all + 1, good + i32::from(draw & ((1 << c) - 1) != 0)));
                    let expected = f64::from(good) / f64::from(all);
                    assert!((pass_at(n, c, k) - expected).abs() < 1e-12, "{n} {c} {k}");
                }
            }
        }
        assert_eq!((pass_at(200, 0, 100), pass_at(200, 200, 1), pass_at(10, 3, 1)), (0.0, 1.0, 1.0 - 0.7));
    }

    #[test]
    fn several_programs_make_a_record_of_shares_and_one_of_right_or_wrong() {
        let task = Task::open("humaneval").unwrap();
        let exercise = Exercise {
            id: "0".into(),
            subject: None,
            prompt: "p".into(),
            preface: crate::task::prompt::Preface::default(),
            answer: String::new(),
            trial: None,
            instructions: Vec::new(),
        };
        let extractor = Extractor::new(task.generate.as_ref().unwrap());
        let judged = |verdict: Verdict| Judged { response: "r".into(), verdict: Some(verdict) };
        let failed = || judged(Verdict::Failed("x".into()));
        let several = vec![failed(), judged(Verdict::Passed), judged(Verdict::TimedOut), failed()];
        let several = record(&task, &exercise, several, &extractor).unwrap();
        let metrics: Vec<(Metric, f64)> = several.metrics.clone().into_iter().collect();
        assert_eq!(metrics, [(Metric::PassAt1, 0.25), (Metric::PassAt2, 0.5)]);
        assert_eq!((several.correct, &several.response, several.samples.len()), (None, &None, 4));
        assert_eq!(several.verdicts().collect::<Vec<_>>(), ["failed: x", "passed", TIMED_OUT, "failed: x"]);
        let one = record(&task, &exercise, vec![judged(Verdict::TimedOut)], &extractor).unwrap();
        assert_eq!((one.correct, one.samples.len(), one.verdict.as_deref()), (Some(false), 0, Some(TIMED_OUT)));
    }

    #[test]
    fn an_answer_s_seed_is_its_own() {
        let drawing = Drawing { samples: 2, temperature: 0.8, top_p: 1.0, seed: 1 };
        let seeds = [("a", 0), ("a", 1), ("b", 0)].map(|(id, sample)| drawing.sampling(id, sample).seed);
        assert!(seeds[0] != seeds[1] && seeds[0] != seeds[2]);
        assert_eq!(drawing.sampling("a", 0), drawing.sampling("a", 0));
        assert_ne!(Drawing { seed: 2, ..drawing }.sampling("a", 0).seed, seeds[0]);
    }

    #[test]
    fn instructions_count_by_prompt_and_by_instruction() {
        let one = |strict, loose| Followed { id: "x".into(), strict, loose };
        let all = [one(true, true), one(false, true), one(false, false), one(true, true)];
        let of = |metric| followed(metric, &all);
        assert_eq!((of(Metric::InstLevelStrictAcc), of(Metric::InstLevelLooseAcc)), (0.5, 0.75));
        assert_eq!((of(Metric::PromptLevelStrictAcc), followed(Metric::PromptLevelLooseAcc, &all[..2])), (0.0, 1.0));
    }
}
