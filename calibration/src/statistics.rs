//! What is captured of a linear layer's input: additive, so that parts can be captured apart and merged.

/// Statistics of the input `x` (`[tokens, width]`) of the linears that share it.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    /// Width of the input.
    pub width: usize,
    /// Rows seen.
    pub tokens: usize,
    /// `XᵀX`, `[width, width]`, both triangles. GPTQ's Hessian is `2 / tokens` times this.
    pub gram: Vec<f32>,
    /// `sum |x|` per column, as AWQ wants it.
    pub sum_absolute: Vec<f64>,
    /// `sum x²` per column, as an importance matrix wants it.
    pub sum_square: Vec<f64>,
}
