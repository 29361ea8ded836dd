//! Stand-in until the real inspection lands.
use serde::Serialize;
/// Stand-in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// x
    pub runtime: String,
    /// x
    pub outcome: String,
    /// x
    pub why: String,
}
/// Stand-in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// x
    pub bits_per_weight: f64,
    /// x
    pub bits_per_quantized_weight: Option<f64>,
    /// x
    pub bytes: u64,
    /// x
    pub runtimes: Vec<Verdict>,
}
/// Stand-in.
pub fn inspect(checkpoint: &model::Checkpoint) -> Result<Inspection, model::ModelError> {
    let _ = checkpoint;
    Ok(Inspection { bits_per_weight: 0.0, bits_per_quantized_weight: None, bytes: 0, runtimes: Vec::new() })
}
