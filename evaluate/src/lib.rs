//! What quantization did to a language model: perplexity, divergence and tasks, against a baseline, with error bars.
//!
//! ```text
//! text ──text──▶ documents ──stream──▶ tokens ──window──▶ windows ──score──▶ negative log-likelihoods
//!      ──perplexity──▶ measurement (statistics: error bars) ──compare──▶ ratio, verdict (bands) ──report──▶ people, JSON
//!                      windows ──divergence──▶ how far two models' distributions are
//!
//! task file and data ──task──▶ items ──likelihood──▶ likelihoods of choices ──choice──▶ records
//!      ──paired──▶ differences, tests, flips ──task_report──▶ people, JSON
//! ```
//!
//! Judges any checkpoint that the `model` crate opens, whoever made it. Knows nothing of solvers. This library neither
//! prints nor parses arguments; the binary beside it does.

pub mod answer;
pub mod bands;
pub mod baseline;
pub mod capability;
pub mod choice;
pub mod compare;
pub mod divergence;
pub mod error;
pub mod export;
pub mod framing;
pub mod generation;
pub mod instructions;
pub mod likelihood;
pub mod logits;
mod on_device;
pub mod page;
pub mod paired;
pub mod perplexity;
pub mod protocol;
pub mod python_random;
pub mod records;
pub mod report;
pub mod sandbox;
pub mod score;
pub mod source;
pub mod statistics;
pub mod stream;
pub mod task;
pub mod task_report;
pub mod text;
pub mod wikitext;
pub mod window;

pub use error::EvaluateError;
pub use perplexity::{Measurement, Prepared};
pub use protocol::{Protocol, Resolved};
