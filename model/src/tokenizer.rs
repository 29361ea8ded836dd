//! Text to token ids and back.

use crate::ModelError;
use tokenizers::Tokenizer;

/// The ids of `text`. `special` lets the tokenizer add its special tokens (BOS) and is off for running text.
pub fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
    let encoding = tokenizer.encode_fast(text, special).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}
