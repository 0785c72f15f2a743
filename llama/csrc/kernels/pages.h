// pages.h: which pages of the cache are whose. A page has room for KEY_BLOCK positions; a sequence holds as many as
// it needs, whichever are free, and sequences that begin alike hold the same ones. What is in them: cache.h.
#ifndef LLAMA_PAGES_H
#define LLAMA_PAGES_H

#include "cache.h" // KEY_BLOCK

typedef struct {
    int64_t n; // pages in all
    int32_t per_sequence, n_free;
    int32_t *free;    // (n) the first n_free are those that nobody holds; the last of these is taken next
    int32_t *holders; // (n) sequences that hold the page
    int32_t *tables;  // (sequences, per_sequence) the pages of each, in the order of its positions
    int32_t *held;    // (sequences) how many those are
} Pool;

// Pages that n positions take.
static inline int32_t pages_for(int32_t n) {
    return n / KEY_BLOCK + (n % KEY_BLOCK != 0);
}

// All pages are free. They are taken in their order, so that a sequence by itself lies in one piece.
static void pool_init(Pool *pool) {
    pool->n_free = (int32_t)pool->n;
    for (int32_t i = 0; i < pool->n_free; i++) pool->free[i] = pool->n_free - 1 - i;
}

static int32_t *pool_table(const Pool *pool, int32_t sequence) {
    return pool->tables + (int64_t)sequence * pool->per_sequence;
}

// A page that nobody holds, for one to hold; -1 if there is none.
static int32_t pool_take(Pool *pool) {
    if (pool->n_free == 0) return -1;
    int32_t page = pool->free[--pool->n_free];
    pool->holders[page] = 1;
    return page;
}

static void pool_release(Pool *pool, int32_t page) {
    if (--pool->holders[page] == 0) pool->free[pool->n_free++] = page;
}

// Leaves a sequence its first n pages.
static void pool_trim(Pool *pool, int32_t sequence, int32_t n) {
    while (pool->held[sequence] > n) pool_release(pool, pool_table(pool, sequence)[--pool->held[sequence]]);
}

// Gives `to` the first n pages of `from` instead of its own.
static void pool_share(Pool *pool, int32_t from, int32_t to, int32_t n) {
    const int32_t *pages = pool_table(pool, from);
    for (int32_t i = 0; i < n; i++) pool->holders[pages[i]]++;
    pool_trim(pool, to, 0);
    memcpy(pool_table(pool, to), pages, (size_t)n * sizeof *pages);
    pool->held[to] = n;
}

#endif
