//! From a source to the strings that are tokenized, one for each [`TextHandling`].
//!
//! Rows are the documents of a file that has several (JSON lines, CSV, Parquet), else the lines of its only one with
//! their newline. Joining makes a whitespace-only row empty, keeps the others as they are, and puts `"\n\n"` between:
//! of the canonical `wiki.test.raw` (4,358 lines, 1,290,590 bytes) this makes 1,296,370 bytes with SHA-256
//! `696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83`.

use crate::{
    protocol::TextHandling,
    source::{Source, SourceFile},
    wikitext::{self, Page},
};

/// Documents that `c4-new` joins.
const FIRST_DOCUMENTS: usize = 1100;

/// The documents of `source` under `handling`: one long one, or pages, or the source's own for random slices.
pub fn documents(source: &Source, handling: TextHandling) -> Vec<Page> {
    match handling {
        TextHandling::Joined => vec![whole(joined(source))],
        TextHandling::Raw => vec![whole(raw(source))],
        TextHandling::SentencesBlankLine => vec![whole(sentences(source).join("\n\n"))],
        TextHandling::SentencesSpace => vec![whole(sentences(source).join(" "))],
        TextHandling::Pages => wikitext::pages(&raw(source)),
        TextHandling::RandomSlices => originals(source).map(|text| whole(text.to_owned())).collect(),
        TextHandling::FirstDocuments => {
            let first: Vec<&str> = originals(source).take(FIRST_DOCUMENTS).collect();
            vec![whole(first.join(" "))]
        }
    }
}

fn whole(text: String) -> Page {
    Page { words: text.split_whitespace().count(), bytes: text.len(), text }
}

fn originals(source: &Source) -> impl Iterator<Item = &str> {
    source.files.iter().flat_map(|file| file.documents.iter().map(String::as_str))
}

fn rows(file: &SourceFile) -> Vec<&str> {
    match file.documents.as_slice() {
        [only] => only.split_inclusive('\n').collect(),
        many => many.iter().map(String::as_str).collect(),
    }
}

fn joined(source: &Source) -> String {
    let rows = source.files.iter().flat_map(rows);
    rows.map(|row| if row.trim().is_empty() { "" } else { row }).collect::<Vec<_>>().join("\n\n")
}

fn raw(source: &Source) -> String {
    let mut text = String::new();
    for file in &source.files {
        match file.documents.as_slice() {
            [only] => text.push_str(only),
            many => many.iter().for_each(|row| {
                text.push_str(row);
                if !row.ends_with('\n') {
                    text.push('\n');
                }
            }),
        }
    }
    text
}

fn sentences(source: &Source) -> Vec<&str> {
    source.files.iter().flat_map(rows).map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&str]) -> Source {
        let documents = rows.iter().map(|&row| row.to_owned()).collect();
        let file = SourceFile { name: "rows.jsonl".to_owned(), sha256: String::new(), documents };
        Source { reference: "rows".to_owned(), files: vec![file] }
    }

    fn text(source: &Source, handling: TextHandling) -> String {
        documents(source, handling).remove(0).text
    }

    #[test]
    fn joining_keeps_newlines_of_rows_and_empties_blank_ones() {
        let source = Source::from_text("t", " \n = A = \n \n b c \n");
        assert_eq!(text(&source, TextHandling::Joined), "\n\n = A = \n\n\n\n\n b c \n");
        assert_eq!(text(&source, TextHandling::Raw), " \n = A = \n \n b c \n");
    }

    #[test]
    fn rows_of_a_table_give_the_same_text_as_the_file_they_came_from() {
        let file = Source::from_text("t", " \n = A = \n \n b c \n");
        let rows = table(&["", " = A = \n", "", " b c \n"]);
        assert_eq!(text(&file, TextHandling::Joined), text(&rows, TextHandling::Joined));
        assert_eq!(text(&rows, TextHandling::Raw), "\n = A = \n\n b c \n");
    }

    #[test]
    fn sentences_are_stripped() {
        let source = Source::from_text("t", " a b \n c \n");
        assert_eq!(text(&source, TextHandling::SentencesBlankLine), "a b\n\nc");
        assert_eq!(text(&source, TextHandling::SentencesSpace), "a b c");
    }

    #[test]
    fn first_documents_are_joined_by_a_space_and_random_slices_keep_them_apart() {
        let source = table(&["a", "b"]);
        assert_eq!(text(&source, TextHandling::FirstDocuments), "a b");
        assert_eq!(documents(&source, TextHandling::RandomSlices).len(), 2);
    }
}
