//! AMX: products of tiles, 16 rows by 32 inputs with 32 inputs by 16 outputs.
//!
//! Four tiles of sums cover a block of 32 rows by 32 outputs; two tiles of either operand are loaded for four products.
//! Rows come in chunks and outputs in groups of panels, so that their sums, in tiles too, stay in the second-level cache
//! while the inputs are walked; they are copied to where they belong once.
//!
//! The instructions are written out, since the compiler has none for them yet. The system has to be asked for the tile
//! registers once a process, and each thread sets their shapes up. The walk is tested with `emulated` instructions; the
//! processor's own run in the same tests where it has them.
#![allow(unsafe_code)]

use super::{CHUNK, Line, PANEL, Packed, Rows, avx512, piece};
use std::{arch::asm, cell::RefCell, ops::Range, sync::OnceLock};

/// Rows of a block: two tiles.
pub(super) const ROWS: usize = 32;
/// Panels of the weight whose sums are held at a time: with [`CHUNK`] rows 384 KiB.
const GROUP: usize = 8;

/// The sums of a block, in four tiles: above left and right, below left and right.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Sums([[[f32; 16]; 16]; 4]);

thread_local! {
    /// Of a chunk of rows with a group of panels.
    static SUMS: RefCell<Vec<Sums>> = const { RefCell::new(Vec::new()) };
}

/// Tile shapes as `ldtilecfg` reads them: 8 tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// A block of 32 rows and outputs, and a run of `count` lines: 32 lines of either operand at a time.
#[repr(C)]
pub(super) struct Block {
    /// Where its sums go, and are already if `add`.
    sums: *mut Sums,
    add: bool,
    count: usize,
    /// The rows and the weight.
    high: [*const Line; 2],
    /// What rounding left of them, or nulls.
    low: [*const Line; 2],
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

/// `out = x wᵀ`, rows of `out` so many numbers apart.
pub(super) fn multiply(packed: &Packed, x: &Rows, rows: usize, out: (&mut [f32], usize)) {
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

/// [`multiply`] by `block`: group by group of the weight's panels, run by run along the inputs, panel by panel, block by
/// block of the rows.
pub(super) fn multiply_with(
    block: unsafe fn(&Block),
    packed: &Packed,
    rows: &Rows,
    count: usize,
    (out, stride): (&mut [f32], usize),
) {
    let (panels, blocks) = (packed.outputs.div_ceil(PANEL), count.div_ceil(ROWS));
    SUMS.with_borrow_mut(|sums| {
        sums.resize(CHUNK / ROWS * GROUP, Sums([[[0.0; 16]; 16]; 4]));
        for group in (0..panels).step_by(GROUP) {
            let group = group..panels.min(group + GROUP);
            for run in packed.runs() {
                let x = |lines, first| address(lines, piece(&run, blocks, first), run.len());
                let w = |lines, panel| address(lines, piece(&run, panels, panel), run.len());
                for panel in group.clone() {
                    for first in 0..blocks {
                        let sums = &raw mut sums[(panel - group.start) * blocks + first];
                        let high = [x(&rows.high, first), w(&packed.squares.high, panel)];
                        let low = [x(&rows.low, first), w(&packed.squares.low, panel)];
                        // SAFETY: all addresses are of as many lines as the run has, or null.
                        unsafe { block(&Block { sums, add: run.start > 0, count: run.len(), high, low }) };
                    }
                }
            }
            // SAFETY: the weight was packed by the same instructions.
            unsafe { store(sums, group, packed.outputs, count, (&mut *out, stride)) };
        }
    });
}

/// Where 32 lines for each of `count` begin, `at` lines from the first; null if there are none.
fn address(lines: &[Line], at: usize, count: usize) -> *const Line {
    if lines.is_empty() { std::ptr::null() } else { lines[at..][..count * ROWS].as_ptr() }
}

/// Writes the sums of a group of panels, `[panels, blocks]`, into `rows` rows of `out`, without those of zeros around them.
#[target_feature(enable = "avx512f")]
fn store(sums: &[Sums], group: Range<usize>, outputs: usize, rows: usize, (out, stride): (&mut [f32], usize)) {
    let (begin, end, blocks) = (group.start * PANEL, outputs.min(group.end * PANEL), rows.div_ceil(ROWS));
    for row in 0..rows {
        let out = &mut out[row * stride..][begin..end];
        for (at, out) in out.chunks_mut(16).enumerate() {
            let Sums(tiles) = &sums[at / 2 * blocks + row / ROWS];
            avx512::store_sums(&tiles[row / 16 % 2 * 2 + at % 2][row % 16], out);
        }
    }
}

/// Adds up the products of `block` in tiles 0 to 3; 4 and 5 hold rows, 6 and 7 the weight.
///
/// # Safety
///
/// AMX is granted and the thread's tiles have their shapes; all addresses in `block` are good for what it says.
unsafe fn block(block: &Block) {
    // SAFETY: by the caller's promise. Reads lines of both operands, reads and writes the sums.
    unsafe {
        asm!(
            "test {add}, {add}",
            "jz 2f",
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 1024]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 3072]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{x} + {line}]",
            "tileloadd tmm6, [{w} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {line} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x} + {line} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "test {x_low}, {x_low}",
            "jz 4f",
            "tileloadd tmm6, [{w_low} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w_low} + {line} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{x_low} + {line}]",
            "tileloadd tmm6, [{w} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {line} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x_low} + {line} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x_low}, 2048",
            "add {w_low}, 2048",
            "4:",
            "add {x}, 2048",
            "add {w}, 2048",
            "dec {count}",
            "jnz 3b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            sums = in(reg) block.sums,
            line = in(reg) 64usize,
            add = in(reg) usize::from(block.add),
            count = inout(reg) block.count => _,
            x = inout(reg) block.high[0] => _,
            w = inout(reg) block.high[1] => _,
            x_low = inout(reg) block.low[0] => _,
            w_low = inout(reg) block.low[1] => _,
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
    // SAFETY: by the caller's promise.
    let sums = unsafe { &mut (*block.sums).0 };
    let number = |from: *const Line, line: usize, at: usize| {
        // SAFETY: as above.
        half::bf16::from_bits(unsafe { (*from.add(line)).0[at] }).to_f32()
    };
    let [(x, w), (x_low, w_low)] = [block.high, block.low].map(|[x, w]| (x, w));
    let terms = [(x, w), (x, w_low), (x_low, w)];
    let terms = if x_low.is_null() { &terms[..1] } else { &terms[..] };
    for (tile, sums) in sums.iter_mut().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (output, sum) in sums.iter_mut().enumerate() {
                *sum = if block.add { *sum } else { 0.0 };
                for line in 0..block.count {
                    for (x, w) in terms {
                        for input in 0..32 {
                            let x = number(*x, line * 32 + tile / 2 * 16 + row, input);
                            let w = number(*w, line * 32 + tile % 2 * 16 + input / 2, output * 2 + input % 2);
                            *sum += x * w;
                        }
                    }
                }
            }
        }
    }
}
