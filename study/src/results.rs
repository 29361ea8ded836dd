//! The store's lines in the order of the plan, replicates put together.

use crate::{
    measure::Measure,
    plan::Plan,
    settings::Settings,
    statistics::{Effect, Series, effect},
    store::{Contents, Line},
};
use std::collections::BTreeMap;

/// A configuration: what its seeds came to.
pub struct Group<'a> {
    /// Its settings, without a seed.
    pub settings: Settings,
    /// Its blocks, by evaluation.
    pub series: BTreeMap<&'a str, Series<'a>>,
    /// Its lines.
    pub lines: Vec<&'a Line>,
}

/// The measured cells of a study, of one measure: losses of different measures have different units.
pub struct Results<'a> {
    /// What was planned.
    pub plan: &'a Plan,
    /// What was measured.
    pub measure: Measure,
    /// Configurations, in the order of the plan.
    pub groups: Vec<Group<'a>>,
    /// Unquantized models, by model and evaluation.
    pub baselines: BTreeMap<(&'a str, &'a str), Series<'a>>,
    /// Their lines.
    pub baseline_lines: Vec<&'a Line>,
    /// Configurations solved in true sequence only to measure the shortcut: a line for each evaluation.
    pub twins: Vec<(&'a Settings, &'a str, &'a Line)>,
    /// Lines of cells that failed.
    pub failures: Vec<&'a Line>,
}

impl<'a> Results<'a> {
    /// What `contents` holds of `plan`. Names are the plan's: a line may have been computed under others.
    pub fn new(plan: &'a Plan, contents: &'a Contents, measure: Measure) -> Self {
        let mut results = Self {
            plan,
            measure,
            groups: Vec::new(),
            baselines: BTreeMap::new(),
            baseline_lines: Vec::new(),
            twins: Vec::new(),
            failures: Vec::new(),
        };
        for cell in plan.cells.iter().filter(|cell| cell.measure == measure) {
            results.failures.extend(contents.failed(&cell.cell));
            let Some(line) = contents.measured(&cell.cell) else { continue };
            let (model, evaluation) = (cell.model.as_str(), cell.evaluation.as_str());
            if let (true, Some(settings)) = (cell.twin, &cell.settings) {
                results.twins.push((settings, evaluation, line));
                continue;
            }
            let seed = cell.settings.as_ref().and_then(|settings| settings.seed);
            let series = match &cell.settings {
                None => {
                    results.baseline_lines.push(line);
                    results.baselines.entry((model, evaluation)).or_default()
                }
                Some(settings) => {
                    let group = results.group(settings.without_seed());
                    group.lines.push(line);
                    group.series.entry(evaluation).or_default()
                }
            };
            series.seeds.push((seed, &line.blocks));
            series.run = line.text.bootstrap_run;
        }
        results
    }

    fn group(&mut self, settings: Settings) -> &mut Group<'a> {
        let known = self.groups.iter().position(|group| group.settings == settings);
        let index = known.unwrap_or_else(|| {
            self.groups.push(Group { settings, series: BTreeMap::new(), lines: Vec::new() });
            self.groups.len() - 1
        });
        &mut self.groups[index]
    }

    /// How many cells were measured.
    pub fn measured(&self) -> usize {
        self.twins.len() + self.baseline_lines.len() + self.groups.iter().map(|group| group.lines.len()).sum::<usize>()
    }

    /// The evaluations, in the order of the calibration sets of their domains, so that a matrix has its diagonal.
    pub fn evaluations(&self) -> Vec<&'a str> {
        let sets = self.levels("calibration");
        let place = |evaluation: &&str| {
            let domain = self.plan.domains.get(*evaluation);
            sets.iter().position(|set| Some(set) == domain).unwrap_or(sets.len())
        };
        let cells = self.plan.cells.iter().filter(|cell| cell.measure == self.measure);
        let mut evaluations = distinct(cells.map(|cell| cell.evaluation.as_str()));
        evaluations.sort_by_key(place);
        evaluations
    }

    /// The models, in the order of the plan.
    pub fn models(&self) -> Vec<&'a str> {
        distinct(self.plan.cells.iter().map(|cell| cell.model.as_str()))
    }

    /// The levels of `axis`, in the order of the plan.
    pub fn levels(&self, axis: &str) -> Vec<String> {
        distinct(self.plan.settings().filter_map(|settings| settings.level(axis)))
    }

    /// The measure of `group` minus that of its unquantized model, on `evaluation`; a divergence is from that model.
    pub fn loss(&self, group: &Group<'_>, evaluation: &str) -> Option<Effect> {
        let own = group.series.get(evaluation)?;
        if self.measure == Measure::Divergence {
            return effect(&[(1.0, own)], evaluation);
        }
        let baseline = self.baselines.get(&(group.settings.model.as_str(), evaluation))?;
        effect(&[(1.0, own), (-1.0, baseline)], evaluation)
    }

    /// For each twin: its settings, the evaluation, and by how much the configuration that it is the twin of is worse for
    /// having been solved on the original model's statistics.
    pub fn shortcuts(&self) -> Vec<(&'a Settings, &'a str, Effect)> {
        let cost = |(settings, evaluation, line): &(&'a Settings, &'a str, &'a Line)| {
            let short = Settings { inputs: Some("original".to_owned()), ..(*settings).clone() }.without_seed();
            let group = self.groups.iter().find(|group| group.settings == short)?;
            let twin = Series { seeds: vec![(settings.seed, &line.blocks)], run: line.text.bootstrap_run };
            let effect = effect(&[(1.0, group.series.get(evaluation)?), (-1.0, &twin)], evaluation)?;
            Some((*settings, *evaluation, effect))
        };
        self.twins.iter().filter_map(cost).collect()
    }

    /// The same, averaged over all evaluations; none where one is missing.
    pub fn mean_loss(&self, group: &Group<'_>) -> Option<Effect> {
        let losses = self.evaluations().into_iter().map(|evaluation| self.loss(group, evaluation));
        Effect::average(&losses.collect::<Option<Vec<_>>>()?)
    }
}

/// Each value once, in the order of first appearance.
pub fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut distinct, value| {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
        distinct
    })
}
