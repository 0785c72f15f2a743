// checkpoint.h: the .bin files of the llama2.c family, recognised by content, checked and mapped.
//
//     v0   7 x int32 header, fp32 tensors; no magic; a negative vocab_size means a classifier of its own
//     v1   256-byte header with magic "ak42" and version 1, fp32 tensors
//     v2   the same with version 2 and a group size, int8 tensors, fp32 norms
//     v3   the same with version 3, and all that the others lack: checkpoint_v3.h
//
// A file is trusted in nothing: each field has a range, they must fit each other, and the size of the file must be
// exactly what they ask for. No header before v3 holds rope_theta or norm_eps: they are 10000 and 1e-5.
#ifndef LLAMA_CHECKPOINT_H
#define LLAMA_CHECKPOINT_H

#include "checkpoint_v3.h" // read_header_v3, place_tensors_v3
#include "guard.h"         // llama_unguard
#include "model.h"         // LlamaModel, Layer

// ---------------------------------------------------------------------------------------------------------
// Header

enum { MAGIC = 0x616b3432, HEADER_V0 = 28, HEADER_V1 = 256, SHARED_AT = 36, GROUP_SIZE_AT = 37 };

// Every field has a name, a place and a range; the ranges keep all products below 2^63.
static const struct {
    const char *name;
    size_t field;
    int32_t min, max;
} header_fields[] = {
    {"dim", offsetof(LlamaConfig, dim), 2, 1 << 17},
    {"hidden_dim", offsetof(LlamaConfig, hidden_dim), 1, 1 << 20},
    {"n_layers", offsetof(LlamaConfig, n_layers), 1, 1 << 12},
    {"n_heads", offsetof(LlamaConfig, n_heads), 1, 1 << 12},
    {"n_kv_heads", offsetof(LlamaConfig, n_kv_heads), 1, 1 << 12},
    {"vocab_size", offsetof(LlamaConfig, vocab_size), 1, 1 << 24},
    {"max_seq_len", offsetof(LlamaConfig, max_seq_len), 1, 1 << 24},
};

static int check_ranges(const char *path, const LlamaConfig *c, LlamaError *error) {
    for (size_t i = 0; i < COUNT(header_fields); i++) {
        int32_t value = load_i32((const char *)c + header_fields[i].field);
        int32_t min = header_fields[i].min, max = header_fields[i].max;
        if (value < min || value > max)
            return fail(error, LLAMA_ERROR_FILE, "%s: %s = %d, allowed %d to %d", path, header_fields[i].name,
                        value, min, max);
    }
    return LLAMA_OK;
}

// Whether fields within their ranges fit each other.
static int check_fields(const char *path, const LlamaConfig *c, LlamaError *error) {
    if (c->version < 3 && c->dim % c->n_heads)
        return fail(error, LLAMA_ERROR_FILE, "%s: n_heads = %d does not divide dim = %d", path, c->n_heads, c->dim);
    if (c->n_heads % c->n_kv_heads)
        return fail(error, LLAMA_ERROR_FILE, "%s: n_kv_heads = %d does not divide n_heads = %d", path,
                    c->n_kv_heads, c->n_heads);
    if (c->head_dim % 2)
        return fail(error, LLAMA_ERROR_FILE, "%s: head_dim = %d (dim / n_heads), allowed even numbers", path,
                    c->head_dim);
    if (c->version != 2) return LLAMA_OK;
    // llama2.c's exporter lets groups run over the ends of rows; its reader then takes wrong scales.
    if (c->group_size < 1 || c->dim % c->group_size || c->hidden_dim % c->group_size)
        return fail(error, LLAMA_ERROR_FILE,
                    "%s: group_size = %d, allowed divisors of dim = %d and hidden_dim = %d", path, c->group_size,
                    c->dim, c->hidden_dim);
    return LLAMA_OK;
}

// Reads the seven integers at `header`, shared by all versions.
static void read_fields(LlamaConfig *c, const uint8_t *header) {
    for (size_t i = 0; i < COUNT(header_fields); i++)
        memcpy((char *)c + header_fields[i].field, header + 4 * i, sizeof(int32_t));
}

static int read_header(const char *path, const Mapping *file, LlamaConfig *c, LlamaError *error) {
    bool magic = file->size >= 8 && load_i32(file->data) == MAGIC;
    c->version = magic ? load_i32(file->data + 4) : 0;
    if (magic && (c->version < 1 || c->version > 3))
        return fail(error, LLAMA_ERROR_FILE, "%s: version = %d, allowed 1, 2 and 3 (and 0, without magic)", path,
                    c->version);
    uint64_t size = magic ? HEADER_V1 : HEADER_V0;
    if (file->size < size)
        return fail(error, LLAMA_ERROR_FILE, "%s: has %llu bytes, the header alone has %llu", path,
                    (unsigned long long)file->size, (unsigned long long)size);
    read_fields(c, file->data + (magic ? 8 : 0));
    c->tied = magic ? file->data[SHARED_AT] : c->vocab_size > 0;
    if (c->tied > 1)
        return fail(error, LLAMA_ERROR_FILE, "%s: shared classifier = %d, allowed 0 and 1", path, c->tied);
    if (!magic && c->vocab_size < 0 && c->vocab_size != INT32_MIN) c->vocab_size = -c->vocab_size;
    if (c->version == 2) c->weight_type = LLAMA_INT8, c->group_size = load_i32(file->data + GROUP_SIZE_AT);
    c->head_dim = c->n_heads > 0 ? c->dim / c->n_heads : 0;
    c->norm_eps = 1e-5f;
    c->rope_theta = 10000;
    c->bos = -1;
    c->add_bos = 1;
    int code = check_ranges(path, c, error); // first: ids are compared with vocab_size
    if (code == LLAMA_OK && c->version == 3) code = read_header_v3(path, file, c, error);
    return code == LLAMA_OK ? check_fields(path, c, error) : code;
}

// ---------------------------------------------------------------------------------------------------------
// Tensors: a cursor walks over the file in the order of its version and gives each tensor its place.

typedef struct {
    const Mapping *file;
    uint64_t offset;
    int32_t type, group_size; // of the tensors to come
} Cursor;

static void place(Cursor *cursor, Tensor *w, int32_t rows, int32_t cols) {
    *w = (Tensor){.type = cursor->type, .rows = rows, .cols = cols, .group_size = cursor->group_size};
    uint64_t offset = cursor->offset, values = (uint64_t)rows * (uint64_t)cols;
    cursor->offset += tensor_bytes(w);
    if (cursor->offset > cursor->file->size) return; // load says by how much at the end
    w->data = cursor->file->data + offset;
    if (w->type == ROWS_INT8) w->scales = cursor->file->data + offset + values;
}

// The same tensor of every layer, one after the other.
static void place_layers(Cursor *cursor, LlamaModel *m, size_t field, int32_t rows, int32_t cols) {
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        place(cursor, (Tensor *)((char *)&m->layers[l] + field), rows, cols);
    }
}

static void place_attention(Cursor *cursor, LlamaModel *m) {
    const LlamaConfig *c = &m->config;
    int32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    place_layers(cursor, m, offsetof(Layer, wq), q_dim, c->dim);
    place_layers(cursor, m, offsetof(Layer, wk), kv_dim, c->dim);
    place_layers(cursor, m, offsetof(Layer, wv), kv_dim, c->dim);
    place_layers(cursor, m, offsetof(Layer, wo), c->dim, q_dim);
}

static void place_ffn(Cursor *cursor, LlamaModel *m) {
    const LlamaConfig *c = &m->config;
    place_layers(cursor, m, offsetof(Layer, w1), c->hidden_dim, c->dim);
    place_layers(cursor, m, offsetof(Layer, w2), c->dim, c->hidden_dim);
    place_layers(cursor, m, offsetof(Layer, w3), c->hidden_dim, c->dim);
}

static void place_v0(Cursor *cursor, LlamaModel *m) {
    const LlamaConfig *c = &m->config;
    cursor->offset = HEADER_V0;
    place(cursor, &m->tok_embeddings, c->vocab_size, c->dim);
    place_layers(cursor, m, offsetof(Layer, attention_norm), 1, c->dim);
    place_attention(cursor, m);
    place_layers(cursor, m, offsetof(Layer, ffn_norm), 1, c->dim);
    place_ffn(cursor, m);
    place(cursor, &m->norm, 1, c->dim);
    // Two blocks of (max_seq_len, head_dim / 2) that once held the tables of RoPE.
    cursor->offset += 2 * (uint64_t)c->max_seq_len * (uint64_t)(c->head_dim / 2) * sizeof(float);
}

static void place_v1_v2(Cursor *cursor, LlamaModel *m) {
    const LlamaConfig *c = &m->config;
    cursor->offset = HEADER_V1;
    place_layers(cursor, m, offsetof(Layer, attention_norm), 1, c->dim);
    place_layers(cursor, m, offsetof(Layer, ffn_norm), 1, c->dim);
    place(cursor, &m->norm, 1, c->dim);
    cursor->type = c->version == 2 ? ROWS_INT8 : ROWS_FP32;
    cursor->group_size = c->group_size;
    place(cursor, &m->tok_embeddings, c->vocab_size, c->dim);
    place_attention(cursor, m);
    place_ffn(cursor, m);
}

static int place_tensors(const char *path, LlamaModel *m, LlamaError *error) {
    if (m->config.version == 3) return place_tensors_v3(path, m, error);
    Cursor cursor = {.file = &m->file, .type = ROWS_FP32};
    if (m->config.version == 0)
        place_v0(&cursor, m);
    else
        place_v1_v2(&cursor, m);
    m->output = m->tok_embeddings;
    if (!m->config.tied) place(&cursor, &m->output, m->config.vocab_size, m->config.dim);
    if (cursor.offset != m->file.size)
        return fail(error, LLAMA_ERROR_FILE, "%s: has %llu bytes, its header asks for %llu", path,
                    (unsigned long long)m->file.size, (unsigned long long)cursor.offset);
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// Open and close

void llama_close(LlamaModel *m) {
    if (!m) return;
    llama_unguard(m); // its memory will be somebody else's
    mapping_free(&m->file);
    free(m->layers);
    free(m->path);
    free(m);
}

static int read_checkpoint(const char *path, LlamaModel *m, LlamaError *error) {
    int code = read_header(path, &m->file, &m->config, error);
    if (code != LLAMA_OK) return code;
    m->layers = calloc((size_t)m->config.n_layers, sizeof *m->layers);
    if (!m->layers) return fail_memory(error, (uint64_t)m->config.n_layers * sizeof *m->layers);
    return place_tensors(path, m, error);
}

int llama_open(const char *path, LlamaModel **model, LlamaError *error) {
    *model = NULL;
    LlamaModel *m = calloc(1, sizeof *m);
    if (!m) return fail_memory(error, sizeof *m);
    m->path = strdup(path);
    int code = m->path ? mapping_init(&m->file, path, error) : fail_memory(error, strlen(path));
    if (code == LLAMA_OK) {
        code = read_checkpoint(path, m, error);
        // A v0 file has no magic: only where it does not add up can it be taken for something else.
        const char *kind = code == LLAMA_ERROR_FILE ? file_kind(m->file.data, m->file.size) : NULL;
        bool is_model = kind && (strstr(kind, "GGUF") || strstr(kind, "safetensors") || strstr(kind, "PyTorch"));
        const char *way = is_model ? ": python -m llama.run reads it" : "";
        if (kind) fail(error, code, "%s: is %s, not a llama2.c checkpoint%s", path, kind, way);
    }
    if (code == LLAMA_OK)
        *model = m;
    else
        llama_close(m);
    return code;
}

#endif
