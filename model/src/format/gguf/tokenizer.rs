//! The tokenizer of a GGUF file, as the tokenizers crate would have read it from tokenizer.json.
//!
//! `gpt2`: byte-level byte-pair encoding with the merges of the file. `llama`: SentencePiece's byte-pair encoding, which
//! merges the pair with the best score; it becomes merges in the order of the scores, as Transformers does it: for each
//! token, every split into two tokens is a merge, better scores first, longer left and right parts first among equals.

use super::{Architecture, metadata::Metadata, pre_tokenizer};
use crate::ModelError;
use std::{cmp::Ordering, collections::HashMap};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, Tokenizer,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::{BPE, Vocab},
    normalizers::{Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::byte_level::ByteLevel,
    processors::{sequence::Sequence as Processors, template::TemplateProcessing},
};

/// SentencePiece's visible space.
const SPACE: &str = "▁";

/// The work on a token grows with the square of its length; real ones are far shorter than this.
const LONGEST_TOKEN: usize = 1024;

/// The values of `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: u32 = 1;
    pub(super) const UNKNOWN: u32 = 2;
    pub(super) const CONTROL: u32 = 3;
    pub(super) const USER_DEFINED: u32 = 4;
}

/// The vocabulary of a file.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    ids: HashMap<&'a str, u32>,
    kinds: Vec<u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>) -> Result<Self, ModelError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.texts(key)?.ok_or_else(|| metadata.missing(key))?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0..).zip(&tokens) {
            if let Some(other) = ids.insert(*token, id) {
                let what = format!("`{key}` has `{token}` twice, at {other} and {id}");
                return Err(ModelError::malformed(metadata.path, what));
            }
        }
        let key = "tokenizer.ggml.token_type";
        let kinds = metadata.integers(key)?.unwrap_or_else(|| vec![kind::NORMAL; tokens.len()]);
        same_length(metadata, key, kinds.len(), tokens.len())?;
        Ok(Self { tokens, ids, kinds })
    }

    /// As the tokenizers crate wants it.
    fn owned(&self) -> Vocab {
        self.ids.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect()
    }

    fn of_kind(&self, kind: u32) -> impl Iterator<Item = &'a str> {
        self.tokens.iter().zip(&self.kinds).filter(move |(_, k)| **k == kind).map(|(token, _)| *token)
    }
}

fn same_length(metadata: &Metadata<'_>, key: &str, length: usize, tokens: usize) -> Result<(), ModelError> {
    if length == tokens {
        return Ok(());
    }
    Err(ModelError::malformed(metadata.path, format!("`{key}` has {length} entries, but there are {tokens} tokens")))
}

fn refused(error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}

/// The tokenizer that the metadata describes.
pub(super) fn build(metadata: &Metadata<'_>, architecture: Architecture) -> Result<Tokenizer, ModelError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let mut tokenizer = match model_name(metadata)? {
        Model::BytePairs => byte_pairs(metadata, &vocabulary)?,
        Model::SentencePiece => sentence_piece(metadata, &vocabulary)?,
    };
    tokenizer.add_special_tokens(special(&vocabulary, architecture, model_name(metadata)?)).map_err(refused)?;
    let user = vocabulary.of_kind(kind::USER_DEFINED).map(|token| AddedToken::from(token, false).normalized(false));
    tokenizer.add_tokens(user).map_err(refused)?;
    Ok(tokenizer)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Model {
    BytePairs,
    SentencePiece,
}

fn model_name(metadata: &Metadata<'_>) -> Result<Model, ModelError> {
    let key = "tokenizer.ggml.model";
    match metadata.text(key)?.ok_or_else(|| metadata.missing(key))? {
        "gpt2" => Ok(Model::BytePairs),
        "llama" => Ok(Model::SentencePiece),
        other => Err(metadata.unsupported(format!("the tokenizer model `{other}`"))),
    }
}

/// Tokens that stand for themselves wherever they occur. Phi-3's take the space after them along, which the file can't
/// say and its tokenizer.json does.
fn special(vocabulary: &Vocabulary<'_>, architecture: Architecture, model: Model) -> Vec<AddedToken> {
    let strips = |token: &str| {
        architecture == Architecture::Phi3
            && model == Model::SentencePiece
            && !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
    };
    let added = |token| AddedToken::from(token, true).rstrip(strips(token));
    vocabulary.of_kind(kind::UNKNOWN).chain(vocabulary.of_kind(kind::CONTROL)).map(added).collect()
}

/// The rules that `tokenizer.ggml.pre` names.
fn rules(metadata: &Metadata<'_>) -> Result<pre_tokenizer::Rules, ModelError> {
    let key = "tokenizer.ggml.pre";
    let name = metadata.text(key)?.ok_or_else(|| ModelError::Unsupported {
        path: metadata.path.into(),
        what: format!("a tokenizer that doesn't name its pre-tokenizer (`{key}`; convert the model again to have it)"),
    })?;
    let prefix_space = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    pre_tokenizer::rules(name, prefix_space)
        .map_err(refused)?
        .ok_or_else(|| metadata.unsupported(format!("the pre-tokenizer `{name}`")))
}

fn byte_pairs(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, ModelError> {
    let rules = rules(metadata)?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.owned(), stored_merges(metadata, vocabulary)?)
        .ignore_merges(rules.ignore_merges)
        .build()
        .map_err(refused)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(rules.normalizer).map_err(refused)?;
    tokenizer.with_pre_tokenizer(Some(rules.pre_tokenizer));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let bytes = PostProcessorWrapper::from(ByteLevel::default().trim_offsets(false));
    tokenizer.with_post_processor(Some(match template(metadata, vocabulary)? {
        Some(template) => Processors::new(vec![bytes, template.into()]).into(),
        None => bytes,
    }));
    Ok(tokenizer)
}

/// The file's merges, each checked to join tokens into a token.
fn stored_merges(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<Vec<(String, String)>, ModelError> {
    let key = "tokenizer.ggml.merges";
    let merges = metadata.texts(key)?.ok_or_else(|| metadata.missing(key))?;
    let known = |text: &str| vocabulary.ids.contains_key(text);
    let parse = |merge: &str| {
        let (left, right) = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty())?;
        let joined = [left, right].concat();
        (known(left) && known(right) && known(&joined)).then(|| (left.to_owned(), right.to_owned()))
    };
    let checked = |merge: &&str| {
        parse(merge).ok_or_else(|| {
            ModelError::malformed(
                metadata.path,
                format!("`{key}` has `{merge}`, which doesn't join two tokens into one"),
            )
        })
    };
    merges.iter().map(checked).collect()
}

fn sentence_piece(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, ModelError> {
    for key in ["tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap"] {
        if metadata.entries.get(key).is_some_and(|value| *value != super::container::Value::Bool(false)) {
            return Err(metadata.unsupported(format!("the tokenizer setting `{key}`")));
        }
    }
    let key = "tokenizer.ggml.scores";
    let scores = metadata.numbers(key)?.ok_or_else(|| metadata.missing(key))?;
    same_length(metadata, key, scores.len(), vocabulary.tokens.len())?;
    if scores.iter().any(|score| score.is_nan()) {
        return Err(ModelError::malformed(metadata.path, format!("`{key}` has a score that is not a number")));
    }
    if let Some(id) = vocabulary.tokens.iter().position(|token| token.len() > LONGEST_TOKEN) {
        let what = format!("token {id} is {} bytes long, more than {LONGEST_TOKEN}", vocabulary.tokens[id].len());
        return Err(ModelError::malformed(metadata.path, what));
    }
    let fallback = (0..=255_u8).all(|byte| vocabulary.ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    let mut model = BPE::builder()
        .vocab_and_merges(vocabulary.owned(), merges_by_score(vocabulary, &scores))
        .byte_fallback(fallback)
        .fuse_unk(true);
    if let Some(unknown) = vocabulary.of_kind(kind::UNKNOWN).next() {
        model = model.unk_token(unknown.to_owned());
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(refused)?);
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    tokenizer.with_normalizer(Some(spaces_made_visible(prefix)?)).map_err(refused)?;
    tokenizer.with_decoder(Some(spaces_restored(prefix)?));
    tokenizer.with_post_processor(template(metadata, vocabulary)?);
    Ok(tokenizer)
}

/// Every way to join two tokens into one, best score first.
fn merges_by_score(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<(String, String)> {
    let part = |text: &str| {
        let id = vocabulary.ids.get(text)?;
        matches!(vocabulary.kinds[*id as usize], kind::NORMAL | kind::USER_DEFINED).then_some(*id)
    };
    let length = |text: &str| text.chars().count();
    let mut merges: Vec<(f32, [usize; 2], &str, &str)> = Vec::new();
    for (token, score) in vocabulary.tokens.iter().zip(scores) {
        if part(token).is_none() {
            continue;
        }
        let mut splits: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(left, right)| Some((part(left)?, part(right)?, left, right)))
            .collect();
        splits.sort_unstable_by_key(|(left, right, _, _)| (*left, *right));
        let ranked = splits.into_iter().map(|(_, _, left, right)| (*score, [length(left), length(right)], left, right));
        merges.extend(ranked);
    }
    merges.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then_with(|| b.1.cmp(&a.1)));
    merges.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}

fn spaces_made_visible(prefix: bool) -> Result<NormalizerWrapper, ModelError> {
    let replace = Replace::new(" ", SPACE).map_err(refused)?;
    let steps = if prefix { vec![Prepend::new(SPACE.to_owned()).into(), replace.into()] } else { vec![replace.into()] };
    Ok(Normalizers::new(steps).into())
}

fn spaces_restored(prefix: bool) -> Result<DecoderWrapper, ModelError> {
    let replace = Replace::new(SPACE, " ").map_err(refused)?;
    let mut steps: Vec<DecoderWrapper> = vec![replace.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    Ok(Decoders::new(steps).into())
}

/// Whether a beginning-of-text token is put before a text that asks for special tokens.
pub(super) fn adds_bos(metadata: &Metadata<'_>) -> Result<bool, ModelError> {
    if let Some(says) = metadata.flag("tokenizer.ggml.add_bos_token")? {
        return Ok(says);
    }
    Ok(match model_name(metadata)? {
        Model::SentencePiece => true,
        Model::BytePairs => rules(metadata)?.adds_bos && metadata.size("tokenizer.ggml.bos_token_id")?.is_some(),
    })
}

/// Whether an end-of-text token is put after a text that asks for special tokens.
pub(super) fn adds_eos(metadata: &Metadata<'_>) -> Result<bool, ModelError> {
    Ok(metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false))
}

/// The tokens that the file gives a role, by the name of the role in `tokenizer_config.json`.
pub(super) fn special_tokens(metadata: &Metadata<'_>) -> Result<Vec<(&'static str, String)>, ModelError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let roles = [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
    let mut tokens = Vec::new();
    for (role, name) in roles {
        if let Some((token, _)) = token_of(metadata, &vocabulary, name)? {
            tokens.push((role, token));
        }
    }
    Ok(tokens)
}

/// The token whose id the file gives for `name`.
fn token_of(
    metadata: &Metadata<'_>,
    vocabulary: &Vocabulary<'_>,
    name: &str,
) -> Result<Option<(String, u32)>, ModelError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = metadata.size(&key)? else { return Ok(None) };
    match usize::try_from(id).ok().and_then(|id| vocabulary.tokens.get(id)) {
        Some(token) => Ok(Some(((*token).to_owned(), id as u32))),
        None => Err(ModelError::malformed(
            metadata.path,
            format!("`{key}` is {id}, but there are {} tokens", vocabulary.tokens.len()),
        )),
    }
}

/// Puts beginning and end of text around a text, where the file wants them.
fn template(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<Option<TemplateProcessing>, ModelError> {
    let wanted = |add: bool, name| -> Result<Option<(String, u32)>, ModelError> {
        if !add {
            return Ok(None);
        }
        let missing = || metadata.missing(&format!("tokenizer.ggml.{name}_token_id"));
        token_of(metadata, vocabulary, name)?.ok_or_else(missing).map(Some)
    };
    let before = wanted(adds_bos(metadata)?, "bos")?;
    let after = wanted(adds_eos(metadata)?, "eos")?;
    if before.is_none() && after.is_none() {
        return Ok(None);
    }
    let around = |text: &str, sequence: u32| -> Vec<String> {
        let token = |token: &Option<(String, u32)>| token.as_ref().map(|(token, _)| format!("{token}:{sequence}"));
        token(&before).into_iter().chain([format!("{text}:{sequence}")]).chain(token(&after)).collect()
    };
    let pair: Vec<String> = around("$A", 0).into_iter().chain(around("$B", 1)).collect();
    TemplateProcessing::builder()
        .try_single(around("$A", 0))
        .map_err(refused)?
        .try_pair(pair)
        .map_err(refused)?
        .special_tokens(before.into_iter().chain(after).collect::<Vec<_>>())
        .build()
        .map(Some)
        .map_err(refused)
}
