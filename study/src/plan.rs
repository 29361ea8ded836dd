//! `plan.json`: what the cells of a study are, so that its results can be read where its models are not.

use crate::{
    StudyError,
    check::Overlap,
    measure::Measure,
    opened::{Opened, TOOL},
    settings::{AXES, Settings},
    store::SCHEMA,
};
use console::files::write_atomically;
use evaluate::source::sha256;
use quantize::Compute;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The cells of a study and what a report needs besides their results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name and version of the tool.
    pub tool: String,
    /// The study's name.
    pub name: String,
    /// The question.
    pub question: String,
    /// The study file as it was.
    pub study: String,
    /// Its SHA-256.
    pub study_sha256: String,
    /// The arithmetic of dense products.
    #[serde(default)]
    pub compute: Compute,
    /// Its cells.
    pub cells: Vec<PlannedCell>,
    /// The calibration set that is of an evaluation's own domain, by evaluation.
    pub domains: BTreeMap<String, String>,
    /// What the texts have in common.
    pub overlaps: Vec<Overlap>,
    /// What `study check` warned of.
    pub warnings: Vec<String>,
}

/// A cell and what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedCell {
    /// Its key.
    pub cell: String,
    /// Key of its configuration.
    pub configuration: String,
    /// The model as the study calls it.
    pub model: String,
    /// What it is quantized with; none for the unquantized model.
    pub settings: Option<Settings>,
    /// The evaluation's name.
    pub evaluation: String,
    /// What is measured.
    #[serde(default)]
    pub measure: Measure,
    /// Whether it is there only to measure another's shortcut against.
    #[serde(default)]
    pub twin: bool,
}

impl Plan {
    /// Of an opened study.
    pub fn of(opened: &Opened, overlaps: Vec<Overlap>) -> Self {
        let cell = |unit: &crate::opened::Unit, cell: &crate::opened::Cell| PlannedCell {
            cell: cell.key.clone(),
            configuration: unit.configuration.clone(),
            model: unit.model.clone(),
            settings: unit.settings.clone(),
            evaluation: opened.texts[cell.text].name.clone(),
            measure: opened.texts[cell.text].measure,
            twin: unit.twin,
        };
        let cells = opened.units.iter().flat_map(|unit| unit.cells.iter().map(move |of| cell(unit, of)));
        let file = &opened.file;
        let domains = file.evaluation.keys().filter_map(|name| Some((name.clone(), file.domain_of(name)?.to_owned())));
        let warnings = opened.warnings.iter().cloned().chain(overlaps.iter().filter_map(Overlap::warning));
        Self {
            schema: SCHEMA,
            tool: TOOL.to_owned(),
            name: file.name.clone(),
            question: file.question.clone(),
            study: opened.text.clone(),
            study_sha256: sha256(&opened.text),
            compute: file.compute,
            cells: cells.collect(),
            domains: domains.collect(),
            warnings: warnings.collect(),
            overlaps,
        }
    }

    /// Writes it into the results folder.
    pub fn write(&self, folder: &Path) -> Result<(), StudyError> {
        let path = folder.join("plan.json");
        let text = serde_json::to_vec_pretty(self).expect("a plan is plain data");
        write_atomically(&path, &text).map_err(StudyError::io(&path))
    }

    /// The measures of its cells, in the order of reports.
    pub fn measures(&self) -> Vec<Measure> {
        let measured = |measure: &Measure| self.cells.iter().any(|cell| cell.measure == *measure);
        Measure::ALL.into_iter().filter(measured).collect()
    }

    /// Reads it from the results folder.
    pub fn read(folder: &Path) -> Result<Self, StudyError> {
        let path = folder.join("plan.json");
        if !path.exists() {
            return Err(StudyError::NoResults { path: folder.to_owned() });
        }
        let bytes = fs::read(&path).map_err(StudyError::io(&path))?;
        serde_json::from_slice(&bytes).map_err(|error| StudyError::File { path, what: error.to_string() })
    }

    /// The settings that differ between cells, in the order of [`AXES`].
    pub fn varying(&self) -> Vec<&'static str> {
        varying(&self.settings())
    }

    /// The settings of every cell that answers the question.
    pub fn settings(&self) -> impl Iterator<Item = &Settings> + Clone {
        self.cells.iter().filter(|cell| !cell.twin).filter_map(|cell| cell.settings.as_ref())
    }

    /// The settings that are the same in all cells, with their value.
    pub fn fixed(&self) -> Vec<(&'static str, String)> {
        let settings: Vec<&Settings> = self.settings().collect();
        let only = |axis: &&'static str| {
            let levels: BTreeSet<String> = settings.iter().filter_map(|settings| settings.level(axis)).collect();
            (levels.len() == 1).then(|| levels.first().map(|level| (*axis, level.clone()))).flatten()
        };
        AXES.iter().filter_map(only).collect()
    }
}

/// The axes on which `settings` have more than one level. The length of a calibration set counts only where one set is
/// cut to several: between sets it is part of what the set is.
pub fn varying<'a>(settings: &(impl Iterator<Item = &'a Settings> + Clone)) -> Vec<&'static str> {
    let differs = |axis: &&&'static str| {
        let mut levels: BTreeMap<Option<String>, BTreeSet<String>> = BTreeMap::new();
        for settings in settings.clone() {
            let within = ["samples", "sequence_length"].contains(*axis).then(|| settings.calibration.clone()).flatten();
            levels.entry(within).or_default().extend(settings.level(axis));
        }
        levels.values().any(|levels| levels.len() > 1)
    };
    AXES.iter().filter(differs).copied().collect()
}
