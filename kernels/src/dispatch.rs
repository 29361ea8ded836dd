//! Loops compiled several times: for the target's baseline and, on x86-64, for AVX2 with fused multiply-add and for AVX-512,
//! picked at run time.
//!
//! Bodies write fused operations as `mul_add` and sums over an explicit array of lanes, so that every version does the
//! same arithmetic in the same order; the compiler only chooses how many lanes go into one register.

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

/// Declares functions whose bodies are compiled for each instruction set.
macro_rules! vectorized {
    ($($(#[$attribute:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$attribute])*
        #[allow(unsafe_code)]
        $visible fn $name($($argument: $type),*) $(-> $result)? {
            #[allow(clippy::inline_always, reason = "only an inlined body is compiled for its caller's instructions")]
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn with_avx512($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                match $crate::dispatch::level() {
                    // SAFETY: the processor was found to have the features that the function is compiled for.
                    $crate::dispatch::Level::Avx512 => unsafe { with_avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::dispatch::Level::Avx2 => unsafe { with_avx2($($argument),*) },
                    $crate::dispatch::Level::Baseline => body($($argument),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body($($argument),*)
        }
    )*};
}

pub(crate) use vectorized;

/// Ends the body of a loop over short runs of numbers. Without it the compiler may take one number of each of several runs
/// into a register, gathered and scattered, instead of a run: up to four times slower. Costs no instruction.
#[allow(clippy::inline_always, reason = "it is one instruction to the compiler and none to the processor")]
#[inline(always)]
pub(crate) fn one_at_a_time() {
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// What loops may use of this processor.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Level {
    /// What every x86-64 has.
    Baseline = 1,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// These, and the parts of AVX-512 that every processor since 2017 with any of it has.
    Avx512,
}

/// The level of this processor. Short loops ask for it at each call, so that it costs a load and two comparisons.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn level() -> Level {
    /// 0 before it was found.
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    const AVX2: u8 = Level::Avx2 as u8;
    const AVX512: u8 = Level::Avx512 as u8;
    match KNOWN.load(Ordering::Relaxed) {
        AVX512 => Level::Avx512,
        AVX2 => Level::Avx2,
        0 => {
            let found = find();
            KNOWN.store(found as u8, Ordering::Relaxed);
            found
        }
        _ => Level::Baseline,
    }
}

#[cfg(target_arch = "x86_64")]
#[cold]
fn find() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Baseline,
    }
}
