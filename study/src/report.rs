//! The report: what the findings are, shown and said.

use crate::{
    StudyError,
    check::duration,
    findings::{self, Contrast, Panel, Ranking, Row},
    plan::Plan,
    plot::{self, Mark},
    results::Results,
    say::{self, interval, percent},
    settings::words,
    statistics::Estimate,
    store::{Contents, Line},
};
use console::{
    files::write_atomically,
    machine,
    page::{self, Cell, Figure, Page, Section, Table},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const LOSS: &str = "change of perplexity";

/// A report that is ready to be written.
pub struct Report {
    /// What it says.
    pub page: Page,
}

impl Report {
    /// The report of what `contents` holds of `plan`.
    pub fn new(plan: &Plan, contents: &Contents) -> Result<Self, StudyError> {
        let results = Results::new(plan, contents);
        let rows = findings::rows(&results);
        let panels = findings::panels(&results);
        let rankings = findings::rankings(&results);
        let mut sections = Vec::new();
        sections.extend(panels.iter().map(|panel| matrix(panel, &results)).collect::<Result<Vec<_>, _>>()?);
        sections.extend(settings(&rankings)?);
        sections.extend(curves(&results)?);
        sections.extend(sizes(&results, &rows)?);
        sections.push(cells(&results, &rows));
        sections.push(baselines(&results));
        sections.extend(failures(&results));
        sections.push(fixed(plan));
        sections.push(cost(&results));
        let shown = rows.iter().map(|row| row.losses.len()).sum::<usize>();
        sections.push(Section {
            title: "What these data can't tell".to_owned(),
            items: say::limits(&results, shown),
            ..Section::default()
        });
        sections.push(repetition(plan, &results));
        let answer = say::answers(&results, &panels, &rankings, &rows);
        let (title, question) = (plan.name.clone(), plan.question.clone());
        Ok(Self { page: Page { title, question, answer, sections } })
    }

    /// Writes `report.html`, `report.md` and `figures/` into `folder`; returns the first two.
    pub fn write(&self, folder: &Path) -> Result<[PathBuf; 2], StudyError> {
        let put = |path: PathBuf, text: String| {
            write_atomically(&path, text.as_bytes()).map_err(StudyError::io(&path)).map(|()| path)
        };
        for figure in self.page.sections.iter().flat_map(|section| &section.figures) {
            put(folder.join("figures").join(format!("{}.svg", figure.name)), on_white(&figure.svg))?;
        }
        let html = put(folder.join("report.html"), page::html(&self.page)?)?;
        Ok([html, put(folder.join("report.md"), page::markdown(&self.page)?)?])
    }
}

/// A figure that stands by itself has no page behind it.
fn on_white(svg: &str) -> String {
    svg.replacen('>', "><rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>", 1)
}

fn estimate_cell(estimate: Option<&Estimate>) -> Cell {
    let text = |estimate: &Estimate| format!("{} ({})", percent(estimate.value), interval(estimate));
    estimate.map_or_else(Cell::empty, |estimate| Cell::number(estimate.value, text(estimate)))
}

fn headings(names: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    names.into_iter().map(Into::into).collect()
}

/// A file name of what `text` says.
fn slug(text: &str) -> String {
    let slug: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    slug.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

fn matrix(panel: &Panel, results: &Results<'_>) -> Result<Section, StudyError> {
    let with = if panel.title.is_empty() { String::new() } else { format!(", {}", panel.title) };
    let caption = format!(
        "Change of perplexity against the unquantized model, by calibration set (down) and evaluation text (across){with}. \
         A frame marks the text's own domain."
    );
    let name = slug(&format!("domains {}", panel.title));
    let figure = Figure { name, caption, svg: plot::heat_map(panel)? };
    let rows = panel.sets.iter().zip(&panel.entries).map(|(set, entries)| {
        let cells = entries.iter().map(|entry| {
            let cell = estimate_cell(entry.as_ref().map(|entry| &entry.loss));
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
        let pooled = percent(deviation);
        format!(
            "Between the seeds of one calibration set, perplexity differs by {} (standard deviation, pooled).",
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
    let mut rows: Vec<Vec<Cell>> =
        panel.gains.iter().map(|(name, gain)| vec![Cell::text(name), estimate_cell(Some(gain))]).collect();
    rows.push(vec![Cell::text("average"), Cell { strong: true, ..estimate_cell(Some(panel.gain.as_ref()?)) }]);
    Some(Table {
        caption: format!(
            "Own-domain gain{with}: what calibrating on other domains' text costs over calibrating on the text's own"
        ),
        headings: headings(["text", "change of perplexity"]),
        rows,
    })
}

/// The effects of single settings: a forest plot and its table.
fn settings(rankings: &[Ranking]) -> Result<Option<Section>, StudyError> {
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
    let caption = "Each level of a setting against the best one, everything else the same: change of perplexity with 95 % \
                   interval, averaged over texts and the other settings. Orange where the interval leaves out zero.";
    let rows = contrasts.iter().map(|contrast| {
        vec![
            Cell::text(words(contrast.axis, &contrast.level)),
            Cell::text(words(contrast.axis, &contrast.reference)),
            estimate_cell(Some(&contrast.estimate)),
            Cell::number(contrast.pairs as f64, contrast.pairs.to_string()),
            Cell::number(contrast.estimate.seeds as f64, contrast.estimate.seeds.to_string()),
        ]
    });
    let table = Table {
        caption: "Effects of single settings".to_owned(),
        headings: headings(["setting", "against", LOSS, "pairs on each text", "seeds"]),
        rows: rows.collect(),
    };
    Ok(Some(Section {
        title: "What each setting does".to_owned(),
        figures: vec![Figure {
            name: "settings".to_owned(),
            caption: caption.to_owned(),
            svg: plot::forest(&marks, LOSS)?,
        }],
        tables: vec![table],
        ..Section::default()
    }))
}

fn curves(results: &Results<'_>) -> Result<Vec<Section>, StudyError> {
    let section = |curve: &findings::Curve| {
        let axis = curve.axis.replace('_', " ");
        let svg = plot::lines(&curve.lines, &axis, LOSS)?;
        let shown = console::plot::lines_shown();
        let left_out = curve.lines.len().saturating_sub(shown);
        let more = if left_out > 0 { format!(" {left_out} more lines are in the table only.") } else { String::new() };
        let caption = format!("Change of perplexity over {axis}, with 95 % intervals, averaged over texts.{more}");
        let rows = curve.lines.iter().flat_map(|(label, points)| {
            points.iter().map(move |(level, estimate)| {
                let name = if label.is_empty() { "all".to_owned() } else { label.clone() };
                vec![Cell::text(name), Cell::number(*level, level.to_string()), estimate_cell(Some(estimate))]
            })
        });
        let table = Table {
            caption: format!("Over {axis}"),
            headings: headings(["other settings", axis.as_str(), LOSS]),
            rows: rows.collect(),
        };
        let figure = Figure { name: slug(&format!("over {axis}")), caption, svg };
        Ok(Section { title: format!("Over {axis}"), figures: vec![figure], tables: vec![table], ..Section::default() })
    };
    findings::curves(results).iter().map(section).collect()
}

/// Loss against size, with the front: only where sizes differ.
fn sizes(results: &Results<'_>, rows: &[Row]) -> Result<Option<Section>, StudyError> {
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
    let caption = "Quality against size: each configuration's change of perplexity, averaged over texts, over its bits per \
                   quantized weight on disk, scales, zero-points and group indices counted. Filled and joined: not beaten \
                   in both; the numbers are those of the table of configurations.";
    let figure = Figure {
        name: "sizes".to_owned(),
        caption: caption.to_owned(),
        svg: plot::scatter(&marks, "bits per weight on disk", LOSS)?,
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
            Cell::number(*loss, percent(*loss)),
            gain.map_or_else(Cell::empty, |gain| Cell::number(gain, percent(gain))),
        ]
    });
    Table {
        caption: "The front, from small to large; the last column is what each further bit per weight buys".to_owned(),
        headings: headings(["configuration", "bits per weight", LOSS, "for each added bit"]),
        rows: rows.collect(),
    }
}

fn varying(results: &Results<'_>) -> Vec<&'static str> {
    results.plan.varying().into_iter().filter(|axis| *axis != "seed").collect()
}

fn cells(results: &Results<'_>, rows: &[Row]) -> Section {
    let axes = varying(results);
    let evaluations = results.evaluations();
    let line = |(number, row): (usize, &Row)| {
        let group = &results.groups[row.group];
        let seeds = group.series.values().map(|series| series.seeds.len()).max().unwrap_or(0);
        let label = format!("{}. {}", number + 1, group.settings.label(&axes));
        let mut cells = vec![Cell { strong: row.front, ..Cell::number(number as f64, label) }];
        cells.extend(row.losses.iter().map(|loss| estimate_cell(loss.as_ref())));
        cells.push(estimate_cell(row.mean.as_ref()));
        cells.push(row.bits_per_weight.map_or_else(Cell::empty, |bits| Cell::number(bits, format!("{bits:.3}"))));
        cells.push(row.bytes.map_or_else(Cell::empty, |bytes| Cell::number(bytes as f64, machine::bytes(bytes))));
        cells.push(Cell::number(seeds as f64, seeds.to_string()));
        cells
    };
    let mut columns = vec!["configuration".to_owned()];
    columns.extend(evaluations.iter().map(|name| (*name).to_owned()));
    columns.extend(["average", "bits per weight", "size", "seeds"].map(str::to_owned));
    let table = Table {
        caption:
            "Change of perplexity of every configuration against the unquantized model, with 95 % intervals; bold: on \
                  the front"
                .to_owned(),
        headings: columns,
        rows: rows.iter().enumerate().map(line).collect(),
    };
    Section { title: "Configurations".to_owned(), tables: vec![table], ..Section::default() }
}

fn baselines(results: &Results<'_>) -> Section {
    let row = |line: &&Line| {
        let measured = line.measured.as_ref()?;
        let [low, high] = measured.interval_95.unwrap_or([measured.perplexity; 2]);
        let bits = measured.bits_per_byte;
        Some(vec![
            Cell::text(&line.model),
            Cell::text(&line.evaluation),
            Cell::text(&line.text.protocol),
            Cell::number(measured.perplexity, format!("{:.4} ({low:.2} to {high:.2})", measured.perplexity)),
            bits.map_or_else(Cell::empty, |bits| Cell::number(bits, format!("{bits:.4}"))),
            Cell::number(measured.tokens_scored as f64, measured.tokens_scored.to_string()),
            Cell::number(measured.windows as f64, measured.windows.to_string()),
        ])
    };
    let table = Table {
        caption: "The unquantized models, with 95 % intervals".to_owned(),
        headings: headings(["model", "text", "protocol", "perplexity", "bits per byte", "tokens scored", "windows"]),
        rows: results.baseline_lines.iter().filter_map(row).collect(),
    };
    Section { title: "What it is measured against".to_owned(), tables: vec![table], ..Section::default() }
}

fn failures(results: &Results<'_>) -> Option<Section> {
    let axes = results.plan.varying();
    let item = |line: &&Line| {
        let label = line.settings.as_ref().map_or_else(|| line.model.clone(), |settings| settings.label(&axes));
        format!("{label}, on {}: {}", line.evaluation, line.error.as_deref().unwrap_or_default())
    };
    let items: Vec<String> = results.failures.iter().map(item).collect();
    (!items.is_empty()).then(|| Section { title: "Cells that failed".to_owned(), items, ..Section::default() })
}

fn fixed(plan: &Plan) -> Section {
    let items = plan.fixed().into_iter().map(|(axis, level)| format!("{}: {level}", axis.replace('_', "-")));
    Section { title: "Held fixed".to_owned(), items: items.collect(), ..Section::default() }
}

fn cost(results: &Results<'_>) -> Section {
    let lines: Vec<&Line> =
        results.groups.iter().flat_map(|group| &group.lines).chain(&results.baseline_lines).copied().collect();
    let quantized: BTreeMap<&str, f64> =
        lines.iter().filter_map(|line| Some((line.configuration.as_str(), line.quantized.as_ref()?.seconds))).collect();
    let quantizing: f64 = quantized.values().sum();
    let measuring: f64 = lines.iter().filter_map(|line| Some(line.measured.as_ref()?.seconds)).sum();
    let mut threads: Vec<usize> = crate::results::distinct(lines.iter().map(|line| line.threads));
    threads.sort_unstable();
    let threads = threads.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let text = format!(
        "{} cells: {} quantizations in {}, {} measurements in {}, on {threads} threads.",
        lines.len(),
        quantized.len(),
        duration(quantizing),
        lines.len(),
        duration(measuring)
    );
    Section { title: "What it cost".to_owned(), text: vec![text], ..Section::default() }
}

/// Everything that is needed to do it again, and to see that it was the same.
fn repetition(plan: &Plan, results: &Results<'_>) -> Section {
    let lines = || results.baseline_lines.iter().chain(results.groups.iter().flat_map(|group| &group.lines));
    let mut hashes: BTreeMap<(String, String), String> = BTreeMap::new();
    for line in lines() {
        for file in &line.model_files {
            hashes.insert((format!("model {}", line.model), file.name.clone()), file.sha256.clone());
        }
        let windows = (format!("evaluation {}", line.evaluation), format!("windows for {}", line.model));
        hashes.insert(windows, line.text.windows_sha256.clone());
        let Some((set, settings)) = line.calibration.as_ref().zip(line.settings.as_ref()) else { continue };
        let name = format!("calibration {}", settings.calibration.as_deref().unwrap_or_default());
        let seed = settings.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
        let windows = format!("{} windows, {} tokens{seed}", set.windows, set.tokens);
        hashes.insert((name.clone(), windows), set.tokens_sha256.clone());
        for source in &set.sources {
            for hash in &source.files_sha256 {
                hashes.insert((name.clone(), source.source.clone()), hash.clone());
            }
        }
    }
    let rows =
        hashes.into_iter().map(|((what, part), hash)| vec![Cell::text(what), Cell::text(part), Cell::text(hash)]);
    Section {
        title: "How to repeat it".to_owned(),
        text: vec![
            format!("Made by {}. Save the file below as study.toml (SHA-256 {}) and run:", plan.tool, plan.study_sha256),
            "study run study.toml && study report study.toml".to_owned(),
            "Intervals join two sources of chance: the text, by a paired block bootstrap over windows, and the seeds of the \
             calibration windows, by Student's t, in quadrature. The number of threads changes no result."
                .to_owned(),
        ],
        tables: vec![Table {
            caption: "SHA-256 of what went in".to_owned(),
            headings: headings(["what", "part", "SHA-256"]),
            rows: rows.collect(),
        }],
        verbatim: Some(plan.study.trim_end().to_owned()),
        ..Section::default()
    }
}
