//! What a page says of texts: perplexity, divergence, documents.

use super::{count, ends, figure, headings, scaled, signed};
use crate::{
    EvaluateError,
    divergence::Class,
    report::{Report, TextReport, short},
    statistics::{Block, Estimate},
};
use console::{
    page::{Cell, Figure, Section, Table},
    plot::{self, Axis, Mark},
};

/// Windows that a table lists at most.
const WINDOWS: usize = 40;

pub(super) fn say_text(text: &TextReport) -> String {
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

pub(super) fn perplexities(report: &Report) -> Section {
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

pub(super) fn divergence(text: &TextReport) -> Result<Option<Section>, EvaluateError> {
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
pub(super) fn documents(text: &TextReport) -> Result<Option<Section>, EvaluateError> {
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
