//! How long a text is, in words, sentences and paragraphs.
//!
//! Paragraphs are parted by `***`; by a blank line where the first word of one is asked for.

use super::{Arguments, Check, words};

/// What ends the first word of a paragraph.
const PUNCTUATION: [char; 6] = ['.', ',', '?', '!', '\'', '"'];

/// The check called `name`.
pub fn check(name: &str, arguments: Arguments<'_>) -> Result<Option<Check>, String> {
    Ok(Some(match name {
        "number_words" => {
            let fits = arguments.comparison("relation", "num_words")?;
            Box::new(move |text| fits(words::words(text)))
        }
        "number_sentences" => {
            let fits = arguments.comparison("relation", "num_sentences")?;
            Box::new(move |text| fits(words::sentences(text)))
        }
        "number_paragraphs" => {
            let wanted = arguments.count("num_paragraphs")?;
            Box::new(move |text| parted(text) == Some(wanted))
        }
        "nth_paragraph_first_word" => {
            let (wanted, nth) = (arguments.count("num_paragraphs")?, arguments.count("nth_paragraph")?);
            let word = arguments.text("first_word")?.to_lowercase();
            Box::new(move |text| first_word(text, wanted, nth).is_some_and(|first| first == word))
        }
        _ => return Ok(None),
    }))
}

/// Paragraphs between `***`; none where one that isn't at an end is blank.
fn parted(text: &str) -> Option<usize> {
    let paragraphs: Vec<bool> = text.split("***").map(|paragraph| !paragraph.trim().is_empty()).collect();
    let inner = paragraphs.get(1..paragraphs.len() - 1).unwrap_or_default();
    inner.iter().all(|holds| *holds).then(|| paragraphs.iter().filter(|holds| **holds).count())
}

/// The first word of paragraph `nth`, counted from 1 and with blank ones, of a text that has `wanted` without blank ones.
fn first_word(text: &str, wanted: usize, nth: usize) -> Option<String> {
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    let count = paragraphs.iter().filter(|paragraph| !paragraph.trim().is_empty()).count();
    if count != wanted || nth > count {
        return None;
    }
    let word = paragraphs.get(nth.checked_sub(1)?)?.split_whitespace().next()?;
    let word = word.trim_start_matches('\'').trim_start_matches('"');
    Some(word.split(PUNCTUATION).next()?.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::super::tests::holds;
    use serde_json::json;

    #[test]
    fn number_words() {
        let asked = |relation: &str| json!({"num_words": 3, "relation": relation});
        let texts = ["one two", "one two three", "one-two, three four"];
        assert_eq!(holds("length_constraints:number_words", asked("at least"), texts), [false, true, true]);
        assert_eq!(holds("length_constraints:number_words", asked("less than"), texts), [true, false, false]);
    }

    #[test]
    fn number_sentences() {
        let asked = |relation: &str| json!({"num_sentences": 2, "relation": relation});
        let texts = ["One.", "One. Two.", "Dr. One. Two. Three."];
        assert_eq!(holds("length_constraints:number_sentences", asked("at least"), texts), [false, true, true]);
        assert_eq!(holds("length_constraints:number_sentences", asked("less than"), texts), [true, false, false]);
    }

    #[test]
    fn number_paragraphs() {
        let texts = ["a\n***\nb", "a *** b\n***", "***\na***b", "a", "a***b***c", "a ****** b", "a\n\nb"];
        let expected = [true, true, true, false, false, false, false];
        assert_eq!(holds("length_constraints:number_paragraphs", json!({"num_paragraphs": 2}), texts), expected);
    }

    #[test]
    fn nth_paragraph_first_word() {
        let asked = json!({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Elm"});
        let texts =
            ["a\n\nElm trees", "a\n\n'elm, yes", "a\n\n\"Elm\" b", "elm\n\nb", "a\n\nelm\n\nc", "a\nelm", "a\n\nelms"];
        let expected = [true, true, true, false, false, false, false];
        assert_eq!(holds("length_constraints:nth_paragraph_first_word", asked, texts), expected);
        // A paragraph that is blank has its place all the same.
        let asked = json!({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"});
        assert_eq!(
            holds("length_constraints:nth_paragraph_first_word", asked, ["a\n\n\n\nelm", "a\n\nelm\n\n"]),
            [false, true]
        );
    }
}
