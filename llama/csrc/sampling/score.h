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

int llama_logprobs(const LlamaContext *context, float *logits, int32_t token, double *logprob, LlamaLogprob *top,
                   int32_t n_top, LlamaError *error) {
    int32_t n = context->model->config.vocab_size, most = MIN(n, LLAMA_MAX_TOP);
    if (token < 0 || token >= n) return fail(error, LLAMA_ERROR_USAGE, "token = %d, allowed 0 to %d", token, n - 1);
    if (n_top < 0 || n_top > most)
        return fail(error, LLAMA_ERROR_USAGE, "n_top = %d, allowed 0 to %d", n_top, most);
    float logit = logits[token];
    Softmax softmax;
    most_likely(context->kernels, logits, n, top, n_top);
    int code = softmax_of(context->kernels, logits, n, &softmax, error);
    if (code != LLAMA_OK) return code;
    *logprob = logprob_of(&softmax, logit);
    for (int32_t i = 0; i < n_top; i++) top[i].logprob = (float)logprob_of(&softmax, top[i].logprob);
    return LLAMA_OK;
}

int llama_score(LlamaContext *context, const int32_t *ids, int32_t n, double *scores, LlamaError *error) {
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
            code = llama_logprobs(context, logits + (int64_t)(j - i) * vocab_size, ids[j + 1], scores + j, NULL, 0,
                                  error);
    }
    free(rows);
    return code;
}

#endif
