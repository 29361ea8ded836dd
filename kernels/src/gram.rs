//! Gram accumulation `G += XᵀX`, of which GPTQ's Hessian is a multiple.

/// Adds `xᵀx` to the lower triangle of `gram` (`[width, width]`); `x` is `[rows, width]`. Uses the current thread pool;
/// the result does not depend on its size. Entries above the diagonal are left alone: see [`mirror`].
pub fn accumulate(gram: &mut [f32], x: &[f32], width: usize) {
    let _ = (gram, x, width);
    todo!("kernels helper")
}

/// Copies the lower triangle onto the upper one.
pub fn mirror(gram: &mut [f32], width: usize) {
    let _ = (gram, width);
    todo!("kernels helper")
}
