//! Finding the grid of a block: weighted least squares over a small set of candidates, then over the stored numbers.
//!
//! For given levels `q` the best line `x = a q - b` under weights `w` solves two linear equations (one, where nothing is
//! subtracted). So:
//!
//! 1. Each sub-block on its own: levels by candidate steps around `range / levels`, the line fitted to each, the best
//!    kept; then rounding and fitting in turn, as long as it helps.
//! 2. `d` and `m` as the largest of these need them; `s` and `l` to the nearest whole numbers.
//! 3. In turn, as long as it helps: `s` and `l` of each sub-block to their best neighbours, every error measured with the
//!    numbers as stored; `d` and `m` by least squares over the whole block, rounded to float16.

use super::{BlockGrid, BlockType, LARGEST, Weighting, grid::Levels, grid::SubGrid, grid::UNEVEN, grid::middle};
use crate::dispatch::vectorized;
use crate::exponential::{LANES, sum_lanes};
use half::f16;

/// Beyond this no format reaches; squares of it still fit float32.
const FURTHEST: f32 = 1e9;
/// No weight falls below this share of the block's largest: a column that the calibration text never used still gets
/// a value of some sense.
const LEAST_WEIGHT: f32 = 1e-6;
/// Rounds of refinement at most; the third seldom changes anything.
const ROUNDS: usize = 4;

vectorized! {
    /// The grids of the blocks of `row`.
    pub(super) fn row(kind: BlockType, row: &[f32], weighting: Weighting<'_>) -> Vec<BlockGrid> {
        // A loop and no `map`: what `collect` calls would not be compiled for the vector instructions.
        let mut grids = Vec::with_capacity(row.len() / kind.columns());
        for (index, weights) in row.chunks_exact(kind.columns()).enumerate() {
            grids.push(of_block(kind, weights, weighting, index * kind.columns()));
        }
        grids
    }

    /// The grid of the block `weights` that starts at column `first`.
    pub(super) fn one(kind: BlockType, weights: &[f32], weighting: Weighting<'_>, first: usize) -> BlockGrid {
        of_block(kind, weights, weighting, first)
    }
}

/// The grid of the block `given` that starts at column `first`.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
#[inline(always)]
fn of_block(kind: BlockType, given: &[f32], weighting: Weighting<'_>, first: usize) -> BlockGrid {
    let (mut x, mut w) = ([0.0; LARGEST], [0.0; LARGEST]);
    let (x, w) = (&mut x[..given.len()], &mut w[..given.len()]);
    for (x, given) in x.iter_mut().zip(given) {
        *x = if given.is_nan() { 0.0 } else { given.clamp(-FURTHEST, FURTHEST) };
    }
    fill_weights(x, w, weighting, first);
    match kind.levels() {
        Levels::Even { below, most } => {
            let lowest = -f32::from(below);
            Fit { kind, x, w, rounding: Even { lowest, highest: f32::from(most) + lowest } }.grid()
        }
        Levels::Uneven => Fit { kind, x, w, rounding: Nearest }.grid(),
    }
}

/// The weights of the squared errors, the largest of them 1.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
#[inline(always)]
fn fill_weights(x: &[f32], w: &mut [f32], weighting: Weighting<'_>, first: usize) {
    match weighting {
        Weighting::Plain => w.fill(1.0),
        Weighting::Importance(columns) | Weighting::Exact(columns) => w.copy_from_slice(&columns[first..][..w.len()]),
    }
    if !matches!(weighting, Weighting::Exact(_)) {
        let mean = sum(x, w, |x, _| [x * x])[0] / x.len() as f32;
        for (w, x) in w.iter_mut().zip(x) {
            *w *= (2.0 * mean + x * x).sqrt();
        }
    }
    let largest = w.iter().fold(0.0f32, |a, b| if *b > a { *b } else { a });
    let usable = largest > 0.0 && largest.is_finite();
    for w in w {
        *w = if usable { (*w / largest).max(LEAST_WEIGHT) } else { 1.0 };
    }
}

/// A rounding to levels, compiled into the loops.
trait Rounding: Copy {
    /// The level nearest to `scaled`.
    fn level(self, scaled: f32) -> f32;
    /// The lowest and the highest level.
    fn ends(self) -> (f32, f32);
}

/// Whole numbers.
#[derive(Clone, Copy)]
struct Even {
    lowest: f32,
    highest: f32,
}

impl Rounding for Even {
    #[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
    #[inline(always)]
    fn level(self, scaled: f32) -> f32 {
        let scaled = if scaled < self.lowest { self.lowest } else { scaled };
        let scaled = if scaled > self.highest { self.highest } else { scaled };
        scaled.round_ties_even()
    }

    #[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
    #[inline(always)]
    fn ends(self) -> (f32, f32) {
        (self.lowest, self.highest)
    }
}

/// The levels of IQ4_NL.
#[derive(Clone, Copy)]
struct Nearest;

impl Rounding for Nearest {
    #[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
    #[inline(always)]
    fn level(self, scaled: f32) -> f32 {
        let mut level = f32::from(UNEVEN[0]);
        for code in 0..15 {
            level = if scaled > middle(code) { f32::from(UNEVEN[code + 1]) } else { level };
        }
        level
    }

    #[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
    #[inline(always)]
    fn ends(self) -> (f32, f32) {
        (f32::from(UNEVEN[0]), f32::from(UNEVEN[15]))
    }
}

/// Sums of several terms over a sub-block, in lanes of a fixed order.
#[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
#[inline(always)]
fn sum<const N: usize>(x: &[f32], w: &[f32], terms: impl Fn(f32, f32) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0; LANES]; N];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for (lane, (x, w)) in x.iter().zip(w).enumerate() {
            let terms = terms(*x, *w);
            for (lanes, term) in lanes.iter_mut().zip(terms) {
                lanes[lane] += term;
            }
        }
    }
    lanes.map(sum_lanes)
}

#[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
#[inline(always)]
fn inverse(step: f32) -> f32 {
    let inverse = 1.0 / step;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// As float16, finite.
fn stored(value: f32) -> f16 {
    f16::from_f32(value.clamp(-65504.0, 65504.0))
}

/// Largest and smallest `s`, and largest `l`.
fn whole_numbers(kind: BlockType) -> (f32, f32, f32) {
    match kind {
        BlockType::Q2K => (0.0, 15.0, 15.0),
        BlockType::Q3K => (-32.0, 31.0, 0.0),
        BlockType::Q4K | BlockType::Q5K => (0.0, 63.0, 63.0),
        BlockType::Q6K => (-128.0, 127.0, 0.0),
        _ => (1.0, 1.0, 1.0),
    }
}

/// One block on its way to a grid.
struct Fit<'a, R> {
    kind: BlockType,
    x: &'a [f32],
    w: &'a [f32],
    rounding: R,
}

#[allow(clippy::inline_always, reason = "vectorizes only inside its caller")]
impl<R: Rounding> Fit<'_, R> {
    #[inline(always)]
    fn grid(&self) -> BlockGrid {
        let single = self.kind.columns() == self.kind.sub_block();
        let subtracts = self.subtracts();
        let mut found = [SubGrid { step: 0.0, low: 0.0 }; 16];
        let subs = self.x.len() / self.kind.sub_block();
        for (sub, found) in found[..subs].iter_mut().enumerate() {
            let (x, w) = self.sub(sub);
            *found = if subtracts { self.line(x, w, single) } else { self.ray(x, w) };
        }
        let grid = if single {
            BlockGrid::single(stored(found[0].step), stored(found[0].low))
        } else {
            self.whole(&found[..subs])
        };
        self.refined(grid, single)
    }

    fn subtracts(&self) -> bool {
        use BlockType::{Q2K, Q4_1, Q4K, Q5_1, Q5K};
        matches!(self.kind, Q2K | Q4_1 | Q4K | Q5_1 | Q5K)
    }

    #[inline(always)]
    fn sub(&self, sub: usize) -> (&[f32], &[f32]) {
        let columns = self.kind.sub_block();
        (&self.x[sub * columns..][..columns], &self.w[sub * columns..][..columns])
    }

    #[inline(always)]
    fn error(&self, x: &[f32], w: &[f32], grid: SubGrid) -> f32 {
        let SubGrid { step, low } = grid;
        let inverse = inverse(step);
        sum(x, w, |x, w| {
            let error = step.mul_add(self.rounding.level((x + low) * inverse), -low) - x;
            [w * error * error]
        })[0]
    }

    /// The best `x = a q`, candidates on both sides of zero.
    #[inline(always)]
    fn ray(&self, x: &[f32], w: &[f32]) -> SubGrid {
        let extreme = x.iter().fold(0.0f32, |a, b| if b.abs() > a.abs() { *b } else { a });
        let mut best = (0.0, 0.0);
        if extreme == 0.0 {
            return SubGrid { step: 0.0, low: 0.0 };
        }
        let (lowest, highest) = self.rounding.ends();
        for end in [lowest, highest] {
            for candidate in 0..24u8 {
                let inverse = end / extreme * (0.7 + 0.025 * f32::from(candidate));
                let [product, square] = self.against_levels(x, w, inverse);
                // The line through zero takes product^2 / square off the squared error of not coding at all.
                if square > 0.0 && product * product > best.0 * square {
                    best = (product * product / square, product / square);
                }
            }
        }
        let mut grid = SubGrid { step: best.1, low: 0.0 };
        let mut error = self.error(x, w, grid);
        for _ in 0..ROUNDS {
            let [product, square] = self.against_levels(x, w, inverse(grid.step));
            let next = SubGrid { step: if square > 0.0 { product / square } else { 0.0 }, low: 0.0 };
            let next_error = self.error(x, w, next);
            if next_error >= error {
                break;
            }
            (grid, error) = (next, next_error);
        }
        grid
    }

    /// `sum w x q` and `sum w q^2` for levels rounded with `inverse`.
    #[inline(always)]
    fn against_levels(&self, x: &[f32], w: &[f32], inverse: f32) -> [f32; 2] {
        sum(x, w, |x, w| {
            let level = self.rounding.level(x * inverse);
            [w * x * level, w * level * level]
        })
    }

    /// The best `x = a q - b`, `b >= 0` unless `free`.
    #[inline(always)]
    fn line(&self, x: &[f32], w: &[f32], free: bool) -> SubGrid {
        let (mut least, mut most) = (x[0], x[0]);
        for &x in x {
            least = if x < least { x } else { least };
            most = if x > most { x } else { most };
        }
        let least = if free { least } else { least.min(0.0) };
        let mut best = SubGrid { step: 0.0, low: -least };
        if most <= least {
            return best;
        }
        let mut error = self.error(x, w, best);
        let (_, highest) = self.rounding.ends();
        let totals = sum(x, w, |x, w| [w, w * x, w * x * x]);
        for candidate in 0..25u8 {
            let inverse = highest / (most - least) * (0.7 + 0.03 * f32::from(candidate));
            let (grid, fitted) = self.through_levels(x, w, SubGrid { step: inverse, low: -least }, &totals, free);
            if fitted < error {
                (best, error) = (grid, fitted);
            }
        }
        error = self.error(x, w, best);
        for _ in 0..ROUNDS {
            let along = SubGrid { step: inverse(best.step), low: best.low };
            let (grid, _) = self.through_levels(x, w, along, &totals, free);
            let next = self.error(x, w, grid);
            if next >= error {
                break;
            }
            (best, error) = (grid, next);
        }
        best
    }

    /// The line fitted to the levels that `along` (its step an inverse) gives, and its squared error there.
    #[inline(always)]
    fn through_levels(&self, x: &[f32], w: &[f32], along: SubGrid, totals: &[f32; 3], free: bool) -> (SubGrid, f32) {
        let SubGrid { step: inverse, low } = along;
        let [wq, wqq, wqx] = sum(x, w, |x, w| {
            let level = self.rounding.level((x + low) * inverse);
            [w * level, w * level * level, w * level * x]
        })
        .map(f64::from);
        let [total, wx, wxx] = totals.map(f64::from);
        let determinant = total * wqq - wq * wq;
        let (mut a, mut b) = if determinant > 1e-9 * total * wqq {
            ((total * wqx - wq * wx) / determinant, (wq * wqx - wqq * wx) / determinant)
        } else {
            (0.0, -wx / total)
        };
        if b < 0.0 && !free {
            (a, b) = (if wqq > 0.0 { wqx / wqq } else { 0.0 }, 0.0);
        }
        let error = wxx - 2.0 * (a * wqx - b * wx) + a * a * wqq - 2.0 * a * b * wq + b * b * total;
        (SubGrid { step: a as f32, low: b as f32 }, error as f32)
    }

    /// The sub-blocks' numbers as multiples of one `d` and one `m`.
    #[inline(always)]
    fn whole(&self, found: &[SubGrid]) -> BlockGrid {
        let (least_step, most_step, most_low) = whole_numbers(self.kind);
        let extreme = found.iter().fold(0.0f32, |a, b| if b.step.abs() > a.abs() { b.step } else { a });
        let deepest = found.iter().fold(0.0f32, |a, b| if b.low > a { b.low } else { a });
        // The side of zero that reaches further takes the largest step.
        let end = if -least_step > most_step { least_step } else { most_step };
        let mut grid = BlockGrid { d: stored(extreme / end), ..BlockGrid::default() };
        if most_low > 0.0 {
            grid.m = stored(deepest / most_low);
        }
        let (per_d, per_m) = (inverse(grid.d.to_f32()), inverse(grid.m.to_f32()));
        for (sub, found) in found.iter().enumerate() {
            grid.steps[sub] = (found.step * per_d).clamp(least_step, most_step).round_ties_even() as i8;
            grid.lows[sub] = (found.low * per_m).clamp(0.0, most_low).round_ties_even() as u8;
        }
        grid
    }

    #[inline(always)]
    fn total_error(&self, grid: &BlockGrid) -> f32 {
        let mut total = 0.0;
        for sub in 0..self.x.len() / self.kind.sub_block() {
            let (x, w) = self.sub(sub);
            total += self.error(x, w, grid.sub(sub));
        }
        total
    }

    #[inline(always)]
    fn refined(&self, grid: BlockGrid, single: bool) -> BlockGrid {
        let mut best = (self.total_error(&grid), grid);
        for _ in 0..ROUNDS {
            let mut next = best.1;
            if !single {
                self.to_best_neighbours(&mut next);
            }
            let moved = (self.total_error(&next), next);
            self.refit(&mut next);
            let refitted = (self.total_error(&next), next);
            let better = if refitted.0 < moved.0 { refitted } else { moved };
            if better.0 >= best.0 {
                break;
            }
            best = better;
        }
        best.1
    }

    /// Moves `s` and `l` of each sub-block by at most one to where the error is least.
    #[inline(always)]
    fn to_best_neighbours(&self, grid: &mut BlockGrid) {
        let (least_step, most_step, most_low) = whole_numbers(self.kind);
        let (d, m) = (grid.d.to_f32(), grid.m.to_f32());
        for sub in 0..self.x.len() / self.kind.sub_block() {
            let (x, w) = self.sub(sub);
            let (step, low) = (f32::from(grid.steps[sub]), f32::from(grid.lows[sub]));
            let mut best = (self.error(x, w, grid.sub(sub)), step, low);
            for (up, deeper) in (-1..=1i8).flat_map(|up| (-1..=1i8).map(move |deeper| (up, deeper))) {
                let (step, low) = (step + f32::from(up), low + f32::from(deeper));
                let inside = step >= least_step && step <= most_step && low >= 0.0 && low <= most_low;
                if !inside || (up, deeper) == (0, 0) {
                    continue;
                }
                let error = self.error(x, w, SubGrid { step: d * step, low: m * low });
                if error < best.0 {
                    best = (error, step, low);
                }
            }
            (grid.steps[sub], grid.lows[sub]) = (best.1 as i8, best.2 as u8);
        }
    }

    /// `d` and `m` by least squares over the block, for the levels, `s` and `l` of `grid`.
    #[inline(always)]
    fn refit(&self, grid: &mut BlockGrid) {
        // x = d u - m v with u = s q and v = l.
        let [mut uu, mut uv, mut vv, mut ux, mut vx] = [0.0f64; 5];
        for sub in 0..self.x.len() / self.kind.sub_block() {
            let (x, w) = self.sub(sub);
            let SubGrid { step, low } = grid.sub(sub);
            let per_step = inverse(step);
            let [total, wx, wq, wqq, wqx] = sum(x, w, |x, w| {
                let level = self.rounding.level((x + low) * per_step);
                [w, w * x, w * level, w * level * level, w * level * x]
            })
            .map(f64::from);
            let (s, l) = (f64::from(grid.steps[sub]), f64::from(grid.lows[sub]));
            uu += s * s * wqq;
            uv += s * l * wq;
            vv += l * l * total;
            ux += s * wqx;
            vx += l * wx;
        }
        if !self.subtracts() {
            if uu > 0.0 {
                grid.d = stored((ux / uu) as f32);
            }
            return;
        }
        let determinant = uu * vv - uv * uv;
        if determinant > 1e-9 * uu * vv {
            grid.d = stored(((vv * ux - uv * vx) / determinant) as f32);
            grid.m = stored(((uv * ux - uu * vx) / determinant) as f32);
        } else if uu > 0.0 && vv == 0.0 {
            grid.d = stored((ux / uu) as f32);
        }
    }
}
