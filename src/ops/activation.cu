// GELU and SiLU: see activation.rs. Kinds are those of its enum, in order.
#include "cuda/kernel.cuh"

static const float SLOPE = 0.7978845608f; // sqrt(2 / pi)
static const float CUBE = 0.044715f;

template <int KIND> __device__ __forceinline__ float forward(float x) {
    if (KIND == 0) return x * normcdff(x);
    if (KIND == 1) return 0.5f * x * (1 + tanhf(SLOPE * fmaf(CUBE * x * x, x, x)));
    return x / (1 + expf(-x));
}

template <int KIND> __device__ __forceinline__ float slope(float x) {
    if (KIND == 0) return fmaf(x, 0.3989422804f * expf(-0.5f * x * x), normcdff(x));
    if (KIND == 1) {
        float t = tanhf(SLOPE * fmaf(CUBE * x * x, x, x));
        float inner = SLOPE * fmaf(3 * CUBE * x, x, 1);
        return 0.5f * fmaf(x * (1 - t * t), inner, 1 + t);
    }
    float s = 1 / (1 + expf(-x));
    return s * fmaf(x, 1 - s, 1);
}

template <typename T, int KIND> __device__ void all(const T *x, const T *grad, T *out, int64 count, int aligned) {
    const int N = Wide<T>::count;
    int64 first = int64(blockIdx.x) * blockDim.x + threadIdx.x, step = int64(gridDim.x) * blockDim.x;
    int64 packs = aligned ? count / N : 0;
    for (int64 i = first; i < packs; i += step) {
        float numbers[N], dy[N];
        load<T, N>(x + i * N, numbers);
        if (grad) load<T, N>(grad + i * N, dy);
#pragma unroll
        for (int j = 0; j < N; j++) numbers[j] = grad ? dy[j] * slope<KIND>(numbers[j]) : forward<KIND>(numbers[j]);
        store<T, N>(numbers, out + i * N);
    }
    for (int64 i = packs * N + first; i < count; i += step) {
        float number = wide(x[i]);
        out[i] = stored<T>(grad ? wide(grad[i]) * slope<KIND>(number) : forward<KIND>(number));
    }
}

// With a gradient, the backward pass.
#define ACTIVATION(T, NAME)                                                                                             \
    extern "C" __global__ void activation_##NAME(                                                                       \
        const T *x, const T *grad, T *out, int64 count, int kind, int aligned                                           \
    ) {                                                                                                                 \
        if (kind == 0) all<T, 0>(x, grad, out, count, aligned);                                                         \
        else if (kind == 1) all<T, 1>(x, grad, out, count, aligned);                                                    \
        else all<T, 2>(x, grad, out, count, aligned);                                                                   \
    }

FOR_BOTH_TYPES(ACTIVATION)
