//! A checkpoint as a decoder with named linears: readers and writers of every format, tokenizer, text readers.
//!
//! Names and conventions inside are those of Hugging Face checkpoints; readers of other formats translate to them.
//! Knows nothing of calibration or metrics.

pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod demo;
pub mod error;
pub mod format;
pub mod generate;
pub mod hub;
pub mod inspect;
pub mod runtimes;
pub mod text;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::Config;
pub use decoder::{Block, Linear, Stage};
pub use error::ModelError;
