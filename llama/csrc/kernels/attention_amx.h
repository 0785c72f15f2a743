// attention_amx.h: attention of prompts for AMX: many queries of a sequence, with products in tiles of bf16.
//
// A float goes into a product as two of bf16, its upper 8 bits and what they leave, of which 8 are kept: 16 bits of
// queries and probabilities, and all 11 of fp16 keys and values. A tile has 8 queries, with the upper parts in its
// first rows and the lower ones in its last, so that a sum is that of two rows. Positions go by in blocks; each
// query keeps its greatest score so far, and what was added up before shrinks when a greater one comes. Blocks
// begin at multiples of their size and rows of a tile know nothing of each other, so a query's bits depend on
// itself alone.
#ifndef LLAMA_ATTENTION_AMX_H
#define LLAMA_ATTENTION_AMX_H

#include "attention_avx512.h" // load_cached_avx512
#include "tiles_amx_bf16.h"   // Halves, step_bf16_amx

// Positions of a block; queries of a tile, and of two; halves of a tile.
enum { BLOCK = 4 * KEY_BLOCK, TILE_QUERIES = 8, PAIR_QUERIES = 16, TILE_HALVES = 512 };

// Where attention of a prompt stands. parts: of keys and values, two for fp16, one for what bf16 holds.
typedef struct {
    const Query *queries;
    int32_t count, head_dim, kv, parts;
    uint16_t *q;                // (count / 8, 16, head_dim) tiles of queries
    uint16_t *keys;             // (4, head_dim / 32, parts) tiles of the block
    uint16_t *values;           // (head_dim / 16, 2, parts)
    float key_scales[BLOCK];    // of int8
    float value_scales[BLOCK];  //
    float max[PROMPT_QUERIES];  // of the scores until now, times log2(e)
    float shrink[PAIR_QUERIES]; // what was added up before, by this block
    __m512 sum[PROMPT_QUERIES]; // of the probabilities until now
} Prompt;

AMX_INLINE __m512 upper_amx(__m512 x) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(-0x10000)));
}

// 32 floats as 32 upper parts and 32 lower ones, which are rounded.
AMX_INLINE void split_row_amx(uint16_t *upper, uint16_t *lower, __m512 first, __m512 second) {
    __m512 a = upper_amx(first), b = upper_amx(second);
    _mm512_storeu_si512(upper, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    _mm512_storeu_si512(lower, (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(second, b), _mm512_sub_ps(first, a)));
}

// 16 pairs of floats as a row of the second operand of a product; the second part in the next tile.
AMX_INLINE void split_pairs_amx(uint16_t *to, __m512 even, __m512 odd, const int parts) {
    const __m512i upper = _mm512_set1_epi32(-0x10000);
    EACH (part, parts) {
        __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
        __m512i both = _mm512_ternarylogic_epi32(_mm512_castps_si512(odd), upper, low, 0xea); // odd & upper | low
        _mm512_storeu_si512(to + part * TILE_HALVES, both);
        even = _mm512_sub_ps(even, upper_amx(even));
        odd = _mm512_sub_ps(odd, upper_amx(odd));
    }
}

AMX_INLINE void prompt_queries_amx(const Prompt *p) {
    int32_t tiles = (p->count + PAIR_QUERIES - 1) / PAIR_QUERIES * 2, head_dim = p->head_dim;
    for (int32_t i = 0; i < tiles * TILE_QUERIES; i++) {
        uint16_t *upper = p->q + (int64_t)(i / TILE_QUERIES * AMX_ROWS + i % TILE_QUERIES) * head_dim;
        uint16_t *lower = upper + (int64_t)TILE_QUERIES * head_dim;
        __mmask16 there = i < p->count ? 0xffff : 0;
        const float *q = p->queries[MIN(i, p->count - 1)].q;
        for (int32_t d = 0; d < head_dim; d += BF16_COLUMNS)
            split_row_amx(upper + d, lower + d, _mm512_maskz_loadu_ps(there, q + d),
                          _mm512_maskz_loadu_ps(there, q + d + 16));
    }
}

// The keys of a block from position `begin` on, as far as they go.
AMX_INLINE void block_keys_amx(Prompt *p, const void *keys, const int32_t *pages, int32_t begin, int32_t n,
                               const int parts, const int kv) {
    int32_t head_dim = p->head_dim;
    for (int32_t j = 0; j < BLOCK / KEY_BLOCK && begin + j * KEY_BLOCK < n; j++) {
        int64_t page = cached_page(pages, begin + j * KEY_BLOCK, head_dim, kv);
        uint16_t *tile = p->keys + (int64_t)j * head_dim / BF16_COLUMNS * parts * TILE_HALVES;
        for (int32_t d = 0; d < head_dim; d += BF16_COLUMNS, tile += parts * TILE_HALVES)
            for (int32_t i = 0; i < BF16_COLUMNS; i += 2) {
                int64_t at = page + (int64_t)(d + i) * KEY_BLOCK;
                split_pairs_amx(tile + i * KEY_BLOCK, load_cached_avx512(keys, at, 0xffff, kv),
                                load_cached_avx512(keys, at + KEY_BLOCK, 0xffff, kv), parts);
            }
        if (kv == LLAMA_KV_INT8)
            _mm512_storeu_ps(p->key_scales + j * KEY_BLOCK, _mm512_loadu_ps(cached_scales(keys, page, head_dim)));
    }
}

// Its values, and zeros behind the last one.
AMX_INLINE void block_values_amx(Prompt *p, const void *values, const int32_t *pages, int32_t begin, int32_t n,
                                 const int parts, const int kv) {
    int32_t head_dim = p->head_dim, step = 2 * parts * TILE_HALVES; // of 16 columns to the next
    for (int32_t i = 0; i < BLOCK; i += 2) {
        uint16_t *to = p->values + i / BF16_COLUMNS * parts * TILE_HALVES + i % BF16_COLUMNS * KEY_BLOCK;
        __mmask16 first = begin + i < n ? 0xffff : 0, second = begin + i + 1 < n ? 0xffff : 0;
        int64_t row = first ? cached_row(pages, begin + i, head_dim, kv) : 0;
        for (int32_t d = 0; d < head_dim; d += 16, to += step)
            split_pairs_amx(to, load_cached_avx512(values, row + d, first, kv),
                            load_cached_avx512(values, row + head_dim + d, second, kv), parts);
    }
    for (int32_t j = 0; kv == LLAMA_KV_INT8 && j < BLOCK; j += KEY_BLOCK) {
        __mmask16 there = mask_avx512(MAX(0, n - begin - j));
        const float *scales =
            there ? cached_scales(values, cached_page(pages, begin + j, head_dim, kv), head_dim) : NULL;
        _mm512_storeu_ps(p->value_scales + j, _mm512_maskz_loadu_ps(there, scales));
    }
}

// Of two tiles of rows, 32 columns of a product. a: the first tile, rows of `cols` halves, a multiple of 32. b: the
// tiles of the first 16 columns, which those of the others follow.
AMX_INLINE void product_amx(float *out, int64_t stride, const uint16_t *a, int64_t cols, const uint16_t *b,
                            const int parts) {
    int64_t tiles = cols / BF16_COLUMNS * parts;
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int64_t i = 0; i < tiles; i++) {
        const uint16_t *rows = a + i / parts * BF16_COLUMNS;
        const uint8_t *w = (const uint8_t *)(b + i * TILE_HALVES);
        Halves at = {{rows, rows + AMX_ROWS * cols}, 2 * cols, {w, w + 2 * tiles * TILE_HALVES}};
        step_bf16_amx(&at, 2, 2);
    }
    TILE_STORE(0, out, 4 * stride);
    TILE_STORE(1, out + TILE_ROWS, 4 * stride);
    TILE_STORE(2, out + AMX_ROWS * stride, 4 * stride);
    TILE_STORE(3, out + AMX_ROWS * stride + TILE_ROWS, 4 * stride);
}

// 2^x for x <= 0, to 3e-6 of it: the Taylor polynomial of degree 5, as probabilities are cut to 16 bits.
AMX_INLINE __m512 exp2_amx(__m512 x) {
    static const float terms[] = {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1};
    __m512 i = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), f = _mm512_sub_ps(x, i);
    __m512 sum = _mm512_set1_ps(terms[0]);
    EACH (t, 5) sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(terms[t + 1]));
    return _mm512_scalef_ps(sum, i);
}

// The probabilities of a block, n of its positions and zeros, of query number i from their scores' two parts on;
// upper and lower halves of them go into a row of 64 each.
AMX_INLINE void chances_amx(Prompt *p, int32_t i, uint16_t *upper, const float *scores, int32_t n, const int kv) {
    const float *lower_scores = scores + TILE_QUERIES * BLOCK;
    const __m512 scale = _mm512_set1_ps(EXP_LOG2E / sqrtf((float)p->head_dim));
    __m512 x[4], most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    EACH (j, 4) {
        x[j] = _mm512_add_ps(_mm512_loadu_ps(scores + 16 * j), _mm512_loadu_ps(lower_scores + 16 * j));
        x[j] = _mm512_mul_ps(x[j], scale);
        if (kv == LLAMA_KV_INT8) x[j] = _mm512_mul_ps(x[j], _mm512_loadu_ps(p->key_scales + 16 * j));
        most = _mm512_mask_max_ps(most, mask_avx512(MAX(0, n - 16 * j)), most, x[j]);
    }
    float max = fmaxf(p->max[i], _mm512_reduce_max_ps(most));
    EACH (j, 4) {
        __m512 e = exp2_amx(_mm512_sub_ps(x[j], _mm512_set1_ps(max)));
        x[j] = _mm512_maskz_mov_ps(mask_avx512(MAX(0, n - 16 * j)), e);
        sum = _mm512_add_ps(sum, x[j]);
        if (kv == LLAMA_KV_INT8) x[j] = _mm512_mul_ps(x[j], _mm512_loadu_ps(p->value_scales + 16 * j));
    }
    uint16_t *lower = upper + TILE_QUERIES * BLOCK;
    split_row_amx(upper, lower, x[0], x[1]);
    split_row_amx(upper + BF16_COLUMNS, lower + BF16_COLUMNS, x[2], x[3]);
    __m512 shrink = exp2_amx(_mm512_set1_ps(p->max[i] - max));
    p->sum[i] = _mm512_fmadd_ps(p->sum[i], shrink, sum);
    p->shrink[i % PAIR_QUERIES] = _mm512_cvtss_f32(shrink);
    p->max[i] = max;
}

// Adds the block from position `begin` on to 16 queries from number `first` on.
AMX_INLINE void block_amx(Prompt *p, int32_t first, int32_t begin, const int parts, const int kv) {
    _Alignas(64) float scores[2 * AMX_ROWS * BLOCK], mixed[2 * AMX_ROWS * BF16_COLUMNS];
    _Alignas(64) uint16_t chances[2 * AMX_ROWS * BLOCK];
    int32_t head_dim = p->head_dim, count = MIN(PAIR_QUERIES, p->count - first);
    const uint16_t *q = p->q + (int64_t)first * 2 * head_dim;
    for (int32_t j = 0; j < BLOCK; j += BF16_COLUMNS) // 32 positions
        product_amx(scores + j, BLOCK, q, head_dim, p->keys + (int64_t)j * head_dim * parts, parts);
    for (int32_t i = 0; i < count; i++) {
        int32_t row = i / TILE_QUERIES * AMX_ROWS + i % TILE_QUERIES;
        chances_amx(p, first + i, chances + row * BLOCK, scores + row * BLOCK, p->queries[first + i].n - begin, kv);
    }
    for (int32_t d = 0; d < head_dim; d += BF16_COLUMNS) {
        product_amx(mixed, BF16_COLUMNS, chances, BLOCK, p->values + (int64_t)d * BLOCK * parts, parts);
        for (int32_t i = 0; i < count; i++) {
            const float *upper = mixed + (i / TILE_QUERIES * AMX_ROWS + i % TILE_QUERIES) * BF16_COLUMNS;
            const float *lower = upper + TILE_QUERIES * BF16_COLUMNS;
            const __m512 shrink = _mm512_set1_ps(p->shrink[i]);
            float *out = p->queries[first + i].out + d;
            EACH (k, 2) {
                __m512 sum = _mm512_add_ps(_mm512_load_ps(upper + 16 * k), _mm512_load_ps(lower + 16 * k));
                _mm512_storeu_ps(out + 16 * k, _mm512_fmadd_ps(_mm512_loadu_ps(out + 16 * k), shrink, sum));
            }
        }
    }
}

AMX_INLINE void prompt_amx(const Query *queries, int32_t count, const void *keys, const void *values,
                           const int32_t *pages, int32_t head_dim, float *room, const int kv) {
    const int parts = kv == LLAMA_KV_FP16 ? 2 : 1;
    TileShapes shapes = {
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    Prompt p = {.queries = queries, .count = count, .head_dim = head_dim};
    p.keys = (uint16_t *)room;
    p.values = p.keys + 2 * BLOCK * head_dim;
    p.q = p.values + 2 * BLOCK * head_dim;
    for (int32_t i = 0; i < count; i++) {
        memset(queries[i].out, 0, (size_t)head_dim * sizeof *queries[i].out);
        p.max[i] = -0x1p100f; // less than any score, and finite, as the difference of two has to be
        p.sum[i] = _mm512_setzero_ps();
    }
    prompt_queries_amx(&p);
    TILE_CONFIGURE(shapes);
    int32_t n = 0;
    for (int32_t i = 0; i < count; i++) n = MAX(n, queries[i].n);
    for (int32_t begin = 0; begin < n; begin += BLOCK) {
        block_keys_amx(&p, keys, pages, begin, n, parts, kv);
        block_values_amx(&p, values, pages, begin, n, parts, kv);
        for (int32_t first = 0; first < count; first += PAIR_QUERIES)
            if (most_positions(queries + first, MIN(PAIR_QUERIES, count - first)) > begin)
                block_amx(&p, first, begin, parts, kv);
    }
    TILE_RELEASE();
    for (int32_t i = 0; i < count; i++) {
        __m512 inverse = _mm512_set1_ps(1 / _mm512_reduce_add_ps(p.sum[i]));
        for (int32_t d = 0; d < head_dim; d += 16)
            _mm512_storeu_ps(queries[i].out + d, _mm512_mul_ps(_mm512_loadu_ps(queries[i].out + d), inverse));
    }
}

AMX static void prompt_bf16_amx(const Query *queries, int32_t count, const void *keys, const void *values,
                                const int32_t *pages, int32_t head_dim, float *room) {
    prompt_amx(queries, count, keys, values, pages, head_dim, room, LLAMA_KV_BF16);
}

AMX static void prompt_fp16_amx(const Query *queries, int32_t count, const void *keys, const void *values,
                                const int32_t *pages, int32_t head_dim, float *room) {
    prompt_amx(queries, count, keys, values, pages, head_dim, room, LLAMA_KV_FP16);
}

AMX static void prompt_int8_amx(const Query *queries, int32_t count, const void *keys, const void *values,
                                const int32_t *pages, int32_t head_dim, float *room) {
    prompt_amx(queries, count, keys, values, pages, head_dim, room, LLAMA_KV_INT8);
}

#endif
