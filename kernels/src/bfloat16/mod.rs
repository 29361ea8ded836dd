//! Dense product of bfloat16 numbers with float32 sums, `out = x wᵀ`, by the instructions that processors have for it.
//!
//! ```text
//! high(v) = v rounded to bfloat16 (8 significant bits)          |v - high|       <= 2^-8  |v|
//! low(v)  = (v - high(v)) rounded to bfloat16                   |v - high - low| <= 2^-16 |v|
//! one term:     out = high(x) high(w)
//! three terms:  out = high(x) high(w) + low(x) high(w) + high(x) low(w)
//! ```
//!
//! What three terms leave out is at most `3 · 2^-16 |x w|` of each product. Numbers below 2^-126 count as zero.
//!
//! Both operands lie in cache lines of 32 numbers along the inputs, padded with zeros. A [`Line`] of `x` is a piece of a row.
//! Of the weight, 16 lines are a square of 16 pairs of inputs by 16 outputs: line `p` holds inputs `2p` and `2p + 1` of
//! each output in turn, which is the order in which the instructions read their second operand.
//!
//! Both are multiplied run by run along the inputs, and lie in memory in that order. `x` is packed and multiplied [`CHUNK`]
//! rows at a time, so that what was just packed is still in the caches.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub(crate) use attention::KeyValueTiles;
use half::bf16;
use std::{cell::RefCell, ops::Range, sync::OnceLock};

/// Numbers in a line.
const LINE: usize = 32;
/// Outputs of the weight that lie together: two squares.
const PANEL: usize = 32;
/// Rows that are packed at a time: a multiple of either unit's tile.
const CHUNK: usize = 192;
/// Lines of a run at most, of one term and of three: a panel of the weight and a block of rows take about 16 KiB each, so
/// that the panel stays in the first-level cache.
const RUN: [usize; 2] = [9, 4];

/// A cache line of bfloat16 numbers.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Line([u16; LINE]);

impl Line {
    const ZERO: Self = Self([0; LINE]);
}

/// What multiplies bfloat16 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tiles of 16 rows (AMX).
    Amx,
    /// Dot products of pairs (AVX-512 BF16).
    Avx512,
}

impl Unit {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "bfloat16 by AMX",
            Self::Avx512 => "bfloat16 by AVX-512",
        }
    }
}

/// The best that processor and system grant.
pub fn unit() -> Option<Unit> {
    static UNIT: OnceLock<Option<Unit>> = OnceLock::new();
    #[cfg(target_arch = "x86_64")]
    let find = || match avx512::granted() {
        true if amx::granted() => Some(Unit::Amx),
        true => Some(Unit::Avx512),
        false => None,
    };
    #[cfg(not(target_arch = "x86_64"))]
    let find = || None;
    *UNIT.get_or_init(find)
}

/// Each number rounded to the nearest bfloat16, ties to even.
pub(crate) fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect()
}

/// A weight in tiles.
#[derive(Debug)]
pub(crate) struct Packed {
    unit: Unit,
    outputs: usize,
    inputs: usize,
    squares: Squares,
}

/// The numbers of a weight: `[runs, panels, lines of a run, 2 squares, 16 lines]`.
#[derive(Debug)]
struct Squares {
    high: Vec<Line>,
    /// The same of what rounding left, or nothing.
    low: Vec<Line>,
}

/// Up to [`CHUNK`] rows of activations in lines: `[rows, lines of a row]`, or for tiles `[runs, rows / 32, lines of a run,
/// 32]`, the last of them filled up with zeros.
#[derive(Default)]
struct Rows {
    high: Vec<Line>,
    low: Vec<Line>,
}

thread_local! {
    /// Reused from product to product: fresh memory is dear.
    static ROWS: RefCell<Rows> = const { RefCell::new(Rows { high: Vec::new(), low: Vec::new() }) };
}

#[cfg(target_arch = "x86_64")]
impl Packed {
    /// Of `w`, `[outputs, inputs]`; `split` keeps what rounding leaves.
    pub(crate) fn new(w: &[f32], inputs: usize, split: bool, unit: Unit) -> Self {
        let outputs = w.len() / inputs;
        assert_eq!(w.len(), outputs * inputs, "shape of w");
        let lines = inputs.div_ceil(LINE);
        let count = outputs.div_ceil(PANEL) * PANEL * lines;
        let low = if split { vec![Line::ZERO; count] } else { Vec::new() };
        let mut squares = Squares { high: vec![Line::ZERO; count], low };
        for (square, rows) in w.chunks(16 * inputs).enumerate() {
            for run in runs(lines, split) {
                let begin = piece(&run, outputs.div_ceil(PANEL), square / 2) + square % 2 * 16;
                avx512::pack_squares(rows, inputs, run, &mut squares, begin);
            }
        }
        Self { unit, outputs, inputs, squares }
    }

    /// `out = x wᵀ` for `x` `[rows, inputs]`; a row of `out` depends on its row of `x` alone, to the bit.
    pub(crate) fn multiply(&self, x: &[f32], out: &mut [f32]) {
        let rows = x.len() / self.inputs;
        assert_eq!((x.len(), out.len()), (rows * self.inputs, rows * self.outputs), "shapes of x and out");
        self.multiply_within(rows, (x, self.inputs), (out, self.outputs));
    }

    /// The same where rows lie so many numbers apart.
    pub(crate) fn multiply_within(&self, rows: usize, x: (&[f32], usize), out: (&mut [f32], usize)) {
        Self::multiply_each(&[self], rows, x, out);
    }

    /// The products with several weights of the same inputs side by side: `out` is `[rows, all their outputs]`; rows of either
    /// lie so many numbers apart. `x` is packed once for all of them.
    pub(crate) fn multiply_each(
        weights: &[&Self],
        rows: usize,
        (x, x_stride): (&[f32], usize),
        (out, stride): (&mut [f32], usize),
    ) {
        let Some(first) = weights.first() else { return };
        let layout = |weight: &Self| (weight.inputs, weight.squares.low.is_empty(), weight.unit);
        assert!(weights.iter().all(|weight| layout(weight) == layout(first)), "weights that are packed alike");
        ROWS.with_borrow_mut(|scratch| {
            for begin in (0..rows).step_by(CHUNK) {
                let count = CHUNK.min(rows - begin);
                scratch.fill(count, &x[begin * x_stride..], x_stride, first);
                let mut column = 0;
                for weight in weights {
                    let out = (&mut out[begin * stride + column..], stride);
                    match weight.unit {
                        Unit::Amx => amx::multiply(weight, scratch, count, out),
                        Unit::Avx512 => avx512::multiply(weight, scratch, count, out),
                    }
                    column += weight.outputs;
                }
            }
        });
    }

    fn runs(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        runs(self.lines(), !self.squares.low.is_empty())
    }

    /// Lines in a row of inputs.
    fn lines(&self) -> usize {
        self.inputs.div_ceil(LINE)
    }

    /// The pairs of operands whose products are added up.
    fn terms<'a>(&'a self, rows: &'a Rows) -> Vec<(&'a [Line], &'a [Line])> {
        let Squares { high, low } = &self.squares;
        let mut terms = vec![(&rows.high[..], &high[..])];
        if !low.is_empty() {
            terms.extend([(&rows.low[..], &high[..]), (&rows.high[..], &low[..])]);
        }
        terms
    }
}

#[cfg(target_arch = "x86_64")]
impl Rows {
    fn fill(&mut self, rows: usize, x: &[f32], stride: usize, packed: &Packed) {
        let lines = packed.lines();
        let room = rows.next_multiple_of(amx::ROWS) * lines;
        self.high.resize(room, Line::ZERO);
        self.low.resize(if packed.squares.low.is_empty() { 0 } else { room }, Line::ZERO);
        let blocks = rows.div_ceil(amx::ROWS);
        for row in 0..blocks * amx::ROWS {
            let values = if row < rows { &x[row * stride..][..packed.inputs] } else { &[] };
            for run in packed.runs() {
                let (begin, stride) = match packed.unit {
                    Unit::Amx => (piece(&run, blocks, row / amx::ROWS) + row % amx::ROWS, amx::ROWS),
                    Unit::Avx512 => (row * lines + run.start, 1),
                };
                avx512::pack_row(values, run, &mut self.high, &mut self.low, begin, stride);
            }
        }
    }
}

/// The runs of a row of so many lines, of much the same length.
fn runs(lines: usize, split: bool) -> impl Iterator<Item = Range<usize>> {
    let run = lines.div_ceil(lines.div_ceil(RUN[usize::from(split)]));
    (0..lines).step_by(run).map(move |first| first..lines.min(first + run))
}

/// Where piece `which` of `count` begins in a run, in lines: each has 32 lines for a line of a row.
fn piece(run: &Range<usize>, count: usize, which: usize) -> usize {
    32 * (run.start * count + run.len() * which)
}

/// No unit, no weight in tiles: what is never made needs no code.
#[cfg(not(target_arch = "x86_64"))]
impl Packed {
    pub(crate) fn new(_: &[f32], _: usize, _: bool, unit: Unit) -> Self {
        unreachable!("{} on another architecture", unit.name())
    }

    pub(crate) fn multiply(&self, _: &[f32], _: &mut [f32]) {
        unreachable!("{} on another architecture", self.unit.name())
    }

    pub(crate) fn multiply_within(&self, _: usize, _: (&[f32], usize), _: (&mut [f32], usize)) {
        unreachable!("{} on another architecture", self.unit.name())
    }

    pub(crate) fn multiply_each(_: &[&Self], _: usize, _: (&[f32], usize), _: (&mut [f32], usize)) {
        unreachable!("bfloat16 on another architecture")
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
mod tests {
    use super::*;
    use crate::testing::random;

    /// Shapes with one row, one output, one input, and no multiple of any tile.
    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (2, 3, 2),
        (12, 32, 32),
        (13, 33, 31),
        (31, 15, 65),
        (32, 64, 600),
        (70, 17, 1100),
        (205, 40, 96),
        (0, 4, 3),
    ];

    /// The sum in float64 over `high` and `low`, and the bound of the float32 sum over it.
    fn reference(x: &[f32], w: &[f32], split: bool) -> (f64, f64) {
        let high = |v: f32| bf16::from_f32(v).to_f32();
        let low = |v: f32| bf16::from_f32(v - high(v)).to_f32();
        let terms = x.iter().zip(w).flat_map(|(&x, &w)| {
            let second = if split { [low(x) * high(w), high(x) * low(w)] } else { [0.0; 2] };
            [high(x) * high(w), second[0], second[1]]
        });
        let (sum, magnitude) =
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + f64::from(term), size + f64::from(term.abs())));
        // n float32 additions of at most 3 terms each, and products rounded before they are added.
        (sum, magnitude * 2f64.powi(-24) * (3 * x.len() + 3) as f64)
    }

    fn agrees(unit: Unit, x: &[f32], w: &[f32], inputs: usize, multiply: &dyn Fn(&Packed, &mut [f32])) {
        let outputs = w.len() / inputs;
        for split in [false, true] {
            let packed = Packed::new(w, inputs, split, unit);
            let mut out = vec![f32::NAN; x.len() / inputs * outputs];
            multiply(&packed, &mut out);
            for (at, got) in out.iter().enumerate() {
                let (x, w) = (&x[at / outputs * inputs..][..inputs], &w[at % outputs * inputs..][..inputs]);
                let (expected, bound) = reference(x, w, split);
                let error = (f64::from(*got) - expected).abs();
                assert!(error <= bound, "{unit:?} split {split} at {at} of {outputs} x {inputs}: {error} of {bound}");
            }
        }
    }

    fn operands((rows, outputs, inputs): (usize, usize, usize)) -> (Vec<f32>, Vec<f32>) {
        let (mut x, w) = (random(rows * inputs, 1), random(outputs * inputs, 2));
        x.iter_mut().step_by(7).for_each(|value| *value *= 1e6);
        (x, w)
    }

    #[test]
    fn every_unit_agrees_with_the_sum_of_rounded_products() {
        let Some(best) = unit() else { return println!("SKIPPED: this processor has no bfloat16 products") };
        for shape in SHAPES {
            let (x, w) = operands(shape);
            for unit in [Unit::Avx512, best] {
                agrees(unit, &x, &w, shape.2, &|packed, out| packed.multiply(&x, out));
            }
        }
    }

    /// The walk over tiles and its addresses, with tile instructions written out: it runs where there are none.
    #[test]
    fn the_walk_over_tiles_agrees_too() {
        if unit().is_none() {
            return println!("SKIPPED: this processor can't pack bfloat16 numbers");
        }
        for shape in SHAPES {
            let (x, w) = operands(shape);
            agrees(Unit::Amx, &x, &w, shape.2, &|packed, out| {
                let mut rows = Rows::default();
                for (x, out) in x.chunks(CHUNK * shape.2).zip(out.chunks_mut(CHUNK * shape.1)) {
                    let count = x.len() / shape.2;
                    rows.fill(count, x, shape.2, packed);
                    amx::multiply_with(amx::emulated, packed, &rows, count, (out, shape.1));
                }
            });
        }
    }

    #[test]
    fn three_terms_are_as_good_as_float32_nearly_and_one_is_not() {
        let Some(unit) = unit() else { return println!("SKIPPED: this processor has no bfloat16 products") };
        let (rows, outputs, inputs) = (64, 48, 576);
        let (x, w) = (random(rows * inputs, 3), random(outputs * inputs, 4));
        let error = |split: bool| {
            let mut out = vec![0.0; rows * outputs];
            Packed::new(&w, inputs, split, unit).multiply(&x, &mut out);
            let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
            let exact = x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(move |w| dot(x, w)));
            let (lost, whole) = exact.zip(&out).fold((0.0, 0.0), |(lost, whole), (exact, out)| {
                (lost + (exact - f64::from(*out)).powi(2), whole + exact * exact)
            });
            (lost / whole).sqrt()
        };
        assert!(error(true) < 1e-5, "{}", error(true));
        assert!((1e-4..1e-2).contains(&error(false)), "{}", error(false));
    }

    #[test]
    fn other_rows_do_not_matter() {
        let Some(unit) = unit() else { return println!("SKIPPED: this processor has no bfloat16 products") };
        let (rows, outputs, inputs) = (300, 70, 1100);
        let (x, w) = (random(rows * inputs, 3), random(outputs * inputs, 4));
        let packed = Packed::new(&w, inputs, true, unit);
        let run = |rows: usize| {
            let mut out = vec![0.0; rows * outputs];
            packed.multiply(&x[..rows * inputs], &mut out);
            out
        };
        let all = run(rows);
        for rows in [1, 2, 3, 11, 12, 13, 31, 33, 191, 193] {
            assert_eq!(run(rows), all[..rows * outputs], "{rows} rows");
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        let Some(unit) = unit() else { return println!("SKIPPED: this processor has no bfloat16 products") };
        let (inputs, outputs) = (70, 40);
        let (mut x, w) = (random(20 * inputs, 3), random(outputs * inputs, 4));
        x[3 * inputs + 69] = f32::NAN;
        x[5 * inputs] = f32::INFINITY;
        let mut out = vec![0.0; 20 * outputs];
        Packed::new(&w, inputs, false, unit).multiply(&x, &mut out);
        for (row, out) in out.chunks(outputs).enumerate() {
            assert_eq!(out.iter().all(|value| value.is_finite()), row != 3 && row != 5, "row {row}");
        }
    }
}
