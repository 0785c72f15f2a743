// cache.h: the layout of the KV cache, and the types that its values may have.
//
// A page is 16 positions of a sequence. Each head has a plane of pages for its keys, (head_dim, 16) each, so that
// the scores of 16 positions are computed side by side without a horizontal sum, and one for its values, rows of
// (16, head_dim) each. Which pages are a sequence's, in the order of its positions, a table says (pages.h); pages
// that follow each other lie side by side. fp32 keeps keys and values as they were computed; bf16 and fp16 take
// half the memory and half the time to read.
#ifndef LLAMA_CACHE_H
#define LLAMA_CACHE_H

#include "../base/half.h" // float_to_half, half_to_float

enum { KEY_BLOCK = 16, N_KV = LLAMA_KV_FP16 + 1 };

const char *llama_kv_name(int32_t kv) {
    static const char *const names[] = {"fp32", "bf16", "fp16"};
    return kv >= 0 && kv < (int32_t)COUNT(names) ? names[kv] : "unknown";
}

// Number of the row that a position's values have in the plane of a head.
static inline int64_t cached_row(const int32_t *pages, int32_t position) {
    uint32_t at = (uint32_t)position; // a signed one is not divided by a shift
    return (int64_t)pages[at / KEY_BLOCK] * KEY_BLOCK + at % KEY_BLOCK;
}

// Number of the first key of a position's page in the plane of a head.
static inline int64_t cached_keys(const int32_t *pages, int32_t position, int32_t head_dim) {
    return (int64_t)pages[(uint32_t)position / KEY_BLOCK] * KEY_BLOCK * head_dim;
}

// Bytes of one value.
static inline size_t kv_size(int32_t kv) {
    return kv == LLAMA_KV_FP32 ? sizeof(float) : sizeof(uint16_t);
}

// Value number `at`.
static inline float cached(const void *cache, int64_t at, int32_t kv) {
    if (kv == LLAMA_KV_FP32) return ((const float *)cache)[at];
    uint16_t half = ((const uint16_t *)cache)[at];
    return kv == LLAMA_KV_FP16 ? half_to_float(half) : bf16_to_float(half);
}

// x (n) becomes the values number at, at + stride, at + 2 stride ...
typedef void Store(void *cache, int64_t at, int64_t stride, const float *x, int32_t n);

static void store_fp32(void *cache, int64_t at, int64_t stride, const float *x, int32_t n) {
    float *to = (float *)cache + at;
    for (int32_t i = 0; i < n; i++) to[i * stride] = x[i];
}

static void store_bf16(void *cache, int64_t at, int64_t stride, const float *x, int32_t n) {
    uint16_t *to = (uint16_t *)cache + at;
    for (int32_t i = 0; i < n; i++) to[i * stride] = float_to_bf16(x[i]);
}

static void store_fp16_scalar(void *cache, int64_t at, int64_t stride, const float *x, int32_t n) {
    uint16_t *to = (uint16_t *)cache + at;
    for (int32_t i = 0; i < n; i++) to[i * stride] = float_to_half(x[i]);
}

#endif
