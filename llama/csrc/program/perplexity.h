// perplexity.h: --perplexity, how well a model predicts a text of any length. The rule is that of
// llama/perplexity.py: a text longer than the context is read in windows that overlap by half, and each token is
// judged once, with at least half a context before it.
#ifndef LLAMA_PERPLEXITY_H
#define LLAMA_PERPLEXITY_H

#include "../sampling/score.h" // llama_score
#include "../text/chat.h"      // text_strip
#include "../text/utf8.h"      // utf8_length
#include "run.h"               // Run

#include <math.h> // exp, log

typedef struct {
    size_t tokens, bytes;   // judged
    double log_probability; // sum over the tokens, in nats
} Perplexity;

// Adds the last `new` of the scores of n ids, which are read as a text of their own.
static int add_scores(const Run *run, const int32_t *ids, size_t n, size_t new, double *scores, double *sum,
                      LlamaError *error) {
    int code = console_check(&run->console, error);
    if (code == LLAMA_OK) code = llama_score(run->ctx, ids, (int32_t)n, scores, error);
    double added = 0;
    for (size_t i = n - 1 - new; i < n - 1 && code == LLAMA_OK; i++) added += scores[i];
    *sum += added;
    return code;
}

// The sum of the log-probabilities of all n ids but the first.
static int sum_scores(const Run *run, const int32_t *ids, size_t n, double *sum, LlamaError *error) {
    size_t context = (size_t)llama_context_options(run->ctx)->context, done = MIN(n, context), new = 0;
    double *scores = malloc(context * sizeof *scores);
    if (!scores) return fail_memory(error, context * sizeof *scores);
    int code = add_scores(run, ids, done, done - 1, scores, sum, error);
    for (; done < n && code == LLAMA_OK; done += new) {
        new = MIN(MAX(1, context / 2), n - done);
        code = add_scores(run, ids + done + new - context, context, new, scores, sum, error);
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

// Judges a text, which begins as the model's tokenizer begins one.
static int judge(const Run *run, Text text, Perplexity *result, LlamaError *error) {
    int32_t context = llama_context_options(run->ctx)->context;
    if (context < 2)
        return fail(error, LLAMA_ERROR_USAGE, "--context = %d, allowed 2 or more to judge a text", context);
    size_t n = 0, bytes = llama_encode_bound(text.length) * sizeof(int32_t);
    int32_t *ids = malloc(bytes);
    if (!ids) return fail_memory(error, bytes);
    *result = (Perplexity){.bytes = text.length};
    int code = llama_encode_prompt(run->model, run->tokenizer, text.text, text.length, ids, &n, error);
    if (code == LLAMA_OK && n > 1) {
        result->tokens = n - 1;
        code = sum_scores(run, ids, n, &result->log_probability, error);
    }
    free(ids);
    return code;
}

static int write_perplexity(const Run *run, const Perplexity *p, double time, LlamaError *error) {
    char line[2048]; // each of three figures may have 300 digits
    double nats = -p->log_probability;
    int n =
        snprintf(line, sizeof line,
                 "1 document, %zu tokens, %zu bytes: log-probability %.1f, perplexity %.4f, %.4f bits per byte; "
                 "%.0f tokens/s\n",
                 p->tokens, p->bytes, p->log_probability, exp(nats / (double)p->tokens),
                 nats / log(2) / (double)p->bytes, (double)p->tokens / time);
    return console_write(&run->console, line, (size_t)n, error);
}

// Writes how well the model predicts a file, which is one text without the blanks at its ends.
static int perplexity(const Run *run, LlamaError *error) {
    const char *path = run->options->perplexity, *name = strcmp(path, "-") == 0 ? "standard input" : path;
    Buffer file = {0};
    Perplexity result = {0};
    double start = seconds();
    int code = read_file(&run->console, path, &file, error);
    if (code == LLAMA_OK) code = check_utf8(name, file.bytes, file.length, error);
    if (code == LLAMA_OK) code = judge(run, text_strip(file.bytes, file.length), &result, error);
    if (code == LLAMA_OK && result.tokens == 0) code = fail(error, LLAMA_ERROR_FILE, "%s: holds no text", name);
    if (code == LLAMA_OK) code = write_perplexity(run, &result, seconds() - start, error);
    if (code == LLAMA_OK) note_stats(run);
    buffer_free(&file);
    return code;
}

#endif
