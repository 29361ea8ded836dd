//! Quantizing a model: round-to-nearest, GPTQ and AWQ, from a checkpoint and a calibration text to a proven checkpoint in
//! one or several formats; and converting between formats.
//!
//! ```text
//! Options ─plan─▶ ValidPlan ─job─▶ blocks, one at a time ─gptq | awq | rtn─▶ journal ─write, prove, card─▶ OUT
//! ```
//!
//! [`gptq`] is the method, over [`order`] and [`hessian`], and [`blocks`] the same on the grids of GGUF's block formats;
//! [`awq`] the other, over [`fold`]; [`visitor`] hangs them into the calibration driver; [`journal`] keeps what is
//! finished; [`job`] is the whole run. Knows nothing of metrics: what a checkpoint is worth is measured on the checkpoint,
//! by another program.

pub mod awq;
pub mod blocks;
pub mod card;
pub mod convert;
pub mod error;
mod files;
pub mod fold;
pub mod gguf;
pub mod gptq;
pub mod hessian;
pub mod job;
pub mod journal;
pub mod matrix;
pub mod measure;
pub mod order;
pub mod overrides;
pub mod plan;
pub mod preflight;
pub mod prove;
pub mod report;
mod resident;
pub mod rtn;
pub mod solved;
pub mod solver;
pub mod sublayer;
pub mod sweep;
pub mod visitor;
pub mod warnings;

pub use convert::Conversion;
pub use error::QuantizeError;
pub use hessian::Hessian;
pub use job::{Job, Request};
pub use journal::Journal;
pub use kernels::{Compute, Engine, doctor::examine, engine};
pub use matrix::Matrix;
pub use plan::{AwqOptions, Method, Objective, Options, ValidPlan};
pub use report::Outcome;
pub use solver::{LayerReport, Solver};
