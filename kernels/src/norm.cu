// Root-mean-square norm of each row; see norm.rs. A block of THREADS threads takes a row: each sums every THREADS-th
// square, warps add theirs by shuffles, every thread adds the warps' in order.

constexpr unsigned THREADS = 256;

extern "C" __global__ void rms_norm(const float* x, const float* weight, float offset, float epsilon, unsigned width,
                                    float* out) {
    __shared__ float of_warp[THREADS / WARP];
    const float* row = x + (size_t)blockIdx.x * width;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) {
        sum = fmaf(row[i], row[i], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) {
        of_warp[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < THREADS / WARP; ++warp) {
        total += of_warp[warp];
    }
    const float inverse = 1.0f / sqrtf(total / (float)width + epsilon);
    for (unsigned i = threadIdx.x; i < width; i += THREADS) {
        out[(size_t)blockIdx.x * width + i] = row[i] * inverse * (offset + weight[i]);
    }
}
