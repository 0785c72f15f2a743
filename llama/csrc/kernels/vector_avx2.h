// vector_avx2.h: what all kernels for AVX2 with FMA, 8 lanes, are made of: masks, sums over lanes, exp.
#ifndef LLAMA_VECTOR_AVX2_H
#define LLAMA_VECTOR_AVX2_H

#include "kernels.h"    // EACH, EXP_TERMS
#include "tiles_avx2.h" // AVX2_INLINE

#include <immintrin.h> // _mm256_*

// The first n lanes, all 8 for n >= 8.
AVX2_INLINE __m256i mask_avx2(int64_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)MIN(n, 8)), lanes);
}

AVX2_INLINE float reduce_add_avx2(__m256 x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

AVX2_INLINE int32_t reduce_add_int_avx2(__m256i x) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// out[j] = the sum of the lanes of sum[j][i] for j < r, which is 1, 4 or 8. Lanes 4, 2, 1 apart are added one after
// the other, those of four sums side by side.
AVX2_INLINE void store_sums_avx2(float *out, __m256 sum[8][3], const int i, const int r) {
    if (r == 1) *out = reduce_add_avx2(sum[0][i]);
    EACH (j, r / 4) {
        __m256 a = sum[4 * j][i], b = sum[4 * j + 1][i], c = sum[4 * j + 2][i], d = sum[4 * j + 3][i];
        __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
        __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
        __m256 twos = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
        __m256 ones = _mm256_add_ps(twos, _mm256_movehdup_ps(twos)); // a - c - b - d -
        __m256 sums = _mm256_permutevar8x32_ps(ones, _mm256_setr_epi32(0, 4, 2, 6, 0, 0, 0, 0));
        _mm_storeu_ps(out + 4 * j, _mm256_castps256_ps128(sums));
    }
}

AVX2_INLINE float reduce_max_avx2(__m256 x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

AVX2_INLINE __m256 exp_avx2(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(EXP_MIN), x); // where one is NaN the second operand is the result
    x = _mm256_min_ps(_mm256_set1_ps(EXP_MAX), x);
    __m256 i = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(EXP_LOG2E)), _MM_FROUND_TO_NEAREST_INT);
    __m256 f = _mm256_fnmadd_ps(i, _mm256_set1_ps(EXP_LN2_HIGH), x);
    f = _mm256_fnmadd_ps(i, _mm256_set1_ps(EXP_LN2_LOW), f);
    __m256 p = _mm256_set1_ps(EXP_TERMS[0]);
    EACH (t, EXP_DEGREE) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP_TERMS[t + 1]));
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(i), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

#endif
