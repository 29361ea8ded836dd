//! Sections on where a loss comes from: parts of the model, kinds of token, and the shortcut of shared statistics.

use super::words::{against, estimate_cell, headings, slug, varying};
use crate::{
    StudyError,
    findings::Parts,
    measure::Measure,
    places::CLASSES,
    plot::{self, Mark},
    results::Results,
    settings::Settings,
    statistics::Effect,
};
use console::page::{Cell, Figure, Section, Table};

/// Parts drawn in a figure; the rest is in its table.
const DRAWN: usize = 24;

/// Parts of the model one at a time, the worst first.
pub(super) fn damage(measure: Measure, parts: &Parts) -> Result<Section, StudyError> {
    let with = if parts.title.is_empty() { String::new() } else { format!(", {}", parts.title) };
    let [one, _] = parts.kind.names();
    let (what, title) = match parts.how.as_str() {
        "only" => ("quantized and nothing else", format!("Damage of each {one} alone")),
        _ => ("left as it is and everything else quantized", format!("What remains with one {one} restored")),
    };
    let marks: Vec<Mark> = parts
        .parts
        .iter()
        .take(DRAWN)
        .map(|(place, estimate)| Mark { label: place.clone(), x: 0.0, estimate: *estimate, strong: false })
        .collect();
    let more = parts.parts.len().saturating_sub(DRAWN);
    let more = if more > 0 { format!(" {more} more are in the table.") } else { String::new() };
    let caption =
        format!("{} with one {one} {what}{with}, with 95 % intervals, averaged over texts.{more}", against(measure));
    let sum: f64 = parts.parts.iter().map(|(_, loss)| loss.value).sum();
    let rows = parts.parts.iter().map(|(place, loss)| {
        let share = loss.value / sum;
        vec![
            Cell::text(place),
            estimate_cell(measure, Some(loss)),
            Cell::number(share, format!("{:.1} %", 100.0 * share)),
        ]
    });
    let table = Table {
        caption: format!("Each {one}{with}"),
        headings: headings([one, measure.loss(), "share of the sum"]),
        rows: rows.collect(),
    };
    let all = parts.all.as_ref().map(|all| {
        format!(
            "With everything quantized it is {}; the parts sum to {}.",
            measure.with_interval(all),
            measure.change(sum)
        )
    });
    let name = slug(&format!("{} {one} {}", parts.how, parts.title));
    Ok(Section {
        title: format!("{title}{with}"),
        text: all.into_iter().collect(),
        figures: vec![Figure { name, caption, svg: plot::forest(measure, &marks)? }],
        tables: vec![table],
        ..Section::default()
    })
}

/// Divergence by kind of token and place in the window, of configurations that quantize everything; seeds averaged.
pub(super) fn places(results: &Results<'_>) -> Option<Section> {
    let axes = varying(results);
    let mut rows = Vec::new();
    for group in results.groups.iter().filter(|group| group.settings.part.is_none()) {
        for evaluation in results.evaluations() {
            let lines = group.lines.iter().filter(|line| line.evaluation == evaluation);
            let places: Vec<_> = lines.filter_map(|line| Some(&line.divergence.as_ref()?.places)).collect();
            if places.iter().all(|places| places.is_empty()) {
                continue;
            }
            let cell = |class: &&str| {
                let found = places.iter().filter_map(|places| places.iter().find(|place| place.class == **class));
                let found: Vec<_> = found.collect();
                let mean = found.iter().map(|place| place.mean).sum::<f64>() / found.len() as f64;
                let own = found.first().filter(|_| found.len() == 1).and_then(|place| place.interval);
                let ends = own.map_or_else(String::new, |[low, high]| format!(" ({low:.4} to {high:.4})"));
                if found.is_empty() { Cell::empty() } else { Cell::number(mean, format!("{mean:.4}{ends}")) }
            };
            let mut row = vec![Cell::text(group.settings.label(&axes)), Cell::text(evaluation)];
            row.extend(CLASSES.iter().map(cell));
            rows.push(row);
        }
    }
    let mut columns = headings(["configuration", "text"]);
    columns.extend(CLASSES.iter().map(|class| (*class).to_owned()));
    let caption = "Mean KL divergence in nats by the kind of the token foretold, and by its place in the window (its first 16 \
                   targets, its quarters); with one seed with 95 % intervals, else averaged over seeds";
    (!rows.is_empty()).then(|| Section {
        title: "Where in the text".to_owned(),
        tables: vec![Table { caption: caption.to_owned(), headings: columns, rows }],
        ..Section::default()
    })
}

/// What solving on the original model's statistics costs against true sequence, on the configurations solved both ways.
pub(super) fn shortcut(results: &Results<'_>) -> Option<Section> {
    let axes = varying(results);
    let row = |(settings, evaluation, effect): &(&Settings, &str, Effect)| {
        let mut axes = axes.clone();
        if !axes.contains(&"method") {
            axes.insert(0, "method");
        }
        let estimate = effect.estimate();
        vec![
            Cell::text(settings.label(&axes)),
            Cell::text(*evaluation),
            estimate_cell(results.measure, Some(&estimate)),
        ]
    };
    let rows: Vec<_> = results.shortcuts().iter().map(row).collect();
    let table = Table {
        caption: format!("{}: statistics of the original model, minus true sequence", results.measure.loss()),
        headings: headings(["configuration", "evaluation", "cost of the shortcut"]),
        rows,
    };
    (!table.rows.is_empty()).then(|| Section {
        title: "What sharing statistics costs".to_owned(),
        text: vec![
            "Every configuration was solved on the statistics of the original model, captured once. One of each method was \
             also solved in true sequence, in which each layer sees the quantized ones before it; the difference is here. \
             It holds for these configurations, and is as a rule larger at fewer bits."
                .to_owned(),
        ],
        tables: vec![table],
        ..Section::default()
    })
}
