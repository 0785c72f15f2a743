// checkpoint_v3.h: version 3 of the .bin files, one file with all that a model needs. docs/format.md has it byte by
// byte: a header of 256 bytes, a table of tensors, the tokenizer, the texts of chats, then the tensors, aligned to
// 64 bytes and laid out as the kernels read them (tiles.h).
#ifndef LLAMA_CHECKPOINT_V3_H
#define LLAMA_CHECKPOINT_V3_H

#include "model.h"          // LlamaModel, Layer
#include "rope_v3.h"        // read_scaling_v3
#include "../text/pieces.h" // VOCABULARY_MAGIC

enum { HEADER_V3 = 256, ENTRY_V3 = 32, ALIGN_V3 = 64, CHECKSUM_AT = 252 };

// Fields of the header after those it shares with v1: a place, a field of the configuration, and its range.
static const struct {
    const char *name;
    uint32_t at;
    size_t field;
    int32_t min, max;
} v3_integers[] = {
    {"head_dim", 40, offsetof(LlamaConfig, head_dim), 2, 1 << 12},
    {"rope scaling", 52, offsetof(LlamaConfig, rope_scaling), LLAMA_ROPE_PLAIN, LLAMA_ROPE_YARN},
    {"rope original_max_seq_len", 68, offsetof(LlamaConfig, rope_original_max_seq_len), 0, 1 << 24},
    {"weight type", 72, offsetof(LlamaConfig, weight_type), LLAMA_FP32, LLAMA_INT4},
    {"bos", 76, offsetof(LlamaConfig, bos), -1, 1 << 24},
    {"number of stop ids", 80, offsetof(LlamaConfig, n_stops), 0, LLAMA_MAX_STOPS},
    {"chat template", 116, offsetof(LlamaConfig, chat_template), LLAMA_CHAT_NONE, LLAMA_CHAT_PLAIN},
};

static const struct {
    const char *name;
    uint32_t at;
    size_t field;
} v3_floats[] = {
    {"norm_eps", 44, offsetof(LlamaConfig, norm_eps)},
    {"rope_theta", 48, offsetof(LlamaConfig, rope_theta)},
    {"rope factor", 56, offsetof(LlamaConfig, rope_factor)},
    {"rope low_freq_factor", 60, offsetof(LlamaConfig, rope_low_freq_factor)},
    {"rope high_freq_factor", 64, offsetof(LlamaConfig, rope_high_freq_factor)},
};

enum { STOPS_AT = 84, N_TENSORS_AT = 120, TOKENIZER_AT = 128, TOKENIZER_BYTES_AT = 136, FILE_BYTES_AT = 144 };
enum { FLAGS_AT = 152, NO_BOS_V3 = 1, EOS_V3 = 2 }; // files from before the flags have zeros

// Lengths of the texts of chats, which follow the tokenizer in this order.
static const struct {
    const char *name;
    uint32_t at, max;
    size_t text, length; // in LlamaChat
} v3_texts[] = {
    {"bytes of the chat template", 156, 1 << 20, offsetof(LlamaChat, text), offsetof(LlamaChat, text_length)},
    {"bytes of the system text", 160, 1 << 16, offsetof(LlamaChat, system), offsetof(LlamaChat, system_length)},
    {"bytes in front of a system text", 164, 1 << 16, offsetof(LlamaChat, preamble),
     offsetof(LlamaChat, preamble_length)},
};

static inline uint64_t load_u64(const void *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

// CRC-32 as zlib has it, eight bytes at a time. Begins and goes on with 0 and the result so far. table[k][b] is
// what byte b does to the result k bytes later.
static uint32_t crc32_of(uint32_t crc, const uint8_t *data, uint64_t n) {
    uint32_t table[8][256];
    for (uint32_t b = 0; b < 256; b++) {
        table[0][b] = b;
        for (int bit = 0; bit < 8; bit++) table[0][b] = table[0][b] >> 1 ^ (table[0][b] & 1 ? 0xedb88320u : 0);
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++) table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
    crc = ~crc;
    for (; n >= 8; n -= 8, data += 8) {
        uint64_t word = load_u64(data) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++) crc ^= table[7 - k][word >> 8 * k & 255];
    }
    for (; n > 0; n--, data++) crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
    return ~crc;
}

// Whether [at, at + n) is a part of [begin, end).
static bool lies_within(uint64_t at, uint64_t n, uint64_t begin, uint64_t end) {
    return at >= begin && at <= end && n <= end - at;
}

// ---------------------------------------------------------------------------------------------------------
// Header

static int read_integers_v3(const char *path, const uint8_t *header, LlamaConfig *c, LlamaError *error) {
    for (size_t i = 0; i < COUNT(v3_integers); i++) {
        int32_t value = load_i32(header + v3_integers[i].at);
        if (value < v3_integers[i].min || value > v3_integers[i].max)
            return fail(error, LLAMA_ERROR_FILE, "%s: %s = %d, allowed %d to %d", path, v3_integers[i].name, value,
                        v3_integers[i].min, v3_integers[i].max);
        memcpy((char *)c + v3_integers[i].field, &value, sizeof value);
    }
    memcpy(c->stops, header + STOPS_AT, sizeof c->stops);
    for (int32_t i = 0; i < c->n_stops; i++)
        if (c->stops[i] < 0 || c->stops[i] >= c->vocab_size)
            return fail(error, LLAMA_ERROR_FILE, "%s: stop id %d = %d, allowed 0 to %d", path, i, c->stops[i],
                        c->vocab_size - 1);
    if (c->bos >= c->vocab_size)
        return fail(error, LLAMA_ERROR_FILE, "%s: bos = %d, allowed -1 to %d", path, c->bos, c->vocab_size - 1);
    return LLAMA_OK;
}

static int read_flags_v3(const char *path, const uint8_t *header, LlamaConfig *c, LlamaError *error) {
    uint32_t flags = (uint32_t)load_i32(header + FLAGS_AT);
    if (flags > (NO_BOS_V3 | EOS_V3))
        return fail(error, LLAMA_ERROR_FILE, "%s: flags of texts = %u, allowed 0 to %d", path, flags,
                    NO_BOS_V3 | EOS_V3);
    c->add_bos = !(flags & NO_BOS_V3);
    c->add_eos = (flags & EOS_V3) != 0;
    return LLAMA_OK;
}

// The bytes of the texts of chats together, each within its bounds.
static int check_texts_v3(const char *path, const uint8_t *header, int32_t kind, uint64_t *bytes,
                          LlamaError *error) {
    *bytes = 0;
    for (size_t i = 0; i < COUNT(v3_texts); i++) {
        uint32_t length = (uint32_t)load_i32(header + v3_texts[i].at);
        if (length > v3_texts[i].max)
            return fail(error, LLAMA_ERROR_FILE, "%s: %s = %u, allowed 0 to %u", path, v3_texts[i].name, length,
                        v3_texts[i].max);
        *bytes += length;
    }
    if (kind == LLAMA_CHAT_OTHER && load_i32(header + v3_texts[0].at) == 0)
        return fail(error, LLAMA_ERROR_FILE, "%s: %s = 0, allowed 1 to %u with chat template = %d", path,
                    v3_texts[0].name, v3_texts[0].max, kind);
    return LLAMA_OK;
}

// Points the texts into the file, in which they begin at `text`.
static void map_texts_v3(const uint8_t *header, const uint8_t *text, LlamaChat *chat) {
    for (size_t i = 0; i < COUNT(v3_texts); i++) {
        size_t length = (uint32_t)load_i32(header + v3_texts[i].at);
        const char *at = length > 0 ? (const char *)text : NULL;
        memcpy((char *)chat + v3_texts[i].text, &at, sizeof at);
        memcpy((char *)chat + v3_texts[i].length, &length, sizeof length);
        text += length;
    }
}

static int read_floats_v3(const char *path, const uint8_t *header, LlamaConfig *c, LlamaError *error) {
    for (size_t i = 0; i < COUNT(v3_floats); i++) {
        float value = load_f32(header + v3_floats[i].at);
        if (!(value > 0 && value < INFINITY))
            return fail(error, LLAMA_ERROR_FILE, "%s: %s = %g, allowed finite numbers above 0", path,
                        v3_floats[i].name, (double)value);
        memcpy((char *)c + v3_floats[i].field, &value, sizeof value);
    }
    return LLAMA_OK;
}

// The bytes of the tokenizer that the checksum covers. An indexed one is megabytes: its header alone, in which
// there is a checksum of the rest. Opening it checks whatever could do harm.
static uint64_t tokenizer_checked_v3(const uint8_t *tokenizer, uint64_t bytes) {
    bool indexed = bytes >= VOCABULARY_HEADER && load_i32(tokenizer) == VOCABULARY_MAGIC;
    return indexed ? VOCABULARY_HEADER : bytes;
}

// The sections before the tensors: their bounds and their checksum. texts: bytes of the texts of chats.
static int check_sections_v3(const char *path, const Mapping *file, uint64_t texts, LlamaError *error) {
    const uint8_t *header = file->data;
    uint64_t n_tensors = (uint32_t)load_i32(header + N_TENSORS_AT), at = load_u64(header + TOKENIZER_AT);
    uint64_t bytes = load_u64(header + TOKENIZER_BYTES_AT), size = load_u64(header + FILE_BYTES_AT);
    uint64_t table_end = HEADER_V3 + n_tensors * ENTRY_V3;
    if (size != file->size)
        return fail(error, LLAMA_ERROR_FILE, "%s: has %llu bytes, its header says %llu", path,
                    (unsigned long long)file->size, (unsigned long long)size);
    if (at != table_end || !lies_within(at, bytes, table_end, size))
        return fail(error, LLAMA_ERROR_FILE,
                    "%s: tokenizer at %llu with %llu bytes, allowed at %llu in a file of %llu", path,
                    (unsigned long long)at, (unsigned long long)bytes, (unsigned long long)table_end,
                    (unsigned long long)size);
    if (!lies_within(at + bytes, texts, at, size))
        return fail(error, LLAMA_ERROR_FILE,
                    "%s: texts of chats at %llu with %llu bytes, allowed in a file of %llu", path,
                    (unsigned long long)(at + bytes), (unsigned long long)texts, (unsigned long long)size);
    uint32_t crc = crc32_of(0, header, CHECKSUM_AT), stored = (uint32_t)load_i32(header + CHECKSUM_AT);
    crc = crc32_of(crc, header + HEADER_V3, at - HEADER_V3 + tokenizer_checked_v3(header + at, bytes));
    crc = crc32_of(crc, header + at + bytes, texts);
    if (crc != stored)
        return fail(error, LLAMA_ERROR_FILE,
                    "%s: checksum of header, table, tokenizer and texts = %08x, stored is %08x", path, crc, stored);
    return LLAMA_OK;
}

static int read_header_v3(const char *path, const Mapping *file, LlamaConfig *c, LlamaError *error) {
    int code = read_integers_v3(path, file->data, c, error);
    if (code == LLAMA_OK) code = read_floats_v3(path, file->data, c, error);
    if (code == LLAMA_OK) code = read_scaling_v3(path, file->data, c, error);
    if (code == LLAMA_OK) code = read_flags_v3(path, file->data, c, error);
    uint64_t texts = 0;
    if (code == LLAMA_OK) code = check_texts_v3(path, file->data, c->chat_template, &texts, error);
    return code == LLAMA_OK ? check_sections_v3(path, file, texts, error) : code;
}

// ---------------------------------------------------------------------------------------------------------
// Table

typedef struct {
    const char *path;
    const Mapping *file;
    const uint8_t *entry; // of the next tensor
    uint64_t begin;       // of the tensors
    bool quantised;       // one of the tensors is
    LlamaError *error;
    int code;
} TableV3;

// Takes the next tensor, which must be (rows, cols). Norms are fp32.
static void take_v3(TableV3 *table, Tensor *w, const char *name, int32_t rows, int32_t cols) {
    if (table->code != LLAMA_OK) return;
    static const int32_t types[] = {TILES_FP32, TILES_INT8, TILES_BF16, TILES_INT4}; // LLAMA_FP32, LLAMA_INT8 ...
    const uint8_t *entry = table->entry;
    int32_t type = load_i32(entry), found_rows = load_i32(entry + 4), found_cols = load_i32(entry + 8);
    uint64_t at = load_u64(entry + 16), bytes = load_u64(entry + 24);
    table->entry += ENTRY_V3;
    if (type < 0 || type > (rows == 1 ? LLAMA_FP32 : LLAMA_INT4) || found_rows != rows || found_cols != cols) {
        table->code =
            fail(table->error, LLAMA_ERROR_FILE, "%s: %s has type %d and shape (%d, %d), allowed (%d, %d)",
                 table->path, name, type, found_rows, found_cols, rows, cols);
        return;
    }
    *w = (Tensor){.type = rows == 1 ? ROWS_FP32 : types[type], .rows = rows, .cols = cols};
    w->group_size = type_is_quantised(w->type) ? TILE_GROUP : 0;
    table->quantised |= type_is_quantised(w->type);
    if (bytes != tensor_bytes(w) || at % ALIGN_V3 || !lies_within(at, bytes, table->begin, table->file->size)) {
        table->code = fail(
            table->error, LLAMA_ERROR_FILE,
            "%s: %s lies at %llu with %llu bytes, allowed %llu bytes at a multiple of %d in the file", table->path,
            name, (unsigned long long)at, (unsigned long long)bytes, (unsigned long long)tensor_bytes(w), ALIGN_V3);
        return;
    }
    w->data = table->file->data + at;
}

// Matrices with the same input meet it in the same form.
static void check_form_v3(TableV3 *table, const Tensor *w, const char *name, const Tensor *first) {
    if (table->code == LLAMA_OK && !types_agree(w->type, first->type))
        table->code = fail(table->error, LLAMA_ERROR_FILE,
                           "%s: wq, wk, wv, and w1, w3, may be int8 and int4 mixed, else of one type, but a %s "
                           "differs",
                           table->path, name);
}

static void take_layer_v3(TableV3 *table, Layer *layer, const LlamaConfig *c) {
    int32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    take_v3(table, &layer->attention_norm, "attention_norm", 1, c->dim);
    take_v3(table, &layer->wq, "wq", q_dim, c->dim);
    take_v3(table, &layer->wk, "wk", kv_dim, c->dim);
    take_v3(table, &layer->wv, "wv", kv_dim, c->dim);
    take_v3(table, &layer->wo, "wo", c->dim, q_dim);
    take_v3(table, &layer->ffn_norm, "ffn_norm", 1, c->dim);
    take_v3(table, &layer->w1, "w1", c->hidden_dim, c->dim);
    take_v3(table, &layer->w3, "w3", c->hidden_dim, c->dim);
    take_v3(table, &layer->w2, "w2", c->dim, c->hidden_dim);
    check_form_v3(table, &layer->wk, "wk", &layer->wq);
    check_form_v3(table, &layer->wv, "wv", &layer->wq);
    check_form_v3(table, &layer->w3, "w3", &layer->w1);
}

static int place_tensors_v3(const char *path, LlamaModel *m, LlamaError *error) {
    LlamaConfig *c = &m->config;
    const uint8_t *header = m->file.data;
    int64_t n_tensors = load_i32(header + N_TENSORS_AT), expected = 9 * (int64_t)c->n_layers + (c->tied ? 2 : 3);
    if (n_tensors != expected)
        return fail(error, LLAMA_ERROR_FILE, "%s: has %lld tensors, allowed %lld", path, (long long)n_tensors,
                    (long long)expected);
    m->tokenizer = (Mapping){header + load_u64(header + TOKENIZER_AT), load_u64(header + TOKENIZER_BYTES_AT)};
    const uint8_t *texts = m->tokenizer.data + m->tokenizer.size;
    map_texts_v3(header, texts, &m->chat);
    uint64_t begin =
        (uint64_t)(texts - header) + m->chat.text_length + m->chat.system_length + m->chat.preamble_length;
    TableV3 table = {path, &m->file, header + HEADER_V3, begin, false, error, LLAMA_OK};
    take_v3(&table, &m->tok_embeddings, "tok_embeddings", c->vocab_size, c->dim);
    for (int32_t l = 0; l < c->n_layers; l++) take_layer_v3(&table, &m->layers[l], c);
    take_v3(&table, &m->norm, "norm", 1, c->dim);
    m->output = m->tok_embeddings;
    if (!c->tied) take_v3(&table, &m->output, "output", c->vocab_size, c->dim);
    c->group_size = table.quantised ? TILE_GROUP : 0;
    return table.code;
}

#endif
