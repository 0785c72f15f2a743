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

// Scores of c queries against the keys of all positions up to the last one's, and each one's maximum.
AVX2_INLINE void scores_avx2(const Query *queries, float *max, const float *keys, int32_t head_dim, const int c) {
    const __m256 scale = _mm256_set1_ps(1 / sqrtf((float)head_dim));
    int32_t n = most_positions(queries, c);
    __m256 most[2];
    EACH (i, c) most[i] = _mm256_set1_ps(-INFINITY);
    for (int32_t t = 0; t < n; t += 8) { // half a block of keys
        const float *half = keys + (int64_t)(t / KEY_BLOCK) * KEY_BLOCK * head_dim + t % KEY_BLOCK;
        __m256 even[2], odd[2]; // head_dim is even
        EACH (i, c) even[i] = odd[i] = _mm256_setzero_ps();
        for (int32_t d = 0; d < head_dim; d += 2) {
            __m256 first = _mm256_loadu_ps(half + d * KEY_BLOCK);
            __m256 second = _mm256_loadu_ps(half + (d + 1) * KEY_BLOCK);
            EACH (i, c) even[i] = _mm256_fmadd_ps(_mm256_set1_ps(queries[i].q[d]), first, even[i]);
            EACH (i, c) odd[i] = _mm256_fmadd_ps(_mm256_set1_ps(queries[i].q[d + 1]), second, odd[i]);
        }
        EACH (i, c) {
            __m256 score = _mm256_mul_ps(_mm256_add_ps(even[i], odd[i]), scale);
            __m256 mask = _mm256_castsi256_ps(mask_avx2(queries[i].n - t));
            _mm256_storeu_ps(queries[i].scores + t, score);
            most[i] = _mm256_blendv_ps(most[i], _mm256_max_ps(most[i], score), mask);
        }
    }
    EACH (i, c) max[i] = reduce_max_avx2(most[i]);
}

// Adds `steps` positions from t on to the sums of one query, of positions 0, 1, 2, 3 modulo 4; or all to the first.
AVX2_INLINE void mix_avx2(__m256 sum[4], const Query *query, const float *values, int32_t t, int32_t head_dim,
                          __m256i mask, const int steps) {
    EACH (j, steps) {
        __m256 value = _mm256_maskload_ps(values + (int64_t)(t + j) * head_dim, mask);
        sum[j] = _mm256_fmadd_ps(_mm256_set1_ps(query->scores[t + j]), value, sum[j]);
    }
}

AVX2_INLINE void attend_some_avx2(const Query *queries, const float *keys, const float *values, int32_t head_dim,
                                  const int c) {
    float inverse[2];
    scores_avx2(queries, inverse, keys, head_dim, c);
    EACH (i, c) inverse[i] = 1 / softmax_avx2(queries[i].scores, queries[i].n, inverse[i]);
    int32_t shared = fewest_positions(queries, c) / 4 * 4;
    for (int32_t d = 0; d < head_dim; d += 8) {
        __m256i mask = mask_avx2(head_dim - d);
        __m256 sum[2][4];
        EACH (i, c)
            EACH (j, 4) sum[i][j] = _mm256_setzero_ps();
        for (int32_t t = 0; t < shared; t += 4)
            EACH (i, c) mix_avx2(sum[i], &queries[i], values + d, t, head_dim, mask, 4);
        EACH (i, c) {
            int32_t t = shared, n = queries[i].n;
            for (; t + 4 <= n; t += 4) mix_avx2(sum[i], &queries[i], values + d, t, head_dim, mask, 4);
            for (; t < n; t++) mix_avx2(sum[i], &queries[i], values + d, t, head_dim, mask, 1);
            __m256 total = _mm256_add_ps(_mm256_add_ps(sum[i][0], sum[i][1]), _mm256_add_ps(sum[i][2], sum[i][3]));
            _mm256_maskstore_ps(queries[i].out + d, mask, _mm256_mul_ps(total, _mm256_set1_ps(inverse[i])));
        }
    }
}

AVX2 static void attend_avx2(const Query *queries, int32_t count, const float *keys, const float *values,
                             int32_t head_dim) {
    int32_t i = 0;
    for (; i + 2 <= count; i += 2) attend_some_avx2(queries + i, keys, values, head_dim, 2);
    if (i < count) attend_some_avx2(queries + i, keys, values, head_dim, 1);
}

#endif
