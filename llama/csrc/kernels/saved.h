// saved.h: a sequence as bytes, to go on with it in another context, process or week. Little-endian, as all CPUs
// are that the engine has kernels for:
//
//     SavedHeader
//     int32 ids[n]                  the tokens, padded with zeros to a multiple of 8 bytes
//     keys[pages], values[pages]    for each layer and head, as they lie in the cache; behind the last position
//     zeros
//
// Left out: reading what another type of keys and values, another model or another program has saved.
#ifndef LLAMA_SAVED_H
#define LLAMA_SAVED_H

#include "../weights/checkpoint_v3.h" // crc32_of
#include "sequence.h"                 // page_of, sequence_place

static const char saved_magic[8] = {'L', 'L', 'A', 'M', 'A', 'S', 'E', 'Q'};

typedef struct {
    char magic[8];
    uint32_t version;  // 1
    uint32_t checksum; // CRC-32 of all that follows
    uint64_t bytes;    // in all, this header's too
    uint32_t model;    // model_mark
    int32_t n_layers, n_kv_heads, head_dim, kv, n;
} SavedHeader;

enum { SAVED_VERSION = 1, SAVED_CHECKED = offsetof(SavedHeader, bytes) };

// Tells models of the same shape apart, and files of other types: CRC-32 of all norms, of what a file says of its
// weights, of the angles of RoPE, and of an adapter.
static uint32_t model_mark(const LlamaContext *ctx) {
    const LlamaModel *m = ctx->model;
    int32_t what[] = {m->config.version, m->config.weight_type, m->config.dim};
    uint64_t bytes = (uint64_t)m->config.dim * sizeof(float), positions = (uint64_t)MIN(2, ctx->options.context);
    uint32_t crc = crc32_of(0, (const uint8_t *)what, sizeof what);
    crc = crc32_of(crc, (const uint8_t *)ctx->rope, (uint64_t)m->config.head_dim * sizeof *ctx->rope * positions);
    crc = crc32_of(crc, (const uint8_t *)tensor_row_fp32(&m->norm, 0), bytes);
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        crc = crc32_of(crc, (const uint8_t *)tensor_row_fp32(&m->layers[l].attention_norm, 0), bytes);
        crc = crc32_of(crc, (const uint8_t *)tensor_row_fp32(&m->layers[l].ffn_norm, 0), bytes);
    }
    const LlamaAdapter *adapter = ctx->options.adapter;
    if (!adapter) return crc;
    crc = crc32_of(crc, (const uint8_t *)&adapter->mark, sizeof adapter->mark);
    return crc32_of(crc, (const uint8_t *)&adapter->scale, sizeof adapter->scale);
}

static uint64_t ids_bytes(int32_t n) {
    return round_up((uint64_t)n * sizeof(int32_t), 8);
}

// Bytes of n saved positions.
static uint64_t saved_bytes(const LlamaContext *ctx, int32_t n) {
    uint64_t pages = (uint64_t)pages_for(n) * 2 * (uint64_t)n_planes(ctx);
    return sizeof(SavedHeader) + ids_bytes(n) + pages * page_bytes(ctx);
}

static SavedHeader saved_header(const LlamaContext *ctx, int32_t n) {
    const LlamaConfig *c = &ctx->model->config;
    SavedHeader header = {.version = SAVED_VERSION, .bytes = saved_bytes(ctx, n), .model = model_mark(ctx), .n = n};
    memcpy(header.magic, saved_magic, sizeof saved_magic);
    header.n_layers = c->n_layers;
    header.n_kv_heads = c->n_kv_heads;
    header.head_dim = c->head_dim;
    header.kv = ctx->options.kv;
    return header;
}

// Clears what a page has behind its first n positions, which may be left from another text.
static void clear_rest(const LlamaContext *ctx, uint8_t *keys, uint8_t *values, int32_t n) {
    size_t size = kv_size(ctx->options.kv), head_dim = (size_t)ctx->model->config.head_dim,
           rest = KEY_BLOCK - (size_t)n;
    for (size_t d = 0; d < head_dim; d++) memset(keys + (d * KEY_BLOCK + (size_t)n) * size, 0, rest * size);
    memset(values + (size_t)n * head_dim * size, 0, rest * head_dim * size);
    if (ctx->options.kv != LLAMA_KV_INT8) return;
    memset(scale_of(keys, 0, n, (int32_t)head_dim, LLAMA_KV_INT8), 0, rest * sizeof(float));
    memset(scale_of(values, 0, n, (int32_t)head_dim, LLAMA_KV_INT8), 0, rest * sizeof(float));
}

uint64_t llama_sequence_bytes(const LlamaContext *ctx, int32_t sequence) {
    return saved_bytes(ctx, llama_sequence_length(ctx, sequence));
}

int llama_sequence_save(const LlamaContext *ctx, int32_t sequence, const int32_t *ids, void *bytes,
                        LlamaError *error) {
    int code = check_sequence(ctx, sequence, error);
    if (code != LLAMA_OK) return code;
    int32_t n = ctx->lengths[sequence], n_pages = pages_for(n);
    const int32_t *pages = pool_table(&ctx->pool, sequence);
    size_t size = page_bytes(ctx);
    SavedHeader header = saved_header(ctx, n);
    uint8_t *start = bytes, *at = start + sizeof header;
    memset(at, 0, ids_bytes(n));
    memcpy(at, ids, (size_t)n * sizeof *ids);
    at += ids_bytes(n);
    for (int32_t plane = 0; plane < n_planes(ctx); plane++, at += 2 * (size_t)n_pages * size) {
        uint8_t *keys = at, *values = at + (size_t)n_pages * size;
        for (int32_t i = 0; i < n_pages; i++) {
            memcpy(keys + (size_t)i * size, page_of(ctx, ctx->keys, plane, pages[i]), size);
            memcpy(values + (size_t)i * size, page_of(ctx, ctx->values, plane, pages[i]), size);
        }
        size_t last = (size_t)(n_pages - 1) * size;
        if (n % KEY_BLOCK) clear_rest(ctx, keys + last, values + last, n % KEY_BLOCK);
    }
    memcpy(start, &header, sizeof header);
    header.checksum = crc32_of(0, start + SAVED_CHECKED, header.bytes - SAVED_CHECKED);
    memcpy(start, &header, sizeof header);
    return LLAMA_OK;
}

// Whether the bytes are a sequence that this context can go on with. Sets header.
static int saved_check(const LlamaContext *ctx, const uint8_t *bytes, uint64_t size, SavedHeader *header,
                       LlamaError *error) {
    if (size < sizeof *header || memcmp(bytes, saved_magic, sizeof saved_magic) != 0)
        return fail(error, LLAMA_ERROR_FILE, "these %llu bytes are no saved sequence", (unsigned long long)size);
    memcpy(header, bytes, sizeof *header);
    if (header->version != SAVED_VERSION)
        return fail(error, LLAMA_ERROR_FILE, "saved sequence: version = %u, allowed %d", header->version,
                    SAVED_VERSION);
    if (header->bytes != size)
        return fail(error, LLAMA_ERROR_FILE, "saved sequence: has %llu bytes, should have %llu",
                    (unsigned long long)size, (unsigned long long)header->bytes);
    uint32_t checksum = crc32_of(0, bytes + SAVED_CHECKED, size - SAVED_CHECKED);
    if (checksum != header->checksum)
        return fail(error, LLAMA_ERROR_FILE, "saved sequence: checksum = %08x, stored is %08x", checksum,
                    header->checksum);
    SavedHeader ours = saved_header(ctx, 0);
    const struct {
        const char *name;
        int32_t found, ours;
    } fields[] = {
        {"n_layers", header->n_layers, ours.n_layers},
        {"n_kv_heads", header->n_kv_heads, ours.n_kv_heads},
        {"head_dim", header->head_dim, ours.head_dim},
    };
    for (size_t i = 0; i < COUNT(fields); i++)
        if (fields[i].found != fields[i].ours)
            return fail(error, LLAMA_ERROR_FILE, "saved sequence: %s = %d, this model has %d", fields[i].name,
                        fields[i].found, fields[i].ours);
    if (header->model != ours.model)
        return fail(error, LLAMA_ERROR_FILE, "saved sequence: is of model %08x, this is model %08x", header->model,
                    ours.model);
    if (header->kv != ours.kv)
        return fail(error, LLAMA_ERROR_FILE, "saved sequence: keys and values are %s, this context has %s",
                    llama_kv_name(header->kv), llama_kv_name(ours.kv));
    if (header->n < 0 || header->n > ctx->options.context)
        return fail(error, LLAMA_ERROR_FILE, "saved sequence: has %d positions, this context has %d", header->n,
                    ctx->options.context);
    if (size != saved_bytes(ctx, header->n))
        return fail(error, LLAMA_ERROR_FILE, "saved sequence: has %llu bytes, %d positions take %llu",
                    (unsigned long long)size, header->n, (unsigned long long)saved_bytes(ctx, header->n));
    return LLAMA_OK;
}

// Gives the sequence pages of its own for n positions instead of those it has, or leaves all as it is.
static int sequence_renew(LlamaContext *ctx, int32_t sequence, int32_t n, LlamaError *error) {
    Pool *pool = &ctx->pool;
    const int32_t *pages = pool_table(pool, sequence);
    int32_t found = pool->n_free;
    for (int32_t i = 0; i < pool->held[sequence]; i++) found += pool->holders[pages[i]] == 1;
    if (found < pages_for(n)) return fail_full(ctx, error);
    pool_trim(pool, sequence, 0);
    for (int32_t i = 0; i < n; i += KEY_BLOCK) sequence_place(ctx, sequence, i, error);
    ctx->lengths[sequence] = n;
    return LLAMA_OK;
}

int llama_sequence_restore(LlamaContext *ctx, int32_t sequence, const void *bytes, uint64_t size, int32_t *ids,
                           int32_t *n, LlamaError *error) {
    SavedHeader header;
    *n = 0;
    int code = check_sequence(ctx, sequence, error);
    if (code == LLAMA_OK) code = saved_check(ctx, bytes, size, &header, error);
    if (code == LLAMA_OK) code = sequence_renew(ctx, sequence, header.n, error);
    if (code != LLAMA_OK) return code;
    const uint8_t *at = (const uint8_t *)bytes + sizeof header;
    memcpy(ids, at, (size_t)header.n * sizeof *ids);
    at += ids_bytes(header.n);
    int32_t n_pages = pages_for(header.n);
    const int32_t *pages = pool_table(&ctx->pool, sequence);
    for (int32_t plane = 0; plane < n_planes(ctx); plane++) {
        for (int32_t i = 0; i < n_pages; i++, at += page_bytes(ctx))
            memcpy(page_of(ctx, ctx->keys, plane, pages[i]), at, page_bytes(ctx));
        for (int32_t i = 0; i < n_pages; i++, at += page_bytes(ctx))
            memcpy(page_of(ctx, ctx->values, plane, pages[i]), at, page_bytes(ctx));
    }
    *n = header.n;
    return LLAMA_OK;
}

#endif
