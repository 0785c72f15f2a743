// vector_neon.h: what all kernels for ARM, 4 lanes, are made of: masks, sums over lanes, exp.
#ifndef LLAMA_VECTOR_NEON_H
#define LLAMA_VECTOR_NEON_H

#include "kernels.h"    // EACH, EXP_TERMS
#include "tiles_neon.h" // NEON_INLINE

#include <arm_neon.h> // v*q_f32

// All ones in the first n lanes, in all 4 for n >= 4.
NEON_INLINE uint32x4_t mask_neon(int64_t n) {
    const int32x4_t lanes = {0, 1, 2, 3};
    return vcltq_s32(lanes, vdupq_n_s32((int)MIN(n, 4)));
}

// The first n values, all 4 for n >= 4, and zeros. There are no masked loads, and what lies behind the values may
// not be there.
NEON_INLINE float32x4_t load_neon(const float *x, int64_t n) {
    if (n >= 4) return vld1q_f32(x);
    float32x4_t lanes = vdupq_n_f32(0);
    if (n > 0) lanes = vld1q_lane_f32(x, lanes, 0);
    if (n > 1) lanes = vld1q_lane_f32(x + 1, lanes, 1);
    if (n > 2) lanes = vld1q_lane_f32(x + 2, lanes, 2);
    return lanes;
}

NEON_INLINE float reduce_add_neon(float32x4_t x) {
    float32x4_t pairs = vpaddq_f32(x, x);
    return vpadds_f32(vget_low_f32(pairs));
}

NEON_INLINE float32x4_t exp_neon(float32x4_t x) {
    x = vmaxq_f32(vdupq_n_f32(EXP_MIN), x); // where one is NaN so is the result
    x = vminq_f32(vdupq_n_f32(EXP_MAX), x);
    float32x4_t i = vrndnq_f32(vmulq_n_f32(x, EXP_LOG2E));
    float32x4_t f = vfmsq_f32(x, i, vdupq_n_f32(EXP_LN2_HIGH));
    f = vfmsq_f32(f, i, vdupq_n_f32(EXP_LN2_LOW));
    float32x4_t p = vdupq_n_f32(EXP_TERMS[0]);
    EACH (t, EXP_DEGREE) p = vfmaq_f32(vdupq_n_f32(EXP_TERMS[t + 1]), p, f);
    int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(i), vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(exponent));
}

#endif
