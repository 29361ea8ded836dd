// libcusolver.so: the factorization and the triangular inverse that this project asks for, by their definition. Matrices are
// column-major, and only their lower triangles are touched.
#include <cmath>
#include <cstddef>
#include <cstdint>

#define API extern "C" __attribute__((visibility("default"))) int

enum Result { SUCCESS = 0, INVALID_VALUE = 3 };
constexpr int LOWER = 0, NON_UNIT = 0, FLOAT32 = 0, FLOAT64 = 1;
// Of either workspace.
constexpr size_t BYTES = 24;

// Of the driver's stand-in.
extern "C" bool standin_owns(uint64_t address, size_t bytes);

API cusolverDnCreate(void** handle) {
    static char any;
    *handle = &any;
    return SUCCESS;
}
API cusolverDnDestroy(void*) { return SUCCESS; }
API cusolverDnSetStream(void*, void*) { return SUCCESS; }
API cusolverDnCreateParams(void** parameters) { return cusolverDnCreate(parameters); }
API cusolverDnDestroyParams(void*) { return SUCCESS; }

// The lower triangle of L L^T, in place; where it stopped, counted from 1, or 0.
template <typename T>
static int cholesky(T* a, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        T pivot = a[j * n + j];
        for (int64_t k = 0; k < j; ++k) {
            pivot -= a[k * n + j] * a[k * n + j];
        }
        if (!(pivot > 0)) {
            return int(j + 1);
        }
        a[j * n + j] = std::sqrt(pivot);
        for (int64_t i = j + 1; i < n; ++i) {
            T sum = a[j * n + i];
            for (int64_t k = 0; k < j; ++k) {
                sum -= a[k * n + i] * a[k * n + j];
            }
            a[j * n + i] = sum / a[j * n + j];
        }
    }
    return 0;
}

// The inverse of the lower triangle, in place, from the last column to the first.
template <typename T>
static int inverse(T* a, int64_t n) {
    for (int64_t j = n - 1; j >= 0; --j) {
        if (a[j * n + j] == 0) {
            return int(j + 1);
        }
        a[j * n + j] = 1 / a[j * n + j];
        for (int64_t i = n - 1; i > j; --i) {
            T sum = 0;
            for (int64_t k = j + 1; k <= i; ++k) {
                sum += a[k * n + i] * a[j * n + k];
            }
            a[j * n + i] = -sum * a[j * n + j];
        }
    }
    return 0;
}

// Whether everything is where a real library would find it.
static bool sound(int64_t n, int number, const void* a, int64_t leading, const void* there, size_t there_bytes,
                  const void* here, size_t here_bytes, const int* info) {
    const size_t bytes = size_t(n) * n * (number == FLOAT32 ? sizeof(float) : sizeof(double));
    return (number == FLOAT32 || number == FLOAT64) && n >= 0 && leading == n &&
           standin_owns(reinterpret_cast<uint64_t>(a), bytes) && there_bytes >= BYTES && here && here_bytes >= BYTES &&
           standin_owns(reinterpret_cast<uint64_t>(there), there_bytes) &&
           standin_owns(reinterpret_cast<uint64_t>(info), sizeof(int));
}

static int sizes(size_t* there, size_t* here) {
    *there = BYTES;
    *here = BYTES;
    return SUCCESS;
}

API cusolverDnXpotrf_bufferSize(void*, void*, int, int64_t, int, const void*, int64_t, int, size_t* there, size_t* here) {
    return sizes(there, here);
}
API cusolverDnXpotrf(void*, void* parameters, int fill, int64_t n, int number, void* a, int64_t leading, int compute,
                     void* there, size_t there_bytes, void* here, size_t here_bytes, int* info) {
    if (!parameters || fill != LOWER || compute != number ||
        !sound(n, number, a, leading, there, there_bytes, here, here_bytes, info)) {
        return INVALID_VALUE;
    }
    *info = number == FLOAT32 ? cholesky(static_cast<float*>(a), n) : cholesky(static_cast<double*>(a), n);
    return SUCCESS;
}
API cusolverDnXtrtri_bufferSize(void*, int, int, int64_t, int, void*, int64_t, size_t* there, size_t* here) {
    return sizes(there, here);
}
API cusolverDnXtrtri(void*, int fill, int diagonal, int64_t n, int number, void* a, int64_t leading, void* there,
                     size_t there_bytes, void* here, size_t here_bytes, int* info) {
    if (fill != LOWER || diagonal != NON_UNIT ||
        !sound(n, number, a, leading, there, there_bytes, here, here_bytes, info)) {
        return INVALID_VALUE;
    }
    *info = number == FLOAT32 ? inverse(static_cast<float*>(a), n) : inverse(static_cast<double*>(a), n);
    return SUCCESS;
}
