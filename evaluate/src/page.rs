//! A comparison as a page: what changed in sentences, then figures, tables and what flipped.

use crate::{
    EvaluateError,
    capability::{self, Change},
    divergence::Class,
    paired::{Compared, Flip, Flips, MetricDifference, Paired},
    report::{ModelReport, Report, Results, TOOL, TextReport, short},
    statistics::{Block, DRAWS, Estimate},
    task::Metric,
    task_report::{Summary, TaskReport},
};
use console::{
    page::{Cell, Figure, Page, Section, Table},
    plot::{self, Axis, Mark},
};

/// Windows that a table lists at most.
const WINDOWS: usize = 40;
/// The level below which a difference is called one.
const LEVEL: f64 = 0.05;

/// The page of a run.
pub fn of_run(results: &Results) -> Result<Page, EvaluateError> {
    let model = results.model.reference.as_str();
    let baseline = results.baseline_model.as_ref().map(|baseline| baseline.reference.as_str());
    let (mut answer, mut sections) = (Vec::new(), Vec::new());
    answer.extend(results.verdict.clone());
    if let Some(report) = &results.perplexity {
        answer.extend(report.texts.iter().map(say_text));
        sections.push(perplexities(report));
        for text in &report.texts {
            sections.extend(divergence(text)?);
            sections.extend(documents(text)?);
        }
    }
    let paired: Vec<Paired> = results.tasks.iter().filter_map(|task| task.paired.clone()).collect();
    if !paired.is_empty() {
        answer.extend(say_tasks(&paired));
        sections.extend(by_capability(&results.capabilities, "")?);
        sections.extend(compared(&paired, "")?);
    }
    if !results.tasks.is_empty() {
        sections.push(values(&results.tasks));
    }
    sections.push(repetition(results));
    let title = match baseline {
        Some(baseline) => format!("{} against {}", short(model), short(baseline)),
        None => short(model).to_owned(),
    };
    Ok(Page { title, question: "What did quantization do to this model?".to_owned(), answer, sections })
}

/// The page of runs compared with `baseline` from their records.
pub fn of_comparison(baseline: &str, runs: &[Compared], seed: u64) -> Result<Page, EvaluateError> {
    let (mut answer, mut sections) = (Vec::new(), Vec::new());
    for Compared { model, paired, changes } in runs {
        let who = if runs.len() > 1 { format!("{}: ", short(model)) } else { String::new() };
        answer.extend(capability::verdict(changes).map(|verdict| format!("{who}{verdict}")));
        answer.extend(say_tasks(paired).into_iter().map(|sentence| format!("{who}{sentence}")));
        let of = if runs.len() > 1 { format!(", {}", short(model)) } else { String::new() };
        sections.extend(by_capability(changes, &of)?);
        sections.extend(compared(paired, &of)?);
    }
    let names: Vec<&str> = runs.iter().map(|run| run.model.as_str()).collect();
    sections.push(Section {
        title: "How this was made".to_owned(),
        text: vec![format!(
            "{TOOL} compared the records of {} with those of {baseline}: items that both have with the same prompt. \
             Intervals come from {DRAWS} paired bootstrap draws (seed {seed}) of items, or of whole subjects where there \
             are several.",
            names.join(", ")
        )],
        ..Section::default()
    });
    let names: Vec<&str> = names.into_iter().map(short).collect();
    Ok(Page {
        title: format!("{} against {}", names.join(", "), short(baseline)),
        question: "What did quantization do to what this model can do?".to_owned(),
        answer,
        sections,
    })
}

fn headings<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// `+1.25`, with the typographic minus; nothing has no sign.
fn signed(value: f64, digits: usize) -> String {
    let text = format!("{value:+.digits$}").replace('-', "\u{2212}");
    if text.chars().all(|c| "+\u{2212}0.".contains(c)) { format!("{:.digits$}", 0.0) } else { text }
}

fn ends(interval: Option<[f64; 2]>, write: impl Fn(f64) -> String) -> String {
    interval.map_or_else(|| "no interval".to_owned(), |[low, high]| format!("{} to {}", write(low), write(high)))
}

/// A cell of a number with its interval.
fn figure(estimate: &Estimate, write: impl Fn(f64) -> String) -> Cell {
    Cell::number(estimate.value, format!("{} ({})", write(estimate.value), ends(estimate.interval_95, &write)))
}

fn count(number: usize) -> Cell {
    Cell::number(number as f64, number.to_string())
}

/// How numbers of a metric are written, and what they are multiplied by.
fn scale(metric: Metric) -> f64 {
    if metric == Metric::Perplexity { 1.0 } else { 100.0 }
}

fn scaled(estimate: &Estimate, factor: f64) -> Estimate {
    Estimate {
        value: factor * estimate.value,
        standard_error: estimate.standard_error.map(|error| factor * error),
        interval_95: estimate.interval_95.map(|ends| ends.map(|end| factor * end)),
    }
}

fn excludes_zero(estimate: &Estimate) -> bool {
    estimate.interval_95.is_some_and(|[low, high]| low > 0.0 || high < 0.0)
}

fn say_text(text: &TextReport) -> String {
    let (name, bits) = (short(&text.text), |value: f64| format!("{value:.4}"));
    match &text.comparison {
        None => {
            let measured = &text.measurement;
            format!(
                "On {name} its perplexity is {:.4} (95 % {}).",
                measured.perplexity,
                ends(measured.interval_95, |end| format!("{end:.2}"))
            )
        }
        Some(comparison) => {
            let verdict = comparison.verdict.map_or_else(String::new, |verdict| format!(": {verdict}"));
            let kl = text.divergence.as_ref().map_or_else(String::new, |divergence| {
                format!(
                    " Its next-token distributions are {:.5} nats from the baseline's in the mean (95 % {}), and both \
                     prefer the same token in {:.2} % of places.",
                    divergence.kl_mean.value,
                    ends(divergence.kl_mean.interval_95, |end| format!("{end:.5}")),
                    100.0 * divergence.same_top.value
                )
            });
            format!(
                "On {name} its perplexity is {:.4} times the baseline's (95 % {}){verdict}.{kl}",
                comparison.ratio,
                ends(comparison.ratio_interval_95, bits)
            )
        }
    }
}

/// What is known of the differences: those that are no chance, and how large one would have to be to be seen.
fn say_tasks(paired: &[Paired]) -> Vec<String> {
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

fn perplexities(report: &Report) -> Section {
    let mut rows = Vec::new();
    for text in &report.texts {
        for (which, figures) in [("model", Some(&text.measurement)), ("baseline", text.baseline.as_ref())] {
            let Some(figures) = figures else { continue };
            let estimate = Estimate {
                value: figures.perplexity,
                standard_error: figures.standard_error,
                interval_95: figures.interval_95,
            };
            rows.push(vec![
                Cell::text(short(&text.text)),
                Cell::text(which),
                figure(&estimate, |value| format!("{value:.3}")),
                count(figures.tokens_scored),
                count(figures.windows),
            ]);
        }
    }
    let mut tables = vec![Table {
        caption: format!("Perplexity with 95 % intervals, protocol {}", report.protocol.title),
        headings: headings(["text", "of", "perplexity", "tokens scored", "windows"]),
        rows,
    }];
    let compared = report.texts.iter().filter_map(|text| {
        let comparison = text.comparison.as_ref()?;
        let ratio =
            Estimate { value: comparison.ratio, standard_error: None, interval_95: comparison.ratio_interval_95 };
        let verdict = comparison.verdict.map_or_else(String::new, |verdict| verdict.to_string());
        Some(vec![Cell::text(short(&text.text)), figure(&ratio, |value| format!("{value:.4}")), Cell::text(verdict)])
    });
    let rows: Vec<Vec<Cell>> = compared.collect();
    if !rows.is_empty() {
        tables.push(Table {
            caption: "Model over baseline, paired".to_owned(),
            headings: headings(["text", "ratio of perplexities", "against what is expected"]),
            rows,
        });
    }
    Section {
        title: "Perplexity".to_owned(),
        text: vec![
            report.protocol.formula.to_owned(),
            "Perplexities are comparable only under the same protocol, text and tokenizer.".to_owned(),
        ],
        tables,
        ..Section::default()
    }
}

fn divergence(text: &TextReport) -> Result<Option<Section>, EvaluateError> {
    let Some(found) = &text.divergence else { return Ok(None) };
    let name = short(&text.text);
    let nats = |value: f64| format!("{value:.5}");
    let percent = |value: f64| format!("{value:.2} %");
    let points = |value: f64| signed(value, 3);
    let mut rows = vec![
        vec![Cell::text("KL(baseline ‖ model), mean, nats"), figure(&found.kl_mean, nats)],
        vec![Cell::text("both prefer the same token"), figure(&scaled(&found.same_top, 100.0), percent)],
        vec![Cell::text("RMS Δp, points"), figure(&scaled(&found.rms_delta_p, 100.0), |v| format!("{v:.3}"))],
        vec![Cell::text("mean Δp, points"), figure(&scaled(&found.mean_delta_p, 100.0), points)],
    ];
    if let Some(correlation) = &found.correlation {
        rows.push(vec![Cell::text("correlation of log-likelihoods"), figure(correlation, nats)]);
    }
    let quantiles = [
        ("median", found.kl_median),
        ("90 %", found.kl_90),
        ("95 %", found.kl_95),
        ("99 %", found.kl_99),
        ("99.9 %", found.kl_99_9),
        ("maximum", found.kl_max),
    ];
    let quantiles = quantiles.map(|(name, value)| vec![Cell::text(name), Cell::number(value, nats(value))]);
    let tables = vec![
        Table {
            caption: format!("Distance of the next-token distributions on {name}, with 95 % intervals"),
            headings: headings(["figure", "value"]),
            rows,
        },
        Table {
            caption: format!("KL at single tokens of {name}: so much or less at this share of them"),
            headings: headings(["share of tokens", "nats"]),
            rows: quantiles.into(),
        },
    ];
    let (mut section, mut more) = (
        Section {
            title: format!("Divergence on {name}"),
            text: found.truncation.iter().map(|truncation| format!("Measured {truncation}.")).collect(),
            tables,
            ..Section::default()
        },
        vec![
            (&found.by_position, "tokens before it in the window", "position"),
            (&found.by_frequency, "times that the token is a target in this text", "frequency"),
        ],
    );
    more.retain(|(classes, ..)| !classes.is_empty());
    for (classes, across, what) in more {
        let caption = format!(
            "Mean KL by {what} on {name}, with 95 % intervals: targets in classes of {across}, each class twice as wide as \
             the one before."
        );
        section.figures.push(Figure { name: format!("kl-{what}"), caption, svg: by_class(classes, across)? });
        section.tables.push(Table {
            caption: format!("Mean KL by {what} on {name}, nats"),
            headings: vec![across.to_owned(), "tokens".to_owned(), "mean KL".to_owned()],
            rows: classes.iter().map(class_row).collect(),
        });
    }
    Ok(Some(section))
}

fn class_name(class: &Class) -> String {
    if class.low == class.high { class.low.to_string() } else { format!("{}–{}", class.low, class.high) }
}

fn class_row(class: &Class) -> Vec<Cell> {
    let name = Cell::number(class.low as f64, class_name(class));
    vec![name, count(class.tokens), figure(&class.kl_mean, |value| format!("{value:.5}"))]
}

fn by_class(classes: &[Class], across: &str) -> Result<String, EvaluateError> {
    let mark = |class: &Class| Mark {
        // Only where the class begins: names of both ends would run into each other.
        label: class.low.to_string(),
        x: 0.0,
        value: class.kl_mean.value,
        interval: class.kl_mean.interval_95,
        strong: false,
    };
    let marks: Vec<Mark> = classes.iter().map(mark).collect();
    let axis = Axis { name: "mean KL, nats", write: &|value| value.to_string() };
    Ok(plot::classes(&marks, &format!("{across}, from"), axis)?)
}

/// Perplexity window by window, or page by page.
fn documents(text: &TextReport) -> Result<Option<Section>, EvaluateError> {
    let mean = |block: &Block| block.sum / block.weight;
    let pairs: Vec<(usize, f64, f64)> = text
        .baseline_blocks
        .iter()
        .zip(&text.blocks)
        .enumerate()
        .filter(|(_, (theirs, ours))| theirs.weight > 0.0 && ours.weight > 0.0)
        .map(|(index, (theirs, ours))| (index, mean(theirs), mean(ours)))
        .collect();
    if pairs.len() < 2 {
        return Ok(None);
    }
    let name = short(&text.text);
    let points: Vec<(f64, f64)> =
        pairs.iter().map(|(_, theirs, ours)| (*theirs, 100.0 * (ours - theirs).exp_m1())).collect();
    let across = Axis { name: "the baseline's log-perplexity there, nats", write: &|value| value.to_string() };
    let up = Axis { name: "change of perplexity, %", write: &plot::signed };
    let figure = Figure {
        name: "documents".to_owned(),
        caption: format!(
            "Each point is a stretch of {name} that is scored by itself, a window or a page: how hard it is for the baseline, \
             and what became of its perplexity. Above the line is worse."
        ),
        svg: plot::cloud(&points, 0.0, across, up)?,
    };
    let mut largest = pairs.clone();
    largest.sort_by(|a, b| (b.2 - b.1).abs().total_cmp(&(a.2 - a.1).abs()).then(a.0.cmp(&b.0)));
    largest.truncate(WINDOWS);
    let rows = largest.iter().map(|(index, theirs, ours)| {
        let change = 100.0 * (ours - theirs).exp_m1();
        vec![
            count(index + 1),
            Cell::number(theirs.exp(), format!("{:.3}", theirs.exp())),
            Cell::number(ours.exp(), format!("{:.3}", ours.exp())),
            Cell::number(change, format!("{} %", signed(change, 2))),
        ]
    });
    let which = if largest.len() < pairs.len() {
        format!("The {WINDOWS} of {} stretches that changed most", pairs.len())
    } else {
        "Every stretch, those that changed most first".to_owned()
    };
    let table = Table {
        caption: format!("{which}; single stretches, which have no interval"),
        headings: headings(["stretch", "baseline", "model", "change"]),
        rows: rows.collect(),
    };
    Ok(Some(Section {
        title: format!("Perplexity along {name}"),
        figures: vec![figure],
        tables: vec![table],
        ..Section::default()
    }))
}

/// What each capability lost or gained.
fn by_capability(changes: &[Change], of: &str) -> Result<Option<Section>, EvaluateError> {
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
fn compared(paired: &[Paired], of: &str) -> Result<Vec<Section>, EvaluateError> {
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
fn values(tasks: &[TaskReport]) -> Section {
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

fn repetition(results: &Results) -> Section {
    let mut rows = Vec::new();
    let models = [("model", Some(&results.model)), ("baseline", results.baseline_model.as_ref())];
    for (which, ModelReport { reference, files, compute, .. }) in models.into_iter().filter_map(|(w, m)| Some((w, m?)))
    {
        rows.push(vec![Cell::text(which), Cell::text(format!("{reference} (--compute {compute})")), Cell::text("")]);
        rows.extend(files.iter().map(|file| vec![Cell::text(which), Cell::text(&file.name), Cell::text(&file.sha256)]));
    }
    if let Some(report) = &results.perplexity {
        for text in &report.texts {
            rows.push(vec![Cell::text("text"), Cell::text(&text.text), Cell::text(&text.prepared_sha256)]);
        }
    }
    for task in &results.tasks {
        let name = format!("task {}, {} shots", task.task, task.shots);
        rows.extend(task.files.iter().map(|file| {
            vec![Cell::text(&name), Cell::text(file.path.display().to_string()), Cell::text(&file.sha256)]
        }));
    }
    Section {
        title: "How this was made".to_owned(),
        text: vec![format!(
            "{} with seed {}; intervals from {} bootstrap draws, of windows for texts and of items, or of whole subjects \
             where there are several, for tasks. The number of threads changes no result.",
            results.tool, results.seed, results.draws
        )],
        tables: vec![Table {
            caption: "What went in".to_owned(),
            headings: headings(["what", "name", "SHA-256"]),
            rows,
        }],
        ..Section::default()
    }
}
