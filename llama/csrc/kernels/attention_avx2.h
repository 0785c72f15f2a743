// attention_avx2.h: attention for AVX2 with FMA, 8 lanes. Mirrors attention_avx512.h.
#ifndef LLAMA_ATTENTION_AVX2_H
#define LLAMA_ATTENTION_AVX2_H

#include "kernels.h"     // Query
#include "vector_avx2.h" // mask_avx2, exp_avx2

// Scores of n positions to probabilities, without the division by their sum, which is returned.
AVX2_INLINE float softmax_avx2(float *scores, int32_t n, float max) {
    __m256 sum = _mm256_setzero_ps();
    for (int32_t t = 0; t < n; t += 8) {
        __m256i mask = mask_avx2(n - t);
        __m256 e = exp_avx2(_mm256_sub_ps(_mm256_maskload_ps(scores + t, mask), _mm256_set1_ps(max)));
        sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(mask)));
        _mm256_maskstore_ps(scores + t, mask, e);
    }
    return reduce_add_avx2(sum);
}

// The first n of 8 values of the cache from number `at` on, all for n >= 8, without their scales; the other lanes
// are zeros.
AVX2_INLINE __m256 load_cached_avx2(const void *cache, int64_t at, int64_t n, const int kv) {
    const float *floats = (const float *)cache + at;
    if (kv == LLAMA_KV_FP32) return n >= 8 ? _mm256_loadu_ps(floats) : _mm256_maskload_ps(floats, mask_avx2(n));
    if (kv == LLAMA_KV_INT8) {
        const int8_t *quants = (const int8_t *)cache + at;
        int8_t last[8] = {0};
        if (n < 8) quants = memcpy(last, quants, (size_t)n);
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)quants)));
    }
    const uint16_t *from = (const uint16_t *)cache + at;
    uint16_t last[8] = {0};
    if (n < 8) from = memcpy(last, from, (size_t)n * sizeof *from);
    __m128i halves = _mm_loadu_si128((const __m128i *)from);
    if (kv == LLAMA_KV_FP16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// Scores of c queries against b halves of a block of keys from position t on, and the maximum of each lane.
AVX2_INLINE void score_avx2(__m256 *most, const Query *queries, const void *keys, const int32_t *pages, int32_t t,
                            int32_t head_dim, const int c, const int b, const int kv) {
    const __m256 scale = _mm256_set1_ps(1 / sqrtf((float)head_dim));
    int64_t page = cached_page(pages, t, head_dim, kv), block = page + t % KEY_BLOCK;
    __m256 even[MAX_QUERIES][2], odd[MAX_QUERIES][2]; // head_dim is even
    EACH (i, c)
        EACH (j, b) even[i][j] = odd[i][j] = _mm256_setzero_ps();
    for (int32_t d = 0; d < head_dim; d += 2)
        EACH (j, b) {
            int64_t at = block + d * KEY_BLOCK + j * 8;
            __m256 first = load_cached_avx2(keys, at, 8, kv);
            __m256 second = load_cached_avx2(keys, at + KEY_BLOCK, 8, kv);
            EACH (i, c) even[i][j] = _mm256_fmadd_ps(_mm256_set1_ps(queries[i].q[d]), first, even[i][j]);
            EACH (i, c) odd[i][j] = _mm256_fmadd_ps(_mm256_set1_ps(queries[i].q[d + 1]), second, odd[i][j]);
        }
    EACH (i, c)
        EACH (j, b) {
            __m256 score = _mm256_mul_ps(_mm256_add_ps(even[i][j], odd[i][j]), scale);
            if (kv == LLAMA_KV_INT8)
                score = _mm256_mul_ps(score,
                                      _mm256_loadu_ps(cached_scales(keys, page, head_dim) + t % KEY_BLOCK + j * 8));
            __m256 mask = _mm256_castsi256_ps(mask_avx2(queries[i].n - t - j * 8));
            _mm256_storeu_ps(queries[i].scores + t + j * 8, score);
            most[i] = _mm256_blendv_ps(most[i], _mm256_max_ps(most[i], score), mask);
        }
}

// Scores of c queries against the keys of all positions up to the last one's, and each one's maximum.
AVX2_INLINE void scores_avx2(const Query *queries, float *max, const void *keys, const int32_t *pages,
                             int32_t head_dim, const int c, const int kv) {
    const int b = c <= 2 ? 2 : 1;
    int32_t n = most_positions(queries, c);
    __m256 most[MAX_QUERIES];
    EACH (i, c) most[i] = _mm256_set1_ps(-INFINITY);
    for (int32_t t = 0; t < n; t += b * 8) score_avx2(most, queries, keys, pages, t, head_dim, c, b, kv);
    EACH (i, c) max[i] = reduce_max_avx2(most[i]);
}

// Adds position t, whose values are from number `row` on, to sums of c queries: v vectors each of `lanes` values,
// from number d on.
AVX2_INLINE void mix_avx2(__m256 sum[MAX_QUERIES][2], const Query *queries, const void *values, int64_t row,
                          int32_t t, int32_t d, int64_t lanes, const int c, const int v, const int kv) {
    EACH (k, v) {
        __m256 value = load_cached_avx2(values, row + d + 8 * k, lanes, kv);
        EACH (i, c) sum[i][k] = _mm256_fmadd_ps(_mm256_set1_ps(queries[i].scores[t]), value, sum[i][k]);
    }
}

// Four sums for each of c queries, over positions 0, 1, 2 and 3 modulo 4 of the first n, a multiple of 4. Registers
// hold g of the four at a time.
AVX2_INLINE void mix_all_avx2(__m256 sum[MAX_QUERIES][4][2], const Query *queries, const void *values,
                              const int32_t *pages, int32_t n, int32_t d, int32_t head_dim, int64_t lanes,
                              const int c, const int v, const int kv) {
    const int g = c * v <= 2 ? 4 : c * v <= 4 ? 2 : 1;
    for (int32_t part = 0; part < 4; part += g) { // not EACH: sums that are done wait in memory
        __m256 some[4][MAX_QUERIES][2];
        EACH (j, g)
            EACH (i, c)
                EACH (k, v) some[j][i][k] = _mm256_setzero_ps();
        for (int32_t t = part; t < n; t += 4) {
            const int64_t row = cached_row(pages, t, head_dim, kv); // the g positions are of one page
            EACH (j, g) mix_avx2(some[j], queries, values, row + (int64_t)j * head_dim, t + j, d, lanes, c, v, kv);
        }
        EACH (j, g)
            EACH (i, c)
                EACH (k, v) sum[i][part + j][k] = some[j][i][k];
    }
}

// Adds what is left of the positions to the four sums of a query, those that are no whole four to the first, and
// writes its outputs.
AVX2_INLINE void finish_avx2(__m256 sum[4][2], const Query *query, const void *values, const int32_t *pages,
                             int32_t t, int32_t d, int32_t head_dim, int64_t lanes, const int v, const int kv) {
    for (; t < query->n; t++) {
        int32_t j = t < query->n / 4 * 4 ? t % 4 : 0;
        mix_avx2(&sum[j], query, values, cached_row(pages, t, head_dim, kv), t, d, lanes, 1, v, kv);
    }
    EACH (k, v) {
        __m256 first = _mm256_add_ps(sum[0][k], sum[1][k]), last = _mm256_add_ps(sum[2][k], sum[3][k]);
        _mm256_maskstore_ps(query->out + d + 8 * k, mask_avx2(lanes), _mm256_add_ps(first, last));
    }
}

// v vectors of `lanes` values of the outputs of all queries, from number d on.
AVX2_INLINE void outputs_avx2(const Query *queries, int32_t count, const void *values, const int32_t *pages,
                              int32_t d, int32_t head_dim, int64_t lanes, const int v, const int kv) {
    int32_t n = fewest_positions(queries, count) / 4 * 4;
    __m256 sum[MAX_QUERIES][4][2];
    switch (count) {
    case 1: mix_all_avx2(sum, queries, values, pages, n, d, head_dim, lanes, 1, v, kv); break;
    case 2: mix_all_avx2(sum, queries, values, pages, n, d, head_dim, lanes, 2, v, kv); break;
    case 3: mix_all_avx2(sum, queries, values, pages, n, d, head_dim, lanes, 3, v, kv); break;
    default: mix_all_avx2(sum, queries, values, pages, n, d, head_dim, lanes, 4, v, kv);
    }
    for (int32_t i = 0; i < count; i++)
        finish_avx2(sum[i], &queries[i], values, pages, n, d, head_dim, lanes, v, kv);
}

AVX2_INLINE void attend_avx2(Query *queries, int32_t count, const void *keys, const void *values,
                             const int32_t *pages, int32_t head_dim, const int kv) {
    float max[MAX_QUERIES];
    switch (count) {
    case 1: scores_avx2(queries, max, keys, pages, head_dim, 1, kv); break;
    case 2: scores_avx2(queries, max, keys, pages, head_dim, 2, kv); break;
    case 3: scores_avx2(queries, max, keys, pages, head_dim, 3, kv); break;
    default: scores_avx2(queries, max, keys, pages, head_dim, 4, kv);
    }
    for (int32_t i = 0; i < count; i++) {
        queries[i].max = max[i];
        queries[i].sum = softmax_avx2(queries[i].scores, queries[i].n, max[i]);
        if (kv == LLAMA_KV_INT8) scale_scores(queries[i].scores, queries[i].n, values, pages, head_dim);
    }
    int32_t d = 0;
    for (; d + 16 <= head_dim; d += 16) outputs_avx2(queries, count, values, pages, d, head_dim, 8, 2, kv);
    for (; d < head_dim; d += 8) outputs_avx2(queries, count, values, pages, d, head_dim, head_dim - d, 1, kv);
}

AVX2 static void store_fp16_avx2(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n) {
    (void)scale;
    uint16_t *to = (uint16_t *)cache + at, halves[8];
    for (int32_t i = 0; i < n; i += 8, to += 8 * stride) {
        __m256 values = _mm256_maskload_ps(x + i, mask_avx2(n - i));
        _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
        for (int32_t j = 0; j < MIN(8, n - i); j++) to[j * stride] = halves[j];
    }
}

AVX2 static void store_int8_avx2(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n) {
    store_quants((int8_t *)cache + at, stride, scale, x, n);
}

AVX2 static void attend_fp32_avx2(Query *queries, int32_t count, const void *keys, const void *values,
                                  const int32_t *pages, int32_t head_dim) {
    attend_avx2(queries, count, keys, values, pages, head_dim, LLAMA_KV_FP32);
}

AVX2 static void attend_bf16_avx2(Query *queries, int32_t count, const void *keys, const void *values,
                                  const int32_t *pages, int32_t head_dim) {
    attend_avx2(queries, count, keys, values, pages, head_dim, LLAMA_KV_BF16);
}

AVX2 static void attend_fp16_avx2(Query *queries, int32_t count, const void *keys, const void *values,
                                  const int32_t *pages, int32_t head_dim) {
    attend_avx2(queries, count, keys, values, pages, head_dim, LLAMA_KV_FP16);
}

AVX2 static void attend_int8_avx2(Query *queries, int32_t count, const void *keys, const void *values,
                                  const int32_t *pages, int32_t head_dim) {
    attend_avx2(queries, count, keys, values, pages, head_dim, LLAMA_KV_INT8);
}

#endif
