// tiles.h: the layout of weights in v3 files, and the scalar kernels that say what it means.
//
// 16 rows of a matrix lie together in a tile, so that one vector holds the same columns of 16 rows: their dot
// products come out side by side, without a horizontal sum, and a thread reads one stream of bytes.
//
//     fp32    64 bytes for each column: [16 rows]
//     bf16    64 bytes for each two columns: [16 rows][2 columns], the upper halves of floats
//
// In int8 and int4 columns are cut into groups of 32 that share a scale. A tile is a sequence of blocks of two
// groups; with an odd number of groups the last block has one, and half of its scales are unused.
//
//     block   64 bytes    scales: fp16 [2 groups][16 rows]
//             2 groups, int8: 512 bytes each, [8 chunks][16 rows][4 columns]; a byte is (byte - 128) x scale
//                       int4: 256 bytes each, [4 chunks][16 rows][4 columns]; the low half of byte i of chunk c is
//                             (half - 8) x scale, column 8 c + i; the high half is column 8 c + 4 + i
//
// Rows and columns that fill up the last tile and the last group are zeros. Activations are quantised by the same
// groups. Weights are stored unsigned, as the dot product instruction of x86 takes them; what that adds to a dot
// product, 128 (or 8) x the sum of the activations, is taken off again, exactly.
#ifndef LLAMA_TILES_H
#define LLAMA_TILES_H

#include "quant.h" // Tensor, Rows

enum { TILE_ROWS = 16, TILE_GROUP = 32, TILE_SCALES = 64, TILE_AHEAD = 4096 };

static inline int32_t tile_groups(const Tensor *w) {
    return (w->cols + TILE_GROUP - 1) / TILE_GROUP;
}

// Bytes of one group of a tile, without its scales.
static inline int32_t tile_group_bytes(int32_t type) {
    return type == TILES_INT8 ? TILE_ROWS * TILE_GROUP : TILE_ROWS * TILE_GROUP / 2;
}

// What stands for a weight of 0.
static inline int32_t tile_zero(int32_t type) {
    return type == TILES_INT8 ? 128 : 8;
}

static inline uint64_t tile_bytes(const Tensor *w) {
    if (w->type == TILES_FP32) return (uint64_t)w->cols * TILE_ROWS * 4;
    if (w->type == TILES_BF16) return ((uint64_t)w->cols + 1) / 2 * TILE_ROWS * 4;
    uint64_t groups = (uint64_t)tile_groups(w);
    return (groups + 1) / 2 * TILE_SCALES + groups * (uint64_t)tile_group_bytes(w->type);
}

// The tile that holds a row.
static inline const uint8_t *tensor_tile(const Tensor *w, int32_t row) {
    return (const uint8_t *)w->data + (uint64_t)(row / TILE_ROWS) * tile_bytes(w);
}

// A weight of a tile of floats.
static inline float tile_float(const uint8_t *tile, int32_t row, int32_t column, int32_t type) {
    if (type == TILES_FP32) return load_f32(tile + ((int64_t)column * TILE_ROWS + row) * 4);
    const uint8_t *half = tile + ((int64_t)(column / 2) * TILE_ROWS + row) * 4 + column % 2 * 2;
    return bf16_to_float((uint16_t)(half[0] | half[1] << 8));
}

// Where a group of a tile has its scales and its weights.
static inline const uint8_t *group_scales(const uint8_t *tile, int32_t group, int32_t type) {
    return tile + (int64_t)(group / 2) * (TILE_SCALES + 2 * tile_group_bytes(type)) + group % 2 * TILE_SCALES / 2;
}

static inline const uint8_t *group_weights(const uint8_t *tile, int32_t group, int32_t type) {
    int32_t bytes = tile_group_bytes(type);
    return tile + (int64_t)(group / 2) * (TILE_SCALES + 2 * bytes) + TILE_SCALES + group % 2 * bytes;
}

// A weight of a group as the whole number that the scale is multiplied with.
static inline int32_t group_weight(const uint8_t *weights, int32_t row, int32_t column, int32_t type) {
    if (type == TILES_INT8) return weights[column / 4 * 64 + row * 4 + column % 4] - 128;
    int32_t byte = weights[column / 8 * 64 + row * 4 + column % 4];
    return (column % 8 < 4 ? byte & 15 : byte >> 4) - 8;
}

static inline float group_scale(const uint8_t *scales, int32_t row) {
    return half_to_float((uint16_t)(scales[2 * row] | scales[2 * row + 1] << 8));
}

// One row of a group as floats, out: (TILE_GROUP).
static inline void group_row(float *out, const uint8_t *weights, float scale, int32_t row, int32_t type) {
    const uint8_t *bytes = weights + 4 * row; // of the first chunk
    if (type == TILES_INT8) {
        for (int c = 0; c < TILE_GROUP / 4; c++)
            for (int j = 0; j < 4; j++) out[4 * c + j] = (float)(bytes[64 * c + j] - 128) * scale;
        return;
    }
    for (int c = 0; c < TILE_GROUP / 8; c++)
        for (int j = 0; j < 4; j++) {
            out[8 * c + j] = (float)((bytes[64 * c + j] & 15) - 8) * scale;
            out[8 * c + 4 + j] = (float)((bytes[64 * c + j] >> 4) - 8) * scale;
        }
}

// One row as floats, out: (cols).
static void tile_row(float *out, const Tensor *w, int32_t row) {
    const uint8_t *tile = tensor_tile(w, row);
    if (!type_is_quantised(w->type)) {
        for (int32_t k = 0; k < w->cols; k++) out[k] = tile_float(tile, row % TILE_ROWS, k, w->type);
        return;
    }
    for (int32_t g = 0; g < tile_groups(w); g++, out += TILE_GROUP) {
        float scale = group_scale(group_scales(tile, g, w->type), row % TILE_ROWS), last[TILE_GROUP];
        int32_t left = w->cols - g * TILE_GROUP;
        group_row(left < TILE_GROUP ? last : out, group_weights(tile, g, w->type), scale, row % TILE_ROWS, w->type);
        if (left < TILE_GROUP) memcpy(out, last, (size_t)left * sizeof *out);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Any type

static uint64_t tensor_bytes(const Tensor *w) {
    uint64_t n = (uint64_t)w->rows * (uint64_t)w->cols;
    switch (w->type) {
    case ROWS_FP32: return n * sizeof(float);
    case ROWS_INT8: return n + n / (uint64_t)w->group_size * sizeof(float);
    default: return ((uint64_t)w->rows + TILE_ROWS - 1) / TILE_ROWS * tile_bytes(w);
    }
}

// One row of a matrix as floats, out: (cols). A token's embedding.
static void tensor_row(float *out, const Tensor *w, int32_t row) {
    switch (w->type) {
    case ROWS_FP32: memcpy(out, tensor_row_fp32(w, row), (size_t)w->cols * sizeof *out); break;
    case ROWS_INT8: {
        const int8_t *q = tensor_row_int8(w, row);
        const uint8_t *scales = tensor_row_scales(w, row);
        for (int32_t i = 0; i < w->cols; i++) out[i] = (float)q[i] * load_f32(scales + i / w->group_size * 4);
        break;
    }
    default: tile_row(out, w, row);
    }
}

// ---------------------------------------------------------------------------------------------------------
// The scalar kernels. All instruction sets compute the same bits: with floats an output is the sum, column by
// column, of fma(weight, x, sum); else, group by group, of fma(exact dot product, scale x scale, sum).

static void matmul_tiles_floats_scalar(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                       int32_t begin, int32_t end) {
    for (int32_t i = 0; i < n; i++) {
        const float *values = x->values + (int64_t)i * x->cols;
        for (int32_t r = begin; r < end; r++) {
            const uint8_t *tile = tensor_tile(w, r);
            float sum = 0;
            for (int32_t k = 0; k < w->cols; k++)
                sum = fmaf(tile_float(tile, r % TILE_ROWS, k, w->type), values[k], sum);
            out[i * stride + r] = sum;
        }
    }
}

static void matmul_tiles_scalar(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w,
                                int32_t begin, int32_t end) {
    int32_t groups = tile_groups(w), x_groups = x->groups;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t r = begin; r < end; r++) {
            const uint8_t *tile = tensor_tile(w, r);
            const int8_t *x_q = x->quants + (int64_t)i * x->cols;
            float sum = 0;
            for (int32_t g = 0; g < groups; g++, x_q += TILE_GROUP) {
                const uint8_t *weights = group_weights(tile, g, w->type);
                int32_t dot = 0;
                for (int32_t k = 0; k < TILE_GROUP; k++)
                    dot += group_weight(weights, r % TILE_ROWS, k, w->type) * x_q[k];
                float scale = group_scale(group_scales(tile, g, w->type), r % TILE_ROWS);
                sum = fmaf((float)dot, scale * x->scales[(int64_t)i * x_groups + g], sum);
            }
            out[i * stride + r] = sum;
        }
    }
}

#endif
