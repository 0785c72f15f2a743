// stream.h: bytes of tokens in, whole UTF-8 characters out. An unfinished character is held back until it is whole;
// a byte that can't be part of one becomes U+FFFD. Text that may be the beginning of a stop string is held back
// too; where a stop string is complete, it and what follows is dropped.
#ifndef LLAMA_API_STREAM_H
#define LLAMA_API_STREAM_H

#include "error.h"

// cdef begin
typedef struct LlamaStream LlamaStream;

int llama_stream_init(const char *const *stops, int32_t n_stops, LlamaStream **stream, LlamaError *error);
void llama_stream_free(LlamaStream *stream);
void llama_stream_reset(LlamaStream *stream);
// Appends bytes. Sets text and length to what may be printed now (valid until the next call) and stopped to 1 once
// a stop string was found.
int llama_stream_push(LlamaStream *stream, const char *bytes, size_t n, const char **text, size_t *length,
                      int *stopped, LlamaError *error);
// The end of the text: gives out what was held back.
int llama_stream_flush(LlamaStream *stream, const char **text, size_t *length, LlamaError *error);
// cdef end

#endif
