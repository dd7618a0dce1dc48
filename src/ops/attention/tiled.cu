// Attention without the matrix of scores, on cards and types that cuDNN does not serve: see attention.rs.
//
// 256 threads go over tiles of 16 queries and 16 keys: each takes a score, and of a row of numbers every 16th. Sums are in
// float, and run in a fixed order. Shapes: q (B, S, H, K), k and v (B, L, H, K), log-sum-exp (B, H, S).
#include "../cuda/kernel.cuh"
#include <math_constants.h>

static const int SIDE = 16;
static const int MOST = 256 / SIDE; // features of a head that a thread takes

struct Sizes {
    int queries, keys, heads, width;
    float scale;
    int64 of_samples, of_heads, of_queries; // strides of the mask
};

// A tile's rows lie a number apart from multiples of 32, so that threads do not meet at one bank.
__device__ __forceinline__ int pitch(int width) { return width + 1; }

// Rows from `first` on of one head of x (tokens, H, K); rows after the last are 0.
template <typename T>
__device__ void fill(float *tile, const T *x, int first, int tokens, const Sizes &sizes) {
    for (int i = threadIdx.x; i < SIDE * sizes.width; i += blockDim.x) {
        int row = i / sizes.width, feature = i % sizes.width, token = first + row;
        int64 at = int64(token) * sizes.heads * sizes.width + feature;
        tile[row * pitch(sizes.width) + feature] = token < tokens ? wide(x[at]) : 0;
    }
}

__device__ __forceinline__ float dot(const float *a, const float *b, int width) {
    float sum = 0;
    for (int i = 0; i < width; i++) sum = fmaf(a[i], b[i], sum);
    return sum;
}

// The largest, or the sum, of the 16 numbers of a row of scores.
__device__ __forceinline__ float row_max(float x) {
    for (int step = SIDE / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step, SIDE));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
    for (int step = SIDE / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step, SIDE);
    return x;
}

// Where a block's head starts in x (B, tokens, H, K).
__device__ __forceinline__ int64 start(int tokens, const Sizes &sizes) {
    int64 sample = blockIdx.y / sizes.heads, head = blockIdx.y % sizes.heads;
    return (sample * tokens * sizes.heads + head) * sizes.width;
}

__device__ __forceinline__ float score(const float *q, const float *k, const float *mask, int query, int key, const Sizes &sizes) {
    if (query >= sizes.queries || key >= sizes.keys) return -CUDART_INF_F;
    float score = sizes.scale * dot(q, k, sizes.width);
    if (mask) {
        int64 sample = blockIdx.y / sizes.heads, head = blockIdx.y % sizes.heads;
        score += mask[sample * sizes.of_samples + head * sizes.of_heads + query * sizes.of_queries + key];
    }
    return score;
}

// Blocks: tiles of queries, heads of all samples. Memory: two tiles and a tile of scores.
template <typename T>
__device__ void forward(const T *q, const T *k, const T *v, const float *mask, T *out, float *log_sums, Sizes sizes) {
    extern __shared__ float memory[];
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE, step = pitch(sizes.width);
    float *queries = memory, *others = queries + SIDE * step, *weights = others + SIDE * step;
    int first = blockIdx.x * SIDE;
    int64 of_queries = start(sizes.queries, sizes), of_keys = start(sizes.keys, sizes);
    fill(queries, q + of_queries, first, sizes.queries, sizes);
    float largest = -CUDART_INF_F, sum = 0, numbers[MOST];
#pragma unroll
    for (int i = 0; i < MOST; i++) numbers[i] = 0;
    for (int key = 0; key < sizes.keys; key += SIDE) {
        __syncthreads();
        fill(others, k + of_keys, key, sizes.keys, sizes);
        __syncthreads();
        float s = score(queries + row * step, others + column * step, mask, first + row, key + column, sizes);
        float now = fmaxf(largest, row_max(s));
        float weight = now == -CUDART_INF_F ? 0 : expf(s - now);
        float kept = largest == -CUDART_INF_F ? 0 : expf(largest - now);
        sum = sum * kept + row_sum(weight);
        largest = now;
        weights[row * SIDE + column] = weight;
        __syncthreads();
        fill(others, v + of_keys, key, sizes.keys, sizes);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int feature = column + i * SIDE;
            if (feature < sizes.width) {
                float total = numbers[i] * kept;
                for (int j = 0; j < SIDE; j++) total = fmaf(weights[row * SIDE + j], others[j * step + feature], total);
                numbers[i] = total;
            }
        }
    }
    int query = first + row;
    if (query >= sizes.queries) return;
    // A query without any key: its output is 0, and so are its weights in the backward pass.
    if (column == 0) log_sums[int64(blockIdx.y) * sizes.queries + query] = sum > 0 ? largest + logf(sum) : CUDART_INF_F;
    T *to = out + of_queries + int64(query) * sizes.heads * sizes.width;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int feature = column + i * SIDE;
        if (feature < sizes.width) to[feature] = stored<T>(sum > 0 ? numbers[i] / sum : 0);
    }
}

// sum(do o) of each query (B, H, S). Blocks: 16 queries, heads of all samples.
template <typename T> __device__ void along(const T *out, const T *grad, float *sums, Sizes sizes) {
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE, query = blockIdx.x * SIDE + row;
    int64 at = start(sizes.queries, sizes) + int64(query) * sizes.heads * sizes.width;
    float sum = 0;
    if (query < sizes.queries)
        for (int i = column; i < sizes.width; i += SIDE) sum = fmaf(wide(out[at + i]), wide(grad[at + i]), sum);
    sum = row_sum(sum);
    if (query < sizes.queries && column == 0) sums[int64(blockIdx.y) * sizes.queries + query] = sum;
}

// One tile's weights p and gradients of scores ds, both [query][key].
__device__ __forceinline__ void back_tile(
    const float *queries, const float *grads, const float *keys, const float *values, const float *mask,
    const float *log_sums, const float *sums, int query, int key, float *weights, float *slopes, const Sizes &sizes
) {
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE, step = pitch(sizes.width);
    int64 at = int64(blockIdx.y) * sizes.queries + query + row;
    bool inside = query + row < sizes.queries;
    float s = score(queries + row * step, keys + column * step, mask, query + row, key + column, sizes);
    float weight = s == -CUDART_INF_F ? 0 : expf(s - log_sums[at]);
    float slope = inside ? weight * (dot(grads + row * step, values + column * step, sizes.width) - sums[at]) : 0;
    weights[threadIdx.x] = weight;
    slopes[threadIdx.x] = slope * sizes.scale;
}

// dq. Blocks: tiles of queries, heads of all samples. Memory: four tiles and two of scores.
template <typename T>
__device__ void back_queries(
    const T *q, const T *k, const T *v, const float *mask, const T *grad, const float *log_sums, const float *sums, T *dq,
    Sizes sizes
) {
    extern __shared__ float memory[];
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE, step = pitch(sizes.width), tile = SIDE * step;
    float *queries = memory, *grads = memory + tile, *keys = memory + 2 * tile, *values = memory + 3 * tile;
    float *weights = memory + 4 * tile, *slopes = weights + SIDE * SIDE;
    int first = blockIdx.x * SIDE;
    int64 of_queries = start(sizes.queries, sizes), of_keys = start(sizes.keys, sizes);
    fill(queries, q + of_queries, first, sizes.queries, sizes);
    fill(grads, grad + of_queries, first, sizes.queries, sizes);
    float numbers[MOST];
#pragma unroll
    for (int i = 0; i < MOST; i++) numbers[i] = 0;
    for (int key = 0; key < sizes.keys; key += SIDE) {
        __syncthreads();
        fill(keys, k + of_keys, key, sizes.keys, sizes);
        fill(values, v + of_keys, key, sizes.keys, sizes);
        __syncthreads();
        back_tile(queries, grads, keys, values, mask, log_sums, sums, first, key, weights, slopes, sizes);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int feature = column + i * SIDE;
            if (feature < sizes.width)
                for (int j = 0; j < SIDE; j++)
                    numbers[i] = fmaf(slopes[row * SIDE + j], keys[j * step + feature], numbers[i]);
        }
    }
    int query = first + row;
    if (query >= sizes.queries) return;
    T *to = dq + of_queries + int64(query) * sizes.heads * sizes.width;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int feature = column + i * SIDE;
        if (feature < sizes.width) to[feature] = stored<T>(numbers[i]);
    }
}

// dk and dv. Blocks: tiles of keys, heads of all samples. Memory as above.
template <typename T>
__device__ void back_keys(
    const T *q, const T *k, const T *v, const float *mask, const T *grad, const float *log_sums, const float *sums, T *dk,
    T *dv, Sizes sizes
) {
    extern __shared__ float memory[];
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE, step = pitch(sizes.width), tile = SIDE * step;
    float *queries = memory, *grads = memory + tile, *keys = memory + 2 * tile, *values = memory + 3 * tile;
    float *weights = memory + 4 * tile, *slopes = weights + SIDE * SIDE;
    int first = blockIdx.x * SIDE;
    int64 of_queries = start(sizes.queries, sizes), of_keys = start(sizes.keys, sizes);
    fill(keys, k + of_keys, first, sizes.keys, sizes);
    fill(values, v + of_keys, first, sizes.keys, sizes);
    float to_keys[MOST], to_values[MOST];
#pragma unroll
    for (int i = 0; i < MOST; i++) to_keys[i] = to_values[i] = 0;
    for (int query = 0; query < sizes.queries; query += SIDE) {
        __syncthreads();
        fill(queries, q + of_queries, query, sizes.queries, sizes);
        fill(grads, grad + of_queries, query, sizes.queries, sizes);
        __syncthreads();
        back_tile(queries, grads, keys, values, mask, log_sums, sums, query, first, weights, slopes, sizes);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int feature = column + i * SIDE;
            if (feature < sizes.width)
                for (int j = 0; j < SIDE; j++) { // here a thread's row is a key
                    to_keys[i] = fmaf(slopes[j * SIDE + row], queries[j * step + feature], to_keys[i]);
                    to_values[i] = fmaf(weights[j * SIDE + row], grads[j * step + feature], to_values[i]);
                }
        }
    }
    int key = first + row;
    if (key >= sizes.keys) return;
    int64 at = of_keys + int64(key) * sizes.heads * sizes.width;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int feature = column + i * SIDE;
        if (feature < sizes.width) {
            dk[at + feature] = stored<T>(to_keys[i]);
            dv[at + feature] = stored<T>(to_values[i]);
        }
    }
}

// 0 for queries that see no key, whose number in `seeing` is 0. Blocks: 16 queries, heads of all samples. The strides are
// those of `seeing`.
template <typename T> __device__ void blind(T *out, float *log_sums, const float *seeing, Sizes sizes) {
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE, query = blockIdx.x * SIDE + row;
    int64 sample = blockIdx.y / sizes.heads, head = blockIdx.y % sizes.heads;
    if (query >= sizes.queries) return;
    if (seeing[sample * sizes.of_samples + head * sizes.of_heads + query * sizes.of_queries] != 0) return;
    if (column == 0) log_sums[int64(blockIdx.y) * sizes.queries + query] = CUDART_INF_F;
    T *to = out + start(sizes.queries, sizes) + int64(query) * sizes.heads * sizes.width;
    for (int i = column; i < sizes.width; i += SIDE) to[i] = stored<T>(0);
}

#define ATTENTION(T, NAME)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) attention_forward_##NAME(                                         \
        const T *q, const T *k, const T *v, const float *mask, T *out, float *log_sums, Sizes sizes                     \
    ) {                                                                                                                 \
        forward(q, k, v, mask, out, log_sums, sizes);                                                                   \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) attention_along_##NAME(                                           \
        const T *out, const T *grad, float *sums, Sizes sizes                                                           \
    ) {                                                                                                                 \
        along(out, grad, sums, sizes);                                                                                  \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) attention_blind_##NAME(                                           \
        T *out, float *log_sums, const float *seeing, Sizes sizes                                                       \
    ) {                                                                                                                 \
        blind(out, log_sums, seeing, sizes);                                                                            \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) attention_back_queries_##NAME(                                    \
        const T *q, const T *k, const T *v, const float *mask, const T *grad, const float *log_sums, const float *sums, \
        T *dq, Sizes sizes                                                                                              \
    ) {                                                                                                                 \
        back_queries(q, k, v, mask, grad, log_sums, sums, dq, sizes);                                                   \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) attention_back_keys_##NAME(                                       \
        const T *q, const T *k, const T *v, const float *mask, const T *grad, const float *log_sums, const float *sums, \
        T *dk, T *dv, Sizes sizes                                                                                       \
    ) {                                                                                                                 \
        back_keys(q, k, v, mask, grad, log_sums, sums, dk, dv, sizes);                                                  \
    }

FOR_BOTH_TYPES(ATTENTION)
