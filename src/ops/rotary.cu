// Rotary embedding: see rotary.rs. A thread takes a pair.
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
    }

FOR_BOTH_TYPES(ROTARY)
