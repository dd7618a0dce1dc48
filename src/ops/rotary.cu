// Rotary embedding: see rotary.rs. A thread takes a pair, or as many neighbouring pairs as 16 bytes have numbers.
#include "cuda/kernel.cuh"

struct Turn {
    int tokens;
    int first;  // tokens that do not turn
    int size;   // features of a token
    int pairs;  // of a row of the tables
    int apart;  // features between the two of a pair
    int rows;   // of the tables, of all samples; a shared table comes back to its start
    float sign;
};

// N pairs, whose numbers lie in two packs: that of all first numbers and that of all others, or, for neighbours, one after the other.
template <typename T, int N, bool NEIGHBOURS> __device__ void wide_pairs(
    const T *x, const float *cos, const float *sin, T *y, unsigned count, const Turn &turn
) {
    unsigned of_token = turn.size / (2 * N), of_pairs = turn.pairs / N;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        unsigned row = i / of_token, at = i - row * of_token, head = at / of_pairs, pair = (at - head * of_pairs) * N;
        int64 one = int64(row) * turn.size + head * 2 * turn.pairs, other = one;
        if (NEIGHBOURS) {
            one += 2 * pair;
            other = one + N;
        } else {
            unsigned group = pair / turn.apart;
            one += pair + group * turn.apart;
            other = one + turn.apart;
        }
        float packs[2][N], c[N], s[N];
        load<T, N>(x + one, packs[0]);
        load<T, N>(x + other, packs[1]);
        unsigned sample = row / turn.tokens, token = row - sample * turn.tokens;
        if (token >= turn.first) {
            int64 angle = int64((sample * (turn.tokens - turn.first) + token - turn.first) % turn.rows) * turn.pairs + pair;
            load_table<N>(cos + angle, c);
            load_table<N>(sin + angle, s);
#pragma unroll
            for (int j = 0; j < N; j++) {
                float &a = NEIGHBOURS ? packs[2 * j / N][2 * j % N] : packs[0][j];
                float &b = NEIGHBOURS ? packs[2 * j / N][2 * j % N + 1] : packs[1][j];
                float first = a, second = b, sine = s[j] * turn.sign;
                a = first * c[j] - second * sine;
                b = second * c[j] + first * sine;
            }
        }
        store<T, N>(packs[0], y + one);
        store<T, N>(packs[1], y + other);
    }
}

#define ROTARY(T, NAME)                                                                                                 \
    extern "C" __global__ void rotary_##NAME(                                                                           \
        const T *x, const float *cos, const float *sin, T *y, int64 count, Turn turn                                    \
    ) {                                                                                                                 \
        int64 step = int64(gridDim.x) * blockDim.x;                                                                     \
        int of_token = turn.size / 2;                                                                                   \
        for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {                            \
            int64 row = i / of_token;                                                                                   \
            int at = i % of_token, pair = at % turn.pairs, head = at / turn.pairs;                                      \
            int64 start = row * turn.size + int64(head) * 2 * turn.pairs;                                               \
            int64 one = start + pair / turn.apart * 2 * turn.apart + pair % turn.apart;                                 \
            int64 other = one + turn.apart;                                                                             \
            int64 sample = row / turn.tokens;                                                                           \
            int token = row % turn.tokens;                                                                              \
            if (token < turn.first) {                                                                                   \
                y[one] = x[one];                                                                                        \
                y[other] = x[other];                                                                                    \
                continue;                                                                                               \
            }                                                                                                           \
            int64 angle = (sample * (turn.tokens - turn.first) + token - turn.first) % turn.rows * turn.pairs + pair;   \
            float c = cos[angle], s = sin[angle] * turn.sign, a = wide(x[one]), b = wide(x[other]);                     \
            y[one] = stored<T>(a * c - b * s);                                                                          \
            y[other] = stored<T>(b * c + a * s);                                                                        \
        }                                                                                                               \
    }                                                                                                                   \
    extern "C" __global__ void rotary_wide_##NAME(                                                                      \
        const T *x, const float *cos, const float *sin, T *y, int64 count, Turn turn                                    \
    ) {                                                                                                                 \
        if (turn.apart == 1)                                                                                            \
            wide_pairs<T, Wide<T>::count, true>(x, cos, sin, y, unsigned(count), turn);                                 \
        else                                                                                                            \
            wide_pairs<T, Wide<T>::count, false>(x, cos, sin, y, unsigned(count), turn);                                \
    }

FOR_BOTH_TYPES(ROTARY)
