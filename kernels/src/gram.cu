// The upper triangle of a Gram matrix from its lower one; the sums themselves are cuBLAS's.

constexpr unsigned SQUARE = 32;

// Launched with (SQUARE, 8) threads, a block for each square of the matrix; those above the diagonal do nothing.
extern "C" __global__ void mirror(float* gram, unsigned width) {
    __shared__ float tile[SQUARE][SQUARE + 1];
    const unsigned row = blockIdx.y * SQUARE, column = blockIdx.x * SQUARE;
    if (column > row) {
        return;
    }
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        if (row + i < width && column + threadIdx.x < width) {
            tile[i][threadIdx.x] = gram[(size_t)(row + i) * width + column + threadIdx.x];
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        const unsigned above = column + i, beside = row + threadIdx.x;
        if (above < beside && beside < width) {
            gram[(size_t)above * width + beside] = tile[threadIdx.x][i];
        }
    }
}
