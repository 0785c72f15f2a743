// pack.h: rows of floats to the tiles of a v3 file (docs/format.md), of any type.
#ifndef LLAMA_API_PACK_H
#define LLAMA_API_PACK_H

#include "model.h"

// cdef begin
enum { LLAMA_FP16 = 4 }; // of values that are packed; no file holds it

typedef struct {
    const void *values;  // (rows, cols)
    int32_t values_type; // LLAMA_FP32, LLAMA_BF16 or LLAMA_FP16
    int32_t rows, cols;
    int64_t first_row; // the number that messages give the first row
    // int8: neighbouring columns that get one scale, that of the largest of them, because they had one where the
    // values come from; a multiple of 32. 0: 32, as any other number of them
    int32_t scale_cols;
} LlamaStrip;

typedef struct {
    double squares;       // sum over the values
    double error_squares; // sum over what packing changed in them
} LlamaPacked;

// Bytes of a matrix in tiles of a type, LLAMA_FP32 ...; 0 for one that can't be.
uint64_t llama_packed_bytes(int32_t type, int32_t rows, int32_t cols);
// Packs a strip of rows of a matrix, all but its last strip a multiple of 16. out: llama_packed_bytes. threads, 0:
// the processors at hand; the result does not depend on them, nor on the CPU. An error where a value is not finite,
// or too large for the type; out then holds nothing of use.
int llama_pack(const LlamaStrip *strip, int32_t type, int32_t threads, uint8_t *out, LlamaPacked *packed,
               LlamaError *error);
// cdef end

#endif
