// libcublas.so: the products that this project asks for, by their definition. Matrices are column-major.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

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

// bfloat16 numbers as float32, which holds each of them.
static std::vector<float> inflated(const uint16_t* numbers, size_t count) {
    std::vector<float> all(count);
    for (size_t i = 0; i < count; ++i) {
        const uint32_t bits = uint32_t(numbers[i]) << 16;
        memcpy(&all[i], &bits, sizeof bits);
    }
    return all;
}

// C[m, n] = alpha op(A) op(B) + beta C for bfloat16 A and B, float32 C, factors and sums.
API cublasGemmEx(void*, int a_operation, int b_operation, int m, int n, int k, const void* alpha, const void* a, int a_type,
                 int a_leading, const void* b, int b_type, int b_leading, const void* beta, void* c, int c_type,
                 int c_leading, int compute, int) {
    constexpr int BFLOAT16 = 14, FLOAT32 = 0, FLOAT32_SUMS = 68;
    if (a_type != BFLOAT16 || b_type != BFLOAT16 || c_type != FLOAT32 || compute != FLOAT32_SUMS) {
        return INVALID_VALUE;
    }
    // Either as it lies, up to its last number.
    const auto count = [](int operation, int rows, int columns, int leading) {
        const size_t last = operation == NONE ? columns : rows, height = operation == NONE ? rows : columns;
        return last && height ? (last - 1) * leading + height : 0;
    };
    const size_t a_count = count(a_operation, m, k, a_leading), b_count = count(b_operation, k, n, b_leading);
    if (a_leading < (a_operation == NONE ? m : k) || b_leading < (b_operation == NONE ? k : n) ||
        !standin_owns(reinterpret_cast<uint64_t>(a), 2 * a_count) ||
        !standin_owns(reinterpret_cast<uint64_t>(b), 2 * b_count)) {
        return INVALID_VALUE;
    }
    auto* out = static_cast<float*>(c);
    if (!sound(out, m, n, c_leading)) {
        return INVALID_VALUE;
    }
    const auto left_numbers = inflated(static_cast<const uint16_t*>(a), a_count);
    const auto right_numbers = inflated(static_cast<const uint16_t*>(b), b_count);
    const Operand left{left_numbers.data(), a_operation, a_leading}, right{right_numbers.data(), b_operation, b_leading};
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            put(out[size_t(j) * c_leading + i], dot(left, right, i, j, k), *static_cast<const float*>(alpha),
                *static_cast<const float*>(beta));
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
