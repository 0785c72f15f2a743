// adapter.h: LoRA adapters (Hu et al., 2021) and their files. Byte by byte in docs/format.md:
//
//     header   64 bytes: the shape of the model, the scale, a checksum of all else
//     ranks    int32 (n_layers, 7): of wq, wk, wv, wo, w1, w3, w2; 0 for a matrix that has none
//     pairs    in that order A (rank, columns of W) and B, transposed (rank, rows of W), fp32
//
// Each of them is filled up with zeros to a multiple of 64 bytes.
//
// A file is read, not mapped: it is small, its checksum takes every byte of it, and each token all of them again.
#ifndef LLAMA_ADAPTER_H
#define LLAMA_ADAPTER_H

#include "checkpoint_v3.h" // crc32_of, load_u64
#include "model.h"         // LlamaModel, Layer

enum {
    ADAPTER_MAGIC = 0x61726f6c,
    ADAPTER_VERSION = 1,
    ADAPTER_HEADER = 64,
    ADAPTER_ALIGN = 64,
    MAX_RANK = 1 << 12
};
enum { ADAPTER_SHAPE_AT = 8, ADAPTER_SCALE_AT = 32, ADAPTER_CRC_AT = 36, ADAPTER_BYTES_AT = 40 };
enum { LAYER_MATRICES = 7, LAYER_FIELDS = sizeof(Layer) / sizeof(Tensor) };

// What is added to the product with a matrix.
typedef struct {
    Tensor a;       // (rank, columns of the matrix); without rows where the matrix has no adapter
    const float *b; // (rank, rows of the matrix)
    int32_t at;     // where A x begins among those of the same input
} Pair;

struct LlamaAdapter {
    const LlamaModel *model;
    float scale;    // of B A, the file's times the caller's
    int32_t width;  // values of A x of all matrices that have the same input, at most
    uint32_t mark;  // checksum of the file
    Pair *pairs;    // (n_layers, LAYER_FIELDS), as the tensors of the layers lie; norms have none
    uint8_t *bytes; // of the file
    uint64_t n_bytes;
};

// Fields of the shape, in the order of the header.
static const struct {
    const char *name;
    size_t field;
} adapter_shape[] = {
    {"dim", offsetof(LlamaConfig, dim)},
    {"hidden_dim", offsetof(LlamaConfig, hidden_dim)},
    {"n_layers", offsetof(LlamaConfig, n_layers)},
    {"n_heads", offsetof(LlamaConfig, n_heads)},
    {"n_kv_heads", offsetof(LlamaConfig, n_kv_heads)},
    {"head_dim", offsetof(LlamaConfig, head_dim)},
};

// Matrices of a layer in the order of the file; those that have an input of their own begin A x anew.
static const struct {
    const char *name;
    size_t field;
    bool new_input;
} adapter_matrices[LAYER_MATRICES] = {
    {"wq", offsetof(Layer, wq), true}, {"wk", offsetof(Layer, wk), false}, {"wv", offsetof(Layer, wv), false},
    {"wo", offsetof(Layer, wo), true}, {"w1", offsetof(Layer, w1), true},  {"w3", offsetof(Layer, w3), false},
    {"w2", offsetof(Layer, w2), true},
};

// ---------------------------------------------------------------------------------------------------------
// What forward asks

// The pair of a matrix of the layers, with those of the next ones behind it.
static inline const Pair *adapter_pair(const LlamaAdapter *adapter, const Tensor *w) {
    return adapter->pairs + (w - (const Tensor *)adapter->model->layers);
}

// out [begin, end) += scale B a, where a is A x: column after column, so that no value depends on the others.
static void pair_add(const Pair *pair, float scale, const float *a, float *out, int32_t rows, int32_t begin,
                     int32_t end) {
    for (int32_t j = 0; j < pair->a.rows; j++) {
        const float *b = pair->b + (int64_t)j * rows;
        float factor = scale * a[j];
        for (int32_t r = begin; r < end; r++) out[r] += factor * b[r];
    }
}

// ---------------------------------------------------------------------------------------------------------
// Files

// Takes the bytes of a file, whose mapping goes away.
static int adapter_read(LlamaAdapter *adapter, const char *path, LlamaError *error) {
    Mapping file;
    int code = mapping_init(&file, path, error);
    if (code != LLAMA_OK) return code;
    adapter->n_bytes = file.size;
    adapter->bytes = pages_alloc(file.size);
    if (adapter->bytes)
        memcpy(adapter->bytes, file.data, (size_t)file.size);
    else
        code = fail_memory(error, file.size);
    mapping_free(&file);
    return code;
}

static int adapter_check_header(LlamaAdapter *adapter, const char *path, LlamaError *error) {
    const uint8_t *header = adapter->bytes;
    if (adapter->n_bytes < ADAPTER_HEADER || load_i32(header) != ADAPTER_MAGIC) {
        const char *kind = file_kind(header, adapter->n_bytes);
        return fail(error, LLAMA_ERROR_FILE, "%s: is %s, allowed is an adapter that cria convert has made", path,
                    kind ? kind : "no adapter");
    }
    if (load_i32(header + 4) != ADAPTER_VERSION)
        return fail(error, LLAMA_ERROR_FILE, "%s: version = %d, allowed %d", path, load_i32(header + 4),
                    ADAPTER_VERSION);
    if (load_u64(header + ADAPTER_BYTES_AT) != adapter->n_bytes)
        return fail(error, LLAMA_ERROR_FILE, "%s: has %llu bytes, its header says %llu", path,
                    (unsigned long long)adapter->n_bytes, (unsigned long long)load_u64(header + ADAPTER_BYTES_AT));
    uint32_t stored = (uint32_t)load_i32(header + ADAPTER_CRC_AT);
    adapter->mark = crc32_of(0, header, ADAPTER_CRC_AT);
    adapter->mark = crc32_of(adapter->mark, header + ADAPTER_BYTES_AT, adapter->n_bytes - ADAPTER_BYTES_AT);
    if (adapter->mark != stored)
        return fail(error, LLAMA_ERROR_FILE, "%s: checksum = %08x, stored is %08x", path, adapter->mark, stored);
    for (size_t i = 0; i < COUNT(adapter_shape); i++) {
        int32_t found = load_i32(header + ADAPTER_SHAPE_AT + 4 * i);
        int32_t ours = load_i32((const char *)&adapter->model->config + adapter_shape[i].field);
        if (found != ours)
            return fail(error, LLAMA_ERROR_FILE, "%s: is for %s = %d, the model has %d", path,
                        adapter_shape[i].name, found, ours);
    }
    return LLAMA_OK;
}

// Takes the next values of a file, NULL where it ends before them.
static const void *adapter_take(const LlamaAdapter *adapter, uint64_t *at, uint64_t bytes) {
    uint64_t begin = *at;
    *at += round_up(bytes, ADAPTER_ALIGN);
    return *at <= adapter->n_bytes ? adapter->bytes + begin : NULL;
}

static int adapter_place(LlamaAdapter *adapter, const char *path, LlamaError *error) {
    uint64_t at = ADAPTER_HEADER, n = (uint64_t)adapter->model->config.n_layers * LAYER_MATRICES;
    const uint8_t *ranks = adapter_take(adapter, &at, n * sizeof(int32_t));
    int32_t width = 0;
    for (uint64_t i = 0; i < n && ranks; i++) {
        size_t field = adapter_matrices[i % LAYER_MATRICES].field;
        const Tensor *w = (const Tensor *)((const char *)&adapter->model->layers[i / LAYER_MATRICES] + field);
        Pair *pair = &adapter->pairs[adapter_pair(adapter, w) - adapter->pairs];
        int32_t rank = load_i32(ranks + 4 * i);
        if (rank < 0 || rank > MAX_RANK)
            return fail(error, LLAMA_ERROR_FILE, "%s: rank of %s of layer %d = %d, allowed 0 to %d", path,
                        adapter_matrices[i % LAYER_MATRICES].name, (int)(i / LAYER_MATRICES), rank, MAX_RANK);
        if (adapter_matrices[i % LAYER_MATRICES].new_input) width = 0;
        *pair = (Pair){.a = {.type = ROWS_FP32, .rows = rank, .cols = w->cols}, .at = width};
        pair->a.data = adapter_take(adapter, &at, (uint64_t)rank * (uint64_t)w->cols * sizeof(float));
        pair->b = adapter_take(adapter, &at, (uint64_t)rank * (uint64_t)w->rows * sizeof(float));
        width += rank;
        adapter->width = MAX(adapter->width, width);
    }
    if (at != adapter->n_bytes)
        return fail(error, LLAMA_ERROR_FILE, "%s: has %llu bytes, its ranks ask for %llu", path,
                    (unsigned long long)adapter->n_bytes, (unsigned long long)at);
    return LLAMA_OK;
}

void llama_adapter_close(LlamaAdapter *adapter) {
    if (!adapter) return;
    pages_free(adapter->bytes, adapter->n_bytes);
    free(adapter->pairs);
    free(adapter);
}

int llama_adapter_open(const char *path, float scale, const LlamaModel *model, LlamaAdapter **adapter,
                       LlamaError *error) {
    *adapter = NULL;
    LlamaAdapter *a = calloc(1, sizeof *a);
    if (!a) return fail_memory(error, sizeof *a);
    a->model = model;
    int code = adapter_read(a, path, error);
    if (code == LLAMA_OK) code = adapter_check_header(a, path, error);
    size_t n = (size_t)model->config.n_layers * LAYER_FIELDS;
    if (code == LLAMA_OK && !(a->pairs = calloc(n, sizeof *a->pairs)))
        code = fail_memory(error, n * sizeof *a->pairs);
    if (code == LLAMA_OK) code = adapter_place(a, path, error);
    if (code == LLAMA_OK) {
        a->scale = scale * load_f32(a->bytes + ADAPTER_SCALE_AT);
        if (!isfinite(a->scale))
            code = fail(error, LLAMA_ERROR_USAGE, "%s: scale = %g, allowed finite numbers", path, (double)a->scale);
    }
    if (code == LLAMA_OK)
        *adapter = a;
    else
        llama_adapter_close(a);
    return code;
}

#endif
