// adapter.h: LoRA adapters, which run beside a model whose weights stay as they are: after each product W x that
// one names comes scale B (A x), in fp32.
#ifndef LLAMA_API_ADAPTER_H
#define LLAMA_API_ADAPTER_H

#include "model.h"

// cdef begin
typedef struct LlamaAdapter LlamaAdapter;

// Reads a file (docs/format.md, llama.convert writes it) for a model of the shape that it says. scale: what it
// counts, any finite number. The adapter must outlive the contexts that have it, and the model the adapter.
int llama_adapter_open(const char *path, float scale, const LlamaModel *model, LlamaAdapter **adapter,
                       LlamaError *error);
void llama_adapter_close(LlamaAdapter *adapter);
// cdef end

#endif
