// perplexity.h: how well a model predicts a text of any length, for the command line. The rule is that of
// llama/perplexity.py: a text longer than the context is read in windows that overlap by half, and each token is
// judged once, with at least half a context before it.
#ifndef LLAMA_PERPLEXITY_H
#define LLAMA_PERPLEXITY_H

#include "../sampling/score.h" // llama_score
#include "../text/utf8.h"      // utf8_length

typedef struct {
    size_t tokens, bytes;   // judged
    double log_probability; // sum over the tokens, in nats
} Perplexity;

// Adds the last `new` of the scores of n ids, which are read as a text of their own.
static int add_scores(LlamaContext *ctx, const int32_t *ids, size_t n, size_t new, double *scores, double *sum,
                      LlamaError *error) {
    int code = llama_score(ctx, ids, (int32_t)n, scores, error);
    double added = 0;
    for (size_t i = n - 1 - new; i < n - 1 && code == LLAMA_OK; i++) added += scores[i];
    *sum += added;
    return code;
}

// The sum of the log-probabilities of all n ids but the first.
static int sum_scores(LlamaContext *ctx, const int32_t *ids, size_t n, double *sum, LlamaError *error) {
    size_t context = (size_t)llama_context_options(ctx)->context, done = MIN(n, context), new = 0;
    double *scores = malloc(context * sizeof *scores);
    if (!scores) return fail_memory(error, context * sizeof *scores);
    int code = add_scores(ctx, ids, done, done - 1, scores, sum, error);
    for (; done < n && code == LLAMA_OK; done += new) {
        new = MIN(MAX(1, context / 2), n - done);
        code = add_scores(ctx, ids + done + new - context, context, new, scores, sum, error);
    }
    free(scores);
    return code;
}

static int check_utf8(const char *path, const char *text, size_t length, LlamaError *error) {
    for (size_t at = 0; at < length;) {
        int n = utf8_length(text + at, length - at);
        if (n <= 0) return fail(error, LLAMA_ERROR_FILE, "%s: byte %zu is not UTF-8", path, at);
        at += (size_t)n;
    }
    return LLAMA_OK;
}

// Reads a text, which begins after BOS.
static int perplexity_of(LlamaContext *ctx, const LlamaTokenizer *tokenizer, const char *text, size_t length,
                         Perplexity *result, LlamaError *error) {
    int32_t context = llama_context_options(ctx)->context;
    if (context < 2)
        return fail(error, LLAMA_ERROR_USAGE, "--context = %d, allowed 2 or more to judge a text", context);
    size_t n = 0, bound = llama_encode_bound(length) * sizeof(int32_t);
    int32_t *ids = malloc(bound);
    if (!ids) return fail_memory(error, bound);
    *result = (Perplexity){.bytes = length};
    int code = llama_encode(tokenizer, text, length, 1, 0, ids, &n, error);
    if (code == LLAMA_OK && n > 1) {
        result->tokens = n - 1;
        code = sum_scores(ctx, ids, n, &result->log_probability, error);
    }
    free(ids);
    return code;
}

#endif
