// tiles_neon.h: products with the tiles of tiles.h for ARM. Mirrors tiles_avx2.h, without its prefetches, which are
// not measured on ARM. Everything is there twice: for any aarch64 CPU, and for those with the int8 dot product
// (ARMv8.2 and later, most since 2018).
#ifndef LLAMA_TILES_NEON_H
#define LLAMA_TILES_NEON_H

#include "../weights/tiles.h"

#include <arm_neon.h> // v*q_f32, v*q_s32

#define NEON_INLINE __attribute__((always_inline)) static inline

// sum + a x b, where a lane of sum takes 4 products that lie together. Exact for |a| <= 128 and |b| <= 127.
typedef int32x4_t Dot(int32x4_t sum, int8x16_t a, int8x16_t b);

// Pairs are added in 16 bits: at most 2 x 128 x 127 = 32512.
NEON_INLINE int32x4_t dot_neon(int32x4_t sum, int8x16_t a, int8x16_t b) {
    int16x8_t first = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vpadalq_s16(sum, vpaddq_s16(first, vmull_high_s8(a, b)));
}

// An instruction `name sum.4s, a.16b, b.16b`, in code that is compiled for CPUs without it too. Most compilers and
// assemblers take it only together with the rest of its version of ARM, so here it is as a number; the loop gives
// the registers' names theirs.
#define INSTRUCTION_NEON(number, sum, a, b)                                                                        \
    __asm__(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"       \
            ".set .Lv\\n, \\n\n"                                                                                   \
            ".endr\n"                                                                                              \
            ".inst " #number " | (.L%2 << 16) | (.L%1 << 5) | .L%0"                                                \
            : "+w"(sum)                                                                                            \
            : "w"(a), "w"(b))

NEON_INLINE int32x4_t dot_dotprod(int32x4_t sum, int8x16_t a, int8x16_t b) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sum, a, b);
#else
    INSTRUCTION_NEON(0x4e809400, sum, a, b); // sdot
    return sum;
#endif
}

// 4 activations, as often as a vector holds 4 rows of weights.
NEON_INLINE int8x16_t four_neon(const int8_t *x_q) {
    return vreinterpretq_s8_s32(vdupq_n_s32(load_i32(x_q)));
}

// Adds the products of one group: the 16 rows of a tile, in four quarters, with n rows of activations.
NEON_INLINE void group_neon(int32x4_t sum[4][2], const uint8_t *weights, const int8_t *x_q, int64_t x_stride,
                            const int n, const int type, Dot *dot) {
    const int chunks = tile_group_bytes(type) / 64;
    // not EACH, as the activations of all chunks would not fit into registers
    for (int c = 0; c < chunks; c++)
        EACH (h, 4) {
            uint8x16_t bytes = vld1q_u8(weights + c * 64 + h * 16);
            if (type == TILES_INT8) {
                int8x16_t row = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128))); // byte - 128
                EACH (i, n) sum[h][i] = dot(sum[h][i], row, four_neon(x_q + i * x_stride + c * 4));
            } else {
                int8x16_t first = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
                EACH (i, n) {
                    sum[h][i] = dot(sum[h][i], first, four_neon(x_q + i * x_stride + c * 8));
                    sum[h][i] = dot(sum[h][i], second, four_neon(x_q + i * x_stride + c * 8 + 4));
                }
            }
        }
}

// The first n of 4 values, all for n >= 4.
NEON_INLINE void store_neon(float *out, float32x4_t x, int64_t n) {
    if (n >= 4) {
        vst1q_f32(out, x);
        return;
    }
    if (n > 0) vst1q_lane_f32(out, x, 0);
    if (n > 1) vst1q_lane_f32(out + 1, x, 1);
    if (n > 2) vst1q_lane_f32(out + 2, x, 2);
}

// The outputs of a tile, of which `rows` rows exist, for n rows of activations from row i0 on.
NEON_INLINE void tile_neon(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r,
                           int32_t rows, const int n, const int type, Dot *dot) {
    int32_t groups = tile_groups(w), x_groups = x->groups;
    const int8_t *x_q = x->quants + (int64_t)i0 * x->cols;
    const float *x_scales = x->scales + (int64_t)i0 * x_groups;
    const int32_t *x_sums = x->sums + (int64_t)i0 * x_groups;
    const uint8_t *tile = tensor_tile(w, r);
    float32x4_t sum[4][2];
    EACH (h, 4)
        EACH (i, n) sum[h][i] = vdupq_n_f32(0);
    for (int32_t g = 0; g < groups; g++, x_q += TILE_GROUP) {
        int32x4_t products[4][2];
        EACH (i, n) { // whole bytes are made signed, so only half bytes have a zero to take off
            int32_t zero = type == TILES_INT8 ? 0 : -tile_zero(type) * x_sums[(int64_t)i * x_groups + g];
            EACH (h, 4) products[h][i] = vdupq_n_s32(zero);
        }
        group_neon(products, group_weights(tile, g, type), x_q, x->cols, n, type, dot);
        const uint16_t *scales = (const uint16_t *)group_scales(tile, g, type);
        EACH (h, 4) {
            float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales + h * 4)));
            EACH (i, n) {
                float32x4_t both = vmulq_n_f32(scale, x_scales[(int64_t)i * x_groups + g]);
                sum[h][i] = vfmaq_f32(sum[h][i], vcvtq_f32_s32(products[h][i]), both);
            }
        }
    }
    EACH (h, 4)
        EACH (i, n) store_neon(out + i * stride + h * 4, sum[h][i], rows - h * 4);
}

NEON_INLINE void matmul_tiles_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end, const int type, Dot *dot) {
    for (int32_t r = begin; r < end; r += TILE_ROWS) {
        int32_t i = 0, rows = MIN(TILE_ROWS, end - r);
        for (; i + 2 <= n; i += 2) tile_neon(out + i * stride + r, stride, x, i, w, r, rows, 2, type, dot);
        if (i < n) tile_neon(out + i * stride + r, stride, x, i, w, r, rows, 1, type, dot);
    }
}

static void matmul_tiles_int8_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end) {
    matmul_tiles_neon(out, stride, x, n, w, begin, end, TILES_INT8, dot_neon);
}

static void matmul_tiles_int4_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end) {
    matmul_tiles_neon(out, stride, x, n, w, begin, end, TILES_INT4, dot_neon);
}

static void matmul_tiles_int8_dotprod(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                      int32_t begin, int32_t end) {
    matmul_tiles_neon(out, stride, x, n, w, begin, end, TILES_INT8, dot_dotprod);
}

static void matmul_tiles_int4_dotprod(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                      int32_t begin, int32_t end) {
    matmul_tiles_neon(out, stride, x, n, w, begin, end, TILES_INT4, dot_dotprod);
}

// ---------------------------------------------------------------------------------------------------------
// fp32 and bf16

// The outputs of a tile, of which `rows` rows exist, for n rows of activations from x on.
NEON_INLINE void floats_neon(float *out, int64_t stride, const float *x, int64_t x_stride, const Tensor *w,
                             int32_t r, int32_t rows, const int n, const int type) {
    const int columns = type == TILES_FP32 ? 1 : 2; // in 64 bytes
    const uint8_t *tile = tensor_tile(w, r);
    float32x4_t sum[4][4];
    EACH (h, 4)
        EACH (i, n) sum[h][i] = vdupq_n_f32(0);
    for (int32_t k = 0; k < w->cols; k += columns, tile += 64) {
        float32x4_t weights[2][4];
        EACH (h, 4) {
            uint32x4_t both = vld1q_u32((const uint32_t *)(tile + h * 16));
            bool whole = type == TILES_FP32;
            weights[0][h] = vreinterpretq_f32_u32(whole ? both : vshlq_n_u32(both, 16));
            weights[1][h] = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000)));
        }
        EACH (c, columns) {
            if (k + c == w->cols) break;
            EACH (i, n) {
                float value = x[i * x_stride + k + c];
                EACH (h, 4) sum[h][i] = vfmaq_n_f32(sum[h][i], weights[c][h], value);
            }
        }
    }
    EACH (h, 4)
        EACH (i, n) store_neon(out + i * stride + h * 4, sum[h][i], rows - h * 4);
}

// Rows [i, i + n) of activations, at most four, with the tile of row r.
NEON_INLINE void some_floats_neon(float *out, int64_t stride, const Rows *rows_x, int32_t i, int32_t n,
                                  const Tensor *w, int32_t r, int32_t rows, const int type) {
    const float *x = rows_x->values + (int64_t)i * rows_x->cols;
    int64_t x_stride = rows_x->cols;
    out += i * stride + r;
    switch (n) {
    case 4: floats_neon(out, stride, x, x_stride, w, r, rows, 4, type); break;
    case 3: floats_neon(out, stride, x, x_stride, w, r, rows, 3, type); break;
    case 2: floats_neon(out, stride, x, x_stride, w, r, rows, 2, type); break;
    default: floats_neon(out, stride, x, x_stride, w, r, rows, 1, type);
    }
}

NEON_INLINE void matmul_floats_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                    int32_t begin, int32_t end, const int type) {
    for (int32_t r = begin; r < end; r += TILE_ROWS)
        for (int32_t i = 0, step; i < n; i += step) {
            step = even_part(n - i, 4);
            some_floats_neon(out, stride, x, i, step, w, r, MIN(TILE_ROWS, end - r), type);
        }
}

static void matmul_tiles_fp32_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end) {
    matmul_floats_neon(out, stride, x, n, w, begin, end, TILES_FP32);
}

static void matmul_tiles_bf16_neon(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end) {
    matmul_floats_neon(out, stride, x, n, w, begin, end, TILES_BF16);
}

#endif
