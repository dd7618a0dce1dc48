// silu(x r scale + shift), channels last: see modulate.rs. A warp takes a pixel, and then others.
#include "cuda/kernel.cuh"

// Sizes of x and of the tables.
struct Clip {
    int frames, height, width, channels;
    int table_frames, table_height, table_width;

    // The pixel of the tables that belongs to a pixel of x, both counted through all samples.
    __device__ __forceinline__ int64 table(int64 pixel) const {
        int column = pixel % width;
        int64 line = pixel / width;
        int row = line % height;
        int64 all_frames = line / height;
        int frame = all_frames % frames;
        int64 sample = all_frames / frames;
        int of_table = frame * table_frames / frames;
        if (frames > 1 && frames % 2 && table_frames > 1)
            of_table = frame ? 1 + (frame - 1) * (table_frames - 1) / (frames - 1) : 0;
        int64 at = sample * table_frames + of_table;
        at = at * table_height + int64(row) * table_height / height;
        return at * table_width + int64(column) * table_width / width;
    }
};

template <typename T, int N>
__device__ void pixel(const T *x, const float *scale, const float *shift, T *y, int channels, int rms, float eps) {
    int lane = threadIdx.x % 32;
    float numbers[N], r = 1;
    if (rms) {
        float sum = 0;
        for (int i = lane * N; i < channels; i += 32 * N) {
            load<T, N>(x + i, numbers);
#pragma unroll
            for (int j = 0; j < N; j++) sum = fmaf(numbers[j], numbers[j], sum);
        }
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
        r = 1 / sqrtf(sum / channels + eps);
    }
    for (int i = lane * N; i < channels; i += 32 * N) {
        load<T, N>(x + i, numbers);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float number = fmaf(numbers[j] * r, scale[i + j], shift[i + j]);
            numbers[j] = number / (1 + expf(-number));
        }
        store<T, N>(numbers, y + i);
    }
}

// `aligned`: pixels begin at multiples of 16 bytes.
#define MODULATE(T, NAME)                                                                                               \
    extern "C" __global__ void modulated_silu_##NAME(                                                                   \
        const T *x, const float *scale, const float *shift, T *y, int64 pixels, Clip clip, float eps, int rms,          \
        int aligned                                                                                                     \
    ) {                                                                                                                 \
        int warps = blockDim.x / 32;                                                                                    \
        for (int64 i = int64(blockIdx.x) * warps + threadIdx.x / 32; i < pixels; i += int64(gridDim.x) * warps) {       \
            int64 at = i * clip.channels, table = clip.table(i) * clip.channels;                                        \
            if (aligned)                                                                                                \
                pixel<T, Wide<T>::count>(x + at, scale + table, shift + table, y + at, clip.channels, rms, eps);        \
            else                                                                                                        \
                pixel<T, 1>(x + at, scale + table, shift + table, y + at, clip.channels, rms, eps);                     \
        }                                                                                                               \
    }

FOR_BOTH_TYPES(MODULATE)
