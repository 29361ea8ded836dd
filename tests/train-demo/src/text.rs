//! Training text: files into documents, documents into tokens, tokens into windows.
//!
//! Read by name: `*.jsonl`, one document a record, made of its known text fields; `*.word.txt`, a word-level WikiText
//! file, detokenized, one document an article; anything else, one document, or one a `# FILE:` line where there are
//! such lines. The last 2 % of each file's documents are held out from training.

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Record fields that hold text, in the order in which they make a document.
const FIELDS: [&str; 9] =
    ["text", "question", "answer", "instruction", "instances", "input", "output", "code", "test_list"];

/// Bytes of a domain that the tokenizer is trained on, shared evenly among its files.
const TOKENIZER_BYTES: usize = 2_500_000;

/// The documents of one file.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
    documents: Vec<String>,
}

impl Source {
    /// Reads a file as prose, or as code, where a record's free text becomes a comment.
    pub(crate) fn read(path: &Path, code: bool) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let text = String::from_utf8(bytes).with_context(|| path.display().to_string())?;
        let sha256 = hexadecimal(&Sha256::digest(text.as_bytes()));
        let name = path.to_string_lossy();
        let text = text.replace("\r\n", "\n");
        let documents = if name.ends_with(".jsonl") {
            text.lines().map(|line| record(line, code)).collect::<Result<_>>().with_context(|| name.to_string())?
        } else if name.ends_with(".word.txt") {
            articles(&text)
        } else {
            text.split("# FILE: ")
                .map(|part| part.split_once(".py\n").map_or(part, |(_, body)| body).to_owned())
                .collect()
        };
        let documents: Vec<String> = documents.into_iter().filter(|text: &String| !text.trim().is_empty()).collect();
        ensure!(documents.len() > 1, "{name}: a training file needs at least two documents");
        Ok(Self { path: path.to_owned(), sha256, documents })
    }

    /// How many documents are for training.
    fn border(&self) -> usize {
        self.documents.len() - (self.documents.len() / 50).max(1)
    }

    /// The documents for training.
    pub(crate) fn training(&self) -> &[String] {
        &self.documents[..self.border()]
    }

    /// The documents for the tokenizer: the first of those for training, up to a share of the domain's bytes.
    fn for_tokenizer(&self, share: usize) -> impl Iterator<Item = &String> {
        self.training().iter().scan(0, move |used, document| {
            *used += document.len();
            (*used <= share).then_some(document)
        })
    }

    /// The documents held out.
    pub(crate) fn held_out(&self) -> &[String] {
        &self.documents[self.border()..]
    }
}

/// What the tokenizer is trained on: about as much prose as code, and no file much more than another.
pub(crate) fn for_tokenizer(domains: &[Vec<Source>; 2]) -> Vec<&String> {
    domains
        .iter()
        .flat_map(|sources| sources.iter().flat_map(|source| source.for_tokenizer(TOKENIZER_BYTES / sources.len())))
        .collect()
}

/// Lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn record(line: &str, code: bool) -> Result<String> {
    let mut text = String::new();
    gather(&serde_json::from_str(line)?, code, &mut text);
    Ok(without_calculator(&text))
}

fn gather(value: &Value, code: bool, text: &mut String) {
    match value {
        Value::String(string) => {
            text.push_str(string.replace("\r\n", "\n").trim_end());
            text.push('\n');
        }
        Value::Array(values) => values.iter().for_each(|value| gather(value, code, text)),
        Value::Object(fields) => {
            for field in FIELDS {
                if let Some(value) = fields.get(field) {
                    if code && field == "text" {
                        text.push_str("# ");
                    }
                    gather(value, code, text);
                }
            }
        }
        _ => {}
    }
}

/// Without the `<<48/2=24>>` notes of the calculator in worked answers.
fn without_calculator(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<<") {
        let Some((_, after)) = after.split_once(">>") else { break };
        clean.push_str(before);
        rest = after;
    }
    clean + rest
}

/// Articles of a word-level file, without headings and without sentences that lost a word.
fn articles(text: &str) -> Vec<String> {
    let mut articles = vec![String::new()];
    for line in text.lines().map(str::trim) {
        if line.starts_with("= ") {
            if !line.starts_with("= =") {
                articles.push(String::new());
            }
            continue;
        }
        let sentences: Vec<&str> = line.split_inclusive(" . ").filter(|s| !s.contains("<unk>")).collect();
        let paragraph = detokenized(&sentences.concat());
        if let (false, Some(article)) = (paragraph.is_empty(), articles.last_mut()) {
            article.push_str(&paragraph);
            article.push_str("\n\n");
        }
    }
    articles
}

/// Words and spaced punctuation as a person would write them.
fn detokenized(line: &str) -> String {
    let mut text = String::new();
    let mut glue = true;
    let mut quoted = false;
    for word in line.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".").split_whitespace() {
        let closes = matches!(word, "," | "." | ";" | ":" | ")" | "]" | "!" | "?" | "%" | "'s" | "'" | "n't")
            || (word == "\"" && quoted);
        if !glue && !closes {
            text.push(' ');
        }
        text.push_str(word);
        glue = matches!(word, "(" | "[" | "$" | "£") || (word == "\"" && !quoted);
        quoted ^= word == "\"";
    }
    text
}

/// Tokens of several documents, each closed by the end-of-text token 0.
pub(crate) fn tokens(tokenizer: &Tokenizer, documents: &[String]) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    for document in documents {
        let encoding = tokenizer.encode_fast(document.as_str(), false).map_err(anyhow::Error::msg)?;
        tokens.extend(encoding.get_ids());
        tokens.push(0);
    }
    Ok(tokens)
}

/// One domain's training tokens, a stream a file.
pub(crate) struct Domain {
    streams: Vec<Vec<u32>>,
}

impl Domain {
    /// Streams shorter than a window are left out.
    pub(crate) fn new(streams: Vec<Vec<u32>>, window: usize) -> Result<Self> {
        let streams: Vec<_> = streams.into_iter().filter(|stream| stream.len() > window).collect();
        ensure!(!streams.is_empty(), "a domain needs a file of more than {window} tokens");
        Ok(Self { streams })
    }

    /// A window at a random place. Files are drawn in proportion to the square root of their length, so that one long
    /// file doesn't drown the others.
    fn window(&self, length: usize, rng: &mut ChaCha8Rng) -> &[u32] {
        let total: f64 = self.streams.iter().map(|stream| (stream.len() as f64).sqrt()).sum();
        let mut place = rng.random_range(0.0..total);
        let mut chosen = &self.streams[0];
        for stream in &self.streams {
            chosen = stream;
            place -= (stream.len() as f64).sqrt();
            if place < 0.0 {
                break;
            }
        }
        &chosen[rng.random_range(0..=chosen.len() - length)..][..length]
    }
}

/// The windows of one step, half prose and half code. They depend on nothing but the seed and the step, so a
/// continued run sees what an uninterrupted one would.
pub(crate) fn batch(domains: &[Domain; 2], seed: u64, step: u64, count: usize, length: usize) -> Vec<&[u32]> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step + 1);
    (0..count).map(|index| domains[index % 2].window(length, &mut rng)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn word_level_text_is_written_as_a_person_would() {
        let line = "He said ( twice ) , \" well @-@ known \" ; it cost $ 1 @,@ 000 , and wasn 't 2 @.@ 5 % .";
        assert_eq!(detokenized(line), "He said (twice), \"well-known\"; it cost $1,000, and wasn 't 2.5%.");
    }

    #[test]
    fn articles_are_split_and_sentences_without_a_word_left_out() {
        let text = " = One = \n \n A dog . An <unk> . A cat . \n = = Part = = \n More . \n = Two = \n End . \n";
        let articles: Vec<String> = articles(text).into_iter().filter(|text| !text.is_empty()).collect();
        assert_eq!(articles, ["A dog. A cat.\n\nMore.\n\n", "End.\n\n"]);
    }

    #[test]
    fn a_record_gives_its_text_fields_without_calculator_notes() {
        let line = r#"{"answer": "2+2 = <<2+2=4>>4", "id": "x", "question": "How many?"}"#;
        assert_eq!(record(line, false).unwrap(), "How many?\n2+2 = 4\n");
        assert_eq!(record(r#"{"text": "Add.", "code": "a\r\nb"}"#, true).unwrap(), "# Add.\na\nb\n");
        assert!(record("{", false).is_err());
    }

    #[test]
    fn an_unclosed_note_stays() {
        assert_eq!(without_calculator("1 << 2 <<a>>b"), "1 b");
        assert_eq!(without_calculator("a << b"), "a << b");
    }

    #[test]
    fn a_step_has_the_same_windows_each_time_half_of_each_domain() {
        let stream = |first: u32| vec![(first..first + 300).collect::<Vec<u32>>(), (first..first + 40).collect()];
        let domains = [Domain::new(stream(0), 17).unwrap(), Domain::new(stream(1000), 17).unwrap()];
        let windows = batch(&domains, 3, 5, 8, 17);
        assert_eq!(windows, batch(&domains, 3, 5, 8, 17));
        assert_ne!(windows, batch(&domains, 3, 6, 8, 17));
        assert!(windows.iter().all(|window| window.len() == 17));
        assert_eq!(windows.iter().filter(|window| window[0] >= 1000).count(), 4);
        assert!(Domain::new(vec![vec![1; 16]], 17).is_err());
    }
}
