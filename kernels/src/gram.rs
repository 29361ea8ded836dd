//! Gram accumulation `G += XᵀX`, of which GPTQ's Hessian is a multiple.
//!
//! The lower triangle is cut into panels of [`PANEL`] rows; a panel is one rectangular product left of its diagonal tile
//! and one square product for the tile itself. Panels are fixed by the width alone and each is summed on one thread.

use crate::gemm::{Old, Strided, StridedMut, product};
use rayon::prelude::*;

/// Rows of the Gram matrix that one task computes: measured the fastest of 64, 96, 128, 192 and 256. (Narrower panels
/// are packed too often, wider ones waste half of a larger diagonal tile.)
const PANEL: usize = 192;

/// Adds `xᵀx` to the lower triangle of `gram` (`[width, width]`); `x` is `[rows, width]`. Uses the current thread pool;
/// the result does not depend on its size. Entries above the diagonal are left alone: see [`mirror`].
pub fn accumulate(gram: &mut [f32], x: &[f32], width: usize) {
    assert_eq!((gram.len(), x.len() % width), (width * width, 0), "shapes of gram and x");
    let mut panels: Vec<_> = gram.chunks_mut(PANEL * width).enumerate().collect();
    // The last panels are the longest: started first, they leave the short ones to even out the threads.
    panels.reverse();
    panels.into_par_iter().with_max_len(1).for_each(|(index, panel)| accumulate_panel(panel, x, width, index * PANEL));
}

/// Adds to the rows from `first` on: `panel` is `[rows of the panel, width]`.
fn accumulate_panel(panel: &mut [f32], x: &[f32], width: usize, first: usize) {
    let (rows, tokens) = (panel.len() / width, x.len() / width);
    if tokens == 0 {
        return;
    }
    let transposed = Strided { data: &x[first..], row: 1, column: width };
    if first > 0 {
        let left = StridedMut { data: &mut *panel, row: width, column: 1 };
        let x = Strided { data: x, row: width, column: 1 };
        product([rows, first, tokens], left, Old::Add, 1.0, transposed, x);
    }
    let mut tile = vec![0.0; rows * rows];
    let out = StridedMut { data: &mut tile, row: rows, column: 1 };
    let x = Strided { data: &x[first..], row: width, column: 1 };
    product([rows, rows, tokens], out, Old::Overwrite, 1.0, transposed, x);
    for (i, row) in panel.chunks_exact_mut(width).enumerate() {
        for (gram, sum) in row[first..=first + i].iter_mut().zip(&tile[i * rows..]) {
            *gram += sum;
        }
    }
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
        let run = |threads| {
            with_threads(threads, || {
                let mut gram = vec![0.0; width * width];
                accumulate(&mut gram, &x, width);
                gram
            })
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(5));
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
