//! `evaluate compare`: runs against each other, from their records alone.

use crate::{cli::Compare, run::print, tasks::worth_showing};
use console::Exit;
use evaluate::{
    capability,
    export::{self, TaskRecords},
    page,
    paired::{self, Compared, Flip, Paired},
    records::{self, Run},
    task_report,
};
use serde_json::Value;
use std::fmt::Write as _;

/// `evaluate compare`.
pub(crate) fn compare(compare: &Compare) -> anyhow::Result<Exit> {
    let names: Vec<&str> = std::iter::once(&compare.baseline).chain(&compare.models).map(String::as_str).collect();
    let files = compare.exports.open(&names)?;
    let baseline = records::read(&compare.baseline)?;
    let (mut all, mut runs) = (Vec::new(), vec![baseline]);
    for model in &compare.models {
        let run = records::read(model)?;
        let paired = paired::compare(&runs[0], &run, compare.seed)?;
        let changes = worth_showing(capability::changes(&runs[0], &run, compare.seed), &paired);
        if paired.is_empty() {
            anyhow::bail!("{} and {model} have no task in common", compare.baseline);
        }
        all.push(Compared { model: model.clone(), paired, changes });
        runs.push(run);
    }
    let layouts = names.iter().zip(&runs).map(|(name, run)| layout(name, run, compare.seed)).collect();
    let rows: Vec<_> = all.iter().flat_map(|run| export::comparison_rows(&compare.baseline, run)).collect();
    let page = || page::of_comparison(&compare.baseline, &all, compare.seed);
    files.commit(layouts, &rows, compare.exports.wants_page().then(page).transpose()?)?;
    if compare.json {
        let runs: Vec<_> = all
            .iter()
            .map(|run| {
                serde_json::json!({"model": run.model, "tasks": run.paired, "capabilities": run.changes,
                    "verdict": capability::verdict(&run.changes)})
            })
            .collect();
        let json = serde_json::json!({
            "tool": concat!("caliper evaluate ", env!("CARGO_PKG_VERSION")), "baseline": compare.baseline,
            "seed": compare.seed, "draws": evaluate::statistics::DRAWS, "runs": runs,
        });
        print(&serde_json::to_string_pretty(&json)?)?;
        return Ok(Exit::Done);
    }
    let mut text = String::new();
    for run in &all {
        writeln!(text, "{} against {}", run.model, compare.baseline)?;
        text += &task_report::comparison(&run.paired);
        if compare.show_flips {
            show_flips(&mut text, &run.paired)?;
        }
        text += &capability::tables(&run.changes);
    }
    print(&text)?;
    Ok(Exit::Done)
}

/// What records alone say, in lm-evaluation-harness's layout.
fn layout(name: &str, run: &Run, seed: u64) -> Value {
    let tasks = run.iter().filter(|(_, records)| !records.is_empty()).map(|(task, records)| TaskRecords {
        task,
        records,
        shots: None,
        available: None,
        prompt_source: None,
    });
    export::lm_eval(name, seed, None, &tasks.collect::<Vec<_>>())
}

fn show_flips(text: &mut String, compared: &[Paired]) -> anyhow::Result<()> {
    for paired in compared {
        let Some(flips) = &paired.flips else { continue };
        writeln!(
            text,
            "{}: {} lost and {} gained of {} items; a true difference of {:.4} would be found 4 times of 5",
            paired.task, flips.lost, flips.gained, paired.items, flips.detectable
        )?;
        if flips.items.is_empty() {
            continue;
        }
        let written = flips.items.iter().any(|flip| flip.responses.is_some());
        let headings: &[&str] = if written {
            &["", "baseline ends with", "model ends with"]
        } else {
            &["", "right", "baseline picks", "model picks", "margin before", "margin now"]
        };
        let mut table = console::Table::new(std::iter::once(&*paired.task).chain(headings.iter().copied()));
        for flip in &flips.items {
            let which = if flip.gained { "gained" } else { "lost" };
            table.row([flip.id.clone(), which.to_owned()].into_iter().chain(picks(flip, written)));
        }
        writeln!(text, "{table}")?;
    }
    Ok(())
}

/// What either run did with an item that flipped.
fn picks(flip: &Flip, written: bool) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "n/a".to_owned());
    if written {
        let last = |text: &String| text.trim().lines().last().unwrap_or_default().chars().take(40).collect::<String>();
        let responses = flip.responses.as_ref().map(|responses| responses.each_ref().map(last));
        return responses.map_or_else(|| vec![or_none(None); 2], |responses| responses.to_vec());
    }
    let choices = [flip.answer, flip.baseline, flip.model].map(|choice| or_none(choice.map(|c| c.to_string())));
    let margins = [0, 1].map(|side: usize| or_none(flip.margins.map(|margins| format!("{:+.3}", margins[side]))));
    choices.into_iter().chain(margins).collect()
}
