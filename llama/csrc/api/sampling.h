// sampling.h: logits in, a token out.
#ifndef LLAMA_API_SAMPLING_H
#define LLAMA_API_SAMPLING_H

#include "error.h"

// cdef begin
typedef struct LlamaSampler LlamaSampler;

typedef struct {
    float temperature;       // 0: greedy, the most likely token
    float top_p;             // keep the most likely tokens whose probabilities reach top_p; 0 or 1: off
    float min_p;             // keep tokens at least min_p times as likely as the most likely one; 0: off
    int32_t top_k;           // keep the top_k most likely tokens; 0: off
    float repeat_penalty;    // divide (multiply if negative) the logits of tokens seen, prompt included; 1: off
    float presence_penalty;  // subtracted once from the logits of tokens generated; 0: off
    float frequency_penalty; // subtracted for every time a token was generated; 0: off
    uint64_t seed;           // of the xorshift generator; any value but 0
} LlamaSampling;

int llama_sampler_init(int32_t vocab_size, const LlamaSampling *sampling, LlamaSampler **sampler,
                       LlamaError *error);
void llama_sampler_free(LlamaSampler *sampler);
// Adds bias to the logit of a token before every sample; -INFINITY forbids the token.
int llama_sampler_bias(LlamaSampler *sampler, int32_t token, float bias, LlamaError *error);
// Allows only tokens whose bit is set, number token % 32 of word token / 32, in all samples to come. allowed:
// ((vocab_size + 31) / 32), which stays the caller's and may change between samples; NULL: all tokens.
void llama_sampler_mask(LlamaSampler *sampler, const uint32_t *allowed);
// Draws a token from logits (vocab_size), which it overwrites with what it made of them. A NaN or an infinity is an
// error, as is a mask or a bias that leaves no token.
int llama_sample(LlamaSampler *sampler, float *logits, int32_t *token, LlamaError *error);
// Tells the penalties of a token: generated = 0 for the prompt's, 1 for those drawn.
int llama_sampler_accept(LlamaSampler *sampler, int32_t token, int generated, LlamaError *error);
// Forgets the tokens told; the generator goes on.
void llama_sampler_reset(LlamaSampler *sampler);

enum { LLAMA_MAX_TOP = 128 };

typedef struct {
    int32_t token;
    float logprob; // natural logarithm of its probability
} LlamaLogprob;
// cdef end

#endif
