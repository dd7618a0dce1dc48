// SwiGLU: see swiglu.rs. A thread takes as many neighbours as 16 bytes have numbers, or one.
#include "cuda/kernel.cuh"

template <typename T, int N>
__device__ void gated(const T *x, const T *grad, T *out, int64 count, int width) {
    int64 step = int64(gridDim.x) * blockDim.x, packs = width / N;
    for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < count / N; i += step) {
        int64 row = i / packs, column = (i - row * packs) * N, of_x = row * 2 * width + column;
        float a[N], b[N], dy[N];
        load<T, N>(x + of_x, a);
        load<T, N>(x + of_x + width, b);
        if (grad) load<T, N>(grad + row * width + column, dy);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float s = 1 / (1 + expf(-b[j]));
            if (grad) {
                float of_a = dy[j] * b[j] * s;
                b[j] = dy[j] * a[j] * s * fmaf(b[j], 1 - s, 1);
                a[j] = of_a;
            } else {
                a[j] *= b[j] * s;
            }
        }
        if (grad) {
            store<T, N>(a, out + of_x);
            store<T, N>(b, out + of_x + width);
        } else {
            store<T, N>(a, out + row * width + column);
        }
    }
}

// x (rows, 2 width) -> out (rows, width), of so many numbers; with a gradient of that, the backward pass -> out (rows, 2 width).
#define SWIGLU(T, NAME)                                                                                                 \
    extern "C" __global__ void swiglu_##NAME(                                                                           \
        const T *x, const T *grad, T *out, int64 count, int width, int aligned                                          \
    ) {                                                                                                                 \
        if (aligned) gated<T, Wide<T>::count>(x, grad, out, count, width);                                              \
        else gated<T, 1>(x, grad, out, count, width);                                                                   \
    }

FOR_BOTH_TYPES(SWIGLU)
