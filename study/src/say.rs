//! Numbers as people read them, and the sentences that answer a study's question.

use crate::{
    findings::{self, Contrast, Panel, Parts, Ranking, Row},
    measure::Measure,
    plan::Plan,
    results::Results,
    settings::words,
    statistics::{Effect, Estimate},
};
use console::machine;

/// Parts that a sentence names.
const WORST: usize = 3;
/// Configurations of the front that a sentence names.
const NAMED: usize = 8;

/// The answer, a sentence each.
pub fn answers(results: &Results<'_>, panels: &[Panel], rankings: &[Ranking], rows: &[Row]) -> Vec<String> {
    let measure = results.measure;
    let mut answers = Vec::new();
    answers.extend(alignment(panels));
    let aligned = panels.iter().any(|panel| panel.gain.is_some());
    answers.extend(
        rankings
            .iter()
            .filter(|ranking| !(aligned && ranking.axis == "calibration"))
            .map(|ranking| best(measure, ranking)),
    );
    answers.extend(findings::parts(results).iter().map(|parts| worst(measure, parts)));
    answers.extend(front(results, rows));
    answers.extend(shortcut(results));
    answers
}

/// Whether calibration on the text's own domain matters: a sentence on all panels that can tell.
fn alignment(panels: &[Panel]) -> Option<String> {
    let told: Vec<(&Panel, &Estimate)> =
        panels.iter().filter_map(|panel| Some((panel, panel.gain.as_ref()?))).collect();
    let measure = told.first()?.0.measure;
    let one = |(panel, gain): &(&Panel, &Estimate)| {
        let place = if panel.title.is_empty() { String::new() } else { format!("with {} ", panel.title) };
        let noise = panel.seed_deviation.map_or_else(
            || "with one seed, the noise between samples of one source is not known".to_owned(),
            |deviation| {
                let deviation = measure.change(deviation);
                format!("seeds of one source differ by {} (standard deviation)", deviation.trim_start_matches('+'))
            },
        );
        format!("{place}by {}; {noise}: {}", measure.with_interval(gain), verdict(gain, panel.seed_deviation))
    };
    let subject = measure.subject();
    let named = told.iter().map(one).collect::<Vec<_>>().join("; ");
    Some(format!("Calibrating on another domain than the text's own changes {subject} {named}."))
}

fn verdict(gain: &Estimate, seed_deviation: Option<f64>) -> &'static str {
    match (gain.may_be_zero(), gain.value > 0.0, seed_deviation) {
        (true, ..) => "these data can't tell it from nothing",
        (false, true, Some(deviation)) if gain.value > deviation => "alignment matters, and more than that noise",
        (false, true, Some(_)) => "alignment matters, but no more than that noise",
        (false, true, None) => "alignment matters",
        (false, false, _) => "calibrating on another domain was better",
    }
}

/// Which level of a setting does best, and which can't be told from it.
fn best(measure: Measure, ranking: &Ranking) -> String {
    let name = |level: &str| words(ranking.axis, level);
    let equal: Vec<&Contrast> = ranking.others.iter().filter(|other| other.estimate.may_be_zero()).collect();
    if ["samples", "sequence_length"].contains(&ranking.axis) {
        return enough(measure, ranking);
    }
    let worse: Vec<String> = (ranking.others.iter().filter(|other| !other.estimate.may_be_zero()))
        .map(|other| format!("{} {}", name(&other.level), measure.with_interval(&other.estimate)))
        .collect();
    let mut text = format!("On average over everything else, {} does best", name(&ranking.best));
    if !worse.is_empty() {
        text.extend(["; against it: ", &worse.join(", ")]);
    }
    if !equal.is_empty() {
        let equal: Vec<String> = equal
            .iter()
            .map(|other| format!("{} ({})", name(&other.level), measure.interval(&other.estimate)))
            .collect();
        text.extend(["; not told apart from it: ", &equal.join(", ")]);
    }
    text + "."
}

/// From which amount of text on more of it changes nothing that can be seen.
fn enough(measure: Measure, ranking: &Ranking) -> String {
    let number = |level: &str| level.parse::<f64>().unwrap_or(f64::INFINITY);
    let mut levels: Vec<(f64, Option<&Contrast>)> =
        ranking.others.iter().map(|other| (number(&other.level), Some(other))).collect();
    levels.push((number(&ranking.best), None));
    levels.sort_by(|a, b| b.0.total_cmp(&a.0));
    let told_apart = |other: Option<&Contrast>| other.is_some_and(|other| !other.estimate.may_be_zero());
    let open = levels.iter().take_while(|(_, other)| !told_apart(*other)).last();
    let best = words(ranking.axis, &ranking.best);
    match open {
        Some((_, Some(least))) => format!(
            "From {} on, more of it changes nothing that these data can tell from the best ({best}): {}.",
            words(ranking.axis, &least.level),
            measure.with_interval(&least.estimate)
        ),
        Some((_, None)) => format!("Only {best} does as well as these data can tell: everything below it is worse."),
        None => format!("The best of what was tried is {best}, and the largest amount is worse than it."),
    }
}

/// Which parts do most of the damage, and whether parts add up to the whole.
fn worst(measure: Measure, parts: &Parts) -> String {
    let sum: f64 = parts.parts.iter().map(|(_, loss)| loss.value).sum();
    let named = |(place, loss): &(String, Estimate)| format!("{place} ({})", measure.with_interval(loss));
    let title = if parts.title.is_empty() { String::new() } else { format!("With {}: ", parts.title) };
    let all = parts.all.as_ref().map(|all| measure.change(all.value));
    let [one, many] = parts.kind.names();
    if parts.how == "only" {
        let worst = parts.parts.iter().take(WORST).map(named).collect::<Vec<_>>().join("; ");
        let sum = measure.change(sum);
        let whole = all.map_or_else(String::new, |all| format!(", and everything at once does {all}"));
        return sentence(format!(
            "{title}quantized alone, most damage of a {one} does {worst}; all {many} together, each alone, do {sum}{whole}."
        ));
    }
    let best = parts.parts.iter().rev().take(WORST).map(named).collect::<Vec<_>>().join("; ");
    let whole = all.map_or_else(String::new, |all| format!(", of {all} with nothing restored"));
    sentence(format!("{title}of {many} restored alone, most is given back by {best}: that is what remains{whole}."))
}

/// `text` with a capital letter.
fn sentence(mut text: String) -> String {
    text[..1].make_ascii_uppercase();
    text
}

/// What no other setting beats in size and loss.
fn front(results: &Results<'_>, rows: &[Row]) -> Option<String> {
    let mut front: Vec<&Row> = rows.iter().filter(|row| row.front).collect();
    front.sort_by(|a, b| a.bits_per_weight.unwrap_or(0.0).total_cmp(&b.bits_per_weight.unwrap_or(0.0)));
    let sizes = |row: &&Row| row.bits_per_weight.map(|bits| format!("{bits:.2}"));
    let distinct = crate::results::distinct(rows.iter().filter_map(|row| sizes(&row)));
    if front.is_empty() || distinct.len() < 2 {
        return None;
    }
    let axes: Vec<&str> = results.plan.varying().into_iter().filter(|axis| *axis != "seed").collect();
    let named = front.iter().take(NAMED).filter_map(|row| {
        let label = results.groups[row.group].settings.label(&axes);
        Some(format!(
            "{label} ({:.2} bits per weight, {})",
            row.bits_per_weight?,
            results.measure.change(row.mean.as_ref()?.value)
        ))
    });
    let named = named.collect::<Vec<_>>().join("; ");
    let more = front.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Some(format!("Not beaten in size and loss at once, by these figures: {named}{more}."))
}

/// For each model the configuration of least loss whose checkpoint takes at most `bytes`.
pub fn within<'a>(results: &'a Results<'_>, rows: &'a [Row], bytes: u64) -> impl Iterator<Item = String> + 'a {
    let axes: Vec<&str> = results.plan.varying().into_iter().filter(|axis| *axis != "seed").collect();
    results.models().into_iter().filter_map(move |model| {
        let settings = |row: &Row| &results.groups[row.group].settings;
        let sizes = rows.iter().filter(|row| settings(row).model == model && settings(row).part.is_none());
        let mut sizes: Vec<(u64, &Row)> = sizes.filter_map(|row| Some((row.bytes?, row))).collect();
        sizes.sort_by_key(|(size, _)| *size);
        let smallest = sizes.first()?.0;
        let loss = |row: &Row| row.mean.map_or(f64::INFINITY, |mean| mean.value);
        let fitting = sizes.iter().take_while(|(size, _)| *size <= bytes);
        Some(match fitting.min_by(|a, b| loss(a.1).total_cmp(&loss(b.1))) {
            Some((size, row)) => format!(
                "Within {}, {} loses least: {}, in {}.",
                machine::bytes(bytes),
                settings(row).label(&axes),
                row.mean.as_ref().map_or_else(String::new, |mean| results.measure.with_interval(mean)),
                machine::bytes(*size)
            ),
            None => format!(
                "Nothing measured of {model} fits into {}: the smallest checkpoint takes {}.",
                machine::bytes(bytes),
                machine::bytes(smallest)
            ),
        })
    })
}

/// What the shortcut costs, averaged over evaluations and methods.
fn shortcut(results: &Results<'_>) -> Option<String> {
    let effects: Vec<Effect> = results.shortcuts().into_iter().map(|(_, _, effect)| effect).collect();
    let estimate = Effect::average(&effects)?.estimate();
    Some(format!(
        "All of this was solved on the original model's statistics; against true sequence, measured on one configuration of \
         each method, that changes {} by {}.",
        results.measure.subject(),
        results.measure.with_interval(&estimate)
    ))
}

/// What the data can't tell; `all` holds the results of each measure.
pub fn limits(plan: &Plan, all: &[Results<'_>], comparisons: usize) -> Vec<String> {
    let mut limits = Vec::new();
    let seeds = all.iter().flat_map(|results| &results.groups).filter(|group| group.settings.calibration.is_some());
    let fewest = seeds.flat_map(|group| group.series.values().map(|series| series.seeds.len())).min();
    match fewest {
        Some(1) => limits.push(
            "There is one seed: the intervals hold for these calibration windows, and say nothing of how much others would \
             change."
                .to_owned(),
        ),
        Some(seeds) if seeds < 5 => limits.push(format!(
            "The spread between calibration samples is known from {seeds} seeds only; the intervals allow for that and are \
             wide because of it."
        )),
        _ => {}
    }
    let lines = all.iter().flat_map(|results| results.groups.iter().flat_map(|group| &group.lines));
    let windows = lines.map(|line| line.blocks.len()).min();
    if let Some(windows) = windows.filter(|windows| *windows < 20) {
        limits
            .push(format!("A text has only {windows} windows; bootstrap intervals of so few are somewhat too narrow."));
    }
    let models = crate::results::distinct(plan.cells.iter().map(|cell| cell.model.as_str()));
    if let [model] = models[..] {
        limits.push(format!("One model ({model}) was measured; another may behave otherwise."));
    }
    limits.push(measured_only(all));
    if comparisons > 20 {
        limits.push(format!(
            "The report holds {comparisons} intervals of 95 %: about {:.0} of them miss the truth by chance.",
            comparisons as f64 / 20.0
        ));
    }
    limits.extend(plan.warnings.iter().cloned());
    limits
}

/// What was measured, and that other things were not.
fn measured_only(all: &[Results<'_>]) -> String {
    let what = |results: &Results<'_>| match (results.measure, results.evaluations().len()) {
        (Measure::Task, count) => format!("{count} tasks"),
        (measure, count) => format!("{} on {count} texts", measure.name()),
    };
    let measured = all.iter().map(what).collect::<Vec<_>>().join(", ");
    let has = |measure| all.iter().any(|results| results.measure == measure);
    let tasks = if has(Measure::Task) { "other tasks" } else { "tasks" };
    let speed = if all.iter().any(|results| results.measure.is_timed()) { "" } else { " not speed," };
    format!("What was measured is {measured}; not {tasks},{speed} not other texts.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64, half: f64) -> Estimate {
        Estimate { value, interval: Some([value - half, value + half]), seeds: 3, seed_deviation: Some(0.001) }
    }

    fn contrast(level: &str, value: f64, half: f64) -> Contrast {
        let (level, reference) = (level.to_owned(), "64".to_owned());
        Contrast { axis: "samples", level, reference, estimate: estimate(value, half), pairs: 1 }
    }

    fn panel(gain: Estimate, seed_deviation: Option<f64>) -> Panel {
        Panel {
            measure: Measure::Perplexity,
            title: "2 bits".to_owned(),
            sets: Vec::new(),
            evaluations: Vec::new(),
            entries: Vec::new(),
            gains: Vec::new(),
            gain: Some(gain),
            seed_deviation,
        }
    }

    #[test]
    fn alignment_is_weighed_against_zero_and_against_the_seeds() {
        let said = |gain, deviation| alignment(&[panel(gain, deviation)]).unwrap();
        assert!(said(estimate(0.02, 0.03), Some(0.001)).ends_with("can't tell it from nothing."));
        assert!(said(estimate(0.02, 0.01), Some(0.001)).ends_with("more than that noise."));
        assert!(said(estimate(0.02, 0.01), Some(0.05)).ends_with("but no more than that noise."));
        assert!(said(estimate(-0.02, 0.01), Some(0.05)).ends_with("another domain was better."));
        assert!(said(estimate(0.02, 0.01), None).contains("the noise between samples of one source is not known"));
        assert!(said(estimate(0.02, 0.01), None).contains(" changes perplexity with 2 bits by +2.02 %"));
        assert_eq!(alignment(&[]), None);
    }

    #[test]
    fn enough_is_the_least_amount_that_cant_be_told_from_the_best() {
        let ranking = |others| Ranking { axis: "samples", best: "64".to_owned(), others };
        let text = enough(
            Measure::Perplexity,
            &ranking(vec![contrast("2", 0.2, 0.01), contrast("8", 0.1, 0.2), contrast("32", 0.01, 0.02)]),
        );
        assert!(text.starts_with("From 8 samples on"), "{text}");
        let text = enough(Measure::Perplexity, &ranking(vec![contrast("32", 0.1, 0.02)]));
        assert!(text.starts_with("Only 64 samples"), "{text}");
        let text = enough(Measure::Perplexity, &ranking(vec![contrast("128", 0.1, 0.02)]));
        assert!(text.contains("largest amount is worse"), "{text}");
    }

    #[test]
    fn what_cant_be_told_from_the_best_is_said_so() {
        let others = vec![contrast("32", 0.1, 0.02), contrast("16", 0.1, 0.2)];
        let text = best(Measure::Perplexity, &Ranking { axis: "group_size", best: "64".to_owned(), others });
        assert!(text.contains("groups of 64 does best; against it: groups of 32 +10.52 %"), "{text}");
        assert!(text.contains("not told apart from it: groups of 16"), "{text}");
    }
}
