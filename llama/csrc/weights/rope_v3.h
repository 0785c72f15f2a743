// rope_v3.h: how RoPE is scaled, as the header of a version 3 file says it (docs/format.md).
#ifndef LLAMA_ROPE_V3_H
#define LLAMA_ROPE_V3_H

#include "rope.h" // rope_fits

// Of YaRN; with any other scaling they are zeros.
enum { BETA_FAST_AT = 168, BETA_SLOW_AT = 172, ATTENTION_FACTOR_AT = 176, TRUNCATE_AT = 180 };

static int check_llama3_v3(const char *path, const LlamaConfig *c, LlamaError *error) {
    if (c->rope_low_freq_factor >= c->rope_high_freq_factor || c->rope_original_max_seq_len < 1)
        return fail(error, LLAMA_ERROR_FILE,
                    "%s: rope low_freq_factor = %g, high_freq_factor = %g, original_max_seq_len = %d: allowed low "
                    "below high and a length of 1 or more",
                    path, (double)c->rope_low_freq_factor, (double)c->rope_high_freq_factor,
                    c->rope_original_max_seq_len);
    return LLAMA_OK;
}

static int read_yarn_v3(const char *path, const uint8_t *header, LlamaConfig *c, LlamaError *error) {
    c->rope_beta_fast = load_f32(header + BETA_FAST_AT);
    c->rope_beta_slow = load_f32(header + BETA_SLOW_AT);
    c->rope_attention_factor = load_f32(header + ATTENTION_FACTOR_AT);
    c->rope_truncate = load_i32(header + TRUNCATE_AT);
    if (!(c->rope_beta_slow > 0 && c->rope_beta_slow < c->rope_beta_fast && c->rope_beta_fast < INFINITY))
        return fail(error, LLAMA_ERROR_FILE, "%s: rope beta_fast = %g, beta_slow = %g, allowed 0 < slow < fast",
                    path, (double)c->rope_beta_fast, (double)c->rope_beta_slow);
    if (!(c->rope_factor >= 1 && c->rope_attention_factor >= 0 && c->rope_attention_factor < INFINITY))
        return fail(
            error, LLAMA_ERROR_FILE,
            "%s: rope factor = %g, attention factor = %g, allowed with YaRN 1 or more and finite numbers, none "
            "negative",
            path, (double)c->rope_factor, (double)c->rope_attention_factor);
    if (c->rope_truncate != 0 && c->rope_truncate != 1)
        return fail(error, LLAMA_ERROR_FILE, "%s: rope truncate = %d, allowed 0 and 1", path, c->rope_truncate);
    if (c->rope_original_max_seq_len < 1 || !rope_fits(c, (double)c->rope_theta))
        return fail(error, LLAMA_ERROR_FILE,
                    "%s: rope_theta = %g, original_max_seq_len = %d: no pair turns as YaRN needs it", path,
                    (double)c->rope_theta, c->rope_original_max_seq_len);
    return LLAMA_OK;
}

static int read_scaling_v3(const char *path, const uint8_t *header, LlamaConfig *c, LlamaError *error) {
    if (c->rope_scaling == LLAMA_ROPE_LLAMA3) return check_llama3_v3(path, c, error);
    return c->rope_scaling == LLAMA_ROPE_YARN ? read_yarn_v3(path, header, c, error) : LLAMA_OK;
}

#endif
