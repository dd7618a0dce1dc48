// Gated residuals: see residual.rs. A block takes a row. Residuals without a gate: see add.rs.
#include "cuda/kernel.cuh"

template <typename T, int N>
__device__ void forward(const T *x, const T *update, const float *gate, T *y, int width) {
    float numbers[N], u[N];
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        load<T, N>(x + i, numbers);
        load<T, N>(update + i, u);
#pragma unroll
        for (int j = 0; j < N; j++) numbers[j] = fmaf(gate[i + j], u[j], numbers[j]);
        store<T, N>(numbers, y + i);
    }
}

template <typename T, int N>
__device__ void back(const T *grad, const float *gate, T *dupdate, int width) {
    float numbers[N];
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        load<T, N>(grad + i, numbers);
#pragma unroll
        for (int j = 0; j < N; j++) numbers[j] *= gate[i + j];
        store<T, N>(numbers, dupdate + i);
    }
}

template <typename T> __device__ void sums(const T *a, const T *b, T *y, int64 count, int aligned) {
    const int N = Wide<T>::count;
    int64 first = int64(blockIdx.x) * blockDim.x + threadIdx.x, step = int64(gridDim.x) * blockDim.x;
    int64 packs = aligned ? count / N : 0;
    for (int64 i = first; i < packs; i += step) {
        float numbers[N], others[N];
        load<T, N>(a + i * N, numbers);
        load<T, N>(b + i * N, others);
#pragma unroll
        for (int j = 0; j < N; j++) numbers[j] += others[j];
        store<T, N>(numbers, y + i * N);
    }
    for (int64 i = packs * N + first; i < count; i += step) y[i] = stored<T>(wide(a[i]) + wide(b[i]));
}

// Rows of all samples: as many as blocks. `aligned`: rows begin at multiples of 16 bytes.
#define RESIDUAL(T, NAME)                                                                                               \
    extern "C" __global__ void residual_forward_##NAME(                                                                 \
        const T *x, const T *update, const float *gate, T *y, int width, int aligned, Parts parts                       \
    ) {                                                                                                                 \
        int64 row = blockIdx.x, table = parts.table(row) * width, at = row * width;                                     \
        if (aligned)                                                                                                    \
            forward<T, Wide<T>::count>(x + at, update + at, gate + table, y + at, width);                               \
        else                                                                                                            \
            forward<T, 1>(x + at, update + at, gate + table, y + at, width);                                            \
    }                                                                                                                   \
    extern "C" __global__ void residual_back_##NAME(                                                                    \
        const T *grad, const float *gate, T *dupdate, int width, int aligned, Parts parts                               \
    ) {                                                                                                                 \
        int64 row = blockIdx.x, table = parts.table(row) * width, at = row * width;                                     \
        if (aligned)                                                                                                    \
            back<T, Wide<T>::count>(grad + at, gate + table, dupdate + at, width);                                      \
        else                                                                                                            \
            back<T, 1>(grad + at, gate + table, dupdate + at, width);                                                   \
    }                                                                                                                   \
    /* Sums of every SLICES-th row of a part: (B P, SLICES, D). A thread takes a feature. */                            \
    extern "C" __global__ void residual_gate_##NAME(                                                                    \
        const T *update, const T *grad, float *dgate, int width, Parts parts                                            \
    ) {                                                                                                                 \
        int feature = blockIdx.x * blockDim.x + threadIdx.x;                                                            \
        if (feature >= width) return;                                                                                   \
        int part = blockIdx.z % parts.count, first = part ? parts.ends[part - 1] : 0;                                   \
        int64 sample = int64(blockIdx.z / parts.count) * parts.rows;                                                    \
        float sum = 0;                                                                                                  \
        for (int64 row = sample + first + blockIdx.y; row < sample + parts.ends[part]; row += gridDim.y)                \
            sum = fmaf(wide(update[row * width + feature]), wide(grad[row * width + feature]), sum);                    \
        dgate[(int64(blockIdx.z) * gridDim.y + blockIdx.y) * width + feature] = sum;                                    \
    }

#define ADD(T, NAME)                                                                                                    \
    extern "C" __global__ void add_##NAME(const T *a, const T *b, T *y, int64 count, int aligned) {                     \
        sums(a, b, y, count, aligned);                                                                                  \
    }

FOR_BOTH_TYPES(RESIDUAL)
FOR_BOTH_TYPES(ADD)
