//! The answer in a text that a model wrote, and whether it is the right one.
//!
//! ```text
//! strict     the first match's first group
//! flexible   the last match's first group that took part
//! equal      after dropping `,`, `$`, everything up to the last `#### ` and a final `.`, ignoring case
//! numeric    the same, compared as numbers where both are some
//! ```
//!
//! The first two and their comparison are lm-evaluation-harness's for GSM8K; where nothing is found its answer is
//! `[invalid]`. It misses `$29.00` for 29, which `numeric` finds.

use crate::task::{Generate, Metric, harness::Pipeline};
use fancy_regex::Regex;
use std::collections::BTreeMap;

const NOTHING: &str = "[invalid]";

/// What a task's expressions find.
pub struct Extractor {
    strict: Option<Regex>,
    flexible: Option<Regex>,
    pipelines: BTreeMap<Metric, Pipeline>,
}

impl Extractor {
    /// With the expressions of a task, which were found to be sound when it was read.
    pub fn new(generate: &Generate) -> Self {
        let compile = |expression: &Option<String>| expression.as_deref().and_then(|text| Regex::new(text).ok());
        let pipelines = generate.pipelines.clone();
        Self { strict: compile(&generate.strict), flexible: compile(&generate.flexible), pipelines }
    }

    /// What `metric` takes for the answer in `text`.
    pub fn find(&self, metric: Metric, text: &str) -> String {
        let found = match metric {
            Metric::ExactMatchStrict => self.strict.as_ref().and_then(|strict| first(strict, text)),
            _ => self.flexible.as_ref().and_then(|flexible| last(flexible, text)),
        };
        found.unwrap_or_else(|| NOTHING.to_owned())
    }

    /// Whether `metric` takes `text` to give the answer `right`.
    pub fn is_right(&self, metric: Metric, text: &str, right: &str) -> bool {
        if let Some(pipeline) = self.pipelines.get(&metric) {
            return pipeline.agree(text, right);
        }
        let (found, right) = (bare(&self.find(metric, text)), bare(right));
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
        match (metric, number(&found), number(&right)) {
            (Metric::ExactMatchNumeric, Some(found), Some(right)) => found == right,
            _ => found == right,
        }
    }
}

fn first(expression: &Regex, text: &str) -> Option<String> {
    let captures = expression.captures(text).ok()??;
    Some(captures.get(1)?.as_str().trim().to_owned())
}

fn last(expression: &Regex, text: &str) -> Option<String> {
    // A match that takes too many steps ends the search: what was found before it stands.
    let captures = expression.captures_iter(text).map_while(Result::ok).last()?;
    let group = captures.iter().skip(1).flatten().find(|group| !group.as_str().is_empty())?;
    Some(group.as_str().trim().to_owned())
}

fn bare(answer: &str) -> String {
    let answer = answer.rsplit_once("#### ").map_or(answer, |(_, answer)| answer);
    let answer = answer.replace([',', '$'], "").to_lowercase();
    answer.strip_suffix('.').map(str::to_owned).unwrap_or(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;

    #[test]
    fn gsm8k_s_three_ways_of_reading_an_answer() {
        let task = Task::open("gsm8k").unwrap();
        let extractor = Extractor::new(task.generate.as_ref().unwrap());
        let right = "He has 3 + 26 = <<3+26=29>>29 left.\n#### 29";
        let judged = |text: &str| {
            [Metric::ExactMatchStrict, Metric::ExactMatchFlexible, Metric::ExactMatchNumeric]
                .map(|metric| extractor.is_right(metric, text, right))
        };
        assert_eq!(judged(" 3 + 26 = 29\n#### 29"), [true, true, true]);
        assert_eq!(judged(" so he has 29."), [false, true, true]);
        assert_eq!(judged(" so he pays $29.00."), [false, false, true]);
        assert_eq!(judged("#### 29\n#### 30"), [true, false, false]);
        assert_eq!(judged("#### 1,029"), [false, false, false]);
        assert_eq!(judged("no idea"), [false, false, false]);
        assert!(extractor.is_right(Metric::ExactMatchStrict, "#### 1,029", "#### 1029"));
        assert_eq!(extractor.find(Metric::ExactMatchFlexible, ""), NOTHING);
    }
}
