// passes.h: the passes over all logits of a vocabulary, written once and compiled for each instruction set.
//
// They are branch-free loops that the compiler vectorises, and compute the same bits wherever they are compiled: a
// sum has a fixed order, and products and sums are not fused (-ffp-contract=off). kernels_*.h name each of them
// with the target of their instruction set. Only to collect is beyond compilers: AVX2 and AVX-512 have their own.
#ifndef LLAMA_PASSES_H
#define LLAMA_PASSES_H

#include "../base/util.h" // MIN, MAX

#include <math.h> // INFINITY

#define PASS __attribute__((always_inline)) static inline
#define LOG2_E 1.44269504088896341

enum {
    PASS_BLOCK = 256, // tokens whose mass is summed and kept
    PASS_ROOM = 16,   // values behind its last one that collect may overwrite
};

static inline uint32_t select_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float select_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// ---------------------------------------------------------------------------------------------------------
// The logits

// The smallest and the largest logit, both finite if all are. argmax: the first token that has the largest.
typedef struct {
    float min, max;
    int32_t argmax;
} Extremes;

// Floats as integers in the same order (and back: it is its own inverse), since compilers may not reorder a maximum
// of floats. -0 is +0, and a NaN is beyond the infinity of its sign.
static inline int32_t select_ordered(int32_t bits) {
    return bits < 0 ? INT32_MIN - bits : bits;
}

PASS Extremes pass_extremes(const float *x, int32_t n) {
    int32_t min = INT32_MAX, max = INT32_MIN, block = 0;
    for (int32_t i = 0; i < n; i += PASS_BLOCK) {
        const float *values = x + i; // under -fwrapv, as extensions are built, x[i + j] is not vectorised
        int32_t block_max = INT32_MIN, end = MIN(PASS_BLOCK, n - i);
        for (int32_t j = 0; j < end; j++) {
            int32_t ordered = select_ordered((int32_t)select_bits(values[j]));
            min = MIN(min, ordered);
            block_max = MAX(block_max, ordered);
        }
        if (block_max > max) max = block_max, block = i;
    }
    int32_t argmax = block;
    while (select_ordered((int32_t)select_bits(x[argmax])) != max) argmax++;
    return (Extremes){select_float((uint32_t)select_ordered(min)), select_float((uint32_t)select_ordered(max)),
                      argmax};
}

// ---------------------------------------------------------------------------------------------------------
// Likelihoods, relative to the most likely token: 2^((logit - max) scale)

// 2^y for y <= 0, within 1.5 ulp above 2^-124 and 0 below, -INFINITY included; 2^0 is exactly 1. Adding 1.5 * 2^23
// rounds y to an integer, which stands in the low bits of the sum; what is left, |f| <= 1/2, goes through a minimax
// fit of (2^f - 1) / f (relative error of 2^f 2e-8), in a form whose parts a CPU computes side by side.
#define EXP2_SHIFT 0x1.8p23f

PASS float exp2_rest(float y) {
    return y - (y + EXP2_SHIFT - EXP2_SHIFT);
}

PASS float exp2_of_rest(float f) {
    float f2 = f * f, p = 0x1.5f3ec2p-10f + f * 0x1.41fb74p-13f;
    p = (0x1.c6aee8p-5f + f * 0x1.3b2d4ep-7f) + f2 * p;
    p = (0x1.62e430p-1f + f * 0x1.ebfbdcp-3f) + f2 * p;
    return 1.0f + f * p;
}

PASS float exp2_scaled(float power, float y) {
    uint32_t keep = -(uint32_t)(y > -124.0f);
    return select_float((select_bits(power) + (select_bits(y + EXP2_SHIFT) << 23)) & keep);
}

// Makes a block's logits likelihoods and returns their sum. In two stages, since the steps for one value wait for
// each other longer than a CPU looks ahead; the sum in 16 running sums, so that it can be vectorised.
PASS double block_likelihoods(float x[PASS_BLOCK], float max, float scale) {
    float y[PASS_BLOCK], rest[PASS_BLOCK];
    for (int32_t i = 0; i < PASS_BLOCK; i++) {
        y[i] = (x[i] - max) * scale;
        rest[i] = exp2_rest(y[i]);
    }
    for (int32_t i = 0; i < PASS_BLOCK; i++) x[i] = exp2_scaled(exp2_of_rest(rest[i]), y[i]);
    double sum[16] = {0};
    for (int32_t i = 0; i < PASS_BLOCK; i += 16)
        for (int32_t j = 0; j < 16; j++) sum[j] += (double)x[i + j];
    for (int32_t j = 0; j < 8; j++) sum[j] += sum[j + 8];
    for (int32_t j = 0; j < 4; j++) sum[j] += sum[j + 4];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// Logits to likelihoods. Returns their sum, and in mass those of each PASS_BLOCK tokens. What underflows to 0 is at
// most 2^-124 each: with 2^31 tokens still far below the sum's rounding.
PASS double pass_likelihoods(float *x, double *mass, int32_t n, float max, float scale) {
    double total = 0;
    for (int32_t i = 0; i < n; i += PASS_BLOCK) {
        int32_t count = MIN(PASS_BLOCK, n - i);
        float last[PASS_BLOCK], *block = count == PASS_BLOCK ? x + i : last;
        for (int32_t j = 0; block == last && j < PASS_BLOCK; j++) last[j] = j < count ? x[i + j] : -INFINITY;
        double sum = block_likelihoods(block, max, scale);
        if (block == last) memcpy(x + i, last, (size_t)count * sizeof *x);
        if (mass) mass[i / PASS_BLOCK] = sum;
        total += sum;
    }
    return total;
}

// Those of n likelihoods from low to less than high, in their order. Returns their number; out may be x.
PASS int32_t pass_collect(float *out, const float *x, int32_t n, float low, float high) {
    uint32_t first = select_bits(low), span = select_bits(high) - first; // bits are in the order of the values
    int32_t found = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits = select_bits(x[i]);
        out[found] = x[i];
        found += bits - first < span;
    }
    return found;
}

#endif
