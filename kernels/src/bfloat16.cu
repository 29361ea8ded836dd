// Numbers as operands of bfloat16 products; see bfloat16/mod.rs. Nearest, ties to even; what is no number stays none.

__device__ inline unsigned short rounded(float x) {
    const unsigned bits = (unsigned)__float_as_int(x);
    return (unsigned short)(x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : bits >> 16 | 0x40u);
}

__device__ inline float value(unsigned short number) {
    return __int_as_float((int)((unsigned)number << 16));
}

// high = x, rounded; where `split` says so, low = x - high, rounded.
extern "C" __global__ void to_bfloat16(const float* x, unsigned long long count, unsigned split, unsigned short* high,
                                       unsigned short* low) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        const unsigned short number = rounded(x[i]);
        high[i] = number;
        if (split) {
            low[i] = rounded(x[i] - value(number));
        }
    }
}
