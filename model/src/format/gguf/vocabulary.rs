//! The metadata of a tokenizer, the way back of [`super::tokenizer`].
//!
//! Byte-level byte-pair encodings become model `gpt2`; how they cut text into words has a name in GGUF files, found by
//! trying each known name on texts that tell them apart. SentencePiece's encodings become model `llama`: a token that
//! the merges of tokenizer.json make n-th gets the score -n. What is written is read again and compared
//! ([`super::write()`]), so that a tokenizer that can't be said in metadata is refused and not bent.

use super::{front::Entries, front::Entry, pre_tokenizer};
use crate::{Checkpoint, ModelError, demo};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use tokenizers::Tokenizer;

/// Texts that known pre-tokenizers cut differently, and what tokenizers stumble over.
const PROBES: [&str; 8] = [
    "I'LL pay12345 (now)\n\n  fooBar don't WON'T they've",
    "  leading,   inner\t\ttabs \r\n and\u{a0}no-break  trailing  ",
    "3.14159 1,000,000 ٣٤٥ 2²+x₁",
    "naïve Ünïcödé e\u{301} ﬁ Ａ ｶ \u{200b}zero",
    "漢字かな交じり文。中文文本 한국어 текст עברית العربية ภาษาไทย",
    "🙂🏳\u{fe0f}\u{200d}🌈 … “quotes” — dashes",
    "fn main() { let x = a[0]->b::<T>(1); /* ok */ } // https://a.b/c?d=e&f=g#h",
    "\n\n\n\nCamelCaseHTTPServer snake_case __init__ <|x|> </s>",
];

/// The texts on which two tokenizers are compared; `tokenizer`'s own tokens among them.
pub(super) fn probes(tokenizer: &Tokenizer) -> Vec<String> {
    let mut texts: Vec<String> = PROBES.iter().map(|text| (*text).to_owned()).collect();
    let added = tokenizer.get_added_tokens_decoder();
    texts.extend(added.values().map(|token| format!("before {} after{}", token.content, token.content)));
    texts.extend(["prose", "code"].iter().filter_map(|name| demo::text(name)).map(str::to_owned));
    texts
}

/// The first text that the two don't encode to the same ids, with or without special tokens.
pub(super) fn difference(ours: &Tokenizer, other: &Tokenizer) -> Option<String> {
    let ids = |tokenizer: &Tokenizer, text: &str, special| {
        tokenizer.encode_fast(text, special).map(|encoding| encoding.get_ids().to_vec()).ok()
    };
    let differs = |text: &String| [true, false].iter().any(|&s| ids(ours, text, s) != ids(other, text, s));
    probes(ours).into_iter().find(differs)
}

/// The values of `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// All metadata of the tokenizer of `source`.
pub(super) fn entries(source: &Checkpoint) -> Result<Entries, ModelError> {
    let tokenizer = &source.tokenizer;
    let model = serde_json::to_value(tokenizer.get_model()).map_err(refused)?;
    if model["type"] != "BPE" {
        return Err(refused(format!("GGUF files hold byte-pair encodings, but the model is {}", model["type"])));
    }
    let tokens = Tokens::of(source, &model)?;
    let mut entries: Entries = Vec::new();
    let mut set = |key: &str, value| entries.push((format!("tokenizer.ggml.{key}"), value));
    if mentions_byte_level(tokenizer) {
        set("model", Entry::Text("gpt2".into()));
        set("pre", Entry::Text(pre_tokenizer_name(tokenizer, &model)?.into()));
        set("merges", Entry::Texts(merges(&model)?.iter().map(|(left, right)| format!("{left} {right}")).collect()));
    } else if model["byte_fallback"] == true {
        set("model", Entry::Text("llama".into()));
        set("scores", Entry::Floats(scores(&tokens.texts, &merges(&model)?)));
        set("add_space_prefix", Entry::Bool(puts_a_space_before(tokenizer)));
    } else {
        return Err(refused("it is neither byte-level nor has it a token for every byte"));
    }
    set("tokens", Entry::Texts(tokens.texts.clone()));
    set("token_type", Entry::Ints(tokens.kinds.clone()));
    let (before, after) = put_around(tokenizer);
    for (role, id) in special_ids(source, before, after)? {
        set(&format!("{role}_token_id"), Entry::U32(id));
    }
    set("add_bos_token", Entry::Bool(before.is_some()));
    set("add_eos_token", Entry::Bool(after.is_some()));
    if let Some(template) = &source.chat_template {
        entries.push(("tokenizer.chat_template".into(), Entry::Text(template.clone())));
    }
    Ok(entries)
}

fn refused(what: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(format!("can't be written to a GGUF file: {what}"))
}

/// Texts and kinds of all tokens, as many as the embedding has rows.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
}

impl Tokens {
    fn of(source: &Checkpoint, model: &Value) -> Result<Self, ModelError> {
        let rows = source.config.vocabulary;
        let mut texts: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![kind::UNUSED; rows];
        let byte = |text: &str| text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        for (text, id) in source.tokenizer.get_vocab(false) {
            let kind = if model["byte_fallback"] == true && byte(&text) { kind::BYTE } else { kind::NORMAL };
            Self::put(&mut texts, &mut kinds, id, text, kind)?;
        }
        for (id, token) in source.tokenizer.get_added_tokens_decoder() {
            let kind = if token.special { kind::CONTROL } else { kind::USER_DEFINED };
            Self::put(&mut texts, &mut kinds, id, token.content, kind)?;
        }
        if let Some(unknown) = model["unk_token"].as_str().and_then(|token| source.tokenizer.token_to_id(token)) {
            kinds[unknown as usize] = kind::UNKNOWN;
        }
        Ok(Self { texts, kinds })
    }

    fn put(texts: &mut [String], kinds: &mut [i32], id: u32, text: String, kind: i32) -> Result<(), ModelError> {
        let rows = texts.len();
        match texts.get_mut(id as usize) {
            Some(place) => *place = text,
            None => return Err(refused(format!("token {id} (`{text}`) is beyond the embedding's {rows} rows"))),
        }
        kinds[id as usize] = kind;
        Ok(())
    }
}

fn mentions_byte_level(tokenizer: &Tokenizer) -> bool {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or(Value::Null);
    decoder.to_string().contains("ByteLevel")
}

/// The merges, each a pair.
fn merges(model: &Value) -> Result<Vec<(String, String)>, ModelError> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        Value::Array(parts) => match &parts[..] {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    let listed = model["merges"].as_array().ok_or_else(|| refused("it has no merges"))?;
    listed.iter().map(|merge| pair(merge).ok_or_else(|| refused(format!("its merge {merge} is no pair")))).collect()
}

/// A score for each token: the earlier the first merge that makes it, the better.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (left, right) in merges {
        let next = rank.len();
        rank.entry([left.as_str(), right].concat()).or_insert(next);
    }
    let worst = -(rank.len() as f32);
    tokens.iter().map(|token| rank.get(token).map_or(worst, |rank| -(*rank as f32))).collect()
}

/// The name whose rules cut text as the tokenizer does.
fn pre_tokenizer_name(tokenizer: &Tokenizer, model: &Value) -> Result<&'static str, ModelError> {
    for name in pre_tokenizer::NAMES {
        let Some(rules) = pre_tokenizer::rules(name, false).map_err(refused)? else { continue };
        if model["ignore_merges"] != rules.ignore_merges {
            continue;
        }
        let mut candidate = tokenizer.clone();
        candidate.with_normalizer(rules.normalizer).map_err(refused)?;
        candidate.with_pre_tokenizer(Some(rules.pre_tokenizer));
        if difference(tokenizer, &candidate).is_none() {
            return Ok(name);
        }
    }
    Err(refused("no pre-tokenizer that GGUF files name cuts text as it does"))
}

/// Whether a space is put before a text.
fn puts_a_space_before(tokenizer: &Tokenizer) -> bool {
    let first = |text: &str| tokenizer.encode_fast(text, false).ok().and_then(|e| e.get_ids().first().copied());
    // Any letter: with the space before it, its first token is not the one it has behind another letter's merge.
    let spaced = |text: &str| tokenizer.id_to_token(first(text).unwrap_or(0)).is_some_and(|t| t.starts_with('▁'));
    spaced("a")
}

/// What is put before and behind a text that asks for special tokens.
fn put_around(tokenizer: &Tokenizer) -> (Option<u32>, Option<u32>) {
    let ids = |special| tokenizer.encode_fast("a", special).map(|e| e.get_ids().to_vec()).unwrap_or_default();
    let (plain, around) = (ids(false), ids(true));
    let at = around.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
    (around[..at].first().copied(), around.get(at + plain.len()).copied())
}

/// The tokens that have a role: by `tokenizer_config.json`, else by `config.json`; beginning and end of text that are put
/// around a text are what is put there.
fn special_ids(
    source: &Checkpoint,
    before: Option<u32>,
    after: Option<u32>,
) -> Result<BTreeMap<&'static str, u32>, ModelError> {
    let path = source.path.join("tokenizer_config.json");
    let stated: Value = if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path))?;
        serde_json::from_str(&text).map_err(|e| ModelError::malformed(&path, format!("is not JSON: {e}")))?
    } else {
        Value::Null
    };
    let mut ids = BTreeMap::new();
    for (role, key) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        let token = stated[key].as_str().or_else(|| stated[key]["content"].as_str());
        ids.extend(token.and_then(|token| source.tokenizer.token_to_id(token)).map(|id| (role, id)));
    }
    ids.extend(before.map(|id| ("bos", id)));
    ids.extend(after.map(|id| ("eos", id)));
    let config = &source.config;
    if let Some(bos) = config.bos_token {
        ids.entry("bos").or_insert(bos);
    }
    if let Some(eos) = config.eos_tokens.first() {
        let other = config.eos_tokens.iter().find(|id| *id != ids.entry("eos").or_insert(*eos)).copied();
        ids.extend(other.map(|other| ("eot", other)));
    }
    Ok(ids)
}
