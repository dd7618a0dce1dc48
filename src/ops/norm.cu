// Norms: see norm.rs. A block takes a row.
#include "cuda/kernel.cuh"

struct Moments {
    float mean;    // 0 for the RMS norm
    float inverse; // 1 / sqrt(variance + eps)
};

template <typename T, int N>
__device__ __forceinline__ Moments moments_of(const T *x, int width, int layer, float eps) {
    float mean = 0, numbers[N];
    if (layer) {
        float sum = 0;
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
            load<T, N>(x + i, numbers);
#pragma unroll
            for (int j = 0; j < N; j++) sum += numbers[j];
        }
        mean = block_sum(sum) / width;
    }
    float sum = 0;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        load<T, N>(x + i, numbers);
#pragma unroll
        for (int j = 0; j < N; j++) sum += (numbers[j] - mean) * (numbers[j] - mean);
    }
    return {mean, rsqrtf(block_sum(sum) / width + eps)};
}

template <typename T, int N>
__device__ void forward(const T *x, const float *gain, const float *offset, T *y, int width, int layer, float eps) {
    Moments of_row = moments_of<T, N>(x, width, layer, eps);
    float numbers[N], g[N], o[N];
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        load<T, N>(x + i, numbers);
#pragma unroll
        for (int j = 0; j < N; j++) {
            g[j] = gain[i + j];
            o[j] = offset[i + j];
            numbers[j] = fmaf((numbers[j] - of_row.mean) * of_row.inverse, g[j], o[j]);
        }
        store<T, N>(numbers, y + i);
    }
}

template <typename T, int N>
__device__ void back(const T *x, const float *gain, const T *grad, T *dx, int width, int layer, float eps) {
    Moments of_row = moments_of<T, N>(x, width, layer, eps);
    float plain = 0, along = 0, numbers[N], dy[N];
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        load<T, N>(x + i, numbers);
        load<T, N>(grad + i, dy);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float h = dy[j] * gain[i + j];
            plain += h;
            along += h * (numbers[j] - of_row.mean) * of_row.inverse;
        }
    }
    plain = layer ? block_sum(plain) / width : 0;
    along = block_sum(along) / width;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        load<T, N>(x + i, numbers);
        load<T, N>(grad + i, dy);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float normed = (numbers[j] - of_row.mean) * of_row.inverse;
            numbers[j] = (dy[j] * gain[i + j] - plain - normed * along) * of_row.inverse;
        }
        store<T, N>(numbers, dx + i);
    }
}

// Rows of all samples: as many as blocks. `aligned`: rows begin at multiples of 16 bytes.
#define NORM(T, NAME)                                                                                                   \
    extern "C" __global__ void norm_forward_##NAME(                                                                     \
        const T *x, const float *gain, const float *offset, T *y, int width, int layer, float eps, int aligned,         \
        Parts parts                                                                                                     \
    ) {                                                                                                                 \
        int64 row = blockIdx.x, table = parts.table(row) * width, at = row * width;                                     \
        if (aligned)                                                                                                    \
            forward<T, Wide<T>::count>(x + at, gain + table, offset + table, y + at, width, layer, eps);                \
        else                                                                                                            \
            forward<T, 1>(x + at, gain + table, offset + table, y + at, width, layer, eps);                             \
    }                                                                                                                   \
    extern "C" __global__ void norm_back_##NAME(                                                                        \
        const T *x, const float *gain, const T *grad, T *dx, int width, int layer, float eps, int aligned, Parts parts  \
    ) {                                                                                                                 \
        int64 row = blockIdx.x, table = parts.table(row) * width, at = row * width;                                     \
        if (aligned)                                                                                                    \
            back<T, Wide<T>::count>(x + at, gain + table, grad + at, dx + at, width, layer, eps);                       \
        else                                                                                                            \
            back<T, 1>(x + at, gain + table, grad + at, dx + at, width, layer, eps);                                    \
    }                                                                                                                   \
    extern "C" __global__ void norm_moments_##NAME(const T *x, float2 *moments, int width, int layer, float eps) {      \
        int64 row = blockIdx.x;                                                                                         \
        Moments of_row = moments_of<T, 1>(x + row * width, width, layer, eps);                                          \
        if (threadIdx.x == 0) moments[row] = make_float2(of_row.mean, of_row.inverse);                                  \
    }                                                                                                                   \
    /* Sums of every SLICES-th row of a part: (B P, SLICES, D) each. A thread takes a feature. */                       \
    extern "C" __global__ void norm_tables_##NAME(                                                                      \
        const T *x, const T *grad, const float2 *moments, float *dgain, float *doffset, int width, Parts parts          \
    ) {                                                                                                                 \
        int feature = blockIdx.x * blockDim.x + threadIdx.x;                                                            \
        if (feature >= width) return;                                                                                   \
        int part = blockIdx.z % parts.count, first = part ? parts.ends[part - 1] : 0;                                   \
        int64 sample = int64(blockIdx.z / parts.count) * parts.rows;                                                    \
        float gain = 0, offset = 0;                                                                                     \
        for (int64 row = sample + first + blockIdx.y; row < sample + parts.ends[part]; row += gridDim.y) {              \
            float2 of_row = moments[row];                                                                               \
            float dy = wide(grad[row * width + feature]);                                                               \
            gain += dy * (wide(x[row * width + feature]) - of_row.x) * of_row.y;                                        \
            offset += dy;                                                                                               \
        }                                                                                                               \
        int64 at = (int64(blockIdx.z) * gridDim.y + blockIdx.y) * width + feature;                                      \
        dgain[at] = gain;                                                                                               \
        doffset[at] = offset;                                                                                           \
    }

FOR_BOTH_TYPES(NORM)
