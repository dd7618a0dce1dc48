// Shared parts of the kernels: numbers are stored as T (float or bf16) and computed as float.
#pragma once
#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;
typedef long long int64;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T stored(float x);
template <> __device__ __forceinline__ float stored<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 stored<bf16>(float x) { return __float2bfloat16(x); }

// N neighbours, read and written at once.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack { T at[N]; };

template <typename T, int N> __device__ __forceinline__ void load(const T *from, float (&to)[N]) {
    Pack<T, N> pack = *reinterpret_cast<const Pack<T, N> *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = wide(pack.at[i]);
}

// N neighbours of a table, 16 bytes at once.
template <int N> __device__ __forceinline__ void load_table(const float *from, float (&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        Pack<float, 4> pack = *reinterpret_cast<const Pack<float, 4> *>(from + i);
#pragma unroll
        for (int j = 0; j < 4; j++) to[i + j] = pack.at[j];
    }
}

template <typename T, int N> __device__ __forceinline__ void store(const float (&from)[N], T *to) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.at[i] = stored<T>(from[i]);
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

// 16 bytes.
template <typename T> struct Wide { static const int count = 16 / sizeof(T); };

// The sum of all threads' numbers, the same in every thread. Whole warps, 1024 threads at most.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float of_warps[32];
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    __syncthreads(); // readers of the sum before this one are through
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += of_warps[warp];
    return sum;
}

// Maps rows of a sample to its consecutive parts.
struct Parts {
    int rows;   // of a sample
    int shared; // whether all samples read the same rows of a table
    int count;
    int ends[8];

    __device__ __forceinline__ int part(int row) const {
        int part = 0;
        while (part + 1 < count && row >= ends[part]) part++;
        return part;
    }

    // The row of a table (B or 1, P, D) that a row of all samples reads.
    __device__ __forceinline__ int64 table(int64 row) const {
        int at = int(row), sample = at / rows; // a grid has fewer rows than an int counts
        return (shared ? 0 : int64(sample) * count) + part(at % rows);
    }
};

// The same kernel for both types.
#define FOR_BOTH_TYPES(KERNEL) KERNEL(float, f32) KERNEL(bf16, bf16)
