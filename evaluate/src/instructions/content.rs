//! Placeholders in square brackets, and postscripts.

use super::{Arguments, Check};
use fancy_regex::Regex;

/// The check called `name`.
pub fn check(name: &str, arguments: Arguments<'_>) -> Result<Option<Check>, String> {
    Ok(Some(match name {
        "number_placeholders" => {
            let wanted = arguments.count("num_placeholders")?;
            Box::new(move |text| placeholders(text) >= wanted)
        }
        "postscript" => {
            let marker = arguments.text("postscript_marker")?.trim().to_lowercase();
            let pattern = match marker.as_str() {
                "p.p.s" => r"p\.\s?p\.\s?s".to_owned(),
                "p.s." => r"p\.\s?s\.".to_owned(),
                other => fancy_regex::escape(other).into_owned(),
            };
            let marker =
                Regex::new(&pattern).map_err(|error| format!("has a marker that can't be looked for: {error}"))?;
            Box::new(move |text| marker.is_match(&text.to_lowercase()).unwrap_or(false))
        }
        _ => return Ok(None),
    }))
}

/// Brackets that close in their line, from left to right.
fn placeholders(text: &str) -> usize {
    let of_line = |line: &str| {
        let (mut count, mut rest) = (0, line);
        while let Some(behind) = rest.split_once('[').and_then(|(_, inside)| inside.split_once(']')) {
            count += 1;
            rest = behind.1;
        }
        count
    };
    text.split('\n').map(of_line).sum()
}

#[cfg(test)]
mod tests {
    use super::super::tests::holds;
    use serde_json::json;

    #[test]
    fn number_placeholders() {
        let texts = ["Dear [name], of [town]", "[][]", "[a [b]", "[a\n] [b]", "none", "[a] [b] [c]"];
        let expected = [true, true, false, false, false, true];
        assert_eq!(holds("detectable_content:number_placeholders", json!({"num_placeholders": 2}), texts), expected);
    }

    #[test]
    fn postscript() {
        let asked = |marker: &str| json!({"postscript_marker": marker});
        let texts = ["Bye\nP.S. more", "bye p. s. more", "PS more", "P.P.S. more", "P.S more"];
        assert_eq!(holds("detectable_content:postscript", asked("P.S."), texts), [true, true, false, true, false]);
        let texts = ["Bye\nP.P.S more", "p. p. s", "P.S. more"];
        assert_eq!(holds("detectable_content:postscript", asked("P.P.S"), texts), [true, true, false]);
        assert_eq!(holds("detectable_content:postscript", asked("Note:"), ["NOTE: x", "note x"]), [true, false]);
    }
}
