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

// Scores of c queries against the keys of all positions up to the last one's, and each one's maximum.
AVX512_INLINE void scores_avx512(const Query *queries, float *max, const float *keys, int32_t head_dim,
                                 const int c) {
    const __m512 scale = _mm512_set1_ps(1 / sqrtf((float)head_dim));
    int32_t n = most_positions(queries, c);
    __m512 most[MAX_QUERIES];
    EACH (i, c) most[i] = _mm512_set1_ps(-INFINITY);
    for (int32_t t = 0; t < n; t += KEY_BLOCK, keys += KEY_BLOCK * head_dim) {
        __m512 even[MAX_QUERIES], odd[MAX_QUERIES]; // head_dim is even
        EACH (i, c) even[i] = odd[i] = _mm512_setzero_ps();
        for (int32_t d = 0; d < head_dim; d += 2) {
            __m512 first = _mm512_loadu_ps(keys + d * KEY_BLOCK);
            __m512 second = _mm512_loadu_ps(keys + (d + 1) * KEY_BLOCK);
            EACH (i, c) even[i] = _mm512_fmadd_ps(_mm512_set1_ps(queries[i].q[d]), first, even[i]);
            EACH (i, c) odd[i] = _mm512_fmadd_ps(_mm512_set1_ps(queries[i].q[d + 1]), second, odd[i]);
        }
        EACH (i, c) {
            __m512 score = _mm512_mul_ps(_mm512_add_ps(even[i], odd[i]), scale);
            _mm512_storeu_ps(queries[i].scores + t, score);
            most[i] = _mm512_mask_max_ps(most[i], mask_avx512(MAX(0, queries[i].n - t)), most[i], score);
        }
    }
    EACH (i, c) max[i] = _mm512_reduce_max_ps(most[i]);
}

// Adds `steps` positions from t on to the sums of one query, of positions 0, 1, 2, 3 modulo 4; or all to the first.
AVX512_INLINE void mix_avx512(__m512 sum[4], const Query *query, const float *values, int32_t t, int32_t head_dim,
                              __mmask16 mask, const int steps) {
    EACH (j, steps) {
        __m512 value = _mm512_maskz_loadu_ps(mask, values + (int64_t)(t + j) * head_dim);
        sum[j] = _mm512_fmadd_ps(_mm512_set1_ps(query->scores[t + j]), value, sum[j]);
    }
}

AVX512_INLINE void attend_some_avx512(const Query *queries, const float *keys, const float *values,
                                      int32_t head_dim, const int c) {
    float inverse[MAX_QUERIES];
    scores_avx512(queries, inverse, keys, head_dim, c);
    EACH (i, c) inverse[i] = 1 / softmax_avx512(queries[i].scores, queries[i].n, inverse[i]);
    int32_t shared = fewest_positions(queries, c) / 4 * 4;
    for (int32_t d = 0; d < head_dim; d += 16) {
        __mmask16 mask = mask_avx512(head_dim - d);
        __m512 sum[MAX_QUERIES][4];
        EACH (i, c)
            EACH (j, 4) sum[i][j] = _mm512_setzero_ps();
        for (int32_t t = 0; t < shared; t += 4)
            EACH (i, c) mix_avx512(sum[i], &queries[i], values + d, t, head_dim, mask, 4);
        EACH (i, c) {
            int32_t t = shared, n = queries[i].n;
            for (; t + 4 <= n; t += 4) mix_avx512(sum[i], &queries[i], values + d, t, head_dim, mask, 4);
            for (; t < n; t++) mix_avx512(sum[i], &queries[i], values + d, t, head_dim, mask, 1);
            __m512 total = _mm512_add_ps(_mm512_add_ps(sum[i][0], sum[i][1]), _mm512_add_ps(sum[i][2], sum[i][3]));
            _mm512_mask_storeu_ps(queries[i].out + d, mask, _mm512_mul_ps(total, _mm512_set1_ps(inverse[i])));
        }
    }
}

AVX512 static void attend_avx512(const Query *queries, int32_t count, const float *keys, const float *values,
                                 int32_t head_dim) {
    switch (count) {
    case 1: attend_some_avx512(queries, keys, values, head_dim, 1); break;
    case 2: attend_some_avx512(queries, keys, values, head_dim, 2); break;
    case 3: attend_some_avx512(queries, keys, values, head_dim, 3); break;
    default: attend_some_avx512(queries, keys, values, head_dim, 4);
    }
}

#endif
