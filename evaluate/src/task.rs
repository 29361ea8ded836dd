//! A benchmark task as a file: where its data lies, how an item becomes a prompt, how it is scored.
//!
//! The built-in tasks are such files (`evaluate/tasks/*.toml`), and a user's own is read the same way. Keys that mean
//! nothing here are errors by name.
//!
//! ```toml
//! name = "capitals"                              # what --tasks and records call it
//! about = "European capitals"                    # one line for `evaluate tasks`
//! capability = "knowledge"                       # what it asks of a model, see [`Capability`] (optional)
//! prompt_source = "our own"                      # whose prompt it is
//! items = 40                                     # how many the published set has (optional)
//! shots = 0                                      # solved examples before each question, the first of their file
//! metrics = ["acc", "acc_norm"]                  # the first decides what counts as correct
//!
//! [data]
//! test = ["capitals/test.jsonl"]                 # under --data; the first pattern that finds files; {subject}, * and ?
//! shots = ["capitals/dev.jsonl"]
//!
//! [fields]                                       # further fields, as expressions over those of the record
//! wrong = "[other1, other2]"
//!
//! [prompt]
//! context = "What is the capital of {{ country }}?"
//! choices = "[capital] + wrong"                  # an expression: a list of texts
//! answer = "0"                                   # an expression: the index of the right choice
//! ```
//!
//! A task in which the model writes has `[generate]` in place of choices and answer:
//!
//! ```toml
//! [generate]
//! answer = "{{ answer }}"                        # a template: the right answer, as a solved example shows it
//! longest = 256                                  # the most tokens the model may write
//! stops = ["Question:"]                          # texts that end what it writes; they are cut off
//! strict = '#### (-?[0-9.,]+)'                   # exact_match_strict: the first match
//! flexible = '(-?[$0-9.,]{2,})|(-?[0-9]+)'       # exact_match_flexible, exact_match_numeric: the last match
//!
//! [generate.program]                             # pass_at_1: what it writes is a Python program that tests judge
//! before = "{{ prompt }}"                        # a template: what stands before it in the program
//! given = "import math"                          # a template: what the tests may use beside it
//! theirs = "[entry_point]"                       # an expression: names that are the program's whoever defines them
//! tests = "assert {{ entry_point }}(1) == 2"     # a template
//!
//! [generate.instructions]                        # prompt_level_…, inst_level_…: what it writes is checked by a program
//! ids = "instruction_id_list"                    # the field with the instructions, such as `keywords:existence`
//! arguments = "kwargs"                           # the field with what each asks for
//! ```
//!
//! A YAML file written for lm-evaluation-harness is read too: [`harness`] says which of its keys.
//!
//! `[data]` also takes `draw = "random"` (solved examples are drawn anew for each item, as lm-evaluation-harness does), `examples` (solved examples in the task's
//! own file, as a list of records), `columns` (names of a CSV file without a first row of names), `lines` (names of the lines that make
//! a record of a text file) and `labels` (a file of one label a line, which become the field `label`); `[prompt]` also
//! `description` (before the shots), `contexts` in place of `context` (an expression: one context a choice), `answers` in
//! place of `answer` (an expression: 0 or 1 a choice), `delimiter` (between context and choice, a space) and `separator`
//! (between shots, a blank line). `[names]` gives subjects a name for prompts (`subject_name`; else the subject's with
//! spaces for underscores), `[categories]` lists the subjects of each category.

pub mod data;
pub mod exercise;
pub mod harness;
mod metric;
pub mod prompt;

pub use metric::Metric;

use crate::{EvaluateError, capability::Capability};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A task.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What `--tasks` and records call it.
    pub name: String,
    /// What it is, in a line.
    pub about: String,
    /// What it asks of a model.
    pub capability: Option<Capability>,
    /// Whose prompt it is.
    pub prompt_source: String,
    /// Items of the published set.
    pub items: Option<usize>,
    /// Solved examples before each question.
    #[serde(default)]
    pub shots: usize,
    /// What is computed; the first decides what counts as correct.
    pub metrics: Vec<Metric>,
    /// Where the data lies.
    pub data: Data,
    /// Further fields of a record, as expressions, in order.
    #[serde(default)]
    pub fields: toml::Table,
    /// How a record becomes a prompt.
    pub prompt: Prompt,
    /// What the model writes, where it is not to choose.
    pub generate: Option<Generate>,
    /// Names of subjects for prompts.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// The subjects of each category.
    #[serde(default)]
    pub categories: BTreeMap<String, Vec<String>>,
    /// The folder that its file is in, where it isn't built in.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

/// Where a task's data lies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Patterns of the files with the items.
    pub test: Vec<String>,
    /// Patterns of the files with the solved examples.
    #[serde(default)]
    pub shots: Vec<String>,
    /// Solved examples that come with the task.
    #[serde(default)]
    pub examples: Vec<toml::Table>,
    /// Which of the solved examples an item gets.
    #[serde(default)]
    pub draw: Draw,
    /// Names of the columns of a CSV file without a first row of names.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Names of the lines that make a record of a text file.
    #[serde(default)]
    pub lines: Vec<String>,
    /// A file of one label a line for the items.
    pub labels: Option<String>,
}

/// How a record becomes a prompt: templates, and expressions where said so.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Before the shots.
    #[serde(default)]
    pub description: String,
    /// The question.
    pub context: Option<String>,
    /// An expression: one context a choice.
    pub contexts: Option<String>,
    /// An expression: the texts to choose from.
    #[serde(default)]
    pub choices: String,
    /// An expression: the index of the right choice.
    pub answer: Option<String>,
    /// An expression: for each choice, whether it is right.
    pub answers: Option<String>,
    /// Between context and choice.
    #[serde(default = "space")]
    pub delimiter: String,
    /// Between shots.
    #[serde(default = "blank_line")]
    pub separator: String,
}

/// Which solved examples stand before an item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// The first of their file.
    #[default]
    First,
    /// Drawn anew for each item, by Python's `random.Random(1234).sample` in the order of all items.
    Random,
}

/// What the model writes and how it is judged.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// A template: the right answer, as a solved example shows it.
    pub answer: String,
    /// The most tokens it may write.
    pub longest: usize,
    /// Texts that end what it writes.
    #[serde(default)]
    pub stops: Vec<String>,
    /// A regular expression: the first match's first group is the answer.
    pub strict: Option<String>,
    /// A regular expression: the last match's first group that took part is the answer.
    pub flexible: Option<String>,
    /// Steps from the text to the answer, in place of the two expressions.
    #[serde(skip)]
    pub pipelines: BTreeMap<Metric, harness::Pipeline>,
    /// Where it writes a program.
    pub program: Option<Program>,
    /// Where what it writes has to follow instructions.
    pub instructions: Option<Instructions>,
}

/// Which instructions a text has to follow.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instructions {
    /// The field with the list of their ids.
    pub ids: String,
    /// The field with, for each, a map of what it asks for.
    pub arguments: String,
}

/// How a generated program is tested.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// A template: what stands before what the model writes.
    #[serde(default)]
    pub before: String,
    /// A template: what the tests may use beside the program.
    #[serde(default)]
    pub given: String,
    /// An expression: names that are the program's whoever else defines them.
    pub theirs: Option<String>,
    /// A template.
    pub tests: String,
}

fn space() -> String {
    " ".to_owned()
}

fn blank_line() -> String {
    "\n\n".to_owned()
}

/// The built-in tasks' files.
const BUILT_IN: &[(&str, &str)] = &[
    ("mmlu", include_str!("../tasks/mmlu.toml")),
    ("ceval", include_str!("../tasks/ceval.toml")),
    ("ceval_official", include_str!("../tasks/ceval_official.toml")),
    ("cmmlu", include_str!("../tasks/cmmlu.toml")),
    ("arc_easy", include_str!("../tasks/arc_easy.toml")),
    ("arc_challenge", include_str!("../tasks/arc_challenge.toml")),
    ("hellaswag", include_str!("../tasks/hellaswag.toml")),
    ("piqa", include_str!("../tasks/piqa.toml")),
    ("winogrande", include_str!("../tasks/winogrande.toml")),
    ("lambada", include_str!("../tasks/lambada.toml")),
    ("gsm8k", include_str!("../tasks/gsm8k.toml")),
    ("ifeval", include_str!("../tasks/ifeval.toml")),
    ("humaneval", include_str!("../tasks/humaneval.toml")),
    ("mbpp", include_str!("../tasks/mbpp.toml")),
    ("truthfulqa_mc1", include_str!("../tasks/truthfulqa_mc1.toml")),
    ("truthfulqa_mc2", include_str!("../tasks/truthfulqa_mc2.toml")),
];

impl Task {
    /// Every built-in task.
    pub fn built_in() -> Result<Vec<Self>, EvaluateError> {
        BUILT_IN.iter().map(|(name, text)| Self::parse(&format!("{name}.toml"), text)).collect()
    }

    /// The built-in task called `name`, or the one in the file `name`, which then ends in `.toml`, or in `.yaml` where it is
    /// written for lm-evaluation-harness.
    pub fn open(name: &str) -> Result<Self, EvaluateError> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, text);
        }
        let wrong = |what: String| EvaluateError::Task { task: name.to_owned(), what };
        let ending = Path::new(name).extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if !["toml", "yaml", "yml"].contains(&ending.as_str()) {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let what = format!("there is no such task; there are {}, or give a .toml or .yaml file", names.join(", "));
            return Err(wrong(what));
        }
        let text = fs::read_to_string(name).map_err(|error| wrong(error.to_string()))?;
        let mut task = if ending == "toml" {
            Self::parse(name, &text)?
        } else {
            let task = harness::task(&text).map_err(&wrong)?;
            task.check().map_err(wrong)?;
            task
        };
        task.folder = Path::new(name).parent().map(Path::to_path_buf);
        Ok(task)
    }

    fn parse(name: &str, text: &str) -> Result<Self, EvaluateError> {
        let wrong = |what: String| EvaluateError::Task { task: name.to_owned(), what };
        let task: Self = toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        task.check().map_err(wrong)?;
        Ok(task)
    }

    fn check(&self) -> Result<(), String> {
        let sound = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
        if !sound(&self.name) || self.name.starts_with('.') {
            return Err(format!("`name` is `{}`: letters, digits, `_`, `-` and `.` make a name", self.name));
        }
        match &self.generate {
            Some(generate) => self.check_generate(generate)?,
            None => self.check_choices()?,
        }
        if self.data.test.is_empty() {
            return Err("`data.test` names no file".to_owned());
        }
        match self.fields.iter().find(|(_, expression)| !expression.is_str()) {
            Some((name, _)) => Err(format!("`fields.{name}` is not an expression in quotes")),
            None => Ok(()),
        }
    }

    fn check_generate(&self, generate: &Generate) -> Result<(), String> {
        let prompt = &self.prompt;
        let chooses = [&prompt.contexts, &prompt.answer, &prompt.answers].iter().any(|given| given.is_some());
        if chooses || !prompt.choices.is_empty() || prompt.context.is_none() {
            return Err("with `[generate]` the prompt has a `context`, and neither choices nor an answer".to_owned());
        }
        let needs = |metric: &Metric| match metric {
            metric if generate.pipelines.contains_key(metric) => Some(("", true)),
            Metric::ExactMatch => Some(("filter_list", false)),
            Metric::ExactMatchStrict => Some(("generate.strict", generate.strict.is_some())),
            Metric::ExactMatchFlexible | Metric::ExactMatchNumeric => {
                Some(("generate.flexible", generate.flexible.is_some()))
            }
            Metric::PassAt1 => Some(("generate.program", generate.program.is_some())),
            metric if metric.is_of_instructions() => Some(("generate.instructions", generate.instructions.is_some())),
            _ => None,
        };
        for metric in &self.metrics {
            match needs(metric) {
                None if metric.is_of_text() => {
                    return Err(format!(
                        "the metric `{metric}` comes with `pass_at_1` where several programs are written"
                    ));
                }
                None => return Err(format!("the metric `{metric}` needs choices, and `[generate]` has none")),
                Some((what, false)) => return Err(format!("the metric `{metric}` needs `{what}`")),
                Some(_) => {}
            }
        }
        for expression in [&generate.strict, &generate.flexible].into_iter().flatten() {
            fancy_regex::Regex::new(expression).map_err(|error| format!("`{expression}`: {error}"))?;
        }
        if self.metrics.is_empty() { Err("`metrics` names none".to_owned()) } else { Ok(()) }
    }

    fn check_choices(&self) -> Result<(), String> {
        let prompt = &self.prompt;
        if prompt.choices.is_empty() {
            return Err("`prompt.choices` is missing, and there is no `[generate]`".to_owned());
        }
        if prompt.context.is_some() == prompt.contexts.is_some() {
            return Err("give one of `prompt.context` and `prompt.contexts`".to_owned());
        }
        if prompt.answer.is_some() == prompt.answers.is_some() {
            return Err("give one of `prompt.answer` and `prompt.answers`".to_owned());
        }
        let primary = self.metrics.first().ok_or("`metrics` names none")?;
        let marked = self.metrics.iter().filter(|metric| **metric == Metric::Mc2).count();
        if marked != if prompt.answers.is_some() { self.metrics.len() } else { 0 } {
            return Err(format!("`prompt.answers` goes with the metric `mc2` and with no other, not with `{primary}`"));
        }
        match self.metrics.iter().find(|metric| metric.is_of_text()) {
            Some(metric) => Err(format!("the metric `{metric}` needs `[generate]`")),
            None => Ok(()),
        }
    }

    /// The metric that decides what counts as correct.
    pub fn primary(&self) -> Metric {
        self.metrics[0]
    }

    /// The category of `subject`.
    pub fn category(&self, subject: &str) -> Option<&str> {
        let holds = |(_, subjects): &(&String, &Vec<String>)| subjects.iter().any(|listed| listed == subject);
        self.categories.iter().find(holds).map(|(category, _)| category.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_tasks_are_sound_and_called_as_their_files() {
        let tasks = Task::built_in().unwrap();
        for (task, (name, _)) in tasks.iter().zip(BUILT_IN) {
            assert_eq!(task.name, *name);
        }
        let counts = |name: &str| {
            let task = tasks.iter().find(|task| task.name == name).unwrap();
            task.categories.values().map(Vec::len).collect::<Vec<_>>()
        };
        // humanities, other, social sciences, stem; and C-Eval's four in the order of their names.
        assert_eq!(counts("mmlu"), [13, 13, 12, 19]);
        assert_eq!(counts("ceval"), [11, 11, 10, 20]);
        assert_eq!(tasks.iter().find(|task| task.name == "cmmlu").unwrap().names.len(), 67);
    }

    const SOUND: &str = "name = 't'\nabout = ''\nprompt_source = ''\nmetrics = ['acc']\n[data]\ntest = ['t.jsonl']\n\
        [prompt]\ncontext = ''\nchoices = '[]'\nanswer = '0'\n";

    #[test]
    fn what_a_file_may_not_hold_is_an_error_by_name() {
        assert!(Task::parse("t", SOUND).is_ok());
        let refused = |from: &str, to: &str| {
            assert!(SOUND.contains(from));
            Task::parse("t.toml", &SOUND.replace(from, to)).unwrap_err().to_string()
        };
        assert!(refused("context = ''", "context = ''\ndoc_to_text = ''").contains("doc_to_text"));
        assert!(refused("['acc']", "['accuracy']").contains("accuracy"));
        assert!(refused("['acc']", "[]").contains("metrics"));
        assert!(refused("answer = '0'", "answer = '0'\nanswers = '[0]'").contains("one of"));
        assert!(refused("answer =", "answers =").contains("mc2"));
        assert!(refused("context = ''", "contexts = ''\ncontext = ''").contains("one of"));
        assert!(refused("'t'", "'../t'").contains("name"));
        assert!(refused("[prompt]", "[fields]\nx = 3\n[prompt]").contains("fields.x"));
    }

    #[test]
    fn unknown_tasks_are_answered_with_those_there_are() {
        let error = Task::open("arc").unwrap_err().to_string();
        assert!(error.contains("arc_easy") && error.contains(".toml"), "{error}");
        assert!(Task::open("no/such/file.toml").is_err());
    }
}
