//! Dense product of a linear layer: `out = x Wᵀ + bias`; and the strided product that the other operations share.
//!
//! All products run on the calling thread; whoever calls cuts the work for several.

use gemm::Parallelism;

/// A matrix inside a slice: entry `(i, j)` is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// [`Strided`], to be written.
pub(crate) struct StridedMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// What becomes of the old content of the product's destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Old {
    /// `out = factor * a b`.
    Overwrite,
    /// `out += factor * a b`.
    Add,
}

/// `out = factor * a b` or `out += factor * a b` with `out` `[m, n]`, `a` `[m, k]`, `b` `[k, n]`.
#[allow(unsafe_code)]
pub(crate) fn product(
    [m, n, k]: [usize; 3],
    out: StridedMut<'_>,
    old: Old,
    factor: f32,
    a: Strided<'_>,
    b: Strided<'_>,
) {
    let StridedMut { data: out, row: out_row, column: out_column } = out;
    assert_inside(out.len(), m, n, out_row, out_column);
    assert_inside(a.data.len(), m, k, a.row, a.column);
    assert_inside(b.data.len(), k, n, b.row, b.column);
    // SAFETY: each matrix was just checked to lie inside its slice; `out` is borrowed mutably, so it overlaps neither
    // of the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_column as isize,
            out_row as isize,
            old == Old::Add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn assert_inside(len: usize, rows: usize, columns: usize, row: usize, column: usize) {
    if rows > 0 && columns > 0 {
        let last = (rows - 1).checked_mul(row).zip((columns - 1).checked_mul(column));
        let last = last.and_then(|(a, b)| a.checked_add(b));
        assert!(last.is_some_and(|last| last < len), "a {rows} x {columns} matrix in a slice of {len}");
    }
}

/// `out[r][o] = sum_i x[r][i] w[o][i] + bias[o]` on the calling thread; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`,
/// `out` `[rows, outputs]`. Row `r` of `out` is the same whatever the other rows are.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, out: &mut [f32]) {
    let rows = x.len() / inputs;
    let outputs = w.len() / inputs;
    assert_eq!(
        (x.len(), w.len(), out.len()),
        (rows * inputs, outputs * inputs, rows * outputs),
        "shapes of x, w and out"
    );
    product(
        [rows, outputs, inputs],
        StridedMut { data: out, row: outputs, column: 1 },
        Old::Overwrite,
        1.0,
        Strided { data: x, row: inputs, column: 1 },
        Strided { data: w, row: 1, column: inputs },
    );
    if let Some(bias) = bias {
        for row in out.chunks_exact_mut(outputs) {
            for (out, bias) in row.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
}
