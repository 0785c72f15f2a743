// tiles_avx2.h: products with the tiles of tiles.h for AVX2. Mirrors tiles_avx512.h.
#ifndef LLAMA_TILES_AVX2_H
#define LLAMA_TILES_AVX2_H

#include "../weights/tiles.h"

#include <immintrin.h> // _mm256_*

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE AVX2 __attribute__((always_inline)) static inline

enum { TILES_ROWS_AVX2 = 3 }; // of activations at once: sums of two halves of a tile take 12 of 16 registers

// Keeps the compiler from adding in an order of its own, for which it moves products to memory and back.
AVX2_INLINE __m256i kept_avx2(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

// dot + products of 8 rows x 4 columns. maddubs takes unsigned x signed bytes and adds pairs in 16 bits with
// saturation. Whole bytes are made signed again, and their signs moved over to the activations: |w| <= 128 and
// |x| <= 127 give at most 2 x 128 x 127 = 32512, so all is exact.
AVX2_INLINE __m256i add_int8_avx2(__m256i dot, __m256i w, __m256i magnitude, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
    return kept_avx2(_mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}

// The same of half bytes, in 16 bits: those of a group are at most 8 x 2 x 15 x 127 = 30480.
AVX2_INLINE __m256i add_int4_avx2(__m256i pairs, __m256i w, __m256i x) {
    return kept_avx2(_mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, x)));
}

// Adds the products of one group: the 16 rows of a tile, in two halves, with n rows of activations.
AVX2_INLINE void group_avx2(__m256i dot[2][TILES_ROWS_AVX2], const uint8_t *weights, const int8_t *x_q,
                            int64_t x_stride, const int n, const int type) {
    const __m256i low = _mm256_set1_epi8(15);
    const int chunks = tile_group_bytes(type) / 64;
    __m256i pairs[2][TILES_ROWS_AVX2];
    EACH (h, 2)
        EACH (i, n) pairs[h][i] = _mm256_setzero_si256();
    EACH (c, chunks) {
        if (n == 1) _mm_prefetch(weights + c * 64 + TILE_AHEAD, _MM_HINT_T0); // past the end does no harm
        EACH (h, 2) {
            __m256i bytes = _mm256_loadu_si256((const __m256i *)(weights + c * 64 + h * 32));
            if (type == TILES_INT8) {
                __m256i w = _mm256_xor_si256(bytes, _mm256_set1_epi8((char)128)), magnitude = _mm256_abs_epi8(w);
                EACH (i, n) {
                    __m256i x = _mm256_set1_epi32(load_i32(x_q + i * x_stride + c * 4));
                    dot[h][i] = add_int8_avx2(dot[h][i], w, magnitude, x);
                }
            } else {
                __m256i first = _mm256_and_si256(bytes, low);
                __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                EACH (i, n) {
                    __m256i x0 = _mm256_set1_epi32(load_i32(x_q + i * x_stride + c * 8));
                    __m256i x1 = _mm256_set1_epi32(load_i32(x_q + i * x_stride + c * 8 + 4));
                    pairs[h][i] = add_int4_avx2(add_int4_avx2(pairs[h][i], first, x0), second, x1);
                }
            }
        }
    }
    if (type == TILES_INT8) return;
    EACH (h, 2)
        EACH (i, n) dot[h][i] = _mm256_add_epi32(dot[h][i], _mm256_madd_epi16(pairs[h][i], _mm256_set1_epi16(1)));
}

// The outputs of a tile, of which `rows` rows exist, for n rows of activations from row i0 on.
AVX2_INLINE void tile_avx2(float *out, int64_t stride, const Rows *x, int32_t i0, const Tensor *w, int32_t r,
                           int32_t rows, const int n, const int type) {
    int32_t groups = tile_groups(w), x_groups = x->groups;
    const int8_t *x_q = x->quants + (int64_t)i0 * x->cols;
    const float *x_scales = x->scales + (int64_t)i0 * x_groups;
    const int32_t *x_sums = x->sums + (int64_t)i0 * x_groups;
    const uint8_t *tile = tensor_tile(w, r);
    __m256 sum[2][TILES_ROWS_AVX2];
    EACH (h, 2)
        EACH (i, n) sum[h][i] = _mm256_setzero_ps();
    for (int32_t g = 0; g < groups; g++, x_q += TILE_GROUP) {
        __m256i dot[2][TILES_ROWS_AVX2];
        EACH (i, n) { // whole bytes are made signed, so only half bytes have a zero to take off
            int32_t zero = type == TILES_INT8 ? 0 : -tile_zero(type) * x_sums[(int64_t)i * x_groups + g];
            dot[0][i] = dot[1][i] = _mm256_set1_epi32(zero);
        }
        group_avx2(dot, group_weights(tile, g, type), x_q, x->cols, n, type);
        const uint8_t *scales = group_scales(tile, g, type);
        EACH (h, 2) {
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + h * 16)));
            EACH (i, n) {
                __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x_scales[(int64_t)i * x_groups + g]));
                sum[h][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[h][i]), both, sum[h][i]);
            }
        }
    }
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    EACH (h, 2) {
        __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(rows - h * 8), lanes);
        EACH (i, n) _mm256_maskstore_ps(out + i * stride + h * 8, mask, sum[h][i]);
    }
}

AVX2_INLINE void matmul_tiles_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                   int32_t begin, int32_t end, const int type) {
    for (int32_t r = begin; r < end; r += TILE_ROWS) {
        int32_t i = 0, rows = MIN(TILE_ROWS, end - r);
        for (; i + 3 <= n; i += 3) tile_avx2(out + i * stride + r, stride, x, i, w, r, rows, 3, type);
        if (i + 2 == n) tile_avx2(out + i * stride + r, stride, x, i, w, r, rows, 2, type);
        if (i + 1 == n) tile_avx2(out + i * stride + r, stride, x, i, w, r, rows, 1, type);
    }
}

AVX2 static void matmul_tiles_int8_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                        int32_t begin, int32_t end) {
    matmul_tiles_avx2(out, stride, x, n, w, begin, end, TILES_INT8);
}

AVX2 static void matmul_tiles_int4_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                        int32_t begin, int32_t end) {
    matmul_tiles_avx2(out, stride, x, n, w, begin, end, TILES_INT4);
}

// ---------------------------------------------------------------------------------------------------------
// fp32 and bf16

// The outputs of a tile, of which `rows` rows exist, for n rows of activations from x on.
AVX2_INLINE void floats_avx2(float *out, int64_t stride, const float *x, int64_t x_stride, const Tensor *w,
                             int32_t r, int32_t rows, const int n, const int type, const bool first) {
    const int columns = type == TILES_FP32 ? 1 : 2; // in 64 bytes
    const uint8_t *tile = tensor_tile(w, r);
    __m256 sum[2][6];
    EACH (h, 2)
        EACH (i, n) sum[h][i] = _mm256_setzero_ps();
    for (int32_t k = 0; k < w->cols; k += columns, tile += 64) {
        __m256 weights[2][2];
        if (first) _mm_prefetch(tile + TILE_AHEAD, _MM_HINT_T0); // past the end does no harm
        EACH (h, 2) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(tile + h * 32));
            bool whole = type == TILES_FP32;
            weights[0][h] = _mm256_castsi256_ps(whole ? both : _mm256_slli_epi32(both, 16));
            weights[1][h] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
        }
        EACH (c, columns) {
            if (k + c == w->cols) break;
            EACH (i, n) {
                __m256 value = _mm256_set1_ps(x[i * x_stride + k + c]);
                EACH (h, 2) sum[h][i] = _mm256_fmadd_ps(weights[c][h], value, sum[h][i]);
            }
        }
    }
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    EACH (h, 2) {
        __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(rows - h * 8), lanes);
        EACH (i, n) _mm256_maskstore_ps(out + i * stride + h * 8, mask, sum[h][i]);
    }
}

// Rows [i, i + n) of activations, at most six, with the tile of row r.
AVX2_INLINE void some_floats_avx2(float *out, int64_t stride, const Rows *rows_x, int32_t i, int32_t n,
                                  const Tensor *w, int32_t r, int32_t rows, const int type, const bool first) {
    const float *x = rows_x->values + (int64_t)i * rows_x->cols;
    int64_t x_stride = rows_x->cols;
    out += i * stride + r;
    switch (n) {
    case 6: floats_avx2(out, stride, x, x_stride, w, r, rows, 6, type, first); break;
    case 5: floats_avx2(out, stride, x, x_stride, w, r, rows, 5, type, first); break;
    case 4: floats_avx2(out, stride, x, x_stride, w, r, rows, 4, type, first); break;
    case 3: floats_avx2(out, stride, x, x_stride, w, r, rows, 3, type, first); break;
    case 2: floats_avx2(out, stride, x, x_stride, w, r, rows, 2, type, first); break;
    default: floats_avx2(out, stride, x, x_stride, w, r, rows, 1, type, first);
    }
}

AVX2_INLINE void matmul_floats_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                    int32_t begin, int32_t end, const int type) {
    for (int32_t r = begin; r < end; r += TILE_ROWS) {
        int32_t i = even_part(n, 6), rows = MIN(TILE_ROWS, end - r);
        some_floats_avx2(out, stride, x, 0, i, w, r, rows, type, true);
        for (int32_t step; i < n; i += step) {
            step = even_part(n - i, 6);
            some_floats_avx2(out, stride, x, i, step, w, r, rows, type, false);
        }
    }
}

AVX2 static void matmul_tiles_fp32_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                        int32_t begin, int32_t end) {
    matmul_floats_avx2(out, stride, x, n, w, begin, end, TILES_FP32);
}

AVX2 static void matmul_tiles_bf16_avx2(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                        int32_t begin, int32_t end) {
    matmul_floats_avx2(out, stride, x, n, w, begin, end, TILES_BF16);
}

#endif
