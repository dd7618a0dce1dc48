// Numbers of matrices in few bits, decoded: see the formats beside this file. Products and sums are rounded one by one, so
// that the numbers are the CPU's bit for bit.
#include "../../ops/cuda/kernel.cuh"

typedef unsigned char byte;

__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float minus(float a, float b) { return __fsub_rn(a, b); }

// The f16 whose bytes these are.
__device__ __forceinline__ float half_at(const byte *at) {
    unsigned bits = at[0] | at[1] << 8;
    unsigned exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    float size = exponent == 0 ? times(float(fraction), 5.9604644775390625e-08f) // 2^-24
                               : __uint_as_float((exponent == 31 ? 0xff : exponent + 112) << 23 | fraction << 13);
    return bits >> 15 ? -size : size;
}

// Writes the numbers `first` to `first` + `count` of a matrix, N at a time, which share a block of the format.
template <typename T, int N, typename Form>
__device__ __forceinline__ void decode(T *y, int64 first, int64 count, const Form &form) {
    int64 step = int64(gridDim.x) * blockDim.x * N;
    for (int64 i = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < count; i += step) {
        auto block = form.block(first + i);
        float numbers[N];
#pragma unroll
        for (int k = 0; k < N; k++) numbers[k] = block.number(k);
        store<T, N>(numbers, y + i);
    }
}

template <typename T, typename Form>
__device__ __forceinline__ void decode_all(T *y, int64 first, int64 count, int aligned, const Form &form) {
    if (aligned) decode<T, Wide<T>::count>(y, first, count, form);
    else decode<T, 1>(y, first, count, form);
}

// A code a byte: number (code) - zero, times a scale for each `columns` numbers of `rows` rows, times a factor.
struct Bytes {
    const byte *codes;
    const float *table;       // a number for each code
    const float *scales;      // or null
    const signed char *zeros; // the code of 0 beside each scale, or null
    int64 features;
    int64 rows, columns;
    float factor;

    struct Block {
        const byte *codes;
        const float *table;
        float zero, scale, factor;

        __device__ __forceinline__ float number(int k) const {
            return times(times(minus(table[codes[k]], zero), scale), factor);
        }
    };

    __device__ __forceinline__ Block block(int64 at) const {
        Block block = {codes + at, table, 0, 1, factor};
        if (scales) {
            int64 row = at / features, column = at - row * features;
            int64 scale = row / rows * (features / columns) + column / columns;
            block.scale = scales[scale];
            if (zeros) block.zero = zeros[scale];
        }
        return block;
    }
};

#define DECODE_BYTES(T, NAME)                                                                                           \
    extern "C" __global__ void decode_bytes_##NAME(T *y, int64 first, int64 count, int aligned, const byte *codes,     \
                                                   const float *table, const float *scales, const byte *zeros,         \
                                                   int64 features, int64 rows, int64 columns, float factor) {          \
        Bytes form = {codes, table, scales, (const signed char *)zeros, features, rows, columns, factor};              \
        decode_all(y, first, count, aligned, form);                                                                     \
    }

FOR_BOTH_TYPES(DECODE_BYTES)

// Two codes a byte, the first in the upper half; the largest magnitude of each block, maybe in 8 bits itself.
struct FourBit {
    const byte *codes;
    const float *map;        // a number for each code
    const float *absmax;     // of blocks, or of nested blocks
    const byte *nested;      // codes of the blocks' magnitudes, or null
    const float *nested_map; // a number for each of them
    int size, nested_size;
    float offset;

    struct Block {
        const byte *codes;
        const float *map;
        int64 at;
        float absmax;

        __device__ __forceinline__ float number(int k) const {
            byte pair = codes[(at + k) / 2];
            return times(map[(at + k) % 2 ? pair & 0xf : pair >> 4], absmax);
        }
    };

    __device__ __forceinline__ Block block(int64 at) const {
        int64 index = at / size;
        float largest = nested ? plus(times(nested_map[nested[index]], absmax[index / nested_size]), offset) : absmax[index];
        return {codes, map, at, largest};
    }
};

#define DECODE_FOUR_BIT(T, NAME)                                                                                        \
    extern "C" __global__ void decode_four_bit_##NAME(T *y, int64 first, int64 count, int aligned, const byte *codes,  \
                                                      const float *map, const float *absmax, const byte *nested,       \
                                                      const float *nested_map, int size, int nested_size,              \
                                                      float offset) {                                                   \
        FourBit form = {codes, map, absmax, nested, nested_map, size, nested_size, offset};                             \
        decode_all(y, first, count, aligned, form);                                                                     \
    }

FOR_BOTH_TYPES(DECODE_FOUR_BIT)

// Blocks of GGML: see ggml/legacy.rs and ggml/k_quants.rs. `Kind` has a block's numbers and bytes, and number i of it.
template <typename Kind> struct Ggml {
    const byte *blocks;

    struct Block {
        Kind kind;
        int first;

        __device__ __forceinline__ float number(int k) const { return kind.number(first + k); }
    };

    __device__ __forceinline__ Block block(int64 at) const {
        int64 index = at / Kind::numbers;
        return {Kind(blocks + index * Kind::bytes), int(at - index * Kind::numbers)};
    }
};

struct F32 {
    static const int numbers = 1, bytes = 4;
    const byte *at;
    __device__ F32(const byte *at) : at(at) {}
    __device__ float number(int i) const {
        const byte *b = at + 4 * i;
        return __uint_as_float(b[0] | b[1] << 8 | b[2] << 16 | unsigned(b[3]) << 24);
    }
};

struct F16 {
    static const int numbers = 1, bytes = 2;
    const byte *at;
    __device__ F16(const byte *at) : at(at) {}
    __device__ float number(int i) const { return half_at(at + 2 * i); }
};

struct BF16 {
    static const int numbers = 1, bytes = 2;
    const byte *at;
    __device__ BF16(const byte *at) : at(at) {}
    __device__ float number(int i) const { return __uint_as_float(at[2 * i] << 16 | unsigned(at[2 * i + 1]) << 24); }
};

// Pairs of 4 bits, the upper halves 16 numbers behind the lower ones, maybe with fifth bits.
__device__ __forceinline__ float pair_code(const byte *pairs, int i) {
    byte pair = pairs[i % 16];
    return float(i < 16 ? pair & 0xf : pair >> 4);
}
__device__ __forceinline__ float fifth_bit(const byte *bits, int i) { return float((bits[i / 8] >> i % 8 & 1) << 4); }

struct Q8_0 {
    static const int numbers = 32, bytes = 34;
    const byte *at;
    float d;
    __device__ Q8_0(const byte *at) : at(at + 2), d(half_at(at)) {}
    __device__ float number(int i) const { return times(float((signed char)at[i]), d); }
};

struct Q4_0 {
    static const int numbers = 32, bytes = 18;
    const byte *at;
    float d;
    __device__ Q4_0(const byte *at) : at(at + 2), d(half_at(at)) {}
    __device__ float number(int i) const { return times(d, minus(pair_code(at, i), 8)); }
};

struct Q4_1 {
    static const int numbers = 32, bytes = 20;
    const byte *at;
    float d, m;
    __device__ Q4_1(const byte *at) : at(at + 4), d(half_at(at)), m(half_at(at + 2)) {}
    __device__ float number(int i) const { return plus(times(d, pair_code(at, i)), m); }
};

struct Q5_0 {
    static const int numbers = 32, bytes = 22;
    const byte *at;
    float d;
    __device__ Q5_0(const byte *at) : at(at), d(half_at(at)) {}
    __device__ float number(int i) const {
        return times(d, minus(plus(pair_code(at + 6, i), fifth_bit(at + 2, i)), 16));
    }
};

struct Q5_1 {
    static const int numbers = 32, bytes = 24;
    const byte *at;
    float d, m;
    __device__ Q5_1(const byte *at) : at(at), d(half_at(at)), m(half_at(at + 2)) {}
    __device__ float number(int i) const {
        return plus(times(d, plus(pair_code(at + 8, i), fifth_bit(at + 4, i))), m);
    }
};

// Number i of 256 lies in row i / 32; its code of 2 bits in a byte of four rows.
__device__ __forceinline__ int two_bits(const byte *codes, int i) {
    return codes[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
}

struct Q2K {
    static const int numbers = 256, bytes = 84;
    const byte *at;
    float d, e;
    __device__ Q2K(const byte *at) : at(at), d(half_at(at + 80)), e(half_at(at + 82)) {}
    __device__ float number(int i) const {
        byte scales = at[i / 16];
        return minus(times(times(d, float(scales & 0xf)), float(two_bits(at + 16, i))), times(e, float(scales >> 4)));
    }
};

struct Q3K {
    static const int numbers = 256, bytes = 110;
    const byte *at;
    float d;
    __device__ Q3K(const byte *at) : at(at), d(half_at(at + 108)) {}
    __device__ float number(int i) const {
        const byte *packed = at + 96;
        int part = i / 16;
        int scale = (packed[part % 8] >> 4 * (part / 8) & 0xf) | (packed[8 + part % 4] >> 2 * (part / 4) & 3) << 4;
        int less = at[i % 32] >> i / 32 & 1 ? 0 : 4;
        return times(times(d, float(scale - 32)), float(two_bits(at + 32, i) - less));
    }
};

// d s q - e t of Q4_K and Q5_K, for a code of row i / 32.
__device__ __forceinline__ float by_pairs(const byte *packed, float d, float e, int i, int code) {
    int row = i / 32, scale, least;
    if (row < 4) {
        scale = packed[row] & 0x3f;
        least = packed[row + 4] & 0x3f;
    } else {
        scale = (packed[row + 4] & 0xf) | (packed[row - 4] >> 2 & 0x30);
        least = packed[row + 4] >> 4 | (packed[row] >> 2 & 0x30);
    }
    return minus(times(times(d, float(scale)), float(code)), times(e, float(least)));
}

// The code of 4 bits of number i: 32 bytes have two rows.
__device__ __forceinline__ int four_bits(const byte *codes, int i) {
    return codes[i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 0xf;
}

struct Q4K {
    static const int numbers = 256, bytes = 144;
    const byte *at;
    float d, e;
    __device__ Q4K(const byte *at) : at(at), d(half_at(at)), e(half_at(at + 2)) {}
    __device__ float number(int i) const { return by_pairs(at + 4, d, e, i, four_bits(at + 16, i)); }
};

struct Q5K {
    static const int numbers = 256, bytes = 176;
    const byte *at;
    float d, e;
    __device__ Q5K(const byte *at) : at(at), d(half_at(at)), e(half_at(at + 2)) {}
    __device__ float number(int i) const {
        int fifth = (at[16 + i % 32] >> i / 32 & 1) << 4;
        return by_pairs(at + 4, d, e, i, four_bits(at + 48, i) | fifth);
    }
};

struct Q6K {
    static const int numbers = 256, bytes = 210;
    const byte *at;
    float d;
    __device__ Q6K(const byte *at) : at(at), d(half_at(at + 208)) {}
    __device__ float number(int i) const {
        int row = i / 32;
        int lower = at[row / 4 * 64 + row % 2 * 32 + i % 32] >> row % 4 / 2 * 4 & 0xf;
        int code = lower | two_bits(at + 128, i) << 4;
        return times(times(d, float((signed char)at[192 + i / 16])), float(code - 32));
    }
};

#define DECODE_GGML(KIND, NAME)                                                                                         \
    extern "C" __global__ void decode_##NAME##_f32(float *y, int64 first, int64 count, int aligned,                    \
                                                   const byte *blocks) {                                                \
        decode_all(y, first, count, aligned, Ggml<KIND>{blocks});                                                       \
    }                                                                                                                   \
    extern "C" __global__ void decode_##NAME##_bf16(bf16 *y, int64 first, int64 count, int aligned,                    \
                                                    const byte *blocks) {                                               \
        decode_all(y, first, count, aligned, Ggml<KIND>{blocks});                                                       \
    }

DECODE_GGML(F32, f32)
DECODE_GGML(F16, f16)
DECODE_GGML(BF16, bf16)
DECODE_GGML(Q8_0, q8_0)
DECODE_GGML(Q4_0, q4_0)
DECODE_GGML(Q4_1, q4_1)
DECODE_GGML(Q5_0, q5_0)
DECODE_GGML(Q5_1, q5_1)
DECODE_GGML(Q2K, q2_k)
DECODE_GGML(Q3K, q3_k)
DECODE_GGML(Q4K, q4_k)
DECODE_GGML(Q5K, q5_k)
DECODE_GGML(Q6K, q6_k)
