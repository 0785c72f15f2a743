// attention_avx512.h: attention for AVX-512, 16 lanes. Mirrors attention_avx2.h.
#ifndef LLAMA_ATTENTION_AVX512_H
#define LLAMA_ATTENTION_AVX512_H

#include "kernels.h"       // Query
#include "vector_avx512.h" // mask_avx512, exp_avx512

// Scores of n positions to probabilities, without the division by their sum, which is returned.
AVX512_INLINE float softmax_avx512(float *scores, int32_t n, float max) {
    __m512 sum = _mm512_setzero_ps();
    for (int32_t t = 0; t < n; t += 16) {
        __mmask16 mask = mask_avx512(n - t);
        __m512 e = exp_avx512(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + t), _mm512_set1_ps(max)));
        sum = _mm512_mask_add_ps(sum, mask, sum, e);
        _mm512_mask_storeu_ps(scores + t, mask, e);
    }
    return _mm512_reduce_add_ps(sum);
}

// 16 values of the cache, from number `at` on, without their scales.
AVX512_INLINE __m512 load_cached_avx512(const void *cache, int64_t at, __mmask16 mask, const int kv) {
    if (kv == LLAMA_KV_FP32) return _mm512_maskz_loadu_ps(mask, (const float *)cache + at);
    if (kv == LLAMA_KV_INT8)
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, (const int8_t *)cache + at)));
    __m256i halves = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)cache + at);
    if (kv == LLAMA_KV_FP16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Has the line fetched that lies 4 KiB behind value number `at`: a page or two, or the head's next span.
AVX512_INLINE void fetch_avx512(const void *cache, int64_t at, const int kv) {
    _mm_prefetch((const char *)cache + at * (int64_t)kv_size(kv) + 4096, _MM_HINT_T0);
}

// Scores of c queries against b blocks of keys from position t on, and the maximum of each lane.
AVX512_INLINE void score_avx512(__m512 *most, const Query *queries, const void *keys, const int32_t *pages,
                                int32_t t, int32_t head_dim, const int c, const int b, const int kv) {
    const __m512 scale = _mm512_set1_ps(1 / sqrtf((float)head_dim));
    int64_t block[4];
    EACH (j, b) block[j] = cached_page(pages, t + j * KEY_BLOCK, head_dim, kv);
    __m512 even[MAX_QUERIES][4], odd[MAX_QUERIES][4]; // head_dim is even
    EACH (i, c)
        EACH (j, b) even[i][j] = odd[i][j] = _mm512_setzero_ps();
    for (int32_t d = 0; d < head_dim; d += 2)
        EACH (j, b) {
            int64_t at = block[j] + d * KEY_BLOCK;
            fetch_avx512(keys, at, kv); // of both rows, but for fp32
            __m512 first = load_cached_avx512(keys, at, 0xffff, kv);
            __m512 second = load_cached_avx512(keys, at + KEY_BLOCK, 0xffff, kv);
            EACH (i, c) even[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(queries[i].q[d]), first, even[i][j]);
            EACH (i, c) odd[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(queries[i].q[d + 1]), second, odd[i][j]);
        }
    EACH (i, c)
        EACH (j, b) {
            __m512 score = _mm512_mul_ps(_mm512_add_ps(even[i][j], odd[i][j]), scale);
            if (kv == LLAMA_KV_INT8)
                score = _mm512_mul_ps(score, _mm512_loadu_ps(cached_scales(keys, block[j], head_dim)));
            __mmask16 mask = mask_avx512(MAX(0, queries[i].n - t - j * KEY_BLOCK));
            _mm512_storeu_ps(queries[i].scores + t + j * KEY_BLOCK, score);
            most[i] = _mm512_mask_max_ps(most[i], mask, most[i], score);
        }
}

// Scores of c queries against the keys of all positions up to the last one's, and each one's maximum.
AVX512_INLINE void scores_avx512(const Query *queries, float *max, const void *keys, const int32_t *pages,
                                 int32_t head_dim, const int c, const int kv) {
    const int b = c == 1 ? 4 : 2; // accumulators enough to hide the latency of a sum
    int32_t t = 0, n = most_positions(queries, c);
    __m512 most[MAX_QUERIES];
    EACH (i, c) most[i] = _mm512_set1_ps(-INFINITY);
    for (; t + (b - 1) * KEY_BLOCK < n; t += b * KEY_BLOCK)
        score_avx512(most, queries, keys, pages, t, head_dim, c, b, kv);
    for (; t < n; t += KEY_BLOCK) score_avx512(most, queries, keys, pages, t, head_dim, c, 1, kv);
    EACH (i, c) max[i] = _mm512_reduce_max_ps(most[i]);
}

// Adds position t, whose values are from number `row` on, to sums of c queries: v vectors each; mask is that of the
// last vector, from number d on.
AVX512_INLINE void mix_avx512(__m512 sum[MAX_QUERIES][4], const Query *queries, const void *values, int64_t row,
                              int32_t t, int32_t d, __mmask16 mask, const int c, const int v, const int kv) {
    EACH (k, v) {
        if (16 * k * (int)kv_size(kv) % 64 == 0) fetch_avx512(values, row + d + 16 * k, kv);
        __m512 value = load_cached_avx512(values, row + d + 16 * k, k + 1 < v ? 0xffff : mask, kv);
        EACH (i, c) sum[i][k] = _mm512_fmadd_ps(_mm512_set1_ps(queries[i].scores[t]), value, sum[i][k]);
    }
}

// Four sums for each of c queries, over positions 0, 1, 2 and 3 modulo 4 of the first n, a multiple of 4. Registers
// hold g of the four at a time.
AVX512_INLINE void mix_all_avx512(__m512 sum[MAX_QUERIES][4][4], const Query *queries, const void *values,
                                  const int32_t *pages, int32_t n, int32_t d, int32_t head_dim, __mmask16 mask,
                                  const int c, const int v, const int kv) {
    const int g = c * v <= 4 ? 4 : c * v <= 12 ? 2 : 1;
    for (int32_t part = 0; part < 4; part += g) { // not EACH: sums that are done wait in memory
        __m512 some[4][MAX_QUERIES][4];
        EACH (j, g)
            EACH (i, c)
                EACH (k, v) some[j][i][k] = _mm512_setzero_ps();
        for (int32_t t = part; t < n; t += 4) {
            const int64_t row = cached_row(pages, t, head_dim, kv); // the g positions are of one page
            EACH (j, g) mix_avx512(some[j], queries, values, row + (int64_t)j * head_dim, t + j, d, mask, c, v, kv);
        }
        EACH (j, g)
            EACH (i, c)
                EACH (k, v) sum[i][part + j][k] = some[j][i][k];
    }
}

// Adds what is left of the positions to the four sums of a query, those that are no whole four to the first, and
// writes its outputs.
AVX512_INLINE void finish_avx512(__m512 sum[4][4], const Query *query, const void *values, const int32_t *pages,
                                 int32_t t, int32_t d, int32_t head_dim, __mmask16 mask, const int v,
                                 const int kv) {
    for (; t < query->n; t++) {
        int32_t j = t < query->n / 4 * 4 ? t % 4 : 0;
        mix_avx512(&sum[j], query, values, cached_row(pages, t, head_dim, kv), t, d, mask, 1, v, kv);
    }
    EACH (k, v) {
        __m512 first = _mm512_add_ps(sum[0][k], sum[1][k]), last = _mm512_add_ps(sum[2][k], sum[3][k]);
        _mm512_mask_storeu_ps(query->out + d + 16 * k, k + 1 < v ? 0xffff : mask, _mm512_add_ps(first, last));
    }
}

// v vectors of the outputs of all queries, from number d on.
AVX512_INLINE void outputs_avx512(const Query *queries, int32_t count, const void *values, const int32_t *pages,
                                  int32_t d, int32_t head_dim, const int v, const int kv) {
    int32_t n = fewest_positions(queries, count) / 4 * 4;
    __mmask16 mask = mask_avx512(head_dim - d - 16 * (v - 1));
    __m512 sum[MAX_QUERIES][4][4];
    switch (count) {
    case 1: mix_all_avx512(sum, queries, values, pages, n, d, head_dim, mask, 1, v, kv); break;
    case 2: mix_all_avx512(sum, queries, values, pages, n, d, head_dim, mask, 2, v, kv); break;
    case 3: mix_all_avx512(sum, queries, values, pages, n, d, head_dim, mask, 3, v, kv); break;
    default: mix_all_avx512(sum, queries, values, pages, n, d, head_dim, mask, 4, v, kv);
    }
    for (int32_t i = 0; i < count; i++)
        finish_avx512(sum[i], &queries[i], values, pages, n, d, head_dim, mask, v, kv);
}

AVX512_INLINE void attend_avx512(Query *queries, int32_t count, const void *keys, const void *values,
                                 const int32_t *pages, int32_t head_dim, const int kv) {
    float max[MAX_QUERIES];
    switch (count) {
    case 1: scores_avx512(queries, max, keys, pages, head_dim, 1, kv); break;
    case 2: scores_avx512(queries, max, keys, pages, head_dim, 2, kv); break;
    case 3: scores_avx512(queries, max, keys, pages, head_dim, 3, kv); break;
    default: scores_avx512(queries, max, keys, pages, head_dim, 4, kv);
    }
    for (int32_t i = 0; i < count; i++) {
        queries[i].max = max[i];
        queries[i].sum = softmax_avx512(queries[i].scores, queries[i].n, max[i]);
        if (kv == LLAMA_KV_INT8) scale_scores(queries[i].scores, queries[i].n, values, pages, head_dim);
    }
    for (int32_t d = 0; d < head_dim; d += 64) switch ((head_dim - d + 15) / 16) {
        case 1: outputs_avx512(queries, count, values, pages, d, head_dim, 1, kv); break;
        case 2: outputs_avx512(queries, count, values, pages, d, head_dim, 2, kv); break;
        case 3: outputs_avx512(queries, count, values, pages, d, head_dim, 3, kv); break;
        default: outputs_avx512(queries, count, values, pages, d, head_dim, 4, kv);
        }
}

AVX512 static void attend_fp32_avx512(Query *queries, int32_t count, const void *keys, const void *values,
                                      const int32_t *pages, int32_t head_dim) {
    attend_avx512(queries, count, keys, values, pages, head_dim, LLAMA_KV_FP32);
}

AVX512 static void attend_bf16_avx512(Query *queries, int32_t count, const void *keys, const void *values,
                                      const int32_t *pages, int32_t head_dim) {
    attend_avx512(queries, count, keys, values, pages, head_dim, LLAMA_KV_BF16);
}

AVX512 static void attend_fp16_avx512(Query *queries, int32_t count, const void *keys, const void *values,
                                      const int32_t *pages, int32_t head_dim) {
    attend_avx512(queries, count, keys, values, pages, head_dim, LLAMA_KV_FP16);
}

AVX512 static void attend_int8_avx512(Query *queries, int32_t count, const void *keys, const void *values,
                                      const int32_t *pages, int32_t head_dim) {
    attend_avx512(queries, count, keys, values, pages, head_dim, LLAMA_KV_INT8);
}

#endif
