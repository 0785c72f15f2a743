// amx_in_c.h: the tile instructions of llama/csrc/kernels/amx.h in C, under the same names, so that the kernels for
// AMX are checked on CPUs without it. They do what Intel's manual says (Software Developer's Manual, volume 2:
// TDPBSSD, TDPBF16PS), sums of bf16 without denormal numbers as the CPU has them, and abort where the CPU would
// fault.
//
//     #define AMX_IN_C
//     #include "amx_in_c.h" // before run.c
#ifndef LLAMA_AMX_IN_C_H
#define LLAMA_AMX_IN_C_H

#include <math.h>    // fmaf
#include <stdbool.h> // bool
#include <stdint.h>  // int8_t
#include <stdlib.h>  // abort
#include <string.h>  // memcpy

enum { TILES = 8, TILE_MOST_ROWS = 16, TILE_ROW_BYTES = 64 };

static struct {
    bool configured;
    int rows[TILES], row_bytes[TILES];
    uint8_t bytes[TILES][TILE_MOST_ROWS][TILE_ROW_BYTES];
} tiles_in_c;

// shapes: (64) bytes, as TileShapes has them.
static void tile_configure(const void *shapes) {
    const uint8_t *bytes = shapes;
    memset(&tiles_in_c, 0, sizeof tiles_in_c);
    tiles_in_c.configured = true;
    if (bytes[0] != 1) abort();
    for (int t = 0; t < TILES; t++) {
        tiles_in_c.rows[t] = bytes[48 + t];
        tiles_in_c.row_bytes[t] = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8;
        if (tiles_in_c.rows[t] > TILE_MOST_ROWS || tiles_in_c.row_bytes[t] > TILE_ROW_BYTES) abort();
    }
}

static void tile_ready(int tile) {
    if (!tiles_in_c.configured || tiles_in_c.rows[tile] == 0 || tiles_in_c.row_bytes[tile] == 0) abort();
}

static void tile_load(int tile, const void *from, int64_t stride) {
    tile_ready(tile);
    for (int i = 0; i < tiles_in_c.rows[tile]; i++)
        memcpy(tiles_in_c.bytes[tile][i], (const uint8_t *)from + i * stride, (size_t)tiles_in_c.row_bytes[tile]);
}

static void tile_store(int tile, void *to, int64_t stride) {
    tile_ready(tile);
    for (int i = 0; i < tiles_in_c.rows[tile]; i++)
        memcpy((uint8_t *)to + i * stride, tiles_in_c.bytes[tile][i], (size_t)tiles_in_c.row_bytes[tile]);
}

// Aborts where shapes do not go together: sums (m, n), a (m, k), b (k, n), of 4 bytes each.
static void tile_match(int sums, int a, int b) {
    tile_ready(sums);
    tile_ready(a);
    tile_ready(b);
    if (tiles_in_c.rows[sums] != tiles_in_c.rows[a] || tiles_in_c.row_bytes[a] != 4 * tiles_in_c.rows[b] ||
        tiles_in_c.row_bytes[sums] != tiles_in_c.row_bytes[b])
        abort();
}

static void tile_int8(int sums, int a, int b) {
    tile_match(sums, a, b);
    for (int m = 0; m < tiles_in_c.rows[sums]; m++)
        for (int n = 0; n < tiles_in_c.row_bytes[sums] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &tiles_in_c.bytes[sums][m][4 * n], sizeof sum);
            for (int k = 0; k < tiles_in_c.row_bytes[a]; k++)
                sum += (int8_t)tiles_in_c.bytes[a][m][k] * (int8_t)tiles_in_c.bytes[b][k / 4][4 * n + k % 4];
            memcpy(&tiles_in_c.bytes[sums][m][4 * n], &sum, sizeof sum);
        }
}

static float tile_normal(float x) {
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x;
}

static float tile_half(const uint8_t *bytes) {
    uint32_t bits = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 24;
    float x;
    memcpy(&x, &bits, sizeof x);
    return tile_normal(x);
}

static void tile_bf16(int sums, int a, int b) {
    tile_match(sums, a, b);
    for (int m = 0; m < tiles_in_c.rows[sums]; m++)
        for (int n = 0; n < tiles_in_c.row_bytes[sums] / 4; n++) {
            float sum, some[2] = {0};
            memcpy(&sum, &tiles_in_c.bytes[sums][m][4 * n], sizeof sum);
            for (int k = 0; k < tiles_in_c.row_bytes[a] / 2; k++) {
                const uint8_t *w = &tiles_in_c.bytes[b][k / 2][4 * n + k % 2 * 2];
                some[k % 2] =
                    tile_normal(fmaf(tile_half(&tiles_in_c.bytes[a][m][2 * k]), tile_half(w), some[k % 2]));
            }
            sum = tile_normal(tile_normal(sum) + tile_normal(some[0] + some[1]));
            memcpy(&tiles_in_c.bytes[sums][m][4 * n], &sum, sizeof sum);
        }
}

#define TILE_CONFIGURE(shapes) tile_configure(&(shapes))
#define TILE_RELEASE() memset(&tiles_in_c, 0, sizeof tiles_in_c)
#define TILE_ZERO(tile) memset(tiles_in_c.bytes[tile], 0, sizeof tiles_in_c.bytes[tile])
#define TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) tile_store(tile, to, stride)
#define TILE_INT8(sums, a, b) tile_int8(sums, a, b)
#define TILE_BF16(sums, a, b) tile_bf16(sums, a, b)

#endif
