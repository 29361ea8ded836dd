//! A question about quantization, stated in a file and answered with evidence.
//!
//! ```text
//! study.toml ─file, settings─▶ combinations ─opened─▶ cells with keys ─run─▶ store ─findings─▶ report, export
//! ```
//!
//! A cell is one configuration on one evaluation text. Cells are independent, content-addressed ([`opened`]) and kept in
//! an append-only store ([`store`]); reports are made from the store and the plan ([`plan`]) alone, so that they can be
//! read where the models are not. Quantizes and evaluates through the libraries beside it, in this process.

pub mod agreement;
pub mod check;
pub mod codes;
pub mod error;
pub mod evaluator;
pub mod export;
pub mod file;
pub mod findings;
pub mod init;
pub mod local;
pub mod measure;
pub mod opened;
pub mod part;
pub mod places;
pub mod plan;
pub mod plot;
pub mod questions;
pub mod report;
pub mod results;
pub mod run;
pub mod sample;
pub mod say;
pub mod schedule;
pub mod settings;
pub mod shared;
pub mod slurm;
pub mod solve;
pub mod speed;
pub mod statistics;
pub mod store;
pub mod suggest;
pub mod values;

pub use error::StudyError;
pub use file::StudyFile;
pub use opened::Opened;
pub use plan::Plan;
pub use store::Store;
