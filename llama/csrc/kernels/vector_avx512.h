// vector_avx512.h: what all kernels for AVX-512, 16 lanes, are made of: masks, sums over lanes, exp.
#ifndef LLAMA_VECTOR_AVX512_H
#define LLAMA_VECTOR_AVX512_H

#include "kernels.h"      // EACH, EXP_TERMS
#include "tiles_avx512.h" // AVX512_INLINE

#include <immintrin.h> // _mm512_*

// The first n lanes, all 16 for n >= 16.
AVX512_INLINE __mmask16 mask_avx512(int64_t n) {
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

// out[j] = the sum of the lanes of sum[j][i] for j < r, which is 1, 4 or 8. Lanes 8, 4, 2, 1 apart are added one
// after the other, those of several sums side by side.
AVX512_INLINE void store_sums_avx512(float *out, __m512 sum[8][6], const int i, const int r) {
    if (r == 1) {
        *out = _mm512_reduce_add_ps(sum[0][i]);
        return;
    }
    __m512 halves[4], quarters[2];
    EACH (j, r / 2) {
        __m512 a = sum[2 * j][i], b = sum[2 * j + 1][i];
        halves[j] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    EACH (j, r / 4) {
        __m512 a = halves[2 * j], b = halves[2 * j + 1];
        quarters[j] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    __m512 a = quarters[0], b = quarters[r / 4 - 1];
    __m512 twos = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    __m512 ones = _mm512_add_ps(twos, _mm512_shuffle_ps(twos, twos, 0xb1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_mask_storeu_ps(out, (__mmask16)((1 << r) - 1), _mm512_permutexvar_ps(order, ones));
}

AVX512_INLINE __m512 exp_avx512(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(EXP_MIN), x); // where one is NaN the second operand is the result
    x = _mm512_min_ps(_mm512_set1_ps(EXP_MAX), x);
    __m512 i = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(EXP_LOG2E)), _MM_FROUND_TO_NEAREST_INT);
    __m512 f = _mm512_fnmadd_ps(i, _mm512_set1_ps(EXP_LN2_HIGH), x);
    f = _mm512_fnmadd_ps(i, _mm512_set1_ps(EXP_LN2_LOW), f);
    __m512 p = _mm512_set1_ps(EXP_TERMS[0]);
    EACH (t, EXP_DEGREE) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP_TERMS[t + 1]));
    return _mm512_scalef_ps(p, i);
}

#endif
