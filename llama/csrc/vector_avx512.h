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
