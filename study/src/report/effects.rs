//! Sections on what the settings do: domains, single settings, curves, sizes, and the table of all configurations.

use super::words::{against, estimate_cell, headings, slug, varying};
use crate::{
    StudyError,
    codes::{self, Share},
    findings::{self, Contrast, Panel, Ranking, Row},
    measure::Measure,
    plot::{self, Mark},
    results::Results,
    settings::words,
};
use console::{
    machine,
    page::{Cell, Figure, Section, Table},
};

/// The share of integers that change with the seed, and with the calibration set.
pub(super) fn stability(results: &Results<'_>) -> Option<Section> {
    let share = |share: Option<Share>| {
        share.map_or_else(Cell::empty, |Share { value, half }| {
            Cell::number(value, format!("{:.1} % ± {:.1}", 100.0 * value, 100.0 * half))
        })
    };
    let axes = varying(results);
    let found = codes::stability(&results.groups);
    let rows = found.iter().map(|stability| {
        let label = results.groups[stability.group].settings.label(&axes);
        vec![Cell::text(label), share(stability.seeds), share(stability.sets)]
    });
    let table = Table {
        caption: "Share of the integers that change with the windows drawn, and with the calibration set; ± half of the 95 % interval"
            .to_owned(),
        headings: headings(["configuration", "between seeds", "to other calibration sets, same seed"]),
        rows: rows.collect(),
    };
    (!found.is_empty()).then(|| Section {
        title: "How stable the solution is".to_owned(),
        tables: vec![table],
        ..Section::default()
    })
}

pub(super) fn matrix(panel: &Panel, results: &Results<'_>) -> Result<Section, StudyError> {
    let with = if panel.title.is_empty() { String::new() } else { format!(", {}", panel.title) };
    let caption = format!(
        "{}, by calibration set (down) and evaluation text (across){with}. A frame marks the text's own domain.",
        against(panel.measure)
    );
    let name = slug(&format!("domains {}", panel.title));
    let figure = Figure { name, caption, svg: plot::heat_map(panel)? };
    let rows = panel.sets.iter().zip(&panel.entries).map(|(set, entries)| {
        let cells = entries.iter().map(|entry| {
            let cell = estimate_cell(panel.measure, entry.as_ref().map(|entry| &entry.loss));
            Cell { strong: entry.as_ref().is_some_and(|entry| entry.own), ..cell }
        });
        std::iter::once(Cell::text(set)).chain(cells).collect()
    });
    let table = Table {
        caption: format!("The same with 95 % intervals{with}; the text's own domain in bold"),
        headings: headings(std::iter::once("calibrated on".to_owned()).chain(panel.evaluations.iter().cloned())),
        rows: rows.collect(),
    };
    let mut tables = vec![table];
    tables.extend(gains(panel, &with));
    let deviation = panel.seed_deviation.map(|deviation| {
        let pooled = panel.measure.change(deviation);
        format!(
            "Between the seeds of one calibration set, {} differs by {} (standard deviation, pooled).",
            panel.measure.subject(),
            pooled.trim_start_matches('+')
        )
    });
    let overlaps = results.plan.overlaps.iter().map(|overlap| overlap.containment).fold(0.0, f64::max);
    let overlap = format!(
        "At most {:.2} % of an evaluation text's 13-grams of words are also in a calibration text.",
        100.0 * overlaps
    );
    Ok(Section {
        title: format!("Domains{with}"),
        text: deviation.into_iter().chain([overlap]).collect(),
        figures: vec![figure],
        tables,
        ..Section::default()
    })
}

fn gains(panel: &Panel, with: &str) -> Option<Table> {
    let mut rows: Vec<Vec<Cell>> = panel
        .gains
        .iter()
        .map(|(name, gain)| vec![Cell::text(name), estimate_cell(panel.measure, Some(gain))])
        .collect();
    rows.push(vec![
        Cell::text("average"),
        Cell { strong: true, ..estimate_cell(panel.measure, Some(panel.gain.as_ref()?)) },
    ]);
    Some(Table {
        caption: format!(
            "Own-domain gain{with}: what calibrating on other domains' text costs over calibrating on the text's own"
        ),
        headings: headings(["text", panel.measure.loss()]),
        rows,
    })
}

/// The effects of single settings: a forest plot and its table.
pub(super) fn settings(measure: Measure, rankings: &[Ranking]) -> Result<Option<Section>, StudyError> {
    let contrasts: Vec<&Contrast> = rankings.iter().flat_map(|ranking| &ranking.others).collect();
    if contrasts.is_empty() {
        return Ok(None);
    }
    let label = |contrast: &Contrast| {
        format!("{} / {}", words(contrast.axis, &contrast.level), words(contrast.axis, &contrast.reference))
    };
    let marks: Vec<Mark> = contrasts
        .iter()
        .map(|contrast| Mark {
            label: label(contrast),
            x: 0.0,
            estimate: contrast.estimate,
            strong: !contrast.estimate.may_be_zero(),
        })
        .collect();
    let loss = measure.loss();
    let caption = format!(
        "Each level of a setting against the best one, everything else the same: {loss}, with 95 % interval, averaged \
         over texts and the other settings. Orange where the interval leaves out zero."
    );
    let rows = contrasts.iter().map(|contrast| {
        vec![
            Cell::text(words(contrast.axis, &contrast.level)),
            Cell::text(words(contrast.axis, &contrast.reference)),
            estimate_cell(measure, Some(&contrast.estimate)),
            Cell::number(contrast.pairs as f64, contrast.pairs.to_string()),
            Cell::number(contrast.estimate.seeds as f64, contrast.estimate.seeds.to_string()),
        ]
    });
    let table = Table {
        caption: "Effects of single settings".to_owned(),
        headings: headings(["setting", "against", loss, "pairs on each text", "seeds"]),
        rows: rows.collect(),
    };
    Ok(Some(Section {
        title: "What each setting does".to_owned(),
        figures: vec![Figure { name: "settings".to_owned(), caption, svg: plot::forest(measure, &marks)? }],
        tables: vec![table],
        ..Section::default()
    }))
}

pub(super) fn curves(results: &Results<'_>) -> Result<Vec<Section>, StudyError> {
    let measure = results.measure;
    let section = |curve: &findings::Curve| {
        let axis = curve.axis.replace('_', " ");
        let svg = plot::lines(measure, &curve.lines, &axis)?;
        let shown = console::plot::lines_shown();
        let left_out = curve.lines.len().saturating_sub(shown);
        let more = if left_out > 0 { format!(" {left_out} more lines are in the table only.") } else { String::new() };
        let caption = format!("{} over {axis}, with 95 % intervals, averaged over texts.{more}", against(measure));
        let rows = curve.lines.iter().flat_map(|(label, points)| {
            points.iter().map(move |(level, estimate)| {
                let name = if label.is_empty() { "all".to_owned() } else { label.clone() };
                vec![Cell::text(name), Cell::number(*level, level.to_string()), estimate_cell(measure, Some(estimate))]
            })
        });
        let table = Table {
            caption: format!("Over {axis}"),
            headings: headings(["other settings", axis.as_str(), measure.loss()]),
            rows: rows.collect(),
        };
        let figure = Figure { name: slug(&format!("over {axis}")), caption, svg };
        Ok(Section { title: format!("Over {axis}"), figures: vec![figure], tables: vec![table], ..Section::default() })
    };
    findings::curves(results).iter().map(section).collect()
}

/// Loss against size, with the front: only where sizes differ.
pub(super) fn sizes(results: &Results<'_>, rows: &[Row]) -> Result<Option<Section>, StudyError> {
    let sizes = crate::results::distinct(rows.iter().filter_map(|row| row.bits_per_weight));
    if sizes.len() < 2 {
        return Ok(None);
    }
    let mark = |(number, row): (usize, &Row)| {
        let (x, estimate) = (row.bits_per_weight?, row.mean?);
        let label = if row.front { (number + 1).to_string() } else { String::new() };
        Some(Mark { label, x, estimate, strong: row.front })
    };
    let marks: Vec<Mark> = rows.iter().enumerate().filter_map(mark).collect();
    let caption = format!(
        "Quality against size: each configuration's {}, averaged over texts, over its bits per quantized weight on disk, \
         scales, zero-points and group indices counted. Filled and joined: not beaten in both; the numbers are those of \
         the table of configurations.",
        results.measure.loss()
    );
    let figure = Figure {
        name: "sizes".to_owned(),
        caption,
        svg: plot::scatter(results.measure, &marks, "bits per weight on disk")?,
    };
    Ok(Some(Section {
        title: "Quality against size".to_owned(),
        figures: vec![figure],
        tables: vec![marginal(results, rows)],
        ..Section::default()
    }))
}

/// Along the front: what the next larger setting buys for each bit it adds.
fn marginal(results: &Results<'_>, rows: &[Row]) -> Table {
    let mut front: Vec<(f64, f64, usize)> = rows
        .iter()
        .filter(|row| row.front)
        .filter_map(|row| Some((row.bits_per_weight?, row.mean?.value, row.group)))
        .collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    let axes = varying(results);
    let rows = front.iter().enumerate().map(|(index, (bits, loss, group))| {
        let before = index.checked_sub(1).map(|before| front[before]);
        let gain = before.map(|(bits_before, loss_before, _)| (loss - loss_before) / (bits - bits_before));
        vec![
            Cell::text(results.groups[*group].settings.label(&axes)),
            Cell::number(*bits, format!("{bits:.3}")),
            Cell::number(*loss, results.measure.change(*loss)),
            gain.map_or_else(Cell::empty, |gain| Cell::number(gain, results.measure.change(gain))),
        ]
    });
    Table {
        caption: "The front, from small to large; the last column is what each further bit per weight buys".to_owned(),
        headings: headings(["configuration", "bits per weight", results.measure.loss(), "for each added bit"]),
        rows: rows.collect(),
    }
}

pub(super) fn cells(results: &Results<'_>, rows: &[Row]) -> Section {
    let axes = varying(results);
    let evaluations = results.evaluations();
    let line = |(number, row): (usize, &Row)| {
        let group = &results.groups[row.group];
        let seeds = group.series.values().map(|series| series.seeds.len()).max().unwrap_or(0);
        let label = format!("{}. {}", number + 1, group.settings.label(&axes));
        let mut cells = vec![Cell { strong: row.front, ..Cell::number(number as f64, label) }];
        cells.extend(row.losses.iter().map(|loss| estimate_cell(results.measure, loss.as_ref())));
        cells.push(estimate_cell(results.measure, row.mean.as_ref()));
        cells.push(row.bits_per_weight.map_or_else(Cell::empty, |bits| Cell::number(bits, format!("{bits:.3}"))));
        cells.push(row.bytes.map_or_else(Cell::empty, |bytes| Cell::number(bytes as f64, machine::bytes(bytes))));
        cells.push(Cell::number(seeds as f64, seeds.to_string()));
        cells
    };
    let mut columns = vec!["configuration".to_owned()];
    columns.extend(evaluations.iter().map(|name| (*name).to_owned()));
    columns.extend(["average", "bits per weight", "size", "seeds"].map(str::to_owned));
    let table = Table {
        caption: format!("Every configuration. {}, with 95 % intervals; bold: on the front", against(results.measure)),
        headings: columns,
        rows: rows.iter().enumerate().map(line).collect(),
    };
    Section { title: "Configurations".to_owned(), tables: vec![table], ..Section::default() }
}
