//! Text to token ids.
//!
//! The tokenizers crate keeps tens of bytes for every byte of a text that is encoded as one string. A long text is cut
//! where it provably makes no difference and the pieces are encoded side by side. The place is between an ASCII letter
//! and a space that another ASCII letter follows. No word of the pre-tokenizers below has a letter before a space, none
//! looks beyond the letters it ends with, neither character changes under NFC, and merges stay inside words. Any other
//! tokenizer gets its text whole.

use crate::{ModelError, format::gguf::pre_tokenizer};
use rayon::prelude::*;
use serde_json::Value;
use tokenizers::Tokenizer;

/// Pieces are about this long.
const PIECE: usize = 1 << 18;

/// The ids of `text`. `special` lets the tokenizer add its special tokens (BOS) and is off for running text.
pub fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
    let whole = special || text.len() <= 2 * PIECE || !cuts_make_no_difference(tokenizer);
    encode_in_pieces(tokenizer, text, special, if whole { text.len() } else { PIECE })
}

fn encode_in_pieces(tokenizer: &Tokenizer, text: &str, special: bool, piece: usize) -> Result<Vec<u32>, ModelError> {
    let encode = |piece: &str| {
        let encoding =
            tokenizer.encode_fast(piece, special).map_err(|error| ModelError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    };
    let parts: Vec<Vec<u32>> = pieces(text, piece).into_par_iter().map(encode).collect::<Result<_, ModelError>>()?;
    Ok(parts.concat())
}

/// Cuts `text` at the first possible place after every `length` bytes.
fn pieces(text: &str, length: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut cut = Vec::new();
    let mut start = 0;
    let mut at = length.max(1);
    while at + 1 < bytes.len() {
        if bytes[at] == b' ' && bytes[at - 1].is_ascii_alphabetic() && bytes[at + 1].is_ascii_alphabetic() {
            cut.push(&text[start..at]);
            start = at;
            at += length;
        }
        at += 1;
    }
    cut.push(&text[start..]);
    cut
}

/// Whether the module's reasoning holds for every part of `tokenizer`.
fn cuts_make_no_difference(tokenizer: &Tokenizer) -> bool {
    let json = |part: Result<Value, serde_json::Error>| part.unwrap_or(Value::Bool(false));
    let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()));
    let pre_tokenizer = json(serde_json::to_value(tokenizer.get_pre_tokenizer()));
    is_harmless(&normalizer, "normalizers")
        && !pre_tokenizer.is_null()
        && is_harmless(&pre_tokenizer, "pretokenizers")
        && tokenizer.get_added_tokens_decoder().values().all(|token| {
            let bytes = token.content.as_bytes();
            let spans = bytes.windows(2).any(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b' ');
            let swallows = token.rstrip && bytes.last().is_some_and(u8::is_ascii_alphabetic);
            !spans && !swallows && !token.single_word
        })
}

/// Whether a normalizer or pre-tokenizer, written as in tokenizer.json, is one that the module speaks of.
fn is_harmless(part: &Value, steps: &str) -> bool {
    match part["type"].as_str() {
        None => part.is_null(),
        Some("NFC" | "Digits") => true,
        Some("ByteLevel") => part["add_prefix_space"] == Value::Bool(false),
        Some("Split") => {
            let known = |pattern: &str| pre_tokenizer::expressions().any(|expression| expression == pattern);
            part["pattern"]["Regex"].as_str().is_some_and(known)
                && part["behavior"] == "Isolated"
                && part["invert"] == Value::Bool(false)
        }
        Some("Sequence") => {
            part[steps].as_array().is_some_and(|parts| parts.iter().all(|part| is_harmless(part, steps)))
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pre_tokenizer::{NAMES, rules};
    use proptest::prelude::*;
    use tokenizers::{AddedToken, models::bpe::BPE, normalizers::Lowercase, pre_tokenizers::byte_level::ByteLevel};

    /// Bytes and a few merges, cut into words by the rules of `name`.
    fn tokenizer(name: &str) -> Tokenizer {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let merges = [("Ġ", "a"), ("a", "b"), ("Ġa", "b"), ("'", "s"), ("Ġ", "Ġ"), ("1", "2"), ("Ċ", "Ċ")];
        let merges = merges.map(|(left, right)| (left.to_owned(), right.to_owned()));
        let tokens =
            alphabet.iter().map(char::to_string).chain(merges.iter().map(|(left, right)| left.clone() + right));
        let vocabulary: tokenizers::models::bpe::Vocab = tokens.zip(0..).collect();
        let rules = rules(name, false).unwrap().unwrap();
        let model = BPE::builder().vocab_and_merges(vocabulary, merges.to_vec()).ignore_merges(rules.ignore_merges);
        let mut tokenizer = Tokenizer::new(model.build().unwrap());
        tokenizer.with_normalizer(rules.normalizer).unwrap();
        tokenizer.with_pre_tokenizer(Some(rules.pre_tokenizer));
        tokenizer.add_special_tokens([AddedToken::from("<|end|>", true), AddedToken::from(" b", false)]).unwrap();
        tokenizer
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn pieces_give_the_ids_of_the_whole(text in "(a|b|S|é|e\u{301}|1|2|'s|'LL| |  |\n|\r\n|\t|\\.|/|<\\|end\\|>|你|🙂){0,60}") {
            for name in NAMES {
                let tokenizer = tokenizer(name);
                assert!(cuts_make_no_difference(&tokenizer), "{name}");
                let whole = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
                for length in [1, 5, 20] {
                    prop_assert_eq!(&encode_in_pieces(&tokenizer, &text, false, length).unwrap(), &whole, "{} {}", name, length);
                }
            }
        }
    }

    #[test]
    fn pieces_make_up_the_text() {
        let text = "ab cd. ef gh\nij kl";
        assert_eq!(pieces(text, 1), ["ab", " cd. ef", " gh\nij", " kl"]);
        for length in [1, 3, 100] {
            assert_eq!(pieces(text, length).concat(), text);
        }
        assert_eq!(pieces("", 10), [""]);
        assert_eq!(pieces("a b", 1), ["a", " b"]);
    }

    #[test]
    fn what_is_not_understood_is_encoded_whole() {
        let with = |change: &dyn Fn(&mut Tokenizer)| {
            let mut tokenizer = tokenizer("qwen2");
            change(&mut tokenizer);
            cuts_make_no_difference(&tokenizer)
        };
        assert!(with(&|_| ()));
        assert!(!with(&|t| {
            t.with_normalizer(Some(Lowercase)).unwrap();
        }));
        assert!(!with(&|t| {
            t.with_pre_tokenizer(Some(ByteLevel::default()));
        }));
        assert!(!with(&|t| {
            t.with_pre_tokenizer(None::<ByteLevel>);
        }));
        for token in [
            AddedToken::from("a b", false),
            AddedToken::from("<|x|>", true).single_word(true),
            AddedToken::from("end", true).rstrip(true),
        ] {
            assert!(
                !with(&|t| {
                    t.add_tokens([token.clone()]).unwrap();
                }),
                "{token:?}"
            );
        }
    }
}
