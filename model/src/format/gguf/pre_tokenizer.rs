//! How a byte-pair tokenizer cuts text into words before it merges, by the name in `tokenizer.ggml.pre`.
//!
//! The name stands for the `normalizer` and `pre_tokenizer` of the tokenizer.json that the file was converted from. Only
//! names whose original is known are listed; any other is refused, because words cut elsewhere give other ids without
//! any error.

use tokenizers::{
    NormalizerWrapper, PreTokenizerWrapper,
    normalizers::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    tokenizer::SplitDelimiterBehavior::Isolated,
};

/// Contractions, words with one leading sign, up to three digits, signs, line ends, spaces.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words are cut where upper case begins; single digits.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words are cut where upper case begins and keep their contraction; up to three digits.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Cuts one after the other.
const DEEPSEEK_CODER: [&str; 4] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"];
/// What ggml does with files that don't know better: GPT-2 between signs and groups of three digits.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// Every regular expression that is used here.
pub(crate) fn expressions() -> impl Iterator<Item = &'static str> {
    [LLAMA3, QWEN2, TEKKEN, GPT4O].into_iter().chain(DEEPSEEK_CODER).chain(DEFAULT)
}

/// A name's meaning.
pub(crate) struct Rules {
    /// Applied to the text first.
    pub(crate) normalizer: Option<NormalizerWrapper>,
    /// Cuts the text and writes bytes as characters.
    pub(crate) pre_tokenizer: PreTokenizerWrapper,
    /// Whether a word that is a token stays whole, whatever the merges say.
    pub(crate) ignore_merges: bool,
    /// Whether a beginning-of-text token is added where the file doesn't say.
    pub(crate) adds_bos: bool,
}

/// All names that mean different rules, the commonest of equals first.
pub(crate) const NAMES: [&str; 12] = [
    "gpt-2",
    "smollm",
    "starcoder",
    "refact",
    "codeshell",
    "llama-bpe",
    "smaug-bpe",
    "qwen2",
    "tekken",
    "gpt-4o",
    "deepseek-coder",
    "default",
];

/// The rules of `name`; `None` if it isn't known.
pub(crate) fn rules(name: &str, prefix_space: bool) -> tokenizers::Result<Option<Rules>> {
    // ByteLevel with its own regular expression is GPT-2.
    let gpt2 = ByteLevel::new(prefix_space, true, true);
    let bytes = ByteLevel::new(prefix_space, true, false);
    let (steps, ignore_merges, adds_bos): (Vec<PreTokenizerWrapper>, bool, bool) = match name {
        "gpt-2" => (vec![gpt2.into()], false, false),
        "smollm" | "starcoder" | "refact" | "codeshell" => (vec![Digits::new(true).into(), gpt2.into()], false, false),
        "llama-bpe" | "llama3" | "llama-v3" => (cuts(&[LLAMA3], bytes)?, true, true),
        "smaug-bpe" | "dbrx" => (cuts(&[LLAMA3], bytes)?, false, false),
        "qwen2" => (cuts(&[QWEN2], bytes)?, false, false),
        "tekken" => (cuts(&[TEKKEN], bytes)?, true, true),
        "gpt-4o" => (cuts(&[GPT4O], bytes)?, false, false),
        "deepseek-coder" => {
            let mut steps = cuts(&DEEPSEEK_CODER, bytes)?;
            steps.insert(DEEPSEEK_CODER.len(), Digits::new(true).into());
            (steps, false, false)
        }
        "default" => (cuts(&DEFAULT, bytes)?, false, false),
        _ => return Ok(None),
    };
    let normalizer = (name == "qwen2").then(|| NFC.into());
    Ok(Some(Rules { normalizer, pre_tokenizer: Sequence::new(steps).into(), ignore_merges, adds_bos }))
}

/// Regular expressions that each cut what the one before left, then `bytes`.
fn cuts(expressions: &[&str], bytes: ByteLevel) -> tokenizers::Result<Vec<PreTokenizerWrapper>> {
    let mut steps = Vec::new();
    for expression in expressions {
        steps.push(Split::new(SplitPattern::Regex((*expression).to_owned()), Isolated, false)?.into());
    }
    steps.push(bytes.into());
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        rules(name, false).unwrap().unwrap().pre_tokenizer.pre_tokenize(&mut cut).unwrap();
        let words = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words.into_iter().map(|(word, _, _)| word.replace('Ġ', "_").replace('Ċ', "/")).collect()
    }

    #[test]
    fn each_name_cuts_in_its_own_way() {
        let text = "I'LL pay12345 (now)\n\n  fooBar";
        assert_eq!(words("gpt-2", text), ["I", "'", "LL", "_pay", "12345", "_(", "now", ")", "//_", "_fooBar"]);
        assert_eq!(
            words("smollm", text),
            ["I", "'", "LL", "_pay", "1", "2", "3", "4", "5", "_(", "now", ")", "//_", "_fooBar"]
        );
        assert_eq!(words("llama-bpe", text), ["I", "'LL", "_pay", "123", "45", "_(", "now", ")//", "_", "_fooBar"]);
        assert_eq!(
            words("qwen2", text),
            ["I", "'LL", "_pay", "1", "2", "3", "4", "5", "_(", "now", ")//", "_", "_fooBar"]
        );
        assert_eq!(
            words("tekken", text),
            ["I", "'LL", "_pay", "1", "2", "3", "4", "5", "_(", "now", ")//", "_", "_foo", "Bar"]
        );
        assert_eq!(words("gpt-4o", text), ["I'LL", "_pay", "123", "45", "_(", "now", ")//", "_", "_foo", "Bar"]);
        assert_eq!(
            words("deepseek-coder", text),
            ["I", "'", "LL", "_pay", "1", "2", "3", "4", "5", "_(", "now", ")", "/", "/", "_", "_fooBar"]
        );
        assert_eq!(
            words("default", text),
            ["I", "'", "LL", "_pay", "123", "45", "_", "(", "now", ")", "//_", "_fooBar"]
        );
    }

    #[test]
    fn unknown_names_have_no_rules() {
        assert!(rules("", false).unwrap().is_none());
        assert!(rules("llama", false).unwrap().is_none());
    }
}
