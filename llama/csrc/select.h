// select.h: the selection of a vocabulary's most likely tokens, without sorting it.
//
// Logits become likelihoods relative to the most likely token. Top-k, top-p, min-p and the draw all ask the same
// question, at which token from the most likely down a running count or mass exceeds a target; select_find answers
// it by histograms. Nothing is allocated after init.
#ifndef LLAMA_SELECT_H
#define LLAMA_SELECT_H

#include "passes.h" // select_bits, block_sum
#include "util.h"   // MIN, MAX

enum { SELECT_DIGIT = 11 }; // most bits of a key that one histogram looks at

typedef struct {
    int32_t vocab_size, n_blocks;
    double *mass;      // (n_blocks), of the tokens of each block
    uint8_t *reaches;  // (n_blocks * PASS_BLOCK), 1: the token gets a key
    uint64_t *keys;    // (vocab_size), see select_key
    uint64_t *scratch; // (vocab_size)
    double bucket[1 << SELECT_DIGIT];
} Selection;

static void select_free(Selection *s) {
    free(s->mass);
    free(s->reaches);
    free(s->keys);
    free(s->scratch);
}

// Returns whether there was memory; select_free in either case.
static bool select_init(Selection *s, int32_t vocab_size) {
    size_t n = (size_t)vocab_size;
    s->vocab_size = vocab_size;
    s->n_blocks = (int32_t)((n + PASS_BLOCK - 1) / PASS_BLOCK);
    s->mass = calloc((size_t)s->n_blocks, sizeof *s->mass);
    s->reaches = calloc((size_t)s->n_blocks, PASS_BLOCK);
    s->keys = calloc(n, sizeof *s->keys);
    s->scratch = calloc(n, sizeof *s->scratch);
    return s->mass && s->reaches && s->keys && s->scratch;
}

// ---------------------------------------------------------------------------------------------------------
// Selection without sorting

// A token and its likelihood in one number: the larger key is the more likely token, then the lower index. Bits of
// floats that are not negative are in the order of their values.
static inline uint64_t select_key(uint32_t bits, int32_t token) {
    return (uint64_t)bits << 32 | ~(uint32_t)token;
}

static inline float select_likelihood(uint64_t key) {
    return select_float((uint32_t)(key >> 32));
}

// Bits to shift off so that offsets up to `span` fill at most 2^SELECT_DIGIT buckets, and about two a key.
static int select_shift(uint64_t span, int32_t n) {
    int digit = MIN(SELECT_DIGIT, 33 - __builtin_clz((uint32_t)n));
    return MAX(0, 64 - __builtin_clzll(span | 1) - digit);
}

// The key at which a running total from the highest key down first exceeds target; the lowest if none does. The
// total is of likelihoods (by_mass) or of keys. keys: (n), n > 0, all different.
// A histogram of the leading bits finds the bucket in which that happens, and the next round looks at that bucket
// alone, at the leading bits in which its keys differ: time is O(n) whatever the keys are, mostly in two rounds.
static uint64_t select_find(Selection *s, const uint64_t *keys, int32_t n, bool by_mass, double target) {
    double total = 0;
    while (n > 1) {
        uint64_t low = UINT64_MAX, high = 0;
        for (int32_t i = 0; i < n; i++) low = MIN(low, keys[i]), high = MAX(high, keys[i]);
        int shift = select_shift(high - low, n);
        uint64_t b = (high - low) >> shift;
        memset(s->bucket, 0, (b + 1) * sizeof *s->bucket);
        for (int32_t i = 0; i < n; i++)
            s->bucket[(keys[i] - low) >> shift] += by_mass ? (double)select_likelihood(keys[i]) : 1.0;
        for (; b > 0 && total + s->bucket[b] <= target; b--) total += s->bucket[b];
        int32_t m = 0;
        for (int32_t i = 0; i < n; i++) {
            uint64_t key = keys[i]; // keys may be scratch from the second round on: m <= i
            s->scratch[m] = key;
            m += (key - low) >> shift == b;
        }
        keys = s->scratch;
        n = m;
    }
    return keys[0];
}

// Drops the keys below `lowest`. Returns how many are left and sets mass to theirs.
static int32_t select_keep(Selection *s, int32_t n, uint64_t lowest, double *mass) {
    int32_t kept = 0;
    *mass = 0;
    for (int32_t i = 0; i < n; i++) {
        uint64_t key = s->keys[i];
        s->keys[kept] = key;
        kept += key >= lowest;
        *mass += key >= lowest ? (double)select_likelihood(key) : 0.0;
    }
    return kept;
}

// The lowest bits of 64 bytes as one number. The factor moves bit 0 of byte i to bit 56 + i, without carries.
static uint64_t select_mask(const uint8_t *bytes) {
    uint64_t mask = 0;
    for (int32_t i = 0; i < PASS_BLOCK; i += 8) {
        uint64_t eight;
        memcpy(&eight, bytes + i, sizeof eight);
        mask |= (eight * 0x0102040810204080ull >> 56) << i;
    }
    return mask;
}

// Makes the keys of the tokens that reach the floor and returns their number.
static int32_t select_collect(Selection *s, const float *x, float floor) {
    uint8_t *restrict reaches = s->reaches;
    int32_t n = s->vocab_size;
    for (int32_t i = 0; i < n; i++) reaches[i] = x[i] >= floor;
    n = 0;
    for (int32_t b = 0; b < s->n_blocks; b++) {
        uint64_t mask = select_mask(reaches + (int64_t)b * PASS_BLOCK);
        for (; mask; mask &= mask - 1) {
            int32_t token = b * PASS_BLOCK + __builtin_ctzll(mask);
            s->keys[n++] = select_key(select_bits(x[token]), token);
        }
    }
    return n;
}

#endif
