//! From a record to the texts that a model sees, put together as lm-evaluation-harness documents it:
//!
//! ```text
//! prefix  = description + Σ over shots (context + delimiter + right choice + separator)
//! item    = for each choice: prefix + context, continued by delimiter + choice
//! ```
//!
//! Templates and expressions are minijinja's with the methods of Python's strings. A name that a record doesn't have is an
//! error. Beside the filters of Jinja there are functions: `position(list, value)`, the index of a value in a list, which is
//! also `list.index(value)`; `index_of_right(list, right)`, the same where the right one isn't a number already;
//! `definitions(code)`, the names of the functions that Python code defines at its outermost level; and
//! `clean_wikihow(text)`, what HellaSwag's texts go through: outer white space dropped, ` [title]` made `. `, other square
//! brackets dropped with what they hold, double spaces made single ones.

use super::{
    Prompt, Task,
    data::{Row, TaskData},
};
use crate::{EvaluateError, source::sha256};
use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{ValueKind, from_args},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Steps that one template or expression may take.
const FUEL: u64 = 1_000_000;

/// A choice as it is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What comes before; shared by the choices that have it in common.
    pub context: Arc<str>,
    /// What is scored: delimiter and choice.
    pub continuation: String,
    /// The choice alone, whose length normalizes.
    pub choice: String,
}

/// What stands before a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preface {
    /// What the task is about.
    pub description: String,
    /// Solved examples: question and answer.
    pub solved: Vec<[String; 2]>,
    /// All of it as one text.
    pub text: Arc<str>,
}

impl Preface {
    pub(super) fn new(description: String, solved: Vec<[String; 2]>, prompt: &Prompt) -> Self {
        let mut text = description.clone();
        text.extend(
            solved.iter().flat_map(|[question, answer]| {
                [question.as_str(), &prompt.delimiter, answer.as_str(), &prompt.separator]
            }),
        );
        Self { description, solved, text: text.into() }
    }
}

/// What is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The choice of this index.
    One(usize),
    /// For each choice, whether it is.
    Marks(Vec<bool>),
}

/// An item ready to be scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its id.
    pub id: String,
    /// Its subject.
    pub subject: Option<String>,
    /// What every context begins with.
    pub prefix: Arc<str>,
    /// Description and shots.
    pub preface: Arc<Preface>,
    /// The choices.
    pub pairs: Vec<Pair>,
    /// Which is right.
    pub answer: Answer,
}

impl Item {
    /// SHA-256 of all that is scored and after what: equal for two runs that put the same question.
    pub fn sha256(&self) -> String {
        let mut bytes = Vec::new();
        for pair in &self.pairs {
            for text in [&*pair.context, &*pair.continuation, &*pair.choice] {
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.as_bytes());
            }
        }
        bytes.extend(format!("{:?}", self.answer).into_bytes());
        sha256(bytes)
    }
}

/// A task's templates, ready to render.
pub struct Templates<'a> {
    pub(super) task: &'a Task,
    environment: Environment<'a>,
    /// The preface of each subject that was asked for.
    prefaces: HashMap<Option<String>, Arc<Preface>>,
}

impl<'a> Templates<'a> {
    /// Compiles the templates of `task`.
    pub fn new(task: &'a Task) -> Result<Self, EvaluateError> {
        let mut templates = Self { task, environment: environment(), prefaces: HashMap::new() };
        let prompt = &task.prompt;
        let context = prompt.context.iter().map(|context| ("context", context));
        let mut sources: Vec<(&str, &String)> = context.chain([("description", &prompt.description)]).collect();
        if let Some(generate) = &task.generate {
            sources.push(("answer", &generate.answer));
            let program = generate.program.iter();
            sources.extend(program.flat_map(|p| [("before", &p.before), ("given", &p.given), ("tests", &p.tests)]));
        }
        for (name, source) in sources {
            let added = templates.environment.add_template(name, source);
            added.map_err(|error| templates.wrong(&format!("`{name}`"), &error))?;
        }
        Ok(templates)
    }

    /// The item of `row`, with `shots` of the solved examples of `data` before it.
    pub fn item(&mut self, row: &Row, data: &TaskData, shots: usize) -> Result<Item, EvaluateError> {
        if !self.prefaces.contains_key(&row.subject) {
            let preface = self.preface(row, data, shots)?;
            self.prefaces.insert(row.subject.clone(), preface.into());
        }
        let preface = Arc::clone(&self.prefaces[&row.subject]);
        let prefix = Arc::clone(&preface.text);
        let question = self.question(row)?;
        let delimiter = &self.task.prompt.delimiter;
        let mut pairs: Vec<Pair> = Vec::with_capacity(question.choices.len());
        for (context, choice) in question.contexts.iter().zip(question.choices) {
            let context = match pairs.first() {
                Some(first) if *context == question.contexts[0] => Arc::clone(&first.context),
                _ => format!("{prefix}{context}").into(),
            };
            pairs.push(Pair { context, continuation: format!("{delimiter}{choice}"), choice });
        }
        Ok(Item { id: row.id(), subject: row.subject.clone(), prefix, preface, pairs, answer: question.answer })
    }

    fn preface(&self, row: &Row, data: &TaskData, shots: usize) -> Result<Preface, EvaluateError> {
        let place = format!("`prompt.description` for item {}", row.id());
        let description = self.render("description", self.values(row)?, &place)?;
        let solved = data.shots.get(&row.subject).map_or(&[][..], Vec::as_slice);
        if solved.len() < shots {
            let of = row.subject.as_ref().map_or_else(String::new, |subject| format!(" of {subject}"));
            let what = format!("{shots} shots are asked for and there are {} solved examples{of}", solved.len());
            return Err(EvaluateError::Task { task: self.task.name.clone(), what });
        }
        let solved = solved[..shots].iter().map(|shot| {
            let Question { mut contexts, mut choices, answer } = self.question(shot)?;
            let Answer::One(answer) = answer else {
                let what = "shots need one right choice: use `prompt.answer`".to_owned();
                return Err(EvaluateError::Task { task: self.task.name.clone(), what });
            };
            Ok([contexts.swap_remove(answer), choices.swap_remove(answer)])
        });
        Ok(Preface::new(description, solved.collect::<Result<_, _>>()?, &self.task.prompt))
    }

    fn question(&self, row: &Row) -> Result<Question, EvaluateError> {
        let (task, id) = (self.task, row.id());
        let prompt = &task.prompt;
        let values = self.values(row)?;
        let evaluate =
            |expression: &'a str, what: &str| self.evaluate(expression, &values, &format!("`{what}` of item {id}"));
        let choices =
            self.texts(&evaluate(&prompt.choices, "prompt.choices")?, &format!("`prompt.choices` of item {id}"))?;
        let wrong =
            |what: String| EvaluateError::Task { task: self.task.name.clone(), what: format!("item {id}: {what}") };
        if choices.is_empty() {
            return Err(wrong("there are no choices".to_owned()));
        }
        let contexts = if let Some(expression) = &prompt.contexts {
            self.texts(&evaluate(expression, "prompt.contexts")?, &format!("`prompt.contexts` of item {id}"))?
        } else {
            let context = self.render("context", values.clone(), &format!("`prompt.context` of item {id}"))?;
            vec![context; choices.len()]
        };
        if contexts.len() != choices.len() {
            return Err(wrong(format!("{} contexts for {} choices", contexts.len(), choices.len())));
        }
        let answer = match (&prompt.answer, &prompt.answers) {
            (Some(expression), _) => {
                let value = evaluate(expression, "prompt.answer")?;
                let index = value.as_usize().filter(|index| *index < choices.len());
                Answer::One(index.ok_or_else(|| {
                    wrong(format!("the answer is `{value}`, not the index of one of {} choices", choices.len()))
                })?)
            }
            (None, expression) => {
                let value = evaluate(expression.as_deref().unwrap_or_default(), "prompt.answers")?;
                let marks: Vec<bool> = value
                    .try_iter()
                    .into_iter()
                    .flatten()
                    .map(|mark| mark.as_i64() == Some(1) || is_true(&mark))
                    .collect();
                if marks.len() != choices.len() || !marks.contains(&true) {
                    return Err(wrong(format!("the answers are `{value}`, not 0 or 1 for each of the choices")));
                }
                Answer::Marks(marks)
            }
        };
        Ok(Question { contexts, choices, answer })
    }

    /// The fields of a record with those the task adds.
    pub(super) fn values(&self, row: &Row) -> Result<BTreeMap<String, Value>, EvaluateError> {
        let fields = row.record.iter().map(|(name, value)| (name.clone(), from_json(value)));
        let mut values: BTreeMap<String, Value> = fields.collect();
        if let Some(subject) = &row.subject {
            let name = self.task.names.get(subject).cloned().unwrap_or_else(|| subject.replace('_', " "));
            values.insert("subject".to_owned(), subject.clone().into());
            values.insert("subject_name".to_owned(), name.into());
        }
        let task = self.task;
        for (name, expression) in &task.fields {
            let place = format!("`fields.{name}` of item {}", row.id());
            let value = self.evaluate(expression.as_str().unwrap_or_default(), &values, &place)?;
            values.insert(name.clone(), value);
        }
        Ok(values)
    }

    pub(super) fn evaluate(
        &self,
        expression: &'a str,
        values: &BTreeMap<String, Value>,
        place: &str,
    ) -> Result<Value, EvaluateError> {
        let value = self.environment.compile_expression(expression).and_then(|compiled| compiled.eval(values));
        let value = value.map_err(|error| self.wrong(place, &error))?;
        if value.is_undefined() {
            let error = Error::new(ErrorKind::UndefinedError, "a name in it is none of the record's fields");
            return Err(self.wrong(place, &error));
        }
        Ok(value)
    }

    pub(super) fn render(
        &self,
        name: &str,
        values: BTreeMap<String, Value>,
        place: &str,
    ) -> Result<String, EvaluateError> {
        let rendered = self.environment.get_template(name).and_then(|template| template.render(values));
        rendered.map_err(|error| self.wrong(place, &error))
    }

    pub(super) fn texts(&self, value: &Value, place: &str) -> Result<Vec<String>, EvaluateError> {
        let refused = || self.wrong(place, &Error::new(ErrorKind::InvalidOperation, "is not a list of texts"));
        let values = value.try_iter().map_err(|_| refused())?;
        if value.as_str().is_some() {
            return Err(refused());
        }
        values.map(|value| value.as_str().map(str::to_owned).ok_or_else(refused)).collect()
    }

    fn wrong(&self, place: &str, error: &Error) -> EvaluateError {
        let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        EvaluateError::Task { task: self.task.name.clone(), what: format!("{place}: {detail}") }
    }
}

struct Question {
    contexts: Vec<String>,
    choices: Vec<String>,
    answer: Answer,
}

fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => (*value).into(),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(values) => values.iter().map(from_json).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), from_json(value))))
        }
    }
}

fn is_true(value: &Value) -> bool {
    bool::try_from(value.clone()).unwrap_or(false)
}

fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(|state, value, name, arguments| match (value.kind(), name) {
        (ValueKind::Seq, "index") => {
            let (wanted,): (Value,) = from_args(arguments)?;
            position(value.clone(), wanted).map(Value::from)
        }
        _ => model::chat::method(state, value, name, arguments),
    });
    environment.set_fuel(Some(FUEL));
    environment.add_function("position", position);
    environment.add_function("index_of_right", index_of_right);
    environment.add_function("definitions", definitions);
    environment.add_function("clean_wikihow", |text: &str| clean_wikihow(text));
    environment
}

#[expect(clippy::needless_pass_by_value, reason = "the form of a function's arguments")]
fn position(list: Value, wanted: Value) -> Result<usize, Error> {
    let found = list.try_iter()?.position(|value| value == wanted);
    found.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("`{wanted}` is not in {list}")))
}

/// Which of `list` is right: a number is its index, also as text, another text the choice itself.
fn index_of_right(list: Value, right: Value) -> Result<usize, Error> {
    let index = right.as_usize().or_else(|| right.as_str()?.trim().parse().ok());
    index.map_or_else(|| position(list, right), Ok)
}

fn definitions(code: &str) -> Vec<String> {
    let names = code.lines().filter_map(|line| line.strip_prefix("def ")?.split_once('('));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

fn clean_wikihow(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // A bracket closes on its own line, as `.` of a regular expression stops at a newline.
    while let Some((before, after)) = rest.split_once('[') {
        cleaned += before;
        match after.split_once(']') {
            Some((inside, behind)) if !inside.contains('\n') => rest = behind,
            _ => {
                cleaned.push('[');
                rest = after;
            }
        }
    }
    (cleaned + rest).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(subject: Option<&str>, record: serde_json::Value) -> Row {
        let serde_json::Value::Object(record) = record else { panic!("an object") };
        Row { subject: subject.map(str::to_owned), place: 7, record }
    }

    fn item(task: &str, row: &Row) -> Item {
        Templates::new(&Task::open(task).unwrap()).unwrap().item(row, &TaskData::default(), 0).unwrap()
    }

    #[test]
    fn mmlu_has_its_description_its_shots_and_a_letter_after_a_space() {
        let task = Task::open("mmlu").unwrap();
        let subject = Some("abstract_algebra");
        let hub = json!({"question": " Q2 ", "choices": ["a", "b", "c", "d"], "answer": 3});
        let shot = json!({"question": "Q1", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "B"});
        let mut data = TaskData::default();
        data.shots.insert(subject.map(str::to_owned), vec![row(subject, shot)]);
        let item = Templates::new(&task).unwrap().item(&row(subject, hub), &data, 1).unwrap();
        let expected = "The following are multiple choice questions (with answers) about abstract algebra.\n\n\
            Q1\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\nQ2\nA. a\nB. b\nC. c\nD. d\nAnswer:";
        assert_eq!(&*item.pairs[0].context, expected);
        assert!(expected.starts_with(&*item.prefix) && item.prefix.ends_with("Answer: B\n\n"));
        let continuations: Vec<&str> = item.pairs.iter().map(|pair| &*pair.continuation).collect();
        assert_eq!((continuations, item.answer), (vec![" A", " B", " C", " D"], Answer::One(3)));
        assert_eq!(item.id, "abstract_algebra/7");
        let numbered =
            json!({"question": "Q", "choice0": "a", "choice1": "b", "choice2": "c", "choice3": "d", "answer": "2"});
        assert_eq!(
            super::Templates::new(&task).unwrap().item(&row(subject, numbered), &data, 0).unwrap().answer,
            Answer::One(2)
        );
    }

    #[test]
    fn chinese_prompts_name_the_subject_in_chinese() {
        let question =
            json!({"question": "甲\n", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "D", "explanation": ""});
        let ours = item("ceval", &row(Some("computer_network"), question.clone()));
        let expected =
            "以下是中国关于计算机网络的单项选择题，请选出其中的正确答案。\n\n甲\nA. 1\nB. 2\nC. 3\nD. 4\n答案：";
        assert_eq!((&*ours.pairs[0].context, &*ours.pairs[3].continuation), (expected, " D"));
        let official = item("ceval_official", &row(Some("computer_network"), question));
        assert!(official.pairs[0].context.starts_with("以下是中国关于计算机网络考试的单项选择题"));
        assert_eq!((&*official.pairs[3].continuation, official.answer), ("D", Answer::One(3)));
        let question = json!({"": "0", "Question": "乙", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "A"});
        let ours = item("cmmlu", &row(Some("agronomy"), question));
        assert_eq!(
            &*ours.pairs[0].context,
            "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n乙\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
        );
    }

    #[test]
    fn arc_in_its_three_shapes_is_the_same_item() {
        let published = json!({"id": "x", "question": {"stem": "Why?", "choices":
            [{"text": "so", "label": "1"}, {"text": "thus", "label": "2"}]}, "answerKey": "2"});
        let hub = json!({"id": "x", "question": "Why?", "choices": {"text": ["so", "thus"], "label": ["1", "2"]}, "answerKey": "2"});
        let plain = json!({"question": "Why?", "choices": ["so", "thus"], "gold": 1});
        let items = [published, hub, plain].map(|record| item("arc_easy", &row(None, record)));
        assert_eq!(&*items[0].pairs[1].context, "Question: Why?\nAnswer:");
        assert_eq!((&*items[0].pairs[1].continuation, &*items[0].pairs[1].choice), (" thus", "thus"));
        assert!(items.iter().all(|item| item.sha256() == items[0].sha256() && item.answer == Answer::One(1)));
    }

    #[test]
    fn hellaswag_is_cleaned_and_winogrande_scores_what_follows_the_blank() {
        let published = json!({"activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he IS", "label": 3,
            "endings": ["a [title] b", "[substeps] c", "d  e", "f"]});
        let ours = item("hellaswag", &row(None, published));
        assert_eq!(&*ours.pairs[0].context, "Roof: A man sits. He is");
        let continuations: Vec<&str> = ours.pairs.iter().map(|pair| &*pair.continuation).collect();
        assert_eq!(continuations, [" a. b", "  c", " d e", " f"]);
        let record = json!({"sentence": "Ann saw Eve so _ hid.", "option1": "Ann", "option2": "Eve", "answer": "1"});
        let ours = item("winogrande", &row(None, record));
        assert_eq!(
            ours.pairs[1],
            Pair { context: "Ann saw Eve so Eve".into(), continuation: " hid.".into(), choice: "hid.".into() }
        );
        assert_eq!((&*ours.pairs[0].context, ours.answer), ("Ann saw Eve so Ann", Answer::One(0)));
    }

    #[test]
    fn piqa_lambada_and_truthfulqa() {
        let ours = item("piqa", &row(None, json!({"goal": "g", "sol1": "s ", "sol2": "t", "label": "1"})));
        assert_eq!((&*ours.pairs[0].context, &*ours.pairs[0].continuation), ("Question: g\nAnswer:", " s "));
        let ours = item("lambada", &row(None, json!({"text": "one  two\nthree four"})));
        assert_eq!((&*ours.pairs[0].context, &*ours.pairs[0].continuation), ("one  two\nthree", " four"));
        let hub = json!({"question": "Q?", "mc1_targets": {"choices": ["x", "y"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["x", "z", "y"], "labels": [1, 1, 0]}});
        let published =
            json!({"question": "Q?", "mc1_targets": {"x": 1, "y": 0}, "mc2_targets": {"x": 1, "z": 1, "y": 0}});
        for (task, answer) in
            [("truthfulqa_mc1", Answer::One(0)), ("truthfulqa_mc2", Answer::Marks(vec![true, true, false]))]
        {
            let items = [&hub, &published].map(|record| item(task, &row(None, record.clone())));
            assert_eq!(items[0], items[1]);
            assert_eq!(items[0].answer, answer);
            assert!(items[0].pairs[0].context.starts_with("Q: What is human life expectancy"));
            assert!(items[0].pairs[0].context.ends_with("in Barcelona, Spain.\n\nQ: Q?\nA:"));
        }
    }

    #[test]
    fn a_record_that_does_not_fit_is_named() {
        let task = Task::open("piqa").unwrap();
        let mut templates = Templates::new(&task).unwrap();
        let mut refused = |record| templates.item(&row(None, record), &TaskData::default(), 0).unwrap_err().to_string();
        let error = refused(json!({"goal": "g", "sol1": "s", "label": "1"}));
        assert!(error.contains("piqa") && error.contains("item 7"), "{error}");
        let error = refused(json!({"goal": "g", "sol1": "s", "sol2": "t", "label": "2"}));
        assert!(error.contains("answer is `2`"), "{error}");
        assert!(refused(json!({"goal": "g", "sol1": 3, "sol2": "t", "label": "0"})).contains("list of texts"));
        assert!(
            Templates::new(&Task::open("mmlu").unwrap())
                .unwrap()
                .item(
                    &row(
                        Some("x"),
                        json!({
            "question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "E"})
                    ),
                    &TaskData::default(),
                    1
                )
                .is_err()
        );
    }

    #[test]
    fn brackets_go_with_what_they_hold() {
        for (from, to) in [
            ("  a [title] b  ", "a. b"),
            ("[header] How [x] to", " How to"),
            ("a ] b [ c", "a ] b [ c"),
            ("a [b\nc] d", "a [b\nc] d"),
            ("    ", ""),
            ("a    b", "a  b"),
        ] {
            assert_eq!(clean_wikihow(from), to, "{from:?}");
        }
    }
}
