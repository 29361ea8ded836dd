//! A source of calibration text and its weight in a mixture.

use crate::CalibrationError;

/// Where text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file, folder or glob.
    Files(String),
    /// An embedded text: `demo:prose`, `demo:code`.
    Demo(String),
    /// Tokens drawn evenly from the vocabulary, the control of a study.
    RandomTokens,
    /// A data set file on a hub: `hub:org/name/path[@revision]`.
    Hub(String),
}

/// A source and its share of the windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// The source.
    pub source: Source,
    /// Relative weight.
    pub weight: f64,
}

impl Domain {
    /// Parses `SOURCE` or `SOURCE=WEIGHT`.
    pub fn parse(text: &str) -> Result<Self, CalibrationError> {
        let _ = text;
        todo!("calibration helper")
    }
}
