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

// The value of a map that is nearest to x; see dynamic_map.rs.
__device__ __forceinline__ unsigned char nearest(const float *map, float x) {
    int at = 0;
    for (int step = 128; step > 0; step /= 2)
        if ((map[at + step - 1] + map[at + step]) / 2 < x) at += step;
    return at;
}

// Moments are in 8 bits by blocks of 256 numbers, a thread for each; see dynamic_map.rs.
extern "C" __global__ void adamw8bit(const int64 *table, int count, Update update, const float *maps) {
    Place place = place_of(table, count);
    const int64 *addresses = table + 2 * count + 1 + place.tensor;
    float *p = reinterpret_cast<float *>(addresses[0]);
    const float *g = reinterpret_cast<const float *>(addresses[count]);
    unsigned char *codes_m = reinterpret_cast<unsigned char *>(addresses[2 * count]);
    float *largest_m = reinterpret_cast<float *>(addresses[3 * count]);
    unsigned char *codes_v = reinterpret_cast<unsigned char *>(addresses[4 * count]);
    float *largest_v = reinterpret_cast<float *>(addresses[5 * count]);
    const float *signed_map = maps, *unsigned_map = maps + 256;
    __shared__ float most_m[256], most_v[256];
    for (int64 first = place.from; first < place.to; first += 256) {
        int64 i = first + threadIdx.x, block = first / 256;
        float mean = 0, square = 0;
        if (i < place.to) {
            float gradient = g[i] * update.scale;
            float m = signed_map[codes_m[i]] * largest_m[block], v = unsigned_map[codes_v[i]] * largest_v[block];
            mean = m + update.weight1 * (gradient - m);
            square = update.beta2 * v + update.weight2 * gradient * gradient;
            p[i] = update.decay * p[i] - update.step_size * (mean / (sqrtf(square) / update.correction + update.epsilon));
        }
        most_m[threadIdx.x] = fabsf(mean);
        most_v[threadIdx.x] = square;
        for (int reach = 128; reach > 0; reach /= 2) {
            __syncthreads(); // both halves are written
            if (threadIdx.x < reach) {
                most_m[threadIdx.x] = fmaxf(most_m[threadIdx.x], most_m[threadIdx.x + reach]);
                most_v[threadIdx.x] = fmaxf(most_v[threadIdx.x], most_v[threadIdx.x + reach]);
            }
        }
        __syncthreads(); // the largest of all is there
        float of_m = most_m[0], of_v = most_v[0];
        if (i < place.to) {
            codes_m[i] = nearest(signed_map, fminf(fmaxf(mean * (1 / fmaxf(of_m, 1e-38f)), -1), 1));
            codes_v[i] = nearest(unsigned_map, fminf(square * (1 / fmaxf(of_v, 1e-38f)), 1));
        }
        if (threadIdx.x == 0) {
            largest_m[block] = of_m;
            largest_v[block] = of_v;
        }
        __syncthreads(); // all have read the largest
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
