//! Calibration: from text to token windows, and from windows to the statistics that solvers need.
//!
//! The [`driver`] is the one sequential walk over a model's blocks for every method and family; it doesn't know what a
//! solver does with what it captures.

pub mod activations;
pub mod adequacy;
pub mod captured;
pub mod device;
pub mod domain;
mod draw;
pub mod driver;
pub mod error;
pub mod manifest;
pub mod overlap;
mod pass;
pub mod statistics;
pub mod statistics_file;
mod stream;
pub mod visitor;
pub mod walk;
pub mod window;

pub use driver::{DriveReport, DriverOptions, Inputs, Sequence, Visitor, drive};
pub use error::CalibrationError;
pub use manifest::Manifest;
pub use statistics::LayerStatistics;
pub use window::{CalibrationSet, Packing, WindowOptions, plain_tokens};
