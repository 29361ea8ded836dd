//! Loops compiled several times: for the target's baseline and, on x86-64, for AVX2 with fused multiply-add and for AVX-512,
//! picked at run time.
//!
//! Bodies write fused operations as `mul_add` and sums over an explicit array of lanes, so that every version does the
//! same arithmetic in the same order; the compiler only chooses how many lanes go into one register.

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
                if $crate::dispatch::has_avx512() {
                    // SAFETY: as below.
                    return unsafe { with_avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor was just found to have the features that the function is compiled for.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            body($($argument),*)
        }
    )*};
}

pub(crate) use vectorized;

/// Whether the parts of AVX-512 are there that every processor since 2017 with any of it has.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}
