// quant.h: what a matrix of weights is, type by type, and how floats become int8 and back.
//
// int8, as in the v2 files: every `group_size` neighbouring weights of a row share a scale,
//
//     row r:   q q q ... q | q q q ... q | ...        int8, (cols)
//              scale 0     | scale 1     | ...        fp32, (cols / group_size), after the data of all rows
//
// and a weight is q x scale, with scale = max |w| / 127 of its group. Activations are quantised in the same way,
// row by row, as they enter a matmul.
#ifndef LLAMA_QUANT_H
#define LLAMA_QUANT_H

#include "util.h"

#include <math.h> // fabsf, rintf

enum { N_TYPES = LLAMA_INT8 + 1 };

#define QUANTISE_MIN 1e-30f // a smaller maximum counts as zero: 127 / max must not overflow

// A matrix of weights (rows, cols), inside the mapped file.
typedef struct {
    int32_t type; // LLAMA_FP32, LLAMA_INT8
    int32_t rows, cols;
    int32_t group_size;    // int8: divides cols
    const void *data;      // fp32: float (rows, cols); int8: int8_t (rows, cols)
    const uint8_t *scales; // int8: float (rows, cols / group_size), at any address
} Tensor;

// Rows of activations (n, cols) on their way into a matmul, which reads the form that its weights ask for.
typedef struct {
    float *values;  // (n, cols)
    int8_t *quants; // (n, cols)
    float *scales;  // (n, cols / group_size)
    int32_t cols;   // distance of the rows
} Rows;

static inline int32_t tensor_groups(const Tensor *w) {
    return w->cols / w->group_size;
}

static inline const float *tensor_row_fp32(const Tensor *w, int32_t row) {
    return (const float *)w->data + (int64_t)row * w->cols;
}

static inline const int8_t *tensor_row_int8(const Tensor *w, int32_t row) {
    return (const int8_t *)w->data + (int64_t)row * w->cols;
}

static inline const uint8_t *tensor_row_scales(const Tensor *w, int32_t row) {
    return w->scales + (int64_t)row * tensor_groups(w) * (int64_t)sizeof(float);
}

static uint64_t tensor_bytes(const Tensor *w) {
    uint64_t n = (uint64_t)w->rows * (uint64_t)w->cols;
    return w->type == LLAMA_INT8 ? n + n / (uint64_t)w->group_size * sizeof(float) : n * sizeof(float);
}

// One row of a matrix as floats, out: (cols). A token's embedding.
static void tensor_row(float *out, const Tensor *w, int32_t row) {
    if (w->type == LLAMA_FP32) {
        memcpy(out, tensor_row_fp32(w, row), (size_t)w->cols * sizeof *out);
        return;
    }
    const int8_t *q = tensor_row_int8(w, row);
    const uint8_t *scales = tensor_row_scales(w, row);
    for (int32_t i = 0; i < w->cols; i++) out[i] = (float)q[i] * load_f32(scales + i / w->group_size * 4);
}

// Quantises n values by groups: q: (n), scales: (n / group_size). A group of zeros, or nearly so, has scale 0. A
// group with a NaN or an infinity has scale NaN, so that it is not lost.
static void quantise(int8_t *q, float *scales, const float *x, int32_t n, int32_t group_size) {
    for (int32_t g = 0; g < n / group_size; g++, x += group_size, q += group_size) {
        float max = 0, poison = 0;
        for (int32_t i = 0; i < group_size; i++) {
            max = fmaxf(max, fabsf(x[i]));
            poison += x[i] * 0;
        }
        float inverse = max > QUANTISE_MIN ? 127 / max : 0;
        scales[g] = (max > QUANTISE_MIN ? max / 127 : 0) + poison;
        for (int32_t i = 0; i < group_size; i++) q[i] = (int8_t)fmaxf(-127, rintf(fminf(x[i] * inverse, 127)));
    }
}

#endif
