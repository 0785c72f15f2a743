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

// The first n of 4 values of the cache from number `at` on, all for n >= 4, without their scales; the other lanes
// are zeros.
NEON_INLINE float32x4_t load_cached_neon(const void *cache, int64_t at, int64_t n, const int kv) {
    if (kv == LLAMA_KV_FP32) return load_neon((const float *)cache + at, n);
    if (kv == LLAMA_KV_INT8) {
        int8_t quants[8] = {0};
        memcpy(quants, (const int8_t *)cache + at, (size_t)MIN(n, 4));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(quants)))));
    }
    const uint16_t *from = (const uint16_t *)cache + at;
    uint16_t last[4] = {0};
    if (n < 4) from = memcpy(last, from, (size_t)n * sizeof *from);
    uint16x4_t halves = vld1_u16(from);
    if (kv == LLAMA_KV_FP16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

// Scores of c queries against b quarters of a block of keys from position t on, and the maximum of each lane.
NEON_INLINE void score_neon(float32x4_t *most, const Query *queries, const void *keys, const int32_t *pages,
                            int32_t t, int32_t head_dim, const int c, const int b, const int kv) {
    const float scale = 1 / sqrtf((float)head_dim);
    int64_t page = cached_page(pages, t, head_dim, kv), block = page + t % KEY_BLOCK;
    float32x4_t even[MAX_QUERIES][4], odd[MAX_QUERIES][4]; // head_dim is even
    EACH (i, c)
        EACH (j, b) even[i][j] = odd[i][j] = vdupq_n_f32(0);
    for (int32_t d = 0; d < head_dim; d += 2)
        EACH (j, b) {
            int64_t at = block + d * KEY_BLOCK + j * 4;
            float32x4_t first = load_cached_neon(keys, at, 4, kv);
            float32x4_t second = load_cached_neon(keys, at + KEY_BLOCK, 4, kv);
            EACH (i, c) even[i][j] = vfmaq_n_f32(even[i][j], first, queries[i].q[d]);
            EACH (i, c) odd[i][j] = vfmaq_n_f32(odd[i][j], second, queries[i].q[d + 1]);
        }
    EACH (i, c)
        EACH (j, b) {
            float32x4_t score = vmulq_n_f32(vaddq_f32(even[i][j], odd[i][j]), scale);
            if (kv == LLAMA_KV_INT8)
                score = vmulq_f32(score, vld1q_f32(cached_scales(keys, page, head_dim) + t % KEY_BLOCK + j * 4));
            uint32x4_t mask = mask_neon(queries[i].n - t - j * 4);
            vst1q_f32(queries[i].scores + t + j * 4, score);
            most[i] = vbslq_f32(mask, vmaxq_f32(most[i], score), most[i]);
        }
}

// Scores of c queries against the keys of all positions up to the last one's, and each one's maximum.
NEON_INLINE void scores_neon(const Query *queries, float *max, const void *keys, const int32_t *pages,
                             int32_t head_dim, const int c, const int kv) {
    const int b = c <= 2 ? 4 : 2;
    int32_t n = most_positions(queries, c);
    float32x4_t most[MAX_QUERIES];
    EACH (i, c) most[i] = vdupq_n_f32(-INFINITY);
    for (int32_t t = 0; t < n; t += b * 4) score_neon(most, queries, keys, pages, t, head_dim, c, b, kv);
    EACH (i, c) max[i] = vmaxvq_f32(most[i]);
}

// Adds position t, whose values are from number `row` on, to sums of c queries: v vectors each of `lanes` values,
// from number d on.
NEON_INLINE void mix_neon(float32x4_t sum[MAX_QUERIES][4], const Query *queries, const void *values, int64_t row,
                          int32_t t, int32_t d, int64_t lanes, const int c, const int v, const int kv) {
    EACH (k, v) {
        float32x4_t value = load_cached_neon(values, row + d + 4 * k, lanes, kv);
        EACH (i, c) sum[i][k] = vfmaq_n_f32(sum[i][k], value, queries[i].scores[t]);
    }
}

// Four sums for each of c queries, over positions 0, 1, 2 and 3 modulo 4 of the first n, a multiple of 4. Registers
// hold g of the four at a time.
NEON_INLINE void mix_all_neon(float32x4_t sum[MAX_QUERIES][4][4], const Query *queries, const void *values,
                              const int32_t *pages, int32_t n, int32_t d, int32_t head_dim, int64_t lanes,
                              const int c, const int v, const int kv) {
    const int g = c * v <= 4 ? 4 : c * v <= 8 ? 2 : 1;
    for (int32_t part = 0; part < 4; part += g) { // not EACH: sums that are done wait in memory
        float32x4_t some[4][MAX_QUERIES][4];
        EACH (j, g)
            EACH (i, c)
                EACH (k, v) some[j][i][k] = vdupq_n_f32(0);
        for (int32_t t = part; t < n; t += 4) {
            const int64_t row = cached_row(pages, t, head_dim, kv); // the g positions are of one page
            EACH (j, g) mix_neon(some[j], queries, values, row + (int64_t)j * head_dim, t + j, d, lanes, c, v, kv);
        }
        EACH (j, g)
            EACH (i, c)
                EACH (k, v) sum[i][part + j][k] = some[j][i][k];
    }
}

// Adds what is left of the positions to the four sums of a query, those that are no whole four to the first, and
// writes its outputs.
NEON_INLINE void finish_neon(float32x4_t sum[4][4], const Query *query, const void *values, const int32_t *pages,
                             int32_t t, int32_t d, int32_t head_dim, int64_t lanes, const int v, const int kv) {
    for (; t < query->n; t++) {
        int32_t j = t < query->n / 4 * 4 ? t % 4 : 0;
        mix_neon(&sum[j], query, values, cached_row(pages, t, head_dim, kv), t, d, lanes, 1, v, kv);
    }
    EACH (k, v) {
        float32x4_t first = vaddq_f32(sum[0][k], sum[1][k]), last = vaddq_f32(sum[2][k], sum[3][k]);
        store_neon(query->out + d + 4 * k, vaddq_f32(first, last), lanes);
    }
}

// v vectors of `lanes` values of the outputs of all queries, from number d on.
NEON_INLINE void outputs_neon(const Query *queries, int32_t count, const void *values, const int32_t *pages,
                              int32_t d, int32_t head_dim, int64_t lanes, const int v, const int kv) {
    int32_t n = fewest_positions(queries, count) / 4 * 4;
    float32x4_t sum[MAX_QUERIES][4][4];
    switch (count) {
    case 1: mix_all_neon(sum, queries, values, pages, n, d, head_dim, lanes, 1, v, kv); break;
    case 2: mix_all_neon(sum, queries, values, pages, n, d, head_dim, lanes, 2, v, kv); break;
    case 3: mix_all_neon(sum, queries, values, pages, n, d, head_dim, lanes, 3, v, kv); break;
    default: mix_all_neon(sum, queries, values, pages, n, d, head_dim, lanes, 4, v, kv);
    }
    for (int32_t i = 0; i < count; i++)
        finish_neon(sum[i], &queries[i], values, pages, n, d, head_dim, lanes, v, kv);
}

NEON_INLINE void attend_neon(Query *queries, int32_t count, const void *keys, const void *values,
                             const int32_t *pages, int32_t head_dim, const int kv) {
    float max[MAX_QUERIES];
    switch (count) {
    case 1: scores_neon(queries, max, keys, pages, head_dim, 1, kv); break;
    case 2: scores_neon(queries, max, keys, pages, head_dim, 2, kv); break;
    case 3: scores_neon(queries, max, keys, pages, head_dim, 3, kv); break;
    default: scores_neon(queries, max, keys, pages, head_dim, 4, kv);
    }
    for (int32_t i = 0; i < count; i++) {
        queries[i].max = max[i];
        queries[i].sum = softmax_neon(queries[i].scores, queries[i].n, max[i]);
        if (kv == LLAMA_KV_INT8) scale_scores(queries[i].scores, queries[i].n, values, pages, head_dim);
    }
    int32_t d = 0;
    for (; d + 16 <= head_dim; d += 16) outputs_neon(queries, count, values, pages, d, head_dim, 4, 4, kv);
    for (; d < head_dim; d += 4) outputs_neon(queries, count, values, pages, d, head_dim, head_dim - d, 1, kv);
}

static void store_fp16_neon(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n) {
    (void)scale;
    uint16_t *to = (uint16_t *)cache + at, halves[4];
    for (int32_t i = 0; i < n; i += 4, to += 4 * stride) {
        vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(load_neon(x + i, n - i))));
        for (int32_t j = 0; j < MIN(4, n - i); j++) to[j * stride] = halves[j];
    }
}

static void attend_fp32_neon(Query *queries, int32_t count, const void *keys, const void *values,
                             const int32_t *pages, int32_t head_dim) {
    attend_neon(queries, count, keys, values, pages, head_dim, LLAMA_KV_FP32);
}

static void attend_bf16_neon(Query *queries, int32_t count, const void *keys, const void *values,
                             const int32_t *pages, int32_t head_dim) {
    attend_neon(queries, count, keys, values, pages, head_dim, LLAMA_KV_BF16);
}

static void attend_fp16_neon(Query *queries, int32_t count, const void *keys, const void *values,
                             const int32_t *pages, int32_t head_dim) {
    attend_neon(queries, count, keys, values, pages, head_dim, LLAMA_KV_FP16);
}

static void attend_int8_neon(Query *queries, int32_t count, const void *keys, const void *values,
                             const int32_t *pages, int32_t head_dim) {
    attend_neon(queries, count, keys, values, pages, head_dim, LLAMA_KV_INT8);
}

#endif
