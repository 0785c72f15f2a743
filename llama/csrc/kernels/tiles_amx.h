// tiles_amx.h: products with the tiles of tiles.h for AMX.
//
// int8 and int4: the sums of a group are whole numbers, so outputs are those of tiles_avx512.h to the bit, and few
// rows of activations go there. Weights are made signed, some groups at a time, before all rows of activations meet
// them.
#ifndef LLAMA_TILES_AMX_H
#define LLAMA_TILES_AMX_H

#include "amx.h"

// Rows of activations at least: fewer are multiplied faster without tiles. Groups at once, and those whose sums are
// under way.
enum { AMX_LEAST = 8, AMX_GROUPS = 24, AMX_AHEAD = 4 };

// Groups of a tile of weights.
typedef struct {
    int8_t weights[AMX_GROUPS][TILE_GROUP * TILE_ROWS]; // [8 chunks][16 rows][4 columns] each
    float scales[AMX_GROUPS][TILE_ROWS];
    int32_t n;
} Groups;

AMX_INLINE void groups_amx(Groups *groups, const uint8_t *tile, int32_t g0, int32_t n, const int type) {
    const __m512i low = _mm512_set1_epi8(15), zero = _mm512_set1_epi8((char)tile_zero(type));
    groups->n = n;
    for (int32_t g = 0; g < n; g++) {
        const uint8_t *from = group_weights(tile, g0 + g, type);
        int8_t *to = groups->weights[g];
        EACH (c, tile_group_bytes(type) / 64) {
            __m512i bytes = _mm512_loadu_si512(from + c * 64);
            if (type == TILES_INT8) {
                _mm512_store_si512(to + c * 64, _mm512_sub_epi8(bytes, zero));
            } else {
                __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
                _mm512_store_si512(to + c * 128, _mm512_sub_epi8(_mm512_and_si512(bytes, low), zero));
                _mm512_store_si512(to + c * 128 + 64, _mm512_sub_epi8(high, zero));
            }
        }
        __m256i halves = _mm256_loadu_si256((const __m256i *)group_scales(tile, g0 + g, type));
        _mm512_store_ps(groups->scales[g], _mm512_cvtph_ps(halves));
    }
}

// Step g of a row of groups: writes the sums that were begun AMX_AHEAD steps before, and begins those of group g in
// the same tile. To write them at once would be to wait for them.
#define DOTS_STEP(tile, g)                                                                                         \
    do {                                                                                                           \
        if ((g) >= AMX_AHEAD) TILE_STORE(tile, dots[tile], 64);                                                    \
        if ((g) >= groups->n) break;                                                                               \
        TILE_LOAD(4, x_q + (g) * TILE_GROUP, x_stride);                                                            \
        TILE_LOAD(5, groups->weights[g], 64);                                                                      \
        TILE_ZERO(tile);                                                                                           \
        TILE_INT8(tile, 4, 5);                                                                                     \
    } while (0)

AMX_INLINE void dots_amx(int32_t dots[AMX_AHEAD][AMX_ROWS][TILE_ROWS], const int8_t *x_q, int64_t x_stride,
                         const Groups *groups, int32_t g) {
    switch (g % AMX_AHEAD) {
    case 0: DOTS_STEP(0, g); break;
    case 1: DOTS_STEP(1, g); break;
    case 2: DOTS_STEP(2, g); break;
    default: DOTS_STEP(3, g);
    }
}

// Adds groups, the first of which is number g0 of the row, to 16 outputs, or those of the mask, of n rows of
// activations.
AMX_INLINE void rows_amx(float *out, int64_t stride, __mmask16 mask, const int8_t *x_q, int64_t x_stride,
                         const float *x_scales, int64_t x_groups, const Groups *groups, bool first, const int n) {
    _Alignas(64) int32_t dots[AMX_AHEAD][AMX_ROWS][TILE_ROWS];
    __m512 sum[AMX_ROWS];
    EACH (i, n) sum[i] = _mm512_maskz_loadu_ps(first ? 0 : mask, out + i * stride);
    LOOP (g, AMX_AHEAD + 1) dots_amx(dots, x_q, x_stride, groups, g);
    LOOP (g, groups->n) {
        __m512 scale = _mm512_load_ps(groups->scales[g]);
        EACH (i, n) {
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[i * x_groups + g]));
            __m512i dot = _mm512_load_si512(dots[g % AMX_AHEAD][i]);
            sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), both, sum[i]);
        }
        dots_amx(dots, x_q, x_stride, groups, g + AMX_AHEAD + 1);
    }
    EACH (i, n) _mm512_mask_storeu_ps(out + i * stride, mask, sum[i]);
}

AMX_INLINE void some_rows_amx(float *out, int64_t stride, __mmask16 mask, const Rows *x, int32_t i, int32_t n,
                              const Groups *groups, int32_t g0) {
    const int8_t *q = x->quants + (int64_t)i * x->cols + g0 * TILE_GROUP;
    const float *scales = x->scales + (int64_t)i * x->groups + g0;
    bool first = g0 == 0;
    out += i * stride;
    switch (n) {
    case 16: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 16); break;
    case 15: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 15); break;
    case 14: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 14); break;
    case 13: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 13); break;
    case 12: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 12); break;
    case 11: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 11); break;
    case 10: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 10); break;
    case 9: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 9); break;
    default: rows_amx(out, stride, mask, q, x->cols, scales, x->groups, groups, first, 8);
    }
}

// n rows of activations, a multiple of m, with a tile of weights.
AMX_INLINE void tile_amx(float *out, int64_t stride, const Rows *x, int32_t n, int32_t m, const Tensor *w,
                         int32_t r, int32_t rows, const int type) {
    int32_t size = even_part(tile_groups(w), AMX_GROUPS);
    _Alignas(64) Groups groups;
    for (int32_t g = 0; g < tile_groups(w); g += size) {
        groups_amx(&groups, tensor_tile(w, r), g, MIN(size, tile_groups(w) - g), type);
        for (int32_t i = 0; i < n; i += m) some_rows_amx(out + r, stride, mask_avx512(rows), x, i, m, &groups, g);
    }
}

AMX_INLINE void matmul_tiles_amx(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                 int32_t begin, int32_t end, const int type) {
    uint8_t m = (uint8_t)amx_rows(n), k = TILE_GROUP / 4;
    TileShapes shapes = {.palette = 1, .row_bytes = {64, 64, 64, 64, TILE_GROUP, 64}, .rows = {m, m, m, m, m, k}};
    TILE_CONFIGURE(shapes);
    for (int32_t r = begin; r < end; r += TILE_ROWS)
        tile_amx(out, stride, x, n / m * m, m, w, r, MIN(TILE_ROWS, end - r), type);
    TILE_RELEASE();
}

AMX static void matmul_tiles_int8_amx(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                      int32_t begin, int32_t end) {
    int32_t left = n < AMX_LEAST ? n : n % amx_rows(n);
    if (left < n) matmul_tiles_amx(out, stride, x, n, w, begin, end, TILES_INT8);
    if (left == 0) return;
    Rows last = rows_from(x, n - left);
    matmul_tiles_int8_avx512(out + (n - left) * stride, stride, &last, left, w, begin, end);
}

AMX static void matmul_tiles_int4_amx(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                      int32_t begin, int32_t end) {
    int32_t left = n < AMX_LEAST ? n : n % amx_rows(n);
    if (left < n) matmul_tiles_amx(out, stride, x, n, w, begin, end, TILES_INT4);
    if (left == 0) return;
    Rows last = rows_from(x, n - left);
    matmul_tiles_int4_avx512(out + (n - left) * stride, stride, &last, left, w, begin, end);
}

#endif
