// unigram.h: the pieces that make up a text and whose scores have the largest sum, found by Viterbi's algorithm as
// the sentencepiece library does it for a model of type UNIGRAM (Kudo 2018), and the tokenizers library for a
// tokenizer.json of that type. They differ in how they add: sums of a long text are large, scores are small, so the
// two do not always choose alike, and this follows either to the last bit.
#ifndef LLAMA_UNIGRAM_H
#define LLAMA_UNIGRAM_H

#include "merge.h"  // Encoder, emit
#include "pieces.h" // Walk

#include <float.h> // DBL_MAX, FLT_MAX
#include <math.h>  // fabs

static const float UNKNOWN_PENALTY = 10; // a character that is no piece: so much below the lowest score
static const double FAR_SUM = 100000;    // sentencepiece's sums begin anew beyond it, floats being coarse there

// The best way to make up a text up to some byte of it.
typedef struct {
    double score;  // sum
    int32_t start; // of its last piece; -1: no piece ends here
    int32_t id;    // of its last piece; -1: a character that is none
} Path;

// The score of a token, in the precision of the file.
static double token_score(const LlamaTokenizer *t, int32_t id) {
    double score;
    if (!t->doubles) return t->scores[id];
    memcpy(&score, t->doubles + 8 * (size_t)id, sizeof score);
    return score;
}

// Notes the lowest score: sentencepiece looks at pieces of text, tokenizers at all.
static void scores_note(LlamaTokenizer *t) {
    t->lowest = t->doubles ? DBL_MAX : (double)FLT_MAX;
    for (int32_t id = 0; id < t->vocab_size; id++)
        if (t->doubles || t->types[id] == TOKEN_TEXT) t->lowest = MIN(t->lowest, token_score(t, id));
}

// What a piece adds. Scores are logarithms of probabilities, so that a user-defined piece, which adds nothing and
// 0.1 for each byte behind its first, is always chosen, a long one before a short one (sentencepiece 0.2.3). Of
// those that were found before, what is left in a text is text.
static double piece_gain(const LlamaTokenizer *t, int32_t id) {
    if (t->types[id] != TOKEN_USER || t->flags & FLAG_USER_FIRST) return token_score(t, id);
    size_t length;
    const char *bytes = token_bytes(t, id, &length);
    size_t spelt = length; // a space is three bytes
    for (size_t i = 0; i < length; i++) spelt += bytes[i] == ' ' ? 2 : 0;
    return (double)(float)(0.1 * (double)(spelt - 1));
}

// Takes a way to a place if it is better than the one that is known.
static void path_offer(const LlamaTokenizer *t, Path *path, double score, int32_t start, int32_t id) {
    if (!t->doubles) score = (double)(float)score;
    if (path->start < 0 || score > path->score) *path = (Path){score, start, id};
}

// Offers all pieces that begin at text[at], and returns where the longest ends.
static int32_t paths_extend(const LlamaTokenizer *t, Path *paths, const char *text, int32_t at, int32_t length) {
    size_t left = (size_t)(length - at), character = (size_t)MAX(1, utf8_length(text + at, left));
    Walk walk = walk_begin(&t->words, text + at);
    int32_t end = at + (int32_t)character;
    bool single = false; // some piece is the character alone
    for (int32_t id; (id = walk_next(t, &t->words, &walk, text + at, left)) >= 0;) {
        end = at + (int32_t)walk.depth;
        path_offer(t, &paths[end], piece_gain(t, id) + paths[at].score, at, id);
        single |= walk.depth == character;
    }
    if (single) return end;
    double unknown =
        t->doubles ? t->lowest - (double)UNKNOWN_PENALTY : (double)((float)t->lowest - UNKNOWN_PENALTY);
    path_offer(t, &paths[at + (int32_t)character], unknown + paths[at].score, at, -1);
    return end;
}

// Lets sentencepiece's sums begin anew at a place where they are far from zero, up to the last that is reached.
static void paths_rebase(const LlamaTokenizer *t, Path *paths, int32_t at, int32_t last) {
    double sum = paths[at].score;
    if (t->doubles || fabs(sum) <= FAR_SUM) return;
    for (int32_t i = at; i <= last; i++) paths[i].score = (double)(float)(paths[i].score - sum);
}

// Turns the best way to the end around: paths[start of a piece].start becomes its end.
static void paths_turn(Path *paths, int32_t length) {
    for (int32_t end = length, start = paths[length].start; end > 0;) {
        int32_t before = paths[start].start;
        paths[start].start = end;
        end = start;
        start = before;
    }
}

// Appends the ids of a text of 1 to INT32_MAX - 1 bytes, valid UTF-8.
static int unigram_encode(Encoder *e, const char *text, size_t length, LlamaError *error) {
    const LlamaTokenizer *t = e->tokenizer;
    int32_t n = (int32_t)length;
    Path *paths = malloc((length + 1) * sizeof *paths);
    if (!paths) return fail_memory(error, (length + 1) * sizeof *paths);
    for (size_t i = 0; i <= length; i++) paths[i] = (Path){0, -1, -1};
    for (int32_t at = 0, last = 0; at < n; at += MAX(1, utf8_length(text + at, (size_t)(n - at)))) {
        paths_rebase(t, paths, at, last);
        last = MAX(last, paths_extend(t, paths, text, at, n));
    }
    paths_turn(paths, n);
    for (int32_t at = 0, end; at < n; at = end) {
        end = paths[at].start;
        if (paths[end].id >= 0)
            emit(e, paths[end].id);
        else
            emit_character(e, text + at, (size_t)(end - at));
    }
    free(paths);
    return LLAMA_OK;
}

#endif
