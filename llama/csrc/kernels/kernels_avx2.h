// kernels_avx2.h: the kernels for AVX2 with FMA, 8 lanes. Mirrors kernels_avx512.h.
#ifndef LLAMA_KERNELS_AVX2_H
#define LLAMA_KERNELS_AVX2_H

#include "attention_avx2.h" // attend_fp32_avx2 ...
#include "kernels.h"
#include "vector_avx2.h" // mask_avx2, exp_avx2
#include "tiles_avx2.h"  // AVX2, matmul_tiles_int8_avx2

#include <immintrin.h> // _mm256_*

// ---------------------------------------------------------------------------------------------------------
// fp32 matmul with rows: a block of r rows of weights x n rows of activations, one accumulator each. r and n are
// constants at every call, so that the block stays in registers.

AVX2_INLINE void step_rows_avx2(__m256 sum[8][3], const float *x, int64_t x_stride, const float *w,
                                int64_t w_stride, int64_t left, const int r, const int n) {
    __m256 values[3];
    EACH (i, n) values[i] = _mm256_maskload_ps(x + i * x_stride, mask_avx2(left));
    EACH (j, r) {
        __m256 row = _mm256_maskload_ps(w + j * w_stride, mask_avx2(left));
        if (n == 1 && r > 1)
            _mm_prefetch(w + (j + r) * w_stride, _MM_HINT_T0); // the next block's; past the end does no harm
        EACH (i, n) sum[j][i] = _mm256_fmadd_ps(row, values[i], sum[j][i]);
    }
}

AVX2_INLINE void tile_rows_avx2(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r0,
                                const int r, const int n) {
    const float *values = x->values + (int64_t)i0 * x->cols;
    const float *row = tensor_row_fp32(w, r0);
    int64_t x_stride = x->cols, k_size = w->cols, k = 0;
    __m256 sum[8][3];
    EACH (j, r)
        EACH (i, n) sum[j][i] = _mm256_setzero_ps();
    for (; k + 8 <= k_size; k += 8) step_rows_avx2(sum, values + k, x_stride, row + k, k_size, 8, r, n);
    if (k < k_size) step_rows_avx2(sum, values + k, x_stride, row + k, k_size, k_size - k, r, n);
    EACH (i, n) store_sums_avx2(out + i * stride, sum, i, r);
}

AVX2 static void matmul_fp32_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                  int32_t begin, int32_t end) {
    int32_t r = begin;
    bool several = n > 1 || rows_at_once(w);
    for (; n == 1 && several && r + 8 <= end; r += 8) tile_rows_avx2(out + r, stride, x, 0, w, r, 8, 1);
    for (; several && r + 4 <= end; r += 4) {
        int32_t i = 0;
        for (; i + 3 <= n; i += 3) tile_rows_avx2(out + i * stride + r, stride, x, i, w, r, 4, 3);
        for (; i < n; i++) tile_rows_avx2(out + i * stride + r, stride, x, i, w, r, 4, 1);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_rows_avx2(out + i * stride + r, stride, x, i, w, r, 1, 1);
}

// ---------------------------------------------------------------------------------------------------------
// int8 matmul, group sizes that are multiples of 32. maddubs takes unsigned x signed bytes and adds pairs in 16
// bits with saturation: |w| <= 128 and |x| <= 127 give at most 2 x 128 x 127 = 32512, so all is exact.

AVX2_INLINE void tile_int8_avx2(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r0,
                                const int r, const int n) {
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
    int32_t size = w->group_size, groups = tensor_groups(w), x_groups = x->groups;
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
                if (n == 1 && r > 1) _mm_prefetch(q + (int64_t)(j + r) * w->cols + k, _MM_HINT_T0);
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
    bool several = n > 1 || rows_at_once(w);
    for (; n == 1 && several && r + 4 <= end; r += 4) tile_int8_avx2(out + r, stride, x, 0, w, r, 4, 1);
    for (; several && r + 2 <= end; r += 2) {
        int32_t i = 0;
        for (; i + 2 <= n; i += 2) tile_int8_avx2(out + i * stride + r, stride, x, i, w, r, 2, 2);
        for (; i < n; i++) tile_int8_avx2(out + i * stride + r, stride, x, i, w, r, 2, 1);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_int8_avx2(out + i * stride + r, stride, x, i, w, r, 1, 1);
}

AVX2 static void quantise_avx2(int8_t *q, float *scales, int32_t *sums, const float *x, int32_t n,
                               int32_t group_size) {
    if (group_size % 8) {
        quantise(q, scales, sums, x, n, group_size);
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
        __m256i sum = _mm256_setzero_si256();
        for (int32_t i = 0; i < group_size; i += 8) {
            __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse));
            __m256i eight = _mm256_cvtps_epi32(_mm256_max_ps(bottom, _mm256_min_ps(value, top)));
            sum = _mm256_add_epi32(sum, eight);
            __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
            _mm_storel_epi64((__m128i *)(q + i), _mm_packs_epi16(words, words));
        }
        sums[g] = reduce_add_int_avx2(sum);
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

AVX2 static Extremes extremes_avx2(const float *x, int32_t n) {
    return pass_extremes(x, n);
}

AVX2 static double likelihoods_avx2(float *x, double *mass, int32_t n, float max, float scale) {
    return pass_likelihoods(x, mass, n, max, scale);
}

// The lanes of a mask of 4, one after the other.
static const uint8_t lanes_avx2[16][4] = {{0},    {0},       {1},       {0, 1},      {2},    {0, 2},
                                          {1, 2}, {0, 1, 2}, {3},       {0, 3},      {1, 3}, {0, 1, 3},
                                          {2, 3}, {0, 2, 3}, {1, 2, 3}, {0, 1, 2, 3}};

AVX2 static int32_t collect_avx2(float *out, const float *x, int32_t n, float low, float high) {
    int32_t found = 0, i = 0;
    for (; i + 4 <= n; i += 4) {
        __m128 value = _mm_loadu_ps(x + i);
        __m128 inside = _mm_and_ps(_mm_cmpge_ps(value, _mm_set1_ps(low)), _mm_cmplt_ps(value, _mm_set1_ps(high)));
        int mask = _mm_movemask_ps(inside);
        __m128i lanes = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(load_i32(lanes_avx2[mask])));
        _mm_storeu_ps(out + found, _mm_permutevar_ps(value, lanes));
        found += __builtin_popcount((unsigned)mask);
    }
    return found + pass_collect(out + found, x + i, n - i, low, high);
}

static bool available_avx2(void) { // every CPU with AVX2 has f16c; not every compiler can ask for it
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static const Kernels kernels_avx2 = {
    .name = "avx2",
    .available = available_avx2,
    .matmul = {[ROWS_FP32] = matmul_fp32_avx2,
               [ROWS_INT8] = matmul_int8_avx2,
               [TILES_FP32] = matmul_tiles_fp32_avx2,
               [TILES_BF16] = matmul_tiles_bf16_avx2,
               [TILES_INT8] = matmul_tiles_int8_avx2,
               [TILES_INT4] = matmul_tiles_int4_avx2},
    .quantise = quantise_avx2,
    .rmsnorm = rmsnorm_avx2,
    .swiglu = swiglu_avx2,
    .store = {[LLAMA_KV_FP32] = store_fp32,
              [LLAMA_KV_BF16] = store_bf16,
              [LLAMA_KV_FP16] = store_fp16_avx2,
              [LLAMA_KV_INT8] = store_int8_avx2},
    .attend = {[LLAMA_KV_FP32] = attend_fp32_avx2,
               [LLAMA_KV_BF16] = attend_bf16_avx2,
               [LLAMA_KV_FP16] = attend_fp16_avx2,
               [LLAMA_KV_INT8] = attend_int8_avx2},
    .extremes = extremes_avx2,
    .likelihoods = likelihoods_avx2,
    .collect = collect_avx2,
};

#endif
