//! A document as tokens, with the bytes each stands for.

use model::{Checkpoint, ModelError};

/// The tokens of one document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Tokens at the start that the tokenizer added.
    pub added: usize,
    /// Bytes of the document up to the end of each token. A token's bytes are those since the end of the token before,
    /// so that the bytes of all tokens add up whether or not offsets include a leading space.
    ends: Vec<usize>,
}

impl Stream {
    /// Tokenizes `text` whole; `special` lets the tokenizer add what it adds around a text.
    pub fn tokenize(checkpoint: &Checkpoint, text: &str, special: bool) -> Result<Self, ModelError> {
        let refused = |error: Box<dyn std::error::Error + Send + Sync>| ModelError::Tokenizer(error.to_string());
        let encoding = checkpoint.tokenizer.encode(text, special).map_err(refused)?;
        let mut reached = 0;
        let ends = encoding.get_offsets().iter().map(|&(_, end)| {
            reached = reached.max(end);
            reached
        });
        let ends = ends.collect();
        let added = encoding.get_special_tokens_mask().iter().take_while(|&&added| added == 1).count();
        Ok(Self { tokens: encoding.get_ids().to_vec(), added, ends })
    }

    /// Keeps the first `count` tokens.
    pub fn truncate(&mut self, count: usize) {
        self.tokens.truncate(count);
        self.ends.truncate(count);
        self.added = self.added.min(count);
    }

    /// Bytes that tokens `from..to` stand for.
    pub fn bytes(&self, from: usize, to: usize) -> usize {
        let end_of = |count: usize| if count == 0 { 0 } else { self.ends[count - 1] };
        end_of(to) - end_of(from)
    }

    /// A stream of tokens of one byte each, for tests of what comes after.
    #[cfg(test)]
    pub(crate) fn of(tokens: impl IntoIterator<Item = u32>) -> Self {
        let tokens: Vec<u32> = tokens.into_iter().collect();
        let ends = (1..=tokens.len()).collect();
        Self { tokens, added: 0, ends }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_add_up_and_truncation_keeps_the_front() {
        let mut stream = Stream { tokens: vec![1, 2, 3], added: 1, ends: vec![0, 4, 9] };
        assert_eq!((stream.bytes(0, 3), stream.bytes(1, 2), stream.bytes(2, 3)), (9, 4, 5));
        stream.truncate(2);
        assert_eq!((stream.tokens.as_slice(), stream.bytes(0, 2)), ([1, 2].as_slice(), 4));
    }
}
