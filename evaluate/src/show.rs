//! `evaluate tasks` and `evaluate show`: which tasks there are, and what exactly one of their items asks.

use crate::{cli::Show, run::print};
use anyhow::Context as _;
use console::Exit;
use evaluate::{
    framing::Framing,
    likelihood::{Encoder, Request},
    task::{
        Metric, Task,
        data::{self, TaskData},
        exercise,
        prompt::{Answer, Item, Templates},
    },
};
use model::Checkpoint;
use std::{fmt::Write as _, path::PathBuf};

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
    // One line is enough for all pass@k.
    for metric in Metric::ALL.into_iter().filter(|metric| metric.attempts().is_none_or(|k| k <= 2)) {
        writeln!(text, "  {:<23} {}", metric.name(), metric.explain())?;
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
    let framing = show.put.framing();
    let checkpoint = show.model.as_deref().map(Checkpoint::open).transpose()?;
    let mut item = Templates::new(&task)?.item(row, &data, shots)?;
    if let Some(checkpoint) = with_model(checkpoint.as_ref(), &framing)? {
        item = framing.item(checkpoint, &item)?;
    }
    let mut text = String::new();
    writeln!(text, "task       {}, item {} ({} of {})", task.name, item.id, show.item, data.rows.len())?;
    writeln!(text, "prompt     of {}; shots {shots}; {framing}", task.prompt_source)?;
    writeln!(text, "sha256     {}", item.sha256())?;
    for metric in &task.metrics {
        writeln!(text, "metric     {metric}: {}", metric.explain())?;
    }
    let request = match &checkpoint {
        Some(checkpoint) => {
            let encoder = Encoder::new(checkpoint, checkpoint.config.max_positions).with_bos(framing.bos)?;
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

/// The model, which everything but a plain prompt needs.
fn with_model<'a>(checkpoint: Option<&'a Checkpoint>, framing: &Framing) -> anyhow::Result<Option<&'a Checkpoint>> {
    if checkpoint.is_none() && !framing.is_plain() {
        anyhow::bail!("chat template, system prompt and BOS are a model's: name it behind the task");
    }
    Ok(checkpoint)
}

fn show_exercise(show: &Show, task: &Task, data: &TaskData, shots: usize) -> anyhow::Result<Exit> {
    let solved =
        exercise::shots(data, task.data.draw, shots).map_err(|what| anyhow::anyhow!("{}: {what}", task.name))?;
    let mut exercise = Templates::new(task)?.exercise(&data.rows[show.item], &solved[show.item])?;
    let framing = show.put.framing();
    let checkpoint = show.model.as_deref().map(Checkpoint::open).transpose()?;
    if let Some(checkpoint) = with_model(checkpoint.as_ref(), &framing)? {
        exercise = framing.exercise(checkpoint, &exercise)?;
    }
    let mut text = String::new();
    writeln!(text, "task       {}, item {} ({} of {})", task.name, exercise.id, show.item, data.rows.len())?;
    writeln!(text, "prompt     of {}; {shots} shots; {framing}", task.prompt_source)?;
    writeln!(text, "sha256     {}", exercise.sha256())?;
    for metric in &task.metrics {
        writeln!(text, "metric     {metric}: {}", metric.explain())?;
    }
    writeln!(text, "\n--- prompt\n{}\n--- end of prompt\nanswer     {:?}", exercise.prompt, exercise.answer)?;
    if let Some(trial) = &exercise.trial {
        writeln!(text, "\n--- tests\n{}\n--- end of tests", trial.tests)?;
    }
    for instruction in &exercise.instructions {
        writeln!(text, "checked    {} {}", instruction.id, serde_json::to_string(&instruction.arguments)?)?;
    }
    if let Some(checkpoint) = &checkpoint {
        let encoder = Encoder::new(checkpoint, checkpoint.config.max_positions).with_bos(framing.bos)?;
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
