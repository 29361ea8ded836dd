//! AMX: products of tiles, 16 rows by 32 inputs with 32 inputs by 16 outputs.
//!
//! Four tiles of sums cover 32 rows by 32 outputs; two tiles of either operand are loaded for four products. The
//! instructions are written out, since the compiler has none for them yet. The system has to be asked for the tile
//! registers once a process, and each thread sets their shapes up.
//!
//! The walk is tested with `emulated` instructions; the processor's own run in the same tests where it has them.
#![allow(unsafe_code)]

use super::{Line, PANEL, Packed, Rows};
use std::{arch::asm, sync::OnceLock};

/// Rows of a block: two tiles.
pub(super) const ROWS: usize = 32;
/// Lines of a run: a panel of the weight takes 32 KiB.
const RUN: usize = 16;

/// Tile shapes as `ldtilecfg` reads them: 8 tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// One product of a block: `count` lines along the inputs.
#[repr(C)]
pub(super) struct Term {
    /// First tile of rows; null ends a list of terms.
    x: *const Line,
    /// Second tile of rows.
    x_below: *const Line,
    /// The panel of the weight.
    w: *const Line,
    count: usize,
}

/// A block of 32 rows and outputs.
pub(super) struct Block {
    /// Where its sums are and go.
    out: *mut f32,
    /// Bytes from row to row there.
    out_stride: usize,
    /// Bytes from row to row of `x`.
    x_stride: usize,
    /// Whether sums are there already.
    add: bool,
    terms: [Term; 4],
}

/// Whether the processor has tiles for bfloat16, the system saves them, and this process may use them.
pub(super) fn granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| processor_has_tiles() && permitted())
}

fn processor_has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn state_saved() -> u64 {
        // SAFETY: called only if the system has enabled XGETBV.
        unsafe { _xgetbv(0) }
    }
    const OSXSAVE: u32 = 1 << 27;
    /// amx-bf16 and amx-tile.
    const AMX: u32 = 1 << 22 | 1 << 24;
    /// Tile shapes and tile data.
    const TILES: u64 = 1 << 17 | 1 << 18;
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & AMX == AMX
        && __cpuid(1).ecx & OSXSAVE != 0
        // SAFETY: just found.
        && unsafe { state_saved() } & TILES == TILES
}

/// Asks Linux for the tile registers; elsewhere they are not used.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
        const CALL: [i64; 3] = [158, 0x1023, 18];
        let mut result = CALL[0];
        // SAFETY: a system call that reads and writes no memory of ours.
        unsafe {
            asm!("syscall", inout("rax") result, in("rdi") CALL[1], in("rsi") CALL[2], out("rcx") _, out("r11") _,
                options(nostack));
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// `out = x wᵀ` for `rows` rows.
pub(super) fn multiply(packed: &Packed, x: &Rows, rows: usize, out: &mut [f32]) {
    let shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], row_bytes: for_eight(64), rows: for_eight(16) };
    // SAFETY: the unit is chosen only if granted; the shapes are those that `block` uses.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
    multiply_with(block, packed, x, rows, out);
    // SAFETY: as above; no tile is needed any more.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// `value` for each of the eight tiles.
fn for_eight<T: Copy + Default>(value: T) -> [T; 16] {
    std::array::from_fn(|tile| if tile < 8 { value } else { T::default() })
}

/// [`multiply`] by `block`: panel by panel of the weight, block by block of the rows, run by run along the inputs.
pub(super) fn multiply_with(block: unsafe fn(&Block), packed: &Packed, x: &Rows, rows: usize, out: &mut [f32]) {
    let (terms, lines, outputs) = (packed.terms(x), packed.lines(), packed.outputs);
    let mut edge = [0.0; ROWS * PANEL];
    for run in (0..lines).step_by(RUN) {
        let count = RUN.min(lines - run);
        for panel in 0..outputs.div_ceil(PANEL) {
            for first in (0..rows).step_by(ROWS) {
                let (height, width) = (ROWS.min(rows - first), PANEL.min(outputs - panel * PANEL));
                let corner = first * outputs + panel * PANEL;
                let term = |(x, w): &(&[Line], &[Line])| {
                    let x = &x[first * lines + run..][..(ROWS - 1) * lines + count];
                    let w = &w[(panel * lines + run) * PANEL..][..count * PANEL];
                    Term { x: x.as_ptr(), x_below: x[ROWS / 2 * lines..].as_ptr(), w: w.as_ptr(), count }
                };
                let end = || Term { x: std::ptr::null(), x_below: std::ptr::null(), w: std::ptr::null(), count: 0 };
                let terms = std::array::from_fn(|at| terms.get(at).map_or_else(end, term));
                let whole = height == ROWS && width == PANEL;
                let (to, stride) = if whole {
                    (out[corner..][..(ROWS - 1) * outputs + PANEL].as_mut_ptr(), outputs)
                } else {
                    copy(&out[corner..], outputs, &mut edge, PANEL, height, width);
                    (edge.as_mut_ptr(), PANEL)
                };
                let task = Block { out: to, out_stride: 4 * stride, x_stride: 64 * lines, add: run > 0, terms };
                // SAFETY: 32 rows of 32 numbers lie at `to`, `stride` apart; the slices above hold all lines of the terms.
                unsafe { block(&task) };
                if !whole {
                    copy(&edge, PANEL, &mut out[corner..], outputs, height, width);
                }
            }
        }
    }
}

/// Copies `height` rows of `width` numbers.
fn copy(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize, height: usize, width: usize) {
    for row in 0..height {
        to[row * to_stride..][..width].copy_from_slice(&from[row * from_stride..][..width]);
    }
}

/// Adds up the terms of `block` in tiles 0 to 3; 4 and 5 hold rows, 6 and 7 the weight.
///
/// # Safety
///
/// AMX is granted and the thread's tiles have their shapes; all addresses in `block` are good for what it says.
unsafe fn block(block: &Block) {
    // SAFETY: by the caller's promise. Reads the terms and their lines, reads and writes the sums.
    unsafe {
        asm!(
            "mov {below}, {out_stride}",
            "shl {below}, 4",
            "add {below}, {out}",
            "test {count}, {count}",
            "jz 2f",
            "tileloadd tmm0, [{out} + {out_stride}]",
            "tileloadd tmm1, [{out} + {out_stride} + 64]",
            "tileloadd tmm2, [{below} + {out_stride}]",
            "tileloadd tmm3, [{below} + {out_stride} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "mov {x}, [{term}]",
            "test {x}, {x}",
            "jz 5f",
            "mov {x_below}, [{term} + 8]",
            "mov {w}, [{term} + 16]",
            "mov {count}, [{term} + 24]",
            "add {term}, 32",
            "4:",
            "tileloadd tmm4, [{x} + {x_stride}]",
            "tileloadd tmm6, [{w} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {line} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x_below} + {x_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x}, 64",
            "add {x_below}, 64",
            "add {w}, 2048",
            "dec {count}",
            "jnz 4b",
            "jmp 3b",
            "5:",
            "tilestored [{out} + {out_stride}], tmm0",
            "tilestored [{out} + {out_stride} + 64], tmm1",
            "tilestored [{below} + {out_stride}], tmm2",
            "tilestored [{below} + {out_stride} + 64], tmm3",
            out = in(reg) block.out,
            out_stride = in(reg) block.out_stride,
            x_stride = in(reg) block.x_stride,
            line = in(reg) 64usize,
            term = inout(reg) block.terms.as_ptr() => _,
            count = inout(reg) usize::from(block.add) => _,
            below = out(reg) _,
            x = out(reg) _,
            x_below = out(reg) _,
            w = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// What [`block`] does, at the same addresses, by ordinary arithmetic.
///
/// # Safety
///
/// All addresses in `block` are good for what it says.
#[cfg(test)]
pub(super) unsafe fn emulated(block: &Block) {
    let bytes = |from: *const Line, offset: usize| from.wrapping_byte_add(offset).cast::<u16>();
    let number = |from: *const u16| {
        half::bf16::from_bits(
            // SAFETY: by the caller's promise.
            unsafe { *from },
        )
        .to_f32()
    };
    for row in 0..ROWS {
        for output in 0..PANEL {
            let to = block.out.wrapping_byte_add(row * block.out_stride).wrapping_add(output);
            // SAFETY: by the caller's promise.
            let mut sum = if block.add { unsafe { *to } } else { 0.0 };
            for term in block.terms.iter().take_while(|term| !term.x.is_null()) {
                let x = if row < 16 { term.x } else { term.x_below };
                for line in 0..term.count {
                    let x = bytes(x, row % 16 * block.x_stride + 64 * line);
                    let w = bytes(term.w, 2048 * line + output / 16 * 1024 + output % 16 * 4);
                    for input in 0..32 {
                        sum += number(x.wrapping_add(input)) * number(w.wrapping_add(input / 2 * 32 + input % 2));
                    }
                }
            }
            // SAFETY: by the caller's promise.
            unsafe { *to = sum };
        }
    }
}
