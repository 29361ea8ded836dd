//! The section on what is to be expected of a kind of quantization.

use super::words::{headings, varying};
use crate::{findings::Row, measure::Measure, results::Results};
use console::page::{Cell, Section, Table};
use evaluate::bands::Band;

/// Each configuration of a kind that the project has reference bands for: better, as expected, or worse.
pub(super) fn expected(results: &Results<'_>, rows: &[Row]) -> Option<Section> {
    let axes = varying(results);
    let row = |row: &Row| {
        let settings = &results.groups[row.group].settings;
        let whole = settings.part.is_none().then_some(settings)?;
        let band = Band::of_method(&whole.method, whole.bits, whole.format.as_deref())?;
        let ratio = row.mean.as_ref()?.value.exp();
        Some(vec![
            Cell::text(settings.label(&axes)),
            Cell::number(ratio, format!("{ratio:.4}")),
            Cell::text(band.verdict(ratio).to_string()),
        ])
    };
    let is_perplexity = results.measure == Measure::Perplexity;
    let rows: Vec<_> = rows.iter().filter(|_| is_perplexity).filter_map(row).collect();
    (!rows.is_empty()).then(|| Section {
        title: "Beside what is to be expected".to_owned(),
        tables: vec![Table {
            caption: "Ratio of perplexities to the unquantized model's (geometric mean over texts), and the project's reference \
                      bands for such models as people publish"
                .to_owned(),
            headings: headings(["configuration", "ratio", "against the band"]),
            rows,
        }],
        ..Section::default()
    })
}
