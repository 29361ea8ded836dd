//! Sums over the rows of an input, column by column: `Σ |x|` and `Σ x²`, in float64.

use rayon::prelude::*;

/// Columns that one task sums; short enough for two rows of sums to stay in the first-level cache.
const STRIP: usize = 64;

/// Adds the rows `x` (`[rows, absolute.len()]`), one after the other. Uses the current thread pool; the result does not
/// depend on its size.
pub fn accumulate(absolute: &mut [f64], square: &mut [f64], x: &[f32]) {
    let width = absolute.len();
    assert_eq!((square.len(), x.len() % width), (width, 0), "shapes of the sums and x");
    let strips = absolute.par_chunks_mut(STRIP).zip(square.par_chunks_mut(STRIP));
    strips.enumerate().for_each(|(strip, (absolute, square))| {
        for row in x.chunks_exact(width) {
            let row = &row[strip * STRIP..][..absolute.len()];
            for ((absolute, square), value) in absolute.iter_mut().zip(square.iter_mut()).zip(row) {
                let value = f64::from(*value);
                *absolute += value.abs();
                *square += value * value;
            }
        }
    });
}
