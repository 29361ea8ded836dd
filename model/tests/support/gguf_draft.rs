//! GGUF files put together byte by byte from the format's description, apart from the code that writes them in earnest:
//! drafts that a test changes, opens and breaks.

use model::{ModelError, format::gguf::GgufFile};
use std::path::PathBuf;
use tempfile::TempDir;

/// A metadata value to be written.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

/// A file to be written.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) version: u32,
    pub(crate) entries: Vec<(String, Meta)>,
    /// Name, shape (slowest first), type number, blocks.
    pub(crate) tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_list<T>(out: &mut Vec<u8>, kind: u32, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    for item in items {
        put(out, item);
    }
}

impl Meta {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(value) => out.extend([4, *value].iter().flat_map(|word| word.to_le_bytes())),
            Self::F32(value) => out.extend([6, value.to_bits()].iter().flat_map(|word| word.to_le_bytes())),
            Self::Bool(value) => {
                out.extend(7_u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Self::Text(text) => {
                out.extend(8_u32.to_le_bytes());
                put_text(out, text);
            }
            Self::Texts(texts) => put_list(out, 8, texts, |out, text| put_text(out, text)),
            Self::Ints(values) => put_list(out, 5, values, |out, value| out.extend(value.to_le_bytes())),
            Self::Floats(values) => put_list(out, 6, values, |out, value| out.extend(value.to_le_bytes())),
        }
    }
}

impl Draft {
    pub(crate) fn set(mut self, key: &str, value: Meta) -> Self {
        self.entries.retain(|(other, _)| other != key);
        self.entries.push((key.to_owned(), value));
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(other, _)| other != key);
        self
    }

    pub(crate) fn floats(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), 0, bytes));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            put_text(&mut out, key);
            value.put(&mut out);
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, shape, kind, blocks) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            put_text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|extent| out.extend((*extent as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(blocks);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub(crate) fn open(&self) -> Result<Opened, ModelError> {
        Opened::from(&self.bytes())
    }

    pub(crate) fn refusal(&self) -> String {
        match self.open() {
            Err(error) => error.to_string(),
            Ok(opened) => opened.file.config_json().map(|_| ()).unwrap_err().to_string(),
        }
    }
}

/// An opened file and the folder that it lies in.
pub(crate) struct Opened {
    pub(crate) file: GgufFile,
    _folder: TempDir,
}

impl Opened {
    pub(crate) fn from(bytes: &[u8]) -> Result<Self, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        Ok(Self { file: GgufFile::open(&path)?, _folder: folder })
    }
}

pub(crate) fn texts(texts: &[&str]) -> Meta {
    Meta::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

/// A model of `architecture` with heads of width 8 in two layers, without tensors but the embedding.
pub(crate) fn draft(architecture: &str) -> Draft {
    let mut draft = Draft { version: 3, entries: Vec::new(), tensors: Vec::new() }
        .set("general.architecture", Meta::Text(architecture.into()))
        .floats("token_embd.weight", &[40, 32], &[0.5; 40 * 32]);
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        draft = draft.set(&format!("{architecture}.{key}"), Meta::U32(value));
    }
    draft
        .set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Meta::F32(1e-5))
        .set(&format!("{architecture}.rope.freq_base"), Meta::F32(10000.0))
}

/// A byte-level tokenizer with a merge, one token of every kind.
pub(crate) fn with_byte_pairs(draft: Draft) -> Draft {
    let tokens = ["<|end|>", "<|user|>", "<tool>", "a", "b", "ab", "Ġ", "Ġab", "1", "2", "12", "Ċ", "[PAD0]"];
    draft
        .set("tokenizer.ggml.model", Meta::Text("gpt2".into()))
        .set("tokenizer.ggml.pre", Meta::Text("smollm".into()))
        .set("tokenizer.ggml.tokens", texts(&tokens))
        .set("tokenizer.ggml.token_type", Meta::Ints(vec![3, 3, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5]))
        .set("tokenizer.ggml.merges", texts(&["a b", "Ġ ab", "1 2"]))
        .set("tokenizer.ggml.bos_token_id", Meta::U32(1))
        .set("tokenizer.ggml.eos_token_id", Meta::U32(0))
        .set("tokenizer.chat_template", Meta::Text("{{ messages }}".into()))
}

/// A SentencePiece tokenizer over a and b with byte fallback, and its scores.
pub(crate) fn sentence_pieces() -> (Vec<String>, Vec<f32>, Vec<i32>) {
    let mut pieces: Vec<(String, f32, i32)> =
        [("<unk>", 2), ("<s>", 3), ("</s>", 3)].map(|(t, k)| (t.to_owned(), 0.0, k)).to_vec();
    pieces.extend((0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    let merged = ["ab", "▁a", "ba", "▁ab", "abab", "▁▁", "aa", "▁aab", "bb", "abb"];
    pieces.extend((1..).zip(merged).map(|(rank, piece)| (piece.to_owned(), -(rank as f32), 1)));
    pieces.extend(["▁", "a", "b"].map(|piece| (piece.to_owned(), -1000.0, 1)));
    pieces.push(("<tool>".into(), 0.0, 4));
    let kinds = pieces.iter().map(|(_, _, kind)| *kind).collect();
    let scores = pieces.iter().map(|(_, score, _)| *score).collect();
    (pieces.into_iter().map(|(piece, _, _)| piece).collect(), scores, kinds)
}

pub(crate) fn with_sentence_pieces(draft: Draft) -> Draft {
    let (pieces, scores, kinds) = sentence_pieces();
    draft
        .set("tokenizer.ggml.model", Meta::Text("llama".into()))
        .set("tokenizer.ggml.tokens", Meta::Texts(pieces))
        .set("tokenizer.ggml.scores", Meta::Floats(scores))
        .set("tokenizer.ggml.token_type", Meta::Ints(kinds))
        .set("tokenizer.ggml.bos_token_id", Meta::U32(1))
        .set("tokenizer.ggml.eos_token_id", Meta::U32(2))
}
