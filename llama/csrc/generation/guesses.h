// guesses.h: tokens that may come next, run in one pass behind the newest one. Each that is then drawn indeed saves
// a pass.
#ifndef LLAMA_GUESSES_H
#define LLAMA_GUESSES_H

#include "queue.h" // LlamaGeneration

int llama_generation_guess(LlamaGeneration *g, const int32_t *ids, int32_t n, LlamaError *error) {
    if (n < 0 || n > LLAMA_MAX_GUESSES)
        return fail(error, LLAMA_ERROR_USAGE, "%d guesses, allowed 0 to %d", n, LLAMA_MAX_GUESSES);
    int32_t vocab_size = g->ctx->model->config.vocab_size;
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return fail(error, LLAMA_ERROR_USAGE, "token = %d, allowed 0 to %d", ids[i], vocab_size - 1);
    if (n > 0) memcpy(g->guesses, ids, (size_t)n * sizeof *ids);
    g->n_guesses = n;
    g->ahead = 0;
    return LLAMA_OK;
}

int32_t llama_generation_ahead(const LlamaGeneration *g) {
    return g->finish == LLAMA_RUNNING && g->forward == g->ctx->forward ? g->ahead : 0;
}

// Goes on in the texts whose newest token was guessed, as its row has run. Returns whether there are any.
static bool go_ahead(LlamaGeneration *const *generations, int32_t n) {
    bool any = false;
    for (int32_t i = 0; i < n; i++) {
        LlamaGeneration *g = generations[i];
        if (llama_generation_ahead(g) == 0) continue;
        g->position++;
        g->next++;
        g->logits += g->ctx->model->config.vocab_size;
        g->ahead--;
        any = true;
    }
    return any;
}

// Forgets the rows of guesses that were wrong.
static int forget_guesses(LlamaContext *ctx, LlamaGeneration *const *generations, int32_t n, LlamaError *error) {
    int code = LLAMA_OK;
    for (int32_t i = 0; i < n && code == LLAMA_OK; i++) {
        const LlamaGeneration *g = generations[i];
        int32_t held = g->position + llama_generation_ahead(g);
        if (g->n_guessed > 0 && llama_sequence_length(ctx, g->sequence) > held)
            code = llama_sequence_trim(ctx, g->sequence, held, error);
    }
    return code;
}

#endif
