// attention_neon.h: attention for ARM, 4 lanes. Mirrors attention_avx2.h.
#ifndef LLAMA_ATTENTION_NEON_H
#define LLAMA_ATTENTION_NEON_H

#include "kernels.h"     // Query
#include "vector_neon.h" // mask_neon, exp_neon

// Scores of n positions to probabilities, without the division by their sum, which is returned.
NEON_INLINE float softmax_neon(float *scores, int32_t n, float max) {
    float32x4_t sum = vdupq_n_f32(0);
    for (int32_t t = 0; t < n; t += 4) {
        float32x4_t e = exp_neon(vsubq_f32(load_neon(scores + t, n - t), vdupq_n_f32(max)));
        uint32x4_t masked = vandq_u32(vreinterpretq_u32_f32(e), mask_neon(n - t));
        sum = vaddq_f32(sum, vreinterpretq_f32_u32(masked));
        store_neon(scores + t, e, n - t);
    }
    return reduce_add_neon(sum);
}

// Scores of c queries against the keys of all positions up to the last one's, and each one's maximum.
NEON_INLINE void scores_neon(const Query *queries, float *max, const float *keys, int32_t head_dim, const int c) {
    const float scale = 1 / sqrtf((float)head_dim);
    int32_t n = most_positions(queries, c);
    float32x4_t most[2];
    EACH (i, c) most[i] = vdupq_n_f32(-INFINITY);
    for (int32_t t = 0; t < n; t += KEY_BLOCK, keys += KEY_BLOCK * head_dim) {
        float32x4_t even[2][4], odd[2][4]; // head_dim is even
        EACH (i, c)
            EACH (j, 4) even[i][j] = odd[i][j] = vdupq_n_f32(0);
        for (int32_t d = 0; d < head_dim; d += 2)
            EACH (j, 4) {
                float32x4_t first = vld1q_f32(keys + d * KEY_BLOCK + 4 * j);
                float32x4_t second = vld1q_f32(keys + (d + 1) * KEY_BLOCK + 4 * j);
                EACH (i, c) even[i][j] = vfmaq_n_f32(even[i][j], first, queries[i].q[d]);
                EACH (i, c) odd[i][j] = vfmaq_n_f32(odd[i][j], second, queries[i].q[d + 1]);
            }
        EACH (i, c)
            EACH (j, 4) {
                float32x4_t score = vmulq_n_f32(vaddq_f32(even[i][j], odd[i][j]), scale);
                vst1q_f32(queries[i].scores + t + 4 * j, score);
                most[i] = vbslq_f32(mask_neon(queries[i].n - t - 4 * j), vmaxq_f32(most[i], score), most[i]);
            }
    }
    EACH (i, c) max[i] = vmaxvq_f32(most[i]);
}

// Adds `steps` positions from t on to the sums of one query, of positions 0, 1, 2, 3 modulo 4; or all to the first.
// v vectors of `lanes` values each.
NEON_INLINE void mix_neon(float32x4_t sum[4][4], const Query *query, const float *values, int32_t t,
                          int32_t head_dim, int64_t lanes, const int v, const int steps) {
    EACH (j, steps) {
        const float *row = values + (int64_t)(t + j) * head_dim;
        EACH (k, v) sum[j][k] = vfmaq_n_f32(sum[j][k], load_neon(row + 4 * k, lanes), query->scores[t + j]);
    }
}

// The outputs of c queries from number d on.
NEON_INLINE void mix_all_neon(const Query *queries, const float *inverse, const float *values, int32_t d,
                              int32_t head_dim, int64_t lanes, const int c, const int v) {
    int32_t shared = fewest_positions(queries, c) / 4 * 4;
    float32x4_t sum[2][4][4];
    EACH (i, c)
        EACH (j, 4)
            EACH (k, v) sum[i][j][k] = vdupq_n_f32(0);
    for (int32_t t = 0; t < shared; t += 4)
        EACH (i, c) mix_neon(sum[i], &queries[i], values + d, t, head_dim, lanes, v, 4);
    EACH (i, c) {
        int32_t t = shared, n = queries[i].n;
        for (; t + 4 <= n; t += 4) mix_neon(sum[i], &queries[i], values + d, t, head_dim, lanes, v, 4);
        for (; t < n; t++) mix_neon(sum[i], &queries[i], values + d, t, head_dim, lanes, v, 1);
        EACH (k, v) {
            float32x4_t first = vaddq_f32(sum[i][0][k], sum[i][1][k]), last = vaddq_f32(sum[i][2][k], sum[i][3][k]);
            store_neon(queries[i].out + d + 4 * k, vmulq_n_f32(vaddq_f32(first, last), inverse[i]), lanes);
        }
    }
}

NEON_INLINE void attend_some_neon(const Query *queries, const float *keys, const float *values, int32_t head_dim,
                                  const int c) {
    const int v = 4 / c; // so that the sums stay in registers
    float inverse[2];
    scores_neon(queries, inverse, keys, head_dim, c);
    EACH (i, c) inverse[i] = 1 / softmax_neon(queries[i].scores, queries[i].n, inverse[i]);
    int32_t d = 0;
    for (; d + 4 * v <= head_dim; d += 4 * v) mix_all_neon(queries, inverse, values, d, head_dim, 4, c, v);
    for (; d < head_dim; d += 4) mix_all_neon(queries, inverse, values, d, head_dim, head_dim - d, c, 1);
}

static void attend_neon(const Query *queries, int32_t count, const float *keys, const float *values,
                        int32_t head_dim) {
    int32_t i = 0;
    for (; i + 2 <= count; i += 2) attend_some_neon(queries + i, keys, values, head_dim, 2);
    if (i < count) attend_some_neon(queries + i, keys, values, head_dim, 1);
}

#endif
