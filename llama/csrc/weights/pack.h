// pack.h: rows of floats to tiles of any type (tiles.h draws them), as export.py writes them into v3 files.
#ifndef LLAMA_PACK_H
#define LLAMA_PACK_H

#include "../kernels/kernels.h" // kernels_find, AVX2, AVX512
#include "pack_group.h"         // PackGroup: the work on a group
#include "../base/threads.h"    // team_run, team_range

#include <float.h> // FLT_MAX

enum { PACK_CHUNKS = 64 }; // parts of a strip over which errors are summed, whatever the number of threads

// What is known of some tiles. bad_row: the first that can't be packed, INT32_MAX for none.
typedef struct {
    double squares, error_squares;
    int32_t bad_row;
} PackSums;

// ---------------------------------------------------------------------------------------------------------
// A tile

// The largest magnitude that a type holds. For int8 and int4 that of which a half, 65504 at most, can be the scale.
// The scales that int4 tries are less than a quarter of it, whatever the other weights of the group are.
static float pack_limit(int32_t type) {
    switch (type) {
    case TILES_FP32: return FLT_MAX;
    case TILES_BF16: return 0x1.fep127f;
    default: return 65504.0f * (type == TILES_INT8 ? 127 : 4);
    }
}

PASS void pack_group(PackGroup *g, uint8_t *tile, int32_t group, int32_t cols, int32_t type) {
    if (type == TILES_FP32) {
        pack_store_floats(g, tile, group * TILE_GROUP, cols, TILES_FP32);
    } else if (type == TILES_BF16) {
        pack_store_floats(g, tile, group * TILE_GROUP, cols, TILES_BF16);
    } else if (type == TILES_INT8) {
        pack_scales_int8(g);
        pack_quantise(g, -127, 127);
        pack_store(g, tile, group, TILES_INT8);
    } else {
        pack_scales_int4(g);
        pack_quantise(g, -8, 7);
        pack_store(g, tile, group, TILES_INT4);
    }
}

// Takes the group of up to 32 columns that begins at one.
PASS void pack_take(PackGroup *g, const LlamaStrip *strip, int32_t row, int32_t begin) {
    int32_t rows = MIN(TILE_ROWS, strip->rows - row), cols = MIN(TILE_GROUP, strip->cols - begin);
    int64_t at = (int64_t)row * strip->cols + begin;
    if (strip->values_type == LLAMA_BF16)
        pack_load(g, strip, at, rows, cols, LLAMA_BF16);
    else if (strip->values_type == LLAMA_FP16)
        pack_load(g, strip, at, rows, cols, LLAMA_FP16);
    else
        pack_load(g, strip, at, rows, cols, LLAMA_FP32);
    pack_largest(g);
}

// The largest magnitudes of the columns that share their scale with the one at begin, which is the first of them.
PASS void pack_largest_of_all(PackLanes largest, const LlamaStrip *strip, int32_t row, int32_t begin) {
    PackGroup g;
    memset(largest, 0, sizeof(PackLanes));
    for (int32_t at = begin; at < MIN(begin + strip->scale_cols, strip->cols); at += TILE_GROUP) {
        pack_take(&g, strip, row, at);
        for (int32_t r = 0; r < TILE_ROWS; r++) largest[r] = MAX(largest[r], fabsf(g.largest[r]));
    }
}

// Packs the up to 16 rows of a strip that begin at `row`, and adds to the sums.
PASS void pack_tile(uint8_t *tile, const LlamaStrip *strip, int32_t row, int32_t type, PackSums *sums) {
    PackGroup g;
    PackLanes shared;
    double squares[TILE_ROWS] = {0}, error_squares[TILE_ROWS] = {0};
    int32_t groups = (strip->cols + TILE_GROUP - 1) / TILE_GROUP;
    bool share = type == TILES_INT8 && strip->scale_cols > TILE_GROUP;
    for (int32_t i = 0; i < groups; i++) {
        int32_t begin = i * TILE_GROUP;
        pack_take(&g, strip, row, begin);
        for (int32_t r = TILE_ROWS; r-- > 0;)
            if (!(fabsf(g.largest[r]) <= pack_limit(type))) sums->bad_row = MIN(sums->bad_row, row + r);
        if (share && begin % strip->scale_cols == 0) pack_largest_of_all(shared, strip, row, begin);
        if (share) memcpy(g.largest, shared, sizeof shared);
        pack_group(&g, tile, i, MIN(TILE_GROUP, strip->cols - begin), type);
        pack_count(&g, squares, error_squares);
    }
    if (type_is_quantised(type) && groups % 2)
        memset((uint8_t *)group_scales(tile, groups, type), 0, TILE_SCALES / 2);
    for (int32_t r = 0; r < TILE_ROWS; r++) {
        sums->squares += squares[r];
        sums->error_squares += error_squares[r];
    }
}

typedef void PackTile(uint8_t *tile, const LlamaStrip *strip, int32_t row, int32_t type, PackSums *sums);

static void pack_tile_scalar(uint8_t *tile, const LlamaStrip *strip, int32_t row, int32_t type, PackSums *sums) {
    pack_tile(tile, strip, row, type, sums);
}

#if defined(__x86_64__)
AVX2 static void pack_tile_avx2(uint8_t *tile, const LlamaStrip *strip, int32_t row, int32_t type, PackSums *sums) {
    pack_tile(tile, strip, row, type, sums);
}

AVX512 static void pack_tile_avx512(uint8_t *tile, const LlamaStrip *strip, int32_t row, int32_t type,
                                    PackSums *sums) {
    pack_tile(tile, strip, row, type, sums);
}
#endif

// NEON is a part of aarch64: there the compiler's own vectors are as good.
static PackTile *pack_find(const Kernels *kernels) {
#if defined(__x86_64__)
    if (kernels == &kernels_avx512 || kernels == &kernels_avx512bf16) return pack_tile_avx512;
    if (kernels == &kernels_avx2) return pack_tile_avx2;
#endif
    (void)kernels;
    return pack_tile_scalar;
}

// ---------------------------------------------------------------------------------------------------------
// A strip

typedef struct {
    const LlamaStrip *strip;
    Tensor tiles; // what the strip becomes
    uint8_t *out;
    PackTile *pack;
    atomic_int next; // chunk to be taken: a thread that is held up leaves more to the others
    PackSums sums[PACK_CHUNKS];
} PackJob;

static void pack_chunks(void *data, const Team *team) {
    PackJob *job = data;
    (void)team;
    for (int32_t c; (c = atomic_fetch_add(&job->next, 1)) < PACK_CHUNKS;) {
        Range rows = team_range(&(Team){.thread = c, .threads = PACK_CHUNKS}, job->strip->rows, TILE_ROWS);
        job->sums[c] = (PackSums){.bad_row = INT32_MAX};
        for (int32_t row = rows.begin; row < rows.end; row += TILE_ROWS) {
            uint8_t *tile = job->out + (uint64_t)(row / TILE_ROWS) * tile_bytes(&job->tiles);
            job->pack(tile, job->strip, row, job->tiles.type, &job->sums[c]);
        }
    }
}

static int strip_check(const LlamaStrip *s, int32_t type, int32_t threads, LlamaError *error) {
    if (type < LLAMA_FP32 || type > LLAMA_INT4)
        return fail(error, LLAMA_ERROR_USAGE, "type = %d, allowed %d to %d", type, LLAMA_FP32, LLAMA_INT4);
    if (s->values_type != LLAMA_FP32 && s->values_type != LLAMA_BF16 && s->values_type != LLAMA_FP16)
        return fail(error, LLAMA_ERROR_USAGE, "values_type = %d, allowed fp32, bf16 and fp16", s->values_type);
    if (s->rows < 1 || s->cols < 1)
        return fail(error, LLAMA_ERROR_USAGE, "a strip of %d rows and %d columns, allowed 1 or more", s->rows,
                    s->cols);
    if (s->scale_cols < 0 || s->scale_cols % TILE_GROUP)
        return fail(error, LLAMA_ERROR_USAGE, "scale_cols = %d, allowed multiples of %d", s->scale_cols,
                    TILE_GROUP);
    if (threads < 0) return fail(error, LLAMA_ERROR_USAGE, "threads = %d, allowed 0 or more", threads);
    return LLAMA_OK;
}

// Says which value of a row can't be packed.
static int strip_refuse(const LlamaStrip *s, int32_t row, int32_t type, LlamaError *error) {
    int32_t i = 0;
    float value = 0;
    for (; i < s->cols; i++) {
        value = strip_value(s, (int64_t)row * s->cols + i, s->values_type);
        if (!(fabsf(value) <= pack_limit(type))) break;
    }
    return fail(error, LLAMA_ERROR_FILE, "row %lld, column %d: is %g, allowed are magnitudes up to %g",
                (long long)s->first_row + row, i, (double)value, (double)pack_limit(type));
}

static Tensor strip_tiles(int32_t type, int32_t rows, int32_t cols) {
    static const int32_t types[] = {TILES_FP32, TILES_INT8, TILES_BF16, TILES_INT4}; // LLAMA_FP32, LLAMA_INT8 ...
    return (Tensor){.type = types[type], .rows = rows, .cols = cols, .group_size = TILE_GROUP};
}

uint64_t llama_packed_bytes(int32_t type, int32_t rows, int32_t cols) {
    if (type < LLAMA_FP32 || type > LLAMA_INT4 || rows < 1 || cols < 1) return 0;
    Tensor tiles = strip_tiles(type, rows, cols);
    return tensor_bytes(&tiles);
}

int llama_pack(const LlamaStrip *strip, int32_t type, int32_t threads, uint8_t *out, LlamaPacked *packed,
               LlamaError *error) {
    const Kernels *kernels = NULL;
    int code = strip_check(strip, type, threads, error);
    if (code == LLAMA_OK) code = kernels_find(getenv("LLAMA_ISA"), &kernels, error);
    if (code != LLAMA_OK) return code;
    PackJob job = {.strip = strip, .out = out, .pack = pack_find(kernels)};
    job.tiles = strip_tiles(type, strip->rows, strip->cols);
    team_run(MIN(threads ? threads : processors(), PACK_CHUNKS), processors(), pack_chunks, &job);
    PackSums all = {.bad_row = INT32_MAX};
    for (int32_t c = 0; c < PACK_CHUNKS; c++) {
        all.squares += job.sums[c].squares;
        all.error_squares += job.sums[c].error_squares;
        all.bad_row = MIN(all.bad_row, job.sums[c].bad_row);
    }
    *packed = (LlamaPacked){all.squares, all.error_squares};
    return all.bad_row == INT32_MAX ? LLAMA_OK : strip_refuse(strip, all.bad_row, job.tiles.type, error);
}

#endif
