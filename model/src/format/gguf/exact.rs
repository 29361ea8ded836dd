//! Integers of other formats as blocks, without rounding them again.
//!
//! With scale `s` and zero-point `z` of a group of 32k columns, `s (q - z)` is what a block of 32 of them holds with
//! `d = s`, the scale repeated for each block: Q4_0, Q5_0 and Q8_0 hold the level `q - z` itself where it lies between
//! their ends; Q4_1 and Q5_1 hold `q`, and `-s z` as float16, the one number here that is rounded (by 2^-11 of itself at
//! most; `s` isn't). Formats whose scales are themselves quantized can't hold any scale.

use super::Mixture;
use crate::format::QuantizedModule;
use half::f16;
use kernels::{
    QuantizedMatrix,
    kquant::{BlockGrid, BlockMatrix, BlockType},
};

/// Columns of a block.
const COLUMNS: usize = 32;

/// The least and the largest level that a format holds; `None` for formats of other grids.
fn levels(kind: BlockType) -> Option<(i32, i32)> {
    match kind {
        BlockType::Q4_0 => Some((-8, 7)),
        BlockType::Q5_0 => Some((-16, 15)),
        BlockType::Q8_0 => Some((-128, 127)),
        _ => None,
    }
}

/// The largest code of a format that has a minimum.
fn largest_code(kind: BlockType) -> Option<u32> {
    match kind {
        BlockType::Q4_1 => Some(15),
        BlockType::Q5_1 => Some(31),
        _ => None,
    }
}

/// Why `module` can't be held by the base type of `mixture`, if so.
pub(in crate::format) fn objection(mixture: Mixture, module: &QuantizedModule) -> Option<String> {
    let (kind, spec) = (mixture.base(), &module.spec);
    let name = kind.name();
    let whole = spec.group_size.is_none_or(|size| size % COLUMNS == 0 || size >= module.inputs);
    if !whole || !module.inputs.is_multiple_of(COLUMNS) {
        let size = spec.columns_per_group(module.inputs);
        return Some(format!(
            "{name} has a scale for 32 columns: groups of {size} of {} columns don't fall together with them",
            module.inputs
        ));
    }
    if spec.act_order == kernels::ActOrder::Desc {
        return Some(format!("{name} has no group index, which act-order `desc` needs; use `static`"));
    }
    let most = spec.max_code() as i32;
    let (least, largest) =
        if spec.symmetric { (-(most + 1) / 2, most / 2) } else { (-most, most - i32::from(spec.smallest_zero)) };
    let fits = match (levels(kind), largest_code(kind)) {
        (Some((low, high)), _) => least >= low && largest <= high,
        (None, Some(code)) => spec.max_code() <= code,
        (None, None) => {
            return Some(format!(
                "{name} quantizes its scales: it holds no given integers; ask for it alone, to be solved on its own grids"
            ));
        }
    };
    (!fits).then(|| {
        let grid = if spec.symmetric { "symmetric" } else { "asymmetric" };
        let fitting = match (spec.bits, spec.symmetric) {
            (8, true) => "Q8_0",
            (8, false) => "none",
            (_, true) => "Q4_0",
            (_, false) => "Q4_1",
        };
        format!("{name} can't hold the {grid} integers of {} bits; the format that does: {fitting}", spec.bits)
    })
}

/// `matrix`, whose settings [`objection`] let pass, as blocks of `kind`.
pub(in crate::format) fn blocks(matrix: &QuantizedMatrix, kind: BlockType) -> Result<BlockMatrix, String> {
    let groups = matrix.groups();
    let (length, per_row) = (kind.row_bytes(matrix.inputs), matrix.inputs / COLUMNS);
    let mut bytes = vec![0; matrix.outputs * length];
    let blocks = bytes.chunks_exact_mut(kind.bytes()).zip(matrix.codes.chunks_exact(COLUMNS)).enumerate();
    for (index, (block, codes)) in blocks {
        let (row, first) = (index / per_row, index % per_row * COLUMNS);
        let members = &matrix.group_index[first..first + COLUMNS];
        if members.iter().any(|group| *group != members[0]) {
            return Err(format!("columns {first} to {} are in several groups", first + COLUMNS - 1));
        }
        let at = row * groups + members[0] as usize;
        let (scale, zero) = (matrix.scales[at], matrix.zeros[at]);
        let (grid, codes) = grid_and_codes(kind, scale, zero, codes)
            .ok_or_else(|| format!("row {row} has integers around {zero} that {} can't hold", kind.name()))?;
        kind.pack(&grid, &codes, block);
    }
    Ok(BlockMatrix { outputs: matrix.outputs, inputs: matrix.inputs, kind, bytes })
}

fn grid_and_codes(kind: BlockType, scale: f16, zero: u8, codes: &[u8]) -> Option<(BlockGrid, Vec<u8>)> {
    if let Some((low, high)) = levels(kind) {
        let level = |code: &u8| {
            let level = i32::from(*code) - i32::from(zero);
            (level >= low && level <= high).then_some((level - low) as u8)
        };
        return Some((BlockGrid::single(scale, f16::ZERO), codes.iter().map(level).collect::<Option<_>>()?));
    }
    let low = f16::from_f32(scale.to_f32() * f32::from(zero));
    let held = low.is_finite() && codes.iter().all(|code| u32::from(*code) <= largest_code(kind).unwrap_or(0));
    held.then(|| (BlockGrid::single(scale, low), codes.to_vec()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use kernels::{ActOrder, QuantSpec, ScaleSearch, block_solve::round_to_nearest};

    fn spec(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantSpec {
        QuantSpec {
            bits,
            group_size,
            symmetric,
            act_order: ActOrder::Static,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 1,
        }
    }

    fn weight() -> Vec<f32> {
        (0..5 * 128).map(|i| ((i * 7919 % 1009) as f32 / 500.0 - 0.9) * 0.1).collect()
    }

    fn module(spec: QuantSpec) -> QuantizedModule {
        QuantizedModule { name: "m".into(), outputs: 5, inputs: 128, spec }
    }

    #[test]
    fn symmetric_integers_are_the_same_weights() {
        for (bits, mixture) in [(2, "Q4_0"), (3, "Q4_0"), (4, "Q4_0"), (4, "Q5_0"), (8, "Q8_0"), (4, "Q8_0")] {
            for group_size in [Some(32), Some(64), Some(128), None, Some(1000)] {
                let (spec, mixture) = (spec(bits, group_size, true), mixture.parse::<Mixture>().unwrap());
                assert_eq!(objection(mixture, &module(spec)), None);
                let matrix = round_to_nearest(&weight(), 128, &spec);
                let blocks = blocks(&matrix, mixture.base()).unwrap();
                assert!(blocks.dequantize() == matrix.dequantize(), "{bits} {mixture:?} {group_size:?}");
            }
        }
    }

    /// Only `-s z` is rounded, to 2^-11 of itself, and with it every weight of the block by the same amount.
    #[test]
    fn asymmetric_integers_move_by_the_rounding_of_the_minimum() {
        for (bits, mixture) in [(4, "Q4_1"), (3, "Q4_1"), (4, "Q5_1")] {
            let (spec, mixture) = (spec(bits, Some(64), false), mixture.parse::<Mixture>().unwrap());
            assert_eq!(objection(mixture, &module(spec)), None);
            let matrix = round_to_nearest(&weight(), 128, &spec);
            let blocks = blocks(&matrix, mixture.base()).unwrap();
            let mut codes = [0; 32];
            for (block, stored) in blocks.bytes.chunks_exact(mixture.base().bytes()).zip(matrix.codes.chunks(32)) {
                mixture.base().unpack(block, &mut codes);
                assert_eq!(codes, stored);
            }
            for (at, (a, b)) in blocks.dequantize().iter().zip(matrix.dequantize()).enumerate() {
                let group = at / 64;
                let low = matrix.scales[group].to_f32() * f32::from(matrix.zeros[group]);
                assert!((a - b).abs() <= low * 2.0f32.powi(-11) + 1e-7, "{a} {b}");
            }
        }
    }

    #[test]
    fn what_cannot_be_held_is_named() {
        let ask = |mixture: &str, spec: QuantSpec| objection(mixture.parse().unwrap(), &module(spec)).unwrap();
        assert!(ask("Q4_0", spec(4, Some(48), true)).contains("groups of 48"));
        assert!(ask("Q4_0", spec(4, Some(32), false)).contains("Q4_1"));
        assert!(ask("Q4_1", spec(8, Some(32), true)).contains("Q8_0"));
        assert!(ask("Q8_0", spec(8, Some(32), false)).contains("none"));
        assert!(ask("Q4_K_M", spec(4, Some(32), true)).contains("alone"));
        let ordered = QuantSpec { act_order: ActOrder::Desc, ..spec(4, Some(32), true) };
        assert!(ask("Q4_0", ordered).contains("desc"));
        let mut mixed = round_to_nearest(&weight(), 128, &spec(4, Some(64), true));
        mixed.group_index.swap(3, 90);
        assert!(blocks(&mixed, BlockType::Q4_0).unwrap_err().contains("several groups"));
    }
}
