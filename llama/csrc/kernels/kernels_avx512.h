// kernels_avx512.h: the kernels for AVX-512 with VNNI (the int8 dot product), 16 lanes. Mirrors kernels_avx2.h.
#ifndef LLAMA_KERNELS_AVX512_H
#define LLAMA_KERNELS_AVX512_H

#include "attention_avx512.h" // attend_fp32_avx512 ...
#include "kernels.h"
#include "kernels_avx2.h"  // group sizes below 64
#include "vector_avx512.h" // mask_avx512, exp_avx512
#include "tiles_avx512.h"  // AVX512, matmul_tiles_int8_avx512

#include <immintrin.h> // _mm512_*

// ---------------------------------------------------------------------------------------------------------
// fp32 matmul with rows: a block of r rows of weights x n rows of activations, one accumulator each. r and n are
// constants at every call, so that the block stays in registers.

AVX512_INLINE void step_rows_avx512(__m512 sum[8][6], const float *x, int64_t x_stride, const float *w,
                                    int64_t w_stride, __mmask16 mask, const int r, const int n) {
    __m512 values[6];
    EACH (i, n) values[i] = _mm512_maskz_loadu_ps(mask, x + i * x_stride);
    EACH (j, r) {
        __m512 row = _mm512_maskz_loadu_ps(mask, w + j * w_stride);
        if (n == 1 && r > 1)
            _mm_prefetch(w + (j + r) * w_stride, _MM_HINT_T0); // the next block's; past the end does no harm
        EACH (i, n) sum[j][i] = _mm512_fmadd_ps(row, values[i], sum[j][i]);
    }
}

AVX512_INLINE void tile_rows_avx512(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w,
                                    int32_t r0, const int r, const int n) {
    const float *values = x->values + (int64_t)i0 * x->cols;
    const float *row = tensor_row_fp32(w, r0);
    int64_t x_stride = x->cols, k_size = w->cols, k = 0;
    __m512 sum[8][6];
    EACH (j, r)
        EACH (i, n) sum[j][i] = _mm512_setzero_ps();
    for (; k + 16 <= k_size; k += 16) step_rows_avx512(sum, values + k, x_stride, row + k, k_size, 0xffff, r, n);
    if (k < k_size) step_rows_avx512(sum, values + k, x_stride, row + k, k_size, mask_avx512(k_size - k), r, n);
    EACH (i, n) store_sums_avx512(out + i * stride, sum, i, r);
}

AVX512 static void matmul_fp32_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                      int32_t begin, int32_t end) {
    int32_t r = begin;
    bool several = n > 1 || rows_at_once(w);
    for (; n == 1 && several && r + 8 <= end; r += 8) tile_rows_avx512(out + r, stride, x, 0, w, r, 8, 1);
    for (; several && r + 4 <= end; r += 4) {
        int32_t i = 0;
        for (; i + 6 <= n; i += 6) tile_rows_avx512(out + i * stride + r, stride, x, i, w, r, 4, 6);
        for (; i + 3 <= n; i += 3) tile_rows_avx512(out + i * stride + r, stride, x, i, w, r, 4, 3);
        for (; i < n; i++) tile_rows_avx512(out + i * stride + r, stride, x, i, w, r, 4, 1);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_rows_avx512(out + i * stride + r, stride, x, i, w, r, 1, 1);
}

// ---------------------------------------------------------------------------------------------------------
// int8 matmul, group sizes that are multiples of 64. The dot product instruction takes unsigned x signed bytes, so
// the activations are shifted by 128 and 128 x the sum of the weights is subtracted again: all exact.

AVX512_INLINE void tile_int8_avx512(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w,
                                    int32_t r0, const int r, const int n) {
    const __m512i shift = _mm512_set1_epi8((char)128), zero = _mm512_setzero_si512();
    int32_t size = w->group_size, groups = tensor_groups(w), x_groups = x->groups;
    const int8_t *q = tensor_row_int8(w, r0), *x_q = x->quants + (int64_t)i0 * x->cols;
    const uint8_t *scales = tensor_row_scales(w, r0);
    const float *x_scales = x->scales + (int64_t)i0 * x_groups;
    __m512 sum[4][4];
    EACH (j, r)
        EACH (i, n) sum[j][i] = _mm512_setzero_ps();
    for (int32_t g = 0; g < groups; g++) {
        __m512i dot[4][4], correction[4], values[4];
        EACH (j, r)
            EACH (i, n) dot[j][i] = zero;
        EACH (j, r) correction[j] = zero;
        for (int32_t k = g * size; k < (g + 1) * size; k += 64) {
            EACH (i, n) values[i] = _mm512_xor_si512(_mm512_loadu_si512(x_q + (int64_t)i * x->cols + k), shift);
            EACH (j, r) {
                __m512i row = _mm512_loadu_si512(q + (int64_t)j * w->cols + k);
                if (n == 1 && r > 1) _mm_prefetch(q + (int64_t)(j + r) * w->cols + k, _MM_HINT_T0);
                correction[j] = _mm512_dpbusd_epi32(correction[j], shift, row);
                EACH (i, n) dot[j][i] = _mm512_dpbusd_epi32(dot[j][i], values[i], row);
            }
        }
        EACH (j, r) {
            float scale = load_f32(scales + ((int64_t)j * groups + g) * 4);
            EACH (i, n) {
                __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(dot[j][i], correction[j]));
                __m512 both = _mm512_set1_ps(scale * x_scales[(int64_t)i * x_groups + g]);
                sum[j][i] = _mm512_fmadd_ps(exact, both, sum[j][i]);
            }
        }
    }
    EACH (j, r)
        EACH (i, n) out[i * stride + j] = _mm512_reduce_add_ps(sum[j][i]);
}

AVX512 static void matmul_int8_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                      int32_t begin, int32_t end) {
    if (w->group_size % 64) {
        matmul_int8_avx2(out, stride, x, n, w, begin, end);
        return;
    }
    int32_t r = begin;
    bool several = n > 1 || rows_at_once(w);
    for (; n == 1 && several && r + 4 <= end; r += 4) tile_int8_avx512(out + r, stride, x, 0, w, r, 4, 1);
    for (; several && r + 2 <= end; r += 2) {
        int32_t i = 0;
        for (; i + 4 <= n; i += 4) tile_int8_avx512(out + i * stride + r, stride, x, i, w, r, 2, 4);
        for (; i < n; i++) tile_int8_avx512(out + i * stride + r, stride, x, i, w, r, 2, 1);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_int8_avx512(out + i * stride + r, stride, x, i, w, r, 1, 1);
}

AVX512 static void quantise_avx512(int8_t *q, float *scales, int32_t *sums, const float *x, int32_t n,
                                   int32_t group_size) {
    if (group_size % 16) {
        quantise(q, scales, sums, x, n, group_size);
        return;
    }
    const __m512 top = _mm512_set1_ps(127), bottom = _mm512_set1_ps(-127);
    for (int32_t g = 0; g < n / group_size; g++, x += group_size, q += group_size) {
        __m512 max_lanes = _mm512_setzero_ps(), poison = _mm512_setzero_ps();
        for (int32_t i = 0; i < group_size; i += 16) {
            __m512 value = _mm512_loadu_ps(x + i);
            max_lanes = _mm512_max_ps(max_lanes, _mm512_abs_ps(value));
            poison = _mm512_fmadd_ps(value, _mm512_setzero_ps(), poison);
        }
        float max = _mm512_reduce_max_ps(max_lanes), inverse = max > QUANTISE_MIN ? 127 / max : 0;
        scales[g] = (max > QUANTISE_MIN ? max / 127 : 0) + _mm512_reduce_add_ps(poison);
        __m512i sum = _mm512_setzero_si512();
        for (int32_t i = 0; i < group_size; i += 16) {
            __m512 value = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
            value = _mm512_max_ps(bottom, _mm512_min_ps(value, top));
            __m512i whole = _mm512_cvtps_epi32(value);
            sum = _mm512_add_epi32(sum, whole);
            _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(whole));
        }
        sums[g] = _mm512_reduce_add_epi32(sum);
    }
}

// ---------------------------------------------------------------------------------------------------------
// The rest of a layer

AVX512 static void rmsnorm_avx512(float *out, const float *x, const float *weight, int32_t k, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int32_t i = 0; i < k; i += 16) {
        __m512 value = _mm512_maskz_loadu_ps(mask_avx512(k - i), x + i);
        sum = _mm512_fmadd_ps(value, value, sum);
    }
    __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(sum) / (float)k + eps));
    for (int32_t i = 0; i < k; i += 16) {
        __mmask16 mask = mask_avx512(k - i);
        __m512 value = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(mask, x + i));
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weight + i), value));
    }
}

AVX512 static void swiglu_avx512(float *h1, const float *h3, int32_t n) {
    const __m512 one = _mm512_set1_ps(1);
    for (int32_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_avx512(n - i);
        __m512 h = _mm512_maskz_loadu_ps(mask, h1 + i);
        __m512 e = exp_avx512(_mm512_sub_ps(_mm512_setzero_ps(), h));
        __m512 silu = _mm512_div_ps(h, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(h1 + i, mask, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, h3 + i)));
    }
}

// Under -march=native gcc prefers vectors of half the width on some CPUs: passes take 1.6 times as long.
#ifdef __clang__
#define AVX512_WHOLE AVX512
#else
#define AVX512_WHOLE AVX512 __attribute__((target("prefer-vector-width=512")))
#endif

AVX512_WHOLE static Extremes extremes_avx512(const float *x, int32_t n) {
    return pass_extremes(x, n);
}

AVX512_WHOLE static double likelihoods_avx512(float *x, double *mass, int32_t n, float max, float scale) {
    return pass_likelihoods(x, mass, n, max, scale);
}

AVX512 static int32_t collect_avx512(float *out, const float *x, int32_t n, float low, float high) {
    int32_t found = 0;
    for (int32_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_avx512(n - i);
        __m512 value = _mm512_maskz_loadu_ps(mask, x + i);
        mask = _mm512_mask_cmp_ps_mask(mask, value, _mm512_set1_ps(low), _CMP_GE_OQ);
        mask = _mm512_mask_cmp_ps_mask(mask, value, _mm512_set1_ps(high), _CMP_LT_OQ);
        _mm512_storeu_ps(out + found, _mm512_maskz_compress_ps(mask, value));
        found += __builtin_popcount(mask);
    }
    return found;
}

static bool available_avx512(void) {
    return available_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

// What the tables with these kernels share: all but products with tiles of halves and whole numbers.
#define KERNELS_AVX512                                                                                             \
    .matmul[ROWS_FP32] = matmul_fp32_avx512, .matmul[ROWS_INT8] = matmul_int8_avx512,                              \
    .matmul[TILES_FP32] = matmul_tiles_fp32_avx512, .quantise = quantise_avx512, .rmsnorm = rmsnorm_avx512,        \
    .swiglu = swiglu_avx512, .store[LLAMA_KV_FP32] = store_fp32, .store[LLAMA_KV_BF16] = store_bf16,               \
    .store[LLAMA_KV_FP16] = store_fp16_avx2, .store[LLAMA_KV_INT8] = store_int8_avx2,                              \
    .attend[LLAMA_KV_FP32] = attend_fp32_avx512, .attend[LLAMA_KV_BF16] = attend_bf16_avx512,                      \
    .attend[LLAMA_KV_FP16] = attend_fp16_avx512, .attend[LLAMA_KV_INT8] = attend_int8_avx512,                      \
    .extremes = extremes_avx512, .likelihoods = likelihoods_avx512, .collect = collect_avx512

static const Kernels kernels_avx512 = {
    .name = "avx512",
    .available = available_avx512,
    .matmul[TILES_BF16] = matmul_tiles_bf16_avx512,
    .matmul[TILES_INT8] = matmul_tiles_int8_avx512,
    .matmul[TILES_INT4] = matmul_tiles_int4_avx512,
    KERNELS_AVX512,
};

#endif
