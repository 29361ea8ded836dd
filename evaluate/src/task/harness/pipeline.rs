//! What `filter_list` and `metric_list` make of the text that a model wrote.

use fancy_regex::Regex;

/// From what a model wrote to its answer, and how that is compared.
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    pub(super) steps: Vec<Step>,
    pub(super) ignored: Vec<Regex>,
    pub(super) any_case: bool,
    pub(super) without_punctuation: bool,
}

/// One of its steps.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The first match, or the last; of several groups the first that is not empty.
    Find {
        pattern: Regex,
        last: bool,
        fallback: String,
    },
    RemoveWhitespace,
    Lowercase,
    Uppercase,
}

impl Pipeline {
    /// Whether what is found in `text` is `right`.
    pub fn agree(&self, text: &str, right: &str) -> bool {
        let found = self.steps.iter().fold(text.to_owned(), |text, step| step.apply(&text));
        self.normal(&found) == self.normal(right)
    }

    fn normal(&self, text: &str) -> String {
        let mut text =
            self.ignored.iter().fold(text.to_owned(), |text, ignored| ignored.replace_all(&text, "").into_owned());
        if self.any_case {
            text = text.to_lowercase();
        }
        if self.without_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        text
    }
}

impl Step {
    fn apply(&self, text: &str) -> String {
        match self {
            Self::Find { pattern, last, fallback } => {
                let mut all = pattern.captures_iter(text).map_while(Result::ok);
                let captures = if *last { all.last() } else { all.next() };
                let group = captures.and_then(|captures| {
                    let mut groups = captures.iter().skip(usize::from(captures.len() > 1)).flatten();
                    Some(groups.find(|group| !group.as_str().is_empty())?.as_str().trim().to_owned())
                });
                group.unwrap_or_else(|| fallback.clone())
            }
            Self::RemoveWhitespace => text.trim_start().to_owned(),
            Self::Lowercase => text.to_lowercase(),
            Self::Uppercase => text.to_uppercase(),
        }
    }
}
