// pack_group.h: the weights of a group as int8 and int4: which scale, which whole numbers, what that costs.
//
// 32 weights of a row share a scale, which is rounded to half precision first; a weight becomes the whole number
// nearest to weight / scale. int8: scale = max |w| / 127. int4: the largest weight L is one of 32, and with 16
// steps it is not always worth its place, so whole numbers q by the scale L / d are tried for several d. For given
// q the scale of the least squares is sum(q w) / sum(q q), and leaves an error of sum(w w) - sum(q w)^2 / sum(q q):
// the q with the largest quotient give the scale.
//
// As those of passes.h these are loops that the compiler vectorises, compiled for each instruction set, with the
// same bits from each. They work on 16 rows side by side, in memory as in the tile.
#ifndef LLAMA_PACK_GROUP_H
#define LLAMA_PACK_GROUP_H

#include "../kernels/passes.h" // PASS, select_bits
#include "tiles.h"             // TILE_ROWS, TILE_GROUP, group_scales, group_weights

// The d of int4. The sign turns the largest weight to the side of -8, which reaches a step further than 7. Twelve
// that together leave the least error of real and of normal weights: 0.02 % more than fifty of all kinds do.
enum { PACK_TRIES = 12, PACK_EXPONENT = 0x7f800000 }; // the bits of a float's exponent
enum { PACK_VALUES = TILE_ROWS * TILE_GROUP };
static const float PACK_DIVISORS[PACK_TRIES] = {-9.1f, -8.8f, -8.6f, -8.4f, -8.2f, -8.1f,
                                                -7.9f, -7.7f, -7.3f, -7.1f, -6.8f, -6.2f};

typedef float PackLanes[TILE_ROWS];

// A group of a tile on its way.
typedef struct {
    PackLanes values[TILE_GROUP]; // zeros where the matrix has none
    PackLanes quants[TILE_GROUP]; // whole numbers
    PackLanes largest;            // the first value of the largest magnitude
    PackLanes scales;             // as half precision holds them
} PackGroup;

// ---------------------------------------------------------------------------------------------------------
// Rounding

// The whole number nearest to x, to even among two, from low to high, for |x| < 2^22. Adding 1.5 x 2^23 rounds, and
// the bits of the sum are in the order of the numbers: compilers vectorise the minimum of integers, not of floats.
PASS float nearest_within(float x, float low, float high) {
    const float shift = 0x1.8p23f;
    int32_t bits = (int32_t)select_bits(x + shift);
    bits = MIN(bits, (int32_t)select_bits(high + shift));
    bits = MAX(bits, (int32_t)select_bits(low + shift));
    return select_float((uint32_t)bits) - shift;
}

// What half precision has nearest to x, to even among two, for |x| <= 65504: 11 bits, and none below 2^-24.
PASS float nearest_half(float x) {
    float power = select_float(select_bits(x) & PACK_EXPONENT); // of two, in x
    float shift = MAX(power, 0x1p-14f) * 0x1.8p13f;
    return (x + shift) - shift;
}

// The bits of a number that half precision holds. Those below 2^-14 are multiples of 2^-24.
PASS uint16_t half_bits(float x) {
    uint32_t sign = select_bits(x) >> 16 & 0x8000, magnitude = select_bits(x) & INT32_MAX;
    uint32_t subnormal = (uint32_t)(MIN(select_float(magnitude), 0x1p-14f) * 0x1p24f);
    uint32_t normal = (magnitude >> 13) - (112 << 10);
    return (uint16_t)(sign | (magnitude < 113 << 23 ? subnormal : normal));
}

// 1 / x, 0 where x is so small that no half can be the scale.
PASS float scale_inverse(float x) {
    float inverse = 1 / x;
    return fabsf(x) < 0x1p-24f ? 0 : inverse;
}

// ---------------------------------------------------------------------------------------------------------
// A group. rows, cols: those that the matrix has of it.

PASS float strip_value(const LlamaStrip *strip, int64_t at, const int32_t type) {
    if (type == LLAMA_FP32) return ((const float *)strip->values)[at];
    uint16_t half = ((const uint16_t *)strip->values)[at];
    return type == LLAMA_BF16 ? bf16_to_float(half) : half_to_float(half);
}

typedef union {
    uint16_t halves[PACK_VALUES];
    uint32_t words[PACK_VALUES];
} PackValues;

// The perfect shuffle: the two halves of all values, in turn. Four times it makes 32 columns of 16 rows out of 16
// rows of 32, which compilers do with a few instructions for 16 values at once.
PASS void pack_shuffle(PackValues *out, const PackValues *in, const int32_t type) {
    const int32_t half = PACK_VALUES / 2;
    if (type == LLAMA_FP32)
        for (int32_t i = 0; i < half; i++) {
            out->words[2 * i] = in->words[i];
            out->words[2 * i + 1] = in->words[i + half];
        }
    else
        for (int32_t i = 0; i < half; i++) {
            out->halves[2 * i] = in->halves[i];
            out->halves[2 * i + 1] = in->halves[i + half];
        }
}

PASS float pack_value(const PackValues *values, int32_t i, const int32_t type) {
    if (type == LLAMA_FP32) return select_float(values->words[i]);
    return type == LLAMA_BF16 ? bf16_to_float(values->halves[i]) : half_to_float(values->halves[i]);
}

PASS void pack_load(PackGroup *g, const LlamaStrip *strip, int64_t at, int32_t rows, int32_t cols,
                    const int32_t type) {
    const size_t bytes = type == LLAMA_FP32 ? 4 : 2, row_bytes = TILE_GROUP * bytes;
    const uint8_t *from = (const uint8_t *)strip->values + (uint64_t)at * bytes;
    const uint64_t stride = (uint64_t)strip->cols * bytes;
    PackValues x, y;
    uint8_t *to = (uint8_t *)&x;
    if (rows == TILE_ROWS && cols == TILE_GROUP) {
        for (size_t r = 0; r < TILE_ROWS; r++) memcpy(to + r * row_bytes, from + r * stride, row_bytes);
    } else {
        memset(&x, 0, sizeof x);
        for (size_t r = 0; r < (size_t)rows; r++)
            memcpy(to + r * row_bytes, from + r * stride, (size_t)cols * bytes);
    }
    pack_shuffle(&y, &x, type);
    pack_shuffle(&x, &y, type);
    pack_shuffle(&y, &x, type);
    pack_shuffle(&x, &y, type);
    for (int32_t k = 0; k < TILE_GROUP; k++)
        for (int32_t r = 0; r < TILE_ROWS; r++) g->values[k][r] = pack_value(&x, k * TILE_ROWS + r, type);
}

// Magnitudes are compared by their bits: those of a NaN are the largest.
PASS void pack_largest(PackGroup *g) {
    for (int32_t r = 0; r < TILE_ROWS; r++) {
        int32_t largest = 0;
        for (int32_t k = 0; k < TILE_GROUP; k++) {
            int32_t bits = (int32_t)select_bits(g->values[k][r]);
            largest = (bits & INT32_MAX) > (largest & INT32_MAX) ? bits : largest;
        }
        g->largest[r] = select_float((uint32_t)largest);
    }
}

PASS void pack_scales_int8(PackGroup *g) {
    for (int32_t r = 0; r < TILE_ROWS; r++) g->scales[r] = nearest_half(fabsf(g->largest[r]) / 127);
}

// The sums of q w and of q q, where inverse: (16) x divisor makes whole numbers q of values w.
PASS void pack_try(const PackGroup *g, const PackLanes inverse, float divisor, PackLanes qw, PackLanes qq) {
    for (int32_t r = 0; r < TILE_ROWS; r++) {
        float factor = inverse[r] * divisor, sum_qw = 0, sum_qq = 0;
        for (int32_t k = 0; k < TILE_GROUP; k++) {
            float w = g->values[k][r], q = nearest_within(w * factor, -8, 7);
            sum_qw += q * w;
            sum_qq += q * q;
        }
        qw[r] = sum_qw;
        qq[r] = sum_qq;
    }
}

PASS void pack_scales_int4(PackGroup *g) {
    PackLanes inverse, qw[PACK_TRIES], qq[PACK_TRIES];
    for (int32_t r = 0; r < TILE_ROWS; r++) inverse[r] = scale_inverse(g->largest[r]);
    for (int32_t i = 0; i < PACK_TRIES; i++) pack_try(g, inverse, PACK_DIVISORS[i], qw[i], qq[i]);
    for (int32_t r = 0; r < TILE_ROWS; r++) {
        float best_qw = 0, best_qq = 1;
        for (int32_t i = 0; i < PACK_TRIES; i++) {
            bool better = qw[i][r] * qw[i][r] * best_qq > best_qw * best_qw * qq[i][r];
            best_qw = better ? qw[i][r] : best_qw;
            best_qq = better ? qq[i][r] : best_qq;
        }
        g->scales[r] = nearest_half(best_qw / best_qq);
    }
}

PASS void pack_quantise(PackGroup *g, float low, float high) {
    PackLanes inverse;
    for (int32_t r = 0; r < TILE_ROWS; r++) inverse[r] = scale_inverse(g->scales[r]);
    for (int32_t k = 0; k < TILE_GROUP; k++)
        for (int32_t r = 0; r < TILE_ROWS; r++)
            g->quants[k][r] = nearest_within(g->values[k][r] * inverse[r], low, high);
}

PASS uint32_t quant_bits(const PackGroup *g, int32_t k, int32_t r, const int32_t type) {
    return (uint32_t)((int32_t)g->quants[k][r] + tile_zero(type));
}

PASS void pack_store(const PackGroup *g, uint8_t *tile, int32_t group, const int32_t type) {
    uint8_t *scales = (uint8_t *)group_scales(tile, group, type),
            *weights = (uint8_t *)group_weights(tile, group, type);
    uint16_t halves[TILE_ROWS];
    for (int32_t r = 0; r < TILE_ROWS; r++) halves[r] = half_bits(g->scales[r]);
    memcpy(scales, halves, sizeof halves);
    for (int32_t c = 0; c < tile_group_bytes(type) / 64; c++) {
        uint32_t bytes[TILE_ROWS] = {0}; // 4 of each row
        for (int32_t i = 0; i < 4; i++)
            for (int32_t r = 0; r < TILE_ROWS; r++) {
                int32_t k = type == TILES_INT8 ? 4 * c + i : 8 * c + i;
                uint32_t byte = quant_bits(g, k, r, type);
                if (type == TILES_INT4) byte |= quant_bits(g, k + 4, r, type) << 4;
                bytes[r] |= byte << 8 * i;
            }
        memcpy(weights + c * 64, bytes, sizeof bytes);
    }
}

// The upper half of a float, rounded to the nearest, to even among two.
PASS uint32_t nearest_bf16(float x) {
    uint32_t bits = select_bits(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Stores columns [begin, begin + cols) of a tile of floats. What they are rounded to counts as quants, of scale 1.
PASS void pack_store_floats(PackGroup *g, uint8_t *tile, int32_t begin, int32_t cols, const int32_t type) {
    for (int32_t r = 0; r < TILE_ROWS; r++) g->scales[r] = 1;
    memcpy(g->quants, g->values, sizeof g->quants);
    if (type == TILES_FP32) {
        memcpy(tile + (size_t)begin * sizeof(PackLanes), g->values, (size_t)cols * sizeof(PackLanes));
        return;
    }
    for (int32_t k = 0; k < cols; k += 2) {
        uint32_t pairs[TILE_ROWS];
        for (int32_t r = 0; r < TILE_ROWS; r++) {
            uint32_t low = nearest_bf16(g->values[k][r]), high = nearest_bf16(g->values[k + 1][r]);
            g->quants[k][r] = select_float(low << 16);
            g->quants[k + 1][r] = select_float(high << 16);
            pairs[r] = low | high << 16;
        }
        memcpy(tile + (int64_t)(begin + k) / 2 * (int64_t)sizeof pairs, pairs, sizeof pairs);
    }
}

// squares, error_squares: (16)
PASS void pack_count(const PackGroup *g, double *squares, double *error_squares) {
    for (int32_t r = 0; r < TILE_ROWS; r++) {
        float sum = 0, error_sum = 0;
        for (int32_t k = 0; k < TILE_GROUP; k++) {
            float w = g->values[k][r], error = g->quants[k][r] * g->scales[r] - w;
            sum += w * w;
            error_sum += error * error;
        }
        squares[r] += (double)sum;
        error_squares[r] += (double)error_sum;
    }
}

#endif
