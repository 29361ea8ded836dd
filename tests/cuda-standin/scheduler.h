// Runs the threads of a grid on one processor thread.
#pragma once
#include "runtime.h"
#include <string>

namespace standin {

extern Runtime runtime;

// Memory that must hold nothing a kernel could use when a block starts.
struct Shared {
    char* begin = nullptr;
    char* end = nullptr;
};

// Runs every block, one after the other. Returns what went wrong, or nothing.
std::string run_grid(Entry entry, void** arguments, Index grid, Index block, Shared shared);

}  // namespace standin
