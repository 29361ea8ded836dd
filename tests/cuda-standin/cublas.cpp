// libcublas.so: the products that this project asks for, by their definition. Matrices are column-major.
#include <cstddef>
#include <cstdint>

#define API extern "C" __attribute__((visibility("default"))) int

enum Result { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13 };
enum Fill { LOWER = 0, UPPER = 1 };
enum Operation { NONE = 0, TRANSPOSED = 1 };

// Of the driver's stand-in.
extern "C" bool standin_owns(uint64_t address, size_t bytes);

API cublasCreate_v2(void** handle) {
    static char any;
    *handle = &any;
    return SUCCESS;
}
API cublasDestroy_v2(void*) { return SUCCESS; }
API cublasSetStream_v2(void*, void*) { return SUCCESS; }

// A matrix as the product reads it: entry (i, j) of op(A).
struct Operand {
    const float* data;
    int operation, leading;

    float operator()(int i, int j) const {
        const size_t row = operation == NONE ? i : j, column = operation == NONE ? j : i;
        return data[column * leading + row];
    }
};

// Whether a column-major matrix has a sound leading dimension and lies in one buffer.
static bool sound(const float* data, int rows, int columns, int leading) {
    if (rows < 0 || columns < 0 || leading < (rows > 1 ? rows : 1)) {
        return false;
    }
    const size_t numbers = rows && columns ? size_t(columns - 1) * leading + rows : 0;
    return standin_owns(reinterpret_cast<uint64_t>(data), numbers * sizeof(float));
}

static bool sound(const Operand& operand, int rows, int columns) {
    return operand.operation == NONE ? sound(operand.data, rows, columns, operand.leading)
                                     : sound(operand.data, columns, rows, operand.leading);
}

// c = alpha * sum + beta * c; what was there is not read where beta is zero.
static void put(float& c, float sum, float alpha, float beta) {
    c = beta == 0.0f ? alpha * sum : alpha * sum + beta * c;
}

static float dot(const Operand& a, const Operand& b, int i, int j, int depth) {
    float sum = 0.0f;
    for (int k = 0; k < depth; ++k) {
        sum += a(i, k) * b(k, j);
    }
    return sum;
}

// C[m, n] = alpha op(A) op(B) + beta C.
API cublasSgemm_v2(void*, int a_operation, int b_operation, int m, int n, int k, const float* alpha, const float* a,
                   int a_leading, const float* b, int b_leading, const float* beta, float* c, int c_leading) {
    const Operand left{a, a_operation, a_leading}, right{b, b_operation, b_leading};
    if (!sound(left, m, k) || !sound(right, k, n) || !sound(c, m, n, c_leading)) {
        return INVALID_VALUE;
    }
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            put(c[size_t(j) * c_leading + i], dot(left, right, i, j, k), *alpha, *beta);
        }
    }
    return SUCCESS;
}

// One triangle of C[n, n] = alpha op(A) op(A)^T + beta C.
API cublasSsyrk_v2(void*, int fill, int operation, int n, int k, const float* alpha, const float* a, int a_leading,
                   const float* beta, float* c, int c_leading) {
    const Operand left{a, operation, a_leading}, right{a, operation == NONE ? TRANSPOSED : NONE, a_leading};
    if (!sound(left, n, k) || !sound(c, n, n, c_leading)) {
        return INVALID_VALUE;
    }
    for (int j = 0; j < n; ++j) {
        for (int i = fill == LOWER ? j : 0; i < (fill == LOWER ? n : j + 1); ++i) {
            put(c[size_t(j) * c_leading + i], dot(left, right, i, j, k), *alpha, *beta);
        }
    }
    return SUCCESS;
}
