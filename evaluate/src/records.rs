//! Records: what a model did with each item, as JSON lines, from which runs are compared without running again.
//!
//! | key | what |
//! |---|---|
//! | `schema` | 1 |
//! | `task`, `id` | the item; ids are unique in a task and don't depend on `--limit` |
//! | `subject`, `category` | where the task has them |
//! | `capability` | what the task asks of a model, where its file says so |
//! | `prompt_sha256` | hash of contexts, continuations and answer: runs are compared on equal ones only |
//! | `metric` | the task's first metric, which `prediction` and `correct` go by |
//! | `answer`, `prediction` | index of the right choice and of the picked one; null where there is none |
//! | `correct` | true or false; null where the metric is a share |
//! | `log_probabilities` | of each choice, in nats |
//! | `greedy`, `tokens` | of each choice: whether greedy decoding gives it, and its tokens |
//! | `response`, `verdict` | what the model wrote, and what its tests said; left out where it chooses |
//! | `samples` | where several answers were drawn: each with `response` and `verdict`, in place of those two |
//! | `instructions` | where instructions are to be followed: each `id` with `strict` and `loose` |
//! | `framing` | `chat_template`, `turns` where they are, `system_prompt`, `bos_rule`: how the prompt was put to the model; left out where plainly |
//! | `metrics` | the item's value of every metric; of `perplexity` its log-likelihood |

use crate::{EvaluateError, capability::Capability, framing::Framing, instructions::Followed, task::Metric};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

/// The version of the schema.
pub const SCHEMA: u32 = 1;

/// One item of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The task.
    pub task: String,
    /// The item.
    pub id: String,
    /// Its subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// What the task asks of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Capability>,
    /// Hash of all that was put to the model.
    pub prompt_sha256: String,
    /// What `prediction` and `correct` go by.
    pub metric: Metric,
    /// The right choice.
    pub answer: Option<usize>,
    /// The picked choice.
    pub prediction: Option<usize>,
    /// Whether the item was answered rightly.
    pub correct: Option<bool>,
    /// Of each choice.
    pub log_probabilities: Vec<f64>,
    /// Of each choice.
    pub greedy: Vec<bool>,
    /// Of each choice.
    pub tokens: Vec<usize>,
    /// What the model wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// What became of the program it wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Every answer, where several were drawn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// The instructions to be followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instructions: Vec<Followed>,
    /// How the prompt was put to the model.
    #[serde(default, skip_serializing_if = "Framing::is_plain")]
    pub framing: Framing,
    /// The value of every metric.
    pub metrics: BTreeMap<Metric, f64>,
}

/// One of several answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What the model wrote.
    pub response: String,
    /// What became of the program it wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
}

/// The verdict on a program that took too long.
pub const TIMED_OUT: &str = "timed out";

impl Record {
    /// What the item weighs in the mean of `metric`.
    pub fn weight(&self, metric: Metric) -> f64 {
        if metric.weighs_instructions() { self.instructions.len() as f64 } else { 1.0 }
    }

    /// Verdicts on the programs written.
    pub fn verdicts(&self) -> impl Iterator<Item = &str> {
        let samples = self.samples.iter().filter_map(|sample| sample.verdict.as_deref());
        self.verdict.as_deref().into_iter().chain(samples)
    }
}

/// The records of a run, by task.
pub type Run = BTreeMap<String, Vec<Record>>;

/// `records` as JSON lines.
pub fn to_json_lines(records: &[Record]) -> Result<Vec<u8>, EvaluateError> {
    let mut lines = Vec::new();
    for record in records {
        let written = serde_json::to_writer(&mut lines, record);
        written.map_err(|error| wrong(Path::new(&record.task), error.to_string()))?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Reads a file of records, or every `.jsonl` file of a folder.
pub fn read(reference: &str) -> Result<Run, EvaluateError> {
    let path = Path::new(reference);
    let mut run = Run::new();
    for file in files(path)? {
        let text = fs::read_to_string(&file).map_err(|error| wrong(&file, error.to_string()))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let record: Record = serde_json::from_str(line)
                .map_err(|error| wrong(&file, format!("line {} is not a record: {error}", number + 1)))?;
            if record.schema != SCHEMA {
                let what = format!("line {} has schema {}, and this is schema {SCHEMA}", number + 1, record.schema);
                return Err(wrong(&file, what));
            }
            run.entry(record.task.clone()).or_default().push(record);
        }
    }
    for (task, records) in &run {
        let mut seen = HashSet::new();
        if let Some(twice) = records.iter().find(|record| !seen.insert(&record.id)) {
            return Err(wrong(
                path,
                format!("item {} of {task} is there twice: records of one run are wanted", twice.id),
            ));
        }
    }
    Ok(run)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, EvaluateError> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).map_err(|error| wrong(path, error.to_string()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.is_file() && path.extension().is_some_and(|extension| extension == "jsonl")).collect();
    files.sort();
    if files.is_empty() {
        return Err(wrong(path, "there are no records (`*.jsonl`) in it: `--records` writes them".to_owned()));
    }
    Ok(files)
}

fn wrong(path: &Path, what: String) -> EvaluateError {
    EvaluateError::Records { file: path.display().to_string(), what }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of a two-choice item.
    pub(crate) fn record(id: &str, subject: Option<&str>, correct: bool) -> Record {
        Record {
            schema: SCHEMA,
            task: "t".into(),
            id: id.into(),
            subject: subject.map(str::to_owned),
            category: None,
            capability: None,
            prompt_sha256: format!("hash of {id}"),
            metric: Metric::Acc,
            answer: Some(0),
            prediction: Some(usize::from(!correct)),
            correct: Some(correct),
            log_probabilities: vec![-1.25, -0.1],
            greedy: vec![false, true],
            tokens: vec![1, 2],
            response: None,
            verdict: None,
            samples: Vec::new(),
            instructions: Vec::new(),
            framing: Framing::default(),
            metrics: BTreeMap::from([(Metric::Acc, f64::from(u8::from(correct)))]),
        }
    }

    #[test]
    fn records_are_read_as_they_were_written_and_their_keys_are_stable() {
        let folder = tempfile::tempdir().unwrap();
        let records = vec![record("a", Some("s"), true), record("b", None, false)];
        let lines = to_json_lines(&records).unwrap();
        let first = String::from_utf8(lines.clone()).unwrap().lines().next().unwrap().to_owned();
        assert_eq!(
            first,
            r#"{"schema":1,"task":"t","id":"a","subject":"s","prompt_sha256":"hash of a","metric":"acc","answer":0,"prediction":0,"correct":true,"log_probabilities":[-1.25,-0.1],"greedy":[false,true],"tokens":[1,2],"metrics":{"acc":1.0}}"#
        );
        fs::write(folder.path().join("t.jsonl"), lines).unwrap();
        assert_eq!(read(folder.path().to_str().unwrap()).unwrap()["t"], records);
    }

    #[test]
    fn what_is_no_record_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        let refused = |content: &str| {
            fs::write(&path, content).unwrap();
            read(path.to_str().unwrap()).unwrap_err().to_string()
        };
        assert!(refused("{}").contains("line 1"));
        let line = String::from_utf8(to_json_lines(&[record("a", None, true)]).unwrap()).unwrap();
        assert!(refused(&line.repeat(2)).contains("twice"));
        assert!(refused(&line.replace("\"schema\":1", "\"schema\":2")).contains("schema 2"));
        let empty = tempfile::tempdir().unwrap();
        assert!(read(empty.path().to_str().unwrap()).unwrap_err().to_string().contains("no records"));
    }
}
