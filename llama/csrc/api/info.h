// info.h: what a model is: its tensors, and the memory that it takes.
#ifndef LLAMA_API_INFO_H
#define LLAMA_API_INFO_H

#include "context.h"
#include "tokenizer.h"

// cdef begin
typedef struct {
    const char *name; // "tok_embeddings", "wq", "norm" ...
    int32_t layer;    // -1: of none
    int32_t type;     // LLAMA_FP32 ...
    int32_t rows, cols;
    uint64_t bytes; // in the file
} LlamaTensor;

int32_t llama_n_tensors(const LlamaModel *model);
// The tensor at an index below llama_n_tensors, in the order of a v3 file's table; name NULL for any other.
LlamaTensor llama_tensor(const LlamaModel *model, int32_t index);
// Compares a tensor with the checksum that its file has of it. LLAMA_OK where a file has none: v0, v1, v2.
int llama_check_tensor(const LlamaModel *model, int32_t index, LlamaError *error);

typedef struct {
    int32_t context;                  // positions
    uint64_t weights, cache, scratch; // bytes; the weights are mapped and shared between processes
} LlamaMemory;

// The memory that a context with these options takes, without making it.
int llama_context_measure(const LlamaModel *model, const LlamaContextOptions *options, LlamaMemory *memory,
                          LlamaError *error);

// Writes what the model is, and the memory that a context takes, into text, which has room for `room` bytes; what
// does not fit is cut off. tokenizer: NULL where there is none.
int llama_info(const LlamaModel *model, const LlamaTokenizer *tokenizer, const LlamaContextOptions *options,
               char *text, size_t room, LlamaError *error);
// cdef end

#endif
