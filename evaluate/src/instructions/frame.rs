//! What a whole text begins and ends with, and answers put side by side.

use super::{Arguments, Check};

/// The check called `name`.
pub fn check(name: &str, arguments: Arguments<'_>) -> Result<Option<Check>, String> {
    Ok(Some(match name {
        "two_responses" => Box::new(two_responses),
        "repeat_prompt" => {
            let prompt = arguments.text("prompt_to_repeat")?.trim().to_lowercase();
            Box::new(move |text| text.trim().to_lowercase().starts_with(&prompt))
        }
        "end_checker" => {
            let phrase = arguments.text("end_phrase")?.trim().to_lowercase();
            Box::new(move |text| text.trim().trim_matches('"').to_lowercase().ends_with(&phrase))
        }
        "quotation" => Box::new(|text| {
            let inside = text.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            inside.is_some()
        }),
        _ => return Ok(None),
    }))
}

/// Two different answers with six asterisks between them; blank ones only at the ends.
fn two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").map(str::trim).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or_default();
    let answers: Vec<&&str> = parts.iter().filter(|part| !part.is_empty()).collect();
    inner.iter().all(|part| !part.is_empty()) && answers.len() == 2 && answers[0] != answers[1]
}

#[cfg(test)]
mod tests {
    use super::super::tests::holds;
    use serde_json::json;

    #[test]
    fn two_responses() {
        let texts =
            ["a\n******\nb", "a ****** b ******", "a******a", "a", "a ****** b ****** c", "a************b", "a***b"];
        let expected = [true, true, false, false, false, false, false];
        assert_eq!(holds("combination:two_responses", json!({}), texts), expected);
    }

    #[test]
    fn repeat_prompt() {
        let asked = json!({"prompt_to_repeat": "Write a poem. "});
        let texts = ["Write a poem. Roses are red", "  WRITE A POEM.\nx", "Sure. Write a poem.", "Write a  poem."];
        assert_eq!(holds("combination:repeat_prompt", asked, texts), [true, true, false, false]);
    }

    #[test]
    fn end_checker() {
        let asked = json!({"end_phrase": " Peace! "});
        let texts = ["And so: peace!", "\"Peace!\"\n", "Peace! Bye", "Peace"];
        assert_eq!(holds("startend:end_checker", asked, texts), [true, true, false, false]);
    }

    #[test]
    fn quotation() {
        let texts = ["\"all of it\"", " \"\" ", "\"", "\"a\" b", "'a'", "“a”"];
        assert_eq!(holds("startend:quotation", json!({}), texts), [true, true, false, false, false, false]);
    }
}
