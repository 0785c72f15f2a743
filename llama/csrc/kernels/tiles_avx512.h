// tiles_avx512.h: products with the tiles of tiles.h for AVX-512 with VNNI. Mirrors tiles_avx2.h.
#ifndef LLAMA_TILES_AVX512_H
#define LLAMA_TILES_AVX512_H

#include "../weights/tiles.h"

#include <immintrin.h> // _mm512_*

#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define AVX512_INLINE AVX512 __attribute__((always_inline)) static inline

// What is fetched beside weights by the first rows of activations to meet them, which get them from memory:
// nothing, what they read soon, or what lies a whole number of tiles behind, which other rows leave time for.
enum { FETCH_NONE, FETCH_SOON, FETCH_NEXT };

AVX512_INLINE void fetch_tile_avx512(const uint8_t *weights, int64_t next, const int fetch) {
    if (fetch == FETCH_SOON) _mm_prefetch(weights + TILE_AHEAD, _MM_HINT_T0); // past the end does no harm
    if (fetch == FETCH_NEXT) _mm_prefetch(weights + next, _MM_HINT_T1);
}

// Adds the products of one group: 16 rows of `tiles` tiles with n rows of activations. next: bytes to the tiles
// that come after these.
AVX512_INLINE void group_avx512(__m512i dot[2][6], const uint8_t *const weights[2], const int8_t *x_q,
                                int64_t x_stride, int64_t next, const int tiles, const int n, const int type,
                                const int fetch) {
    const __m512i low = _mm512_set1_epi8(15);
    const int chunks = tile_group_bytes(type) / 64;
    EACH (c, chunks) {
        __m512i bytes[2];
        EACH (t, tiles) {
            bytes[t] = _mm512_loadu_si512(weights[t] + c * 64);
            fetch_tile_avx512(weights[t] + c * 64, next, fetch);
        }
        if (type == TILES_INT8) {
            EACH (i, n) {
                __m512i x = _mm512_set1_epi32(load_i32(x_q + i * x_stride + c * 4));
                EACH (t, tiles) dot[t][i] = _mm512_dpbusd_epi32(dot[t][i], bytes[t], x);
            }
        } else {
            EACH (i, n) {
                __m512i x0 = _mm512_set1_epi32(load_i32(x_q + i * x_stride + c * 8));
                __m512i x1 = _mm512_set1_epi32(load_i32(x_q + i * x_stride + c * 8 + 4));
                EACH (t, tiles) {
                    __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes[t], 4), low);
                    dot[t][i] = _mm512_dpbusd_epi32(dot[t][i], _mm512_and_si512(bytes[t], low), x0);
                    dot[t][i] = _mm512_dpbusd_epi32(dot[t][i], high, x1);
                }
            }
        }
    }
}

// The outputs of `tiles` tiles for n rows of activations from row i0 on; the last tile has `rows` rows.
AVX512_INLINE void tiles_avx512(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r0,
                                int32_t rows, const int tiles, const int n, const int type, const int fetch) {
    int32_t groups = tile_groups(w), x_groups = x->groups;
    const int8_t *x_q = x->quants + (int64_t)i0 * x->cols;
    const float *x_scales = x->scales + (int64_t)i0 * x_groups;
    const int32_t *x_sums = x->sums + (int64_t)i0 * x_groups;
    const uint8_t *tile[2] = {tensor_tile(w, r0), tensor_tile(w, r0 + (tiles - 1) * TILE_ROWS)};
    int64_t next = fetch == FETCH_NEXT ? tiles * (int64_t)tile_bytes(w) : 0;
    __m512 sum[2][6];
    EACH (t, tiles)
        EACH (i, n) sum[t][i] = _mm512_setzero_ps();
    for (int32_t g = 0; g < groups; g++, x_q += TILE_GROUP) {
        __m512i dot[2][6];
        const uint8_t *weights[2];
        EACH (t, tiles) {
            weights[t] = group_weights(tile[t], g, type);
            EACH (i, n) dot[t][i] = _mm512_set1_epi32(-tile_zero(type) * x_sums[(int64_t)i * x_groups + g]);
        }
        group_avx512(dot, weights, x_q, x->cols, next, tiles, n, type, fetch);
        EACH (t, tiles) {
            const __m256i *halves = (const __m256i *)group_scales(tile[t], g, type);
            __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
            EACH (i, n) {
                __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[(int64_t)i * x_groups + g]));
                sum[t][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][i]), both, sum[t][i]);
            }
        }
    }
    EACH (t, tiles) {
        __mmask16 mask = t + 1 == tiles && rows < TILE_ROWS ? (__mmask16)((1u << rows) - 1) : 0xffff;
        EACH (i, n) _mm512_mask_storeu_ps(out + i * stride + t * TILE_ROWS, mask, sum[t][i]);
    }
}

// Rows [i, i + n) of activations with `tiles` tiles from row r on.
AVX512_INLINE void some_rows_avx512(float *out, int64_t stride, const Rows *x, int32_t i, int32_t n,
                                    const Tensor *w, int32_t r, int32_t rows, const int tiles, const int type,
                                    const int fetch) {
    out += i * stride + r;
    switch (n) {
    case 6: tiles_avx512(out, stride, x, i, w, r, rows, tiles, 6, type, fetch); break;
    case 5: tiles_avx512(out, stride, x, i, w, r, rows, tiles, 5, type, fetch); break;
    case 4: tiles_avx512(out, stride, x, i, w, r, rows, tiles, 4, type, fetch); break;
    case 3: tiles_avx512(out, stride, x, i, w, r, rows, tiles, 3, type, fetch); break;
    case 2: tiles_avx512(out, stride, x, i, w, r, rows, tiles, 2, type, fetch); break;
    default: tiles_avx512(out, stride, x, i, w, r, rows, tiles, 1, type, fetch);
    }
}

// All rows of activations with `tiles` tiles, at most six at once.
AVX512_INLINE void all_rows_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w, int32_t r,
                                   int32_t rows, const int tiles, const int type) {
    int32_t i = even_part(n, 6);
    if (fetches_ahead())
        some_rows_avx512(out, stride, x, 0, i, w, r, rows, tiles, type, FETCH_SOON);
    else
        some_rows_avx512(out, stride, x, 0, i, w, r, rows, tiles, type, FETCH_NEXT);
    for (int32_t step; i < n; i += step) {
        step = even_part(n - i, 6);
        some_rows_avx512(out, stride, x, i, step, w, r, rows, tiles, type, FETCH_NONE);
    }
}

// A single row, tile by tile. fetch is a constant at every call: to ask for each vector would cost what it saves.
AVX512_INLINE void one_row_avx512(float *out, const Rows *x, const Tensor *w, int32_t begin, int32_t end,
                                  const int type, const int fetch) {
    for (int32_t r = begin; r < end; r += TILE_ROWS)
        tiles_avx512(out + r, 0, x, 0, w, r, MIN(TILE_ROWS, end - r), 1, 1, type, fetch);
}

AVX512_INLINE void matmul_tiles_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                       int32_t begin, int32_t end, const int type) {
    if (n == 1) {
        if (fetches_ahead())
            one_row_avx512(out, x, w, begin, end, type, FETCH_SOON);
        else
            one_row_avx512(out, x, w, begin, end, type, FETCH_NONE);
        return;
    }
    int32_t r = begin;
    for (; r + 2 * TILE_ROWS <= end; r += 2 * TILE_ROWS)
        all_rows_avx512(out, stride, x, n, w, r, TILE_ROWS, 2, type);
    for (; r < end; r += TILE_ROWS) all_rows_avx512(out, stride, x, n, w, r, MIN(TILE_ROWS, end - r), 1, type);
}

AVX512 static void matmul_tiles_int8_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                            int32_t begin, int32_t end) {
    matmul_tiles_avx512(out, stride, x, n, w, begin, end, TILES_INT8);
}

AVX512 static void matmul_tiles_int4_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                            int32_t begin, int32_t end) {
    matmul_tiles_avx512(out, stride, x, n, w, begin, end, TILES_INT4);
}

// ---------------------------------------------------------------------------------------------------------
// fp32 and bf16

// The outputs of `tiles` tiles for n rows of activations from x on; the last tile has `rows` rows.
AVX512_INLINE void floats_avx512(float *out, int64_t stride, const float *x, int64_t x_stride, const Tensor *w,
                                 int32_t r0, int32_t rows, const int tiles, const int n, const int type) {
    const int columns = type == TILES_FP32 ? 1 : 2; // in 64 bytes
    const uint8_t *tile = tensor_tile(w, r0);
    int64_t bytes = (int64_t)tile_bytes(w);
    __m512 sum[4][8];
    EACH (t, tiles)
        EACH (i, n) sum[t][i] = _mm512_setzero_ps();
    for (int32_t k = 0; k < w->cols; k += columns, tile += 64) {
        __m512 weights[2][4];
        EACH (t, tiles) {
            __m512i both = _mm512_loadu_si512(tile + t * bytes);
            bool whole = type == TILES_FP32;
            weights[0][t] = _mm512_castsi512_ps(whole ? both : _mm512_slli_epi32(both, 16));
            weights[1][t] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
        }
        EACH (c, columns) {
            if (k + c == w->cols) break;
            EACH (i, n) {
                __m512 value = _mm512_set1_ps(x[i * x_stride + k + c]);
                EACH (t, tiles) sum[t][i] = _mm512_fmadd_ps(weights[c][t], value, sum[t][i]);
            }
        }
    }
    EACH (t, tiles) {
        __mmask16 mask = t + 1 == tiles && rows < TILE_ROWS ? (__mmask16)((1u << rows) - 1) : 0xffff;
        EACH (i, n) _mm512_mask_storeu_ps(out + i * stride + t * TILE_ROWS, mask, sum[t][i]);
    }
}

// Rows [i, i + n) of activations, at most eight, with `tiles` tiles from row r on.
AVX512_INLINE void some_floats_avx512(float *out, int64_t stride, const Rows *rows_x, int32_t i, int32_t n,
                                      const Tensor *w, int32_t r, int32_t rows, const int tiles, const int type) {
    const float *x = rows_x->values + (int64_t)i * rows_x->cols;
    int64_t x_stride = rows_x->cols;
    out += i * stride + r;
    switch (n) {
    case 8: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 8, type); break;
    case 7: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 7, type); break;
    case 6: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 6, type); break;
    case 5: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 5, type); break;
    case 4: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 4, type); break;
    case 3: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 3, type); break;
    case 2: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 2, type); break;
    default: floats_avx512(out, stride, x, x_stride, w, r, rows, tiles, 1, type);
    }
}

AVX512_INLINE void all_floats_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                     int32_t r, int32_t rows, const int tiles, const int type) {
    for (int32_t i = 0, step; i < n; i += step) {
        step = even_part(n - i, 8);
        some_floats_avx512(out, stride, x, i, step, w, r, rows, tiles, type);
    }
}

AVX512_INLINE void matmul_floats_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                        int32_t begin, int32_t end, const int type) {
    int32_t r = begin;
    bool several = n > 1 || rows_at_once(w);
    for (; n == 1 && several && r + 4 * TILE_ROWS <= end; r += 4 * TILE_ROWS)
        floats_avx512(out + r, stride, x->values, x->cols, w, r, TILE_ROWS, 4, 1, type);
    for (; several && r + 3 * TILE_ROWS <= end; r += 3 * TILE_ROWS)
        all_floats_avx512(out, stride, x, n, w, r, TILE_ROWS, 3, type);
    for (; r < end; r += TILE_ROWS) all_floats_avx512(out, stride, x, n, w, r, MIN(TILE_ROWS, end - r), 1, type);
}

AVX512 static void matmul_tiles_fp32_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                            int32_t begin, int32_t end) {
    matmul_floats_avx512(out, stride, x, n, w, begin, end, TILES_FP32);
}

AVX512 static void matmul_tiles_bf16_avx512(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                            int32_t begin, int32_t end) {
    matmul_floats_avx512(out, stride, x, n, w, begin, end, TILES_BF16);
}

#endif
