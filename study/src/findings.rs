//! What the results say: losses, effects of single settings, the matrix of domains, what no other setting beats.
//!
//! ```text
//! loss            the measure − that of the unquantized model, on the same windows or items
//! effect of L     mean over all pairs of configurations that differ in one setting only, L against a reference
//! own-domain gain of text e:   mean over the sets c of other domains of loss(c, e)  −  loss(own set, e)
//! front           configurations than which none of the same model is at most as large and at most as lossy
//! ```

use crate::{
    measure::Measure,
    part,
    results::{Group, Results},
    settings::{Settings, agree},
    statistics::{Effect, Estimate, Series, effect},
};

/// A configuration and what it costs.
pub struct Row {
    /// Index among [`Results::groups`].
    pub group: usize,
    /// The loss on each evaluation.
    pub losses: Vec<Option<Estimate>>,
    /// Their average.
    pub mean: Option<Estimate>,
    /// Bits per quantized weight on disk.
    pub bits_per_weight: Option<f64>,
    /// Bytes of the checkpoint.
    pub bytes: Option<u64>,
    /// Whether no configuration of the same model is better in size and loss.
    pub front: bool,
}

/// A level of a setting against another.
pub struct Contrast {
    /// The setting.
    pub axis: &'static str,
    /// The level.
    pub level: String,
    /// What it is compared with.
    pub reference: String,
    /// The difference of the measure.
    pub estimate: Estimate,
    /// Pairs of configurations behind it, on each evaluation.
    pub pairs: usize,
}

/// The levels of a setting, the best of them and the others against it.
pub struct Ranking {
    /// The setting.
    pub axis: &'static str,
    /// The level of least loss.
    pub best: String,
    /// The others against it, in the order of the study.
    pub others: Vec<Contrast>,
}

/// A calibration set on an evaluation.
pub struct Entry {
    /// The loss.
    pub loss: Estimate,
    /// Whether the set is of the evaluation's own domain.
    pub own: bool,
}

/// The matrix of calibration sets and evaluations, all other settings the same.
pub struct Panel {
    /// What was measured.
    pub measure: Measure,
    /// The other settings, where they vary.
    pub title: String,
    /// Rows.
    pub sets: Vec<String>,
    /// Columns.
    pub evaluations: Vec<String>,
    /// `entries[set][evaluation]`.
    pub entries: Vec<Vec<Option<Entry>>>,
    /// The own-domain gain on each evaluation that has an own set.
    pub gains: Vec<(String, Estimate)>,
    /// Their average.
    pub gain: Option<Estimate>,
    /// Standard deviation between the seeds of a set, pooled over the panel.
    pub seed_deviation: Option<f64>,
}

/// Losses along a setting that is a number.
pub struct Curve {
    /// The setting.
    pub axis: &'static str,
    /// A line for each combination of the other settings: its name and (level, mean loss).
    pub lines: Vec<(String, Vec<(f64, Estimate)>)>,
}

/// Parts of a model quantized, or left out, one at a time, everything else the same.
pub struct Parts {
    /// `only` or `without`.
    pub how: String,
    /// Their kind.
    pub kind: part::Kind,
    /// The other settings, where they vary.
    pub title: String,
    /// Each part and its mean loss, the largest first.
    pub parts: Vec<(String, Estimate)>,
    /// The loss with everything quantized, where that was measured.
    pub all: Option<Estimate>,
}

/// The losses of parts.
pub fn parts(results: &Results<'_>) -> Vec<Parts> {
    let axes: Vec<&str> = results.plan.varying().into_iter().filter(|axis| !["part", "seed"].contains(axis)).collect();
    let mut found: Vec<(Settings, Parts)> = Vec::new();
    for group in &results.groups {
        let Some((how, place)) = group.settings.part.as_deref().and_then(part::split) else { continue };
        let Some(loss) = results.mean_loss(group).map(|loss| loss.estimate()) else { continue };
        let rest = Settings { part: None, ..group.settings.clone() };
        // Parts of different kinds overlap: each kind is ranked, and summed, by itself.
        let kind = part::kind(place);
        let same = |(settings, parts): &(Settings, Parts)| *settings == rest && parts.kind == kind && parts.how == how;
        let known = found.iter().position(same);
        let index = known.unwrap_or_else(|| {
            let title = if axes.is_empty() { String::new() } else { rest.label(&axes) };
            let whole = results.groups.iter().find(|group| group.settings == rest);
            let all = whole.and_then(|group| results.mean_loss(group)).map(|loss| loss.estimate());
            found.push((rest, Parts { how: how.to_owned(), kind, title, parts: Vec::new(), all }));
            found.len() - 1
        });
        found[index].1.parts.push((place.to_owned(), loss));
    }
    let mut found: Vec<Parts> = found.into_iter().map(|(_, parts)| parts).collect();
    for parts in &mut found {
        parts.parts.sort_by(|a, b| b.1.value.total_cmp(&a.1.value));
    }
    found
}

/// A row for each configuration.
pub fn rows(results: &Results<'_>) -> Vec<Row> {
    let mut rows: Vec<Row> =
        results.groups.iter().enumerate().map(|(index, group)| row(results, index, group)).collect();
    // A model of which only a part is quantized is no choice of a size.
    let whole = |row: &&Row| results.groups[row.group].settings.part.is_none();
    let place = |row: &Row| Some((Some(row).filter(whole)?.bits_per_weight?, row.mean?.value));
    let places: Vec<_> = rows.iter().map(place).collect();
    for (index, row) in rows.iter_mut().enumerate() {
        let Some(own) = places[index] else { continue };
        let model = &results.groups[row.group].settings.model;
        let beaten = places.iter().enumerate().any(|(other, place)| {
            let same_model = results.groups[other].settings.model == *model;
            same_model && place.is_some_and(|place| place != own && place.0 <= own.0 && place.1 <= own.1)
        });
        row.front = !beaten;
    }
    rows
}

fn row(results: &Results<'_>, index: usize, group: &Group<'_>) -> Row {
    let evaluations = results.evaluations();
    let losses = evaluations.iter().map(|evaluation| results.loss(group, evaluation).map(|loss| loss.estimate()));
    let quantized = group.lines.iter().find_map(|line| line.quantized.as_ref());
    Row {
        group: index,
        losses: losses.collect(),
        mean: results.mean_loss(group).map(|loss| loss.estimate()),
        bits_per_weight: quantized.map(|quantized| quantized.bits_per_weight.unwrap_or(quantized.bits_per_weight_all)),
        bytes: quantized.map(|quantized| quantized.bytes),
        front: false,
    }
}

/// Every setting with several levels but models and seeds, its levels against the best one.
pub fn rankings(results: &Results<'_>) -> Vec<Ranking> {
    let axes = results.plan.varying().into_iter().filter(|axis| !["model", "seed", "part"].contains(axis));
    axes.filter_map(|axis| ranking(results, axis)).collect()
}

fn ranking(results: &Results<'_>, axis: &'static str) -> Option<Ranking> {
    let levels = results.levels(axis);
    let first = levels.first()?;
    let mut values = vec![(first, 0.0)];
    values.extend(
        levels[1..].iter().filter_map(|level| Some((level, contrast(results, axis, level, first)?.estimate.value))),
    );
    let best = values.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))?.0;
    let others = levels.iter().filter(|level| *level != best);
    let others: Vec<Contrast> = others.filter_map(|level| contrast(results, axis, level, best)).collect();
    (!others.is_empty()).then(|| Ranking { axis, best: best.clone(), others })
}

/// `level` of `axis` against `reference`, averaged over models, evaluations and all other settings.
pub fn contrast(results: &Results<'_>, axis: &'static str, level: &str, reference: &str) -> Option<Contrast> {
    let mut effects = Vec::new();
    let mut most = 0;
    for model in results.models() {
        for evaluation in results.evaluations() {
            let pairs = pairs(results, axis, (level, reference), model, evaluation);
            let weight = 1.0 / pairs.len().max(1) as f64;
            let terms: Vec<_> = pairs.iter().flat_map(|(ours, theirs)| [(weight, *ours), (-weight, *theirs)]).collect();
            effects.extend(effect(&terms, evaluation));
            most = most.max(pairs.len());
        }
    }
    let estimate = Effect::average(&effects)?.estimate();
    Some(Contrast { axis, level: level.to_owned(), reference: reference.to_owned(), estimate, pairs: most })
}

/// Configurations of `model` that differ in `axis` alone, measured on `evaluation`.
fn pairs<'r>(
    results: &'r Results<'_>,
    axis: &str,
    (level, reference): (&str, &str),
    model: &str,
    evaluation: &str,
) -> Vec<(&'r Series<'r>, &'r Series<'r>)> {
    let except = agreeing_except(results, axis);
    let whole = results.groups.iter().any(|group| group.settings.part.is_none());
    let at = |wanted: &str| {
        // A setting is judged by what it does to the whole model, where that was measured.
        let counts = move |group: &&Group<'_>| group.settings.part.is_none() || !whole;
        let groups = results.groups.iter().filter(move |group| group.settings.model == model).filter(counts);
        let wanted = wanted.to_owned();
        groups
            .filter(move |group| group.settings.level(axis).as_deref() == Some(wanted.as_str()))
            .filter_map(move |group| Some((group, group.series.get(evaluation)?)))
    };
    let theirs: Vec<_> = at(reference).collect();
    let with = |(ours, series): (&'r Group<'_>, &'r Series<'_>)| {
        let partners = theirs.iter().filter(|(theirs, _)| agree(&ours.settings, &theirs.settings, &except));
        partners.map(|(_, partner)| (series, *partner)).collect::<Vec<_>>()
    };
    at(level).flat_map(with).collect()
}

/// What may differ between configurations that are compared along `axis`: between calibration sets also their length,
/// unless that is crossed itself.
fn agreeing_except<'x>(results: &Results<'_>, axis: &'x str) -> Vec<&'x str> {
    let mut except = vec![axis];
    if axis == "calibration" {
        let varying = results.plan.varying();
        except.extend(["samples", "sequence_length"].into_iter().filter(|axis| !varying.contains(axis)));
    }
    except
}

/// The matrix of calibration sets and evaluations for each combination of the other settings; none where there is only
/// one calibration set.
pub fn panels(results: &Results<'_>) -> Vec<Panel> {
    if results.levels("calibration").len() < 2 {
        return Vec::new();
    }
    let except = agreeing_except(results, "calibration");
    let mut kinds: Vec<Vec<&Group<'_>>> = Vec::new();
    for group in
        results.groups.iter().filter(|group| group.settings.calibration.is_some() && group.settings.part.is_none())
    {
        match kinds.iter_mut().find(|kind| agree(&kind[0].settings, &group.settings, &except)) {
            Some(kind) => kind.push(group),
            None => kinds.push(vec![group]),
        }
    }
    kinds.into_iter().map(|kind| panel(results, &kind)).collect()
}

fn panel(results: &Results<'_>, groups: &[&Group<'_>]) -> Panel {
    let set_of = |group: &Group<'_>| group.settings.calibration.clone().unwrap_or_default();
    let varying = results.plan.varying();
    let others: Vec<&str> = varying.into_iter().filter(|axis| !["calibration", "seed"].contains(axis)).collect();
    let title = if others.is_empty() { String::new() } else { groups[0].settings.label(&others) };
    let evaluations = results.evaluations();
    let entry = |group: &&Group<'_>, evaluation: &&str| {
        let own = results.plan.domains.get(*evaluation) == Some(&set_of(group));
        Some(Entry { loss: results.loss(group, evaluation)?.estimate(), own })
    };
    let entries: Vec<Vec<_>> =
        groups.iter().map(|group| evaluations.iter().map(|evaluation| entry(group, evaluation)).collect()).collect();
    let gains: Vec<(&str, Effect)> =
        evaluations.iter().filter_map(|evaluation| Some((*evaluation, gain(results, groups, evaluation)?))).collect();
    let mean = Effect::average(&gains.iter().map(|(_, gain)| gain.clone()).collect::<Vec<_>>());
    let variances: Vec<f64> =
        entries.iter().flatten().flatten().filter_map(|entry| Some(entry.loss.seed_deviation?.powi(2))).collect();
    let pooled = variances.iter().sum::<f64>() / variances.len() as f64;
    Panel {
        measure: results.measure,
        title,
        sets: groups.iter().map(|group| set_of(group)).collect(),
        evaluations: evaluations.iter().map(|name| (*name).to_owned()).collect(),
        gains: gains.iter().map(|(name, gain)| ((*name).to_owned(), gain.estimate())).collect(),
        gain: mean.map(|gain| gain.estimate()),
        seed_deviation: (!variances.is_empty()).then(|| pooled.sqrt()),
        entries,
    }
}

/// Mean loss under the sets of other domains minus that under the own one. Mixtures and controls, which are of no
/// evaluation's domain, stay out.
fn gain(results: &Results<'_>, groups: &[&Group<'_>], evaluation: &str) -> Option<Effect> {
    let domains = &results.plan.domains;
    let own = domains.get(evaluation)?;
    let set = |group: &&&Group<'_>| group.settings.calibration.clone().unwrap_or_default();
    let own_series = groups.iter().find(|group| set(group) == *own)?.series.get(evaluation)?;
    let of_domains =
        groups.iter().filter(|group| set(group) != *own && domains.values().any(|name| *name == set(group)));
    let others: Vec<_> = of_domains.filter_map(|group| group.series.get(evaluation)).collect();
    let weight = 1.0 / others.len().max(1) as f64;
    let mut terms: Vec<_> = others.iter().map(|series| (weight, *series)).collect();
    terms.push((-1.0, own_series));
    (!others.is_empty()).then(|| effect(&terms, evaluation)).flatten()
}

/// Losses along every setting that is a number and has several levels; the whole row stands at the model's width.
pub fn curves(results: &Results<'_>) -> Vec<Curve> {
    let numbers = ["bits", "group_size", "samples", "sequence_length", "damping"];
    let varying = results.plan.varying();
    let axes = varying.iter().copied().filter(|axis| numbers.contains(axis));
    let curve = |axis: &'static str| {
        let others: Vec<&str> = varying.iter().copied().filter(|other| *other != axis && *other != "seed").collect();
        let mut lines: Vec<(String, Vec<(f64, Estimate)>)> = Vec::new();
        for group in results.groups.iter().filter(|group| group.settings.part.is_none()) {
            let level =
                group.settings.level(axis).and_then(|level| level.parse::<f64>().ok()).filter(|level| *level > 0.0);
            let (Some(level), Some(loss)) = (level, results.mean_loss(group)) else { continue };
            let label = if others.is_empty() { String::new() } else { group.settings.label(&others) };
            let point = (level, loss.estimate());
            match lines.iter_mut().find(|(known, _)| *known == label) {
                Some((_, points)) => points.push(point),
                None => lines.push((label, vec![point])),
            }
        }
        for (_, points) in &mut lines {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        lines.retain(|(_, points)| points.len() > 1);
        Curve { axis, lines }
    };
    axes.map(curve).filter(|curve| !curve.lines.is_empty()).collect()
}
