//! The numerical loops of post-training quantization and of the decoder it is measured on.
//!
//! Every operation takes slices and shapes and returns the same; it knows neither models nor files.
//! Matrices are dense and row-major. A weight is `[outputs, inputs]`, as Hugging Face stores it; activations are
//! `[rows, width]`, one row a token. Each file holds one operation: its formula, the slow obvious reference
//! (`reference` modules, compiled for tests only) and the fast version.
//!
//! Results don't depend on the number of threads: work is cut into pieces by shape alone, and every sum has a fixed
//! order. This module list is the seam at which a second device joins: nothing outside this crate loops over weights.

pub mod activation;
pub mod attention;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "its instructions are x86-64's"))]
pub mod bfloat16;
pub mod block_solve;
pub mod cholesky;
pub mod clip;
pub mod compute;
#[allow(unsafe_code, reason = "launches and calls into CUDA's libraries, each with its reason")]
pub mod cuda;
mod dispatch;
pub mod divergence;
pub mod doctor;
pub mod drift;
pub mod engine;
mod exponential;
pub mod factor;
pub mod few_rows;
pub mod gemm;
pub mod gram;
pub mod grid;
mod halves;
pub mod kquant;
pub mod log_probability;
pub mod matrix;
pub mod moments;
pub mod norm;
pub mod pack;
pub mod resident;
pub mod rope;
pub mod spec;
pub mod stored;
#[cfg(test)]
mod testing;

pub use compute::Compute;
pub use engine::Engine;
pub use matrix::QuantizedMatrix;
pub use resident::Resident;
pub use spec::{ActOrder, QuantSpec, ScaleSearch, SpecError};
