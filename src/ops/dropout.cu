// Dropout by the draws of dropout.rs: x times 0 or 1. `x` and `y` may be the same.
#include "cuda/kernel.cuh"

typedef unsigned long long uint64;
static const uint64 GAMMA = 0x9e3779b97f4a7c15ull;

__device__ __forceinline__ uint64 mix(uint64 at) {
    uint64 z = at + GAMMA;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ __forceinline__ float kept(uint64 start, uint64 below, int64 i) {
    return mix(start + GAMMA * uint64(i)) >> 32 >= below ? 1 : 0;
}

template <typename T> __device__ void all(const T *x, T *y, int64 count, uint64 start, uint64 below, int aligned) {
    const int N = Wide<T>::count;
    int64 first = int64(blockIdx.x) * blockDim.x + threadIdx.x, step = int64(gridDim.x) * blockDim.x;
    int64 packs = aligned ? count / N : 0;
    for (int64 i = first; i < packs; i += step) {
        float numbers[N];
        load<T, N>(x + i * N, numbers);
#pragma unroll
        for (int j = 0; j < N; j++) numbers[j] *= kept(start, below, i * N + j);
        store<T, N>(numbers, y + i * N);
    }
    for (int64 i = packs * N + first; i < count; i += step) y[i] = stored<T>(wide(x[i]) * kept(start, below, i));
}

#define DROPOUT(T, NAME)                                                                                                \
    extern "C" __global__ void dropout_##NAME(                                                                          \
        const T *x, T *y, int64 count, int64 start, int64 below, int aligned                                            \
    ) {                                                                                                                 \
        all<T>(x, y, count, uint64(start), uint64(below), aligned);                                                     \
    }

FOR_BOTH_TYPES(DROPOUT)
