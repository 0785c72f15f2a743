// error.h: what a function that can fail returns, and the line that says why. The codes are the exit codes of the
// command line; it alone is interrupted, or no longer read.
#ifndef LLAMA_API_ERROR_H
#define LLAMA_API_ERROR_H

#include <stddef.h>
#include <stdint.h>

// cdef begin
enum {
    LLAMA_OK = 0,
    LLAMA_ERROR_USAGE = 2,
    LLAMA_ERROR_FILE = 3,
    LLAMA_ERROR_RESOURCE = 4,
    LLAMA_ERROR_CANCELLED = 5, // by the flag that llama_context_watch was given
    LLAMA_ERROR_INTERRUPTED = 130,
    LLAMA_ERROR_CLOSED = 141 // who reads the output has had enough, as head has: nothing to tell anybody
};

typedef struct {
    int code;
    char text[1024]; // one line, no newline
} LlamaError;
// cdef end

#endif
