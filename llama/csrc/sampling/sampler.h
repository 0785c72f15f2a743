// sampler.h: logits in, a token out. Nothing is allocated after init and the vocabulary is never sorted.
//
// What happens to the logits, in this order:
//   1. check         a NaN or an infinity in the model's logits is an error
//   2. bias          logit + bias; -INFINITY forbids the token
//   3. penalties     repeat: logit > 0 ? logit / r : logit * r for every token told, the prompt's too; then, as in
//                    the OpenAI API, for tokens generated: logit - presence - frequency * times
//   4. mask          tokens that it does not allow are forbidden, as by a bias of -INFINITY
//   5. temperature   0: the largest logit wins, the lowest index among equals, and no coin is used
//                    else p = softmax(logits / temperature)
//   6. top-k, top-p, min-p, each on what the one before has left: the k most likely tokens; the shortest run of
//                    them from the most likely down that exceeds top_p of what top-k left; those at least min_p
//                    times as likely as the most likely one
//   7. draw          one coin in [0, 1): the first token whose running total exceeds coin * (what is left)
//
// Tokens are walked from the most likely down, equals in the order of their index; with top-k, top-p and min-p all
// off they are walked in the order of their index. With only a temperature and a top-p this rule, the generator and
// the coin are those of llama2.c: the same seed gives the same text, up to the rounding of sums.
//
// All three filters of step 6 keep a run from the top. So they and the draw ask the same question, at which token a
// running count or mass exceeds a target, and select_run answers it by histograms. The logits are left as adjusted
// by steps 2 to 4 at temperature 0, else as likelihoods relative to the most likely token.
//
// Left out on purpose: beam search, grammars and the other filters (typical-p, mirostat, ...). A caller that wants
// them changes the logits before llama_sample.
#ifndef LLAMA_SAMPLER_H
#define LLAMA_SAMPLER_H

#include "../kernels/kernels.h" // Kernels: extremes, likelihoods
#include "select.h"             // Selection
#include "../base/util.h"       // fail, fail_memory

#include <float.h> // FLT_MAX, FLT_TRUE_MIN
#include <math.h>  // INFINITY, isfinite

// What the sampler was told about a token.
typedef struct {
    int32_t token;
    bool told;         // by llama_sampler_accept
    int64_t generated; // times it was told as generated
    float bias;
} SamplerNote;

struct LlamaSampler {
    LlamaSampling sampling; // filters that keep everything are 0; seed is the state of the generator
    const Kernels *kernels;
    int32_t vocab_size, n_notes;
    SamplerNote *notes;      // (vocab_size), the first n_notes are in use, one for each token
    int32_t *note_of;        // (vocab_size), 1 + index into notes, 0: none
    const uint32_t *allowed; // ((vocab_size + 31) / 32), a bit a token; NULL: all
    Selection selection;
};

// ---------------------------------------------------------------------------------------------------------
// Set-up

static int sampler_check_options(int32_t vocab_size, const LlamaSampling *sampling, LlamaError *error) {
    const struct {
        const char *name;
        double value, min, max;
        const char *allowed;
    } ranges[] = {
        {"vocab_size", vocab_size, 1, INT32_MAX, "1 or more"},
        {"temperature", sampling->temperature, 0, FLT_MAX, "0 or more"},
        {"top_p", sampling->top_p, 0, 1, "0 to 1"},
        {"min_p", sampling->min_p, 0, 1, "0 to 1"},
        {"top_k", sampling->top_k, 0, INT32_MAX, "0 or more"},
        {"repeat_penalty", sampling->repeat_penalty, FLT_TRUE_MIN, FLT_MAX, "more than 0"},
        {"presence_penalty", sampling->presence_penalty, -FLT_MAX, FLT_MAX, "any finite number"},
        {"frequency_penalty", sampling->frequency_penalty, -FLT_MAX, FLT_MAX, "any finite number"},
    };
    for (size_t i = 0; i < COUNT(ranges); i++) {
        bool allowed = ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max; // false for NaN
        if (!allowed)
            return fail(error, LLAMA_ERROR_USAGE, "%s = %g, allowed %s", ranges[i].name, ranges[i].value,
                        ranges[i].allowed);
    }
    if (sampling->seed == 0) return fail(error, LLAMA_ERROR_USAGE, "seed = 0, allowed any other number");
    return LLAMA_OK;
}

void llama_sampler_free(LlamaSampler *sampler) {
    if (!sampler) return;
    free(sampler->notes);
    free(sampler->note_of);
    select_free(&sampler->selection);
    free(sampler);
}

static LlamaSampler *sampler_alloc(const Kernels *kernels, int32_t vocab_size) {
    LlamaSampler *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    size_t n = (size_t)vocab_size;
    s->kernels = kernels;
    s->vocab_size = vocab_size;
    s->notes = calloc(n, sizeof *s->notes);
    s->note_of = calloc(n, sizeof *s->note_of);
    if (select_init(&s->selection, kernels, vocab_size) && s->notes && s->note_of) return s;
    llama_sampler_free(s);
    return NULL;
}

int llama_sampler_init(int32_t vocab_size, const LlamaSampling *sampling, LlamaSampler **sampler,
                       LlamaError *error) {
    *sampler = NULL;
    const Kernels *kernels;
    int code = sampler_check_options(vocab_size, sampling, error);
    if (code == LLAMA_OK) code = kernels_find(getenv("LLAMA_ISA"), &kernels, error);
    if (code != LLAMA_OK) return code;
    LlamaSampler *s = sampler_alloc(kernels, vocab_size);
    if (!s) return fail_memory(error, (uint64_t)vocab_size * (sizeof *s->notes + sizeof *s->note_of + 8));
    s->sampling = *sampling;
    if (sampling->top_k >= vocab_size) s->sampling.top_k = 0;
    if (sampling->top_p == 1.0f) s->sampling.top_p = 0.0f;
    *sampler = s;
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// Bias and penalties: a list of the tokens that have any, so that they cost nothing to the others.

static int sampler_check_token(const LlamaSampler *s, int32_t token, LlamaError *error) {
    if (token >= 0 && token < s->vocab_size) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "token = %d, allowed 0 to %d", token, s->vocab_size - 1);
}

static SamplerNote *sampler_note(LlamaSampler *s, int32_t token) {
    if (!s->note_of[token]) {
        s->notes[s->n_notes] = (SamplerNote){.token = token};
        s->note_of[token] = ++s->n_notes;
    }
    return &s->notes[s->note_of[token] - 1];
}

int llama_sampler_bias(LlamaSampler *sampler, int32_t token, float bias, LlamaError *error) {
    int code = sampler_check_token(sampler, token, error);
    if (code) return code;
    if (!(bias <= FLT_MAX))
        return fail(error, LLAMA_ERROR_USAGE, "bias of token %d = %g, allowed finite or -inf", token, (double)bias);
    sampler_note(sampler, token)->bias = bias;
    return LLAMA_OK;
}

int llama_sampler_accept(LlamaSampler *sampler, int32_t token, int generated, LlamaError *error) {
    int code = sampler_check_token(sampler, token, error);
    if (code) return code;
    const LlamaSampling *o = &sampler->sampling;
    if (o->repeat_penalty == 1.0f && o->presence_penalty == 0.0f && o->frequency_penalty == 0.0f) return LLAMA_OK;
    SamplerNote *note = sampler_note(sampler, token);
    note->told = true;
    if (generated) note->generated++;
    return LLAMA_OK;
}

void llama_sampler_reset(LlamaSampler *sampler) {
    int32_t n = sampler->n_notes;
    sampler->n_notes = 0;
    for (int32_t i = 0; i < n; i++) {
        SamplerNote note = sampler->notes[i];
        sampler->note_of[note.token] = 0;
        if (note.bias != 0.0f) sampler_note(sampler, note.token)->bias = note.bias;
    }
}

// In double, where no product or sum of floats overflows. Only a bias of -INFINITY makes an infinity.
static float sampler_adjusted(const LlamaSampling *o, const SamplerNote *note, double logit) {
    if (note->bias == -INFINITY) return -INFINITY;
    logit += (double)note->bias;
    if (note->told) {
        double repeat = (double)o->repeat_penalty;
        logit = logit > 0 ? logit / repeat : logit * repeat;
        if (note->generated) logit -= (double)o->presence_penalty;
        logit -= (double)o->frequency_penalty * (double)note->generated;
    }
    return (float)MAX(-(double)FLT_MAX, MIN((double)FLT_MAX, logit));
}

static void sampler_adjust(const LlamaSampler *s, float *logits) {
    for (int32_t i = 0; i < s->n_notes; i++) {
        float *logit = &logits[s->notes[i].token];
        *logit = sampler_adjusted(&s->sampling, &s->notes[i], (double)*logit);
    }
}

void llama_sampler_mask(LlamaSampler *sampler, const uint32_t *allowed) {
    sampler->allowed = allowed;
}

// Forbids the tokens that the mask leaves out. Without a branch for each token: masks may be as irregular as coins.
static void sampler_forbid(const LlamaSampler *s, float *logits) {
    const uint32_t least = select_bits(-INFINITY);
    for (int32_t i = 0; i < s->vocab_size; i += 32) {
        uint32_t allowed = s->allowed[i / 32];
        if (allowed == UINT32_MAX) continue;
        int32_t n = MIN(32, s->vocab_size - i);
        for (int32_t j = 0; j < n; j++) {
            uint32_t keep = -(uint32_t)((allowed & 1u << j) != 0);
            logits[i + j] = select_float((select_bits(logits[i + j]) & keep) | (least & ~keep));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// The draw

static int sampler_refuse(const float *logits, LlamaError *error) { // that are not all finite
    int32_t i = 0;
    while (isfinite(logits[i])) i++;
    const char *what = isnan(logits[i]) ? "nan" : logits[i] > 0 ? "inf" : "-inf";
    return fail(error, LLAMA_ERROR_FILE, "logit of token %d is %s, allowed finite numbers", i, what);
}

// xorshift64*, the 24 highest bits of 32, as a fraction in [0, 1).
static double sampler_coin(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    uint32_t random = (uint32_t)((*state * 0x2545F4914F6CDD1Dull) >> 32);
    return (random >> 8) / 16777216.0;
}

// In the order of the index. Blocks are summed in the order in which their total was, so one of them exceeds the
// target; if its tokens, summed one by one, do not, the last that is not 0 is drawn.
static int32_t sampler_draw_any(const Selection *s, const float *x, double target) {
    int32_t b = 0;
    double total = 0;
    for (; b + 1 < s->n_blocks && total + s->mass[b] <= target; b++) total += s->mass[b];
    int32_t token = b * PASS_BLOCK, end = token + MIN(PASS_BLOCK, s->vocab_size - token);
    for (int32_t i = token; i < end && total <= target; i++) {
        total += (double)x[i];
        if (x[i] > 0.0f) token = i;
    }
    return token;
}

static int32_t sampler_draw_filtered(LlamaSampler *sampler, const float *x, double mass, double coin) {
    const LlamaSampling *o = &sampler->sampling;
    Selection *s = &sampler->selection;
    SelectRun kept = {0};
    if (o->top_k) {
        kept = select_shortest(s, x, SELECT_COUNT, o->top_k - 1, mass);
        if (o->top_p > 0.0f) kept = select_run(s, SELECT_MASS, (double)o->top_p * kept.total[SELECT_MASS]);
    } else if (o->top_p > 0.0f) {
        kept = select_shortest(s, x, SELECT_MASS, (double)o->top_p * mass, mass);
    }
    if (o->min_p > kept.last) kept = select_above(s, x, MAX(FLT_MIN, o->min_p));
    // A coin is below 1 by 2^-24 or more, far more than sums lose: the token is one of those kept.
    SelectRun drawn = select_run(s, SELECT_MASS, coin * kept.total[SELECT_MASS]);
    return select_token(s, x, &drawn);
}

int llama_sample(LlamaSampler *sampler, float *logits, int32_t *token, LlamaError *error) {
    const LlamaSampling *o = &sampler->sampling;
    Extremes found = sampler->kernels->extremes(logits, sampler->vocab_size);
    if (!isfinite(found.min) || !isfinite(found.max)) return sampler_refuse(logits, error);
    if (sampler->n_notes) sampler_adjust(sampler, logits);
    if (sampler->allowed) sampler_forbid(sampler, logits);
    if (sampler->n_notes || sampler->allowed) found = sampler->kernels->extremes(logits, sampler->vocab_size);
    if (found.max == -INFINITY)
        return sampler->allowed
                   ? fail(error, LLAMA_ERROR_USAGE, "the mask allows no token, or none without a bias of -inf")
                   : fail(error, LLAMA_ERROR_USAGE, "every token has a bias of -inf, allowed all but one");
    *token = found.argmax;
    if (o->temperature == 0.0f) return LLAMA_OK;
    // A temperature below 5e-39 gives a scale beyond floats, which counts as the largest one.
    float scale = (float)MIN(LOG2_E / (double)o->temperature, (double)FLT_MAX);
    double mass =
        sampler->kernels->likelihoods(logits, sampler->selection.mass, sampler->vocab_size, found.max, scale);
    double coin = sampler_coin(&sampler->sampling.seed);
    bool filtered = o->top_k || o->top_p > 0.0f || o->min_p > 0.0f;
    *token = filtered ? sampler_draw_filtered(sampler, logits, mass, coin)
                      : sampler_draw_any(&sampler->selection, logits, coin * mass);
    return LLAMA_OK;
}

#endif
