// cache.h: the layout of the KV cache, and the types that its values may have.
//
// A page is 16 positions of a sequence. Each head has a plane of pages for its keys, (head_dim, 16) each, so that
// the scores of 16 positions are computed side by side without a horizontal sum, and one for its values, rows of
// (16, head_dim) each. Which pages are a sequence's, in the order of its positions, a table says (pages.h); pages
// that follow each other lie side by side. fp32 keeps keys and values as they were computed; bf16 and fp16 take
// half the memory and half the time to read, int8 a quarter and a little: the values of a position, max / 127
// apart, share a scale, and a page has 16 of them behind its values.
#ifndef LLAMA_CACHE_H
#define LLAMA_CACHE_H

#include "../base/half.h"     // float_to_half, half_to_float
#include "../weights/quant.h" // QUANTISE_MIN

enum { KEY_BLOCK = 16, N_KV = LLAMA_KV_INT8 + 1 };

const char *llama_kv_name(int32_t kv) {
    static const char *const names[] = {"fp32", "bf16", "fp16", "int8"};
    return kv >= 0 && kv < (int32_t)COUNT(names) ? names[kv] : "unknown";
}

// Bytes of one value.
static inline size_t kv_size(int32_t kv) {
    return kv == LLAMA_KV_FP32 ? sizeof(float) : kv == LLAMA_KV_INT8 ? sizeof(int8_t) : sizeof(uint16_t);
}

// From one page of a plane to the next, in values.
static inline int64_t page_stride(int32_t head_dim, int32_t kv) {
    int32_t scale = kv == LLAMA_KV_INT8 ? (int32_t)sizeof(float) : 0;
    return (int64_t)KEY_BLOCK * (head_dim + scale);
}

// Number of the first value of a position's page in the plane of a head, which is its first key.
static inline int64_t cached_page(const int32_t *pages, int32_t position, int32_t head_dim, int32_t kv) {
    return pages[(uint32_t)position / KEY_BLOCK] * page_stride(head_dim, kv);
}

// Number of the first of a position's values, in the other plane of the head.
static inline int64_t cached_row(const int32_t *pages, int32_t position, int32_t head_dim, int32_t kv) {
    uint32_t place = (uint32_t)position % KEY_BLOCK; // a signed one is not divided by a shift
    return cached_page(pages, position, head_dim, kv) + (int64_t)place * head_dim;
}

// Of int8: the scales of the 16 positions of a page, by the number of its first value.
static inline const float *cached_scales(const void *cache, int64_t page, int32_t head_dim) {
    return (const float *)((const int8_t *)cache + page + (int64_t)KEY_BLOCK * head_dim);
}

// Where the scale of one of them belongs; NULL for types that have none.
static inline float *scale_of(void *cache, int64_t page, int32_t place, int32_t head_dim, int32_t kv) {
    if (kv != LLAMA_KV_INT8) return NULL;
    return (float *)((int8_t *)cache + page + (int64_t)KEY_BLOCK * head_dim) + place;
}

// Value number `at`, without its scale.
static inline float cached(const void *cache, int64_t at, int32_t kv) {
    if (kv == LLAMA_KV_FP32) return ((const float *)cache)[at];
    if (kv == LLAMA_KV_INT8) return ((const int8_t *)cache)[at];
    uint16_t half = ((const uint16_t *)cache)[at];
    return kv == LLAMA_KV_FP16 ? half_to_float(half) : bf16_to_float(half);
}

// x (n) becomes the values number at, at + stride, at + 2 stride ... scale: where int8 puts theirs.
typedef void Store(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n);

static void store_fp32(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n) {
    float *to = (float *)cache + at;
    (void)scale;
    for (int32_t i = 0; i < n; i++) to[i * stride] = x[i];
}

static void store_bf16(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n) {
    uint16_t *to = (uint16_t *)cache + at;
    (void)scale;
    for (int32_t i = 0; i < n; i++) to[i * stride] = float_to_bf16(x[i]);
}

static void store_fp16_scalar(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n) {
    uint16_t *to = (uint16_t *)cache + at;
    (void)scale;
    for (int32_t i = 0; i < n; i++) to[i * stride] = float_to_half(x[i]);
}

// Compiled for each instruction set. Magnitudes are in the order of their bits, what is not finite above the rest,
// and makes the scale so. Adding 1.5 x 2^23 rounds to an integer, which stands in the low bits of the sum.
__attribute__((always_inline)) static inline void store_quants(int8_t *to, int64_t stride, float *scale,
                                                               const float *x, int32_t n) {
    uint32_t most = 0;
    for (int32_t i = 0; i < n; i++) most = MAX(most, float_bits(x[i]) & INT32_MAX);
    float max = load_f32(&most), inverse = max > QUANTISE_MIN ? 127 / max : 0;
    *scale = max <= QUANTISE_MIN ? 0 : max / 127;
    for (int32_t i = 0; i < n; i++) to[i * stride] = (int8_t)float_bits(x[i] * inverse + 0x1.8p23f);
}

static void store_int8(void *cache, int64_t at, int64_t stride, float *scale, const float *x, int32_t n) {
    store_quants((int8_t *)cache + at, stride, scale, x, n);
}

// Of int8: the scales of values go into the probabilities of n positions that they are mixed by. scores has room
// for whole pages.
__attribute__((always_inline)) static inline void scale_scores(float *scores, int32_t n, const void *values,
                                                               const int32_t *pages, int32_t head_dim) {
    for (int32_t t = 0; t < n; t += KEY_BLOCK) {
        const float *scales = cached_scales(values, cached_page(pages, t, head_dim, LLAMA_KV_INT8), head_dim);
        for (int32_t i = 0; i < KEY_BLOCK; i++) scores[t + i] *= scales[i];
    }
}

#endif
