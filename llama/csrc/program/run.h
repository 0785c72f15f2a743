// run.h: a run of the command line: what its options name, opened, and a text being written piece by piece.
#ifndef LLAMA_PROGRAM_RUN_H
#define LLAMA_PROGRAM_RUN_H

#include "../weights/model.h" // LlamaModel
#include "../weights/tiles.h" // TILE_GROUP
#include "console.h"          // Console
#include "llama_run.h"        // LlamaRunOptions

typedef struct {
    const LlamaRunOptions *options;
    Console console;
    LlamaModel *model;
    LlamaAdapter *adapter;
    LlamaTokenizer *tokenizer;
    LlamaContext *ctx;
    LlamaSampler *sampler;
    LlamaGeneration *generation;
    Buffer *heard; // gets what is written of a text too, NULL: nobody does
    double open_seconds;
} Run;

// Opens the model, and the adapter that is to run beside it.
static int run_model(Run *run, LlamaError *error) {
    const char *lora = run->options->lora;
    int code = llama_open(run->options->model, &run->model, error);
    if (code != LLAMA_OK || !lora) return code;
    const char *colon = access(lora, F_OK) == 0 ? NULL : strrchr(lora, ':'); // a file may be called so
    char *end = NULL, *path;
    double scale = colon ? strtod(colon + 1, &end) : 1;
    if (colon && (end == colon + 1 || *end))
        return fail(error, LLAMA_ERROR_USAGE, "--lora = %.256s, allowed FILE and FILE:SCALE", lora);
    path = strndup(lora, colon ? (size_t)(colon - lora) : strlen(lora));
    if (!path) return fail_memory(error, strlen(lora));
    code = llama_adapter_open(path, (float)scale, run->model, &run->adapter, error);
    free(path);
    return code;
}

// The context that the options ask for: no more positions than --steps runs.
static int run_context(const Run *run, LlamaContextOptions *context, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    int32_t max = run->model->config.max_seq_len, wanted = o->context ? o->context : max;
    if (wanted > max)
        return fail(error, LLAMA_ERROR_USAGE, "--context = %d, allowed 1 to %d, the model's max_seq_len", wanted,
                    max);
    if (o->steps > 0) wanted = MIN(wanted, o->steps);
    *context = (LlamaContextOptions){.context = wanted,
                                     .threads = o->threads,
                                     .exact = o->exact,
                                     .kv = o->kv,
                                     .rope_theta = o->rope_theta,
                                     .adapter = run->adapter};
    return LLAMA_OK;
}

static int run_sampler(Run *run, LlamaError *error) {
    LlamaSampling sampling = run->options->sampling;
    if (sampling.seed == 0) sampling.seed = (uint64_t)time(NULL);
    return llama_sampler_init(run->model->config.vocab_size, &sampling, &run->sampler, error);
}

enum { MANY_BYTES = 1 << 30 }; // of a token: from here on a type of fewer bits is offered

// Says what fp32 costs where it is felt: a token takes as long as its weights take to be read.
static void note_reads(const Run *run) {
    const LlamaRunOptions *o = run->options;
    double reads = (double)llama_token_bytes(run->model);
    if (run->model->config.weight_type != LLAMA_FP32 || reads < MANY_BYTES || o->dtype >= 0 || o->perplexity)
        return;
    console_note(
        &run->console,
        "%.1f GB of fp32 are read for each token; --dtype int8 with python -m llama.run converts the model "
        "once, to %.1f GB\n",
        reads / 1e9, reads / 4e9 * (TILE_GROUP + 2) / TILE_GROUP);
}

// Opens all that a text needs. What was opened before an error is closed with the rest.
static int run_open(Run *run, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    const char *const *stops = (const char *const *)o->stops;
    LlamaContextOptions context;
    double start = seconds();
    int code = run_model(run, error);
    if (code == LLAMA_OK) code = run_context(run, &context, error);
    if (code == LLAMA_OK) code = llama_tokenizer_find(o->tokenizer, run->model, &run->tokenizer, error);
    if (code == LLAMA_OK) code = llama_context_init(run->model, &context, &run->ctx, error);
    if (code == LLAMA_OK) code = run_sampler(run, error);
    if (code == LLAMA_OK)
        code = llama_generation_init(run->ctx, run->tokenizer, run->sampler, 0, stops, o->n_stops, &run->generation,
                                     error);
    run->open_seconds = seconds() - start;
    if (code == LLAMA_OK) note_reads(run);
    return code;
}

static void run_close(Run *run) {
    llama_generation_free(run->generation);
    llama_sampler_free(run->sampler);
    llama_context_free(run->ctx);
    llama_adapter_close(run->adapter);
    llama_tokenizer_close(run->tokenizer);
    llama_close(run->model);
}

// An error that says what to change where n tokens are more than the context, which begins with them, has room for.
static int run_check_room(const Run *run, size_t n, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    int32_t room = llama_context_options(run->ctx)->context, max = run->model->config.max_seq_len;
    int32_t whole = o->context ? o->context : max; // with -n 0
    if (n <= (size_t)room) return LLAMA_OK;
    if (n <= (size_t)whole)
        return fail(error, LLAMA_ERROR_USAGE,
                    "the prompt has %zu tokens, --steps = %d has room for no more than that: -n 0 takes the whole "
                    "context of %d",
                    n, room, whole);
    if (n <= (size_t)max)
        return fail(error, LLAMA_ERROR_USAGE,
                    "the prompt has %zu tokens, --context = %d; this model may have up to %d", n, whole, max);
    return fail(error, LLAMA_ERROR_USAGE, "the prompt has %zu tokens, the context has room for %d", n, max);
}

// Writes the text that follows what was fed, as it comes, and a newline. finish: why it ended, LLAMA_STOP_...
static int write_text(Run *run, int32_t *finish, LlamaError *error) {
    LlamaPiece piece;
    do {
        int code = console_check(&run->console, error);
        if (code == LLAMA_OK) code = llama_generation_next(run->generation, &piece, error);
        if (code == LLAMA_OK) code = console_write(&run->console, piece.text, piece.length, error);
        if (code == LLAMA_OK && run->heard) code = buffer_append(run->heard, piece.text, piece.length, error);
        if (code != LLAMA_OK) return code;
    } while (piece.finish == LLAMA_RUNNING);
    *finish = piece.finish;
    return console_write(&run->console, "\n", 1, error);
}

// Goes back to behind the first n of ids, as if they had just been read.
static int rewind_to(Run *run, const int32_t *ids, size_t n, LlamaError *error) {
    int code = llama_generation_rewind(run->generation, (int32_t)n, error);
    llama_sampler_reset(run->sampler);
    for (size_t i = 0; i < n && code == LLAMA_OK; i++) code = llama_sampler_accept(run->sampler, ids[i], 0, error);
    return code;
}

// What ran, for --stats.
static void note_stats(const Run *run) {
    const LlamaContextOptions *o = llama_context_options(run->ctx);
    if (!run->options->stats) return;
    console_note(&run->console,
                 "model: %s, %.1f M parameters, %s, context %d, %d threads, %s kernels, %.1f MiB %s cache and "
                 "scratch\nopened in %.1f ms\n",
                 run->options->model, (double)llama_parameters(run->model) / 1e6,
                 llama_type_name(run->model->config.weight_type), o->context, o->threads, o->kernels,
                 (double)llama_context_bytes(run->ctx) / (1 << 20), llama_kv_name(o->kv), 1e3 * run->open_seconds);
}

static double per_second(int32_t tokens, double time) {
    return tokens > 0 && time > 0 ? tokens / time : 0;
}

// What the last text cost. The bandwidth is that of the weights which each generated token reads.
static void note_speed(const Run *run) {
    const LlamaStats *s = llama_generation_stats(run->generation);
    double made = per_second(s->generated_tokens - 1, s->generate_seconds);
    console_note(&run->console,
                 "prompt: %d tokens, %.1f tokens/s; generated: %d tokens, %.1f tokens/s; first token: %.1f ms; "
                 "%.2f GB/s\n",
                 s->prompt_tokens, per_second(s->prompt_tokens, s->prompt_seconds), s->generated_tokens, made,
                 1e3 * s->prompt_seconds, made * (double)llama_token_bytes(run->model) / 1e9);
}

// Writes what the model is, without a context, which this machine may be too small for.
static int write_info(Run *run, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    char text[4096];
    LlamaContextOptions context;
    int code = run_model(run, error);
    if (code == LLAMA_OK) code = run_context(run, &context, error);
    if (code != LLAMA_OK) return code;
    bool asked = o->tokenizer || llama_has_tokenizer(run->model); // any other may be missing
    code = llama_tokenizer_find(o->tokenizer, run->model, &run->tokenizer, error);
    if (code != LLAMA_OK && (asked || code != LLAMA_ERROR_FILE)) return code;
    code = llama_info(run->model, run->tokenizer, &context, text, sizeof text, error);
    return code == LLAMA_OK ? console_write(&run->console, text, strlen(text), error) : code;
}

#endif
