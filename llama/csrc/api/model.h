// model.h: a checkpoint of the llama2.c family (v0, v1: fp32, v2: int8) or of our own (v3: any type, with its
// tokenizer), mapped into memory and never copied.
#ifndef LLAMA_API_MODEL_H
#define LLAMA_API_MODEL_H

#include "error.h"

// cdef begin
typedef struct LlamaModel LlamaModel;

enum { LLAMA_FP32 = 0, LLAMA_INT8 = 1, LLAMA_BF16 = 2, LLAMA_INT4 = 3 }; // types of weights
enum {
    LLAMA_ROPE_PLAIN = 0,
    LLAMA_ROPE_LINEAR = 1,
    LLAMA_ROPE_LLAMA3 = 2,
    LLAMA_ROPE_YARN = 3
}; // of RoPE's scaling
enum { LLAMA_MAX_STOPS = 8 };

typedef struct {
    int32_t version;    // of the file format: 0, 1, 2 or 3
    int32_t dim;        // width of the residual stream
    int32_t hidden_dim; // width of the feed-forward layers
    int32_t n_layers;
    int32_t n_heads;    // query heads
    int32_t n_kv_heads; // key and value heads, each shared by n_heads / n_kv_heads query heads
    int32_t head_dim;   // width of a head
    int32_t vocab_size;
    int32_t max_seq_len; // positions the model was trained for
    int32_t tied;        // 1: the classifier is the token embedding
    int32_t weight_type; // LLAMA_FP32 ..., of the matrices of the layers
    int32_t group_size;  // weights that share a scale, 0 where there are no scales
    float norm_eps;
    float rope_theta;
    int32_t rope_scaling; // LLAMA_ROPE_PLAIN ...
    float rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    int32_t rope_original_max_seq_len;
    float rope_beta_fast, rope_beta_slow, rope_attention_factor; // of YaRN; the last 0: 0.1 ln(factor) + 1
    int32_t rope_truncate; // of YaRN, 1: its ramp begins and ends at whole pairs
    int32_t bos;           // for a tokenizer that has none, -1: none
    int32_t n_stops;       // ids that end a text, besides the tokenizer's EOS
    int32_t stops[8];      // (LLAMA_MAX_STOPS)
    int32_t chat_template; // LLAMA_CHAT_NONE ...
    int32_t add_bos;       // 1: BOS goes in front of a text (v0, v1, v2: always)
    int32_t add_eos;       // 1: the model's tokenizer puts EOS behind one; the engine does where it is asked to
} LlamaConfig;

int llama_open(const char *path, LlamaModel **model, LlamaError *error);
void llama_close(LlamaModel *model);
const LlamaConfig *llama_config(const LlamaModel *model);
const char *llama_type_name(int32_t type);           // "fp32", "int8", "bf16", "int4"
uint64_t llama_parameters(const LlamaModel *model);  // number of weights
uint64_t llama_token_bytes(const LlamaModel *model); // bytes of weights that one decoded token reads
// Until the model is closed, or llama_unguard, what its file has lost since it was opened reads as zeros; without
// it, that is a SIGBUS. Changes how the whole process takes that signal, so it is for programs, from one thread at
// a time.
int llama_guard(const LlamaModel *model, LlamaError *error);
void llama_unguard(const LlamaModel *model);
int llama_has_tokenizer(const LlamaModel *model); // 1: its file holds one
// cdef end

#endif
