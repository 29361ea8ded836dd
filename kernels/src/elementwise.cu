// What a decoder does number by number between its products. Each thread takes every `stride`-th number.

__device__ inline unsigned long long first_number() {
    return (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ inline unsigned long long stride() {
    return (unsigned long long)gridDim.x * blockDim.x;
}

// x += y.
extern "C" __global__ void add(float* x, const float* y, unsigned long long count) {
    for (unsigned long long i = first_number(); i < count; i += stride()) {
        x[i] += y[i];
    }
}

// Adds `bias` to every row of x, which is [count / width, width].
extern "C" __global__ void add_bias(float* x, const float* bias, unsigned long long count, unsigned width) {
    for (unsigned long long i = first_number(); i < count; i += stride()) {
        x[i] += bias[i % width];
    }
}

// The columns [first, first + columns) of x, which is [count / columns, width].
extern "C" __global__ void take_columns(const float* x, unsigned long long count, unsigned width, unsigned first,
                                        unsigned columns, float* out) {
    for (unsigned long long i = first_number(); i < count; i += stride()) {
        out[i] = x[i / columns * width + first + i % columns];
    }
}

// d = original / divisors - x, divisors by column: how far an input has drifted; see drift.rs.
extern "C" __global__ void take_drift(const float* original, const float* divisors, const float* x,
                                      unsigned long long count, unsigned width, float* d) {
    for (unsigned long long i = first_number(); i < count; i += stride()) {
        d[i] = original[i] / divisors[i % width] - x[i];
    }
}
