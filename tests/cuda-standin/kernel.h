// Makes C++ of a kernel's source: put before it by the compiler's stand-in.
#pragma once
#include "runtime.h"
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define STANDIN_EXPORT __attribute__((visibility("default")))
#define __global__ STANDIN_EXPORT
#define __device__

// Shared memory of all kernels in a file is one section, so that the driver can fill it before each block. The address
// sanitizer guards plain statics only; under it nothing is filled.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static __attribute__((section("standin_shared")))
#endif

extern "C" {
STANDIN_EXPORT standin::Runtime* standin_runtime;
__attribute__((weak, visibility("hidden"))) extern char __start_standin_shared[], __stop_standin_shared[];
STANDIN_EXPORT void standin_shared_range(char** begin, char** end) {
    *begin = __start_standin_shared;
    *end = __stop_standin_shared;
}
}

#define threadIdx (standin_runtime->thread)
#define blockIdx (standin_runtime->block)
#define blockDim (standin_runtime->block_size)
#define gridDim (standin_runtime->grid_size)
#define __syncthreads() standin_runtime->barrier(__LINE__)

template <class T>
T standin_shuffle(unsigned mask, T value, unsigned source, int line) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = standin_runtime->exchange(mask, bits, source, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
#define __shfl_sync(mask, value, source) standin_shuffle(mask, value, (source) % 32u, __LINE__)
#define __shfl_xor_sync(mask, value, with) standin_shuffle(mask, value, standin_runtime->lane() ^ (with), __LINE__)

using std::max;
using std::min;

inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline int __float_as_int(float value) {
    int bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class... Parameters, std::size_t... At>
void standin_call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<At...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[At])...);
}
template <class... Parameters>
void standin_call(void (*kernel)(Parameters...), void** arguments) {
    standin_call(kernel, arguments, std::index_sequence_for<Parameters...>());
}
// How many bytes each argument has, for a launch that is put off.
template <class... Parameters>
const std::size_t* standin_sizes(void (*)(Parameters...)) {
    static const std::size_t sizes[] = {sizeof(std::remove_reference_t<Parameters>)..., 0};
    return sizes;
}
#define STANDIN_ENTRY(kernel)                                                                                       \
    extern "C" STANDIN_EXPORT void standin_enter_##kernel(void** arguments) { standin_call(kernel, arguments); }    \
    extern "C" STANDIN_EXPORT const std::size_t* standin_sizes_##kernel() { return standin_sizes(kernel); }
