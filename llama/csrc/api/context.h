// context.h: the KV cache of one or more sequences and the scratch memory of forward.
#ifndef LLAMA_API_CONTEXT_H
#define LLAMA_API_CONTEXT_H

#include "adapter.h"

// cdef begin
typedef struct LlamaContext LlamaContext;

enum { LLAMA_KV_FP32 = 0, LLAMA_KV_BF16 = 1, LLAMA_KV_FP16 = 2, LLAMA_KV_INT8 = 3 }; // types of keys and values

typedef struct {         // 0 in any field: the default
    int32_t context;     // positions a sequence may have, at most (and by default) max_seq_len
    int32_t sequences;   // sequences held side by side (1)
    int32_t batch;       // rows that go through the layers at once (128)
    int32_t threads;     // OpenMP threads (chosen from the size of the model and the processors at hand)
    int32_t exact;       // 1: activations stay fp32, also where int8 or int4 weights would have them as int8 (0)
    const char *kernels; // "scalar", "avx2" ... (NULL: $LLAMA_ISA, else the best this CPU runs)
    float rope_theta;    // base of RoPE's angles (the file's, 10000 for v0, v1 and v2, which can't say it)
    int32_t kv;          // LLAMA_KV_FP32 ...
    int32_t cache;       // positions that all sequences hold together, at least `context` (sequences x context)
    const LlamaAdapter *adapter; // of this model, which forward runs beside its weights (NULL: none)
} LlamaContextOptions;

int llama_context_init(const LlamaModel *model, const LlamaContextOptions *options, LlamaContext **context,
                       LlamaError *error);
void llama_context_free(LlamaContext *context);
const LlamaModel *llama_context_model(const LlamaContext *context);
// The options as they were resolved: every field is filled in.
const LlamaContextOptions *llama_context_options(const LlamaContext *context);
const char *llama_kv_name(int32_t kv);                     // "fp32", "bf16", "fp16", "int8"
uint64_t llama_context_bytes(const LlamaContext *context); // memory of the cache and the scratch

// One row of a forward pass. One row is decoding; many rows of one sequence are prefill or the check of a
// speculation; rows of many sequences are batched serving.
typedef struct {
    int32_t token;        // 0 <= token < vocab_size
    int32_t position;     // at most the number of positions its sequence holds; a lower one overwrites
                          // what is there and forgets what came after
    int32_t sequence;     // 0 <= sequence < options.sequences
    int32_t wants_logits; // 1: the next row of `logits` is for this row
    int32_t wants_hidden; // 1: so is the next row of `hidden`
} LlamaRow;

// Runs n rows through the model. logits: (rows that want them, vocab_size), NULL if none does.
// The result does not depend on the number of threads nor on how rows are grouped into calls. Where the CPU has AMX
// and the cache is not fp32, attention of rows that want no logits, as those of a prompt, reads 16 bits of a float.
int llama_forward(LlamaContext *context, const LlamaRow *rows, int32_t n, float *logits, LlamaError *error);
// The same with hidden states. hidden: (rows that want it, dim), the residual stream after the last layer and its
// norm, which the classifier turns into logits: what embeddings of texts are made of.
int llama_forward_hidden(LlamaContext *context, const LlamaRow *rows, int32_t n, float *logits, float *hidden,
                         LlamaError *error);
// Has forward look at *cancel before each `batch` rows: where another thread has made it something else than 0, it
// ends with LLAMA_ERROR_CANCELLED, and what was run before stays. NULL: it does not look any more.
void llama_context_watch(LlamaContext *context, const int *cancel);

// Runs one text of n ids as sequence 0. scores: (n - 1), the log-probability in nats of each id but the first after
// those before it.
int llama_score(LlamaContext *context, const int32_t *ids, int32_t n, double *scores, LlamaError *error);
// cdef end

#endif
