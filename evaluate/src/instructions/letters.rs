//! Capitals, small letters, commas.
//!
//! Texts that should be English are given to the language detector in small letters: capitals mislead it.

use super::{Arguments, Check, language, words};

/// The check called `name`.
pub fn check(name: &str, arguments: Arguments<'_>) -> Result<Option<Check>, String> {
    Ok(Some(match name {
        "english_capital" => Box::new(|text| words::is_upper(text) && language::is(&text.to_lowercase(), "en")),
        "english_lowercase" => Box::new(|text| words::is_lower(text) && language::is(text, "en")),
        "capital_word_frequency" => {
            let fits = arguments.comparison("capital_relation", "capital_frequency")?;
            Box::new(move |text| fits(words::capital_words(text)))
        }
        "no_comma" => Box::new(|text| !text.contains(',')),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::holds;
    use serde_json::json;

    const ENGLISH: &str = "the quick brown fox jumps over the lazy dog and runs into the forest";
    const GERMAN: &str = "der schnelle braune fuchs springt über den faulen hund und läuft in den wald hinein";

    #[test]
    fn english_capital() {
        let (english, german) = (ENGLISH.to_uppercase(), GERMAN.to_uppercase());
        let texts = [english.as_str(), &german, ENGLISH, "THE quick BROWN FOX", "123"];
        assert_eq!(holds("change_case:english_capital", json!({}), texts), [true, false, false, false, false]);
    }

    #[test]
    fn english_lowercase() {
        let titled = ENGLISH.replacen('t', "T", 1);
        let texts = [ENGLISH, GERMAN, &titled, "123"];
        assert_eq!(holds("change_case:english_lowercase", json!({}), texts), [true, false, false, false]);
    }

    #[test]
    fn capital_word_frequency() {
        let asked = |relation: &str| json!({"capital_relation": relation, "capital_frequency": 2});
        let texts = ["NASA", "NASA and ESA", "Nasa and Esa", "A B C"];
        assert_eq!(holds("change_case:capital_word_frequency", asked("at least"), texts), [false, true, false, true]);
        assert_eq!(holds("change_case:capital_word_frequency", asked("less than"), texts), [true, false, true, false]);
    }

    #[test]
    fn no_comma() {
        assert_eq!(holds("punctuation:no_comma", json!({}), ["a b", "a, b", "甲，乙"]), [true, false, true]);
    }
}
