// generation.h: one sequence being written. Feed it token ids, then take piece after piece.
#ifndef LLAMA_API_GENERATION_H
#define LLAMA_API_GENERATION_H

#include "context.h"
#include "sampling.h"
#include "tokenizer.h"

// cdef begin
typedef struct LlamaGeneration LlamaGeneration;

enum { LLAMA_RUNNING = 0, LLAMA_STOP_TOKEN = 1, LLAMA_STOP_STRING = 2, LLAMA_STOP_LENGTH = 3 };

typedef struct {
    const char *text; // whole UTF-8 characters, valid until the next call; empty while the prompt is read
    size_t length;
    int32_t token;  // drawn by this call, -1 for none
    int32_t finish; // LLAMA_RUNNING, or why this piece is the last
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
int llama_generation_next(LlamaGeneration *generation, LlamaPiece *piece, LlamaError *error);
// Goes back to the first n positions of the sequence, to go on from there in another way.
int llama_generation_rewind(LlamaGeneration *generation, int32_t n, LlamaError *error);
// Positions that the sequence holds, the newest token drawn included.
int32_t llama_generation_position(const LlamaGeneration *generation);
const LlamaStats *llama_generation_stats(const LlamaGeneration *generation); // since the last feed
// cdef end

#endif
