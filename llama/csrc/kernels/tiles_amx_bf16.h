// tiles_amx_bf16.h: products with tiles of bf16 for AMX.
//
// 32 columns at a time are added up, those with even numbers and those with odd ones apart and from zero on; then
// both, and what was there before. So results differ from those of tiles_avx512bf16.h by rounding, and a single row
// of activations is multiplied in the same way.
#ifndef LLAMA_TILES_AMX_BF16_H
#define LLAMA_TILES_AMX_BF16_H

#include "amx.h"

enum { BF16_COLUMNS = 32 }; // of a step

// Two times m rows of activations and two tiles of weights, from some column on.
typedef struct {
    const uint16_t *x[2]; // (m, BF16_COLUMNS), rows x_stride bytes apart
    int64_t x_stride;
    const uint8_t *w[2]; // [16 chunks][16 rows][2 columns]
} Halves;

AMX_INLINE void step_bf16_amx(const Halves *at, const int parts, const int tiles) {
    TILE_LOAD(4, at->x[0], at->x_stride);
    TILE_LOAD(6, at->w[0], 64);
    TILE_BF16(0, 4, 6);
    if (tiles == 2) {
        TILE_LOAD(7, at->w[1], 64);
        TILE_BF16(1, 4, 7);
    }
    if (parts == 1) return;
    TILE_LOAD(5, at->x[1], at->x_stride);
    TILE_BF16(2, 5, 6);
    if (tiles == 2) TILE_BF16(3, 5, 7);
}

// The last columns, fewer than BF16_COLUMNS, with zeros behind them.
AMX_INLINE void last_bf16_amx(const Halves *at, int32_t columns, int32_t m, const int parts, const int tiles) {
    _Alignas(64) uint16_t x[2][AMX_ROWS][BF16_COLUMNS] = {0};
    _Alignas(64) uint8_t w[2][BF16_COLUMNS / 2 * 64] = {0};
    int32_t pairs = (columns + 1) / 2;
    EACH (p, parts)
        for (int32_t i = 0; i < m; i++)
            memcpy(x[p][i], (const uint8_t *)at->x[p] + i * at->x_stride, (size_t)pairs * 4);
    EACH (t, tiles) memcpy(w[t], at->w[t], (size_t)pairs * 64);
    Halves last = {{x[0][0], x[1][0]}, sizeof x[0][0], {w[0], w[1]}};
    step_bf16_amx(&last, parts, tiles);
}

// Of m rows of activations, 16 outputs, or those of the mask.
#define STORE_BF16(tile, out, stride, m, mask)                                                                     \
    do {                                                                                                           \
        _Alignas(64) float sums[AMX_ROWS][TILE_ROWS];                                                              \
        TILE_STORE(tile, sums, 64);                                                                                \
        for (int32_t row = 0; row < (m); row++)                                                                    \
            _mm512_mask_storeu_ps((out) + row * (stride), mask, _mm512_load_ps(sums[row]));                        \
    } while (0)

// The outputs of one or two times m rows of activations from row i on, with one or two tiles from row r on; the
// last tile has `rows` rows.
AMX_INLINE void block_bf16_amx(float *out, int64_t stride, const Rows *x, int32_t i, int32_t m, const Tensor *w,
                               int32_t r, int32_t rows, const int parts, const int tiles) {
    const uint16_t *halves = x->halves + (int64_t)i * x->cols;
    const uint8_t *tile = tensor_tile(w, r);
    int32_t cols = w->cols, k = 0;
    Halves at = {{halves, halves + (int64_t)m * x->cols}, 2 * (int64_t)x->cols, {tile, tile + tile_bytes(w)}};
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (; k + BF16_COLUMNS <= cols; k += BF16_COLUMNS) {
        step_bf16_amx(&at, parts, tiles);
        EACH (j, 2) {
            at.x[j] += BF16_COLUMNS;
            at.w[j] += BF16_COLUMNS / 2 * 64;
        }
    }
    if (k < cols) last_bf16_amx(&at, cols - k, m, parts, tiles);
    __mmask16 first = tiles == 1 ? mask_avx512(rows) : 0xffff, last = mask_avx512(rows);
    out += i * stride + r;
    STORE_BF16(0, out, stride, m, first);
    if (tiles == 2) STORE_BF16(1, out + TILE_ROWS, stride, m, last);
    out += m * stride;
    if (parts == 2) STORE_BF16(2, out, stride, m, first);
    if (parts == 2 && tiles == 2) STORE_BF16(3, out + TILE_ROWS, stride, m, last);
}

// n rows of activations, a multiple of m, with one or two tiles.
AMX_INLINE void all_bf16_amx(float *out, int64_t stride, const Rows *x, int32_t n, int32_t m, const Tensor *w,
                             int32_t r, int32_t rows, const int tiles) {
    int32_t i = 0;
    for (; i + 2 * m <= n; i += 2 * m) block_bf16_amx(out, stride, x, i, m, w, r, rows, 2, tiles);
    if (i < n) block_bf16_amx(out, stride, x, i, m, w, r, rows, 1, tiles);
}

AMX static void matmul_tiles_bf16_amx(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                      int32_t begin, int32_t end) {
    int32_t m = amx_rows(n), r = begin, left = n % m;
    uint8_t rows = (uint8_t)m;
    TileShapes shapes = {.palette = 1,
                         .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                         .rows = {rows, rows, rows, rows, rows, rows, 16, 16}};
    TILE_CONFIGURE(shapes);
    for (; r + 2 * TILE_ROWS <= end; r += 2 * TILE_ROWS)
        all_bf16_amx(out, stride, x, n - left, m, w, r, TILE_ROWS, 2);
    for (; r < end; r += TILE_ROWS) all_bf16_amx(out, stride, x, n - left, m, w, r, MIN(TILE_ROWS, end - r), 1);
    TILE_RELEASE();
    if (left == 0) return;
    Rows last = rows_from(x, n - left);
    matmul_tiles_bf16_amx(out + (n - left) * stride, stride, &last, left, w, begin, end);
}

#endif
