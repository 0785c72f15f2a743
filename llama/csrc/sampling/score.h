// score.h: how likely a text is to a model, token by token.
#ifndef LLAMA_SCORE_H
#define LLAMA_SCORE_H

#include "../kernels/context.h" // LlamaContext
#include "../base/util.h"       // fail, fail_memory

enum { SCORE_LOGITS = 1 << 22 }; // logits alive at once, in all rows

// Log-probability of a token under softmax(logits), in nats. Overwrites the logits.
static int score_token(const Kernels *kernels, float *logits, int32_t n, int32_t token, double *score,
                       LlamaError *error) {
    if (token < 0 || token >= n) return fail(error, LLAMA_ERROR_USAGE, "token = %d, allowed 0 to %d", token, n - 1);
    Extremes found = kernels->extremes(logits, n);
    if (!isfinite(found.min) || !isfinite(found.max))
        return fail(error, LLAMA_ERROR_FILE, "a logit of the model is not a finite number");
    double above = (double)logits[token] - (double)found.max;
    *score = above - log(kernels->likelihoods(logits, NULL, n, found.max, (float)LOG2_E));
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
