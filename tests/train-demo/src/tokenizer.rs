//! The demo model's tokenizer: byte-level BPE over the whitespace rules of GPT-2, so that any text has tokens.

use anyhow::Result;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Closes a document; token 0.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// Entries in the vocabulary: 1 special, 256 bytes, the rest merges.
pub(crate) const VOCABULARY: usize = 2048;

/// The tokenizer at `path`, first trained from `documents` where there is none.
pub(crate) fn load_or_train(path: &Path, documents: &[&String]) -> Result<Tokenizer> {
    if !path.exists() {
        let tokenizer = train(documents)?;
        let json = tokenizer.to_string(true).map_err(anyhow::Error::msg)?;
        crate::state::write_atomically(path, json.as_bytes())?;
    }
    Tokenizer::from_file(path).map_err(anyhow::Error::msg)
}

fn train(documents: &[&String]) -> Result<Tokenizer> {
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level))
        .with_post_processor(Some(byte_level))
        .train(&mut TrainerWrapper::BpeTrainer(trainer), documents.iter())
        .map_err(anyhow::Error::msg)?;
    Ok(tokenizer)
}
