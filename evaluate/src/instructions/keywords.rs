//! Words and letters that have to be there, so often, or not at all.
//!
//! Words are found anywhere, inside longer ones too, but for forbidden ones, which count as whole words only. Case never
//! matters.

use super::{Arguments, Check};
use fancy_regex::Regex;

/// The check called `name`.
pub fn check(name: &str, arguments: Arguments<'_>) -> Result<Option<Check>, String> {
    Ok(Some(match name {
        "existence" => {
            let words = patterns(&arguments.texts("keywords")?, false)?;
            Box::new(move |text| words.iter().all(|word| occurrences(word, text) > 0))
        }
        "forbidden_words" => {
            let words = patterns(&arguments.texts("forbidden_words")?, true)?;
            Box::new(move |text| words.iter().all(|word| occurrences(word, text) == 0))
        }
        "frequency" => {
            let word = pattern(arguments.text("keyword")?.trim(), false)?;
            let fits = arguments.comparison("relation", "frequency")?;
            Box::new(move |text| fits(occurrences(&word, text)))
        }
        "letter_frequency" => {
            let letter = arguments.text("letter")?.to_lowercase();
            let fits = arguments.comparison("let_relation", "let_frequency")?;
            Box::new(move |text| fits(text.to_lowercase().matches(letter.as_str()).count()))
        }
        _ => return Ok(None),
    }))
}

fn patterns(words: &[String], whole: bool) -> Result<Vec<Regex>, String> {
    words.iter().map(|word| pattern(word, whole)).collect()
}

fn pattern(word: &str, whole: bool) -> Result<Regex, String> {
    let (edge, word) = (if whole { r"\b" } else { "" }, fancy_regex::escape(word));
    Regex::new(&format!("(?i){edge}{word}{edge}"))
        .map_err(|error| format!("has a word that can't be looked for: {error}"))
}

fn occurrences(pattern: &Regex, text: &str) -> usize {
    pattern.find_iter(text).map_while(Result::ok).count()
}

#[cfg(test)]
mod tests {
    use super::super::tests::holds;
    use serde_json::json;

    #[test]
    fn existence() {
        let two = json!({"keywords": ["mom", "Sea"]});
        let texts = ["My MOM by the sea", "moments of disease", "my mom", "sea"];
        assert_eq!(holds("keywords:existence", two, texts), [true, true, false, false]);
        assert_eq!(holds("keywords:existence", json!({"keywords": ["c++"]}), ["C++", "ccc"]), [true, false]);
    }

    #[test]
    fn forbidden_words() {
        let texts = ["Rocket science", "It rocks", "A rock!", "ROCK", "rock-solid"];
        let expected = [true, true, false, false, false];
        assert_eq!(holds("keywords:forbidden_words", json!({"forbidden_words": ["rock", "x"]}), texts), expected);
    }

    #[test]
    fn frequency() {
        let asked = |relation: &str| json!({"keyword": " war ", "frequency": 2, "relation": relation});
        let texts = ["peace", "War", "war, WARS", "war war war"];
        assert_eq!(holds("keywords:frequency", asked("at least"), texts), [false, false, true, true]);
        assert_eq!(holds("keywords:frequency", asked("less than"), texts), [true, true, false, false]);
    }

    #[test]
    fn letter_frequency() {
        let asked = |letter: &str| json!({"letter": letter, "let_frequency": 3, "let_relation": "at least"});
        assert_eq!(holds("keywords:letter_frequency", asked("n"), ["Nanny", "Nan", "xyz"]), [true, false, false]);
        assert_eq!(holds("keywords:letter_frequency", asked("#"), ["# ## x", "##"]), [true, false]);
        let less = json!({"letter": "E", "let_frequency": 1, "let_relation": "less than"});
        assert_eq!(holds("keywords:letter_frequency", less, ["a", "e", "E"]), [true, false, false]);
    }
}
