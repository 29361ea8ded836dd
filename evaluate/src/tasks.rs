//! Running tasks, from arguments to what is printed.

use crate::{cli::Measure, run::say};
use anyhow::Context as _;
use console::{Progress, files::Output};
use evaluate::{
    capability::{self, Change},
    choice,
    export::{self, TaskRecords},
    framing::Framing,
    generation::{self, Drawing, Prompt},
    likelihood::{self, Encoder, Request, Step},
    paired::{self, Paired},
    records::{self, Record, Run},
    sandbox::{Limits, Sandbox},
    task::{
        Generate, Metric, Task,
        data::{self, DataFile, TaskData, draw},
        exercise::{self, Exercise},
        prompt::{Item, Templates},
    },
    task_report::{Circumstances, Summary, TaskReport},
};
use model::Checkpoint;
use rayon::prelude::*;
use serde_json::Value;
use std::time::Instant;

/// A task with everything it needs, before any model runs.
pub(crate) struct Prepared {
    task: Task,
    shots: usize,
    available: usize,
    limit: Option<usize>,
    files: Vec<DataFile>,
    framing: Framing,
    drawing: Option<Drawing>,
    model: Side,
    baseline: Option<Side>,
}

/// What is asked.
#[derive(Clone)]
enum Questions {
    /// The model chooses.
    Choices(Vec<Item>),
    /// The model writes; programs are run in the sandbox.
    Exercises(Box<Generate>, Vec<Exercise>, Option<Sandbox>),
}

impl Questions {
    /// As they are put to a model.
    fn framed(&self, framing: &Framing, checkpoint: &Checkpoint) -> anyhow::Result<Self> {
        Ok(match self {
            Self::Choices(items) => {
                let framed = items.par_iter().map(|item| framing.item(checkpoint, item));
                Self::Choices(framed.collect::<Result<_, _>>()?)
            }
            Self::Exercises(generate, exercises, sandbox) => {
                let framed = exercises.par_iter().map(|exercise| framing.exercise(checkpoint, exercise));
                Self::Exercises(generate.clone(), framed.collect::<Result<_, _>>()?, sandbox.clone())
            }
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Choices(items) => items.len(),
            Self::Exercises(_, exercises, _) => exercises.len(),
        }
    }
}

/// A task's questions as tokens of one model.
enum Requests {
    Choices(Vec<Request>),
    Prompts(Vec<Prompt>),
}

/// A task's items as they are put to one model, as its tokens, and where its records go.
struct Side {
    questions: Questions,
    requests: Requests,
    bos: String,
    output: Option<Output>,
}

/// Reads, renders and tokenizes every task, so that what is wrong shows before anything is scored.
pub(crate) fn prepare(
    measure: &Measure,
    checkpoint: &Checkpoint,
    baseline: Option<&Checkpoint>,
) -> anyhow::Result<Vec<Prepared>> {
    let mut prepared: Vec<Prepared> = Vec::new();
    for folder in measure.data.iter().filter(|folder| data::hub_id(folder).is_some()) {
        let what = "asked for its list of files; those the tasks want are downloaded unless they are in the cache";
        say(&format!("data       {}: {what}", folder.display()));
    }
    for name in &measure.tasks {
        let task = Task::open(name)?;
        if prepared.iter().any(|other| other.task.name == task.name) {
            anyhow::bail!("two tasks are called {}: name each once", task.name);
        }
        let data = TaskData::read(&task, &measure.data, measure.shots.unwrap_or(task.shots) > 0)?;
        let available = data.rows.len();
        let limit = measure.limit.filter(|limit| *limit < available);
        let mut next =
            Prepared::new(measure, [Some(checkpoint), baseline], &task, &data, &draw(available, limit, measure.seed))?;
        next.limit = limit;
        let outputs = outputs(measure, &task, baseline.is_some())?;
        for (side, output) in [Some(&mut next.model), next.baseline.as_mut()].into_iter().flatten().zip(outputs) {
            side.output = output;
        }
        prepared.push(next);
    }
    Ok(prepared)
}

/// What scoring a task leaves.
pub(crate) type Scored = (Vec<Record>, Summary);

/// Where the records of a task go, the model's and the baseline's.
pub(crate) fn outputs(measure: &Measure, task: &Task, baseline: bool) -> anyhow::Result<[Option<Output>; 2]> {
    let open = |part: &str| {
        let path = measure.records.as_ref().map(|folder| folder.join(part).join(format!("{}.jsonl", task.name)));
        path.map(|path| Output::open(&path).with_context(|| path.display().to_string())).transpose()
    };
    Ok([open("")?, if baseline { open("baseline")? } else { None }])
}

impl Prepared {
    /// The `chosen` items of a task; no records are written of them.
    pub(crate) fn new(
        measure: &Measure,
        models: [Option<&Checkpoint>; 2],
        task: &Task,
        data: &TaskData,
        chosen: &[usize],
    ) -> anyhow::Result<Self> {
        let shots = measure.shots.unwrap_or(task.shots);
        let questions = questions(measure, task, data, chosen, shots)?;
        let (framing, drawing) = (measure.put.framing(), drawing(measure, task));
        if drawing.is_some_and(|drawing| drawing.samples > 1) && task.generate.iter().all(|g| g.program.is_none()) {
            anyhow::bail!("{}: `--samples-per-task` is for tasks that test programs", task.name);
        }
        let side = |model: Option<&Checkpoint>| model.map(|model| Side::new(model, &questions, &framing)).transpose();
        let [model, baseline] = models;
        let (model, baseline) = (side(model)?.context("there is always a model")?, side(baseline)?);
        let (task, files) = (task.clone(), data.files.clone());
        Ok(Self { task, shots, available: data.rows.len(), limit: None, files, framing, drawing, model, baseline })
    }

    /// Scores the items with both models.
    pub(crate) fn score(
        &self,
        measure: &Measure,
        models: [Option<&Checkpoint>; 2],
    ) -> anyhow::Result<[Option<Scored>; 2]> {
        let [model, baseline] = models;
        let score = |model: Option<&Checkpoint>, tokens: Option<&Side>| match (model, tokens) {
            (Some(model), Some(tokens)) => side(measure, model, self, tokens).map(Some),
            _ => Ok(None),
        };
        Ok([score(model, Some(&self.model))?, score(baseline, self.baseline.as_ref())?])
    }
}

/// The report of a task, without its comparison.
pub(crate) fn report(
    measure: &Measure,
    (task, files): (Task, Vec<DataFile>),
    (shots, available, limit): (usize, usize, Option<usize>),
    (model, baseline): (Summary, Option<Summary>),
) -> TaskReport {
    TaskReport {
        framing: measure.put.framing(),
        sampling: drawing(measure, &task),
        task: task.name,
        prompt_source: task.prompt_source,
        shots,
        available,
        limit: limit.filter(|limit| *limit < available),
        files,
        model,
        baseline,
        paired: None,
    }
}

/// How the answers to `task` are drawn; nothing where the likeliest is taken.
fn drawing(measure: &Measure, task: &Task) -> Option<Drawing> {
    measure.drawing().filter(|_| task.generate.is_some())
}

fn questions(
    measure: &Measure,
    task: &Task,
    data: &TaskData,
    chosen: &[usize],
    shots: usize,
) -> anyhow::Result<Questions> {
    let mut templates = Templates::new(task)?;
    let Some(generate) = &task.generate else {
        let items = chosen.iter().map(|index| templates.item(&data.rows[*index], data, shots));
        return Ok(Questions::Choices(items.collect::<Result<_, _>>()?));
    };
    let solved =
        exercise::shots(data, task.data.draw, shots).map_err(|what| anyhow::anyhow!("{}: {what}", task.name))?;
    let exercises = chosen.iter().map(|index| templates.exercise(&data.rows[*index], &solved[*index]));
    let exercises = exercises.collect::<Result<Vec<_>, _>>()?;
    let sandbox = match &generate.program {
        None => None,
        Some(_) if measure.allow_code_execution => Some(Sandbox::find(Limits::default())?),
        Some(_) => anyhow::bail!(
            "{} runs programs that the model writes: `--allow-code-execution` allows it, in a sandbox without network \
             and without your files",
            task.name
        ),
    };
    Ok(Questions::Exercises(Box::new(generate.clone()), exercises, sandbox))
}

impl Side {
    fn new(checkpoint: &Checkpoint, questions: &Questions, framing: &Framing) -> anyhow::Result<Self> {
        let questions = questions.framed(framing, checkpoint)?;
        let mut encoder = Encoder::new(checkpoint, checkpoint.config.max_positions).with_bos(framing.bos)?;
        let requests = match &questions {
            Questions::Choices(items) => Requests::Choices(encoder.requests(items)?),
            Questions::Exercises(generate, exercises, _) => {
                let prompt = |e: &Exercise| generation::prompt(checkpoint, generate, encoder.encode(&e.prompt)?);
                Requests::Prompts(exercises.iter().map(prompt).collect::<Result<_, _>>()?)
            }
        };
        let bos = encoder.beginning()?;
        Ok(Self { requests, bos, output: None, questions })
    }

    fn circumstances(&self, seconds: f64) -> Circumstances {
        let (truncated, spanned) = match &self.requests {
            Requests::Choices(requests) => (
                requests.iter().filter(|request| request.truncated).count(),
                requests.iter().filter(|request| request.spanned).count(),
            ),
            Requests::Prompts(prompts) => (prompts.iter().filter(|prompt| prompt.truncated).count(), 0),
        };
        Circumstances { truncated, spanned, bos: self.bos.clone(), seconds }
    }
}

/// Says what will be run.
pub(crate) fn announce(prepared: &[Prepared]) {
    for Prepared { task, shots, available, framing, drawing, model, .. } in prepared {
        let tokens: usize = match &model.requests {
            Requests::Choices(requests) => requests.iter().flat_map(|r| &r.sequences).map(|s| s.tokens.len()).sum(),
            Requests::Prompts(prompts) => prompts.iter().map(|prompt| prompt.request.prompt.len()).sum(),
        };
        let count = model.questions.len();
        say(&format!("task       {}: {count} of {available} items, shots {shots}, {tokens} tokens", task.name));
        say(&format!("           prompt of {}; {framing}", task.prompt_source));
        if let Some(drawing) = drawing {
            say(&format!("           {drawing}"));
        }
        say(&format!("BOS        {}", model.bos));
    }
}

/// Scores every task with both models.
pub(crate) fn run(
    measure: &Measure,
    models: [Option<&Checkpoint>; 2],
    prepared: Vec<Prepared>,
) -> anyhow::Result<Done> {
    let (mut reports, mut runs) = (Vec::new(), [Run::new(), Run::new()]);
    for mut prepared in prepared {
        let name = prepared.task.name.clone();
        let scored = prepared.score(measure, models)?;
        let outputs = [prepared.model.output.take(), prepared.baseline.as_mut().and_then(|side| side.output.take())];
        let mut summaries = [None, None];
        for (index, (scored, output)) in scored.into_iter().zip(outputs).enumerate() {
            let Some((records, summary)) = scored else { continue };
            write(output, &records)?;
            runs[index].insert(name.clone(), records);
            summaries[index] = Some(summary);
        }
        let [model, baseline] = summaries;
        reports.push(report(
            measure,
            (prepared.task, prepared.files),
            (prepared.shots, prepared.available, prepared.limit),
            (model.context("the model is always scored")?, baseline),
        ));
    }
    Done::new(reports, runs, measure.seed)
}

/// What running tasks leaves.
pub(crate) struct Done {
    /// The figures.
    pub(crate) reports: Vec<TaskReport>,
    /// By capability, where there is a baseline and more than one task.
    pub(crate) changes: Vec<Change>,
    /// The model's records and the baseline's.
    runs: [Run; 2],
}

impl Done {
    /// Compares the runs.
    pub(crate) fn new(mut reports: Vec<TaskReport>, runs: [Run; 2], seed: u64) -> anyhow::Result<Self> {
        let [ours, theirs] = &runs;
        let compared = paired::compare(theirs, ours, seed)?;
        let changes = worth_showing(capability::changes(theirs, ours, seed), &compared);
        for paired in compared {
            if let Some(report) = reports.iter_mut().find(|report| report.task == paired.task) {
                report.paired = Some(paired);
            }
        }
        Ok(Self { reports, changes, runs })
    }

    /// The results of `models`, the model and the baseline if there is one, in lm-evaluation-harness's layout.
    pub(crate) fn layouts(&self, measure: &Measure, models: &[&str]) -> Vec<Value> {
        let known = |run: &Run| -> Vec<(String, usize, usize, String)> {
            let asked = self.reports.iter().filter(|report| run.contains_key(&report.task));
            asked.map(|r| (r.task.clone(), r.shots, r.available, r.prompt_source.clone())).collect()
        };
        let layout = |(model, run): (&&str, &Run)| {
            let known = known(run);
            let tasks: Vec<TaskRecords<'_>> = known
                .iter()
                .map(|(task, shots, available, source)| TaskRecords {
                    task,
                    records: &run[task],
                    shots: Some(*shots),
                    available: Some(*available),
                    prompt_source: Some(source),
                })
                .collect();
            export::lm_eval(model, measure.seed, measure.limit, &tasks)
        };
        models.iter().zip(&self.runs).map(layout).collect()
    }
}

/// `changes` where a view over capabilities says more than the comparison of tasks.
pub(crate) fn worth_showing(changes: Vec<Change>, compared: &[Paired]) -> Vec<Change> {
    if compared.len() > 1 { changes } else { Vec::new() }
}

pub(crate) fn write(output: Option<Output>, records: &[Record]) -> anyhow::Result<()> {
    match output {
        Some(output) => output.commit(&records::to_json_lines(records)?).context("writing records"),
        None => Ok(()),
    }
}

fn side(
    measure: &Measure,
    checkpoint: &Checkpoint,
    prepared: &Prepared,
    side: &Side,
) -> anyhow::Result<(Vec<Record>, Summary)> {
    let started = Instant::now();
    let mut records = match (&side.questions, &side.requests) {
        (Questions::Choices(items), Requests::Choices(requests)) => {
            chosen(measure, checkpoint, &prepared.task, items, requests)?
        }
        (Questions::Exercises(generate, exercises, sandbox), Requests::Prompts(prompts)) => {
            let drawing = prepared.drawing.as_ref();
            let answers = prompts.len() * drawing.map_or(1, |drawing| drawing.samples);
            let mut progress = Progress::new(&title(checkpoint, &prepared.task), answers as u64, 0);
            let both = (exercises.as_slice(), prompts.as_slice());
            let responses = generation::write(checkpoint, generate, both, drawing, &mut || progress.step("written"))?;
            progress.finish();
            generation::judge(&prepared.task, generate, exercises, responses, sandbox.as_ref())?
        }
        _ => unreachable!("requests are made from the questions they stand beside"),
    };
    for record in &mut records {
        record.framing = prepared.framing.clone();
    }
    let circumstances = side.circumstances(started.elapsed().as_secs_f64());
    let summary = Summary::new(&records, circumstances, measure.seed);
    Ok((records, summary))
}

fn title(checkpoint: &Checkpoint, task: &Task) -> String {
    format!("{} on {}", checkpoint.reference, task.name)
}

/// The records of a task in which the model chooses.
fn chosen(
    measure: &Measure,
    checkpoint: &Checkpoint,
    task: &Task,
    items: &[Item],
    requests: &[Request],
) -> anyhow::Result<Vec<Record>> {
    let steps = likelihood::steps(checkpoint, requests, measure.memory());
    let mut progress = Progress::new(&title(checkpoint, task), steps, 0);
    let mut records: Vec<Record> = Vec::with_capacity(items.len());
    let mut running = format!("0 of {} items", items.len());
    likelihood::score(checkpoint, requests, measure.memory(), &mut |step| match step {
        Step::Layer(layer, layers) => {
            let place = if layer > layers { "head".to_owned() } else { format!("layer {layer}/{layers}") };
            progress.step(&format!("{place}, {running}"));
        }
        Step::Scored(likelihoods) => {
            let next = items[records.len()..].iter().zip(likelihoods);
            records.extend(next.map(|(item, likelihoods)| choice::record(task, item, likelihoods)));
            running = running_score(task.primary(), &records, items.len());
        }
    })?;
    progress.finish();
    Ok(records)
}

fn running_score(metric: Metric, records: &[Record], items: usize) -> String {
    let values: Vec<f64> = records.iter().map(|record| record.metrics[&metric]).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let error = if values.len() > 1 {
        let deviation = evaluate::statistics::standard_deviation(&values) / (values.len() as f64).sqrt();
        format!(" ± {deviation:.3}")
    } else {
        String::new()
    };
    format!("{metric} {mean:.3}{error} after {} of {items} items", records.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_sorted_distinct_and_repeatable() {
        let drawn = draw(1000, Some(50), 7);
        assert!(drawn.len() == 50 && drawn.is_sorted_by(|a, b| a < b) && drawn == draw(1000, Some(50), 7));
        assert_ne!(drawn, draw(1000, Some(50), 8));
        assert_eq!(draw(3, None, 7), [0, 1, 2]);
    }
}
