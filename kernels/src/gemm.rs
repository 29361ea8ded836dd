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
/// `out` `[rows, outputs]`.
///
/// Row `r` of `out` depends on row `r` of `x` alone. The order of its sums may depend on the number of rows, since very small
/// products (a single row, or at most 64 rows and outputs) are computed another way: results then differ by at most
/// `2 inputs u sum |x w|`, `u = 2^-24`, as two float32 sums of the same terms do. From 2 rows and 257 outputs on they are
/// equal to the bit.
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
        add_bias(out, bias);
    }
}

/// Adds `bias` to every row of `out`.
pub(crate) fn add_bias(out: &mut [f32], bias: &[f32]) {
    for row in out.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_is_product, random};

    #[test]
    fn agrees_with_the_triple_loop() {
        for (rows, outputs, inputs) in
            [(1, 1, 1), (1, 300, 40), (2, 1, 7), (3, 5, 2), (16, 16, 1500), (33, 65, 17), (70, 130, 600), (0, 4, 3)]
        {
            let (x, w, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            for bias in [None, Some(&bias[..])] {
                let mut out = vec![f32::NAN; rows * outputs];
                linear(&x, &w, bias, inputs, &mut out);
                assert_is_product(&x, &w, bias, inputs, &out);
            }
        }
    }

    #[test]
    fn other_rows_do_not_matter() {
        let (outputs, inputs) = (257, 700);
        let (x, w) = (random(300 * inputs, 4), random(outputs * inputs, 5));
        let run = |rows: usize| {
            let mut out = vec![0.0; rows * outputs];
            linear(&x[..rows * inputs], &w, None, inputs, &mut out);
            out
        };
        let all = run(300);
        for rows in [2, 3, 7, 8, 63, 64, 65, 129, 256] {
            assert_eq!(run(rows), all[..rows * outputs], "{rows} rows");
        }
        // Both sums err by at most n u sum |x w| <= n^2 u.
        let bound = 2.0 * (inputs * inputs) as f32 * 2f32.powi(-24);
        assert!(run(1).iter().zip(&all).all(|(one, all)| (one - all).abs() <= bound));
    }

    #[test]
    #[should_panic(expected = "in a slice of")]
    fn a_matrix_outside_its_slice_is_refused() {
        let mut out = [0.0; 4];
        let whole = Strided { data: &[1.0; 4], row: 2, column: 1 };
        product([2, 2, 2], StridedMut { data: &mut out, row: 3, column: 1 }, Old::Overwrite, 1.0, whole, whole);
    }
}
