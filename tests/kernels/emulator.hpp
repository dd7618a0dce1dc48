// The part of CUDA's language that the kernels are written in, for the CPU: see emulator.cpp.
//
// The threads of a block take turns on one thread of the system. One that reaches a barrier or a shuffle waits there until
// the others have come. What is not here yet, a kernel that needs it adds.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// With and without `extern`, and of static duration: the library keeps nothing else in thread-local memory, and every block
// finds there what is no number.
#define __shared__ thread_local
#define __syncthreads() emulator::barrier(__FILE__, __LINE__)
#define CUDART_INF_F (__builtin_inff())

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __nv_bfloat16 { uint16_t bits; };

inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// To the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16(float x) {
    if (x != x) return {0x7fff};
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// CUDA gives these to a unit or two in the last place.
inline float rsqrtf(float x) { return float(1 / sqrt(double(x))); }
inline float normcdff(float x) { return float(0.5 * erfc(-double(x) * 0.70710678118654752)); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline float fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return expf(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t(a) * b) >> 32; }
template <typename T> inline T __ldg(const T *at) { return *at; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

void barrier(const char *file, int line);
void warp_barrier();
// Gives eight bytes to the warp, and takes those of the thread `from` of the block.
uint64_t exchange(uint64_t given, unsigned from);
[[noreturn]] void fail(const char *why);

template <typename T> T shuffled(unsigned mask, T x, unsigned from_lane) {
    static_assert(sizeof(T) <= 8);
    if (mask != 0xffffffff) fail("a shuffle of some lanes only, which the emulator does not know");
    uint64_t given = 0;
    memcpy(&given, &x, sizeof x);
    uint64_t taken = exchange(given, threadIdx.x / 32 * 32 + from_lane);
    memcpy(&x, &taken, sizeof x);
    return x;
}

// A kernel of one file.
struct Kernel {
    const char *name;
    char signature[512];              // what each argument is, between commas
    void (*run)(void **arguments);    // one thread
    void (*share)(void *dynamic);     // shows the file where a block's dynamic shared memory lies
    Kernel *next;
    Kernel(const char *name, void (*run)(void **), void (*share)(void *));
    void add(const char *kind, size_t size);
};

template <typename A> void describe(Kernel &kernel) {
    if (std::is_pointer_v<A>) kernel.add("pointer", 0);
    else if (std::is_same_v<A, float>) kernel.add("float", 0);
    else if (std::is_integral_v<A> && std::is_signed_v<A> && sizeof(A) == 4) kernel.add("int", 0);
    else if (std::is_integral_v<A> && std::is_signed_v<A> && sizeof(A) == 8) kernel.add("int64", 0);
    else kernel.add("structure", sizeof(A));
}

template <auto F> struct Call;
template <typename... A, void (*F)(A...)> struct Call<F> {
    template <size_t... I> static void spread(void **arguments, std::index_sequence<I...>) {
        F(*static_cast<A *>(arguments[I])...);
    }
    static void run(void **arguments) { spread(arguments, std::index_sequence_for<A...>{}); }
    static void describe(Kernel &kernel) { (emulator::describe<A>(kernel), ...); }
};

} // namespace emulator

template <typename T> T __shfl_xor_sync(unsigned mask, T x, int step, int = 32) {
    return emulator::shuffled(mask, x, (threadIdx.x % 32) ^ unsigned(step));
}
template <typename T> T __shfl_sync(unsigned mask, T x, int lane, int width = 32) {
    unsigned own = threadIdx.x % 32;
    return emulator::shuffled(mask, x, own / width * width + unsigned(lane) % width);
}
template <typename T> T __shfl_down_sync(unsigned mask, T x, unsigned step, int width = 32) {
    unsigned own = threadIdx.x % 32;
    return emulator::shuffled(mask, x, own % width + step < unsigned(width) ? own + step : own);
}
template <typename T> T __shfl_up_sync(unsigned mask, T x, unsigned step, int width = 32) {
    unsigned own = threadIdx.x % 32;
    return emulator::shuffled(mask, x, own % width >= step ? own - step : own);
}
inline void __syncwarp(unsigned mask = 0xffffffff) {
    if (mask != 0xffffffff) emulator::fail("a barrier of some lanes only, which the emulator does not know");
    emulator::warp_barrier();
}

// Behind the text of a file, for each of its kernels. `share_dynamic` is written by the tests.
#define EMULATED(NAME)                                                                                                  \
    static struct NAME##_registered : emulator::Kernel {                                                                \
        NAME##_registered() : Kernel(#NAME, emulator::Call<NAME>::run, share_dynamic) {                                 \
            emulator::Call<NAME>::describe(*this);                                                                      \
        }                                                                                                               \
    } NAME##_kernel;
