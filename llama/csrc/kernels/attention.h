// attention.h: attention of the rows of a pass, dealt out to the threads of a team.
//
// A row that wants logits goes through attend, in the floats of the cache; rows of a prompt go through the kernel
// for prompts where there is one. So a row's bits depend on what it wants, and neither on rows beside it nor on
// threads.
#ifndef LLAMA_ATTENTION_H
#define LLAMA_ATTENTION_H

#include "../base/threads.h" // Team, barrier_wait
#include "context.h"         // LlamaContext
#include "sequence.h"        // cache_plane
#include "spans.h"           // attend_spans

// Up to B rows on their way through the layers.
typedef struct {
    LlamaContext *ctx;
    const LlamaRow *rows; // (n)
    int32_t n;
    int32_t n_wanted;
    int32_t n_shown;
    float *logits; // (n_wanted, vocab_size)
    float *hidden; // (n_shown, dim)
} Pass;

// How the heads of a layer are dealt out. Where they divide evenly, each thread takes the same ones through all
// steps of attention and has nothing to wait for; elsewhere the threads take turns at each step, and wait after it.
typedef struct {
    bool own;
    Range heads;           // kv heads with their query heads, those of this thread or all
    int32_t first, stride; // slices of work first, first + stride ... are this thread's
} Deal;

static Deal deal_heads(const LlamaConfig *c, const Team *team) {
    int32_t step = 1; // heads that begin where a tile of rows does
    while (step * c->head_dim % TILE_ROWS) step *= 2;
    if (team_divides(team, c->n_kv_heads / step) && c->n_kv_heads % step == 0)
        return (Deal){true, team_range(team, c->n_kv_heads, step), 0, 1};
    return (Deal){false, {0, c->n_kv_heads}, team->thread, team->threads};
}

static HeadCache head_cache(const LlamaContext *ctx, int32_t layer, int32_t sequence, int32_t head) {
    return (HeadCache){
        .kernels = ctx->kernels,
        .keys = cache_plane(ctx, ctx->keys, layer, head),
        .values = cache_plane(ctx, ctx->values, layer, head),
        .pages = pool_table(&ctx->pool, sequence),
        .head_dim = ctx->model->config.head_dim,
        .kv = ctx->options.kv,
    };
}

// Query head number `head` of row i, which puts its output where wo finds it.
static Query query_of(const Pass *pass, int32_t i, int32_t head) {
    const LlamaContext *ctx = pass->ctx;
    const LlamaConfig *c = &ctx->model->config;
    int64_t at = (int64_t)head * c->head_dim;
    return (Query){
        .out = ctx->input.values + (int64_t)i * ctx->input.cols + at,
        .q = ctx->q + (int64_t)i * c->n_heads * c->head_dim + at,
        .n = pass->rows[i].position + 1,
    };
}

// Whether the kernel for prompts takes the attention of row i.
static bool in_prompt(const Pass *pass, int32_t i) {
    return prompts_apart(pass->ctx) && !pass->rows[i].wants_logits;
}

// Rows of a pass that attention takes together.
typedef struct {
    Range rows;
    bool prompt;       // rows of one sequence, none of which wants logits
    int32_t heads;     // query heads of a kv head that go at a time
    int32_t n_queries; // at most, in a call of the kernel
} Slice;

// Those from row `begin` on: as many as one call of the kernel takes, and of a prompt so few that there are two
// slices for each thread, as later rows have more to attend to.
static Slice next_slice(const Pass *pass, const Team *team, int32_t begin) {
    const LlamaConfig *c = &pass->ctx->model->config;
    Slice slice = {{begin, begin}, in_prompt(pass, begin), 0, 0};
    slice.n_queries = slice.prompt ? PROMPT_QUERIES : MAX_QUERIES;
    slice.heads = MIN(c->n_heads / c->n_kv_heads, slice.n_queries);
    int32_t most = slice.n_queries / slice.heads, cuts = (2 * team->threads + c->n_kv_heads - 1) / c->n_kv_heads;
    if (slice.prompt) most = MIN(most, (pass->n + cuts - 1) / cuts);
    while (slice.rows.end < MIN(pass->n, begin + most) && in_prompt(pass, slice.rows.end) == slice.prompt &&
           (!slice.prompt || pass->rows[slice.rows.end].sequence == pass->rows[begin].sequence))
        slice.rows.end++;
    return slice;
}

static void attend(const Pass *pass, const Team *team, const HeadCache *cache, Query *queries, int32_t n,
                   bool prompt) {
    float *room = room_of(pass->ctx, team->thread);
    if (prompt)
        cache->kernels->prompt[cache->kv](queries, n, cache->keys, cache->values, cache->pages, cache->head_dim,
                                          room);
    else
        attend_spans(cache, queries, n, room);
}

// The outputs of `count` query heads from `head` on, which share keys and values, for the rows of a slice: a few
// rows and heads at a time, each over all positions of its sequence up to its own.
static void attend_slice(const Pass *pass, const Team *team, int32_t layer, const Slice *slice, int32_t head,
                         int32_t count) {
    LlamaContext *ctx = pass->ctx;
    const LlamaConfig *c = &ctx->model->config;
    int32_t kv_head = head / (c->n_heads / c->n_kv_heads), sequence = pass->rows[slice->rows.begin].sequence, n = 0;
    HeadCache cache = head_cache(ctx, layer, sequence, kv_head);
    Query queries[PROMPT_QUERIES];
    for (int32_t i = slice->rows.begin * count; i < slice->rows.end * count; i++) {
        const LlamaRow *row = &pass->rows[i / count];
        if (n == slice->n_queries || row->sequence != sequence) {
            attend(pass, team, &cache, queries, n, slice->prompt);
            n = 0;
            sequence = row->sequence;
            cache.pages = pool_table(&ctx->pool, sequence);
        }
        queries[n++] = query_of(pass, i / count, head + i % count);
    }
    attend(pass, team, &cache, queries, n, slice->prompt);
}

// Attention of all rows, head after head, so that keys and values stay in the processor's cache. Later rows have
// more to attend to, so that slices are dealt out in turn.
static void attend_slices(const Pass *pass, const Team *team, const Deal *deal, int32_t layer) {
    const LlamaConfig *c = &pass->ctx->model->config;
    int32_t share = c->n_heads / c->n_kv_heads, turn = 0;
    for (int32_t kv_head = deal->heads.begin; kv_head < deal->heads.end; kv_head++)
        for (int32_t begin = 0; begin < pass->n;) {
            Slice slice = next_slice(pass, team, begin);
            for (int32_t i = 0; i < share; i += slice.heads)
                if (turn++ % deal->stride == deal->first)
                    attend_slice(pass, team, layer, &slice, kv_head * share + i, MIN(slice.heads, share - i));
            begin = slice.rows.end;
        }
}

// What a query head of the only row of a pass has of a span of its text.
static Query part_of(const Pass *pass, int32_t head, int32_t span) {
    const LlamaContext *ctx = pass->ctx;
    int32_t head_dim = ctx->model->config.head_dim;
    Query part = query_of(pass, 0, head);
    part.out = ctx->parts + ((int64_t)head * spans_for(ctx->positions) + span) * (head_dim + 2);
    part.max = part.out[head_dim];
    part.sum = part.out[head_dim + 1];
    return part;
}

// What the heads of a kv head have of a span.
static void attend_part(const Pass *pass, const Team *team, int32_t layer, int32_t kv_head, int32_t span) {
    const LlamaContext *ctx = pass->ctx;
    const LlamaConfig *c = &ctx->model->config;
    int32_t share = c->n_heads / c->n_kv_heads, end = (kv_head + 1) * share;
    HeadCache cache = head_cache(ctx, layer, pass->rows[0].sequence, kv_head);
    for (int32_t head = kv_head * share; head < end; head += MAX_QUERIES) {
        Query parts[MAX_QUERIES];
        int32_t n = MIN(MAX_QUERIES, end - head);
        for (int32_t i = 0; i < n; i++) parts[i] = part_of(pass, head + i, span);
        attend_span(&cache, parts, n, span * SPAN, room_of(ctx, team->thread));
        for (int32_t i = 0; i < n; i++) {
            parts[i].out[c->head_dim] = parts[i].max;
            parts[i].out[c->head_dim + 1] = parts[i].sum;
        }
    }
}

// The output of a head, from its spans.
static void join_parts(const Pass *pass, int32_t head, int32_t spans) {
    int32_t head_dim = pass->ctx->model->config.head_dim;
    Query query = query_of(pass, 0, head), first = part_of(pass, head, 0);
    memcpy(query.out, first.out, (size_t)head_dim * sizeof *query.out);
    query.max = first.max;
    query.sum = first.sum;
    for (int32_t span = 1; span < spans; span++) {
        Query part = part_of(pass, head, span);
        query_add(&query, &part, head_dim);
    }
    query_finish(&query, head_dim);
}

// Attention of a single row whose heads are not dealt out evenly: threads take turns at its spans, then at its
// heads.
static void attend_split(const Pass *pass, const Team *team, int32_t layer) {
    const LlamaConfig *c = &pass->ctx->model->config;
    int32_t spans = spans_for(pass->rows[0].position + 1);
    for (int32_t i = team->thread; i < c->n_kv_heads * spans; i += team->threads)
        attend_part(pass, team, layer, i / spans, i % spans);
    barrier_wait(team);
    for (int32_t head = team->thread; head < c->n_heads; head += team->threads) join_parts(pass, head, spans);
}

// Attention of all rows.
static void attend_all(const Pass *pass, const Team *team, const Deal *deal, int32_t layer) {
    bool split = pass->n == 1 && !deal->own && pass->rows[0].position >= SPAN && !in_prompt(pass, 0);
    if (split)
        attend_split(pass, team, layer);
    else
        attend_slices(pass, team, deal, layer);
}

#endif
