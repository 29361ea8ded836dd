//! What a page says of tasks and capabilities.

use super::{count, ends, excludes_zero, figure, headings, scale, scaled, signed};
use crate::{
    EvaluateError,
    capability::Change,
    paired::{Flip, Flips, MetricDifference, Paired},
    statistics::Estimate,
    task_report::{Summary, TaskReport},
};
use console::{
    page::{Cell, Figure, Section, Table},
    plot::{self, Axis, Mark},
};

/// The level below which a difference is called one.
const LEVEL: f64 = 0.05;

/// What is known of the differences: those that are no chance, and how large one would have to be to be seen.
pub(super) fn say_tasks(paired: &[Paired]) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut unclear: Vec<(&str, f64)> = Vec::new();
    for task in paired {
        let (Some(first), Some(flips)) = (task.metrics.first(), &task.flips) else { continue };
        let difference = scaled(&first.difference, 100.0);
        if flips.p_holm < LEVEL {
            let way = if difference.value < 0.0 { "lost" } else { "gained" };
            sentences.push(format!(
                "On {} it {way} {:.1} points (95 % {}; p = {:.4}, corrected for {} tasks).",
                task.task,
                difference.value.abs(),
                ends(difference.interval_95, |end| signed(end, 1)),
                flips.p_holm,
                paired.iter().filter(|task| task.flips.is_some()).count()
            ));
        } else {
            unclear.push((&task.task, 100.0 * flips.detectable));
        }
    }
    if !unclear.is_empty() {
        let list: Vec<String> = unclear.iter().map(|(task, points)| format!("{task} ({points:.1})")).collect();
        sentences.push(format!(
            "The difference can't be told from chance on {}; in brackets, the true difference in points that this many \
             items find four times of five.",
            list.join(", ")
        ));
    }
    sentences
}

/// What each capability lost or gained.
pub(super) fn by_capability(changes: &[Change], of: &str) -> Result<Option<Section>, EvaluateError> {
    if changes.is_empty() {
        return Ok(None);
    }
    let together =
        |change: &Change| scaled(&Estimate { interval_95: change.interval_together, ..change.difference }, 100.0);
    let mark = |change: &Change| {
        let difference = together(change);
        let strong = excludes_zero(&difference) && change.p_holm < LEVEL;
        let label = change.capability.to_string();
        Mark { label, x: 0.0, value: difference.value, interval: difference.interval_95, strong }
    };
    let marks: Vec<Mark> = changes.iter().map(mark).collect();
    let axis = Axis { name: "change, percentage points", write: &plot::signed };
    let figure_of = Figure {
        name: "capabilities".to_owned(),
        caption: "Change of each capability against the baseline: the mean over its tasks, in percentage points. The \
                  intervals hold together at 95 %. Left of the line is worse; orange where it is no chance."
            .to_owned(),
        svg: plot::forest(&marks, axis)?,
    };
    let plain = |value: f64| format!("{value:.2}");
    let rows = changes.iter().map(|change| {
        vec![
            Cell::text(change.capability.to_string()),
            Cell::text(change.tasks.join(", ")),
            count(change.items),
            figure(&scaled(&change.baseline, 100.0), plain),
            figure(&scaled(&change.model, 100.0), plain),
            figure(&together(change), |value| signed(value, 2)),
            Cell::number(change.p_holm, format!("{:.4}", change.p_holm)),
            Cell::number(change.detectable, format!("{:.2}", 100.0 * change.detectable)),
            Cell::number(change.last, format!("{:.0} %", 100.0 * change.last)),
        ]
    });
    let table = Table {
        caption: "Capabilities; detectable: the true difference in points that this many items find four times of five; lost \
                  most: the share of bootstrap draws in which it does"
            .to_owned(),
        headings: headings([
            "capability",
            "tasks",
            "items",
            "baseline",
            "model",
            "difference, together",
            "Holm p",
            "detectable",
            "lost most",
        ]),
        rows: rows.collect(),
    };
    Ok(Some(Section {
        title: format!("Capabilities{of}"),
        figures: vec![figure_of],
        tables: vec![table],
        ..Section::default()
    }))
}

/// Differences, tests and flips of tasks.
pub(super) fn compared(paired: &[Paired], of: &str) -> Result<Vec<Section>, EvaluateError> {
    let mark = |task: &Paired| {
        let first = task.metrics.first().filter(|first| scale(first.metric) > 1.0)?;
        let difference = scaled(&first.difference, 100.0);
        Some(Mark {
            label: format!("{} ({})", task.task, first.metric),
            x: 0.0,
            value: difference.value,
            interval: difference.interval_95,
            strong: excludes_zero(&difference),
        })
    };
    let marks: Vec<Mark> = paired.iter().filter_map(mark).collect();
    let caption = "Change of each task's first metric against the baseline in percentage points, with 95 % interval of the \
                   paired bootstrap; left of the line is worse. Orange where the interval leaves out zero.";
    let axis = Axis { name: "change, percentage points", write: &plot::signed };
    let figures = if marks.is_empty() {
        Vec::new()
    } else {
        vec![Figure { name: "tasks".to_owned(), caption: caption.to_owned(), svg: plot::forest(&marks, axis)? }]
    };
    let rows = paired.iter().flat_map(|task| task.metrics.iter().map(|metric| difference_row(task, metric)));
    let differences = Table {
        caption: "Every metric in both, with 95 % intervals; shares in per cent, differences in points".to_owned(),
        headings: headings(["task", "metric", "items", "baseline", "model", "difference"]),
        rows: rows.collect(),
    };
    let mut sections = vec![Section {
        title: format!("Tasks{of}"),
        figures,
        tables: vec![differences, tests(paired)],
        ..Section::default()
    }];
    let flipped = paired.iter().filter_map(|task| Some((task, task.flips.as_ref()?)));
    sections.extend(flipped.filter(|(_, flips)| !flips.items.is_empty()).map(|(task, flips)| browse(task, flips, of)));
    Ok(sections)
}

fn difference_row(task: &Paired, metric: &MetricDifference) -> Vec<Cell> {
    let factor = scale(metric.metric);
    let plain = |value: f64| format!("{value:.2}");
    let difference = scaled(&metric.difference, factor);
    vec![
        Cell::text(&task.task),
        Cell::text(metric.metric.name()),
        count(task.items),
        figure(&scaled(&metric.baseline, factor), plain),
        figure(&scaled(&metric.model, factor), plain),
        Cell { strong: excludes_zero(&difference), ..figure(&difference, |value| signed(value, 2)) },
    ]
}

fn tests(paired: &[Paired]) -> Table {
    let row = |task: &Paired| {
        let flips = task.flips.as_ref()?;
        Some(vec![
            Cell::text(&task.task),
            count(flips.lost),
            count(flips.gained),
            Cell::number(flips.share, format!("{:.2} %", 100.0 * flips.share)),
            Cell::number(flips.p_value, format!("{:.4}", flips.p_value)),
            Cell { strong: flips.p_holm < LEVEL, ..Cell::number(flips.p_holm, format!("{:.4}", flips.p_holm)) },
            Cell::number(flips.detectable, format!("{:.2}", 100.0 * flips.detectable)),
        ])
    };
    Table {
        caption: "Items right in the baseline only (lost) and in the model only (gained), McNemar's exact test, the same \
                  corrected for the number of tasks (Holm), and the true difference in points that this many items find \
                  four times of five"
            .to_owned(),
        headings: headings(["task", "lost", "gained", "flips", "McNemar p", "Holm p", "detectable"]),
        rows: paired.iter().filter_map(row).collect(),
    }
}

fn browse(task: &Paired, flips: &Flips, of: &str) -> Section {
    let written = flips.items.iter().any(|flip| flip.responses.is_some());
    let mut columns = headings(["item", "subject", "change"]);
    let more: &[&str] = if written {
        &["baseline wrote", "model wrote"]
    } else {
        &["right", "baseline", "model", "margin before", "margin now"]
    };
    columns.extend(more.iter().map(|name| (*name).to_owned()));
    let margins = if written {
        ""
    } else {
        " Choices are counted from 0; a margin is how far the right choice's log-probability lies above the best other \
         one's, in nats."
    };
    Section {
        title: format!("What flipped in {}{of}", task.task),
        text: vec![format!(
            "{} of {} items: {} lost, {} gained.{margins} “evaluate show {} --item N” prints an item's prompt.",
            flips.items.len(),
            task.items,
            flips.lost,
            flips.gained,
            task.task
        )],
        tables: vec![Table {
            caption: format!("Items of {} whose correctness changed", task.task),
            headings: columns,
            rows: flips.items.iter().map(|flip| flip_row(flip, written)).collect(),
        }],
        ..Section::default()
    }
}

fn flip_row(flip: &Flip, written: bool) -> Vec<Cell> {
    let mut row = vec![
        Cell::text(&flip.id),
        Cell::text(flip.subject.as_deref().unwrap_or("–")),
        Cell::text(if flip.gained { "gained" } else { "lost" }),
    ];
    if written {
        let responses: [Option<&String>; 2] =
            flip.responses.as_ref().map_or([None; 2], |[theirs, ours]| [Some(theirs), Some(ours)]);
        row.extend(responses.map(|text| {
            let beginning: String =
                text.map_or("–", |text| text.trim()).lines().next().unwrap_or("").chars().take(40).collect();
            let beginning = if beginning.is_empty() { "(nothing)".to_owned() } else { beginning };
            Cell { detail: text.cloned(), ..Cell::text(beginning) }
        }));
        return row;
    }
    let choice = |choice: Option<usize>| choice.map_or_else(|| Cell::text("–"), count);
    row.extend([choice(flip.answer), choice(flip.baseline), choice(flip.model)]);
    let margins = flip.margins.map_or([None; 2], |margins| margins.map(Some));
    row.extend(
        margins.map(|margin| margin.map_or_else(|| Cell::text("–"), |margin| Cell::number(margin, signed(margin, 3)))),
    );
    row
}

/// Every figure of every task, with its parts.
pub(super) fn values(tasks: &[TaskReport]) -> Section {
    let mut rows = Vec::new();
    let mut parts = Vec::new();
    for task in tasks {
        for (which, summary) in [("model", Some(&task.model)), ("baseline", task.baseline.as_ref())] {
            let Some(summary) = summary else { continue };
            rows.extend(value_rows(&task.task, which, summary));
            let named = [("category", &summary.categories), ("subject", &summary.subjects)];
            parts.extend(named.into_iter().flat_map(|(kind, parts)| {
                parts.iter().map(move |part| {
                    vec![
                        Cell::text(&task.task),
                        Cell::text(which),
                        Cell::text(format!("{kind} {}", part.name)),
                        count(part.items),
                        figure(&scaled(&part.estimate, 100.0), |value| format!("{value:.2}")),
                    ]
                })
            }));
        }
    }
    let mut tables = vec![Table {
        caption: "Every metric with its 95 % interval; shares in per cent".to_owned(),
        headings: headings(["task", "of", "metric", "items", "value"]),
        rows,
    }];
    if !parts.is_empty() {
        tables.push(Table {
            caption: "The first metric by category and subject".to_owned(),
            headings: headings(["task", "of", "part", "items", "value"]),
            rows: parts,
        });
    }
    Section { title: "All figures".to_owned(), tables, ..Section::default() }
}

fn value_rows(task: &str, which: &str, summary: &Summary) -> Vec<Vec<Cell>> {
    let row = |name: String, estimate: &Estimate, factor: f64| {
        vec![
            Cell::text(task),
            Cell::text(which),
            Cell::text(name),
            count(summary.items),
            figure(&scaled(estimate, factor), |value| format!("{value:.2}")),
        ]
    };
    let mut rows: Vec<Vec<Cell>> = summary
        .metrics
        .iter()
        .map(|figure| row(figure.metric.name().to_owned(), &figure.estimate, scale(figure.metric)))
        .collect();
    if let (Some(average), Some(first)) = (&summary.macro_average, summary.metrics.first()) {
        rows.push(row(format!("{}, mean over subjects", first.metric), average, scale(first.metric)));
    }
    rows
}
