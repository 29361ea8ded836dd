//! Instructions whose following a program can check: the 25 types of IFEval (Zhou et al. 2023, arXiv 2311.07911).
//!
//! ```text
//! strict   the text is not blank and fulfils the instruction
//! loose    any of eight readings of it does: asterisks kept or dropped, by whole, first line dropped, last, or both
//! ```
//!
//! One file a group of checks. They are those of the published program, which leans on two libraries that answer differently
//! from version to version; where they stood, rules of our own stand, and are stated: [`words`] for sentences and words,
//! [`language`] for languages. Words to look for are taken as they are, not as regular expressions (no published one is
//! any).

pub mod content;
pub mod format;
pub mod frame;
pub mod keywords;
pub mod language;
pub mod length;
pub mod letters;
pub mod words;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Whether a text does what it should.
pub type Check = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// An instruction as a data set gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Group and name, such as `keywords:existence`.
    pub id: String,
    /// What it asks for.
    pub arguments: Map<String, Value>,
}

/// What became of an instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Its id.
    pub id: String,
    /// Whether the text follows it.
    pub strict: bool,
    /// Whether a reading of the text does.
    pub loose: bool,
}

impl Instruction {
    /// The check it stands for; what is wrong with it is a sentence.
    pub fn check(&self) -> Result<Check, String> {
        let arguments = Arguments(&self.arguments);
        let (group, name) = self.id.split_once(':').unwrap_or_default();
        let check = match group {
            "keywords" => keywords::check(name, arguments),
            "length_constraints" => length::check(name, arguments),
            "detectable_format" => format::check(name, arguments),
            "detectable_content" => content::check(name, arguments),
            "combination" | "startend" => frame::check(name, arguments),
            "change_case" | "punctuation" => letters::check(name, arguments),
            "language" => language::check(name, arguments),
            _ => Ok(None),
        };
        let wrong = |what: String| format!("the instruction `{}` {what}", self.id);
        check.map_err(wrong)?.ok_or_else(|| wrong("is none of the 25 types there are".to_owned()))
    }

    /// Judges `text` by it.
    pub fn judge(&self, text: &str) -> Result<Followed, String> {
        let check = self.check()?;
        let follows = |text: &str| !text.trim().is_empty() && check(text);
        let strict = follows(text);
        let loose = readings(text).iter().any(|reading| follows(reading));
        Ok(Followed { id: self.id.clone(), strict, loose })
    }
}

/// The eight readings of a text.
fn readings(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let part = |from: usize, to: usize| lines.get(from..to).unwrap_or_default().join("\n").trim().to_owned();
    let last = lines.len() - 1;
    let plain = [text.to_owned(), part(1, lines.len()), part(0, last), part(1, last)];
    let bare = plain.each_ref().map(|reading| reading.replace('*', ""));
    plain.into_iter().chain(bare).collect()
}

/// Arguments by name and kind.
#[derive(Clone, Copy)]
pub struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn get<T>(self, name: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T, String> {
        let value = self.0.get(name).filter(|value| !value.is_null());
        let value = value.ok_or_else(|| format!("lacks `{name}`"))?;
        read(value).ok_or_else(|| format!("has `{value}` for `{name}`, which should be {kind}"))
    }

    /// A text.
    pub fn text(self, name: &str) -> Result<String, String> {
        self.get(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A list of texts.
    pub fn texts(self, name: &str) -> Result<Vec<String>, String> {
        self.get(name, "a list of texts", |value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        })
    }

    /// A whole number from 0; data sets that went through tables have them as floats.
    pub fn count(self, name: &str) -> Result<usize, String> {
        self.get(name, "a whole number", |value| {
            let whole = |number: &f64| *number >= 0.0 && number.fract() == 0.0 && *number < 1e9;
            value.as_f64().filter(whole).map(|number| number as usize)
        })
    }

    /// A comparison with a number: `less than` or `at least`.
    pub fn comparison(
        self,
        relation: &str,
        number: &str,
    ) -> Result<impl Fn(usize) -> bool + Send + Sync + 'static, String> {
        let limit = self.count(number)?;
        let less = self.get(relation, "`less than` or `at least`", |value| match value.as_str()? {
            "less than" => Some(true),
            "at least" => Some(false),
            _ => None,
        })?;
        Ok(move |count: usize| (count < limit) == less)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn instruction(id: &str, arguments: Value) -> Instruction {
        let Value::Object(arguments) = arguments else { panic!("an object") };
        Instruction { id: id.to_owned(), arguments }
    }

    /// Whether each text follows the instruction strictly.
    pub(crate) fn holds<const N: usize>(id: &str, arguments: Value, texts: [&str; N]) -> [bool; N] {
        let instruction = instruction(id, arguments);
        texts.map(|text| instruction.judge(text).unwrap().strict)
    }

    #[test]
    fn a_blank_text_follows_nothing() {
        assert_eq!(holds("punctuation:no_comma", json!({}), ["", " \n", "a"]), [false, false, true]);
        let blank = instruction("punctuation:no_comma", json!({})).judge("\n \n").unwrap();
        assert!(!blank.loose);
    }

    #[test]
    fn loosely_frames_and_asterisks_don_t_count() {
        let judge = |text: &str| {
            let followed = instruction("startend:quotation", json!({})).judge(text).unwrap();
            (followed.strict, followed.loose)
        };
        assert_eq!(judge("\"yes\""), (true, true));
        assert_eq!(judge("Sure, here it is:\n\"yes\""), (false, true));
        assert_eq!(judge("\"yes\"\nHope it helps!"), (false, true));
        assert_eq!(judge("Sure:\n\"yes\"\nDone"), (false, true));
        assert_eq!(judge("*\"yes\"*"), (false, true));
        assert_eq!(judge("Sure:\n**\"yes\"**\nDone"), (false, true));
        assert_eq!(judge("a\nb\n\"yes\""), (false, false));
        assert_eq!(readings("a\n*b*\nc"), ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]);
        assert_eq!(readings("one"), ["one", "", "", "", "one", "", "", ""]);
    }

    #[test]
    fn what_is_no_instruction_is_named() {
        let refused = |id: &str, arguments: Value| instruction(id, arguments).check().err().unwrap();
        assert!(refused("keywords:rhyme", json!({})).contains("`keywords:rhyme` is none of the 25"));
        assert!(refused("nonsense", json!({})).contains("none of the 25"));
        assert!(refused("keywords:existence", json!({})).contains("lacks `keywords`"));
        assert!(refused("keywords:existence", json!({"keywords": null})).contains("lacks `keywords`"));
        assert!(refused("keywords:existence", json!({"keywords": [1]})).contains("a list of texts"));
        let words = |number: Value, relation: &str| {
            refused("length_constraints:number_words", json!({"num_words": number, "relation": relation}))
        };
        assert!(words(json!(-3), "at least").contains("whole number") && words(json!(3.5), "at least").contains("3.5"));
        assert!(words(json!(3), "at most").contains("at most"));
        assert!(
            instruction("length_constraints:number_words", json!({"num_words": 3.0, "relation": "less than"}))
                .check()
                .is_ok()
        );
    }

    /// `less than` is below, `at least` includes.
    #[test]
    fn comparisons() {
        let arguments = |relation: &str| instruction("x", json!({"relation": relation, "n": 2})).arguments;
        for (relation, expected) in
            [("less than", [true, true, false, false]), ("at least", [false, false, true, true])]
        {
            let arguments = arguments(relation);
            let compare = Arguments(&arguments).comparison("relation", "n").unwrap();
            assert_eq!([0, 1, 2, 3].map(compare), expected);
        }
    }
}
