//! Dense product of a linear layer: `out = x Wᵀ + bias`.

use gemm::Parallelism;

/// `out[r][o] = sum_i x[r][i] w[o][i] + bias[o]` on the calling thread; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`,
/// `out` `[rows, outputs]`. Row `r` of `out` is the same whatever the other rows are.
#[allow(unsafe_code)]
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
    let rows = x.len() / inputs;
    let outputs = w.len() / inputs;
    assert_eq!(
        (x.len(), w.len(), out.len()),
        (rows * inputs, outputs * inputs, rows * outputs),
        "shapes of x, w and out"
    );
    // SAFETY: the three slices were just checked to hold exactly the matrices that the strides below describe.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            1,
            outputs as isize,
            false,
            x.as_ptr(),
            1,
            inputs as isize,
            w.as_ptr(),
            inputs as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    if let Some(bias) = bias {
        for row in out.chunks_exact_mut(outputs) {
            for (out, bias) in row.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
}
