// Each thread of a block is a fiber with a stack of its own. They run in turn until they wait or end; when none can run,
// either all wait at the same barrier, and pass it, or the kernel is wrong.
//
// STANDIN_ORDER sets who runs first; threads that are only right in one order lack a barrier. `forward` and `reverse` take
// warp after warp, each as far as it goes before it needs the others; `random:SEED` takes a thread here and there.
#include "scheduler.h"
#include "stack.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <sys/mman.h>
#include <vector>

// Present where the process runs under AddressSanitizer, which must hear of every change of stacks.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}

namespace standin {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 256 << 10;

enum class State { Ready, AtBarrier, InExchange, Done };

struct Fiber {
    Flow flow;
    char* stack = nullptr;
    void* fake_stack = nullptr;
    unsigned number = 0;
    Index index;
    State state = State::Done;
    int line = 0;              // where it waits
    unsigned exchanges = 0;    // how many it has been through
};

struct Warp {
    // What lanes bring; two sets, since a quick lane may be at the next exchange before a slow one has read.
    uint64_t values[2][WARP];
    unsigned arrived = 0, mask = 0;
    int line = 0;
};

Runtime runtime;

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Flow scheduler;
static void* scheduler_fake_stack;
static const void* scheduler_bottom;
static size_t scheduler_size;
static Fiber* running;
static Entry kernel;
static void** kernel_arguments;
static std::string failure;

static void back_to_scheduler() {
    Fiber* self = running;
    if (__sanitizer_start_switch_fiber) {
        void** keep = self->state == State::Done ? nullptr : &self->fake_stack;
        __sanitizer_start_switch_fiber(keep, scheduler_bottom, scheduler_size);
    }
    change(self->flow, scheduler);
    if (__sanitizer_finish_switch_fiber) {
        __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
    }
}

static void fiber_main() {
    if (__sanitizer_finish_switch_fiber) {
        __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
    }
    kernel(kernel_arguments);
    running->state = State::Done;
    back_to_scheduler();
}

static void resume(Fiber& fiber) {
    running = &fiber;
    runtime.thread = fiber.index;
    if (__sanitizer_start_switch_fiber) {
        __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, STACK);
    }
    change(scheduler, fiber.flow);
    if (__sanitizer_finish_switch_fiber) {
        __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
    }
}

static std::string name(const Index& index) {
    return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

static void fail(const std::string& what) {
    if (failure.empty()) {
        failure = what + ", block " + name(runtime.block);
    }
}

// A fiber that has done wrong never runs again.
[[noreturn]] static void stop(const std::string& what) {
    fail(what + ", thread " + name(running->index));
    for (;;) {
        back_to_scheduler();
    }
}

static void barrier(int line) {
    running->state = State::AtBarrier;
    running->line = line;
    back_to_scheduler();
}

static unsigned lane() {
    return running->number % WARP;
}

static uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line) {
    Warp& warp = warps[running->number / WARP];
    const std::string where = "shuffle at line " + std::to_string(line);
    if (!(mask >> lane() & 1)) {
        stop(where + ": the calling lane is not in its mask");
    }
    if (warp.arrived && (warp.mask != mask || warp.line != line)) {
        stop(where + ": lanes of a warp are at different shuffles");
    }
    const unsigned set = running->exchanges++ % 2;
    warp.values[set][lane()] = value;
    warp.mask = mask;
    warp.line = line;
    warp.arrived |= 1u << lane();
    running->state = State::InExchange;
    running->line = line;
    back_to_scheduler();
    if (source >= WARP) {
        return value;
    }
    if (!(mask >> source & 1)) {
        stop(where + ": reads a lane that is not in the mask");
    }
    return warp.values[set][source];
}

static void start(Fiber& fiber, unsigned number, const Index& size) {
    if (!fiber.stack) {
        fiber.stack = static_cast<char*>(
            mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    fiber.number = number;
    fiber.index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
    fiber.state = State::Ready;
    fiber.exchanges = 0;
    fiber.fake_stack = nullptr;
    fiber.flow = begin(fiber.stack, STACK, fiber_main);
}

// The order of a block's threads.
struct Order {
    enum { Forward, Reverse, Random } kind = Forward;
    std::mt19937 generator;

    Order() {
        const char* wanted = getenv("STANDIN_ORDER");
        const std::string text = wanted ? wanted : "forward";
        kind = text == "reverse" ? Reverse : text.rfind("random", 0) == 0 ? Random : Forward;
        const size_t colon = text.find(':');
        generator.seed(colon == std::string::npos ? 1 : std::stoul(text.substr(colon + 1)));
    }

    // What is to be taken in turn: threads, or warps.
    std::vector<unsigned> turns(unsigned count) {
        std::vector<unsigned> turns(count);
        std::iota(turns.begin(), turns.end(), 0u);
        if (kind == Reverse) {
            std::reverse(turns.begin(), turns.end());
        } else if (kind == Random) {
            std::shuffle(turns.begin(), turns.end(), generator);
        }
        return turns;
    }
};

// Lets the lanes of a warp go on if its exchange is complete. Returns whether it is.
static bool release_warp(unsigned number, unsigned threads) {
    Warp& warp = warps[number];
    if (!warp.arrived || warp.arrived != warp.mask) {
        return false;
    }
    for (unsigned l = 0; l < WARP && number * WARP + l < threads; ++l) {
        if (warp.arrived >> l & 1) {
            fibers[number * WARP + l].state = State::Ready;
        }
    }
    warp.arrived = 0;
    return true;
}

// Runs those threads of a warp that can, once, and completes their exchange. Returns whether any ran.
static bool step_warp(unsigned number, unsigned threads, Order& order) {
    bool ran = false;
    for (unsigned l : order.turns(std::min(WARP, threads - number * WARP))) {
        Fiber& fiber = fibers[number * WARP + l];
        if (fiber.state == State::Ready && failure.empty()) {
            resume(fiber);
            ran = true;
        }
    }
    return release_warp(number, threads) || ran;
}

// Runs all threads until none can.
static void run_warps(unsigned threads, Order& order) {
    bool ran = true;
    while (ran && failure.empty()) {
        ran = false;
        for (unsigned w : order.turns(unsigned(warps.size()))) {
            while (step_warp(w, threads, order)) {
                ran = true;
                if (order.kind == Order::Random) {
                    break;
                }
            }
        }
    }
}

// When no thread can run: all of them have ended, all pass a barrier, or the kernel is wrong. Whether it goes on.
static bool release_barrier(unsigned threads) {
    unsigned done = 0, waiting = 0;
    int line = 0;
    for (unsigned t = 0; t < threads; ++t) {
        const Fiber& fiber = fibers[t];
        done += fiber.state == State::Done;
        if (fiber.state == State::InExchange) {
            fail("shuffle at line " + std::to_string(fiber.line) + ": not reached by all lanes of its mask");
            return false;
        }
        if (fiber.state == State::AtBarrier) {
            if (waiting++ && line != fiber.line) {
                fail("divergent barrier: threads wait at lines " + std::to_string(line) + " and " +
                     std::to_string(fiber.line));
                return false;
            }
            line = fiber.line;
        }
    }
    if (waiting && done) {
        fail("divergent barrier: at line " + std::to_string(line) + " " + std::to_string(waiting) +
             " threads wait for " + std::to_string(done) + " that have ended");
        return false;
    }
    for (unsigned t = 0; waiting && t < threads; ++t) {
        fibers[t].state = State::Ready;
    }
    return waiting > 0;
}

static void run_block(unsigned threads, Order& order, const Shared& shared) {
    if (shared.begin) {
        memset(shared.begin, 0xff, shared.end - shared.begin);  // not-a-numbers
    }
    if (fibers.size() < threads) {
        fibers.resize(threads);
    }
    warps.assign((threads + WARP - 1) / WARP, Warp());
    for (unsigned t = 0; t < threads; ++t) {
        start(fibers[t], t, runtime.block_size);
    }
    do {
        run_warps(threads, order);
    } while (failure.empty() && release_barrier(threads));
}

std::string run_grid(Entry entry, void** arguments, Index grid, Index block, Shared shared) {
    static Order order;
    failure.clear();
    kernel = entry;
    kernel_arguments = arguments;
    runtime.grid_size = grid;
    runtime.block_size = block;
    runtime.barrier = barrier;
    runtime.exchange = exchange;
    runtime.lane = lane;
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t turn = 0; turn < blocks && failure.empty(); ++turn) {
        const uint64_t b = order.kind == Order::Forward ? turn : blocks - 1 - turn;
        runtime.block = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        run_block(block.x * block.y * block.z, order, shared);
    }
    return failure;
}

}  // namespace standin
