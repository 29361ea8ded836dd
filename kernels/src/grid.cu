// The grids of groups, and rounding to them: grid.rs, operation by operation, so that integers are equal bit for bit.
//
// Weights lie as [columns, rows], a thread a row, so that neighbours read neighbours. A group is a run of `members`, the
// columns in the order of their groups; group g has those from starts[g] to starts[g + 1]. Grids lie as [groups, rows].

constexpr unsigned LANES = 16;
constexpr float LARGEST_HALF = 65504.0f;
constexpr float SMALLEST_HALF = 5.9604644775390625e-8f;         // 2^-24, subnormal
constexpr float SMALLEST_NORMAL_HALF = 6.103515625e-5f;         // 2^-14

struct GridSpec {
    float max_code;
    float smallest_zero;
    unsigned symmetric;
    // Whether the range is searched for the least error.
    unsigned search;
};

struct Grid {
    float scale;
    float zero;
};

// One group of one row.
struct Group {
    const float* weight;
    unsigned long long stride;
    const unsigned* members;
    unsigned count;

    __device__ float operator[](unsigned i) const { return weight[members[i] * stride]; }
};

// `x`, from 0 to LARGEST_HALF, rounded to float16, halves to even.
__device__ float rounded_to_half(float x) {
    if (x < SMALLEST_NORMAL_HALF) {
        return rintf(x * 16777216.0f) * SMALLEST_HALF;
    }
    const unsigned bits = (unsigned)__float_as_int(x);
    return __int_as_float((int)((bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu));
}

// The next float16 above `x`, itself one.
__device__ float next_half(float x) {
    return x < SMALLEST_NORMAL_HALF ? x + SMALLEST_HALF : __int_as_float(__float_as_int(x) + (1 << 13));
}

__device__ float stored_scale(float scale, float steps) {
    const float nearest = fmaxf(rounded_to_half(fminf(scale, LARGEST_HALF)), SMALLEST_HALF);
    const bool falls_short = steps * (scale - nearest) > 0.5f * nearest;
    return falls_short && nearest < LARGEST_HALF ? next_half(nearest) : nearest;
}

__device__ Grid spanning(float least, float most, const GridSpec& spec) {
    const float middle = (spec.max_code + 1.0f) * 0.5f;
    if (least == 0.0f && most == 0.0f) {
        return {1.0f, spec.symmetric ? middle : spec.smallest_zero};
    }
    if (spec.symmetric) {
        return {stored_scale(fmaxf(most, -least) / spec.max_code * 2.0f, spec.max_code), middle};
    }
    const float scale = stored_scale(most / spec.max_code - least / spec.max_code, spec.max_code);
    const float zero = fminf(rintf(-least / scale), spec.max_code);
    if (zero >= spec.smallest_zero) {
        return {scale, zero};
    }
    const float above = spec.max_code - spec.smallest_zero;
    return {stored_scale(most / above, above), spec.smallest_zero};
}

// ln(x) and |x|^2.4 as in exponential.rs.
__device__ float logarithm(float x) {
    const unsigned lowest = 0x3f3504f3u;
    const unsigned bits = (unsigned)__float_as_int(x);
    const int n = (int)(bits - lowest) >> 23;
    const float m = __int_as_float((int)(bits - ((unsigned)n << 23)));
    const float s = (m - 1.0f) / (m + 1.0f);
    const float square = s * s;
    const float series = fmaf(square, fmaf(square, fmaf(square, 2.0f / 7.0f, 2.0f / 5.0f), 2.0f / 3.0f), 2.0f);
    return fmaf((float)n, 0.693147182f, s * series);
}

__device__ float power_2_4(float x) {
    return exponential(1.2f * logarithm(x * x));
}

// The sum of |error / unit|^2.4 over the finite weights, in the CPU's lanes and its order.
__device__ float summed_error(const Group& group, Grid grid, float unit, float max_code) {
    const float inverse = 1.0f / unit;
    float lanes[LANES] = {};
    unsigned lane = 0;
    for (unsigned i = 0; i < group.count; ++i) {
        const float weight = group[i];
        if (is_finite(weight)) {
            const float step = nearest_step(weight, grid.scale, -grid.zero, max_code - grid.zero);
            lanes[lane % LANES] += power_2_4((weight - grid.scale * step) * inverse);
            ++lane;
        }
    }
    for (unsigned width = LANES / 2; width > 0; width /= 2) {
        for (unsigned i = 0; i < width; ++i) {
            lanes[i] += lanes[i + width];
        }
    }
    return lanes[0];
}

__device__ Grid fit(const Group& group, const GridSpec& spec) {
    float least = 0.0f, most = 0.0f;
    for (unsigned i = 0; i < group.count; ++i) {
        const float weight = group[i];
        if (is_finite(weight)) {
            least = fminf(least, weight);
            most = fmaxf(most, weight);
        }
    }
    const Grid full = spanning(least, most, spec);
    if (!spec.search) {
        return full;
    }
    Grid best = full;
    float least_error = summed_error(group, full, full.scale, spec.max_code);
    for (unsigned step = 1; step < 80; ++step) {
        const float keep = 1.0f - (float)step / 100.0f;
        const Grid grid = spanning(keep * least, keep * most, spec);
        const float error = summed_error(group, grid, full.scale, spec.max_code);
        if (error < least_error) {
            least_error = error;
            best = grid;
        }
    }
    return best;
}

// Fits the grids of gridDim.y groups from `first_group` on.
extern "C" __global__ void fit_grids(const float* weight, const unsigned* members, const unsigned* starts,
                                     unsigned first_group, unsigned rows, GridSpec spec, float* scales, byte* zeros) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned group = first_group + blockIdx.y;
    if (row >= rows) {
        return;
    }
    const Group own = {weight + row, rows, members + starts[group], starts[group + 1] - starts[group]};
    const Grid grid = fit(own, spec);
    scales[(size_t)group * rows + row] = grid.scale;
    zeros[(size_t)group * rows + row] = (byte)grid.zero;
}

// The nearest code of every weight; codes lie as the weights do.
extern "C" __global__ void nearest_codes(const float* weight, const unsigned* group_index, const float* scales,
                                         const byte* zeros, unsigned columns, unsigned rows, float max_code,
                                         byte* codes) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    for (unsigned column = blockIdx.y; column < columns; column += gridDim.y) {
        const size_t at = (size_t)column * rows + row, grid = (size_t)group_index[column] * rows + row;
        const float zero = (float)zeros[grid];
        codes[at] = (byte)(nearest_step(weight[at], scales[grid], -zero, max_code - zero) + zero);
    }
}

// Puts the error of given codes, which lie as the weights do, in the place of every weight.
extern "C" __global__ void coded_errors(float* weight, const byte* codes, const unsigned* group_index, const float* scales,
                                        const byte* zeros, unsigned columns, unsigned rows) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    for (unsigned column = blockIdx.y; column < columns; column += gridDim.y) {
        const size_t at = (size_t)column * rows + row, grid = (size_t)group_index[column] * rows + row;
        weight[at] -= scales[grid] * ((float)codes[at] - (float)zeros[grid]);
    }
}

// Puts the error of rounding in the place of every weight.
extern "C" __global__ void rounding_errors(float* weight, const unsigned* group_index, const float* scales,
                                           const byte* zeros, unsigned columns, unsigned rows, float max_code) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    for (unsigned column = blockIdx.y; column < columns; column += gridDim.y) {
        const size_t at = (size_t)column * rows + row, grid = (size_t)group_index[column] * rows + row;
        const float zero = (float)zeros[grid], scale = scales[grid];
        weight[at] -= scale * nearest_step(weight[at], scale, -zero, max_code - zero);
    }
}
