// A flow of control with a stack of its own, and the change from one to another. On x86-64 a change keeps what a call has
// to keep and nothing else; elsewhere it is the C library's, which asks the kernel for the signal mask each time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ucontext.h>

namespace standin {

#if defined(__x86_64__)

// Where the stack ends of a flow that doesn't run.
struct Flow {
    void* top = nullptr;
};

// Leaves the present flow in `from` and goes on with `to`.
extern "C" void standin_change(Flow* from, const Flow* to);
asm(R"(
    .text
    .type standin_change, @function
    standin_change:
        pushq %rbp
        pushq %rbx
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, (%rdi)
        movq (%rsi), %rsp
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbx
        popq %rbp
        ret
    .size standin_change, . - standin_change
)");

inline void change(Flow& from, const Flow& to) { standin_change(&from, &to); }

// A flow that begins with `entry`, which never returns, on the stack of `bytes` bytes.
inline Flow begin(char* stack, size_t bytes, void (*entry)()) {
    // From the top, which is a multiple of 16: the address that `entry` would return to, where it begins, six registers.
    uintptr_t* top = reinterpret_cast<uintptr_t*>(stack + bytes) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = reinterpret_cast<uintptr_t>(entry);
    return {top};
}

#else

struct Flow {
    ucontext_t context;
};

inline void change(Flow& from, const Flow& to) { swapcontext(&from.context, &to.context); }

inline Flow begin(char* stack, size_t bytes, void (*entry)()) {
    Flow flow;
    getcontext(&flow.context);
    flow.context.uc_stack = {stack, 0, bytes};
    flow.context.uc_link = nullptr;
    makecontext(&flow.context, entry, 0);
    return flow;
}

#endif

}  // namespace standin
