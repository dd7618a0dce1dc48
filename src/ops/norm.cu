// Norms: see norm.rs. A block takes a row; or several rows, each of up to 32 neighbouring threads with 16 bytes of it.
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

// The sum of the numbers of as many neighbours in a warp, a power of two.
__device__ __forceinline__ float neighbours_sum(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

// A thread's part of a narrow row, of `lanes` threads.
struct Share {
    int64 row;
    int column;
    bool there; // the last block may have more threads than there are rows

    __device__ __forceinline__ Share(int rows, int lanes, int pack) {
        int64 thread = int64(blockIdx.x) * blockDim.x + threadIdx.x;
        row = thread / lanes;
        column = threadIdx.x % lanes * pack;
        there = row < rows;
        if (!there) row = rows - 1; // sums are of whole warps
    }
};

template <int N> __device__ __forceinline__ Moments narrow_moments(float (&x)[N], int width, int lanes, int layer, float eps) {
    float sum = 0, mean = 0;
    if (layer) {
#pragma unroll
        for (int j = 0; j < N; j++) sum += x[j];
        mean = neighbours_sum(sum, lanes) / width;
    }
    sum = 0;
#pragma unroll
    for (int j = 0; j < N; j++) sum += (x[j] - mean) * (x[j] - mean);
    return {mean, rsqrtf(neighbours_sum(sum, lanes) / width + eps)};
}

template <typename T>
__device__ void narrow_forward(
    const T *x, const float *gain, const float *offset, T *y, int rows, int lanes, int layer, float eps, const Parts &parts
) {
    const int N = Wide<T>::count;
    int width = lanes * N;
    Share share(rows, lanes, N);
    int64 at = share.row * width + share.column, table = parts.table(share.row) * width + share.column;
    float numbers[N], g[N], o[N];
    load<T, N>(x + at, numbers);
    Moments of_row = narrow_moments<N>(numbers, width, lanes, layer, eps);
    if (!share.there) return;
    load_table<N>(gain + table, g);
    load_table<N>(offset + table, o);
#pragma unroll
    for (int j = 0; j < N; j++) numbers[j] = fmaf((numbers[j] - of_row.mean) * of_row.inverse, g[j], o[j]);
    store<T, N>(numbers, y + at);
}

template <typename T>
__device__ void narrow_back(
    const T *x, const float *gain, const T *grad, T *dx, int rows, int lanes, int layer, float eps, const Parts &parts
) {
    const int N = Wide<T>::count;
    int width = lanes * N;
    Share share(rows, lanes, N);
    int64 at = share.row * width + share.column, table = parts.table(share.row) * width + share.column;
    float numbers[N], h[N], g[N], plain = 0, along = 0;
    load<T, N>(x + at, numbers);
    load<T, N>(grad + at, h);
    load_table<N>(gain + table, g);
    Moments of_row = narrow_moments<N>(numbers, width, lanes, layer, eps);
#pragma unroll
    for (int j = 0; j < N; j++) {
        numbers[j] = (numbers[j] - of_row.mean) * of_row.inverse;
        h[j] *= g[j];
        plain += h[j];
        along += h[j] * numbers[j];
    }
    plain = layer ? neighbours_sum(plain, lanes) / width : 0;
    along = neighbours_sum(along, lanes) / width;
    if (!share.there) return;
#pragma unroll
    for (int j = 0; j < N; j++) numbers[j] = (h[j] - plain - numbers[j] * along) * of_row.inverse;
    store<T, N>(numbers, dx + at);
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
    extern "C" __global__ void norm_narrow_forward_##NAME(                                                              \
        const T *x, const float *gain, const float *offset, T *y, int rows, int lanes, int layer, float eps, Parts parts \
    ) {                                                                                                                 \
        narrow_forward<T>(x, gain, offset, y, rows, lanes, layer, eps, parts);                                          \
    }                                                                                                                   \
    extern "C" __global__ void norm_narrow_back_##NAME(                                                                 \
        const T *x, const float *gain, const T *grad, T *dx, int rows, int lanes, int layer, float eps, Parts parts     \
    ) {                                                                                                                 \
        narrow_back<T>(x, gain, grad, dx, rows, lanes, layer, eps, parts);                                              \
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
