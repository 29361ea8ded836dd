//! WikiText articles as lm-evaluation-harness takes them: the split into pages and the undoing of its tokenization.
//!
//! A page begins at a line `= Title =` with single equals signs. Words are what stands between runs of white space,
//! counted on the page as it is in the file, an empty one at either end included, as `re.split(r"\s+", page)` counts.

/// An article.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The text a model sees.
    pub text: String,
    /// Words of the page before detokenizing.
    pub words: usize,
    /// UTF-8 bytes of the page before detokenizing.
    pub bytes: usize,
}

/// The pages of a WikiText file.
pub fn pages(text: &str) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut lines: Vec<&str> = Vec::new();
    for line in text.split('\n') {
        if begins_page(line) {
            finish(&mut lines, &mut pages);
        }
        lines.push(line);
    }
    finish(&mut lines, &mut pages);
    pages
}

fn begins_page(line: &str) -> bool {
    let heading = line.replace("= = =", "===").replace("= =", "==");
    let heading = heading.trim();
    heading.starts_with("= ") && heading.ends_with(" =")
}

fn finish(lines: &mut Vec<&str>, pages: &mut Vec<Page>) {
    let original = lines.join("\n");
    lines.clear();
    if !original.trim().is_empty() {
        pages.push(Page { text: detokenize(&original), words: words(&original), bytes: original.len() });
    }
}

fn words(page: &str) -> usize {
    let mut runs = 0;
    let mut inside = false;
    for character in page.chars() {
        runs += usize::from(character.is_whitespace() && !inside);
        inside = character.is_whitespace();
    }
    runs + 1
}

/// What is undone, in this order: replacements, then spaces inside pairs, then the second list.
const BEFORE_PAIRS: &[(&str, &str)] = &[
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
];
const PAIRS: &[(char, char)] = &[('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')];
const AFTER_PAIRS: &[(&str, &str)] = &[
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
];

fn detokenize(page: &str) -> String {
    let mut text = page.to_owned();
    for (from, to) in BEFORE_PAIRS {
        text = text.replace(from, to);
    }
    for &(open, close) in PAIRS {
        text = trim_inside(&text, open, close);
    }
    for (from, to) in AFTER_PAIRS {
        text = text.replace(from, to);
    }
    text
}

/// Drops white space just inside each `open … close`, pairing an opening with the next closing, left to right.
fn trim_inside(text: &str, open: char, close: char) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(open) {
        let Some((inside, behind)) = after.split_once(close) else { break };
        result.push_str(before);
        result.push(open);
        result.push_str(inside.trim());
        result.push(close);
        rest = behind;
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_at_single_equals_headings_only() {
        let text = " \n = One = \n \n a b \n = = Section = = \n c \n = Two = \n d \n";
        let pages = pages(text);
        assert_eq!(pages.len(), 2);
        assert!(pages[0].text.starts_with(" = One =\n"), "{:?}", pages[0].text);
        assert!(pages[0].text.contains("== Section =="));
        assert_eq!(pages[1].bytes, " = Two = \n d \n".len());
        // "", "=", "Two", "=", "d", "": six, as Python's split counts.
        assert_eq!(pages[1].words, 6);
    }

    #[test]
    fn what_comes_before_the_first_heading_is_a_page_unless_blank() {
        assert_eq!(pages(" \n \n = A = \n x").len(), 1);
        assert_eq!(pages("preface\n = A = \n x").len(), 2);
        assert_eq!(pages("").len(), 0);
    }

    #[test]
    fn spaces_of_the_tokenization_are_undone() {
        let cases = [
            ("a 2 @.@ 5 @-@ 3 @,@ 000 b", "a 2.5-3,000 b"),
            ("he said , \" well ! \" ( so", "he said, \"well!\" ( so"),
            ("( a ( b ) c )", "(a ( b) c )"),
            ("it 's the boys ' [ 1 ] {  }", "it's the boys' [1] {}"),
            ("20 ° C ; N : x", "20°C; N: x"),
        ];
        for (from, to) in cases {
            assert_eq!(detokenize(from), to);
        }
    }
}
