//! Tasks written for lm-evaluation-harness: YAML with Jinja templates.
//!
//! | key | becomes |
//! |---|---|
//! | `task` | the name |
//! | `dataset_path`, `dataset_name`, `dataset_kwargs.data_files` | where data is looked for: `name/config/split*` under a data folder, or the files |
//! | `test_split`, else `validation_split` | the items |
//! | `fewshot_split`, else `training_split`, `validation_split`, `test_split` | the solved examples |
//! | `num_fewshot`, `fewshot_config.sampler` (`default`, `first_n`), `.samples` | shots, drawn anew for each item or the first |
//! | `description`, `doc_to_text`, `target_delimiter`, `fewshot_delimiter` | the prompt |
//! | `output_type: multiple_choice` with `doc_to_choice`, `doc_to_target` | choices and the right one: its index, or its text |
//! | `output_type: loglikelihood` with `doc_to_target` | a single choice |
//! | `output_type: generate_until` with `doc_to_target`, `generation_kwargs` | what the model writes (`until`, `max_gen_toks`) |
//! | `filter_list` | steps from what it wrote to its answer: `regex`, `take_first`, `remove_whitespace`, `lowercase`, `uppercase` |
//! | `metric_list` | `acc`, `acc_norm`, `acc_bytes`, `perplexity`, `exact_match` with `ignore_case`, `ignore_punctuation`, `regexes_to_ignore` |
//!
//! `tag`, `group`, `task_alias`, `metadata`, `should_decontaminate` and `doc_to_decontamination_query` say nothing about a
//! score and are passed over. Any other key, value or function is an error by name, `!function` among them: such a task
//! needs a TOML file. A pipeline called `strict-match` gives `exact_match_strict`, one called `flexible-extract`
//! `exact_match_flexible`, any other `exact_match`.

mod pipeline;

pub use pipeline::Pipeline;

use super::{Data, Draw, Generate, Metric, Prompt, Task};
use fancy_regex::Regex;
use pipeline::Step;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What lm-evaluation-harness lets a model write unless told otherwise.
const LONGEST: usize = 256;
const NOTHING: &str = "[invalid]";

/// The file, key by key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    task: String,
    dataset_path: Option<String>,
    dataset_name: Option<String>,
    #[serde(default)]
    dataset_kwargs: BTreeMap<String, Value>,
    output_type: Option<String>,
    training_split: Option<String>,
    validation_split: Option<String>,
    test_split: Option<String>,
    fewshot_split: Option<String>,
    fewshot_config: Option<FewShot>,
    num_fewshot: Option<usize>,
    #[serde(default)]
    description: String,
    doc_to_text: Value,
    doc_to_target: Value,
    doc_to_choice: Option<Value>,
    target_delimiter: Option<String>,
    fewshot_delimiter: Option<String>,
    #[serde(default)]
    generation_kwargs: BTreeMap<String, Value>,
    #[serde(default)]
    filter_list: Vec<Filters>,
    #[serde(default)]
    metric_list: Vec<BTreeMap<String, Value>>,
    repeats: Option<usize>,
    #[serde(rename = "tag")]
    _tag: Option<Value>,
    #[serde(rename = "group")]
    _group: Option<Value>,
    #[serde(rename = "task_alias")]
    _alias: Option<Value>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "should_decontaminate")]
    _decontaminate: Option<Value>,
    #[serde(rename = "doc_to_decontamination_query")]
    _query: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FewShot {
    sampler: Option<String>,
    split: Option<String>,
    #[serde(default)]
    samples: Vec<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filters {
    name: String,
    filter: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    function: String,
    regex_pattern: Option<String>,
    group_select: Option<i64>,
    fallback: Option<String>,
}

/// The task of a file; what is wrong with it is a sentence.
pub fn task(text: &str) -> Result<Task, String> {
    if let Some((number, line)) = text.lines().enumerate().find(|(_, line)| line.contains("!function")) {
        return Err(format!(
            "line {}: `{}` calls Python, which can't be done here: write the task as TOML",
            number + 1,
            line.trim()
        ));
    }
    let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if file.repeats.is_some_and(|repeats| repeats != 1) {
        return Err("`repeats` other than 1 is not supported: `--samples-per-task`".to_owned());
    }
    let data = file.data()?;
    let (prompt, generate) = match file.output_type.as_deref().unwrap_or("generate_until") {
        "multiple_choice" => (file.choices()?, None),
        "loglikelihood" => (file.single()?, None),
        "generate_until" => (file.prompt()?, Some(file.generate()?)),
        other => return Err(format!("`output_type: {other}` is not supported")),
    };
    let metrics = match &generate {
        Some(generate) => generate.pipelines.keys().copied().collect(),
        None => file.metrics()?,
    };
    Ok(Task {
        name: file.task.clone(),
        about: "a task of lm-evaluation-harness's kind".to_owned(),
        prompt_source: "a YAML file for lm-evaluation-harness".to_owned(),
        capability: None,
        items: None,
        shots: file.num_fewshot.unwrap_or(0),
        metrics,
        data,
        fields: toml::Table::new(),
        prompt,
        generate,
        names: BTreeMap::new(),
        categories: BTreeMap::new(),
        folder: None,
    })
}

impl File {
    fn data(&self) -> Result<Data, String> {
        let test = self.test_split.as_ref().or(self.validation_split.as_ref());
        let test = test.ok_or("`test_split` is missing, and there is no `validation_split`")?;
        let (config, samples) = match &self.fewshot_config {
            Some(config) => (config.split.as_ref(), config.samples.clone()),
            None => (None, Vec::new()),
        };
        let splits =
            [config, self.fewshot_split.as_ref(), self.training_split.as_ref(), self.validation_split.as_ref()];
        let shots = splits.into_iter().flatten().next().unwrap_or(test);
        let sampler = self.fewshot_config.as_ref().and_then(|config| config.sampler.as_deref());
        let draw = match sampler {
            None | Some("default") if samples.is_empty() => Draw::Random,
            None | Some("default" | "first_n") => Draw::First,
            Some(other) => return Err(format!("`fewshot_config.sampler: {other}` is not supported")),
        };
        let (test, shots) = (self.files(test)?, self.files(shots)?);
        Ok(Data { test, shots, examples: samples, draw, columns: Vec::new(), lines: Vec::new(), labels: None })
    }

    /// Patterns of the files of a split.
    fn files(&self, split: &str) -> Result<Vec<String>, String> {
        let path = self.dataset_path.as_deref().ok_or("`dataset_path` is missing")?;
        if let Some(key) = self.dataset_kwargs.keys().find(|key| *key != "data_files") {
            return Err(format!("`dataset_kwargs.{key}` is not supported"));
        }
        if let Some(files) = self.dataset_kwargs.get("data_files") {
            let of_split = if files.is_object() { files.get(split) } else { Some(files) };
            let listed = match of_split {
                Some(Value::String(file)) => Some(vec![file.clone()]),
                Some(Value::Array(files)) => files.iter().map(|file| file.as_str().map(str::to_owned)).collect(),
                _ => None,
            };
            return listed.ok_or_else(|| format!("`dataset_kwargs.data_files` names no file of the split `{split}`"));
        }
        if [".json", ".jsonl", ".ndjson", ".csv", ".parquet"].iter().any(|ending| path.ends_with(ending)) {
            return Ok(vec![path.to_owned()]);
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let folders = match self.dataset_name.as_deref() {
            Some(config) => vec![format!("{name}/{config}"), format!("{name}/data/{config}"), name.to_owned()],
            None => vec![name.to_owned(), format!("{name}/data"), format!("{name}/default"), format!("{name}/main")],
        };
        let endings = ["-*.parquet", ".parquet", ".jsonl", ".jsonl.*", ".json", ".csv", ".csv.*"];
        Ok(folders.iter().flat_map(|folder| endings.map(|ending| format!("{folder}/{split}{ending}"))).collect())
    }

    fn prompt(&self) -> Result<Prompt, String> {
        Ok(Prompt {
            description: self.description.clone(),
            context: Some(template("doc_to_text", &self.doc_to_text)?),
            contexts: None,
            choices: String::new(),
            answer: None,
            answers: None,
            delimiter: self.target_delimiter.clone().unwrap_or_else(super::space),
            separator: self.fewshot_delimiter.clone().unwrap_or_else(super::blank_line),
        })
    }

    fn choices(&self) -> Result<Prompt, String> {
        let choices = self.doc_to_choice.as_ref().ok_or("`doc_to_choice` is missing")?;
        let choices = match choices {
            Value::Array(texts) if texts.iter().all(Value::is_string) => choices.to_string(),
            Value::String(text) => expression("doc_to_choice", text)?,
            _ => return Err("`doc_to_choice` is neither a template nor a list of texts".to_owned()),
        };
        let target = match &self.doc_to_target {
            Value::Number(index) => index.to_string(),
            Value::String(text) => expression("doc_to_target", text)?,
            _ => return Err("`doc_to_target` is neither a template nor an index".to_owned()),
        };
        Ok(Prompt { answer: Some(format!("index_of_right({choices}, {target})")), choices, ..self.prompt()? })
    }

    fn single(&self) -> Result<Prompt, String> {
        let Value::String(text) = &self.doc_to_target else { return Err("`doc_to_target` is no template".to_owned()) };
        let choices = format!("[{}]", expression("doc_to_target", text)?);
        Ok(Prompt { choices, answer: Some("0".to_owned()), ..self.prompt()? })
    }

    fn generate(&self) -> Result<Generate, String> {
        let (mut longest, mut stops) = (LONGEST, None);
        for (key, value) in &self.generation_kwargs {
            let wrong = || format!("`generation_kwargs.{key}: {value}` is not supported");
            match key.as_str() {
                "max_gen_toks" | "max_new_tokens" | "max_tokens" => {
                    longest = value.as_u64().ok_or_else(wrong)? as usize;
                }
                "until" => {
                    let list = match value {
                        Value::String(stop) => vec![stop.clone()],
                        other => serde_json::from_value(other.clone()).map_err(|_| wrong())?,
                    };
                    stops = Some(list);
                }
                "do_sample" if *value == Value::Bool(false) => {}
                "temperature" if value.as_f64() == Some(0.0) => {}
                "do_sample" | "temperature" | "top_p" => return Err(format!("{}: give `--temperature`", wrong())),
                _ => return Err(wrong()),
            }
        }
        let stops = stops.unwrap_or_else(|| vec![self.fewshot_delimiter.clone().unwrap_or_else(super::blank_line)]);
        let answer = template("doc_to_target", &self.doc_to_target)?;
        let pipelines = self.pipelines()?;
        Ok(Generate {
            answer,
            longest,
            stops,
            strict: None,
            flexible: None,
            pipelines,
            program: None,
            instructions: None,
        })
    }

    fn pipelines(&self) -> Result<BTreeMap<Metric, Pipeline>, String> {
        let mut plain = Pipeline::default();
        for metric in &self.metric_list {
            for (key, value) in metric {
                let unsupported = || format!("`metric_list`: `{key}: {value}` is not supported for generated text");
                match (key.as_str(), value) {
                    ("metric", Value::String(name)) if name == "exact_match" => {}
                    ("aggregation", Value::String(how)) if how == "mean" => {}
                    ("higher_is_better", Value::Bool(true)) => {}
                    ("ignore_case", Value::Bool(on)) => plain.any_case = *on,
                    ("ignore_punctuation", Value::Bool(on)) => plain.without_punctuation = *on,
                    ("regexes_to_ignore", Value::Array(list)) => {
                        let compile = |text: &Value| regex(text.as_str().ok_or_else(unsupported)?);
                        plain.ignored = list.iter().map(compile).collect::<Result<_, _>>()?;
                    }
                    _ => return Err(unsupported()),
                }
            }
        }
        if self.filter_list.is_empty() {
            return Ok(BTreeMap::from([(Metric::ExactMatch, plain)]));
        }
        let mut pipelines = BTreeMap::new();
        for Filters { name, filter } in &self.filter_list {
            let metric = match name.as_str() {
                "strict-match" => Metric::ExactMatchStrict,
                "flexible-extract" => Metric::ExactMatchFlexible,
                _ => Metric::ExactMatch,
            };
            let steps = filter.iter().filter_map(|filter| filter.step().transpose()).collect::<Result<_, _>>()?;
            if pipelines.insert(metric, Pipeline { steps, ..plain.clone() }).is_some() {
                return Err(format!(
                    "`filter_list`: `{name}` would be `{metric}` a second time: at most one besides \
                    `strict-match` and `flexible-extract` is supported"
                ));
            }
        }
        Ok(pipelines)
    }

    fn metrics(&self) -> Result<Vec<Metric>, String> {
        if !self.filter_list.is_empty() {
            return Err("`filter_list` is about generated text".to_owned());
        }
        let single = self.output_type.as_deref() == Some("loglikelihood");
        let mut metrics = Vec::new();
        for metric in &self.metric_list {
            if let Some((key, value)) = metric.iter().find(|(key, value)| match key.as_str() {
                "metric" => false,
                "aggregation" => ![Some("mean"), Some("perplexity")].contains(&value.as_str()),
                "higher_is_better" => !value.is_boolean(),
                _ => true,
            }) {
                return Err(format!("`metric_list`: `{key}: {value}` is not supported"));
            }
            metrics.push(match (metric.get("metric").and_then(Value::as_str), single) {
                (Some("acc"), false) => Metric::Acc,
                (Some("acc"), true) => Metric::AccGreedy,
                (Some("acc_norm"), false) => Metric::AccNorm,
                (Some("acc_bytes"), false) => Metric::AccBytes,
                (Some("perplexity"), true) => Metric::Perplexity,
                (other, _) => {
                    return Err(format!("`metric_list`: `metric: {}` is not supported", other.unwrap_or("?")));
                }
            });
        }
        if metrics.is_empty() {
            metrics =
                if single { vec![Metric::AccGreedy, Metric::Perplexity] } else { vec![Metric::Acc, Metric::AccNorm] };
        }
        Ok(metrics)
    }
}

impl Filter {
    /// The step, or none where it changes nothing.
    fn step(&self) -> Result<Option<Step>, String> {
        Ok(Some(match self.function.as_str() {
            "regex" => {
                let pattern = regex(self.regex_pattern.as_deref().unwrap_or(r"#### (\-?[0-9\.\,]+)"))?;
                let last = match self.group_select {
                    None | Some(0) => false,
                    Some(-1) => true,
                    Some(other) => return Err(format!("`group_select: {other}` is not supported, only 0 and -1")),
                };
                Step::Find { pattern, last, fallback: self.fallback.clone().unwrap_or_else(|| NOTHING.to_owned()) }
            }
            "remove_whitespace" => Step::RemoveWhitespace,
            "lowercase" => Step::Lowercase,
            "uppercase" => Step::Uppercase,
            "take_first" => return Ok(None),
            other => return Err(format!("`filter_list`: the function `{other}` is not supported")),
        }))
    }
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("`{text}`: {error}"))
}

/// Whether a text without templates is the name of a field.
fn is_field(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !text.starts_with(|c: char| c.is_numeric())
}

fn template(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) if is_field(text) => Ok(format!("{{{{ {text} }}}}")),
        Value::String(text) => Ok(text.clone()),
        _ => Err(format!("`{key}` is no template")),
    }
}

/// The expression that a field's name is, or a template that holds one alone; a text joined from pieces otherwise.
fn expression(key: &str, text: &str) -> Result<String, String> {
    if is_field(text) {
        return Ok(text.to_owned());
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("{{") {
        let unclosed = || format!("`{key}`: a `{{{{` is not closed");
        let (inside, behind) = behind.split_once("}}").ok_or_else(unclosed)?;
        parts.extend((!before.is_empty()).then(|| Value::from(before).to_string()));
        parts.push(format!("({})", inside.trim_matches(['-', ' '])));
        rest = behind;
    }
    parts.extend((!rest.is_empty()).then(|| Value::from(rest).to_string()));
    if text.contains("{%") {
        return Err(format!("`{key}`: statements are not supported in it, only expressions"));
    }
    Ok(parts.join(" ~ "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{
        data::{Row, TaskData},
        prompt::{Answer, Templates},
    };
    use serde_json::json;

    fn row(record: Value) -> Row {
        let Value::Object(record) = record else { panic!("an object") };
        Row { subject: None, place: 0, record }
    }

    const ARC: &str = r#"
tag:
  - ai2_arc
task: arc_mine
dataset_path: allenai/ai2_arc
dataset_name: ARC-Easy
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
should_decontaminate: true
doc_to_decontamination_query: "Question: {{question}}\nAnswer:"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"#;

    #[test]
    fn a_multiple_choice_task_is_the_built_in_one() {
        let mine = task(ARC).unwrap();
        mine.check().unwrap();
        let built_in = Task::open("arc_easy").unwrap();
        let record =
            json!({"question": "Why?", "choices": {"text": ["so", "thus"], "label": ["1", "2"]}, "answerKey": "2"});
        let item =
            |task: &Task| Templates::new(task).unwrap().item(&row(record.clone()), &TaskData::default(), 0).unwrap();
        assert_eq!(item(&mine), item(&built_in));
        assert_eq!(
            (mine.metrics, mine.data.test[0].as_str()),
            (vec![Metric::Acc, Metric::AccNorm], "ai2_arc/ARC-Easy/test-*.parquet")
        );
    }

    #[test]
    fn targets_are_indices_or_texts_and_choices_lists_or_expressions() {
        let asked = |target: &str, choices: &str, record: Value| {
            let text = format!(
                "task: t\ndataset_path: org/t\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: q\n\
                 doc_to_target: {target}\ndoc_to_choice: {choices}\n"
            );
            let task = task(&text).unwrap();
            let item = Templates::new(&task)
                .unwrap()
                .item(&row(record), &TaskData::default(), 0)
                .map_err(|e| e.to_string())?;
            let choices: Vec<String> = item.pairs.iter().map(|pair| pair.choice.clone()).collect();
            let Answer::One(answer) = item.answer else { panic!("one") };
            Ok::<_, String>((choices.join("|"), answer))
        };
        assert_eq!(asked("label", "[nay, aye]", json!({"q": "q", "label": 1})).unwrap(), ("nay|aye".into(), 1));
        let letters = "[\"A\", \"B\"]";
        assert_eq!(asked("key", letters, json!({"q": "", "key": "B"})).unwrap(), ("A|B".into(), 1));
        assert_eq!(asked("key", letters, json!({"q": "", "key": "1"})).unwrap(), ("A|B".into(), 1));
        assert_eq!(asked("0", "\"{{[a, b]}}\"", json!({"q": "", "a": "x", "b": "y"})).unwrap(), ("x|y".into(), 0));
        assert_eq!(asked("\"{{answer - 1}}\"", letters, json!({"q": "", "answer": 2})).unwrap().1, 1);
        assert!(asked("key", letters, json!({"q": "", "key": "C"})).unwrap_err().contains("not in"));
    }

    const GSM: &str = r#####"
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {train: sums/train.jsonl, test: sums/test.jsonl}
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{answer}}"
num_fewshot: 5
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]
generation_kwargs:
  until: ["Question:", "</s>"]
  do_sample: false
  temperature: 0.0
filter_list:
  - name: strict-match
    filter:
      - function: regex
        regex_pattern: "#### (\\-?[0-9\\.\\,]+)"
      - function: take_first
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"
      - function: take_first
"#####;

    #[test]
    fn a_generated_answer_is_found_as_the_built_in_task_finds_it() {
        let mine = task(GSM).unwrap();
        mine.check().unwrap();
        let generate = mine.generate.as_ref().unwrap();
        assert_eq!((generate.longest, generate.stops.len(), mine.shots, mine.data.draw), (256, 2, 5, Draw::Random));
        assert_eq!(
            (mine.data.test, mine.data.shots),
            (vec!["sums/test.jsonl".into()], vec!["sums/train.jsonl".into()])
        );
        let built_in = Task::open("gsm8k").unwrap();
        let [ours, theirs] = [generate, built_in.generate.as_ref().unwrap()].map(crate::answer::Extractor::new);
        let right = "2 + 2\n#### 1,004";
        for text in ["#### 1004", "#### 1,004.", "so 1004.", "$1004", "#### 3\n1004", "none", "", "#### 5 #### 1004"] {
            for metric in [Metric::ExactMatchStrict, Metric::ExactMatchFlexible] {
                assert_eq!(
                    ours.is_right(metric, text, right),
                    theirs.is_right(metric, text, right),
                    "{metric} {text:?}"
                );
            }
        }
        assert!(ours.is_right(Metric::ExactMatchStrict, "#### 1004", right));
    }

    #[test]
    fn what_is_not_supported_is_an_error_by_name() {
        let refused = |from: &str, to: &str| {
            assert!(GSM.contains(from), "{from}");
            task(&GSM.replacen(from, to, 1)).unwrap_err()
        };
        assert!(refused("task: sums", "task: sums\nprocess_docs: x").contains("process_docs"));
        assert!(refused("doc_to_target: \"{{answer}}\"", "doc_to_target: !function utils.f").contains("!function"));
        assert!(refused("generate_until", "loglikelihood_rolling").contains("loglikelihood_rolling"));
        assert!(refused("exact_match", "bleu").contains("bleu"));
        assert!(refused("function: regex", "function: majority_vote").contains("majority_vote"));
        assert!(refused("ignore_case: true", "ignore_numbers: true").contains("ignore_numbers"));
        assert!(refused("do_sample: false", "do_sample: true").contains("do_sample"));
        assert!(refused("temperature: 0.0", "min_p: 0.1").contains("min_p"));
        assert!(refused("num_fewshot: 5", "num_fewshot: 5\nrepeats: 3").contains("repeats"));
        assert!(refused("test_split: test", "").contains("test_split"));
        assert!(refused("group_select: -1", "group_select: 2").contains("group_select: 2"));
        assert!(refused("(-?[$0-9", "((-?[$0-9").contains("(-?[$0-9"));
        assert!(refused("name: strict-match", "name: flexible-extract").contains("flexible-extract"));
        assert!(task("task: [").is_err() && task("").is_err());
    }

    #[test]
    fn a_word_to_predict_is_a_single_choice() {
        let text = "task: last\ndataset_path: org/last\ntest_split: test\noutput_type: loglikelihood\n\
            doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\ndoc_to_target: \"{{' '+text.split(' ')[-1]}}\"\n\
            target_delimiter: \"\"\n";
        let task = task(text).unwrap();
        let mut templates = Templates::new(&task).unwrap();
        let item = templates.item(&row(json!({"text": "a b c"})), &TaskData::default(), 0).unwrap();
        assert_eq!((&*item.pairs[0].context, item.pairs[0].continuation.as_str()), ("a b", " c"));
        assert_eq!(task.metrics, [Metric::AccGreedy, Metric::Perplexity]);
    }
}
