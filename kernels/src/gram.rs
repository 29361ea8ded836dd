//! Gram accumulation `G += XᵀX`, of which GPTQ's Hessian is a multiple; in float32, or in split bfloat16 numbers where there
//! are tiles for them ([`accumulate_by`]).
//!
//! The lower triangle is cut into panels of [`PANEL`] rows; a panel is one rectangular product left of its triangle, and
//! the triangle a square one between two smaller triangles. All that is fixed by the width alone, and a panel is summed on
//! one thread.

use crate::{
    Compute,
    bfloat16::{Packed, Unit},
    gemm::{Old, Strided, StridedMut, product},
};
use rayon::prelude::*;

/// Rows of the Gram matrix that one task computes: each reads all columns of the input left of it anew.
const PANEL: usize = 384;
/// Rows of the triangles that are computed as squares, half of which is for nothing.
const LEAF: usize = 48;

/// Adds `xᵀx` to the lower triangle of `gram` (`[width, width]`); `x` is `[rows, width]`. Uses the current thread pool;
/// the result does not depend on its size. Entries above the diagonal are left alone: see [`mirror`].
pub fn accumulate(gram: &mut [f32], x: &[f32], width: usize) {
    assert_eq!((gram.len(), x.len() % width), (width * width, 0), "shapes of gram and x");
    let mut panels: Vec<_> = gram.chunks_mut(PANEL * width).enumerate().collect();
    // The last panels are the longest: started first, they leave the short ones to even out the threads.
    panels.reverse();
    panels.into_par_iter().with_max_len(1).for_each(|(index, panel)| accumulate_panel(panel, x, width, index * PANEL));
}

/// Rows of the Gram matrix that one task computes of split numbers, which are packed once for all.
const SPLIT_PANEL: usize = 192;
/// Rows of `x` that are split at a time: what bounds the memory for it.
const SPLIT_ROWS: usize = 1024;

/// [`accumulate`] by the arithmetic of `compute`: where its operands are bfloat16 and the processor has tiles, each number
/// enters as the sum of two bfloat16 numbers, and of four products the smallest is left out, so that an entry errs by
/// `3 · 2^-16 sum |x[i] x[j]|` at most beside the rounding of sums. One bfloat16 number alone would be too rough for a Hessian.
pub fn accumulate_by(compute: Compute, gram: &mut [f32], x: &[f32], width: usize) {
    match compute.split() {
        Some((_, unit @ Unit::Amx)) => {
            assert_eq!((gram.len(), x.len() % width), (width * width, 0), "shapes of gram and x");
            x.chunks(SPLIT_ROWS * width).for_each(|x| accumulate_split(gram, x, width, unit));
        }
        _ => accumulate(gram, x, width),
    }
}

/// Columns of `x` as rows, and the same as a packed operand.
struct Columns {
    transposed: Vec<f32>,
    packed: Packed,
}

fn accumulate_split(gram: &mut [f32], x: &[f32], width: usize, unit: Unit) {
    let tokens = x.len() / width;
    let firsts: Vec<usize> = (0..width).step_by(SPLIT_PANEL).collect();
    let columns = firsts.into_par_iter().with_max_len(1).map(|first| {
        let transposed = transposed(x, width, first, SPLIT_PANEL.min(width - first));
        Columns { packed: Packed::new(&transposed, tokens, true, unit), transposed }
    });
    let columns: Vec<Columns> = columns.collect();
    let mut panels: Vec<_> = gram.chunks_mut(SPLIT_PANEL * width).zip(1..).collect();
    panels.reverse();
    panels.into_par_iter().with_max_len(1).for_each(|(panel, count)| {
        let (rows, left) = (panel.len() / width, width.min(count * SPLIT_PANEL));
        let mut sums = vec![0.0; rows * left];
        let packed: Vec<&Packed> = columns[..count].iter().map(|columns| &columns.packed).collect();
        Packed::multiply_each(&packed, rows, (&columns[count - 1].transposed, x.len() / width), (&mut sums, left));
        for (i, (row, sums)) in panel.chunks_exact_mut(width).zip(sums.chunks_exact(left)).enumerate() {
            for (gram, sum) in row[..=(count - 1) * SPLIT_PANEL + i].iter_mut().zip(sums) {
                *gram += sum;
            }
        }
    });
}

/// `count` columns of `x`, from `first` on, as rows.
fn transposed(x: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    /// Rows of `x` at a time: their pieces of a panel stay in the first-level cache.
    const BLOCK: usize = 16;
    let tokens = x.len() / width;
    let mut out = vec![0.0; count * tokens];
    for (block, x) in x.chunks(BLOCK * width).enumerate() {
        for (column, out) in out.chunks_exact_mut(tokens).enumerate() {
            let values = x.iter().skip(first + column).step_by(width);
            for (out, value) in out[block * BLOCK..].iter_mut().zip(values) {
                *out = *value;
            }
        }
    }
    out
}

/// Adds to the rows from `first` on: `panel` is `[rows of the panel, width]`.
fn accumulate_panel(panel: &mut [f32], x: &[f32], width: usize, first: usize) {
    if !x.is_empty() {
        add_left(panel, x, width, [first, 0], [panel.len() / width, first]);
        add_triangle(panel, x, width, first);
    }
}

/// Adds to the triangle that begins at the diagonal, which `panel`'s first row meets at column `first`: its halves each for
/// itself and the square between them, until a triangle is no larger than a [`LEAF`].
fn add_triangle(panel: &mut [f32], x: &[f32], width: usize, first: usize) {
    let rows = panel.len() / width;
    if rows > LEAF {
        let half = (rows / 2).next_multiple_of(LEAF);
        let (upper, lower) = panel.split_at_mut(half * width);
        add_triangle(upper, x, width, first);
        add_left(lower, x, width, [first + half, first], [rows - half, half]);
        return add_triangle(lower, x, width, first + half);
    }
    let mut tile = vec![0.0; rows * rows];
    let out = StridedMut { data: &mut tile, row: rows, column: 1 };
    let (transposed, columns) = columns(x, width, first, first);
    product([rows, rows, x.len() / width], out, Old::Overwrite, 1.0, transposed, columns);
    for (i, row) in panel.chunks_exact_mut(width).enumerate() {
        for (gram, sum) in row[first..=first + i].iter_mut().zip(&tile[i * rows..]) {
            *gram += sum;
        }
    }
}

/// Adds `rows` x `count` sums from the row `first` and the column `left` of the Gram matrix on; `panel` begins with that row.
fn add_left(panel: &mut [f32], x: &[f32], width: usize, [first, left]: [usize; 2], [rows, count]: [usize; 2]) {
    if count > 0 {
        let out = StridedMut { data: &mut panel[left..], row: width, column: 1 };
        let (transposed, columns) = columns(x, width, first, left);
        product([rows, count, x.len() / width], out, Old::Add, 1.0, transposed, columns);
    }
}

/// The columns of `x` from `first` on as rows, and those from `other` on as they are.
fn columns(x: &[f32], width: usize, first: usize, other: usize) -> (Strided<'_>, Strided<'_>) {
    (Strided { data: &x[first..], row: 1, column: width }, Strided { data: &x[other..], row: width, column: 1 })
}

/// Copies the lower triangle onto the upper one.
pub fn mirror(gram: &mut [f32], width: usize) {
    /// Tile edge: two tiles stay in the first-level cache while one is read across its rows.
    const TILE: usize = 32;
    assert_eq!(gram.len(), width * width, "shape of gram");
    for rows in (0..width).step_by(TILE) {
        for columns in (0..=rows).step_by(TILE) {
            for i in rows..(rows + TILE).min(width) {
                for j in columns..(columns + TILE).min(i) {
                    gram[j * width + i] = gram[i * width + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, with_threads};

    /// The triple loop in float64, and the same over absolute values for the error bound.
    fn reference(x: &[f32], width: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut gram, mut magnitude) = (vec![0.0; width * width], vec![0.0; width * width]);
        for row in x.chunks_exact(width) {
            for i in 0..width {
                for j in 0..=i {
                    let term = f64::from(row[i]) * f64::from(row[j]);
                    gram[i * width + j] += term;
                    magnitude[i * width + j] += term.abs();
                }
            }
        }
        (gram, magnitude)
    }

    #[test]
    fn agrees_with_the_triple_loop() {
        for (width, rows) in
            [(1, 1), (1, 37), (2, 5), (7, 0), (31, 64), (191, 3), (192, 40), (193, 41), (400, 100), (5, 3000)]
        {
            let x = random(rows * width, (width * 1000 + rows) as u64);
            let start = random(width * width, 3);
            let mut gram = start.clone();
            accumulate(&mut gram, &x, width);
            let (sums, magnitudes) = reference(&x, width);
            // A sum of n float32 products in any order errs by at most n u sum |terms|, u = 2^-24; one more for the start.
            let unit = f64::from(f32::EPSILON) / 2.0 * (rows as f64 + 1.0);
            for i in 0..width {
                for j in 0..width {
                    let at = i * width + j;
                    if j > i {
                        assert_eq!(gram[at], start[at], "above the diagonal, width {width} at {i},{j}");
                    } else {
                        let expected = f64::from(start[at]) + sums[at];
                        let bound = unit * (magnitudes[at] + f64::from(start[at].abs()));
                        let error = (f64::from(gram[at]) - expected).abs();
                        assert!(error <= bound, "width {width} rows {rows} at {i},{j}: {error} > {bound}");
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let width = 500;
        let x = random(300 * width, 9);
        for compute in [Compute::F32, Compute::Bf16x3] {
            let run = |threads| {
                with_threads(threads, || {
                    let mut gram = vec![0.0; width * width];
                    accumulate_by(compute, &mut gram, &x, width);
                    gram
                })
            };
            assert_eq!(run(1), run(2));
            assert_eq!(run(1), run(5));
        }
    }

    /// Both units, whatever is chosen on this processor.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn split_numbers_agree_with_the_triple_loop() {
        let Some(best) = crate::bfloat16::unit() else { return };
        for (width, rows) in [(1, 1), (2, 5), (31, 64), (191, 3), (193, 41), (400, 100), (5, 3000)] {
            let mut x = random(rows * width, (width * 1000 + rows) as u64);
            x.iter_mut().step_by(7).for_each(|value| *value *= 1e3);
            let start = random(width * width, 3);
            let (sums, magnitudes) = reference(&x, width);
            for unit in [Unit::Avx512, best] {
                let mut gram = start.clone();
                accumulate_split(&mut gram, &x, width, unit);
                for at in 0..width * width {
                    let (i, j) = (at / width, at % width);
                    if j > i {
                        assert_eq!(gram[at], start[at], "above the diagonal, width {width} at {i},{j}");
                        continue;
                    }
                    let rounding = 2f64.powi(-24) * (3 * rows + 4) as f64;
                    let bound = (3.0 * 2f64.powi(-16) + rounding) * (magnitudes[at] + f64::from(start[at].abs()));
                    let error = (f64::from(gram[at]) - f64::from(start[at]) - sums[at]).abs();
                    assert!(error <= bound, "{unit:?} width {width} rows {rows} at {i},{j}: {error} > {bound}");
                }
            }
        }
        let (mut by, mut alone) = (vec![0.0; 40 * 40], vec![0.0; 40 * 40]);
        let x = random(2500 * 40, 8);
        accumulate_by(Compute::F32, &mut by, &x, 40);
        accumulate(&mut alone, &x, 40);
        assert_eq!(by, alone);
    }

    #[test]
    fn mirror_makes_it_symmetric() {
        for width in [1, 2, 31, 32, 33, 100] {
            let start = random(width * width, 5);
            let mut gram = start.clone();
            mirror(&mut gram, width);
            for i in 0..width {
                for j in 0..=i {
                    assert_eq!(
                        (gram[i * width + j], gram[j * width + i]),
                        (start[i * width + j], start[i * width + j])
                    );
                }
            }
        }
    }
}
