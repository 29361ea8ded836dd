// Causal attention with grouped key-value heads and an optional window; see attention.rs for the formula.
//
// A thread block takes QUERIES neighbouring queries of one head and walks over the keys that any of them sees, KEYS at a
// time. The softmax is kept as the largest score so far, the sum of the weights relative to it, and the weighted values;
// a larger score rescales the other two. Scores exist only as a tile in shared memory.
//
// q and out are [queries, heads, width], k and v [tokens, kv_heads, width]; the queries are the last of the tokens.
// Launched with SHARING * QUERIES threads: SHARING of them, half a warp, belong to a query.

constexpr unsigned QUERIES = 16;
constexpr unsigned KEYS = 16;
constexpr unsigned SHARING = 16;
constexpr unsigned MOST_WIDTH = 256;
constexpr unsigned EACH = MOST_WIDTH / SHARING;   // numbers of the output that a thread keeps

struct Shape {
    unsigned queries, tokens, heads, kv_heads, width;
    // How many positions back a token sees, itself included.
    unsigned window;
    float scale;
};

// Over the threads that share a query.
__device__ float shared_largest(float x) {
    for (unsigned distance = SHARING / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

__device__ float shared_sum(float x) {
    for (unsigned distance = SHARING / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// Copies KEYS rows of one head, zeros from `end` on. Rows are a number apart, so that a column's reads don't collide.
__device__ void load(float (*tile)[MOST_WIDTH + 1], const float* numbers, unsigned first, unsigned end, unsigned head,
                     const Shape& shape) {
    for (unsigned i = threadIdx.x; i < KEYS * shape.width; i += blockDim.x) {
        const unsigned key = i / shape.width, at = i % shape.width;
        const size_t row = (size_t)(first + key) * shape.kv_heads + head;
        tile[key][at] = first + key < end ? numbers[row * shape.width + at] : 0.0f;
    }
}

extern "C" __global__ void attend(const float* q, const float* k, const float* v, Shape shape, float* out) {
    __shared__ float query_tile[QUERIES][MOST_WIDTH];
    __shared__ float tile[KEYS][MOST_WIDTH + 1];       // of keys, then of values
    __shared__ float weights[QUERIES][KEYS + 1];
    const unsigned head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    const unsigned own = threadIdx.x / SHARING, part = threadIdx.x % SHARING;
    const unsigned block_first = blockIdx.x * QUERIES;
    const unsigned block_last = min(block_first + QUERIES, shape.queries) - 1;
    const unsigned before = shape.tokens - shape.queries;

    for (unsigned i = threadIdx.x; i < QUERIES * shape.width; i += blockDim.x) {
        const unsigned query = block_first + i / shape.width, at = i % shape.width;
        query_tile[i / shape.width][at] =
            query <= block_last ? q[((size_t)query * shape.heads + head) * shape.width + at] : 0.0f;
    }

    // What the own query sees; one beyond the last sees what the last does, and is not written.
    const unsigned position = before + min(block_first + own, block_last);
    const unsigned seen_from = position + 1 > shape.window ? position + 1 - shape.window : 0;
    const unsigned first_position = before + block_first;
    const unsigned from = first_position + 1 > shape.window ? first_position + 1 - shape.window : 0;
    const unsigned end = before + block_last + 1;

    float largest = -INFINITE, sum = 0.0f, values[EACH] = {};
    for (unsigned first = from; first < end; first += KEYS) {
        __syncthreads();
        load(tile, k, first, end, kv_head, shape);
        __syncthreads();
        float score = 0.0f;
        for (unsigned i = 0; i < shape.width; ++i) {
            score = fmaf(query_tile[own][i], tile[part][i], score);
        }
        const unsigned key = first + part;
        const bool seen = key >= seen_from && key <= position;
        score = seen ? score * shape.scale : -INFINITE;
        const float highest = fmaxf(largest, shared_largest(score));
        // Nothing seen so far leaves both infinite, and nothing to rescale.
        const float keep = largest == highest ? 1.0f : exponential(largest - highest);
        const float weight = seen ? exponential(score - highest) : 0.0f;
        largest = highest;
        sum = sum * keep + shared_sum(weight);
        weights[own][part] = weight;
        __syncthreads();
        load(tile, v, first, end, kv_head, shape);
        __syncthreads();
        for (unsigned e = 0; e < EACH; ++e) {
            const unsigned i = e * SHARING + part;
            float value = values[e] * keep;
            for (unsigned other = 0; i < shape.width && other < KEYS; ++other) {
                value = fmaf(weights[own][other], tile[other][i], value);
            }
            values[e] = value;
        }
    }
    if (block_first + own <= block_last) {
        float* row = out + ((size_t)(block_first + own) * shape.heads + head) * shape.width;
        for (unsigned e = 0; e < EACH; ++e) {
            const unsigned i = e * SHARING + part;
            if (i < shape.width) {
                row[i] = values[e] / sum;
            }
        }
    }
}
