//! Loops compiled twice: for the target's baseline and, on x86-64, for AVX2 with fused multiply-add, picked at run time.
//!
//! Bodies write fused operations as `mul_add` and sums over an explicit array of lanes, so that either version does the
//! same arithmetic in the same order; the compiler only chooses how many lanes go into one register.

/// Declares functions whose bodies are compiled for both instruction sets.
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
