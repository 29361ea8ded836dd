//! Running tasks, and the subcommands around them, from arguments to what is printed.

use crate::{
    cli::{Compare, Measure, Show},
    run::{print, say},
};
use anyhow::Context as _;
use console::{Exit, Progress, files::Output};
use evaluate::{
    choice,
    generation::{self, Prompt},
    likelihood::{self, Encoder, Request, Step},
    paired,
    records::{self, Record, Run},
    sandbox::{Limits, Sandbox},
    task::{
        Generate, Metric, Task,
        data::{self, DataFile, TaskData, draw},
        exercise::{self, Exercise},
        prompt::{Answer, Item, Templates},
    },
    task_report::{self, Circumstances, Summary, TaskReport},
};
use model::Checkpoint;
use std::{fmt::Write as _, path::PathBuf, time::Instant};

/// A task with everything it needs, before any model runs.
pub(crate) struct Prepared {
    task: Task,
    shots: usize,
    available: usize,
    limit: Option<usize>,
    files: Vec<DataFile>,
    questions: Questions,
    model: Side,
    baseline: Option<Side>,
}

/// What is asked.
enum Questions {
    /// The model chooses.
    Choices(Vec<Item>),
    /// The model writes; programs are run in the sandbox.
    Exercises(Box<Generate>, Vec<Exercise>, Option<Sandbox>),
}

impl Questions {
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

/// A task's items as tokens of one model, and where its records go.
struct Side {
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
    for name in &measure.tasks {
        let task = Task::open(name)?;
        if prepared.iter().any(|other| other.task.name == task.name) {
            anyhow::bail!("two tasks are called {}: name each once", task.name);
        }
        let shots = measure.shots.unwrap_or(task.shots);
        let data = TaskData::read(&task, &measure.data, shots > 0)?;
        let available = data.rows.len();
        let limit = measure.limit.filter(|limit| *limit < available);
        let chosen = draw(available, limit, measure.seed);
        let questions = questions(measure, &task, &data, &chosen, shots)?;
        let file = format!("{}.jsonl", task.name);
        let path = |part: &str| measure.records.as_ref().map(|folder| folder.join(part).join(&file));
        let model = Side::new(checkpoint, &questions, path(""))?;
        let baseline = baseline.map(|baseline| Side::new(baseline, &questions, path("baseline"))).transpose()?;
        prepared.push(Prepared { task, shots, available, limit, files: data.files, questions, model, baseline });
    }
    Ok(prepared)
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
    fn new(checkpoint: &Checkpoint, questions: &Questions, path: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut encoder = Encoder::new(checkpoint, checkpoint.config.max_positions);
        let requests = match questions {
            Questions::Choices(items) => Requests::Choices(encoder.requests(items)?),
            Questions::Exercises(generate, exercises, _) => {
                let prompt = |e: &Exercise| generation::prompt(checkpoint, generate, encoder.encode(&e.prompt)?);
                Requests::Prompts(exercises.iter().map(prompt).collect::<Result<_, _>>()?)
            }
        };
        let output = path.map(|path| Output::open(&path).with_context(|| path.display().to_string())).transpose()?;
        Ok(Self { requests, bos: encoder.beginning()?, output })
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
    for Prepared { task, shots, available, questions, model, .. } in prepared {
        let tokens: usize = match &model.requests {
            Requests::Choices(requests) => requests.iter().flat_map(|r| &r.sequences).map(|s| s.tokens.len()).sum(),
            Requests::Prompts(prompts) => prompts.iter().map(|prompt| prompt.request.prompt.len()).sum(),
        };
        let count = questions.len();
        say(&format!("task       {}: {count} of {available} items, shots {shots}, {tokens} tokens", task.name));
        say(&format!("           prompt of {}; chat template not applied", task.prompt_source));
        say(&format!("BOS        {}", model.bos));
    }
}

/// Scores every task with both models.
pub(crate) fn run(
    measure: &Measure,
    checkpoint: &Checkpoint,
    baseline: Option<&Checkpoint>,
    prepared: Vec<Prepared>,
) -> anyhow::Result<Vec<TaskReport>> {
    let (mut reports, mut ours, mut theirs) = (Vec::new(), Run::new(), Run::new());
    for mut prepared in prepared {
        let name = prepared.task.name.clone();
        let (records, model) = side(measure, checkpoint, &prepared, &prepared.model)?;
        write(prepared.model.output.take(), &records)?;
        ours.insert(name.clone(), records);
        let mut other = None;
        if let (Some(baseline), Some(tokens)) = (baseline, &prepared.baseline) {
            let (records, summary) = side(measure, baseline, &prepared, tokens)?;
            write(prepared.baseline.as_mut().and_then(|side| side.output.take()), &records)?;
            theirs.insert(name.clone(), records);
            other = Some(summary);
        }
        reports.push(TaskReport {
            task: name,
            prompt_source: prepared.task.prompt_source,
            shots: prepared.shots,
            available: prepared.available,
            limit: prepared.limit,
            chat_template: false,
            files: prepared.files,
            model,
            baseline: other,
            paired: None,
        });
    }
    for paired in paired::compare(&theirs, &ours, measure.seed)? {
        if let Some(report) = reports.iter_mut().find(|report| report.task == paired.task) {
            report.paired = Some(paired);
        }
    }
    Ok(reports)
}

fn write(output: Option<Output>, records: &[Record]) -> anyhow::Result<()> {
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
    let records = match (&prepared.questions, &side.requests) {
        (Questions::Choices(items), Requests::Choices(requests)) => {
            chosen(measure, checkpoint, &prepared.task, items, requests)?
        }
        (Questions::Exercises(generate, exercises, sandbox), Requests::Prompts(prompts)) => {
            let mut progress = Progress::new(&title(checkpoint, &prepared.task), prompts.len() as u64, 0);
            let responses = generation::write(checkpoint, generate, prompts, &mut || progress.step("written"))?;
            progress.finish();
            generation::judge(&prepared.task, generate, exercises, responses, sandbox.as_ref())?
        }
        _ => unreachable!("requests are made from the questions they stand beside"),
    };
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

/// `evaluate tasks`.
pub(crate) fn list(folders: &[PathBuf]) -> anyhow::Result<Exit> {
    let mut text = String::new();
    for task in Task::built_in()? {
        let metrics: Vec<&str> = task.metrics.iter().map(|metric| metric.name()).collect();
        let items = task.items.map_or_else(|| "?".to_owned(), |items| items.to_string());
        writeln!(text, "{}: {}", task.name, task.about)?;
        writeln!(text, "  items   {items}; shots {}; metrics {}", task.shots, metrics.join(", "))?;
        writeln!(text, "  prompt  {}", task.prompt_source)?;
        for (what, patterns) in [("data", &task.data.test), ("shots", &task.data.shots)] {
            let found = patterns.iter().map(|pattern| data::find(pattern, folders)).find(|found| !found.is_empty());
            let place = match found {
                Some(found) if found.len() == 1 => found[0].path.display().to_string(),
                Some(found) => format!("{} files such as {}", found.len(), found[0].path.display()),
                None if patterns.is_empty() => continue,
                None => format!("not found; looked for {}", patterns.join(", ")),
            };
            writeln!(text, "  {what:<6}  {place}")?;
        }
        writeln!(text)?;
    }
    writeln!(text, "Metrics:")?;
    for metric in Metric::ALL {
        writeln!(text, "  {:<11} {}", metric.name(), metric.explain())?;
    }
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    writeln!(text, "\nData is looked for in {} (`--data` says where else).", folders.join(", "))?;
    print(&text)?;
    Ok(Exit::Done)
}

/// `evaluate show`.
pub(crate) fn show(show: &Show) -> anyhow::Result<Exit> {
    let task = Task::open(&show.task)?;
    let shots = show.shots.unwrap_or(task.shots);
    let data = TaskData::read(&task, &show.data, shots > 0)?;
    let row = data.rows.get(show.item).with_context(|| {
        format!("{} has {} items: `--item` takes 0 to {}", task.name, data.rows.len(), data.rows.len() - 1)
    })?;
    if task.generate.is_some() {
        return show_exercise(show, &task, &data, shots);
    }
    let item = Templates::new(&task)?.item(row, &data, shots)?;
    let mut text = String::new();
    writeln!(text, "task       {}, item {} ({} of {})", task.name, item.id, show.item, data.rows.len())?;
    writeln!(text, "prompt     of {}; shots {shots}; chat template not applied", task.prompt_source)?;
    writeln!(text, "sha256     {}", item.sha256())?;
    for metric in &task.metrics {
        writeln!(text, "metric     {metric}: {}", metric.explain())?;
    }
    let checkpoint = show.model.as_deref().map(Checkpoint::open).transpose()?;
    let request = match &checkpoint {
        Some(checkpoint) => {
            let encoder = Encoder::new(checkpoint, checkpoint.config.max_positions);
            writeln!(text, "BOS        {}", encoder.beginning()?)?;
            Some(encoder.request(&item)?)
        }
        None => None,
    };
    show_pairs(&mut text, &item)?;
    if let (Some(checkpoint), Some(request)) = (&checkpoint, &request) {
        show_tokens(&mut text, checkpoint, request)?;
    }
    print(&text)?;
    Ok(Exit::Done)
}

fn show_exercise(show: &Show, task: &Task, data: &TaskData, shots: usize) -> anyhow::Result<Exit> {
    let solved =
        exercise::shots(data, task.data.draw, shots).map_err(|what| anyhow::anyhow!("{}: {what}", task.name))?;
    let exercise = Templates::new(task)?.exercise(&data.rows[show.item], &solved[show.item])?;
    let mut text = String::new();
    writeln!(text, "task       {}, item {} ({} of {})", task.name, exercise.id, show.item, data.rows.len())?;
    writeln!(text, "prompt     of {}; {shots} shots; chat template not applied", task.prompt_source)?;
    writeln!(text, "sha256     {}", exercise.sha256())?;
    for metric in &task.metrics {
        writeln!(text, "metric     {metric}: {}", metric.explain())?;
    }
    writeln!(text, "\n--- prompt\n{}\n--- end of prompt\nanswer     {:?}", exercise.prompt, exercise.answer)?;
    if let Some(trial) = &exercise.trial {
        writeln!(text, "\n--- tests\n{}\n--- end of tests", trial.tests)?;
    }
    if let Some(checkpoint) = show.model.as_deref().map(Checkpoint::open).transpose()? {
        let encoder = Encoder::new(&checkpoint, checkpoint.config.max_positions);
        writeln!(text, "BOS        {}", encoder.beginning()?)?;
        writeln!(text, "tokens     {:?}", encoder.encode(&exercise.prompt)?)?;
    }
    print(&text)?;
    Ok(Exit::Done)
}

fn show_pairs(text: &mut String, item: &Item) -> anyhow::Result<()> {
    let same = item.pairs.iter().all(|pair| pair.context == item.pairs[0].context);
    if same {
        writeln!(text, "\n--- context, for every choice\n{}\n--- end of context", item.pairs[0].context)?;
    }
    for (index, pair) in item.pairs.iter().enumerate() {
        let right = match &item.answer {
            Answer::One(answer) => *answer == index,
            Answer::Marks(marks) => marks[index],
        };
        if !same {
            writeln!(text, "\n--- context of choice {index}\n{}\n--- end of context", pair.context)?;
        }
        let right = if right { "   <- right" } else { "" };
        writeln!(text, "choice {index}   {:?}{right}", pair.continuation)?;
    }
    Ok(())
}

fn show_tokens(text: &mut String, checkpoint: &Checkpoint, request: &Request) -> anyhow::Result<()> {
    writeln!(text, "\n--- tokens: what is scored stands behind the bar")?;
    let piece = |token: &u32| {
        let piece = checkpoint.tokenizer.decode(&[*token], false).unwrap_or_default();
        format!("{token}={piece:?}")
    };
    let pieces = |tokens: &[u32]| tokens.iter().map(piece).collect::<Vec<_>>().join(" ");
    for (index, sequence) in request.sequences.iter().enumerate() {
        let (context, continuation) = sequence.tokens.split_at(sequence.start);
        writeln!(text, "choice {index}   {} | {}", pieces(context), pieces(continuation))?;
    }
    if request.prefix > 0 {
        writeln!(text, "the first {} tokens are computed once for all items that begin so", request.prefix)?;
    }
    if request.truncated {
        writeln!(text, "tokens on the left were dropped: the model takes {}", checkpoint.config.max_positions)?;
    }
    if request.spanned {
        writeln!(text, "a token spans the place where context and choice meet: the bar stands before it")?;
    }
    Ok(())
}

/// `evaluate compare`.
pub(crate) fn compare(compare: &Compare) -> anyhow::Result<Exit> {
    let baseline = records::read(&compare.baseline)?;
    let mut all = Vec::new();
    for model in &compare.models {
        let paired = paired::compare(&baseline, &records::read(model)?, compare.seed)?;
        if paired.is_empty() {
            anyhow::bail!("{} and {model} have no task in common", compare.baseline);
        }
        all.push((model, paired));
    }
    if compare.json {
        let runs: Vec<_> =
            all.iter().map(|(model, paired)| serde_json::json!({"model": model, "tasks": paired})).collect();
        let json = serde_json::json!({
            "tool": concat!("caliper evaluate ", env!("CARGO_PKG_VERSION")), "baseline": compare.baseline,
            "seed": compare.seed, "draws": evaluate::statistics::DRAWS, "runs": runs,
        });
        print(&serde_json::to_string_pretty(&json)?)?;
        return Ok(Exit::Done);
    }
    let mut text = String::new();
    for (model, paired) in &all {
        writeln!(text, "{model} against {}", compare.baseline)?;
        text += &task_report::comparison(paired);
        if compare.show_flips {
            show_flips(&mut text, paired)?;
        }
    }
    print(&text)?;
    Ok(Exit::Done)
}

fn show_flips(text: &mut String, compared: &[paired::Paired]) -> anyhow::Result<()> {
    let index = |choice: Option<usize>| choice.map_or_else(|| "n/a".to_owned(), |choice| choice.to_string());
    for paired in compared {
        let Some(flips) = &paired.flips else { continue };
        let mut table = console::Table::new([&*paired.task, "", "right", "baseline picks", "model picks"]);
        for flip in &flips.items {
            let which = if flip.gained { "gained" } else { "lost" };
            table.row([flip.id.clone(), which.to_owned(), index(flip.answer), index(flip.baseline), index(flip.model)]);
        }
        writeln!(text, "{table}")?;
    }
    Ok(())
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
