// kernels_neon.h: the kernels for ARM, 4 lanes. Mirrors kernels_avx2.h, without its prefetches, which are not
// measured on ARM. Three tables: neon for every aarch64 CPU, dotprod for those with the int8 dot product
// (tiles_neon.h), i8mm for those with the int8 matrix product too (tiles_i8mm.h).
#ifndef LLAMA_KERNELS_NEON_H
#define LLAMA_KERNELS_NEON_H

#include "attention_neon.h" // attend_fp32_neon ...
#include "kernels.h"
#include "vector_neon.h" // mask_neon, exp_neon
#include "tiles_neon.h"  // NEON_INLINE, Dot, store_neon, matmul_tiles_int8_neon
#include "tiles_i8mm.h"  // matmul_tiles_int8_i8mm

#include <arm_neon.h> // v*q_f32, v*q_s32

#if defined(__linux__)
#include <sys/auxv.h> // getauxval
#elif defined(__APPLE__)
#include <sys/sysctl.h> // sysctlbyname
#endif

// ---------------------------------------------------------------------------------------------------------
// fp32 matmul with rows: a block of r rows of weights x n rows of activations, one accumulator each. r and n are
// constants at every call, so that the block stays in registers, of which there are 32.

NEON_INLINE void step_rows_neon(float32x4_t sum[8][4], const float *x, int64_t x_stride, const float *w,
                                int64_t w_stride, int64_t left, const int r, const int n) {
    float32x4_t values[4];
    EACH (i, n) values[i] = load_neon(x + i * x_stride, left);
    EACH (j, r) {
        float32x4_t row = load_neon(w + j * w_stride, left);
        EACH (i, n) sum[j][i] = vfmaq_f32(sum[j][i], row, values[i]);
    }
}

NEON_INLINE void tile_rows_neon(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r0,
                                const int r, const int n) {
    const float *values = x->values + (int64_t)i0 * x->cols;
    const float *row = tensor_row_fp32(w, r0);
    int64_t x_stride = x->cols, k_size = w->cols, k = 0;
    float32x4_t sum[8][4];
    EACH (j, r)
        EACH (i, n) sum[j][i] = vdupq_n_f32(0);
    for (; k + 4 <= k_size; k += 4) step_rows_neon(sum, values + k, x_stride, row + k, k_size, 4, r, n);
    if (k < k_size) step_rows_neon(sum, values + k, x_stride, row + k, k_size, k_size - k, r, n);
    EACH (j, r)
        EACH (i, n) out[i * stride + j] = reduce_add_neon(sum[j][i]);
}

static void matmul_fp32_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w, int32_t begin,
                             int32_t end) {
    int32_t r = begin;
    for (; n == 1 && r + 8 <= end; r += 8) tile_rows_neon(out + r, stride, x, 0, w, r, 8, 1);
    for (; r + 4 <= end; r += 4) {
        int32_t i = 0;
        for (; i + 4 <= n; i += 4) tile_rows_neon(out + i * stride + r, stride, x, i, w, r, 4, 4);
        for (; i < n; i++) tile_rows_neon(out + i * stride + r, stride, x, i, w, r, 4, 1);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_rows_neon(out + i * stride + r, stride, x, i, w, r, 1, 1);
}

// ---------------------------------------------------------------------------------------------------------
// int8 matmul, group sizes that are multiples of 16. The integers are exact, so a group's sum is taken across the
// lanes right away: 4 rows of weights then share a vector, and one output is one lane.

NEON_INLINE void tile_int8_neon(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r0,
                                const int r, const int n, Dot *dot) {
    const int32x4_t zero = vdupq_n_s32(0);
    int32_t size = w->group_size, groups = tensor_groups(w), x_groups = x->groups;
    const int8_t *q = tensor_row_int8(w, r0), *x_q = x->quants + (int64_t)i0 * x->cols;
    const uint8_t *scales = tensor_row_scales(w, r0);
    const float *x_scales = x->scales + (int64_t)i0 * x_groups;
    float32x4_t sum[4]; // of r rows
    EACH (i, n) sum[i] = vdupq_n_f32(0);
    for (int32_t g = 0; g < groups; g++) {
        int32x4_t products[4][4];
        int8x16_t values[4];
        EACH (i, n)
            EACH (j, 4) products[i][j] = zero;
        for (int32_t k = g * size; k < (g + 1) * size; k += 16) {
            EACH (i, n) values[i] = vld1q_s8(x_q + (int64_t)i * x->cols + k);
            EACH (j, r) {
                int8x16_t row = vld1q_s8(q + (int64_t)j * w->cols + k);
                EACH (i, n) products[i][j] = dot(products[i][j], row, values[i]);
            }
        }
        float32x4_t scale = vdupq_n_f32(0);
        EACH (j, r) scale[j] = load_f32(scales + ((int64_t)j * groups + g) * 4);
        EACH (i, n) {
            const int32x4_t *p = products[i];
            int32x4_t rows = vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3]));
            float32x4_t both = vmulq_n_f32(scale, x_scales[(int64_t)i * x_groups + g]);
            sum[i] = vfmaq_f32(sum[i], vcvtq_f32_s32(rows), both);
        }
    }
    EACH (i, n) store_neon(out + i * stride, sum[i], r);
}

NEON_INLINE void matmul_rows_int8_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                       int32_t begin, int32_t end, Dot *dot) {
    if (w->group_size % 16) {
        matmul_int8_scalar(out, stride, x, n, w, begin, end);
        return;
    }
    int32_t r = begin;
    for (; r + 4 <= end; r += 4) {
        int32_t i = 0;
        for (; i + 4 <= n; i += 4) tile_int8_neon(out + i * stride + r, stride, x, i, w, r, 4, 4, dot);
        for (; i < n; i++) tile_int8_neon(out + i * stride + r, stride, x, i, w, r, 4, 1, dot);
    }
    for (; r < end; r++)
        for (int32_t i = 0; i < n; i++) tile_int8_neon(out + i * stride + r, stride, x, i, w, r, 1, 1, dot);
}

static void matmul_int8_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w, int32_t begin,
                             int32_t end) {
    matmul_rows_int8_neon(out, stride, x, n, w, begin, end, dot_neon);
}

static void matmul_int8_dotprod(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                int32_t begin, int32_t end) {
    matmul_rows_int8_neon(out, stride, x, n, w, begin, end, dot_dotprod);
}

static void quantise_neon(int8_t *q, float *scales, int32_t *sums, const float *x, int32_t n, int32_t group_size) {
    if (group_size % 8) {
        quantise(q, scales, sums, x, n, group_size);
        return;
    }
    const float32x4_t top = vdupq_n_f32(127), bottom = vdupq_n_f32(-127);
    for (int32_t g = 0; g < n / group_size; g++, x += group_size, q += group_size) {
        float32x4_t max_lanes = vdupq_n_f32(0), poison = vdupq_n_f32(0);
        for (int32_t i = 0; i < group_size; i += 4) {
            float32x4_t value = vld1q_f32(x + i);
            max_lanes = vmaxnmq_f32(max_lanes, vabsq_f32(value)); // nm: where one is NaN the other is the result
            poison = vfmaq_f32(poison, value, vdupq_n_f32(0));
        }
        float max = vmaxnmvq_f32(max_lanes), inverse = max > QUANTISE_MIN ? 127 / max : 0;
        scales[g] = (max > QUANTISE_MIN ? max / 127 : 0) + reduce_add_neon(poison);
        int32x4_t sum = vdupq_n_s32(0);
        for (int32_t i = 0; i < group_size; i += 8) {
            int32x4_t four[2];
            EACH (j, 2) {
                float32x4_t value = vmulq_n_f32(vld1q_f32(x + i + 4 * j), inverse);
                four[j] = vcvtnq_s32_f32(vmaxnmq_f32(bottom, vminnmq_f32(value, top)));
                sum = vaddq_s32(sum, four[j]);
            }
            vst1_s8(q + i, vmovn_s16(vcombine_s16(vmovn_s32(four[0]), vmovn_s32(four[1]))));
        }
        sums[g] = vaddvq_s32(sum);
    }
}

// ---------------------------------------------------------------------------------------------------------
// The rest of a layer

static void rmsnorm_neon(float *out, const float *x, const float *weight, int32_t k, float eps) {
    float32x4_t sum = vdupq_n_f32(0);
    for (int32_t i = 0; i < k; i += 4) {
        float32x4_t value = load_neon(x + i, k - i);
        sum = vfmaq_f32(sum, value, value);
    }
    float scale = 1 / sqrtf(reduce_add_neon(sum) / (float)k + eps);
    for (int32_t i = 0; i < k; i += 4) {
        float32x4_t value = vmulq_n_f32(load_neon(x + i, k - i), scale);
        store_neon(out + i, vmulq_f32(load_neon(weight + i, k - i), value), k - i);
    }
}

static void swiglu_neon(float *h1, const float *h3, int32_t n) {
    const float32x4_t one = vdupq_n_f32(1);
    for (int32_t i = 0; i < n; i += 4) {
        float32x4_t h = load_neon(h1 + i, n - i);
        float32x4_t silu = vdivq_f32(h, vaddq_f32(one, exp_neon(vnegq_f32(h))));
        store_neon(h1 + i, vmulq_f32(silu, load_neon(h3 + i, n - i)), n - i);
    }
}

// ---------------------------------------------------------------------------------------------------------

static bool available_neon(void) {
    return true; // a part of aarch64
}

static bool available_dotprod(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    return true; // in every Mac with an ARM CPU
#else
    return false;
#endif
}

static bool available_i8mm(void) {
#if defined(__linux__)
    return available_dotprod() && getauxval(AT_HWCAP2) & 1 << 13; // HWCAP2_I8MM, which glibc before 2.33 lacks
#elif defined(__APPLE__)
    int found = 0; // from the M2 on
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &size, NULL, 0) == 0 && found;
#else
    return false;
#endif
}

// What the tables share. Passes over a vocabulary are the compiler's own vectors: NEON is a part of aarch64.
#define KERNELS_NEON                                                                                               \
    .matmul[ROWS_FP32] = matmul_fp32_neon, .matmul[TILES_FP32] = matmul_tiles_fp32_neon,                           \
    .matmul[TILES_BF16] = matmul_tiles_bf16_neon, .quantise = quantise_neon, .rmsnorm = rmsnorm_neon,              \
    .swiglu = swiglu_neon, .store[LLAMA_KV_FP32] = store_fp32, .store[LLAMA_KV_BF16] = store_bf16,                 \
    .store[LLAMA_KV_FP16] = store_fp16_neon, .store[LLAMA_KV_INT8] = store_int8,                                   \
    .attend[LLAMA_KV_FP32] = attend_fp32_neon, .attend[LLAMA_KV_BF16] = attend_bf16_neon,                          \
    .attend[LLAMA_KV_FP16] = attend_fp16_neon, .attend[LLAMA_KV_INT8] = attend_int8_neon,                          \
    .extremes = extremes_scalar, .likelihoods = likelihoods_scalar, .collect = collect_scalar

static const Kernels kernels_neon = {
    .name = "neon",
    .available = available_neon,
    .matmul[ROWS_INT8] = matmul_int8_neon,
    .matmul[TILES_INT8] = matmul_tiles_int8_neon,
    .matmul[TILES_INT4] = matmul_tiles_int4_neon,
    KERNELS_NEON,
};

static const Kernels kernels_dotprod = {
    .name = "dotprod",
    .available = available_dotprod,
    .matmul[ROWS_INT8] = matmul_int8_dotprod,
    .matmul[TILES_INT8] = matmul_tiles_int8_dotprod,
    .matmul[TILES_INT4] = matmul_tiles_int4_dotprod,
    KERNELS_NEON,
};

static const Kernels kernels_i8mm = {
    .name = "i8mm",
    .available = available_i8mm,
    .matmul[ROWS_INT8] = matmul_int8_dotprod,
    .matmul[TILES_INT8] = matmul_tiles_int8_i8mm,
    .matmul[TILES_INT4] = matmul_tiles_int4_i8mm,
    KERNELS_NEON,
};

#endif
