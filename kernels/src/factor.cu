// From a Gram matrix to the upper factor of a damped Hessian's inverse, as cholesky.rs has it: the factorization and
// the triangular inverse are cuSOLVER's, which counts columns first.

constexpr unsigned SQUARE = 32;

// out = J H J with J the reversal, H[p][q] = scale * gram[order[p]][order[q]] and diagonal[p] where p = q.
template <typename T>
__device__ void reversed_hessian(const float* gram, const unsigned* order, const float* diagonal, float scale, unsigned width,
                                 T* out) {
    const unsigned q = blockIdx.x * blockDim.x + threadIdx.x;
    if (q >= width) {
        return;
    }
    for (unsigned p = blockIdx.y; p < width; p += gridDim.y) {
        const float entry = p == q ? diagonal[p] : scale * gram[(size_t)order[p] * width + order[q]];
        out[(size_t)(width - 1 - p) * width + width - 1 - q] = (T)entry;
    }
}

// upper[p][q] = x(width-1-p, width-1-q) of the lower triangle x, columns first; zeros below the diagonal, which goes to
// `pivots` too. `unsound` becomes 1 where an entry isn't finite, or one of the diagonal not positive. Launched with
// (SQUARE, 8) threads.
template <typename T>
__device__ void reversed_transpose(const T* x, unsigned width, float* upper, float* pivots, unsigned* unsound) {
    __shared__ float tile[SQUARE][SQUARE + 1];
    const unsigned row = blockIdx.y * SQUARE, column = blockIdx.x * SQUARE;
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        const unsigned q = column + i, p = row + threadIdx.x;
        if (q < width && p < width) {
            const float entry = p <= q ? (float)x[(size_t)(width - 1 - q) * width + width - 1 - p] : 0.0f;
            if (p == q) {
                pivots[p] = entry;
            }
            if (!is_finite(entry) || (p == q && !(entry > 0.0f))) {
                *unsound = 1;
            }
            tile[i][threadIdx.x] = entry;
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.y; i < SQUARE; i += blockDim.y) {
        const unsigned p = row + i, q = column + threadIdx.x;
        if (p < width && q < width) {
            upper[(size_t)p * width + q] = tile[threadIdx.x][i];
        }
    }
}

extern "C" __global__ void reversed_hessian_single(const float* gram, const unsigned* order, const float* diagonal,
                                                   float scale, unsigned width, float* out) {
    reversed_hessian(gram, order, diagonal, scale, width, out);
}

extern "C" __global__ void reversed_hessian_double(const float* gram, const unsigned* order, const float* diagonal,
                                                   float scale, unsigned width, double* out) {
    reversed_hessian(gram, order, diagonal, scale, width, out);
}

extern "C" __global__ void reversed_transpose_single(const float* x, unsigned width, float* upper, float* pivots,
                                   unsigned* unsound) {
    reversed_transpose(x, width, upper, pivots, unsound);
}

extern "C" __global__ void reversed_transpose_double(const double* x, unsigned width, float* upper, float* pivots,
                                   unsigned* unsound) {
    reversed_transpose(x, width, upper, pivots, unsound);
}
