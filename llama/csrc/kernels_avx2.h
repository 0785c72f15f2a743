// kernels_avx2.h: the kernels for AVX2 with FMA, 8 lanes. Mirrors kernels_avx512.h.
#ifndef LLAMA_KERNELS_AVX2_H
#define LLAMA_KERNELS_AVX2_H

#include "kernels.h"
#include "tiles_avx2.h" // AVX2, matmul_tiles_int8_avx2

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

// ---------------------------------------------------------------------------------------------------------
// fp32 and bf16 matmul: a tile of r rows of weights x n rows of activations, one accumulator each. r and n are
// constants at every call, so that the tile stays in registers.

// The first n of 8 weights of type, from number `at` on.
AVX2_INLINE __m256 load_weights_avx2(const void *w, int64_t at, int64_t n, const int type) {
    if (type == ROWS_FP32) return _mm256_maskload_ps((const float *)w + at, mask_avx2(n));
    const uint16_t *from = (const uint16_t *)w + at;
    uint16_t last[8] = {0};
    if (n < 8) from = memcpy(last, from, (size_t)n * sizeof *from);
    __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
}

AVX2_INLINE void step_rows_avx2(__m256 sum[8][3], const float *x, int64_t x_stride, const void *w, int64_t at,
                                int64_t w_stride, int64_t left, const int r, const int n, const int type) {
    const int size = type == ROWS_FP32 ? 4 : 2;
    __m256 values[3];
    EACH (i, n) values[i] = _mm256_maskload_ps(x + i * x_stride, mask_avx2(left));
    EACH (j, r) {
        __m256 row = load_weights_avx2(w, at + j * w_stride, left, type);
        if (n == 1) // the next tile's; past the end does no harm
            _mm_prefetch((const char *)w + size * (at + (j + r) * w_stride), _MM_HINT_T0);
        EACH (i, n) sum[j][i] = _mm256_fmadd_ps(row, values[i], sum[j][i]);
    }
}

AVX2_INLINE void tile_rows_avx2(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r0,
                                const int r, const int n, const int type) {
    const float *values = x->values + (int64_t)i0 * x->cols;
    int64_t x_stride = x->cols, k_size = w->cols, at = r0 * k_size, k = 0;
    __m256 sum[8][3];
    EACH (j, r)
        EACH (i, n) sum[j][i] = _mm256_setzero_ps();
    for (; k + 8 <= k_size; k += 8)
        step_rows_avx2(sum, values + k, x_stride, w->data, at + k, k_size, 8, r, n, type);
    if (k < k_size) step_rows_avx2(sum, values + k, x_stride, w->data, at + k, k_size, k_size - k, r, n, type);
    EACH (j, r)
        EACH (i, n) out[i * stride + j] = reduce_add_avx2(sum[j][i]);
}

AVX2_INLINE void matmul_rows_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                  int32_t begin, int32_t end, const int type) {
    int32_t r = begin;
    for (; n == 1 && r + 8 <= end; r += 8) tile_rows_avx2(out + r, stride, x, 0, w, r, 8, 1, type);
    for (; r + 4 <= end; r += 4) {
        int32_t i = 0;
        for (; i + 3 <= n; i += 3) tile_rows_avx2(out + i * stride + r, stride, x, i, w, r, 4, 3, type);
        for (; i < n; i++) tile_rows_avx2(out + i * stride + r, stride, x, i, w, r, 4, 1, type);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_rows_avx2(out + i * stride + r, stride, x, i, w, r, 1, 1, type);
}

AVX2 static void matmul_fp32_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                  int32_t begin, int32_t end) {
    matmul_rows_avx2(out, stride, x, n, w, begin, end, ROWS_FP32);
}

AVX2 static void matmul_bf16_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                  int32_t begin, int32_t end) {
    matmul_rows_avx2(out, stride, x, n, w, begin, end, ROWS_BF16);
}

// ---------------------------------------------------------------------------------------------------------
// int8 matmul, group sizes that are multiples of 32. maddubs takes unsigned x signed bytes and adds pairs in 16
// bits with saturation: |w| <= 128 and |x| <= 127 give at most 2 x 128 x 127 = 32512, so all is exact.

AVX2_INLINE void tile_int8_avx2(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r0,
                                const int r, const int n) {
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
    int32_t size = w->group_size, groups = tensor_groups(w), x_groups = x->cols / size;
    const int8_t *q = tensor_row_int8(w, r0), *x_q = x->quants + (int64_t)i0 * x->cols;
    const uint8_t *scales = tensor_row_scales(w, r0);
    const float *x_scales = x->scales + (int64_t)i0 * x_groups;
    __m256 sum[4][2];
    EACH (j, r)
        EACH (i, n) sum[j][i] = _mm256_setzero_ps();
    for (int32_t g = 0; g < groups; g++) {
        __m256i dot[4][2], values[2];
        EACH (j, r)
            EACH (i, n) dot[j][i] = zero;
        for (int32_t k = g * size; k < (g + 1) * size; k += 32) {
            EACH (i, n) values[i] = _mm256_loadu_si256((const __m256i *)(x_q + (int64_t)i * x->cols + k));
            EACH (j, r) {
                __m256i row = _mm256_loadu_si256((const __m256i *)(q + (int64_t)j * w->cols + k));
                if (n == 1) _mm_prefetch(q + (int64_t)(j + r) * w->cols + k, _MM_HINT_T0);
                __m256i magnitude = _mm256_abs_epi8(row);
                EACH (i, n) {
                    __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(values[i], row));
                    dot[j][i] = _mm256_add_epi32(dot[j][i], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        EACH (j, r) {
            float scale = load_f32(scales + ((int64_t)j * groups + g) * 4);
            EACH (i, n) {
                __m256 both = _mm256_set1_ps(scale * x_scales[(int64_t)i * x_groups + g]);
                sum[j][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[j][i]), both, sum[j][i]);
            }
        }
    }
    EACH (j, r)
        EACH (i, n) out[i * stride + j] = reduce_add_avx2(sum[j][i]);
}

AVX2 static void matmul_int8_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                  int32_t begin, int32_t end) {
    if (w->group_size % 32) {
        matmul_int8_scalar(out, stride, x, n, w, begin, end);
        return;
    }
    int32_t r = begin;
    for (; n == 1 && r + 4 <= end; r += 4) tile_int8_avx2(out + r, stride, x, 0, w, r, 4, 1);
    for (; r + 2 <= end; r += 2) {
        int32_t i = 0;
        for (; i + 2 <= n; i += 2) tile_int8_avx2(out + i * stride + r, stride, x, i, w, r, 2, 2);
        for (; i < n; i++) tile_int8_avx2(out + i * stride + r, stride, x, i, w, r, 2, 1);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_int8_avx2(out + i * stride + r, stride, x, i, w, r, 1, 1);
}

AVX2 static void quantise_avx2(int8_t *q, float *scales, const float *x, int32_t n, int32_t group_size) {
    if (group_size % 8) {
        quantise(q, scales, x, n, group_size);
        return;
    }
    const __m256 top = _mm256_set1_ps(127), bottom = _mm256_set1_ps(-127), sign = _mm256_set1_ps(-0.0f);
    for (int32_t g = 0; g < n / group_size; g++, x += group_size, q += group_size) {
        __m256 max_lanes = _mm256_setzero_ps(), poison = _mm256_setzero_ps();
        for (int32_t i = 0; i < group_size; i += 8) {
            __m256 value = _mm256_loadu_ps(x + i);
            max_lanes = _mm256_max_ps(max_lanes, _mm256_andnot_ps(sign, value));
            poison = _mm256_fmadd_ps(value, _mm256_setzero_ps(), poison);
        }
        float max = reduce_max_avx2(max_lanes), inverse = max > QUANTISE_MIN ? 127 / max : 0;
        scales[g] = (max > QUANTISE_MIN ? max / 127 : 0) + reduce_add_avx2(poison);
        for (int32_t i = 0; i < group_size; i += 8) {
            __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse));
            __m256i eight = _mm256_cvtps_epi32(_mm256_max_ps(bottom, _mm256_min_ps(value, top)));
            __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
            _mm_storel_epi64((__m128i *)(q + i), _mm_packs_epi16(words, words));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// The rest of a layer

AVX2 static void rmsnorm_avx2(float *out, const float *x, const float *weight, int32_t k, float eps) {
    __m256 sum = _mm256_setzero_ps();
    for (int32_t i = 0; i < k; i += 8) {
        __m256 value = _mm256_maskload_ps(x + i, mask_avx2(k - i));
        sum = _mm256_fmadd_ps(value, value, sum);
    }
    __m256 scale = _mm256_set1_ps(1 / sqrtf(reduce_add_avx2(sum) / (float)k + eps));
    for (int32_t i = 0; i < k; i += 8) {
        __m256i mask = mask_avx2(k - i);
        __m256 value = _mm256_mul_ps(scale, _mm256_maskload_ps(x + i, mask));
        _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(_mm256_maskload_ps(weight + i, mask), value));
    }
}

AVX2 static void swiglu_avx2(float *h1, const float *h3, int32_t n) {
    const __m256 one = _mm256_set1_ps(1);
    for (int32_t i = 0; i < n; i += 8) {
        __m256i mask = mask_avx2(n - i);
        __m256 h = _mm256_maskload_ps(h1 + i, mask);
        __m256 e = exp_avx2(_mm256_sub_ps(_mm256_setzero_ps(), h));
        __m256 silu = _mm256_div_ps(h, _mm256_add_ps(one, e));
        _mm256_maskstore_ps(h1 + i, mask, _mm256_mul_ps(silu, _mm256_maskload_ps(h3 + i, mask)));
    }
}

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

AVX2 static float max_avx2(const float *x, int32_t n) {
    return pass_max(x, n);
}

AVX2 static bool finite_avx2(const float *x, int32_t n) {
    return pass_finite(x, n);
}

AVX2 static double likelihoods_avx2(float *x, double *mass, int32_t n, float max, float scale) {
    return pass_likelihoods(x, mass, n, max, scale);
}

AVX2 static void masses_above_avx2(const float *x, int32_t n, float above[PASS_FLOORS]) {
    pass_masses_above(x, n, above);
}

static bool available_avx2(void) { // every CPU with AVX2 has f16c; not every compiler can ask for it
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static const Kernels kernels_avx2 = {
    .name = "avx2",
    .available = available_avx2,
    .matmul = {[ROWS_FP32] = matmul_fp32_avx2,
               [ROWS_INT8] = matmul_int8_avx2,
               [ROWS_BF16] = matmul_bf16_avx2,
               [TILES_INT8] = matmul_tiles_int8_avx2,
               [TILES_INT4] = matmul_tiles_int4_avx2},
    .quantise = quantise_avx2,
    .rmsnorm = rmsnorm_avx2,
    .swiglu = swiglu_avx2,
    .attend = attend_avx2,
    .max = max_avx2,
    .finite = finite_avx2,
    .likelihoods = likelihoods_avx2,
    .masses_above = masses_above_avx2,
};

#endif
