// What the compiler's stand-in gives as machine code and the driver's loads: a mark, a size, a shared library.
#pragma once
#include <cstdint>
#include <cstring>

namespace standin {

struct ImageHead {
    char mark[8];
    uint64_t bytes;
};
constexpr char IMAGE_MARK[8] = {'s', 't', 'a', 'n', 'd', '-', 'i', 'n'};

}  // namespace standin
