// Switching between stacks on one thread of the system.
//
// What a function call must keep is pushed on the one stack and popped from the other. `swapcontext`, which remains for other
// processors, asks the system each time.
#pragma once
#include <cstddef>

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(EMULATOR_UCONTEXT)

extern "C" void emulator_switch(void **from, void *to);

#if defined(__x86_64__)
asm(R"(
    .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, . - emulator_switch
)");
// Words of a frame, and which of them is the address to return to.
const size_t FRAME = 8, RETURN = 6;
#else
asm(R"(
    .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulator_switch, . - emulator_switch
)");
const size_t FRAME = 20, RETURN = 11;
#endif

// A stack that waits: where its frame lies.
using Place = void *;

inline void switch_stacks(Place &from, Place &to) { emulator_switch(&from, to); }

// A stack on which `entry` will start. It never returns.
inline void prepare(Place &place, char *stack, size_t size, void (*entry)()) {
    void **frame = reinterpret_cast<void **>(stack + size) - FRAME;
    for (size_t i = 0; i < FRAME; i++) frame[i] = nullptr;
    frame[RETURN] = reinterpret_cast<void *>(entry);
    place = frame;
}

#else
#include <ucontext.h>

using Place = ucontext_t;

inline void switch_stacks(Place &from, Place &to) { swapcontext(&from, &to); }

inline void prepare(Place &place, char *stack, size_t size, void (*entry)()) {
    getcontext(&place);
    place.uc_stack.ss_sp = stack;
    place.uc_stack.ss_size = size;
    place.uc_link = nullptr;
    makecontext(&place, entry, 0);
}

#endif
