// tiles_i8mm.h: products with the tiles of int8 and int4 for ARM CPUs that multiply matrices of int8 (i8mm: ARMv8.6
// and later, most since 2021). Mirrors tiles_neon.h; a single row of activations is left to it.
//
// The instruction usmmla takes 8 columns of two rows of weights and of two rows of activations and adds their four
// dot products. 16 bytes of a tile are 4 columns of 4 rows; zipped with those that hold the next 4 columns they are
// 8 columns of two rows, twice.
#ifndef LLAMA_TILES_I8MM_H
#define LLAMA_TILES_I8MM_H

#include "tiles_neon.h" // NEON_INLINE, INSTRUCTION_NEON, store_neon, tile_neon

// sum (2, 2) + weights (2, 8) x values (2, 8), transposed.
NEON_INLINE int32x4_t matrix_i8mm(int32x4_t sum, uint8x16_t weights, int8x16_t values) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    return vusmmlaq_s32(sum, weights, values);
#else
    INSTRUCTION_NEON(0x4e80ac00, sum, weights, values); // usmmla
    return sum;
#endif
}

// 8 columns of 8 rows of weights, in pairs of rows.
NEON_INLINE void pairs_i8mm(uint8x16_t pairs[4], const uint8_t *weights, const int type) {
    EACH (h, 2) {
        uint8x16_t first = vld1q_u8(weights + h * 16), second;
        if (type == TILES_INT8) {
            second = vld1q_u8(weights + 64 + h * 16);
        } else {
            second = vshrq_n_u8(first, 4);
            first = vandq_u8(first, vdupq_n_u8(15));
        }
        uint32x4_t a = vreinterpretq_u32_u8(first), b = vreinterpretq_u32_u8(second);
        pairs[2 * h] = vreinterpretq_u8_u32(vzip1q_u32(a, b));
        pairs[2 * h + 1] = vreinterpretq_u8_u32(vzip2q_u32(a, b));
    }
}

// Adds the products of one group: 8 rows of a tile with n rows of activations, both in pairs.
NEON_INLINE void group_i8mm(int32x4_t sum[4][4], const uint8_t *weights, const int8_t *x_q, int64_t x_stride,
                            const int n, const int type) {
    const int step = tile_group_bytes(type) / 4; // 8 columns of a tile
    LOOP (c, 4) {
        uint8x16_t pairs[4];
        pairs_i8mm(pairs, weights + c * step, type);
        EACH (i, n / 2) {
            const int8_t *x = x_q + 2 * i * x_stride + c * 8;
            int8x16_t values = vcombine_s8(vld1_s8(x), vld1_s8(x + x_stride));
            EACH (p, 4) sum[p][i] = matrix_i8mm(sum[p][i], pairs[p], values);
        }
    }
}

// The outputs of half a tile, of which `rows` rows exist, from row r on, for n rows of activations, 2 to 8, from
// row i0 on. A whole tile would need twice the registers.
NEON_INLINE void half_tile_i8mm(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r,
                                int32_t rows, const int n, const int type) {
    int32_t groups = tile_groups(w), x_groups = x->groups, row = r % TILE_ROWS;
    const int8_t *x_q = x->quants + (int64_t)i0 * x->cols;
    const float *x_scales = x->scales + (int64_t)i0 * x_groups;
    const int32_t *x_sums = x->sums + (int64_t)i0 * x_groups;
    const uint8_t *tile = tensor_tile(w, r);
    float32x4_t sum[2][8];
    EACH (h, 2)
        EACH (i, n) sum[h][i] = vdupq_n_f32(0);
    for (int32_t g = 0; g < groups; g++, x_q += TILE_GROUP) {
        int32x4_t products[4][4];
        EACH (i, n / 2) { // what stands for a weight of 0 comes off
            const int32_t *sums = x_sums + 2 * i * (int64_t)x_groups + g;
            int32x4_t both = vsetq_lane_s32(sums[x_groups], vdupq_n_s32(sums[0]), 1);
            both = vmulq_n_s32(both, -tile_zero(type));
            EACH (p, 4) products[p][i] = vcombine_s32(vget_low_s32(both), vget_low_s32(both));
        }
        group_i8mm(products, group_weights(tile, g, type) + row * 4, x_q, x->cols, n, type);
        const uint16_t *scales = (const uint16_t *)group_scales(tile, g, type) + row;
        EACH (h, 2) {
            float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales + h * 4)));
            EACH (i, n) {
                int32x4_t first = products[2 * h][i / 2], second = products[2 * h + 1][i / 2];
                int32x4_t dots = i % 2 ? vuzp2q_s32(first, second) : vuzp1q_s32(first, second);
                float32x4_t both = vmulq_n_f32(scale, x_scales[(int64_t)i * x_groups + g]);
                sum[h][i] = vfmaq_f32(sum[h][i], vcvtq_f32_s32(dots), both);
            }
        }
    }
    EACH (h, 2)
        EACH (i, n) store_neon(out + i * stride + h * 4, sum[h][i], rows - h * 4);
}

// The outputs of a tile, of which `rows` rows exist.
NEON_INLINE void tile_i8mm(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r,
                           int32_t rows, const int n, const int type) {
    for (int32_t h = 0; h < rows; h += 8) half_tile_i8mm(out + h, stride, x, i0, w, r + h, rows - h, n, type);
}

NEON_INLINE void matmul_tiles_i8mm(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end, const int type) {
    for (int32_t r = begin; r < end; r += TILE_ROWS) {
        int32_t i = 0, rows = MIN(TILE_ROWS, end - r);
        for (; i + 8 <= n; i += 8) tile_i8mm(out + i * stride + r, stride, x, i, w, r, rows, 8, type);
        for (; i + 4 <= n; i += 4) tile_i8mm(out + i * stride + r, stride, x, i, w, r, rows, 4, type);
        for (; i + 2 <= n; i += 2) tile_i8mm(out + i * stride + r, stride, x, i, w, r, rows, 2, type);
        if (i < n) tile_neon(out + i * stride + r, stride, x, i, w, r, rows, 1, type, dot_dotprod);
    }
}

static void matmul_tiles_int8_i8mm(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end) {
    matmul_tiles_i8mm(out, stride, x, n, w, begin, end, TILES_INT8);
}

static void matmul_tiles_int4_i8mm(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end) {
    matmul_tiles_i8mm(out, stride, x, n, w, begin, end, TILES_INT4);
}

#endif
