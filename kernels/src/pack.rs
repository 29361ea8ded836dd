//! The contiguous little-endian bit stream of GPTQ checkpoints: value `i` occupies bits `[bits*i, bits*(i+1))`.

/// Packs `values` into 32-bit words; the last word is filled up with zeros.
pub fn pack(values: impl IntoIterator<Item = u8>, bits: u32) -> Vec<u32> {
    let _ = (values.into_iter(), bits);
    todo!("kernels helper")
}

/// The first `count` values of the stream `words`.
pub fn unpack(words: &[u32], bits: u32, count: usize) -> Vec<u8> {
    let _ = (words, bits, count);
    todo!("kernels helper")
}
