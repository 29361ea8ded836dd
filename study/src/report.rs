//! The report: what the findings are, shown and said.

mod bands;
mod beside;
mod effects;
mod parts;
mod words;

pub use self::beside::Other;
use self::{
    effects::{cells, curves, matrix, settings, sizes, stability},
    parts::{damage, places, shortcut},
    words::{headings, slug},
};
use crate::{
    StudyError,
    check::duration,
    findings,
    measure::Measure,
    plan::Plan,
    results::Results,
    say,
    store::{Contents, Line},
};
use console::{
    files::write_atomically,
    page::{self, Cell, Page, Section, Table},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Sentences that answer the question; what else the data say follows them.
const ANSWER: usize = 3;

/// A report that is ready to be written.
pub struct Report {
    /// What it says.
    pub page: Page,
    /// All sentences, the answer first.
    pub sentences: Vec<String>,
}

impl Report {
    /// The report of what `contents` holds of `plan`, with `others` beside it; with `within`, it recommends what fits into so
    /// many bytes.
    pub fn new(plan: &Plan, contents: &Contents, within: Option<u64>, others: &[Other]) -> Result<Self, StudyError> {
        let all: Vec<Results<'_>> =
            plan.measures().into_iter().map(|measure| Results::new(plan, contents, measure)).collect();
        let missing = unmeasured(plan, &all);
        let short = ANSWER + usize::from(missing.is_some());
        let mut sentences: Vec<String> = missing.into_iter().collect();
        let (mut sections, mut shown) = (Vec::new(), 0);
        for results in &all {
            let several = all.len() > 1;
            let part = part(results, several, within)?;
            sentences.extend(part.answer);
            sections.extend(part.sections);
            shown += part.shown;
        }
        if !others.is_empty() {
            let answer = |other: &Other| Ok(Self::new(&other.plan, &other.contents, None, &[])?.page.answer);
            let answers = others.iter().map(answer).collect::<Result<Vec<_>, StudyError>>()?;
            sections.push(beside::beside(&all, others, &answers));
        }
        sections.extend(all.first().and_then(stability));
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
        let answer = sentences.iter().take(short).cloned().collect();
        let further = Section {
            title: "What else was found".to_owned(),
            items: sentences.iter().skip(short).cloned().collect(),
            ..Section::default()
        };
        if !further.items.is_empty() {
            sections.insert(0, further);
        }
        Ok(Self { page: Page { title, question, answer, sections }, sentences })
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
fn part(results: &Results<'_>, several: bool, within: Option<u64>) -> Result<Part, StudyError> {
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
    sections.extend(bands::expected(results, &rows));
    sections.extend(shortcut(results));
    let mut answer = say::answers(results, &panels, &rankings, &rows);
    answer.extend(within.into_iter().flat_map(|bytes| say::within(results, &rows, bytes)));
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
    let timed = all.iter().filter(|results| results.measure.is_timed()).flat_map(|results| &results.baseline_lines);
    let times = Table {
        caption: "The unquantized models, as their files store them; on the machine and threads of the study"
            .to_owned(),
        headings: headings(["model", "what", "measure", "tokens per second", "threads"]),
        rows: timed.filter_map(|line| time_row(line)).collect(),
    };
    let mut tables = vec![perplexities, scores, times];
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

fn time_row(line: &Line) -> Option<Vec<Cell>> {
    let speed = line.timed.as_ref()?.tokens_per_second();
    Some(vec![
        Cell::text(&line.model),
        Cell::text(&line.evaluation),
        Cell::text(line.measure.name()),
        Cell::number(speed, format!("{speed:.1}")),
        Cell::number(line.threads as f64, line.threads.to_string()),
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
    let items = items.chain([format!("compute: {}", plan.compute)]);
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
