// GPTQ over a weight, as block_solve.rs does it: each column corrects the rest of its block at once, a product corrects
// what is behind the block. Every sum has the CPU's order, so that integers are equal bit for bit.
//
// Weights lie as [positions, rows] (a position is a column in the order of solving), codes as [columns, rows], grids as
// [groups, rows], the errors of a block as [positions of the block, rows]; u is [positions, positions].

constexpr unsigned BLOCK = 128;     // most positions in a block, as in block_solve.rs
constexpr unsigned ROWS = WARP;     // rows that a thread block solves
constexpr unsigned PARTS = 8;       // threads that share a row
constexpr unsigned TILE = 64;       // rows and positions of an output tile of `correct_behind`
constexpr unsigned EACH = 4;        // of which a thread computes EACH x EACH
constexpr unsigned DEPTH = 16;      // positions of the block that are in shared memory at a time
constexpr unsigned SQUARE = 32;     // edge of a tile of the transpositions

// out[position][row] = weight[row][order[position]]. Launched with (SQUARE, 8) threads.
extern "C" __global__ void arrange(const float* weight, const unsigned* order, unsigned rows, unsigned columns,
                                   float* out) {
    __shared__ float tile[SQUARE][SQUARE + 1];
    const unsigned row = blockIdx.x * SQUARE, position = blockIdx.y * SQUARE;
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        if (row + i < rows && position + threadIdx.x < columns) {
            tile[i][threadIdx.x] = weight[(size_t)(row + i) * columns + order[position + threadIdx.x]];
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        if (position + i < columns && row + threadIdx.x < rows) {
            out[(size_t)(position + i) * rows + row + threadIdx.x] = tile[threadIdx.x][i];
        }
    }
}

// Codes [columns, rows] as [rows, columns]. Launched with (SQUARE, 8) threads.
extern "C" __global__ void codes_by_row(const byte* codes, unsigned rows, unsigned columns, byte* out) {
    __shared__ byte tile[SQUARE][SQUARE + 1];
    const unsigned row = blockIdx.x * SQUARE, column = blockIdx.y * SQUARE;
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        if (column + i < columns && row + threadIdx.x < rows) {
            tile[i][threadIdx.x] = codes[(size_t)(column + i) * rows + row + threadIdx.x];
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        if (row + i < rows && column + threadIdx.x < columns) {
            out[(size_t)(row + i) * columns + column + threadIdx.x] = tile[threadIdx.x][i];
        }
    }
}

// Solves the positions from `first` to `solved`, correcting those up to `block_end`, on grids that are there. A block
// starts at `block_first`; where grids are fitted on the way it is solved group by group. Launched with (ROWS, PARTS)
// threads; each of a row's PARTS threads works out the row's error for itself, which saves a barrier a column.
extern "C" __global__ void solve_columns(float* weight, const float* u, const unsigned* order,
                                         const unsigned* group_at, const float* scales, const byte* zeros,
                                         float max_code, unsigned rows, unsigned columns, unsigned block_first,
                                         unsigned first, unsigned solved, unsigned block_end, byte* codes,
                                         float* errors) {
    __shared__ float tile[BLOCK][ROWS];
    const unsigned row = blockIdx.x * ROWS + threadIdx.x, part = threadIdx.y;
    const bool inside = row < rows;
    for (unsigned p = first + part; p < block_end; p += PARTS) {
        tile[p - first][threadIdx.x] = inside ? weight[(size_t)p * rows + row] : 0.0f;
    }
    __syncthreads();
    for (unsigned position = first; position < solved; ++position) {
        const size_t grid = (size_t)group_at[position] * rows + row;
        const float scale = inside ? scales[grid] : 1.0f, zero = inside ? (float)zeros[grid] : 0.0f;
        const float given = tile[position - first][threadIdx.x];
        const float code = nearest_step(given, scale, -zero, max_code - zero) + zero;
        const float* own_u = u + (size_t)position * columns;
        float error = (given - scale * (code - zero)) / own_u[position];
        error = is_finite(error) ? error : 0.0f;
        if (inside && part == 0) {
            codes[(size_t)order[position] * rows + row] = (byte)code;
            errors[(size_t)(position - block_first) * rows + row] = error;
        }
        for (unsigned p = position + 1 + part; p < block_end; p += PARTS) {
            tile[p - first][threadIdx.x] = fmaf(own_u[p], -error, tile[p - first][threadIdx.x]);
        }
        __syncthreads();
    }
    for (unsigned p = solved + part; inside && p < block_end; p += PARTS) {
        weight[(size_t)p * rows + row] = tile[p - first][threadIdx.x];
    }
}

// weight[p][row] -= sum_k errors[k][row] u[first + k][p] for all positions p from `first + count` on: one fused sum over
// ascending k from zero, then one subtraction. Launched with TILE / EACH squared threads, a block an output tile.
extern "C" __global__ void correct_behind(float* weight, const float* u, const float* errors, unsigned rows,
                                          unsigned columns, unsigned first, unsigned count) {
    __shared__ float left[DEPTH][TILE], right[DEPTH][TILE];
    const unsigned row = blockIdx.x * TILE, position = first + count + blockIdx.y * TILE;
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    float sums[EACH][EACH] = {};
    for (unsigned from = 0; from < count; from += DEPTH) {
        const unsigned depth = min(DEPTH, count - from);
        for (unsigned i = thread; i < depth * TILE; i += threads) {
            const unsigned k = from + i / TILE, at = i % TILE;
            left[i / TILE][at] = row + at < rows ? errors[(size_t)k * rows + row + at] : 0.0f;
            right[i / TILE][at] = position + at < columns ? u[(size_t)(first + k) * columns + position + at] : 0.0f;
        }
        __syncthreads();
        for (unsigned k = 0; k < depth; ++k) {
            for (unsigned i = 0; i < EACH; ++i) {
                for (unsigned j = 0; j < EACH; ++j) {
                    const float error = left[k][j * (TILE / EACH) + threadIdx.x];
                    sums[i][j] = fmaf(error, right[k][i * (TILE / EACH) + threadIdx.y], sums[i][j]);
                }
            }
        }
        __syncthreads();
    }
    for (unsigned i = 0; i < EACH; ++i) {
        const unsigned p = position + i * (TILE / EACH) + threadIdx.y;
        for (unsigned j = 0; j < EACH; ++j) {
            const unsigned r = row + j * (TILE / EACH) + threadIdx.x;
            if (p < columns && r < rows) {
                weight[(size_t)p * rows + r] -= sums[i][j];
            }
        }
    }
}
