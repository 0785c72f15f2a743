// passes.h: the passes over all logits of a vocabulary, written once and compiled for each instruction set.
//
// They are branch-free loops that the compiler vectorises, and compute the same bits wherever they are compiled: a
// sum has a fixed order, and products and sums are not fused (-ffp-contract=off). kernels_*.h name each of them
// with the target of their instruction set.
#ifndef LLAMA_PASSES_H
#define LLAMA_PASSES_H

#include "util.h" // MIN, MAX

#include <float.h> // FLT_MAX
#include <math.h>  // isfinite

#define PASS __attribute__((always_inline)) static inline
#define LOG2_E 1.44269504088896341

enum {
    PASS_BLOCK = 64,            // tokens whose mass is summed and kept
    PASS_FLOORS = 4,            // likelihoods at which pass_masses_above looks
    PASS_INFINITE = 0x7f800000, // bits of infinity; those of a NaN are larger
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

// Floats as integers in the same order (and back: it is its own inverse), since compilers may not reorder a maximum
// of floats. -0 is below +0.
static inline int32_t select_ordered(int32_t bits) {
    return bits ^ (bits >> 31 & INT32_MAX);
}

// Likelihood number j, 2^-(3 (j + 1)).
PASS float pass_floor(int j) {
    return 1 / (float)(1 << 3 * (j + 1));
}

// The largest of n logits.
PASS float pass_max(const float *x, int32_t n) {
    int32_t max = INT32_MIN;
    for (int32_t i = 0; i < n; i++) max = MAX(max, select_ordered((int32_t)select_bits(x[i])));
    return select_float((uint32_t)select_ordered(max));
}

// Whether all n logits are finite numbers.
PASS bool pass_finite(const float *x, int32_t n) {
    int32_t found = 0;
    for (int32_t i = 0; i < n; i++) found |= (int32_t)(select_bits(x[i]) & INT32_MAX) >= PASS_INFINITE;
    return !found;
}

// 2^y for y <= 0, within 1.5 ulp above 2^-124 and 0 below, -INFINITY included; 2^0 is exactly 1. Adding 1.5 * 2^23
// rounds y to an integer, which stands in the low bits of t; what is left, |f| <= 1/2, goes through a minimax fit
// of (2^f - 1) / f (relative error of 2^f 2e-8), in a form whose parts a CPU computes side by side.
PASS float select_exp2(float y) {
    const float shift = 0x1.8p23f;
    float t = y + shift, f = y - (t - shift), f2 = f * f;
    float p = 0x1.5f3ec2p-10f + f * 0x1.41fb74p-13f;
    p = (0x1.c6aee8p-5f + f * 0x1.3b2d4ep-7f) + f2 * p;
    p = (0x1.62e430p-1f + f * 0x1.ebfbdcp-3f) + f2 * p;
    uint32_t e = select_bits(1.0f + f * p) + (select_bits(t) << 23), keep = -(uint32_t)(y > -124.0f);
    return select_float(e & keep);
}

// The sum of n <= PASS_BLOCK likelihoods, in four running sums so that it can be vectorised.
PASS double block_sum(const float *x, int32_t n) {
    double sum[4] = {0};
    int32_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int32_t j = 0; j < 4; j++) sum[j] += (double)x[i + j];
    for (; i < n; i++) sum[0] += (double)x[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The mass of the tokens that are at least 2^-3, 2^-6, 2^-9, 2^-12 times as likely as the most likely one, roughly:
// summed in floats.
PASS void pass_masses_above(const float *x, int32_t n, float above[PASS_FLOORS]) {
    float sum[PASS_FLOORS][16] = {{0}};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < PASS_FLOORS; j++)
            for (int l = 0; l < 16; l++) sum[j][l] += x[i + l] >= pass_floor(j) ? x[i + l] : 0;
    for (int j = 0; j < PASS_FLOORS; j++) {
        above[j] = 0;
        for (int l = 0; l < 16; l++) above[j] += sum[j][l];
        for (int32_t k = i; k < n; k++) above[j] += x[k] >= pass_floor(j) ? x[k] : 0;
    }
}

// Logits x to likelihoods 2^((x - max) scale), relative to the most likely token, whose is 1. Returns their sum,
// and in mass those of each PASS_BLOCK tokens. What underflows to 0 is at most 2^-124 each: with 2^31 tokens still
// far below the sum's rounding.
PASS double pass_likelihoods(float *x, double *mass, int32_t n, float max, float scale) {
    for (int32_t i = 0; i < n; i++) x[i] = select_exp2((x[i] - max) * scale);
    double total = 0;
    for (int32_t i = 0; i < n; i += PASS_BLOCK) {
        double sum = block_sum(x + i, MIN(PASS_BLOCK, n - i));
        if (mass) mass[i / PASS_BLOCK] = sum;
        total += sum;
    }
    return total;
}

#endif
