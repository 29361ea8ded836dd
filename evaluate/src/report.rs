//! What leaves the tool: every number with its provenance and its uncertainty, for people and for machines.

use crate::{
    Measurement, Prepared, Resolved,
    capability::{self, Change},
    compare::Comparison,
    divergence::DivergenceReport,
    on_device,
    protocol::{Beginning, Reduction, Scored, TextHandling},
    source::{Source, SourceFile},
    statistics::{Block, DRAWS, Estimate},
    task_report::{self, TaskReport},
};
use kernels::Compute;
use model::{Checkpoint, checkpoint::SourceFile as ModelFile};
use serde::{Deserialize, Serialize};

/// This tool and its version.
pub const TOOL: &str = concat!("caliper evaluate ", env!("CARGO_PKG_VERSION"));

/// A model and the files it was read from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelReport {
    /// What the user called it.
    pub reference: String,
    /// Its files with their hashes.
    pub files: Vec<ModelFile>,
    /// The arithmetic it was run with.
    #[serde(default)]
    pub compute: Compute,
    /// The device that it was run on, if not the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl ModelReport {
    /// Of `checkpoint`, whose hashed files are `files`.
    pub fn new(checkpoint: &Checkpoint, files: Vec<ModelFile>) -> Self {
        Self {
            reference: checkpoint.reference.clone(),
            files,
            compute: checkpoint.compute,
            device: on_device::of(checkpoint).map(|device| format!("{}, sm_{}", device.name(), device.architecture())),
        }
    }
}

/// A protocol with every number that was used.
#[derive(Clone, Debug, Serialize)]
pub struct ProtocolReport {
    /// The name.
    pub name: &'static str,
    /// The name with all that departs from the protocol as published.
    pub title: String,
    /// How the text was put together.
    pub text: TextHandling,
    /// Tokens in a window.
    pub window: usize,
    /// Distance of windows.
    pub stride: usize,
    /// Which targets count.
    pub scored: Scored,
    /// What stands before the first target.
    pub beginning: Beginning,
    /// How blocks weigh.
    pub reduction: Reduction,
    /// The formula.
    pub formula: &'static str,
    /// Only the first so many tokens.
    pub max_tokens: Option<usize>,
}

impl From<Resolved> for ProtocolReport {
    fn from(resolved: Resolved) -> Self {
        let protocol = resolved.protocol;
        Self {
            name: protocol.name,
            title: resolved.title(),
            text: resolved.text,
            window: resolved.window,
            stride: resolved.stride,
            scored: protocol.scored,
            beginning: protocol.beginning,
            reduction: protocol.reduction,
            formula: protocol.formula,
            max_tokens: resolved.max_tokens,
        }
    }
}

/// What one text gave.
#[derive(Clone, Debug, Serialize)]
pub struct TextReport {
    /// What the user called the text.
    pub text: String,
    /// The files it was read from, with their hashes.
    pub files: Vec<SourceFile>,
    /// SHA-256 of the text after the protocol's text handling.
    pub prepared_sha256: String,
    /// UTF-8 bytes of the text after the protocol's text handling.
    pub prepared_bytes: usize,
    /// SHA-256 of the windows: what is fed and scored.
    pub windows_sha256: String,
    /// Tokens that windows were cut from.
    pub tokens: usize,
    /// What stands before the first target, in words.
    pub bos: String,
    /// The model's figures.
    #[serde(flatten)]
    pub measurement: Measurement,
    /// What each window, or page, contributes to the log-perplexity; left out where a text's figures are repeated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
    /// The same of the baseline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub baseline_blocks: Vec<Block>,
    /// The baseline's figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Measurement>,
    /// One against the other.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// The distance of their distributions, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<DivergenceReport>,
}

/// What a baseline adds to a text's figures.
pub struct Against {
    /// The baseline's figures.
    pub baseline: Measurement,
    /// What each window, or page, contributes to its log-perplexity.
    pub blocks: Vec<Block>,
    /// One against the other.
    pub comparison: Comparison,
    /// The distance of their distributions, if it was asked for.
    pub divergence: Option<DivergenceReport>,
}

impl TextReport {
    /// The report of one text.
    pub fn new(
        source: &Source,
        prepared: &Prepared,
        (measurement, blocks): (Measurement, Vec<Block>),
        against: Option<Against>,
    ) -> Self {
        let (baseline, baseline_blocks, comparison, divergence) = match against {
            Some(against) => (Some(against.baseline), against.blocks, Some(against.comparison), against.divergence),
            None => (None, Vec::new(), None, None),
        };
        Self {
            text: source.reference.clone(),
            files: source.files.clone(),
            prepared_sha256: prepared.sha256.clone(),
            prepared_bytes: prepared.bytes,
            windows_sha256: prepared.windows_sha256(),
            tokens: prepared.tokens,
            bos: prepared.beginning.clone(),
            measurement,
            blocks,
            baseline_blocks,
            baseline,
            comparison,
            divergence,
        }
    }
}

/// A whole run. As JSON its top level holds the first text's figures, `texts` those of every text, and `tasks` those of every
/// task.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// This tool and its version.
    pub tool: String,
    /// The model.
    pub model: ModelReport,
    /// The model it is measured against.
    pub baseline_model: Option<ModelReport>,
    /// Seed of the bootstrap and of the draw of items.
    pub seed: u64,
    /// Draws of the bootstrap.
    pub draws: usize,
    /// Threads used; they don't change a result.
    pub threads: usize,
    /// The most memory this process held, in bytes.
    pub peak_memory: Option<u64>,
    /// Perplexities, if there are texts.
    #[serde(flatten)]
    pub perplexity: Option<Report>,
    /// Every task.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskReport>,
    /// The tasks against the baseline by capability, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Change>,
    /// Which capability lost most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
}

/// The perplexities of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The protocol.
    pub protocol: ProtocolReport,
    /// The first text.
    #[serde(flatten)]
    pub first: TextReport,
    /// Every text.
    pub texts: Vec<TextReport>,
}

impl Results {
    /// Puts the results together.
    pub fn new(
        models: (ModelReport, Option<ModelReport>),
        resolved: Resolved,
        seed: u64,
        threads: usize,
        texts: Vec<TextReport>,
        (tasks, capabilities): (Vec<TaskReport>, Vec<Change>),
    ) -> Self {
        let perplexity = texts.first().cloned().map(|first| Report {
            protocol: resolved.into(),
            first: TextReport { blocks: Vec::new(), baseline_blocks: Vec::new(), ..first },
            texts,
        });
        Self {
            tool: TOOL.to_owned(),
            model: models.0,
            baseline_model: models.1,
            seed,
            draws: DRAWS,
            threads,
            peak_memory: console::machine::peak_memory(),
            perplexity,
            tasks,
            verdict: capability::verdict(&capabilities),
            capabilities,
        }
    }

    /// The largest ratio to the baseline, if there is one.
    pub fn worst_ratio(&self) -> Option<f64> {
        let texts = self.perplexity.iter().flat_map(|report| &report.texts);
        texts.filter_map(|text| Some(text.comparison.as_ref()?.ratio)).reduce(f64::max)
    }
}

/// The tables for people.
impl std::fmt::Display for Results {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(perplexity) = &self.perplexity {
            write!(f, "{perplexity}")?;
        }
        if !self.tasks.is_empty() {
            write!(f, "{}", task_report::tables(&self.tasks))?;
        }
        write!(f, "{}", capability::tables(&self.capabilities))?;
        Ok(())
    }
}

/// The tables for people.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = self.protocol.reduction == Reduction::Words;
        let value = if words { "word perplexity" } else { "perplexity" };
        writeln!(f, "{}", self.protocol.title)?;
        writeln!(f, "{}", measurements(self, value))?;
        if self.texts.iter().any(|text| text.comparison.is_some()) {
            writeln!(f, "{}", comparisons(self))?;
        }
        if self.texts.iter().any(|text| text.divergence.is_some()) {
            writeln!(f, "KL(baseline || model) per token, in nats")?;
            writeln!(f, "{}", divergences(self))?;
            writeln!(f, "{}", agreements(self))?;
        }
        for text in &self.texts {
            if let Some(truncation) = text.divergence.as_ref().and_then(|divergence| divergence.truncation) {
                writeln!(f, "{}: {truncation}", short(&text.text))?;
            }
            if let Some(verdict) = text.comparison.as_ref().and_then(|comparison| comparison.verdict) {
                writeln!(f, "{}: {verdict}", short(&text.text))?;
            }
        }
        Ok(())
    }
}

fn measurements(report: &Report, value: &str) -> console::Table {
    let mut table = console::Table::new([
        "text",
        "",
        value,
        "±",
        "95 %",
        "bits/byte",
        "tokens scored",
        "windows",
        "seconds",
        "tokens/s",
    ]);
    for text in &report.texts {
        let name = short(&text.text);
        table.row(measurement_row(name, "model", &text.measurement));
        if let Some(baseline) = &text.baseline {
            table.row(measurement_row(name, "baseline", baseline));
        }
    }
    table
}

fn measurement_row(text: &str, which: &str, figures: &Measurement) -> [String; 10] {
    [
        text.to_owned(),
        which.to_owned(),
        format!("{:.4}", figures.perplexity),
        optional(figures.standard_error, 4),
        interval(figures.interval_95, 2),
        optional(figures.bits_per_byte, 4),
        figures.tokens_scored.to_string(),
        figures.windows.to_string(),
        format!("{:.1}", figures.seconds),
        format!("{:.0}", figures.tokens_per_second),
    ]
}

fn comparisons(report: &Report) -> console::Table {
    let mut table = console::Table::new(["text", "ratio", "95 %", "Δ log-perplexity", "±", "95 %"]);
    for text in &report.texts {
        if let Some(comparison) = &text.comparison {
            table.row([
                short(&text.text).to_owned(),
                format!("{:.4}", comparison.ratio),
                interval(comparison.ratio_interval_95, 4),
                format!("{:+.5}", comparison.log_ratio),
                optional(comparison.log_ratio_standard_error, 5),
                interval(comparison.log_ratio_interval_95, 5),
            ]);
        }
    }
    table
}

fn divergences(report: &Report) -> console::Table {
    let mut table =
        console::Table::new(["text", "mean KL", "±", "95 %", "median", "90 %", "95 %", "99 %", "99.9 %", "maximum"]);
    for text in &report.texts {
        if let Some(figures) = &text.divergence {
            let kl = &figures.kl_mean;
            let mut row = vec![
                short(&text.text).to_owned(),
                format!("{:.6}", kl.value),
                optional(kl.standard_error, 6),
                interval(kl.interval_95, 6),
            ];
            let quantiles =
                [figures.kl_median, figures.kl_90, figures.kl_95, figures.kl_99, figures.kl_99_9, figures.kl_max];
            row.extend(quantiles.map(|value| format!("{value:.5}")));
            table.row(row);
        }
    }
    table
}

fn agreements(report: &Report) -> console::Table {
    let mut table = console::Table::new([
        "text",
        "same top token",
        "95 %",
        "RMS Δp",
        "95 %",
        "mean Δp",
        "95 %",
        "correlation",
        "95 %",
    ]);
    for text in &report.texts {
        if let Some(figures) = &text.divergence {
            let percent = |estimate: Estimate, sign: bool| {
                let value = 100.0 * estimate.value;
                let value = if sign { format!("{value:+.3} %") } else { format!("{value:.3} %") };
                [value, interval(estimate.interval_95.map(|ends| ends.map(|end| 100.0 * end)), 3)]
            };
            let correlation = match figures.correlation {
                Some(correlation) => [format!("{:.5}", correlation.value), interval(correlation.interval_95, 5)],
                None => ["n/a".to_owned(), "n/a".to_owned()],
            };
            let name = [short(&text.text).to_owned()].into_iter();
            let row = name.chain(percent(figures.same_top, false)).chain(percent(figures.rms_delta_p, false));
            table.row(row.chain(percent(figures.mean_delta_p, true)).chain(correlation));
        }
    }
    table
}

/// The last part of a path, which is what a table has room for.
pub(crate) fn short(reference: &str) -> &str {
    reference.trim_end_matches('/').rsplit('/').next().unwrap_or(reference)
}

pub(crate) fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "n/a".to_owned(), |value| format!("{value:.digits$}"))
}

pub(crate) fn interval(ends: Option<[f64; 2]>, digits: usize) -> String {
    ends.map_or_else(|| "n/a".to_owned(), |[low, high]| format!("{low:.digits$} … {high:.digits$}"))
}
