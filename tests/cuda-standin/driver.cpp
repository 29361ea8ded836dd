// libcuda.so: the driver's functions that this project calls, on one device that is this processor. On the default stream
// everything is done when the call returns. On any other it is put off as long as the rules allow: until somebody waits for
// it. What uses the result without waiting finds not-a-numbers, or memory that was given back.
#include "image.h"
#include "scheduler.h"
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

enum Result {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
    NOT_FOUND = 500, LAUNCH_FAILED = 719,
};

static int complain(int result, const std::string& what) {
    fprintf(stderr, "CUDA stand-in: %s\n", what.c_str());
    return result;
}

static unsigned long setting(const char* name, unsigned long otherwise) {
    const char* value = getenv(name);
    return value ? strtoul(value, nullptr, 10) : otherwise;
}

// The device.

constexpr unsigned MOST_THREADS = 1024, MOST_THREADS_Z = 64, MOST_BLOCKS_YZ = 65535;

static size_t total_memory() {
    static size_t bytes = setting("STANDIN_MEMORY", 2ul << 30);
    return bytes;
}

API cuInit(unsigned) { return SUCCESS; }

API cuDeviceGetCount(int* count) {
    *count = int(setting("STANDIN_DEVICES", 1));
    return SUCCESS;
}

API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

API cuDeviceGetName(char* name, int size, int) {
    snprintf(name, size_t(size), "stand-in (this processor)");
    return SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, int) {
    const int architecture = int(setting("STANDIN_ARCHITECTURE", 90));
    switch (attribute) {
        case 75: *value = architecture / 10; break;  // compute capability, major
        case 76: *value = architecture % 10; break;  // and minor
        case 115: *value = 1; break;                 // memory pools
        default: return complain(INVALID_VALUE, "attribute " + std::to_string(attribute) + " is not known");
    }
    return SUCCESS;
}

// Contexts: one, current on the threads that made it so.

static char the_context;
static thread_local void* current_context;

API cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &the_context;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}
API cuCtxSetCurrent(void* context) {
    current_context = context;
    return SUCCESS;
}
// Asked before the second stream is made, and not after.
API cuCtxSynchronize() { return current_context ? SUCCESS : INVALID_CONTEXT; }

// Streams and events.

// What was asked of a stream and is not done yet. `done` counts what was.
struct Stream {
    std::deque<std::function<int()>> asked;
    uint64_t done = 0;
    int failure = SUCCESS;
};

// A place in a stream: behind so many things that were asked of it.
struct Event {
    Stream* stream = nullptr;
    uint64_t behind = 0;
};

static std::recursive_mutex streams_lock;

// Does what was asked of `stream` up to `behind`.
static int catch_up(Stream& stream, uint64_t behind) {
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    while (stream.done < behind && !stream.asked.empty()) {
        const auto work = stream.asked.front();
        stream.asked.pop_front();
        const int result = work();
        stream.failure = stream.failure == SUCCESS ? result : stream.failure;
        ++stream.done;
    }
    return stream.failure;
}

// Does `work` now on the default stream, later on another.
static int ask(void* stream, std::function<int()> work) {
    if (!current_context) {
        return INVALID_CONTEXT;
    }
    if (!stream) {
        return work();
    }
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    static_cast<Stream*>(stream)->asked.push_back(std::move(work));
    return SUCCESS;
}

API cuStreamCreate(void** stream, unsigned) {
    if (!current_context) {
        return INVALID_CONTEXT;
    }
    *stream = new Stream;
    return SUCCESS;
}
API cuStreamSynchronize(void* stream) {
    if (!current_context) {
        return INVALID_CONTEXT;
    }
    return stream ? catch_up(*static_cast<Stream*>(stream), UINT64_MAX) : SUCCESS;
}
// What the waiting stream is asked next comes after the event. The default stream waits at once, which is sound: all that
// was asked of it is done.
API cuStreamWaitEvent(void* stream, void* waited, unsigned) {
    // As if the program hadn't asked: to see that this is found.
    static const bool deaf = setting("STANDIN_DEAF", 0) != 0;
    if (deaf) {
        return SUCCESS;
    }
    const Event event = *static_cast<Event*>(waited);
    return event.stream && event.stream != stream
               ? ask(stream, [event] { return catch_up(*event.stream, event.behind); })
               : SUCCESS;
}
// A stream lives on: events may point into it.
API cuStreamDestroy_v2(void* stream) { return cuStreamSynchronize(stream); }
API cuEventCreate(void** event, unsigned) {
    *event = new Event;
    return SUCCESS;
}
API cuEventRecord(void* event, void* stream) {
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    auto* recorded = static_cast<Stream*>(stream);
    *static_cast<Event*>(event) = {recorded, recorded ? recorded->done + recorded->asked.size() : 0};
    return SUCCESS;
}
API cuEventSynchronize(void* waited) {
    const Event event = *static_cast<Event*>(waited);
    return event.stream ? catch_up(*event.stream, event.behind) : SUCCESS;
}
API cuEventDestroy_v2(void* event) {
    delete static_cast<Event*>(event);
    return SUCCESS;
}

// Memory: the processor's, of the exact size, so that the address sanitizer sees the ends. Fresh memory holds
// not-a-numbers.

static std::mutex memory_lock;
static std::map<uint64_t, size_t> buffers;
static size_t used_memory;

// Whether all of [address, address + bytes) lies in one buffer.
extern "C" __attribute__((visibility("default"))) bool standin_owns(uint64_t address, size_t bytes) {
    if (bytes == 0) {
        return true;
    }
    std::lock_guard<std::mutex> guard(memory_lock);
    auto after = buffers.upper_bound(address);
    if (after == buffers.begin()) {
        return false;
    }
    const auto& [start, size] = *--after;
    return address - start <= size && bytes <= size - (address - start);
}

API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    std::lock_guard<std::mutex> guard(memory_lock);
    *total = total_memory();
    *free_bytes = *total - used_memory;
    return SUCCESS;
}

API cuMemAllocAsync(uint64_t* address, size_t bytes, void*) {
    if (!current_context) {
        return INVALID_CONTEXT;
    }
    *address = 0;
    if (bytes == 0) {
        return SUCCESS;
    }
    std::lock_guard<std::mutex> guard(memory_lock);
    if (bytes > total_memory() - used_memory) {
        return OUT_OF_MEMORY;
    }
    void* memory = malloc(bytes);
    memset(memory, 0xff, bytes);
    *address = reinterpret_cast<uint64_t>(memory);
    buffers[*address] = bytes;
    used_memory += bytes;
    return SUCCESS;
}

static int release(uint64_t address) {
    std::lock_guard<std::mutex> guard(memory_lock);
    auto found = buffers.find(address);
    if (found == buffers.end()) {
        return complain(INVALID_VALUE, "freed memory that is not a buffer");
    }
    used_memory -= found->second;
    buffers.erase(found);
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}

API cuMemFreeAsync(uint64_t address, void* stream) {
    return address == 0 ? SUCCESS : ask(stream, [address] { return release(address); });
}

// Page-locked memory: that from which a copy runs by itself.

static std::map<uint64_t, size_t> locked;

API cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    *memory = malloc(bytes);
    std::lock_guard<std::mutex> guard(memory_lock);
    locked[reinterpret_cast<uint64_t>(*memory)] = bytes;
    return SUCCESS;
}

API cuMemFreeHost(void* memory) {
    std::lock_guard<std::mutex> guard(memory_lock);
    if (locked.erase(reinterpret_cast<uint64_t>(memory)) == 0) {
        return complain(INVALID_VALUE, "gave back memory that is not page-locked");
    }
    free(memory);
    return SUCCESS;
}

static bool is_locked(const void* memory) {
    std::lock_guard<std::mutex> guard(memory_lock);
    const auto address = reinterpret_cast<uint64_t>(memory);
    auto after = locked.upper_bound(address);
    return after != locked.begin() && address - (--after)->first < after->second;
}

static int copy(void* to, const void* from, size_t bytes, bool inside) {
    if (!inside) {
        return complain(INVALID_VALUE, "a copy of " + std::to_string(bytes) + " bytes reaches beyond its buffer");
    }
    memmove(to, from, bytes);
    return SUCCESS;
}

// Out of ordinary memory the driver takes a copy of its own before the call returns; page-locked memory is read when the
// copy is made.
API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    const char* numbers = static_cast<const char*>(from);
    if (!stream || is_locked(from)) {
        return ask(stream, [=] { return copy(reinterpret_cast<void*>(to), from, bytes, standin_owns(to, bytes)); });
    }
    const std::string taken(numbers, bytes);
    return ask(stream, [=] { return copy(reinterpret_cast<void*>(to), taken.data(), bytes, standin_owns(to, bytes)); });
}
// Into ordinary memory a copy is made before the call returns.
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    const int asked =
        ask(stream, [=] { return copy(to, reinterpret_cast<const void*>(from), bytes, standin_owns(from, bytes)); });
    return asked != SUCCESS || is_locked(to) ? asked : cuStreamSynchronize(stream);
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    return ask(stream, [=] {
        const bool inside = standin_owns(to, bytes) && standin_owns(from, bytes);
        return copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes, inside);
    });
}
API cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void* stream) {
    return ask(stream, [=] {
        if (!standin_owns(address, bytes)) {
            return complain(INVALID_VALUE, "memory is set beyond its buffer");
        }
        memset(reinterpret_cast<void*>(address), value, bytes);
        return int(SUCCESS);
    });
}

// Modules and kernels.

struct Module {
    void* library;
    standin::Shared shared;
};

struct Function {
    std::string name;
    Module* module;
    standin::Entry entry;
    const size_t* sizes;  // of its arguments, then 0
};

// The library in `image`, by way of a file that has no name.
static void* open_library(const void* image) {
    standin::ImageHead head;
    memcpy(&head, image, sizeof head);
    if (memcmp(head.mark, standin::IMAGE_MARK, sizeof head.mark) != 0) {
        fprintf(stderr, "CUDA stand-in: a module that its own compiler didn't make\n");
        return nullptr;
    }
    const int file = memfd_create("kernel", 0);
    const char* content = static_cast<const char*>(image) + sizeof head;
    if (file < 0 || write(file, content, head.bytes) != ssize_t(head.bytes)) {
        return nullptr;
    }
    void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "CUDA stand-in: %s\n", dlerror());
    }
    // The file stays open: another library under the same number would be taken for this one.
    return library;
}

API cuModuleLoadData(void** module, const void* image) {
    if (!current_context) {
        return INVALID_CONTEXT;
    }
    void* library = open_library(image);
    if (!library) {
        return INVALID_IMAGE;
    }
    auto runtime = static_cast<standin::Runtime**>(dlsym(library, "standin_runtime"));
    auto shared_range = reinterpret_cast<void (*)(char**, char**)>(dlsym(library, "standin_shared_range"));
    *runtime = &standin::runtime;
    auto* loaded = new Module{library, {}};
    shared_range(&loaded->shared.begin, &loaded->shared.end);
    *module = loaded;
    return SUCCESS;
}

API cuModuleUnload(void*) { return SUCCESS; }

API cuModuleGetFunction(void** function, void* module, const char* name) {
    auto* loaded = static_cast<Module*>(module);
    void* entry = dlsym(loaded->library, (std::string("standin_enter_") + name).c_str());
    if (!entry) {
        return complain(NOT_FOUND, std::string("no kernel ") + name);
    }
    auto sizes = reinterpret_cast<const size_t* (*)()>(dlsym(loaded->library, (std::string("standin_sizes_") + name).c_str()));
    *function = new Function{name, loaded, reinterpret_cast<standin::Entry>(entry), sizes()};
    return SUCCESS;
}

// What the launch asks for beyond a device's limits, or nothing. Static shared memory is the compiler's to check.
static std::string excess(standin::Index grid, standin::Index block, unsigned dynamic) {
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (uint64_t(grid.x) * grid.y * grid.z == 0 || threads == 0) {
        return "an empty grid or block";
    }
    if (grid.x > 0x7fffffff || grid.y > MOST_BLOCKS_YZ || grid.z > MOST_BLOCKS_YZ) {
        return "too many blocks";
    }
    if (threads > MOST_THREADS || block.z > MOST_THREADS_Z) {
        return "too many threads in a block";
    }
    if (dynamic > 0) {
        return "dynamic shared memory, which the stand-in doesn't have";
    }
    return "";
}

API cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned dynamic, void* stream, void** arguments, void**) {
    if (!current_context) {
        return INVALID_CONTEXT;
    }
    const auto& wanted = *static_cast<Function*>(function);
    const standin::Index grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
    const std::string refusal = excess(grid, block, dynamic);
    if (!refusal.empty()) {
        return complain(INVALID_VALUE, "the launch of " + wanted.name + " asks for " + refusal);
    }
    // The caller's arguments are gone when a launch is put off.
    std::vector<std::string> kept;
    for (const size_t* size = wanted.sizes; *size != 0; ++size) {
        kept.emplace_back(static_cast<const char*>(arguments[kept.size()]), *size);
    }
    return ask(stream, [=, &wanted]() mutable {
        std::vector<void*> places;
        for (std::string& argument : kept) {
            places.push_back(argument.data());
        }
        static std::mutex one_at_a_time;
        std::lock_guard<std::mutex> guard(one_at_a_time);
        const std::string failure = standin::run_grid(wanted.entry, places.data(), grid, block, wanted.module->shared);
        return failure.empty() ? int(SUCCESS) : complain(LAUNCH_FAILED, "kernel " + wanted.name + ": " + failure);
    });
}

// Errors.

API cuGetErrorName(int result, const char** name) {
    static std::map<int, std::string> names;
    static std::mutex lock;
    std::lock_guard<std::mutex> guard(lock);
    *name = names.emplace(result, "error " + std::to_string(result)).first->second.c_str();
    return SUCCESS;
}
API cuGetErrorString(int result, const char** text) { return cuGetErrorName(result, text); }
