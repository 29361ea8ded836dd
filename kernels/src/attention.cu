// Causal attention with grouped key-value heads and an optional window; see attention.rs for the formula.
//
// A thread block takes QUERIES neighbouring queries of one head and walks over the keys that any of them sees, KEYS at a
// time, and over the numbers of a head DEPTH at a time. The softmax is kept as the largest score so far, the sum of the
// weights relative to it, and the weighted values; a larger score rescales the other two. Scores exist only as a tile.
//
// q and out are [queries, heads, width], k and v [tokens, kv_heads, width]; the queries are the last of the tokens.
// Launched with SHARING * QUERIES / OWN threads: SHARING of them, half a warp, share OWN queries.

constexpr unsigned QUERIES = 64;
constexpr unsigned KEYS = 32;
constexpr unsigned SHARING = 16;
constexpr unsigned OWN = 4;                       // queries that a thread works on
constexpr unsigned OWN_KEYS = KEYS / SHARING;     // keys whose scores it computes
constexpr unsigned DEPTH = 64;
constexpr unsigned EACH = DEPTH / SHARING;        // numbers of a query's output that it keeps, of each DEPTH
constexpr unsigned PIECES = 256 / DEPTH;          // of the widest head

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

// Copies rows of one of `heads` heads into a tile, DEPTH numbers from `from` on; zeros beyond the row `end` and the width.
// Rows of a tile are a number apart, so that a column's reads don't collide.
__device__ void load(float (*tile)[DEPTH + 1], unsigned rows, const float* numbers, unsigned first, unsigned end,
                     unsigned heads, unsigned head, unsigned width, unsigned from) {
    for (unsigned i = threadIdx.x; i < rows * DEPTH; i += blockDim.x) {
        const unsigned row = first + i / DEPTH, at = from + i % DEPTH;
        const bool inside = row < end && at < width;
        tile[i / DEPTH][i % DEPTH] = inside ? numbers[((size_t)row * heads + head) * width + at] : 0.0f;
    }
}

extern "C" __global__ void attend(const float* q, const float* k, const float* v, Shape shape, float* out) {
    __shared__ float query_tile[QUERIES][DEPTH + 1];
    __shared__ float tile[KEYS][DEPTH + 1];            // of keys, then of values
    __shared__ float weights[QUERIES][KEYS + 1];
    const unsigned width = shape.width;
    const unsigned head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    const unsigned own = threadIdx.x / SHARING * OWN, part = threadIdx.x % SHARING;
    // The last queries see most: started first, they leave the short ones to even out the processors.
    const unsigned block_first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    const unsigned block_end = min(block_first + QUERIES, shape.queries);
    const unsigned before = shape.tokens - shape.queries;
    const unsigned first_position = before + block_first;
    const unsigned from = first_position + 1 > shape.window ? first_position + 1 - shape.window : 0;
    const unsigned end = before + block_end;

    float largest[OWN], sum[OWN] = {}, values[OWN][PIECES * EACH] = {};
#pragma unroll
    for (unsigned o = 0; o < OWN; ++o) {
        largest[o] = -INFINITE;
    }
    for (unsigned first = from; first < end; first += KEYS) {
        float scores[OWN][OWN_KEYS] = {};
        for (unsigned piece = 0; piece < width; piece += DEPTH) {
            __syncthreads();
            load(query_tile, QUERIES, q, block_first, block_end, shape.heads, head, width, piece);
            load(tile, KEYS, k, first, end, shape.kv_heads, kv_head, width, piece);
            __syncthreads();
            for (unsigned i = 0; i < min(DEPTH, width - piece); ++i) {
#pragma unroll
                for (unsigned o = 0; o < OWN; ++o) {
#pragma unroll
                    for (unsigned j = 0; j < OWN_KEYS; ++j) {
                        scores[o][j] = fmaf(query_tile[own + o][i], tile[j * SHARING + part][i], scores[o][j]);
                    }
                }
            }
        }
#pragma unroll
        for (unsigned o = 0; o < OWN; ++o) {
            // What the query sees; one beyond the last sees what the last does, and is not written.
            const unsigned position = before + min(block_first + own + o, block_end - 1);
            const unsigned seen_from = position + 1 > shape.window ? position + 1 - shape.window : 0;
            float highest = largest[o];
#pragma unroll
            for (unsigned j = 0; j < OWN_KEYS; ++j) {
                const unsigned key = first + j * SHARING + part;
                scores[o][j] = key >= seen_from && key <= position ? scores[o][j] * shape.scale : -INFINITE;
                highest = fmaxf(highest, scores[o][j]);
            }
            highest = shared_largest(highest);
            // Nothing seen so far leaves both infinite, and nothing to rescale.
            const float keep = largest[o] == highest ? 1.0f : exponential(largest[o] - highest);
            float added = 0.0f;
#pragma unroll
            for (unsigned j = 0; j < OWN_KEYS; ++j) {
                const float weight = scores[o][j] == -INFINITE ? 0.0f : exponential(scores[o][j] - highest);
                weights[own + o][j * SHARING + part] = weight;
                added += weight;
            }
            largest[o] = highest;
            sum[o] = sum[o] * keep + shared_sum(added);
#pragma unroll
            for (unsigned e = 0; e < PIECES * EACH; ++e) {
                values[o][e] *= keep;
            }
        }
#pragma unroll
        for (unsigned piece = 0; piece < PIECES; ++piece) {
            if (piece * DEPTH < width) {
                __syncthreads();
                load(tile, KEYS, v, first, end, shape.kv_heads, kv_head, width, piece * DEPTH);
                __syncthreads();
                for (unsigned key = 0; key < KEYS; ++key) {
#pragma unroll
                    for (unsigned o = 0; o < OWN; ++o) {
                        const float weight = weights[own + o][key];
#pragma unroll
                        for (unsigned e = 0; e < EACH; ++e) {
                            float& value = values[o][piece * EACH + e];
                            value = fmaf(weight, tile[key][e * SHARING + part], value);
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (unsigned o = 0; o < OWN; ++o) {
        const unsigned query = block_first + own + o;
#pragma unroll
        for (unsigned i = 0; i < PIECES * EACH; ++i) {
            const unsigned at = i / EACH * DEPTH + i % EACH * SHARING + part;
            if (query < block_end && at < width) {
                out[((size_t)query * shape.heads + head) * width + at] = values[o][i] / sum[o];
            }
        }
    }
}
