// rope.h: the frequencies of RoPE (Su et al., RoFormer, 2021), stretched for contexts longer than the first
// training's.
#ifndef LLAMA_ROPE_H
#define LLAMA_ROPE_H

#include "model.h" // LlamaConfig

#define TWO_PI (2 * 3.14159265358979323846)

// YaRN's ramp: up to the pair low frequencies are kept, from the pair high on they are divided (Peng et al., 2023).
typedef struct {
    double low, high;
} Ramp;

// The pair, a fraction, that turns so often over the original context.
static double yarn_pair(const LlamaConfig *c, double theta, double turns) {
    return c->head_dim * log(c->rope_original_max_seq_len / (turns * TWO_PI)) / (2 * log(theta));
}

static Ramp yarn_ramp(const LlamaConfig *c, double theta) {
    double low = yarn_pair(c, theta, (double)c->rope_beta_fast),
           high = yarn_pair(c, theta, (double)c->rope_beta_slow);
    if (c->rope_truncate) low = floor(low), high = ceil(high);
    return (Ramp){fmax(low, 0), fmin(high, c->head_dim - 1)};
}

// Whether YaRN is defined for a base: some pair turns as it needs it. All else is for any base.
static bool rope_fits(const LlamaConfig *c, double theta) {
    if (c->rope_scaling != LLAMA_ROPE_YARN) return true;
    Ramp ramp = yarn_ramp(c, theta);
    return theta > 1 && ramp.low <= ramp.high;
}

// How much of frequency j stays as it is: from 1, all of it, to 0, divided by the factor. Linear scaling keeps
// nothing, Llama 3 what turns often in the original context, YaRN the first pairs.
static double rope_kept(const LlamaConfig *c, double theta, int32_t j, double frequency) {
    if (c->rope_scaling == LLAMA_ROPE_LINEAR) return 0;
    if (c->rope_scaling == LLAMA_ROPE_YARN) {
        Ramp ramp = yarn_ramp(c, theta);
        double width = ramp.high > ramp.low ? ramp.high - ramp.low : 0.001; // of no width: a step behind low
        return 1 - fmin(1, fmax(0, (j - ramp.low) / width));
    }
    double low = (double)c->rope_low_freq_factor, high = (double)c->rope_high_freq_factor;
    double turns = c->rope_original_max_seq_len * frequency / TWO_PI;
    return fmin(1, fmax(0, (turns - low) / (high - low)));
}

// Angle j of a position is position x theta^(-2 j / head_dim), stretched.
static double rope_frequency(const LlamaConfig *c, double theta, int32_t j) {
    double frequency = pow(theta, -2.0 * j / c->head_dim);
    if (c->rope_scaling == LLAMA_ROPE_PLAIN) return frequency;
    double blend = rope_kept(c, theta, j, frequency);
    return (1 - blend) * (frequency / (double)c->rope_factor) + blend * frequency;
}

// What queries and keys are multiplied by as they are turned.
static double rope_magnitude(const LlamaConfig *c) {
    if (c->rope_scaling != LLAMA_ROPE_YARN) return 1;
    if (c->rope_attention_factor > 0) return (double)c->rope_attention_factor;
    return 0.1 * log((double)c->rope_factor) + 1;
}

#endif
