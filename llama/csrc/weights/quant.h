// quant.h: what a matrix of weights is, type by type, and how floats become int8 and back.
//
// TILES_FP32, TILES_BF16, TILES_INT8, TILES_INT4: see tiles.h. ROWS_FP32: floats, row after row. ROWS_INT8, as in
// the v2 files: every `group_size` neighbouring weights of a row share a scale,
//
//     row r:   q q q ... q | q q q ... q | ...        int8, (cols)
//              scale 0     | scale 1     | ...        fp32, (cols / group_size), after the data of all rows
//
// and a weight is q x scale, with scale = max |w| / 127 of its group. Activations are quantised in the same way,
// row by row, as they enter a matmul.
#ifndef LLAMA_QUANT_H
#define LLAMA_QUANT_H

#include "../base/half.h" // bf16_to_float
#include "../base/util.h"

#include <math.h> // fabsf, rintf

enum { ROWS_FP32, ROWS_INT8, TILES_FP32, TILES_BF16, TILES_INT8, TILES_INT4, N_TYPES };

#define QUANTISE_MIN 1e-30f // a smaller maximum counts as zero: 127 / max must not overflow

// A matrix of weights (rows, cols), inside the mapped file.
typedef struct {
    int32_t type; // ROWS_FP32 ...
    int32_t rows, cols;
    int32_t group_size;    // of the activations that it is multiplied with; of ROWS_INT8 too, divides cols
    const void *data;      // (rows, cols) of float or int8_t, or tiles
    const uint8_t *scales; // ROWS_INT8: float (rows, cols / group_size), at any address
} Tensor;

// Rows of activations (n, cols) on their way into a matmul, which reads the form that its weights ask for.
typedef struct {
    float *values;    // (n, cols)
    uint16_t *halves; // (n, cols) bf16, a zero behind the last of an odd row; only for kernels that multiply them
    int8_t *quants;   // (n, cols)
    float *scales;    // (n, groups)
    int32_t *sums;    // (n, groups) of the quants of a group
    int32_t cols;     // distance of the rows: even, and a multiple of the group size where there are groups
    int32_t groups;   // cols / group size; 0 where no weights are quantised
} Rows;

const char *llama_type_name(int32_t type) {
    static const char *const names[] = {"fp32", "int8", "bf16", "int4"};
    return type >= 0 && type < (int32_t)COUNT(names) ? names[type] : "unknown";
}

// Whether activations enter a product with weights of this type as int8.
static inline bool type_is_quantised(int32_t type) {
    return type == ROWS_INT8 || type == TILES_INT8 || type == TILES_INT4;
}

// Whether they enter products with weights of both types in the same form, on every instruction set.
static inline bool types_agree(int32_t a, int32_t b) {
    return type_is_quantised(a) == type_is_quantised(b) && (a == TILES_BF16) == (b == TILES_BF16);
}

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

// The size of the first of the fewest parts, as equal as can be, that n rows are cut into when each has at most
// `most`: a last part of one row would cost as much as one of several.
static inline int32_t even_part(int32_t n, int32_t most) {
    if (n <= most) return n; // at decoding, where two divisions a tile would be felt
    int32_t parts = (n + most - 1) / most;
    return (n + parts - 1) / parts;
}

#ifdef __x86_64__
// Whether AVX-512 kernels fetch whole-number tiles just before they need them. Intel's CPUs gain by it, up to 30 %
// on Cascade Lake; AMD's read a stream faster when left alone, by 5 to 25 % on Zen 4, and for several rows of
// activations gain as much by fetching the tiles that come next.
static inline bool fetches_ahead(void) {
    return __builtin_cpu_is("intel");
}

// Whether one row of activations meets several rows of weights, or tiles of them, at once, as those in the cache
// should; from memory AMD's CPUs read a single stream in down to half the time.
static inline bool rows_at_once(const Tensor *w) {
    int64_t size = w->type == ROWS_FP32 || w->type == TILES_FP32 ? 4 : w->type == TILES_BF16 ? 2 : 1;
    return (int64_t)w->rows * w->cols * size < 1 << 18 || fetches_ahead();
}
#endif

// The rows from row i on.
static inline Rows rows_from(const Rows *x, int32_t i) {
    Rows rows = {.values = x->values + (int64_t)i * x->cols, .cols = x->cols, .groups = x->groups};
    if (x->halves) rows.halves = x->halves + (int64_t)i * x->cols;
    if (x->groups == 0) return rows;
    rows.quants = x->quants + (int64_t)i * x->cols;
    rows.scales = x->scales + (int64_t)i * x->groups;
    rows.sums = x->sums + (int64_t)i * x->groups;
    return rows;
}

// Quantises n values by groups: q: (n), scales, sums of q: (n / group_size). A group of zeros, or nearly so, has
// scale 0. A group with a NaN or an infinity has scale NaN, so that it is not lost.
static void quantise(int8_t *q, float *scales, int32_t *sums, const float *x, int32_t n, int32_t group_size) {
    for (int32_t g = 0; g < n / group_size; g++, x += group_size, q += group_size) {
        float max = 0, poison = 0;
        for (int32_t i = 0; i < group_size; i++) {
            max = fmaxf(max, fabsf(x[i]));
            poison += x[i] * 0;
        }
        float inverse = max > QUANTISE_MIN ? 127 / max : 0;
        scales[g] = (max > QUANTISE_MIN ? max / 127 : 0) + poison;
        sums[g] = 0;
        for (int32_t i = 0; i < group_size; i++) {
            q[i] = (int8_t)fmaxf(-127, rintf(fminf(x[i] * inverse, 127)));
            sums[g] += q[i];
        }
    }
}

#endif
