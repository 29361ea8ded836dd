//! Other studies beside this one: what each answered, and the configurations that they share.

use super::words::{estimate_cell, headings};
use crate::{
    measure::Measure,
    plan::{Plan, varying},
    results::Results,
    store::Contents,
};
use console::page::{Cell, Section, Table};

/// Another study with what was measured of it.
pub struct Other {
    /// Its plan.
    pub plan: Plan,
    /// Its results.
    pub contents: Contents,
}

/// The section; `own` are this study's results, one for each measure, `answers` what each of `others` answered.
pub(super) fn beside(own: &[Results<'_>], others: &[Other], answers: &[Vec<String>]) -> Section {
    let measures = own.iter().map(|results| results.measure);
    let mut items = Vec::new();
    for (Other { plan, .. }, answer) in others.iter().zip(answers) {
        items.push(format!("{}: {}", plan.name, plan.question));
        items.extend(answer.iter().map(|sentence| format!("{}: {sentence}", plan.name)));
    }
    Section {
        title: "Beside other studies".to_owned(),
        tables: measures.filter_map(|measure| shared(measure, own, others)).collect(),
        items,
        ..Section::default()
    }
}

/// A row for each configuration that this study and another have measured.
fn shared(measure: Measure, own: &[Results<'_>], others: &[Other]) -> Option<Table> {
    let own = own.iter().find(|results| results.measure == measure)?;
    let others: Vec<Results<'_>> =
        others.iter().map(|other| Results::new(&other.plan, &other.contents, measure)).collect();
    let all = || std::iter::once(own).chain(&others);
    // What differs within any of the studies, or between them, is said.
    let settings = all().flat_map(|results| results.plan.settings());
    let axes: Vec<&str> = varying(&settings).into_iter().filter(|axis| *axis != "seed").collect();
    let loss = |results: &Results<'_>, label: &str| {
        let group = results.groups.iter().find(|group| group.settings.label(&axes) == label)?;
        Some(results.mean_loss(group)?.estimate())
    };
    let rows = own.groups.iter().filter_map(|group| {
        let label = group.settings.label(&axes);
        let losses: Vec<_> = all().map(|results| loss(results, &label)).collect();
        let shared = losses.iter().skip(1).any(Option::is_some);
        shared.then(|| {
            let cells = losses.iter().map(|loss| estimate_cell(measure, loss.as_ref()));
            std::iter::once(Cell::text(label)).chain(cells).collect::<Vec<_>>()
        })
    });
    let rows: Vec<_> = rows.collect();
    let names = all().map(|results| results.plan.name.clone());
    (!rows.is_empty()).then(|| Table {
        caption: format!("{} in each study, averaged over its own texts, with 95 % intervals", measure.loss()),
        headings: headings(std::iter::once("configuration".to_owned()).chain(names)),
        rows,
    })
}
