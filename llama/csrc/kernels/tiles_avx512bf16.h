// tiles_avx512bf16.h: products with tiles of bf16 for CPUs that multiply pairs of bf16 (Zen 4, Sapphire Rapids and
// later). Mirrors the floats of tiles_avx512.h.
//
// Activations are rounded to bf16 as they enter; products are exact, sums are fp32, two products at a time, and
// what is below 2^-126 counts as zero. So results differ from those of the other instruction sets by rounding, and
// a product takes half the time.
#ifndef LLAMA_TILES_AVX512BF16_H
#define LLAMA_TILES_AVX512BF16_H

#include "tiles_avx512.h"

#define AVX512BF16 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")))
#define AVX512BF16_INLINE AVX512BF16 __attribute__((always_inline)) static inline

// The outputs of `tiles` tiles for n rows of activations from x on; the last tile has `rows` rows. fetch: as in
// tiles_avx512.h.
AVX512BF16_INLINE void halves_avx512bf16(float *out, int64_t stride, const uint16_t *x, int64_t x_stride,
                                         const Tensor *w, int32_t r0, int32_t rows, const int tiles, const int n,
                                         const int fetch) {
    const uint8_t *tile = tensor_tile(w, r0);
    int64_t bytes = (int64_t)tile_bytes(w);
    __m512 sum[4][8];
    EACH (t, tiles)
        EACH (i, n) sum[t][i] = _mm512_setzero_ps();
    for (int32_t k = 0; k < w->cols; k += 2, tile += 64) {
        __m512bh weights[4];
        EACH (t, tiles) {
            weights[t] = (__m512bh)_mm512_loadu_si512(tile + t * bytes);
            fetch_tile_avx512(tile + t * bytes, tiles * bytes, fetch);
        }
        EACH (i, n) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32(load_i32(x + i * x_stride + k));
            EACH (t, tiles) sum[t][i] = _mm512_dpbf16_ps(sum[t][i], weights[t], pair);
        }
    }
    EACH (t, tiles) {
        __mmask16 mask = t + 1 == tiles && rows < TILE_ROWS ? (__mmask16)((1u << rows) - 1) : 0xffff;
        EACH (i, n) _mm512_mask_storeu_ps(out + i * stride + t * TILE_ROWS, mask, sum[t][i]);
    }
}

// Rows [i, i + n) of activations, at most eight, with `tiles` tiles from row r on.
AVX512BF16_INLINE void some_halves_avx512bf16(float *out, int64_t stride, const Rows *rows_x, int32_t i, int32_t n,
                                              const Tensor *w, int32_t r, int32_t rows, const int tiles,
                                              const int fetch) {
    const uint16_t *x = rows_x->halves + (int64_t)i * rows_x->cols;
    int64_t x_stride = rows_x->cols;
    out += i * stride + r;
    switch (n) {
    case 8: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 8, fetch); break;
    case 7: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 7, fetch); break;
    case 6: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 6, fetch); break;
    case 5: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 5, fetch); break;
    case 4: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 4, fetch); break;
    case 3: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 3, fetch); break;
    case 2: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 2, fetch); break;
    default: halves_avx512bf16(out, stride, x, x_stride, w, r, rows, tiles, 1, fetch);
    }
}

AVX512BF16_INLINE void all_halves_avx512bf16(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                             int32_t r, int32_t rows, const int tiles) {
    for (int32_t i = 0, step; i < n; i += step) {
        step = even_part(n - i, 8);
        if (i == 0)
            some_halves_avx512bf16(out, stride, x, i, step, w, r, rows, tiles, FETCH_NEXT);
        else
            some_halves_avx512bf16(out, stride, x, i, step, w, r, rows, tiles, FETCH_NONE);
    }
}

AVX512BF16 static void matmul_tiles_bf16_avx512bf16(float *out, int64_t stride, const Rows *x, int32_t n,
                                                    const Tensor *w, int32_t begin, int32_t end) {
    int32_t r = begin;
    if (n == 1 && !rows_at_once(w)) {
        for (; r < end; r += TILE_ROWS)
            halves_avx512bf16(out + r, stride, x->halves, x->cols, w, r, MIN(TILE_ROWS, end - r), 1, 1, FETCH_NONE);
        return;
    }
    for (; n == 1 && r + 4 * TILE_ROWS <= end; r += 4 * TILE_ROWS)
        halves_avx512bf16(out + r, stride, x->halves, x->cols, w, r, TILE_ROWS, 4, 1, FETCH_NONE);
    for (; r + 3 * TILE_ROWS <= end; r += 3 * TILE_ROWS)
        all_halves_avx512bf16(out, stride, x, n, w, r, TILE_ROWS, 3);
    for (; r < end; r += TILE_ROWS) all_halves_avx512bf16(out, stride, x, n, w, r, MIN(TILE_ROWS, end - r), 1);
}

#endif
