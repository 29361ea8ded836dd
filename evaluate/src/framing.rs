//! How a prompt is put to the model: chat template, system prompt, and the token that begins a text (BOS).
//!
//! ```text
//! plain     [system prompt] + prompt
//! template  the model's chat template over [system message], user message = prompt, up to where the answer begins
//! turns     the same over [system message = system prompt + description], for each solved example a user message and one of
//!           the assistant, user message = question
//! ```
//!
//! Without turns the user message is the whole prompt, description and shots included. After a template, choices follow
//! without their delimiter. BOS is what the tokenizer puts before a text by itself, but never a second one where the text
//! begins with it, as templates' texts do; or it is put there always, or never.

use crate::{
    EvaluateError,
    task::{
        exercise::Exercise,
        prompt::{Item, Pair, Preface},
    },
};
use model::Checkpoint;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt, sync::Arc};

/// Whether a text begins with BOS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BosRule {
    /// As the tokenizer has it, but not twice.
    #[default]
    Tokenizer,
    /// It does.
    Always,
    /// It does not, unless a template puts it there.
    Never,
}

/// How a prompt is put to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framing {
    /// Whether the model's chat template is applied.
    pub chat_template: bool,
    /// Whether each solved example is a turn of the user and one of the assistant in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub turns: bool,
    /// The system prompt.
    #[serde(rename = "system_prompt")]
    pub system: Option<String>,
    /// Whether a text begins with BOS.
    #[serde(rename = "bos_rule")]
    pub bos: BosRule,
}

impl Framing {
    /// Whether nothing is changed about a prompt.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// `prompt`, which begins with `preface`, as the model sees it.
    fn text(&self, checkpoint: &Checkpoint, prompt: &str, preface: &Preface) -> Result<String, EvaluateError> {
        if !self.chat_template {
            return Ok(format!("{}{prompt}", self.system.as_deref().unwrap_or_default()));
        }
        let template = checkpoint.chat_template.as_deref().ok_or_else(|| EvaluateError::Framing {
            model: checkpoint.reference.clone(),
            what: "it brings no chat template: `--chat-template off`".to_owned(),
        })?;
        let [bos, eos] = ends(checkpoint);
        Ok(model::chat::prompt(template, &self.messages(prompt, preface), &bos, &eos)?)
    }

    /// Who says what.
    fn messages(&self, prompt: &str, preface: &Preface) -> Vec<(String, String)> {
        let message = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        let Some(question) = prompt.strip_prefix(&*preface.text).filter(|_| self.turns) else {
            let system = self.system.iter().map(|system| message("system", system));
            return system.chain([message("user", prompt)]).collect();
        };
        let system = self.system.clone().unwrap_or_default() + &preface.description;
        let system = (!system.is_empty()).then(|| message("system", &system));
        let solved = preface
            .solved
            .iter()
            .flat_map(|[question, answer]| [message("user", question), message("assistant", answer)]);
        system.into_iter().chain(solved).chain([message("user", question)]).collect()
    }

    /// `item` as the model sees it.
    pub fn item(&self, checkpoint: &Checkpoint, item: &Item) -> Result<Item, EvaluateError> {
        if !self.chat_template && self.system.is_none() {
            return Ok(item.clone());
        }
        let mut framed: HashMap<&str, Arc<str>> = HashMap::new();
        let mut pairs = Vec::with_capacity(item.pairs.len());
        for Pair { context, continuation, choice } in &item.pairs {
            let text = match framed.get(&**context) {
                Some(text) => Arc::clone(text),
                None => self.text(checkpoint, context, &item.preface)?.into(),
            };
            framed.insert(context, Arc::clone(&text));
            let continuation = if self.chat_template { choice } else { continuation };
            pairs.push(Pair { context: text, continuation: continuation.clone(), choice: choice.clone() });
        }
        // What all items of a subject begin with is longer by what the template puts before it.
        let first = pairs.first().map(|pair| &*pair.context).unwrap_or_default();
        let shared = if self.turns {
            let question =
                item.pairs.first().and_then(|pair| pair.context.strip_prefix(&*item.prefix)).unwrap_or_default();
            first.rfind(question.trim()).map_or("", |at| &first[..at])
        } else {
            first.find(&*item.prefix).map_or("", |at| &first[..at + item.prefix.len()])
        };
        let shared = if pairs.iter().all(|pair| pair.context.starts_with(shared)) { shared } else { "" };
        let (prefix, id, subject) = (shared.into(), item.id.clone(), item.subject.clone());
        Ok(Item { id, subject, prefix, preface: Arc::clone(&item.preface), pairs, answer: item.answer.clone() })
    }

    /// `exercise` as the model sees it.
    pub fn exercise(&self, checkpoint: &Checkpoint, exercise: &Exercise) -> Result<Exercise, EvaluateError> {
        Ok(Exercise { prompt: self.text(checkpoint, &exercise.prompt, &exercise.preface)?, ..exercise.clone() })
    }
}

/// The texts of BOS and EOS; nothing where the model has none.
pub(crate) fn ends(checkpoint: &Checkpoint) -> [String; 2] {
    let config = &checkpoint.config;
    [config.bos_token, config.eos_tokens.first().copied()]
        .map(|token| token.and_then(|token| checkpoint.tokenizer.id_to_token(token)).unwrap_or_default())
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let applied = match (self.chat_template, self.turns) {
            (false, _) => "not applied",
            (true, false) => "applied",
            (true, true) => "applied, solved examples as turns",
        };
        match &self.system {
            Some(system) => write!(f, "chat template {applied}; system prompt {system:?}"),
            None => write!(f, "chat template {applied}; no system prompt of ours"),
        }
    }
}
