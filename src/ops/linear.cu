// y += bias, for y (N, O): see linear.rs.
#include "cuda/kernel.cuh"

#define BIAS(T, NAME)                                                                                                   \
    extern "C" __global__ void linear_bias_##NAME(T *y, const T *bias, int64 count, int width) {                        \
        int64 step = int64(gridDim.x) * blockDim.x;                                                                     \
        for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)                              \
            y[i] = stored<T>(wide(y[i]) + wide(bias[i % width]));                                                       \
    }

FOR_BOTH_TYPES(BIAS)
