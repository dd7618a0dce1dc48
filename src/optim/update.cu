// All adapters at once. A block takes a piece of PIECE numbers of one of them; `table` says which:
// firsts (n + 1), the pieces before each tensor; lengths (n); then addresses (n) of each kind.
#include "../ops/cuda/kernel.cuh"

static const int PIECE = 1 << 14;

struct Place {
    int tensor;
    int64 from, to;
};

__device__ __forceinline__ Place place_of(const int64 *table, int count) {
    int low = 0, high = count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (table[middle] <= blockIdx.x) low = middle;
        else high = middle;
    }
    int64 from = (blockIdx.x - table[low]) * PIECE, length = table[count + 1 + low];
    return {low, from, from + PIECE < length ? from + PIECE : length};
}

struct Update {
    float scale, decay, weight1, beta2, weight2, step_size, correction, epsilon;
};

// See adamw.rs.
extern "C" __global__ void adamw(const int64 *table, int count, Update update) {
    Place place = place_of(table, count);
    const int64 *addresses = table + 2 * count + 1 + place.tensor;
    float *p = reinterpret_cast<float *>(addresses[0]);
    const float *g = reinterpret_cast<const float *>(addresses[count]);
    float *m = reinterpret_cast<float *>(addresses[2 * count]);
    float *v = reinterpret_cast<float *>(addresses[3 * count]);
    for (int64 i = place.from + threadIdx.x; i < place.to; i += blockDim.x) {
        float gradient = g[i] * update.scale;
        float mean = m[i] + update.weight1 * (gradient - m[i]);
        float square = update.beta2 * v[i] + update.weight2 * gradient * gradient;
        m[i] = mean;
        v[i] = square;
        p[i] = update.decay * p[i] - update.step_size * (mean / (sqrtf(square) / update.correction + update.epsilon));
    }
}

// The sum of squares of each piece.
extern "C" __global__ void square_sums(const int64 *table, int count, double *sums) {
    Place place = place_of(table, count);
    const float *g = reinterpret_cast<const float *>(table[2 * count + 1 + place.tensor]);
    double sum = 0;
    for (int64 i = place.from + threadIdx.x; i < place.to; i += blockDim.x) sum += double(g[i]) * double(g[i]);
    __shared__ double of_threads[256];
    of_threads[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) of_threads[threadIdx.x] += of_threads[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = of_threads[0];
}
