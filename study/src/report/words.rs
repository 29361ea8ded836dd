//! How numbers, headings and names stand in a report.

use crate::{measure::Measure, results::Results, statistics::Estimate};
use console::page::Cell;

pub(super) fn estimate_cell(measure: Measure, estimate: Option<&Estimate>) -> Cell {
    let text = |estimate: &Estimate| format!("{} ({})", measure.change(estimate.value), measure.interval(estimate));
    estimate.map_or_else(Cell::empty, |estimate| Cell::number(estimate.value, text(estimate)))
}

pub(super) fn headings(names: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    names.into_iter().map(Into::into).collect()
}

/// A file name of what `text` says.
pub(super) fn slug(text: &str) -> String {
    let slug: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    slug.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// What a loss is, as captions begin.
pub(super) fn against(measure: Measure) -> &'static str {
    match measure {
        Measure::Perplexity => "Change of perplexity against the unquantized model",
        Measure::Divergence => "Mean KL divergence from the unquantized model",
        Measure::Task => "Share of wrong answers against the unquantized model, in percentage points",
        Measure::ReadingTime => "Change of the time to read a token against the unquantized model",
        Measure::WritingTime => "Change of the time to write a token against the unquantized model",
    }
}

pub(super) fn varying(results: &Results<'_>) -> Vec<&'static str> {
    results.plan.varying().into_iter().filter(|axis| *axis != "seed").collect()
}
