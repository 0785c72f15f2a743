// select.h: the selection of a vocabulary's most likely tokens, without sorting it.
//
// Top-k, top-p and the draw all ask the same question: at which token, from the most likely down, does a running
// count or mass exceed a target? select_run answers it by histograms of the candidates, the tokens above a floor
// that a sample of the vocabulary suggests. Nothing is allocated after init.
#ifndef LLAMA_SELECT_H
#define LLAMA_SELECT_H

#include "../kernels/kernels.h" // Kernels: extremes, collect
#include "../base/util.h"       // MIN, MAX

#include <float.h> // FLT_MIN
#include <math.h>  // INFINITY, floor

enum {
    SELECT_DIGIT = 8,     // most bits of a likelihood that one histogram looks at
    SELECT_SAMPLE = 1024, // tokens that are looked at for the floor
};

// What a run of tokens is measured by.
enum { SELECT_COUNT, SELECT_MASS };

// Likelihoods by their leading bits: bucket (bits - low) >> shift, where bits are in the order of the values.
typedef struct {
    uint32_t low;
    int shift, top;                      // bucket in use
    double bucket[1 << SELECT_DIGIT][2]; // count, mass
} Histogram;

typedef struct {
    const Kernels *kernels;
    int32_t vocab_size, n_blocks, n_candidates;
    double *mass;      // (n_blocks), of the tokens of each block
    float *candidates; // (vocab_size + PASS_ROOM), likelihoods in the order of their index
    float *bucket;     // (vocab_size + PASS_ROOM), those of one bucket
    Histogram all, part;
} Selection;

// The tokens from the most likely down to one of likelihood `last`: all that are more likely and, of those equal to
// it, `equals` in the order of their index.
typedef struct {
    float last;
    int32_t equals;
    double total[2]; // count, mass
} SelectRun;

static void select_free(Selection *s) {
    free(s->mass);
    free(s->candidates);
    free(s->bucket);
}

// Returns whether there was memory; select_free in either case.
static bool select_init(Selection *s, const Kernels *kernels, int32_t vocab_size) {
    size_t n = (size_t)vocab_size;
    s->kernels = kernels;
    s->vocab_size = vocab_size;
    s->n_blocks = (int32_t)((n + PASS_BLOCK - 1) / PASS_BLOCK);
    s->mass = calloc((size_t)s->n_blocks, sizeof *s->mass);
    s->candidates = calloc(n + PASS_ROOM, sizeof *s->candidates);
    s->bucket = calloc(n + PASS_ROOM, sizeof *s->bucket);
    return s->mass && s->candidates && s->bucket;
}

// Bits to shift off so that offsets up to `span` fill at most 2^SELECT_DIGIT buckets, and about two a value.
static int select_shift(uint32_t span, int32_t n) {
    int digit = MIN(SELECT_DIGIT, 33 - __builtin_clz((uint32_t)n));
    return MAX(0, 32 - __builtin_clz(span | 1) - digit);
}

// Sorts n > 0 likelihoods into buckets.
static void select_spread(const Kernels *kernels, Histogram *h, const float *values, int32_t n) {
    Extremes extremes = kernels->extremes(values, n);
    h->low = select_bits(extremes.min);
    h->shift = select_shift(select_bits(extremes.max) - h->low, n);
    h->top = (int)((select_bits(extremes.max) - h->low) >> h->shift);
    memset(h->bucket, 0, ((size_t)h->top + 1) * sizeof *h->bucket);
    for (int32_t i = 0; i < n; i++) {
        double *bucket = h->bucket[(select_bits(values[i]) - h->low) >> h->shift];
        bucket[SELECT_COUNT] += 1;
        bucket[SELECT_MASS] += (double)values[i];
    }
}

// The run of all values, but for its end.
static SelectRun select_all(const Histogram *h) {
    SelectRun run = {0};
    for (int b = h->top; b >= 0; b--)
        for (int i = 0; i < 2; i++) run.total[i] += h->bucket[b][i];
    return run;
}

// The shortest run of candidates whose total exceeds target >= 0, all of them if none does. The bucket in which
// that happens is looked at again, at the leading bits in which its values differ, until they are equal: time is
// O(n) whatever the values are, mostly in two rounds.
static SelectRun select_run(Selection *s, int by, double target) {
    SelectRun run = {0};
    const Histogram *h = &s->all;
    const float *values = s->candidates;
    int32_t n = s->n_candidates;
    for (;;) {
        int b = h->top;
        for (; b > 0 && run.total[by] + h->bucket[b][by] <= target; b--)
            for (int i = 0; i < 2; i++) run.total[i] += h->bucket[b][i];
        uint32_t low = h->low + ((uint32_t)b << h->shift);
        run.last = select_float(low);
        if (h->shift == 0) {
            double each = by == SELECT_MASS ? (double)run.last : 1, missing = (target - run.total[by]) / each;
            run.equals = (int32_t)MIN(floor(missing) + 1, h->bucket[b][SELECT_COUNT]);
            break;
        }
        n = s->kernels->collect(s->bucket, values, n, run.last, select_float(low + (1u << h->shift)));
        values = s->bucket;
        select_spread(s->kernels, &s->part, values, n);
        h = &s->part;
    }
    run.total[SELECT_COUNT] += run.equals;
    run.total[SELECT_MASS] += run.equals * (double)run.last;
    return run;
}

// ---------------------------------------------------------------------------------------------------------
// Candidates

// Takes as candidates the tokens of at least that likelihood, more than 0. Returns the run of all of them.
static SelectRun select_above(Selection *s, const float *x, float lowest) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->vocab_size; i += PASS_BLOCK) {
        if (s->mass[i / PASS_BLOCK] < (double)lowest) continue;
        n += s->kernels->collect(s->candidates + n, x + i, MIN(PASS_BLOCK, s->vocab_size - i), lowest, INFINITY);
    }
    s->n_candidates = n;
    select_spread(s->kernels, &s->all, s->candidates, n);
    return select_all(&s->all);
}

// A likelihood that the tokens of such a run probably have, and not many others, by a sample: one token in `step`.
// The few tokens that have most of the mass may be in the sample or not, so what is estimated is the mass that the
// run leaves. mass: of all tokens.
static float select_guess(Selection *s, const float *x, int by, double target, double mass) {
    int32_t step = MAX(8, s->vocab_size / SELECT_SAMPLE), n = 0;
    for (int32_t i = 0; i < s->vocab_size; i += step) s->bucket[n++] = x[i];
    s->n_candidates = s->kernels->collect(s->candidates, s->bucket, n, FLT_MIN, INFINITY);
    if (s->n_candidates == 0) return FLT_MIN;
    select_spread(s->kernels, &s->all, s->candidates, s->n_candidates);
    SelectRun sample = select_all(&s->all);
    target = by == SELECT_MASS ? sample.total[by] - 0.75 * (mass - target) / step : 1.5 * target / step + 8;
    return target >= sample.total[by] ? FLT_MIN : select_run(s, by, MAX(0, target)).last;
}

// The shortest run of all tokens whose total exceeds target >= 0; all that are more than 0 if none does.
static SelectRun select_shortest(Selection *s, const float *x, int by, double target, double mass) {
    float lowest = select_guess(s, x, by, target, mass);
    while (select_above(s, x, lowest).total[by] <= target && lowest > FLT_MIN) lowest = MAX(FLT_MIN, lowest / 4);
    return select_run(s, by, target);
}

// The last token of a run.
static int32_t select_token(const Selection *s, const float *x, const SelectRun *run) {
    int32_t block = 0, left = run->equals;
    for (;; block += PASS_BLOCK) {
        if (s->mass[block / PASS_BLOCK] < (double)run->last) continue;
        int32_t equals = 0, end = MIN(s->vocab_size, block + PASS_BLOCK);
        for (int32_t i = block; i < end; i++) equals += x[i] == run->last;
        if (equals >= left) break;
        left -= equals;
    }
    for (int32_t i = block;; i++)
        if (x[i] == run->last && --left == 0) return i;
}

#endif
