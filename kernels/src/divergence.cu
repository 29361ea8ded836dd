// How far one model's distribution over the vocabulary is from another's, a tile of both models' logits at a time; see
// divergence.rs, whose sums it makes in another order. A block of THREADS threads takes a row. Everything is float64.

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;

// A row as far as the vocabulary has been walked: `Sums` of divergence.rs.
struct Sums {
    double largest[2], sum[2], target[2], weighted;
    unsigned top[2];
};

// The largest number over the block and the first place where it stands, in every thread.
__device__ void block_largest(float& x, unsigned& place, float* numbers, unsigned* places) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, x, distance);
        const unsigned there = __shfl_xor_sync(ALL_LANES, place, distance);
        if (other > x || (other == x && there < place)) {
            x = other;
            place = there;
        }
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        numbers[threadIdx.x / WARP] = x;
        places[threadIdx.x / WARP] = place;
    }
    __syncthreads();
    for (unsigned warp = 0; warp < WARPS; ++warp) {
        if (numbers[warp] > x || (numbers[warp] == x && places[warp] < place)) {
            x = numbers[warp];
            place = places[warp];
        }
    }
}

// The sum over the block, in every thread.
__device__ double block_sum(double x, double* scratch) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    double sum = 0.0;
    for (unsigned warp = 0; warp < WARPS; ++warp) {
        sum += scratch[warp];
    }
    return sum;
}

// Takes in the logits [rows, columns] of the entries from `first` on: the baseline's, then the model's.
extern "C" __global__ void diverge(const float* baseline, const float* model, const unsigned* targets, unsigned columns,
                                   unsigned first, Sums* sums) {
    __shared__ float numbers[WARPS];
    __shared__ unsigned places[WARPS];
    __shared__ double scratch[WARPS];
    const unsigned row = blockIdx.x;
    const float* logits[2] = {baseline + (size_t)row * columns, model + (size_t)row * columns};
    const Sums before = sums[row];
    Sums after = before;
    for (unsigned side = 0; side < 2; ++side) {
        float highest = -INFINITE;
        unsigned place = columns;
        for (unsigned i = threadIdx.x; i < columns; i += THREADS) {
            if (logits[side][i] > highest) {
                highest = logits[side][i];
                place = i;
            }
        }
        block_largest(highest, place, numbers, places);
        if ((double)highest > before.largest[side]) {
            const double shrink = exp(before.largest[side] - (double)highest);
            after.largest[side] = highest;
            after.top[side] = first + place;
            after.sum[side] *= shrink;
            after.weighted *= side == 0 ? shrink : 1.0;
        }
    }
    double sum[2] = {0.0, 0.0}, weighted = 0.0;
    for (unsigned i = threadIdx.x; i < columns; i += THREADS) {
        const double a = logits[0][i], b = logits[1][i];
        const double weight = exp(a - after.largest[0]);
        sum[0] += weight;
        weighted += weight * (a - b);
        sum[1] += exp(b - after.largest[1]);
    }
    after.sum[0] += block_sum(sum[0], scratch);
    after.sum[1] += block_sum(sum[1], scratch);
    after.weighted += block_sum(weighted, scratch);
    if (threadIdx.x == 0) {
        const unsigned target = targets[row];
        if (target >= first && target - first < columns) {
            after.target[0] = logits[0][target - first];
            after.target[1] = logits[1][target - first];
        }
        sums[row] = after;
    }
}
