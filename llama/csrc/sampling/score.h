// score.h: how likely tokens are to a model: those of a text, or those drawn and the ones most likely in their
// place.
#ifndef LLAMA_SCORE_H
#define LLAMA_SCORE_H

#include "../kernels/context.h" // LlamaContext
#include "../base/util.h"       // fail, fail_memory

enum { SCORE_LOGITS = 1 << 22 }; // logits alive at once, in all rows

// What makes logits log-probabilities under their softmax: (logit - max) - log_mass, in nats.
typedef struct {
    double max, log_mass;
} Softmax;

// Overwrites the logits.
static int softmax_of(const Kernels *kernels, float *logits, int32_t n, Softmax *softmax, LlamaError *error) {
    *softmax = (Softmax){0};
    Extremes found = kernels->extremes(logits, n);
    if (!isfinite(found.min) || !isfinite(found.max))
        return fail(error, LLAMA_ERROR_FILE, "a logit of the model is not a finite number");
    *softmax = (Softmax){(double)found.max, log(kernels->likelihoods(logits, NULL, n, found.max, (float)LOG2_E))};
    return LLAMA_OK;
}

static double logprob_of(const Softmax *softmax, float logit) {
    return ((double)logit - softmax->max) - softmax->log_mass;
}

// Log-probability of a token. Overwrites the logits.
static int score_token(const Kernels *kernels, float *logits, int32_t n, int32_t token, double *score,
                       LlamaError *error) {
    if (token < 0 || token >= n) return fail(error, LLAMA_ERROR_USAGE, "token = %d, allowed 0 to %d", token, n - 1);
    float logit = logits[token];
    Softmax softmax;
    int code = softmax_of(kernels, logits, n, &softmax, error);
    if (code == LLAMA_OK) *score = logprob_of(&softmax, logit);
    return code;
}

// The n_top largest logits from the largest down, equals in the order of their index, in the place of
// log-probabilities. Blocks without one of them are passed over.
static void most_likely(const Kernels *kernels, const float *logits, int32_t n, LlamaLogprob *top, int32_t n_top) {
    int32_t found = 0;
    for (int32_t b = 0; b < n && n_top > 0; b += PASS_BLOCK) {
        int32_t end = MIN(n, b + PASS_BLOCK);
        if (found == n_top && kernels->extremes(logits + b, end - b).max <= top[found - 1].logprob) continue;
        for (int32_t i = b; i < end; i++) {
            if (found == n_top && logits[i] <= top[found - 1].logprob) continue;
            int32_t at = found < n_top ? found++ : found - 1;
            for (; at > 0 && top[at - 1].logprob < logits[i]; at--) top[at] = top[at - 1];
            top[at] = (LlamaLogprob){i, logits[i]};
        }
    }
}

// Fills in the log-probabilities of a piece: its token's and, in piece->top, those of the most likely ones.
// Overwrites the logits.
static int logprobs(const Kernels *kernels, float *logits, int32_t n, LlamaPiece *piece, LlamaError *error) {
    float logit = logits[piece->token];
    Softmax softmax;
    piece->n_top = MIN(piece->n_top, n);
    most_likely(kernels, logits, n, piece->top, piece->n_top);
    int code = softmax_of(kernels, logits, n, &softmax, error);
    if (code != LLAMA_OK) return code;
    piece->logprob = (float)logprob_of(&softmax, logit);
    for (int32_t i = 0; i < piece->n_top; i++)
        piece->top[i].logprob = (float)logprob_of(&softmax, piece->top[i].logprob);
    return LLAMA_OK;
}

int llama_score(LlamaContext *context, const int32_t *ids, int32_t n, double *scores, LlamaError *error) {
    const Kernels *kernels = context->kernels;
    int32_t vocab_size = context->model->config.vocab_size, n_rows = 0;
    int32_t batch = MIN(context->options.batch, MAX(1, SCORE_LOGITS / vocab_size));
    size_t bytes = (size_t)batch * ((size_t)vocab_size * sizeof(float) + sizeof(LlamaRow));
    LlamaRow *rows = malloc(bytes);
    if (!rows) return fail_memory(error, bytes);
    float *logits = (float *)(rows + batch);
    int code = LLAMA_OK;
    for (int32_t i = 0; i < n - 1 && code == LLAMA_OK; i += n_rows) {
        n_rows = MIN(batch, n - 1 - i);
        for (int32_t j = 0; j < n_rows; j++)
            rows[j] = (LlamaRow){.token = ids[i + j], .position = i + j, .wants_logits = 1};
        code = llama_forward(context, rows, n_rows, logits, error);
        for (int32_t j = i; j < i + n_rows && code == LLAMA_OK; j++)
            code = score_token(kernels, logits + (int64_t)(j - i) * vocab_size, vocab_size, ids[j + 1], scores + j,
                               error);
    }
    free(rows);
    return code;
}

#endif
