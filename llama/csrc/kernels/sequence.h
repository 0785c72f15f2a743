// sequence.h: what the cache holds of each sequence: its pages, sharing them, giving them back.
//
// Sequences that begin alike share pages. Whoever writes into a shared one is given a copy first, so nobody sees
// that it was shared, and a common beginning costs memory once.
#ifndef LLAMA_SEQUENCE_H
#define LLAMA_SEQUENCE_H

#include "context.h" // LlamaContext
#include "pages.h"   // Pool

// Bytes of the keys, or the values, that a head has in a page.
static size_t page_bytes(const LlamaContext *ctx) {
    return (size_t)page_stride(ctx->model->config.head_dim, ctx->options.kv) * kv_size(ctx->options.kv);
}

// The pages of ctx->keys or ctx->values that a head of a layer has, those of all sequences.
static void *cache_plane(const LlamaContext *ctx, void *cache, int32_t layer, int32_t head) {
    int64_t plane = (int64_t)layer * ctx->model->config.n_kv_heads + head;
    return (uint8_t *)cache + plane * ctx->pool.n * (int64_t)page_bytes(ctx);
}

// Planes of keys, and of values.
static int32_t n_planes(const LlamaContext *ctx) {
    return ctx->model->config.n_layers * ctx->model->config.n_kv_heads;
}

// What plane number `plane` of ctx->keys or ctx->values has in a page.
static uint8_t *page_of(const LlamaContext *ctx, void *cache, int32_t plane, int32_t page) {
    return (uint8_t *)cache + ((int64_t)plane * ctx->pool.n + page) * (int64_t)page_bytes(ctx);
}

static void page_copy(const LlamaContext *ctx, int32_t from, int32_t to) {
    for (int32_t i = 0; i < n_planes(ctx); i++) {
        memcpy(page_of(ctx, ctx->keys, i, to), page_of(ctx, ctx->keys, i, from), page_bytes(ctx));
        memcpy(page_of(ctx, ctx->values, i, to), page_of(ctx, ctx->values, i, from), page_bytes(ctx));
    }
}

static int fail_full(const LlamaContext *ctx, LlamaError *error) {
    return fail(error, LLAMA_ERROR_RESOURCE, "the cache of %d positions is full", ctx->options.cache);
}

// Sees to it that the sequence has a page for the position, at most the next one, which it alone holds.
static int sequence_place(LlamaContext *ctx, int32_t sequence, int32_t position, LlamaError *error) {
    Pool *pool = &ctx->pool;
    int32_t *page = pool_table(pool, sequence) + position / KEY_BLOCK;
    bool has = position / KEY_BLOCK < pool->held[sequence];
    if (has && pool->holders[*page] == 1) return LLAMA_OK;
    int32_t taken = pool_take(pool);
    if (taken < 0) return fail_full(ctx, error);
    if (has) {
        page_copy(ctx, *page, taken);
        pool_release(pool, *page);
    } else {
        pool->held[sequence]++;
    }
    *page = taken;
    return LLAMA_OK;
}

// Gives back the pages behind the last position.
static void sequence_fit(LlamaContext *ctx, int32_t sequence) {
    pool_trim(&ctx->pool, sequence, pages_for(ctx->lengths[sequence]));
}

static int check_sequence(const LlamaContext *ctx, int32_t sequence, LlamaError *error) {
    if (sequence >= 0 && sequence < ctx->options.sequences) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "sequence = %d, allowed 0 to %d", sequence, ctx->options.sequences - 1);
}

// Whether the sequence is one, and holds n positions.
static int check_held(const LlamaContext *ctx, int32_t sequence, int32_t n, LlamaError *error) {
    int code = check_sequence(ctx, sequence, error);
    if (code != LLAMA_OK || (n >= 0 && n <= ctx->lengths[sequence])) return code;
    return fail(error, LLAMA_ERROR_USAGE, "positions = %d, sequence %d holds %d", n, sequence,
                ctx->lengths[sequence]);
}

int32_t llama_sequence_length(const LlamaContext *ctx, int32_t sequence) {
    return check_sequence(ctx, sequence, NULL) == LLAMA_OK ? ctx->lengths[sequence] : 0;
}

int llama_sequence_copy(LlamaContext *ctx, int32_t from, int32_t to, int32_t n, LlamaError *error) {
    int code = check_held(ctx, from, n, error);
    if (code == LLAMA_OK) code = check_sequence(ctx, to, error);
    if (code != LLAMA_OK) return code;
    if (from != to) pool_share(&ctx->pool, from, to, pages_for(n));
    ctx->lengths[to] = n;
    sequence_fit(ctx, to);
    return LLAMA_OK;
}

int llama_sequence_trim(LlamaContext *ctx, int32_t sequence, int32_t n, LlamaError *error) {
    return llama_sequence_copy(ctx, sequence, sequence, n, error);
}

int64_t llama_cache_free(const LlamaContext *ctx) {
    return (int64_t)ctx->pool.n_free * KEY_BLOCK;
}

#endif
