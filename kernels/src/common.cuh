// What several kernels share. It is put before the source of each; compiled with --fmad=false, so that only what is
// written as fmaf is fused, as on the CPU.

typedef unsigned char byte;

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr float LARGEST = 3.402823466e38f;
#define INFINITE __int_as_float(0x7f800000)

__device__ inline bool is_finite(float x) {
    return fabsf(x) <= LARGEST;
}

// The nearest code minus the zero-point of a grid whose ends are `lowest` and `highest`; see grid.rs.
__device__ inline float nearest_step(float weight, float scale, float lowest, float highest) {
    float steps = weight / scale;
    steps = steps == steps ? steps : 0.0f;
    steps = steps < lowest ? lowest : steps;
    steps = steps > highest ? highest : steps;
    return rintf(steps);
}

// 2^n for -126 <= n <= 127.
__device__ inline float power_of_two(int n) {
    return __int_as_float((n + 127) << 23);
}

// exp(x) by the very operations of exponential.rs, where the method is explained.
__device__ inline float exponential(float x) {
    const float rounder = 12582912.0f, ln2_high = 0.693147182f, ln2_low = -1.90465421e-9f;
    x = x > 89.0f ? 89.0f : x;
    x = x < -105.0f ? -105.0f : x;
    const float shifted = fmaf(x, 1.44269502f, rounder);
    float n = shifted - rounder;
    const float r = fmaf(n, -ln2_low, fmaf(n, -ln2_high, x));
    const float coefficients[7] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
    float sum = 1.0f / 5040.0f;
    for (int i = 0; i < 7; ++i) {
        sum = fmaf(r, sum, coefficients[i]);
    }
    // Not a number has no exponent to speak of; its sum stays what it is.
    const int exponent = (int)((unsigned)__float_as_int(shifted) - (unsigned)__float_as_int(rounder));
    const int half = exponent >> 1;
    return x == x ? sum * power_of_two(half) * power_of_two(exponent - half) : x;
}

// The sum, or the largest, over the lanes of a warp, in all of them.
__device__ inline float warp_sum(float x) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

__device__ inline float warp_largest(float x) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}
