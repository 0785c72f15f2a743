// generation.h: sequences being written. Feed each token ids, then take piece after piece, of one or of many at
// once.
#ifndef LLAMA_API_GENERATION_H
#define LLAMA_API_GENERATION_H

#include "context.h"
#include "sampling.h"
#include "tokenizer.h"

// cdef begin
typedef struct LlamaGeneration LlamaGeneration;

enum {
    LLAMA_RUNNING = 0,
    LLAMA_STOP_TOKEN = 1,
    LLAMA_STOP_STRING = 2,
    LLAMA_STOP_LENGTH = 3,
    LLAMA_STOP_ERROR = 4
};

typedef struct {
    const char *text; // whole UTF-8 characters, valid until the next call; empty while the prompt is read
    size_t length;
    int32_t token;  // drawn by this call, -1 for none
    int32_t finish; // LLAMA_RUNNING, or why this piece is the last
    float logprob;  // of the token drawn, where they are asked for (llama_generation_logprobs)
    int32_t n_top;
    LlamaLogprob *top;       // (n_top) the most likely tokens, valid until the next call
    const LlamaError *error; // why finish is LLAMA_STOP_ERROR, NULL otherwise
} LlamaPiece;

typedef struct {
    int32_t prompt_tokens, generated_tokens;
    double prompt_seconds;   // until the first token was drawn
    double generate_seconds; // from the first token drawn to the last
} LlamaStats;

// The context, tokenizer and sampler stay the caller's and outlive the generation; stop strings are copied.
int llama_generation_init(LlamaContext *context, const LlamaTokenizer *tokenizer, LlamaSampler *sampler,
                          int32_t sequence, const char *const *stops, int32_t n_stops, LlamaGeneration **generation,
                          LlamaError *error);
void llama_generation_free(LlamaGeneration *generation);
// Appends ids to what the sequence holds. Tokens are run at positions before `limit` (0: the end of the context);
// the last one drawn is not, so n ids leave limit - n + 1 tokens to draw. An error if the ids do not fit.
int llama_generation_feed(LlamaGeneration *generation, const int32_t *ids, size_t n, int32_t limit,
                          LlamaError *error);
// Runs what waits, a prompt a batch at a time, and draws a token once nothing does.
int llama_generation_next(LlamaGeneration *generation, LlamaPiece *piece, LlamaError *error);
// The same for n generations of one context, each with a sequence of its own, in one forward: the newest token of
// every text, and of prompts, in the order given, up to `prefill` tokens (0: as many as fill a batch). pieces: (n).
// What a generation writes does not depend on those beside it, to the bit. One whose token can't be drawn ends with
// LLAMA_STOP_ERROR and the others go on; an error that is returned is of all, and the step may be tried again,
// after LLAMA_ERROR_RESOURCE with some of the cache given back. A text that is not to go on is left out of the next
// step.
int llama_generation_step(LlamaGeneration *const *generations, int32_t n, int32_t prefill, LlamaPiece *pieces,
                          LlamaError *error);
// Log-probabilities with each token drawn, its own and those of the n most likely tokens (0 to LLAMA_MAX_TOP); -1:
// none. They are natural logarithms of the softmax of the logits as the model gave them: before bias, penalties,
// mask and temperature, as OpenAI and llama.cpp have them.
int llama_generation_logprobs(LlamaGeneration *generation, int32_t n, LlamaError *error);
// The same of any logits of this context's model, (vocab_size), which it overwrites. top: (n_top), 0 to
// LLAMA_MAX_TOP and at most vocab_size.
int llama_logprobs(const LlamaContext *context, float *logits, int32_t token, double *logprob, LlamaLogprob *top,
                   int32_t n_top, LlamaError *error);
// Begins behind the first n positions that the sequence holds already, whose tokens are ids: they need not be fed.
int llama_generation_reuse(LlamaGeneration *generation, const int32_t *ids, size_t n, LlamaError *error);
enum { LLAMA_MAX_GUESSES = 16 }; // in a step, of all its generations together
// Guesses the n tokens that come next. A step runs their rows with that of the newest token, and the steps after it
// draw without a forward for as long as the token drawn was the one guessed; generations that have nothing ahead
// wait in such a step. What is written does not depend on guesses, to the bit. For a text that goes on: those of a
// prompt that is still being read wait for its end.
int llama_generation_guess(LlamaGeneration *generation, const int32_t *ids, int32_t n, LlamaError *error);
// Rows of guesses that have run and that the text goes on with as far as is known: 0, and the next step is a
// forward.
int32_t llama_generation_ahead(const LlamaGeneration *generation);
// Goes back to the first n positions of the sequence, to go on from there in another way.
int llama_generation_rewind(LlamaGeneration *generation, int32_t n, LlamaError *error);
// Positions that the sequence holds, the newest token drawn included.
int32_t llama_generation_position(const LlamaGeneration *generation);
const LlamaStats *llama_generation_stats(const LlamaGeneration *generation); // since the last feed
// cdef end

#endif
