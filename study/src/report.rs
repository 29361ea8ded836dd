//! The report: what the findings are, shown and said.

use crate::{
    StudyError,
    check::duration,
    findings::{self, Contrast, Panel, Parts, Ranking, Row},
    measure::Measure,
    places::CLASSES,
    plan::Plan,
    plot::{self, Mark},
    results::Results,
    say,
    settings::{Settings, words},
    statistics::{Effect, Estimate},
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

/// A report that is ready to be written.
pub struct Report {
    /// What it says.
    pub page: Page,
}

impl Report {
    /// The report of what `contents` holds of `plan`.
    pub fn new(plan: &Plan, contents: &Contents) -> Result<Self, StudyError> {
        let all: Vec<Results<'_>> =
            plan.measures().into_iter().map(|measure| Results::new(plan, contents, measure)).collect();
        let mut answer: Vec<String> = unmeasured(plan, &all).into_iter().collect();
        let (mut sections, mut shown) = (Vec::new(), 0);
        for results in &all {
            let several = all.len() > 1;
            let part = part(results, several)?;
            answer.extend(part.answer);
            sections.extend(part.sections);
            shown += part.shown;
        }
        sections.push(baselines(&all));
        sections.extend(failures(plan, &all));
        sections.push(fixed(plan));
        sections.push(cost(&all));
        sections.push(Section {
            title: "What these data can't tell".to_owned(),
            items: say::limits(plan, &all, shown),
            ..Section::default()
        });
        sections.push(repetition(plan, &all));
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

/// What a report says of one measure.
struct Part {
    answer: Vec<String>,
    sections: Vec<Section>,
    /// Intervals shown.
    shown: usize,
}

/// With `several`, the measure stands in every heading, caption and sentence.
fn part(results: &Results<'_>, several: bool) -> Result<Part, StudyError> {
    let rows = findings::rows(results);
    let panels = findings::panels(results);
    let rankings = findings::rankings(results);
    let mut sections = Vec::new();
    sections.extend(panels.iter().map(|panel| matrix(panel, results)).collect::<Result<Vec<_>, _>>()?);
    sections.extend(settings(results.measure, &rankings)?);
    sections.extend(curves(results)?);
    sections.extend(sizes(results, &rows)?);
    sections.extend(
        findings::parts(results).iter().map(|parts| damage(results.measure, parts)).collect::<Result<Vec<_>, _>>()?,
    );
    sections.extend(places(results));
    sections.push(cells(results, &rows));
    sections.extend(shortcut(results));
    let mut answer = say::answers(results, &panels, &rankings, &rows);
    if several {
        let name = results.measure.name();
        for section in &mut sections {
            section.title = format!("{}, by {name}", section.title);
            for figure in &mut section.figures {
                figure.name = slug(&format!("{} {name}", figure.name));
            }
        }
        for sentence in &mut answer {
            *sentence = format!("By {name}: {sentence}");
        }
    }
    Ok(Part { answer, sections, shown: rows.iter().map(|row| row.losses.len()).sum() })
}

/// Parts drawn in a figure; the rest is in its table.
const DRAWN: usize = 24;

/// Parts of the model one at a time, the worst first.
fn damage(measure: Measure, parts: &Parts) -> Result<Section, StudyError> {
    let with = if parts.title.is_empty() { String::new() } else { format!(", {}", parts.title) };
    let (what, title) = match parts.how.as_str() {
        "only" => ("quantized and nothing else", "Damage of each part alone"),
        _ => ("left as it is and everything else quantized", "What remains with one part restored"),
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
        format!("{} with one part {what}{with}, with 95 % intervals, averaged over texts.{more}", against(measure));
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
        caption: format!("Each part{with}"),
        headings: headings(["part", measure.loss(), "share of the sum"]),
        rows: rows.collect(),
    };
    let all = parts.all.as_ref().map(|all| {
        format!(
            "With everything quantized it is {}; the parts sum to {}.",
            measure.with_interval(all),
            measure.change(sum)
        )
    });
    let name = slug(&format!("parts {} {}", parts.how, parts.title));
    Ok(Section {
        title: format!("{title}{with}"),
        text: all.into_iter().collect(),
        figures: vec![Figure { name, caption, svg: plot::forest(measure, &marks)? }],
        tables: vec![table],
        ..Section::default()
    })
}

/// Divergence by kind of token and place in the window, of configurations that quantize everything; seeds averaged.
fn places(results: &Results<'_>) -> Option<Section> {
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
fn shortcut(results: &Results<'_>) -> Option<Section> {
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

/// A sentence where cells are open.
fn unmeasured(plan: &Plan, all: &[Results<'_>]) -> Option<String> {
    let (planned, measured) = (plan.cells.len(), all.iter().map(Results::measured).sum::<usize>());
    (measured < planned)
        .then(|| format!("Only {measured} of {planned} cells are measured; what follows speaks of those."))
}

/// Every line of every measure.
fn lines<'r, 'a>(all: &'r [Results<'a>]) -> impl Iterator<Item = &'a Line> + use<'r, 'a> {
    all.iter().flat_map(|results| {
        let twins = results.twins.iter().map(|(_, _, line)| *line);
        results.baseline_lines.iter().chain(results.groups.iter().flat_map(|group| &group.lines)).copied().chain(twins)
    })
}

/// A figure that stands by itself has no page behind it.
fn on_white(svg: &str) -> String {
    svg.replacen('>', "><rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>", 1)
}

fn estimate_cell(measure: Measure, estimate: Option<&Estimate>) -> Cell {
    let text = |estimate: &Estimate| format!("{} ({})", measure.change(estimate.value), measure.interval(estimate));
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

/// What a loss is, as captions begin.
fn against(measure: Measure) -> &'static str {
    match measure {
        Measure::Perplexity => "Change of perplexity against the unquantized model",
        Measure::Divergence => "Mean KL divergence from the unquantized model",
        Measure::Task => "Share of wrong answers against the unquantized model, in percentage points",
    }
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
fn settings(measure: Measure, rankings: &[Ranking]) -> Result<Option<Section>, StudyError> {
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

fn curves(results: &Results<'_>) -> Result<Vec<Section>, StudyError> {
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

/// The unquantized models: perplexities, and scores of tasks.
fn baselines(all: &[Results<'_>]) -> Section {
    let of = |measure| all.iter().filter(move |results| results.measure == measure);
    let perplexities = of(Measure::Perplexity).flat_map(|results| &results.baseline_lines);
    let scores = of(Measure::Task).flat_map(|results| &results.baseline_lines);
    let perplexities = Table {
        caption: "The unquantized models, with 95 % intervals".to_owned(),
        headings: headings(["model", "text", "protocol", "perplexity", "bits per byte", "tokens scored", "windows"]),
        rows: perplexities.filter_map(|line| perplexity_row(line)).collect(),
    };
    let scores = Table {
        caption: "The unquantized models on tasks".to_owned(),
        headings: headings(["model", "task", "settings", "score", "items"]),
        rows: scores.filter_map(|line| score_row(line)).collect(),
    };
    let mut tables = vec![perplexities, scores];
    tables.retain(|table| !table.rows.is_empty());
    let divergence = "A divergence is measured from the unquantized model itself, which stands at zero.".to_owned();
    let text = of(Measure::Divergence).next().map(|_| divergence).into_iter().collect();
    Section { title: "What it is measured against".to_owned(), text, tables, ..Section::default() }
}

fn perplexity_row(line: &Line) -> Option<Vec<Cell>> {
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
}

fn score_row(line: &Line) -> Option<Vec<Cell>> {
    let answers = line.answers.as_ref()?;
    Some(vec![
        Cell::text(&line.model),
        Cell::text(&line.evaluation),
        Cell::text(&line.text.protocol),
        Cell::number(answers.score, format!("{:.4}", answers.score)),
        Cell::number(answers.items as f64, answers.items.to_string()),
    ])
}

fn failures(plan: &Plan, all: &[Results<'_>]) -> Option<Section> {
    let axes = plan.varying();
    let item = |line: &&Line| {
        let label = line.settings.as_ref().map_or_else(|| line.model.clone(), |settings| settings.label(&axes));
        format!("{label}, on {}: {}", line.evaluation, line.error.as_deref().unwrap_or_default())
    };
    let items: Vec<String> = all.iter().flat_map(|results| &results.failures).map(item).collect();
    (!items.is_empty()).then(|| Section { title: "Cells that failed".to_owned(), items, ..Section::default() })
}

fn fixed(plan: &Plan) -> Section {
    let items = plan.fixed().into_iter().map(|(axis, level)| format!("{}: {level}", axis.replace('_', "-")));
    Section { title: "Held fixed".to_owned(), items: items.collect(), ..Section::default() }
}

fn cost(all: &[Results<'_>]) -> Section {
    let lines: Vec<&Line> = lines(all).collect();
    let quantized: BTreeMap<&str, f64> =
        lines.iter().filter_map(|line| Some((line.configuration.as_str(), line.quantized.as_ref()?.seconds))).collect();
    let quantizing: f64 = quantized.values().sum();
    let measuring: f64 = lines.iter().filter_map(|line| line.seconds_measuring()).sum();
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
fn repetition(plan: &Plan, all: &[Results<'_>]) -> Section {
    let mut hashes: BTreeMap<(String, String), String> = BTreeMap::new();
    for line in lines(all) {
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
