// What a running kernel and the scheduler know of each other. A kernel is compiled into a library of its own; the driver
// hands it the address of this record when it loads it.
#pragma once
#include <cstdint>

namespace standin {

struct Index {
    unsigned x = 1, y = 1, z = 1;
};

struct Runtime {
    // Of the thread that runs.
    Index thread, block, block_size, grid_size;
    // Waits until every thread of the block waits at this line.
    void (*barrier)(int line);
    // Waits until every lane named in `mask` is here; gives what `source` brought, or the own value where `source` is
    // no lane of the warp.
    uint64_t (*exchange)(unsigned mask, uint64_t value, unsigned source, int line);
    unsigned (*lane)();
};

// A kernel with its arguments unpacked, run once by each thread.
using Entry = void (*)(void** arguments);

}  // namespace standin
