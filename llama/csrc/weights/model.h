// model.h: a model in memory. What its file says, where in the mapped file its tensors lie, and how large they are.
#ifndef LLAMA_MODEL_H
#define LLAMA_MODEL_H

#include "tiles.h"        // Tensor, tensor_bytes
#include "../base/util.h" // Mapping

typedef struct {
    Tensor attention_norm; // (1, dim)
    Tensor wq;             // (n_heads * head_dim, dim)
    Tensor wk, wv;         // (n_kv_heads * head_dim, dim)
    Tensor wo;             // (dim, n_heads * head_dim)
    Tensor ffn_norm;       // (1, dim)
    Tensor w1, w3;         // (hidden_dim, dim)
    Tensor w2;             // (dim, hidden_dim)
} Layer;

struct LlamaModel {
    LlamaConfig config;
    char *path; // for messages
    Mapping file;
    Mapping tokenizer;     // the part of the file that holds it, empty where none does
    LlamaChat chat;        // its texts are parts of the file
    Tensor tok_embeddings; // (vocab_size, dim)
    Layer *layers;         // (n_layers)
    Tensor norm;           // (1, dim)
    Tensor output;         // (vocab_size, dim), the classifier
};

const LlamaConfig *llama_config(const LlamaModel *m) {
    return &m->config;
}

LlamaChat llama_chat_of(const LlamaModel *m) {
    LlamaChat chat = m->chat;
    chat.kind = m->config.version < 3 ? LLAMA_CHAT_LLAMA2 : m->config.chat_template;
    chat.bos = m->config.add_bos;
    return chat;
}

// The tensors that every decoded token is multiplied with; an embedding of its own is not, it is looked up.
static uint64_t sum_tensors(const LlamaModel *m, uint64_t (*size)(const Tensor *w)) {
    uint64_t sum = size(&m->norm) + size(&m->output);
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        const Layer *y = &m->layers[l];
        sum += size(&y->attention_norm) + size(&y->wq) + size(&y->wk) + size(&y->wv) + size(&y->wo);
        sum += size(&y->ffn_norm) + size(&y->w1) + size(&y->w2) + size(&y->w3);
    }
    return sum;
}

static uint64_t tensor_values(const Tensor *w) {
    return (uint64_t)w->rows * (uint64_t)w->cols;
}

uint64_t llama_parameters(const LlamaModel *m) {
    return sum_tensors(m, tensor_values) + (m->config.tied ? 0 : tensor_values(&m->tok_embeddings));
}

uint64_t llama_token_bytes(const LlamaModel *m) {
    return sum_tensors(m, tensor_bytes);
}

#endif
