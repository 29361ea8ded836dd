//! Cutting tokenized text into the windows of a calibration set, deterministically in (files, options, seed).
//!
//! ```text
//! concat       documents joined by a blank line, tokenized at once; each window begins at an even draw from
//!              0..=tokens-length, so windows may overlap
//! consecutive  the same tokens; window i begins at i*length
//! document     each document tokenized; samples of those with a token are drawn without replacement; a window is the
//!              whole document or, where that is longer, begins at an even draw from 0..=tokens-length
//! chat         message lists rendered by the model's chat template, then as `document`
//! ```
//!
//! `concat` and `consecutive` need as many tokens as the windows hold together, so that under `concat` no more overlaps
//! than chance has it. `random-tokens` are drawn token by token, evenly from the vocabulary without its special tokens,
//! whatever the packing. The order of draws is that of the windows; for documents, first all documents, then offsets.

use crate::{
    CalibrationError, Manifest,
    domain::{Domain, Source, shares},
    draw::Draw,
    manifest::{SourceRecord, WindowRecord, tokens_sha256},
};
use model::{Checkpoint, text::Document, tokenizer::encode};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The largest calibration set, in tokens.
const MOST_TOKENS: usize = 1 << 30;

/// How documents become windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// All documents joined, windows cut at random offsets, as the GPTQ paper does.
    #[default]
    Concat,
    /// All documents joined, windows cut one after the other from the start.
    Consecutive,
    /// One window from each document, long ones cut at a random offset, short ones kept short.
    Document,
    /// Message lists through the model's chat template, then as `document`.
    Chat,
}

/// Settings of a calibration set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowOptions {
    /// Windows in all.
    pub samples: usize,
    /// Tokens per window; cut to the model's longest sequence.
    pub sequence_length: usize,
    /// Seed of every random choice.
    pub seed: u64,
    /// How documents become windows.
    pub packing: Packing,
    /// Column of JSON lines, CSV and Parquet; `None` looks for the usual ones.
    pub field: Option<String>,
}

/// Windows and the record of where they came from.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationSet {
    /// Token ids of each window.
    pub windows: Vec<Vec<u32>>,
    /// Where they came from.
    pub manifest: Manifest,
}

impl CalibrationSet {
    /// Tokens in all windows.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Reads `sources` (see [`crate::domain::Domain::parse`]), tokenizes and cuts.
    pub fn build(
        sources: &[Domain],
        options: &WindowOptions,
        checkpoint: &Checkpoint,
    ) -> Result<Self, CalibrationError> {
        let sequence_length = options.sequence_length.min(checkpoint.config.max_positions);
        let weights: Vec<f64> = sources.iter().map(|domain| domain.weight).collect();
        let shares = shares(&weights, options.samples);
        check(sources, options, &shares)?;
        let (mut windows, mut records) = (Vec::new(), Vec::new());
        for (number, (domain, &samples)) in sources.iter().zip(&shares).enumerate() {
            let want = Want { packing: options.packing, samples, length: sequence_length };
            let draw = Draw::new(options.seed, number);
            let weight = domain.weight / weights.iter().sum::<f64>();
            let (cut, record) = from_source(&domain.source, weight, want, draw, options, checkpoint)?;
            windows.extend(cut);
            records.push(record);
        }
        let manifest = Manifest {
            options: options.clone(),
            sequence_length,
            special_tokens: false,
            sources: records,
            tokens_sha256: tokens_sha256(&windows),
        };
        Ok(Self { windows, manifest })
    }
}

fn check(sources: &[Domain], options: &WindowOptions, shares: &[usize]) -> Result<(), CalibrationError> {
    let refuse = |what: String| Err(CalibrationError::Option(what));
    if sources.is_empty() {
        return refuse("there is no calibration source".into());
    }
    if options.samples == 0 || options.sequence_length == 0 {
        return refuse("--samples and --sequence-length must be at least 1".into());
    }
    if options.samples.saturating_mul(options.sequence_length) > MOST_TOKENS {
        return refuse(format!(
            "{} windows of {} tokens are more than any calibration needs; the most is {MOST_TOKENS} tokens",
            options.samples, options.sequence_length
        ));
    }
    match sources.iter().zip(shares).find(|(_, share)| **share == 0) {
        Some((domain, _)) => refuse(format!(
            "{}: its weight gives it none of the {} windows; raise --samples or its weight",
            domain.source, options.samples
        )),
        None => Ok(()),
    }
}

/// What is wanted of one source.
#[derive(Clone, Copy, Debug)]
struct Want {
    packing: Packing,
    samples: usize,
    length: usize,
}

fn from_source(
    source: &Source,
    weight: f64,
    want: Want,
    mut draw: Draw,
    options: &WindowOptions,
    checkpoint: &Checkpoint,
) -> Result<(Vec<Vec<u32>>, SourceRecord), CalibrationError> {
    let name = source.to_string();
    let (files, documents) = source.read(options.field.as_deref())?;
    let count = documents.len();
    let (want, texts) = if *source == Source::RandomTokens {
        let tokens = random_tokens(checkpoint, want.samples * want.length, &mut draw)?;
        (Want { packing: Packing::Consecutive, ..want }, vec![tokens])
    } else {
        (want, tokenize(&name, documents, want.packing, checkpoint)?)
    };
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    let places = places(&name, &lengths, want, &mut draw)?;
    let cut = places.iter().map(|place| texts[place.document][place.offset..][..place.length].to_vec()).collect();
    let tokens = lengths.iter().sum();
    Ok((cut, SourceRecord { source: name, weight, files, documents: count, tokens, windows: places }))
}

/// The tokens of each text that windows are cut from: one text for joined packings, else one a document.
fn tokenize(
    name: &str,
    documents: Vec<Document>,
    packing: Packing,
    checkpoint: &Checkpoint,
) -> Result<Vec<Vec<u32>>, CalibrationError> {
    let texts = documents.into_iter().enumerate().map(|(number, document)| match (document, packing) {
        (Document::Text(text), Packing::Concat | Packing::Consecutive | Packing::Document) => Ok(text),
        (Document::Chat(messages), Packing::Chat) => render(&messages, checkpoint).map_err(|error| {
            CalibrationError::Option(format!("{name}: message list {}: {error}", number + 1))
        }),
        (Document::Text(_), Packing::Chat) => Err(CalibrationError::Option(format!(
            "{name} holds running text, but packing `chat` needs message lists; name their field, or choose packing `document`"
        ))),
        (Document::Chat(_), _) => Err(CalibrationError::Option(format!(
            "{name} holds message lists: choose packing `chat`, or name a field that holds text"
        ))),
    });
    let mut texts = texts.collect::<Result<Vec<String>, _>>()?;
    if matches!(packing, Packing::Concat | Packing::Consecutive) {
        texts = vec![texts.join("\n\n")];
    }
    let tokens = texts.par_iter().map(|text| Ok(encode(&checkpoint.tokenizer, text, false)?));
    tokens.collect()
}

fn render(messages: &[(String, String)], checkpoint: &Checkpoint) -> Result<String, CalibrationError> {
    let template = checkpoint.chat_template.as_deref().ok_or_else(|| {
        CalibrationError::Option(
            "the model brings no chat template, which packing `chat` needs; choose packing `document` or `concat` over text".into(),
        )
    })?;
    let token = |id: Option<u32>| id.and_then(|id| checkpoint.tokenizer.id_to_token(id)).unwrap_or_default();
    let bos = token(checkpoint.config.bos_token);
    let eos = token(checkpoint.config.eos_tokens.first().copied());
    Ok(model::chat::render(template, messages, &bos, &eos)?)
}

/// The vocabulary without its special tokens, in ascending order; never empty.
pub fn plain_tokens(checkpoint: &Checkpoint) -> Result<Vec<u32>, CalibrationError> {
    let tokenizer = &checkpoint.tokenizer;
    let special = tokenizer.get_added_tokens_decoder();
    let is_plain = |id: &u32| special.get(id).is_none_or(|token| !token.special);
    let mut tokens: Vec<u32> = tokenizer.get_vocab(true).into_values().filter(is_plain).collect();
    tokens.retain(|id| (*id as usize) < checkpoint.config.vocabulary);
    tokens.sort_unstable();
    tokens.dedup();
    if tokens.is_empty() {
        return Err(CalibrationError::Option("the tokenizer has no token that isn't special, to draw from".into()));
    }
    Ok(tokens)
}

fn random_tokens(checkpoint: &Checkpoint, count: usize, draw: &mut Draw) -> Result<Vec<u32>, CalibrationError> {
    let vocabulary = plain_tokens(checkpoint)?;
    Ok((0..count).map(|_| vocabulary[draw.below(vocabulary.len())]).collect())
}

/// Where windows lie in texts of these `lengths`.
fn places(name: &str, lengths: &[usize], want: Want, draw: &mut Draw) -> Result<Vec<WindowRecord>, CalibrationError> {
    let Want { packing, samples, length } = want;
    match packing {
        Packing::Concat | Packing::Consecutive => {
            let have = lengths.first().copied().unwrap_or(0);
            let need = samples.saturating_mul(length);
            if have < need {
                return Err(CalibrationError::TooLittleText { set: name.to_owned(), have, samples, length, need });
            }
            let offset = |window| match packing {
                Packing::Concat => draw.below(have - length + 1),
                _ => window * length,
            };
            Ok((0..samples).map(offset).map(|offset| WindowRecord { document: 0, offset, length }).collect())
        }
        Packing::Document | Packing::Chat => documents(name, lengths, want, draw),
    }
}

fn documents(
    name: &str,
    lengths: &[usize],
    want: Want,
    draw: &mut Draw,
) -> Result<Vec<WindowRecord>, CalibrationError> {
    let mut candidates: Vec<usize> = (0..lengths.len()).filter(|document| lengths[*document] > 0).collect();
    if candidates.len() < want.samples {
        return Err(CalibrationError::Option(format!(
            "not enough calibration text in {name}: {} documents that hold text, but {} windows need one each; give more documents, lower --samples, or choose packing `concat`",
            candidates.len(),
            want.samples
        )));
    }
    for window in 0..want.samples {
        let left = candidates.len() - window;
        candidates.swap(window, window + draw.below(left));
    }
    let place = |document: usize| {
        let longer_by = lengths[document].saturating_sub(want.length);
        let offset = if longer_by > 0 { draw.below(longer_by + 1) } else { 0 };
        WindowRecord { document, offset, length: lengths[document].min(want.length) }
    };
    Ok(candidates.into_iter().take(want.samples).map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn cut(
        lengths: &[usize],
        packing: Packing,
        samples: usize,
        length: usize,
        seed: u64,
    ) -> Result<Vec<WindowRecord>, CalibrationError> {
        places("set", lengths, Want { packing, samples, length }, &mut Draw::new(seed, 0))
    }

    #[test]
    fn consecutive_windows_follow_each_other() {
        let places = cut(&[70], Packing::Consecutive, 3, 20, 0).unwrap();
        assert_eq!(places.iter().map(|place| place.offset).collect::<Vec<_>>(), [0, 20, 40]);
    }

    #[test]
    fn too_little_text_says_how_much_there_is() {
        let error = cut(&[59], Packing::Concat, 3, 20, 0).unwrap_err().to_string();
        for part in ["set", "59 tokens", "3 windows of 20", "60"] {
            assert!(error.contains(part), "{error}");
        }
        let error = cut(&[5, 0, 7], Packing::Document, 3, 20, 0).unwrap_err().to_string();
        assert!(error.contains("2 documents") && error.contains("3 windows"), "{error}");
        assert!(cut(&[], Packing::Concat, 1, 1, 0).is_err());
    }

    #[test]
    fn exactly_enough_text_is_enough() {
        assert_eq!(
            cut(&[20], Packing::Concat, 1, 20, 9).unwrap(),
            [WindowRecord { document: 0, offset: 0, length: 20 }]
        );
        assert_eq!(cut(&[60], Packing::Consecutive, 3, 20, 9).unwrap().len(), 3);
    }

    proptest! {
        #[test]
        fn joined_windows_lie_inside_and_follow_the_seed(
            spare in 0usize..500, samples in 1usize..20, length in 1usize..50, seed: u64,
        ) {
            let have = samples * length + spare;
            let places = cut(&[have], Packing::Concat, samples, length, seed).unwrap();
            prop_assert_eq!(places.len(), samples);
            prop_assert!(places.iter().all(|place| place.length == length && place.offset + length <= have));
            prop_assert_eq!(places, cut(&[have], Packing::Concat, samples, length, seed).unwrap());
        }

        #[test]
        fn documents_are_taken_once_and_lie_inside(
            lengths in prop::collection::vec(0usize..60, 1..40), length in 1usize..50, seed: u64,
        ) {
            let samples = lengths.iter().filter(|length| **length > 0).count();
            prop_assume!(samples > 0);
            let places = cut(&lengths, Packing::Document, samples, length, seed).unwrap();
            let taken: BTreeSet<usize> = places.iter().map(|place| place.document).collect();
            prop_assert_eq!(taken.len(), samples);
            for place in places {
                prop_assert_eq!(place.length, lengths[place.document].min(length));
                prop_assert!(place.offset + place.length <= lengths[place.document]);
            }
        }
    }
}
