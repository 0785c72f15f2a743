// sequence.h: what a context holds of its sequences. They share one cache of pages of 16 positions, so that many of
// different lengths fit, and what two of them have in common lies there once.
#ifndef LLAMA_API_SEQUENCE_H
#define LLAMA_API_SEQUENCE_H

#include "context.h"

// cdef begin
// Positions that a sequence holds; 0 for a sequence that is none.
int32_t llama_sequence_length(const LlamaContext *context, int32_t sequence);
// Gives `to` the first n positions of `from` instead of what it holds. Takes no memory: they share pages, and one
// that either writes into is copied then.
int llama_sequence_copy(LlamaContext *context, int32_t from, int32_t to, int32_t n, LlamaError *error);
// Forgets all but the first n positions of a sequence.
int llama_sequence_trim(LlamaContext *context, int32_t sequence, int32_t n, LlamaError *error);
// Positions that the cache has room for still, in whole pages. Forward fails with LLAMA_ERROR_RESOURCE where it
// needs more, and changes nothing in that pass; only a context whose option `cache` is less than all sequences may
// have can come to that.
int64_t llama_cache_free(const LlamaContext *context);

// Bytes that llama_sequence_save writes of a sequence.
uint64_t llama_sequence_bytes(const LlamaContext *context, int32_t sequence);
// Writes a sequence, whose tokens are ids (llama_sequence_length), to bytes (llama_sequence_bytes).
int llama_sequence_save(const LlamaContext *context, int32_t sequence, const int32_t *ids, void *bytes,
                        LlamaError *error);
// Puts what was saved in the place of what a sequence holds, as if its n tokens had just been run. ids: room for
// the context. LLAMA_ERROR_FILE for bytes that are damaged, of another model or of another type of cache: nothing
// changes then.
int llama_sequence_restore(LlamaContext *context, int32_t sequence, const void *bytes, uint64_t size, int32_t *ids,
                           int32_t *n, LlamaError *error);
// cdef end

#endif
