//! `study init` on a terminal: what it asks.

use crate::cli::{Template, named};
use clap::ValueEnum;
use dialoguer::{Input, Select};
use std::io::{IsTerminal, stderr, stdin};
use study::init::Changes;

/// Whether somebody is there to answer.
pub(crate) fn possible() -> bool {
    stdin().is_terminal() && stderr().is_terminal()
}

/// The question, the model and the texts.
pub(crate) fn study() -> dialoguer::Result<(Template, Changes)> {
    let templates = Template::value_variants();
    let described = |template: &Template| {
        let value = template.to_possible_value().expect("no template is hidden");
        format!("{:22} {}", value.get_name(), value.get_help().map(ToString::to_string).unwrap_or_default())
    };
    let items: Vec<String> = templates.iter().map(described).collect();
    let chosen = Select::new().with_prompt("Which question?").items(&items).default(0).interact()?;
    let model: String = Input::new()
        .with_prompt("Which model? A folder, a GGUF file, org/name on the hub")
        .default("demo".to_owned())
        .interact_text()?;
    let calibration = pairs("A calibration set, NAME=SOURCE (nothing ends the list; none keeps the template's)")?;
    let evaluation = pairs("A text to evaluate on, NAME=TEXT (likewise)")?;
    Ok((templates[chosen], Changes { settings: vec![("model", vec![model])], calibration, evaluation }))
}

fn pairs(prompt: &str) -> dialoguer::Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    loop {
        let sound = |text: &String| if text.is_empty() { Ok(()) } else { named(text).map(drop) };
        let text: String = Input::new().with_prompt(prompt).allow_empty(true).validate_with(sound).interact_text()?;
        match named(&text) {
            Ok(pair) => pairs.push(pair),
            Err(_) => return Ok(pairs),
        }
    }
}
