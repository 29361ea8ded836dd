//! Marks that a program can see: lists, highlights, sections, titles, JSON, one of three answers.

use super::{Arguments, Check};
use fancy_regex::Regex;

const ANSWERS: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

/// The check called `name`.
pub fn check(name: &str, arguments: Arguments<'_>) -> Result<Option<Check>, String> {
    Ok(Some(match name {
        "number_bullet_lists" => {
            let wanted = arguments.count("num_bullets")?;
            // An asterisk that no second one follows, or a hyphen, first in its line.
            let bullets = expression(r"(?m)^\s*\*[^*].*$|^\s*-.*$")?;
            Box::new(move |text| matches(&bullets, text).count() == wanted)
        }
        "number_highlighted_sections" => {
            let wanted = arguments.count("num_highlights")?;
            // Within `**text**` single ones are empty; they don't count.
            let (single, double) = (expression(r"\*[^\n*]*\*")?, expression(r"\*\*[^\n*]*\*\*")?);
            let holds = |highlight: &&str| !highlight.trim_matches('*').trim().is_empty();
            Box::new(move |text| {
                matches(&single, text).filter(holds).count() + matches(&double, text).filter(holds).count() >= wanted
            })
        }
        "multiple_sections" => {
            let (word, wanted) = (arguments.text("section_spliter")?, arguments.count("num_sections")?);
            let heading = expression(&format!(r"\s?{}\s?\d+\s?", fancy_regex::escape(word.trim())))?;
            Box::new(move |text| matches(&heading, text).count() >= wanted)
        }
        "title" => {
            let title = expression(r"<<[^\n]+>>")?;
            let bare = |title: &str| !title.trim_matches(['<', '>']).trim().is_empty();
            Box::new(move |text| matches(&title, text).any(bare))
        }
        "constrained_response" => Box::new(|text| ANSWERS.iter().any(|answer| text.contains(answer))),
        "json_format" => Box::new(is_json),
        _ => return Ok(None),
    }))
}

fn expression(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|error| format!("has a word that can't be looked for: {error}"))
}

fn matches<'a>(expression: &'a Regex, text: &'a str) -> impl Iterator<Item = &'a str> {
    expression.find_iter(text).map_while(Result::ok).map(|found| found.as_str())
}

/// JSON, in a Markdown block or not.
fn is_json(text: &str) -> bool {
    let mut text = text.trim();
    for fence in ["```json", "```Json", "```JSON", "```"] {
        text = text.strip_prefix(fence).unwrap_or(text);
    }
    let text = text.strip_suffix("```").unwrap_or(text);
    serde_json::from_str::<serde_json::Value>(text.trim()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::holds;
    use serde_json::json;

    #[test]
    fn number_bullet_lists() {
        let texts = ["* a\n* b", "- a\n  - b", "* a\n- b", "* a", "* a\n* b\n* c", "**a**\n**b**", "a\n* b\n\n* c\nd"];
        let expected = [true, true, true, false, false, false, true];
        assert_eq!(holds("detectable_format:number_bullet_lists", json!({"num_bullets": 2}), texts), expected);
    }

    #[test]
    fn number_highlighted_sections() {
        let texts = ["*a* and *b*", "*a*", "**a** *b*", "** ** **", "*a\nb* c", "*a**b*"];
        let expected = [true, false, true, false, false, true];
        assert_eq!(
            holds("detectable_format:number_highlighted_sections", json!({"num_highlights": 2}), texts),
            expected
        );
    }

    #[test]
    fn multiple_sections() {
        let asked = json!({"section_spliter": " Day ", "num_sections": 2});
        let texts = ["Day 1\na\nDay 2\nb", "Day1 Day2 Day3", "Day 1", "day 1 day 2", "Day one Day two"];
        assert_eq!(holds("detectable_format:multiple_sections", asked, texts), [true, true, false, false, false]);
    }

    #[test]
    fn title() {
        let texts = ["<<A poem>>\ntext", "<< >>", "<A poem>", "<<A\npoem>>", "<<<<x>>>>"];
        assert_eq!(holds("detectable_format:title", json!({}), texts), [true, false, false, false, true]);
    }

    #[test]
    fn constrained_response() {
        let texts =
            ["My answer is yes.", "Well. My answer is maybe. Really.", "my answer is no.", "My answer is no", "yes"];
        assert_eq!(
            holds("detectable_format:constrained_response", json!({}), texts),
            [true, true, false, false, false]
        );
    }

    #[test]
    fn json_format() {
        let texts =
            ["{\"a\": [1, null]}", "```json\n{}\n```", "```\n[1]\n```", "```JSON {}```", "{a: 1}", "Here: {}", "{} {}"];
        let expected = [true, true, true, true, false, false, false];
        assert_eq!(holds("detectable_format:json_format", json!({}), texts), expected);
    }
}
