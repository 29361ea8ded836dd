//! A study file made of a template and of what its user says: comments stay, the grid and the texts change.

use crate::{StudyFile, settings::combinations};
use toml_edit::{Array, DocumentMut, Item, Table, Value};

/// What is to differ from the template; what is empty stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Values of settings, by their key in the file.
    pub settings: Vec<(&'static str, Vec<String>)>,
    /// Calibration sets: a name and a source. The same name again adds a source to a mixture.
    pub calibration: Vec<(String, String)>,
    /// Evaluations: a name and a text.
    pub evaluation: Vec<(String, String)>,
}

impl Changes {
    /// Whether the template stays as it is.
    pub fn is_empty(&self) -> bool {
        self.settings.iter().all(|(_, values)| values.is_empty())
            && self.calibration.is_empty()
            && self.evaluation.is_empty()
    }
}

/// `template` with `changes`.
///
/// # Errors
/// What comes of it is no study: there is no such method, say.
pub fn fill(template: &str, changes: &Changes) -> Result<String, String> {
    let mut document: DocumentMut = template.parse().expect("a template that comes with the program");
    for (key, values) in &changes.settings {
        set(&mut document, key, values);
    }
    calibrate(&mut document, &changes.calibration);
    evaluate(&mut document, &changes.evaluation);
    let text = document.to_string();
    let file = StudyFile::parse(&text)?;
    let sound = || combinations(&file)?.distinct.iter().try_for_each(|one| one.options(&file, Vec::new()).map(drop));
    sound().map_err(|error| error.to_string())?;
    Ok(text)
}

/// Puts one value, or a list that is crossed, in the place of the setting `key`; a comment behind it stays.
fn set(document: &mut DocumentMut, key: &str, values: &[String]) {
    let value = match values {
        [] => return,
        [one] => number_or_text(one),
        several => Value::Array(several.iter().map(|value| number_or_text(value)).collect::<Array>()),
    };
    let settings = document["settings"].or_insert(Item::Table(Table::new()));
    match settings[key].as_value_mut() {
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => settings[key] = Item::Value(value),
    }
}

fn number_or_text(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| text.into(), Into::into)
}

/// Replaces the calibration sets; they are cut as the template's first one is, and crossed if there are several.
fn calibrate(document: &mut DocumentMut, sources: &[(String, String)]) {
    let Some(old) = document["calibration"].as_table().filter(|_| !sources.is_empty()) else { return };
    let pattern = old.iter().find_map(|(_, set)| set.as_table()).cloned().unwrap_or_default();
    let (mut sets, mut names) = (tables_as(old), Vec::new());
    for (name, source) in sources {
        if let Some(known) = sets.get_mut(name).and_then(|set| set["sources"].as_array_mut()) {
            known.push(source);
            continue;
        }
        let mut set = plain(&pattern);
        set["sources"] = Item::Value(Value::Array([source].into_iter().collect()));
        sets.insert(name, Item::Table(set));
        names.push(name.clone());
    }
    document["calibration"] = Item::Table(sets);
    set(document, "calibration", &names);
}

/// Replaces the evaluations that read texts: each text is measured in all the ways in which the template's first is.
fn evaluate(document: &mut DocumentMut, texts: &[(String, String)]) {
    let Some(old) = document["evaluation"].as_table().filter(|_| !texts.is_empty()) else { return };
    let text_of = |table: &Table| table.get("text").map(ToString::to_string);
    let measures: Vec<(&str, &Table)> = old.iter().filter_map(|(key, item)| Some((key, item.as_table()?))).collect();
    let Some((first, first_text)) = measures.iter().find_map(|(key, table)| Some((*key, text_of(table)?))) else {
        return;
    };
    let mut evaluations = tables_as(old);
    for (key, table) in measures.iter().filter(|(_, table)| text_of(table).is_none()) {
        evaluations.insert(key, Item::Table((*table).clone()));
    }
    for (name, text) in texts {
        for (key, pattern) in measures.iter().filter(|(_, table)| text_of(table).as_ref() == Some(&first_text)) {
            let mut evaluation = plain(pattern);
            evaluation["text"] = Item::Value(text.into());
            let key = key.strip_prefix(first).map_or_else(|| format!("{name}-{key}"), |rest| format!("{name}{rest}"));
            if key != *name {
                evaluation["domain"] = Item::Value(name.into());
            }
            evaluations.insert(&key, Item::Table(evaluation));
        }
    }
    document["evaluation"] = Item::Table(evaluations);
}

/// A table of tables, empty, in the place of `old`.
fn tables_as(old: &Table) -> Table {
    let mut tables = Table::new();
    tables.set_implicit(true);
    tables.set_position(old.position());
    tables
}

/// A copy that is set where its parent is, behind an empty line.
fn plain(pattern: &Table) -> Table {
    let mut table = pattern.clone();
    table.set_position(None);
    table.decor_mut().set_prefix("\n");
    table.decor_mut().set_suffix("");
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = include_str!("../examples/calibration-alignment.toml");
    const FORMATS: &str = include_str!("../examples/formats.toml");
    const CAPABILITY: &str = include_str!("../examples/capability.toml");

    fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn values(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn without_wishes_nothing_changes() {
        assert!(Changes::default().is_empty());
        assert_eq!(fill(TEMPLATE, &Changes::default()).unwrap(), TEMPLATE);
    }

    #[test]
    fn settings_change_and_comments_stay() {
        let settings =
            vec![("model", values(&["m.gguf"])), ("bits", values(&["8", "4"])), ("act-order", values(&["none"]))];
        let text = fill(TEMPLATE, &Changes { settings, ..Changes::default() }).unwrap();
        assert!(text.contains("model = \"m.gguf\"                  # or a Hugging Face folder"), "{text}");
        assert!(text.contains("bits = [8, 4]\n") && text.contains("act-order = \"none\"\n"), "{text}");
        assert!(text.contains("[calibration.random]            # the control"), "{text}");
    }

    #[test]
    fn texts_take_the_places_of_the_templates() {
        let calibration = named(&[("law", "law.txt"), ("both", "law.txt=2"), ("both", "tax.txt")]);
        let evaluation = named(&[("law", "law-heldout.txt"), ("tax", "tax-heldout.txt")]);
        let text = fill(TEMPLATE, &Changes { calibration, evaluation, ..Changes::default() }).unwrap();
        let file = StudyFile::parse(&text).unwrap();
        assert_eq!(file.calibration.keys().collect::<Vec<_>>(), ["both", "law"]);
        assert_eq!(file.calibration["both"].sources, ["law.txt=2", "tax.txt"]);
        assert_eq!(file.evaluation.keys().collect::<Vec<_>>(), ["law", "tax"]);
        assert!(text.contains("calibration = [\"law\", \"both\"]"), "{text}");
        assert!(text.contains("\n[calibration.law]\nsources = [\"law.txt\"]\nsamples = 32\n"), "{text}");
        assert!(!text.contains("heldout\"\n") && text.contains("# Bounds that"), "{text}");
    }

    #[test]
    fn a_text_is_measured_as_the_first_one_was_and_tasks_stay() {
        let evaluation = named(&[("law", "law.txt")]);
        let file = |template| {
            let text = fill(template, &Changes { evaluation: evaluation.clone(), ..Changes::default() }).unwrap();
            StudyFile::parse(&text).unwrap().evaluation.keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(file(FORMATS), ["law", "law-divergence"]);
        assert_eq!(file(CAPABILITY), ["commonsense", "knowledge", "law", "science"]);
    }

    #[test]
    fn what_is_no_study_is_refused() {
        for (key, value) in [("bits", "many"), ("method", "magic"), ("act-order", "any")] {
            let settings = vec![(key, values(&[value]))];
            let error = fill(TEMPLATE, &Changes { settings, ..Changes::default() }).unwrap_err();
            assert!(error.contains(value), "{error}");
        }
    }
}
