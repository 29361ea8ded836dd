// The softmax of each row over the vocabulary, a tile of logits at a time; see log_probability.rs. A block of THREADS
// threads takes a row. `sums` holds the sum of exp(logit - largest), in float64.

constexpr unsigned THREADS = 256;

// Over the block, the same in every thread. `scratch` has room for a number of each warp.
__device__ float block_largest(float x, float* scratch) {
    x = warp_largest(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    for (unsigned warp = 0; warp < THREADS / WARP; ++warp) {
        x = fmaxf(x, scratch[warp]);
    }
    return x;
}

__device__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < THREADS / WARP; ++warp) {
        sum += scratch[warp];
    }
    return sum;
}

// Takes in the logits [rows, columns] of the entries from `first` on: the largest so far, the sum relative to it, and the
// logit of the row's target if it is among them.
extern "C" __global__ void absorb(const float* logits, const unsigned* targets, unsigned columns, unsigned first,
                                  float* largest, double* sums, float* target_logits) {
    __shared__ float scratch[THREADS / WARP];
    const unsigned row = blockIdx.x;
    const float* own = logits + (size_t)row * columns;
    float highest = -INFINITE;
    for (unsigned i = threadIdx.x; i < columns; i += THREADS) {
        highest = fmaxf(highest, own[i]);
    }
    const float before = largest[row];
    highest = fmaxf(before, block_largest(highest, scratch));
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < columns; i += THREADS) {
        sum += exponential(own[i] - highest);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        sums[row] = sums[row] * exp((double)before - (double)highest) + (double)sum;
        largest[row] = highest;
        const unsigned target = targets[row];
        if (target >= first && target - first < columns) {
            target_logits[row] = own[target - first];
        }
    }
}
