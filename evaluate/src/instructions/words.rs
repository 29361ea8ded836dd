//! Words and sentences, by rules of our own that follow NLTK's English tokenizers where they can.
//!
//! ```text
//! word          a run of letters, digits and underscores
//! sentence      ends behind . ! ? (and what closes behind them: quotes, brackets) before white space or the end, but not
//!               behind a known abbreviation, an initial (`J.`), a number before a small letter, or an ellipsis before
//!               anything but a capital; and anywhere behind 。！？. What follows the last end is a sentence too
//! capital word  a piece between white space and punctuation that has capitals and no small letters; hyphens join,
//!               contractions part (DON'T is two, as the published program counts)
//! ```
//!
//! Lines without full stops, such as headings and lists, join the sentence that follows: as with NLTK.

/// Words that end in a full stop inside a sentence, but for those that are ordinary words as well (no, fig, sat).
const ABBREVIATIONS: &str = " mr mrs ms dr prof st sr jr rev gen col capt lt sgt maj gov sen rep pres hon messrs mt ft inc \
    ltd co corp dept univ assn bros vs etc al cf ca approx est vol pp eds jan feb apr jun jul aug sep sept oct nov dec \
    tue wed thu fri ave blvd rd ";

/// Number of words.
pub fn words(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// Number of sentences.
pub fn sentences(text: &str) -> usize {
    let mut count = 0;
    let mut open = false;
    let mut pieces = text.split_whitespace().peekable();
    while let Some(piece) = pieces.next() {
        let mut parts = piece.split_inclusive(['。', '！', '？']).peekable();
        while let Some(part) = parts.next() {
            open |= !part.is_empty();
            let ends =
                part.ends_with(['。', '！', '？']) || parts.peek().is_none() && ends(part, pieces.peek().copied());
            if ends {
                count += usize::from(open);
                open = false;
            }
        }
    }
    count + usize::from(open)
}

/// Whether `piece`, which white space follows, ends a sentence before `next`.
fn ends(piece: &str, next: Option<&str>) -> bool {
    let piece = piece.trim_end_matches(|c| ")]}\"'”’»*_".contains(c));
    let begins = next.and_then(|next| next.chars().find(|c| c.is_alphanumeric()));
    if piece.ends_with(['!', '?']) {
        return true;
    }
    if piece.ends_with("..") || piece.ends_with('…') {
        return begins.is_none_or(char::is_uppercase);
    }
    let Some(word) = piece.strip_suffix('.') else { return false };
    let word = word.trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let word = word.rsplit('-').next().unwrap_or_default();
    let initial = word.chars().count() == 1 && word.chars().all(char::is_alphabetic);
    let dotted = word.contains('.') && word.split('.').all(|part| part.chars().count() == 1);
    if word.is_empty() {
        return true;
    }
    if initial || dotted || ABBREVIATIONS.contains(&format!(" {word} ")) {
        return next.is_none();
    }
    let number = word.chars().all(|c| c.is_ascii_digit());
    !(number && begins.is_some_and(char::is_lowercase))
}

/// Number of words in capitals.
pub fn capital_words(text: &str) -> usize {
    let separates = |c: char| c.is_whitespace() || ";@#$%&?!()[]{}<>\"“”„«»‘’`,:…".contains(c);
    let pieces = text.split(separates).flat_map(|piece| piece.split("--"));
    pieces.flat_map(contraction).filter(|piece| is_upper(piece)).count()
}

/// A word and what is contracted with it.
fn contraction(piece: &str) -> [&str; 2] {
    let lower = piece.to_ascii_lowercase();
    let part = ["n't", "'ll", "'re", "'ve", "'s", "'m", "'d"].into_iter().find(|part| lower.ends_with(part));
    match part {
        Some(part) if part.len() < piece.len() => {
            let (word, part) = piece.split_at(piece.len() - part.len());
            [word, part]
        }
        _ => [piece, ""],
    }
}

/// Capitals and no small letters.
pub fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

/// Small letters and no capitals.
pub fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_digits_and_underscores() {
        for (text, expected) in
            [("", 0), (" - ", 0), ("It's a well-known fact.", 6), ("a_b 3.5 naïve", 4), ("one\ntwo\tthree", 3)]
        {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sentences_end_where_people_end_them() {
        for (text, expected) in [
            ("", 0),
            ("  \n", 0),
            ("No full stop", 1),
            ("One. Two! Three? Four", 4),
            ("Dr. Smith met Mrs. Jones at 5 p.m. on Main St. yesterday.", 1),
            ("He lives in the U.S. and J. R. Smith knows.", 1),
            ("Wait... what? Yes... No.", 3),
            ("He said \"Go.\" Then he left. (All of it.) The end.", 4),
            ("Use e.g. apples. It costs 3.50 dollars.", 2),
            ("What?! Really.", 2),
            ("A heading\n\n- one\n- two", 1),
            ("1. First thing. 2. second thing.", 3),
            ("你好。再见！是吗？", 3),
            ("*Bold end.* Next one.", 2),
            ("The end of etc.", 1),
            ("He said no. She sat. Done", 3),
            ("a . b", 2),
        ] {
            assert_eq!(sentences(text), expected, "{text:?}");
        }
    }

    #[test]
    fn capital_words_hyphenated_are_one_and_contracted_two() {
        for (text, expected) in [
            ("", 0),
            ("I saw NASA", 2),
            ("Nasa (USA), \"EU\"!", 2),
            ("WELL-KNOWN and Well-KNOWN", 1),
            ("DON'T", 2),
            ("don't", 0),
            ("CAT'S", 2),
            ("A1 42 B--C", 3),
            ("ÄÖ straße", 1),
        ] {
            assert_eq!(capital_words(text), expected, "{text:?}");
        }
        assert!(is_upper("A 1!") && !is_upper("1!") && !is_upper("Aa") && is_lower("a 1") && !is_lower("1"));
    }
}
