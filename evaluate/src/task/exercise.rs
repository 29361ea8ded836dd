//! From a record to a text that the model goes on from, and to what judges what it writes.
//!
//! ```text
//! prompt = description + Σ over shots (context + delimiter + answer + separator) + context
//! ```

use super::{
    Draw,
    data::{Row, TaskData},
    prompt::{Preface, Templates},
};
use crate::{EvaluateError, instructions::Instruction, python_random::PythonRandom, sandbox::Trial, source::sha256};
use serde_json::{Map, Value};

/// The seed that lm-evaluation-harness draws solved examples with.
const SEED: u32 = 1234;

/// An item that the model answers by writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exercise {
    /// Its id.
    pub id: String,
    /// Its subject.
    pub subject: Option<String>,
    /// What the model goes on from.
    pub prompt: String,
    /// Description and shots, which it begins with.
    pub preface: Preface,
    /// The right answer as the set gives it.
    pub answer: String,
    /// Where the model writes a program: its tests, and what stands before it.
    pub trial: Option<Trial>,
    /// What the text has to follow.
    pub instructions: Vec<Instruction>,
}

impl Exercise {
    /// SHA-256 of the prompt and of all that judges the answer.
    pub fn sha256(&self) -> String {
        let judged = (&self.prompt, &self.answer, &self.trial);
        if self.instructions.is_empty() {
            return sha256(format!("{judged:?}"));
        }
        sha256(format!("{judged:?}{:?}", self.instructions))
    }
}

/// The solved examples of each of the rows of `data`, in their order; what `--limit` draws changes none of them.
pub fn shots(data: &TaskData, draw: Draw, count: usize) -> Result<Vec<Vec<&Row>>, String> {
    let mut random = PythonRandom::seed(SEED);
    let of = |row: &Row| {
        let solved = data.shots.get(&row.subject).map_or(&[][..], Vec::as_slice);
        if solved.len() < count {
            return Err(format!("{count} shots are asked for and there are {} solved examples", solved.len()));
        }
        Ok(match draw {
            Draw::First => solved[..count].iter().collect(),
            Draw::Random => {
                random.sample(solved.len() as u32, count).into_iter().map(|at| &solved[at as usize]).collect()
            }
        })
    };
    data.rows.iter().map(of).collect()
}

impl Templates<'_> {
    /// The exercise of `row` after the solved examples `shots`.
    pub fn exercise(&self, row: &Row, shots: &[&Row]) -> Result<Exercise, EvaluateError> {
        let (task, id) = (self.task, row.id());
        let values = self.values(row)?;
        let render =
            |name: &str, row: &Row| self.render(name, self.values(row)?, &format!("`{name}` of item {}", row.id()));
        let solved = shots.iter().map(|shot| Ok([render("context", shot)?, render("answer", shot)?]));
        let solved = solved.collect::<Result<_, EvaluateError>>()?;
        let preface = Preface::new(render("description", row)?, solved, &task.prompt);
        let prompt = format!("{}{}", preface.text, render("context", row)?);
        let program = task.generate.as_ref().and_then(|generate| generate.program.as_ref());
        let trial = program.map(|program| -> Result<Trial, EvaluateError> {
            let theirs = match &program.theirs {
                Some(expression) => {
                    let place = format!("`generate.program.theirs` of item {id}");
                    self.texts(&self.evaluate(expression, &values, &place)?, &place)?
                }
                None => Vec::new(),
            };
            Ok(Trial {
                solution: render("before", row)?,
                given: render("given", row)?,
                theirs,
                tests: render("tests", row)?,
            })
        });
        let answer = render("answer", row)?;
        let instructions = self.instructions(row)?;
        let (subject, trial) = (row.subject.clone(), trial.transpose()?);
        Ok(Exercise { id, subject, prompt, preface, answer, trial, instructions })
    }

    /// The instructions of `row`, each found to be one that can be checked.
    fn instructions(&self, row: &Row) -> Result<Vec<Instruction>, EvaluateError> {
        let Some(given) = self.task.generate.as_ref().and_then(|generate| generate.instructions.as_ref()) else {
            return Ok(Vec::new());
        };
        let wrong = |what: String| {
            let what = format!("item {}: {what}", row.id());
            EvaluateError::Task { task: self.task.name.clone(), what }
        };
        let field = |name: &str| row.record.get(name).cloned().ok_or_else(|| wrong(format!("there is no `{name}`")));
        let ids: Vec<String> = serde_json::from_value(field(&given.ids)?)
            .map_err(|error| wrong(format!("`{}` is no list of texts: {error}", given.ids)))?;
        let arguments: Vec<Map<String, Value>> = serde_json::from_value(field(&given.arguments)?)
            .map_err(|error| wrong(format!("`{}` is no list of maps: {error}", given.arguments)))?;
        if ids.len() != arguments.len() || ids.is_empty() {
            return Err(wrong(format!("{} instructions and what {} ask for", ids.len(), arguments.len())));
        }
        let both = ids.into_iter().zip(arguments).map(|(id, arguments)| {
            let instruction = Instruction { id, arguments };
            instruction.check().map(|_| instruction).map_err(wrong)
        });
        both.collect()
    }
}
