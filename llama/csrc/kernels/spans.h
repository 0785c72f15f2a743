// spans.h: attention over texts of any length, SPAN positions at a time.
//
// What a query makes of a span depends on nothing else, and what it has of several is added up from the first to
// the last. So scores take no memory that grows with the text, a span's keys and values stay in the processor's
// cache, and threads may share the spans of a query: the bits are the same. Up to SPAN positions nothing is added.
#ifndef LLAMA_SPANS_H
#define LLAMA_SPANS_H

#include "kernels.h" // Query, exp_scalar

enum { SPAN = 512 }; // a multiple of KEY_BLOCK

// The keys and values that a head has of a sequence.
typedef struct {
    const Kernels *kernels;
    const void *keys, *values; // planes of the cache
    const int32_t *pages;
    int32_t head_dim, kv;
} HeadCache;

// Floats that attend_spans works with.
static int64_t spans_room(int32_t head_dim) {
    return (int64_t)MAX_QUERIES * (SPAN + head_dim);
}

static int32_t spans_for(int32_t n) {
    return (n + SPAN - 1) / SPAN;
}

// Positions [begin, begin + SPAN) of up to MAX_QUERIES queries, all of which attend to more than begin. Scores go
// into room.
static void attend_span(const HeadCache *head, Query *queries, int32_t count, int32_t begin, float *room) {
    for (int32_t i = 0; i < count; i++) {
        queries[i].scores = room + (int64_t)i * SPAN;
        queries[i].n = MIN(SPAN, queries[i].n - begin);
    }
    head->kernels->attend[head->kv](queries, count, head->keys, head->values, head->pages + begin / KEY_BLOCK,
                                    head->head_dim);
}

// Adds a span to those before it.
static void query_add(Query *query, const Query *span, int32_t head_dim) {
    float max = fmaxf(query->max, span->max);
    float before = exp_scalar(query->max - max), here = exp_scalar(span->max - max);
    for (int32_t d = 0; d < head_dim; d++) query->out[d] = query->out[d] * before + span->out[d] * here;
    query->sum = query->sum * before + span->sum * here;
    query->max = max;
}

static void query_finish(const Query *query, int32_t head_dim) {
    float inverse = 1 / query->sum;
    for (int32_t d = 0; d < head_dim; d++) query->out[d] *= inverse;
}

// The outputs of up to MAX_QUERIES queries. room: spans_room floats.
static void attend_spans(const HeadCache *head, Query *queries, int32_t count, float *room) {
    float *outputs = room + MAX_QUERIES * SPAN;
    int32_t most = most_positions(queries, count);
    for (int32_t begin = 0; begin < most; begin += SPAN) {
        Query parts[MAX_QUERIES], *whose[MAX_QUERIES];
        int32_t n = 0;
        for (int32_t i = 0; i < count; i++) {
            if (queries[i].n <= begin) continue;
            whose[n] = &queries[i];
            parts[n] = queries[i];
            if (begin > 0) parts[n].out = outputs + (int64_t)n * head->head_dim;
            n++;
        }
        attend_span(head, parts, n, begin, room);
        for (int32_t i = 0; i < n; i++) {
            if (begin > 0) {
                query_add(whose[i], &parts[i], head->head_dim);
            } else {
                whose[i]->max = parts[i].max;
                whose[i]->sum = parts[i].sum;
            }
        }
    }
    for (int32_t i = 0; i < count; i++) query_finish(&queries[i], head->head_dim);
}

#endif
