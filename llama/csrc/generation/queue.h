// queue.h: a text being written: the tokens that wait to be run, where it stands, why it ended. The step that
// runs and draws them is in run.c.
#ifndef LLAMA_QUEUE_H
#define LLAMA_QUEUE_H

#include "../kernels/sequence.h" // check_sequence
#include "../sampling/sampler.h" // llama_sampler_accept
#include "../text/stream.h"      // LlamaStream

struct LlamaGeneration {
    LlamaContext *ctx;
    const LlamaTokenizer *tokenizer;
    LlamaSampler *sampler;
    LlamaStream *stream;
    int32_t sequence, position, limit;
    int32_t finish;   // why the text ended, LLAMA_RUNNING before
    int32_t previous; // the newest token, which the next one's text depends on
    LlamaRow *queue;  // (n_queue) tokens that are to run, from `next` on
    int32_t n_queue, next;
    int32_t running; // rows of the queue that run in this step
    float *logits;   // (vocab_size) of the newest token, in ctx->logits; behind them those of the guesses that ran
    int32_t guesses[LLAMA_MAX_GUESSES]; // tokens that may come next
    int32_t n_guesses;                  // that are to run behind the newest token
    int32_t n_guessed;                  // that ran with the forward of number `forward`
    int32_t ahead;                      // of those, the last ones: the text may still go on so
    uint32_t forward;
    LlamaLogprob *top;
    int32_t n_top; // -1: no log-probabilities
    double start, first;
    LlamaStats stats;
    LlamaError error; // why finish is LLAMA_STOP_ERROR
};

void llama_generation_free(LlamaGeneration *g) {
    if (!g) return;
    llama_stream_free(g->stream);
    free(g->queue);
    free(g->top);
    free(g);
}

int llama_generation_init(LlamaContext *ctx, const LlamaTokenizer *tokenizer, LlamaSampler *sampler,
                          int32_t sequence, const char *const *stops, int32_t n_stops, LlamaGeneration **generation,
                          LlamaError *error) {
    *generation = NULL;
    int code = check_sequence(ctx, sequence, error);
    if (code != LLAMA_OK) return code;
    LlamaGeneration *g = calloc(1, sizeof *g);
    if (!g) return fail_memory(error, sizeof *g);
    *g = (LlamaGeneration){.ctx = ctx, .tokenizer = tokenizer, .sampler = sampler, .sequence = sequence};
    g->finish = LLAMA_STOP_LENGTH; // until it is fed
    g->n_top = -1;
    code = llama_stream_init(stops, n_stops, &g->stream, error);
    if (code == LLAMA_OK)
        *generation = g;
    else
        llama_generation_free(g);
    return code;
}

int llama_generation_logprobs(LlamaGeneration *g, int32_t n, LlamaError *error) {
    if (n < -1 || n > LLAMA_MAX_TOP)
        return fail(error, LLAMA_ERROR_USAGE, "logprobs = %d, allowed 0 to %d, or -1 for none", n, LLAMA_MAX_TOP);
    LlamaLogprob *top = realloc(g->top, (size_t)(MAX(n, 0) + 1) * sizeof *top);
    if (!top) return fail_memory(error, LLAMA_MAX_TOP * sizeof *top);
    g->top = top;
    g->n_top = n;
    return LLAMA_OK;
}

int32_t llama_generation_position(const LlamaGeneration *g) {
    return g->position + g->n_queue - g->next;
}

// Room for n tokens behind those that still wait, which move to the front.
static int queue_reserve(LlamaGeneration *g, size_t n, LlamaError *error) {
    int32_t waiting = g->n_queue - g->next;
    size_t bytes = ((size_t)waiting + n + 1) * sizeof *g->queue; // one more for the token that is drawn
    LlamaRow *queue = malloc(bytes);
    if (!queue) return fail_memory(error, bytes);
    if (waiting > 0) memcpy(queue, g->queue + g->next, (size_t)waiting * sizeof *queue);
    free(g->queue);
    g->queue = queue;
    g->n_queue = waiting;
    g->next = g->n_guesses = g->ahead = 0;
    return LLAMA_OK;
}

static void queue_push(LlamaGeneration *g, int32_t token) {
    LlamaRow row = {.token = token, .position = llama_generation_position(g), .sequence = g->sequence};
    g->queue[g->n_queue++] = row;
    g->previous = token;
}

int llama_generation_reuse(LlamaGeneration *g, const int32_t *ids, size_t n, LlamaError *error) {
    int32_t length = llama_sequence_length(g->ctx, g->sequence);
    if (n > (size_t)length)
        return fail(error, LLAMA_ERROR_USAGE, "%zu tokens to reuse, sequence %d holds %d", n, g->sequence, length);
    for (size_t i = 0; i < n; i++) {
        int code = llama_sampler_accept(g->sampler, ids[i], 0, error);
        if (code != LLAMA_OK) return code;
    }
    g->position = (int32_t)n;
    g->n_queue = g->next = 0;
    g->finish = LLAMA_STOP_LENGTH;
    return LLAMA_OK;
}

int llama_generation_feed(LlamaGeneration *g, const int32_t *ids, size_t n, int32_t limit, LlamaError *error) {
    int32_t context = g->ctx->options.context;
    if (limit == 0) limit = context;
    if (limit < 0 || limit > context)
        return fail(error, LLAMA_ERROR_USAGE, "limit = %d, allowed 1 to %d, the context", limit, context);
    size_t held = (size_t)llama_generation_position(g);
    if (n == 0) return fail(error, LLAMA_ERROR_USAGE, "the prompt has no tokens");
    if (n > (size_t)limit || held + n > (size_t)limit)
        return fail(error, LLAMA_ERROR_USAGE, "the prompt has %zu tokens, the context has room for %d", n,
                    MAX(0, limit - (int32_t)held));
    int code = queue_reserve(g, n, error);
    for (size_t i = 0; i < n && code == LLAMA_OK; i++) code = llama_sampler_accept(g->sampler, ids[i], 0, error);
    if (code != LLAMA_OK) return code;
    for (size_t i = 0; i < n; i++) queue_push(g, ids[i]);
    llama_stream_reset(g->stream);
    g->limit = limit;
    g->finish = LLAMA_RUNNING;
    g->stats = (LlamaStats){.prompt_tokens = g->n_queue};
    g->start = g->first = 0;
    return LLAMA_OK;
}

int llama_generation_rewind(LlamaGeneration *g, int32_t n, LlamaError *error) {
    if (n < 0 || n > g->position)
        return fail(error, LLAMA_ERROR_USAGE, "rewind to %d, allowed 0 to %d", n, g->position);
    g->position = n;
    g->n_queue = g->next = g->n_guesses = g->ahead = 0;
    g->finish = LLAMA_STOP_LENGTH;
    return LLAMA_OK;
}

const LlamaStats *llama_generation_stats(const LlamaGeneration *g) {
    return &g->stats;
}

#endif
