// tiles_amx.h: products with tiles of int8 and int4 for AMX.
//
// The sums of a group are whole numbers, so outputs are those of tiles_avx512.h to the bit, and few rows of
// activations go there. Weights are made signed, some groups at a time, before all rows of activations meet them.
// Then the sums of these groups are computed, and after that they are scaled: while tiles are at work, vectors have
// half of their units, so that both at once take longer than one after the other.
#ifndef LLAMA_TILES_AMX_H
#define LLAMA_TILES_AMX_H

#include "amx.h"

// Rows of activations at least: fewer are multiplied faster without tiles. Groups at once, as the first cache
// holds.
enum { AMX_LEAST = 16, AMX_GROUPS = 12, AMX_TILES = 2 };

// Groups of a tile of weights.
typedef struct {
    _Alignas(64) int8_t weights[AMX_GROUPS][TILE_GROUP * TILE_ROWS]; // [8 chunks][16 rows][4 columns] each
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

// Begins the sums of group g in a tile, and writes those that were begun there four groups before: to write them at
// once would be to wait for them.
#define BEGIN_DOTS(tile, g)                                                                                        \
    do {                                                                                                           \
        if ((g) >= 4) TILE_STORE(tile, dots[(g) - 4], 64);                                                         \
        TILE_LOAD(4, x_q + (g) * TILE_GROUP, x_stride);                                                            \
        TILE_LOAD(5, groups->weights[g], 64);                                                                      \
        TILE_ZERO(tile);                                                                                           \
        TILE_INT8(tile, 4, 5);                                                                                     \
    } while (0)

// dots: of each group, rows of activations and of weights. The sums of the last four are still in their tiles.
AMX_INLINE void begin_dots(int32_t dots[AMX_GROUPS][AMX_ROWS][TILE_ROWS], const int8_t *x_q, int64_t x_stride,
                           const Groups *groups) {
    int32_t g = 0, n = groups->n;
    for (; g + 4 <= n; g += 4) {
        BEGIN_DOTS(0, g);
        BEGIN_DOTS(1, g + 1);
        BEGIN_DOTS(2, g + 2);
        BEGIN_DOTS(3, g + 3);
    }
    if (g < n) BEGIN_DOTS(0, g);
    if (g + 1 < n) BEGIN_DOTS(1, g + 1);
    if (g + 2 < n) BEGIN_DOTS(2, g + 2);
}

// Writes the sums of the last group of n that a tile holds, if there is one.
#define END_DOTS(tile)                                                                                             \
    do {                                                                                                           \
        int32_t last = n - 1 - (n - 1 - (tile) + 4) % 4;                                                           \
        if (last >= 0) TILE_STORE(tile, dots[last], 64);                                                           \
    } while (0)

AMX_INLINE void end_dots(int32_t dots[AMX_GROUPS][AMX_ROWS][TILE_ROWS], int32_t n) {
    END_DOTS(0);
    END_DOTS(1);
    END_DOTS(2);
    END_DOTS(3);
}

// Adds groups to 16 outputs, or those of the mask, of n rows of activations; they begin with the first of the row
// or go on.
AMX_INLINE void rows_amx(float *out, int64_t stride, __mmask16 mask, const int8_t *x_q, int64_t x_stride,
                         const float *x_scales, int64_t x_groups, const Groups *groups, bool first, const int n) {
    _Alignas(64) int32_t dots[AMX_GROUPS][AMX_ROWS][TILE_ROWS];
    begin_dots(dots, x_q, x_stride, groups);
    end_dots(dots, groups->n);
    __m512 sum[AMX_ROWS];
    EACH (i, n) sum[i] = _mm512_maskz_loadu_ps(first ? 0 : mask, out + i * stride);
    LOOP (g, groups->n) {
        __m512 scale = _mm512_load_ps(groups->scales[g]);
        EACH (i, n) {
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[i * x_groups + g]));
            sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots[g][i])), both, sum[i]);
        }
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

// n rows of activations, a multiple of m, with rows [r, end) of weights, which are no more than AMX_TILES tiles.
AMX_INLINE void some_tiles_amx(float *out, int64_t stride, const Rows *x, int32_t n, int32_t m, const Tensor *w,
                               int32_t r, int32_t end, const int type) {
    int32_t size = even_part(tile_groups(w), AMX_GROUPS), tiles = (end - r + TILE_ROWS - 1) / TILE_ROWS;
    Groups groups[AMX_TILES];
    for (int32_t g = 0; g < tile_groups(w); g += size) {
        int32_t count = MIN(size, tile_groups(w) - g);
        for (int32_t t = 0; t < tiles; t++)
            groups_amx(&groups[t], tensor_tile(w, r + t * TILE_ROWS), g, count, type);
        for (int32_t i = 0; i < n; i += m)
            for (int32_t t = 0; t < tiles; t++)
                some_rows_amx(out + r + t * TILE_ROWS, stride, mask_avx512(end - r - t * TILE_ROWS), x, i, m,
                              &groups[t], g);
    }
}

AMX_INLINE void matmul_tiles_amx(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                 int32_t begin, int32_t end, const int type) {
    uint8_t m = (uint8_t)amx_rows(n), k = TILE_GROUP / 4;
    TileShapes shapes = {.palette = 1, .row_bytes = {64, 64, 64, 64, TILE_GROUP, 64}, .rows = {m, m, m, m, m, k}};
    TILE_CONFIGURE(shapes);
    for (int32_t r = begin; r < end; r += AMX_TILES * TILE_ROWS)
        some_tiles_amx(out, stride, x, n / m * m, m, w, r, MIN(end, r + AMX_TILES * TILE_ROWS), type);
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
