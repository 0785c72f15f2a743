// context.h: everything that changes while a model runs, in one block of memory.
#ifndef LLAMA_CONTEXT_H
#define LLAMA_CONTEXT_H

#include "kernels.h"            // Kernels
#include "pages.h"              // Pool
#include "spans.h"              // spans_room
#include "../weights/adapter.h" // LlamaAdapter
#include "../weights/model.h"   // LlamaModel
#include "../weights/rope.h"    // rope_frequency
#include "../base/threads.h"    // processors

// B = options.batch.
struct LlamaContext {
    const LlamaModel *model;
    const Kernels *kernels;
    LlamaContextOptions options; // all filled in
    int32_t processors;          // at hand when the context was made
    Alone alone;                 // whether other programs have some of them
    int32_t positions;           // options.context, rounded up to whole blocks of keys
    float *rope;         // (context, head_dim / 2, 2) cosine and sine of each position's angles, x YaRN's factor
    const int *cancel;   // ends forward between passes once it is not 0; NULL: nobody asks
    void *keys, *values; // the cache: (n_layers, n_kv_heads) planes of all pages, of options.kv (cache.h)
    Pool pool;           // who holds which pages
    int32_t *lengths;    // (sequences) positions that the cache holds
    int32_t *before;     // (sequences) the same before the pass
    uint32_t *pass_of;   // (sequences) number of the last pass with a row of this sequence
    uint32_t pass;
    float *x;        // (B, dim) the residual stream
    float *q;        // (B, n_heads, head_dim)
    float *k, *v;    // (B, n_kv_heads, head_dim)
    float *gate;     // (B, hidden.cols) w3 . x
    float *delta;    // (B, dim) what attention and feed-forward add to the residual stream
    Rows input;      // (B + threads, dim) what enters a matmul: x normalised, or the heads' output
    Rows hidden;     // (B, hidden_dim) silu(w1 . x) * (w3 . x)
    float *adapted;  // (B, adapter->width) A x of the adapter, for all matrices that have the same x
    float *room;     // (threads, room_floats) what attention works with
    float *parts;    // (n_heads, spans, head_dim + 2) of a row that threads share: spans' outputs, maxima and sums
    float *weights;  // (threads, TILE_ROWS, input.cols or hidden.cols) as floats, where options.exact says so
    int32_t *wanted; // (B) rows whose logits are wanted
    int32_t *shown;  // (B) rows whose hidden state is
    // of a step of generations
    LlamaRow *rows;   // (B + sequences + LLAMA_MAX_GUESSES)
    float *logits;    // (sequences + LLAMA_MAX_GUESSES, vocab_size)
    uint32_t forward; // number of the forward that they are of
    float *raw;       // (threads, vocab_size) logits as the model gave them, for log-probabilities
    void *memory;     // all of the above
    uint64_t n_bytes;
};

// Hands out pieces of one block. With base NULL it only counts.
typedef struct {
    uint8_t *base;
    uint64_t used;
} Arena;

static void *arena_take(Arena *arena, int64_t n, size_t size) {
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += round_up((uint64_t)n * size, 64);
    return piece;
}

static Rows take_rows(const LlamaContext *ctx, Arena *arena, int32_t n, int32_t cols) {
    const LlamaConfig *c = &ctx->model->config;
    int32_t group_size = MAX(c->group_size, 1), step = group_size % 2 ? 2 * group_size : group_size;
    Rows rows = {.cols = (int32_t)round_up((uint64_t)cols, (uint64_t)step)};
    int64_t values = (int64_t)n * rows.cols;
    rows.values = arena_take(arena, values, sizeof(float));
    if (ctx->kernels->round) rows.halves = arena_take(arena, values, sizeof(uint16_t));
    if (c->group_size == 0) return rows;
    rows.groups = rows.cols / group_size;
    rows.quants = arena_take(arena, values, sizeof(int8_t));
    rows.scales = arena_take(arena, (int64_t)n * rows.groups, sizeof(float));
    rows.sums = arena_take(arena, (int64_t)n * rows.groups, sizeof(int32_t));
    return rows;
}

// Whether prompts have a kernel of their own for attention.
static bool prompts_apart(const LlamaContext *ctx) {
    return ctx->kernels->prompt[ctx->options.kv] && ctx->model->config.head_dim % PROMPT_STEP == 0 &&
           !ctx->options.exact;
}

// What attention works with on a thread, whatever the cache's type is.
static int64_t room_floats(const LlamaContext *ctx) {
    int32_t head_dim = ctx->model->config.head_dim;
    bool prompts = ctx->kernels->prompt[LLAMA_KV_FP16] && head_dim % PROMPT_STEP == 0;
    int64_t floats = MAX(spans_room(head_dim), prompts ? PROMPT_ROOM * (int64_t)head_dim : 0);
    return (int64_t)round_up((uint64_t)floats, 64 / sizeof(float));
}

static float *room_of(const LlamaContext *ctx, int32_t thread) {
    return ctx->room + thread * room_floats(ctx);
}

static void context_place(LlamaContext *ctx, Arena *arena) {
    const LlamaConfig *c = &ctx->model->config;
    const LlamaContextOptions *o = &ctx->options;
    int64_t B = o->batch, kv_dim = (int64_t)c->n_kv_heads * c->head_dim;
    int64_t cache = (int64_t)c->n_layers * c->n_kv_heads * ctx->pool.n * page_stride(c->head_dim, o->kv);
    ctx->rope = arena_take(arena, (int64_t)o->context * c->head_dim, sizeof(float));
    ctx->keys = arena_take(arena, cache, kv_size(o->kv));
    ctx->values = arena_take(arena, cache, kv_size(o->kv));
    ctx->pool.free = arena_take(arena, ctx->pool.n, sizeof(int32_t));
    ctx->pool.holders = arena_take(arena, ctx->pool.n, sizeof(int32_t));
    ctx->pool.tables = arena_take(arena, (int64_t)o->sequences * ctx->pool.per_sequence, sizeof(int32_t));
    ctx->pool.held = arena_take(arena, o->sequences, sizeof(int32_t));
    ctx->lengths = arena_take(arena, o->sequences, sizeof(int32_t));
    ctx->before = arena_take(arena, o->sequences, sizeof(int32_t));
    ctx->pass_of = arena_take(arena, o->sequences, sizeof(uint32_t));
    ctx->x = arena_take(arena, B * c->dim, sizeof(float));
    ctx->q = arena_take(arena, B * c->n_heads * c->head_dim, sizeof(float));
    ctx->k = arena_take(arena, B * kv_dim, sizeof(float));
    ctx->v = arena_take(arena, B * kv_dim, sizeof(float));
    ctx->delta = arena_take(arena, B * c->dim, sizeof(float));
    ctx->input = take_rows(ctx, arena, o->batch + o->threads, MAX(c->dim, c->n_heads * c->head_dim));
    ctx->hidden = take_rows(ctx, arena, o->batch, c->hidden_dim);
    ctx->gate = arena_take(arena, B * ctx->hidden.cols, sizeof(float));
    ctx->adapted = arena_take(arena, o->adapter ? B * o->adapter->width : 0, sizeof(float));
    int64_t parts = o->threads > 1 ? (int64_t)c->n_heads * spans_for(ctx->positions) : 0;
    ctx->room = arena_take(arena, o->threads * room_floats(ctx), sizeof(float));
    ctx->parts = arena_take(arena, parts * (c->head_dim + 2), sizeof(float));
    int64_t exact = o->exact ? (int64_t)o->threads * TILE_ROWS : 0;
    ctx->weights = arena_take(arena, exact * MAX(ctx->input.cols, ctx->hidden.cols), sizeof(float));
    ctx->wanted = arena_take(arena, B, sizeof(int32_t));
    ctx->shown = arena_take(arena, B, sizeof(int32_t));
    ctx->rows = arena_take(arena, B + o->sequences + LLAMA_MAX_GUESSES, sizeof(LlamaRow));
    ctx->logits = arena_take(arena, (int64_t)(o->sequences + LLAMA_MAX_GUESSES) * c->vocab_size, sizeof(float));
    ctx->raw = arena_take(arena, (int64_t)o->threads * c->vocab_size, sizeof(float));
}

static void rope_table(LlamaContext *ctx) {
    const LlamaConfig *c = &ctx->model->config;
    double magnitude = rope_magnitude(c);
    for (int32_t j = 0; j < c->head_dim / 2; j++) {
        double frequency = rope_frequency(c, (double)ctx->options.rope_theta, j);
        for (int64_t position = 0; position < ctx->options.context; position++) {
            float *pair = ctx->rope + position * c->head_dim + 2 * j;
            pair[0] = (float)(cos((double)position * frequency) * magnitude);
            pair[1] = (float)(sin((double)position * frequency) * magnitude);
        }
    }
}

// Below this size the weights of a token are read faster than two threads meet.
enum { ONE_THREAD_BYTES = 3 << 20 };

// How many positions all sequences hold together: as many as each may have, or fewer where an option says so.
static int resolve_cache(LlamaContext *ctx, LlamaError *error) {
    LlamaContextOptions *o = &ctx->options;
    ctx->positions = (int32_t)round_up((uint64_t)o->context, KEY_BLOCK);
    ctx->pool.per_sequence = ctx->positions / KEY_BLOCK;
    int64_t all = (int64_t)o->sequences * ctx->positions;
    if (o->cache != 0 && (o->cache < o->context || o->cache > all))
        return fail(error, LLAMA_ERROR_USAGE, "cache = %d, allowed %d, the context, to %lld, that of all sequences",
                    o->cache, o->context, (long long)all);
    if (o->cache == 0)
        o->cache = (int32_t)MIN(all, INT32_MAX);
    else
        all = o->cache;
    ctx->pool.n = (all + KEY_BLOCK - 1) / KEY_BLOCK;
    return LLAMA_OK;
}

static int resolve_options(LlamaContext *ctx, const LlamaContextOptions *given, LlamaError *error) {
    const LlamaConfig *c = &ctx->model->config;
    LlamaContextOptions *o = &ctx->options;
    if (given) *o = *given;
    bool small = llama_token_bytes(ctx->model) < ONE_THREAD_BYTES;
    const struct {
        const char *name;
        int32_t *value, standard, max;
    } fields[] = {
        {"context", &o->context, c->max_seq_len, c->max_seq_len},
        {"sequences", &o->sequences, 1, 1 << 16},
        {"batch", &o->batch, 128, 1 << 12},
        {"threads", &o->threads, small ? 1 : ctx->processors, 1 << 10},
    };
    for (size_t i = 0; i < COUNT(fields); i++) {
        if (*fields[i].value == 0) *fields[i].value = MIN(fields[i].standard, fields[i].max);
        if (*fields[i].value < 1 || *fields[i].value > fields[i].max)
            return fail(error, LLAMA_ERROR_USAGE, "%s = %d, allowed 1 to %d", fields[i].name, *fields[i].value,
                        fields[i].max);
    }
    if (o->exact != 0 && o->exact != 1)
        return fail(error, LLAMA_ERROR_USAGE, "exact = %d, allowed 0 and 1", o->exact);
    if (o->rope_theta == 0) o->rope_theta = c->rope_theta;
    if (!(o->rope_theta > 0 && o->rope_theta < INFINITY))
        return fail(error, LLAMA_ERROR_USAGE, "rope_theta = %g, allowed finite numbers above 0",
                    (double)o->rope_theta);
    if (!rope_fits(c, (double)o->rope_theta))
        return fail(error, LLAMA_ERROR_USAGE,
                    "rope_theta = %g, allowed those with which pairs turn as YaRN needs it", (double)o->rope_theta);
    if (o->kv < 0 || o->kv >= N_KV)
        return fail(error, LLAMA_ERROR_USAGE, "kv = %d, allowed 0 to %d", o->kv, N_KV - 1);
    if (o->adapter && o->adapter->model != ctx->model)
        return fail(error, LLAMA_ERROR_USAGE, "the adapter was opened for another model");
    int code = resolve_cache(ctx, error);
    if (code == LLAMA_OK) code = kernels_find(o->kernels ? o->kernels : getenv("LLAMA_ISA"), &ctx->kernels, error);
    if (code == LLAMA_OK) o->kernels = ctx->kernels->name;
    return code;
}

void llama_context_free(LlamaContext *ctx) {
    if (!ctx) return;
    pages_free(ctx->memory, ctx->n_bytes);
    free(ctx);
}

// Of the keys and values, which many sequences take beyond 64 bits.
static double cache_bytes(const LlamaContext *ctx) {
    const LlamaConfig *c = &ctx->model->config;
    return 2.0 * c->n_layers * c->n_kv_heads * (double)ctx->pool.n *
           (double)page_stride(c->head_dim, ctx->options.kv) * (double)kv_size(ctx->options.kv);
}

static int context_allocate(LlamaContext *ctx, LlamaError *error) {
    Arena arena = {0};
    context_place(ctx, &arena);
    ctx->n_bytes = arena.used;
    double limit = (double)physical_memory(), needed = MAX((double)ctx->n_bytes, cache_bytes(ctx));
    bool fits = needed <= limit && ctx->pool.n <= INT32_MAX;
    arena = (Arena){.base = fits ? pages_alloc(ctx->n_bytes) : NULL};
    if (!arena.base)
        return fail(error, LLAMA_ERROR_RESOURCE,
                    "a context of %d positions needs %.1f GiB, this machine has %.1f GiB", ctx->options.context,
                    needed / (1 << 30), limit / (1 << 30));
    ctx->memory = arena.base;
    context_place(ctx, &arena);
    pool_init(&ctx->pool);
    rope_table(ctx);
    return LLAMA_OK;
}

int llama_context_init(const LlamaModel *model, const LlamaContextOptions *options, LlamaContext **context,
                       LlamaError *error) {
    *context = NULL;
    LlamaContext *ctx = calloc(1, sizeof *ctx);
    if (!ctx) return fail_memory(error, sizeof *ctx);
    ctx->model = model;
    ctx->processors = processors();
    int code = resolve_options(ctx, options, error);
    if (code == LLAMA_OK) code = context_allocate(ctx, error);
    if (code == LLAMA_OK)
        *context = ctx;
    else
        llama_context_free(ctx);
    return code;
}

const LlamaModel *llama_context_model(const LlamaContext *ctx) {
    return ctx->model;
}
const LlamaContextOptions *llama_context_options(const LlamaContext *ctx) {
    return &ctx->options;
}
uint64_t llama_context_bytes(const LlamaContext *ctx) {
    return ctx->n_bytes;
}
void llama_context_watch(LlamaContext *ctx, const int *cancel) {
    ctx->cancel = cancel;
}

#endif
