//! How much of one text is found in another: n-gram containment.
//!
//! ```text
//! containment(A in B) = distinct n-grams of A that B has too / distinct n-grams of A
//! ```
//!
//! A word is a run of letters and digits, lower-cased, or a single character of a script that is written without spaces
//! between words (Chinese, Japanese, Korean, Thai), so that 13 of them are about a sentence in either. N-grams are
//! compared by 64-bit hashes: the chance that any of a billion pairs of
//! distinct n-grams is taken for equal is below one in ten billion.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Words that long in common are copied, not chance: the length that contamination studies use.
pub const WORDS: usize = 13;

/// The n-grams of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ngrams(HashSet<u64>);

impl Ngrams {
    /// The distinct runs of `length` words in `texts`; none crosses from one text to the next.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>, length: usize) -> Self {
        let mut ngrams = HashSet::new();
        for text in texts {
            let words: Vec<u64> = words(text).iter().map(hash).collect();
            ngrams.extend(words.windows(length.max(1)).map(hash));
        }
        Self(ngrams)
    }

    /// How many distinct ones there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The share of these that `other` has too; 0 where there are none.
    pub fn containment_in(&self, other: &Self) -> f64 {
        let shared = self.0.intersection(&other.0).count();
        if self.0.is_empty() { 0.0 } else { shared as f64 / self.0.len() as f64 }
    }
}

fn words(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    for character in text.chars() {
        if character.is_alphanumeric() && !stands_alone(character) {
            word.extend(character.to_lowercase());
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if stands_alone(character) {
            words.push(character.to_string());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Letters of scripts without spaces between words.
fn stands_alone(character: char) -> bool {
    matches!(character,
        '\u{0e00}'..='\u{0e7f}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// Seeded alike in every process.
fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By its definition, over the words themselves.
    fn by_definition(a: &str, b: &str, length: usize) -> f64 {
        let ngrams = |text: &str| -> HashSet<Vec<String>> { words(text).windows(length).map(<[_]>::to_vec).collect() };
        let (a, b) = (ngrams(a), ngrams(b));
        if a.is_empty() { 0.0 } else { a.intersection(&b).count() as f64 / a.len() as f64 }
    }

    fn containment(a: &str, b: &str, length: usize) -> f64 {
        Ngrams::of([a], length).containment_in(&Ngrams::of([b], length))
    }

    #[test]
    fn a_text_is_whole_in_itself_and_in_what_holds_it() {
        let text = "The quick brown fox, he said, jumps over the lazy dog and goes home.";
        assert_eq!(containment(text, text, WORDS), 1.0);
        assert_eq!(containment(text, &format!("Before. {} After.", text.to_uppercase()), WORDS), 1.0);
        assert_eq!(
            containment(text, "Nothing of the kind is to be found in here, however long one looks for it.", WORDS),
            0.0
        );
        assert_eq!(containment("too short", text, WORDS), 0.0);
    }

    #[test]
    fn scripts_without_spaces_are_told_apart_by_character() {
        assert_eq!(words("量子 GPT-2模型"), ["量", "子", "gpt", "2", "模", "型"]);
        let text = "天地玄黄宇宙洪荒日月盈昃辰宿列张";
        assert_eq!(containment(text, &format!("序{text}终"), WORDS), 1.0);
    }

    #[test]
    fn no_ngram_crosses_a_border_of_texts() {
        let two = Ngrams::of(["a b", "c d"], 3);
        assert_eq!((two.count(), Ngrams::of(["a b c d"], 3).count()), (0, 2));
    }

    proptest! {
        #[test]
        fn hashes_give_what_the_definition_gives(a in "([ab] ){0,30}", b in "([ab] ){0,30}", length in 1_usize..5) {
            prop_assert_eq!(containment(&a, &b, length), by_definition(&a, &b, length));
        }
    }
}
