// kernels.h: the table of kernels, the scalar ones, and the choice by what the CPU can do.
//
// The scalar kernels are the specification. kernels_avx2.h, kernels_avx512.h and kernels_neon.h hold the same
// functions in the same order; a kernel of any table computes one output value in one fixed order of operations,
// whatever the number of rows, of threads or of neighbouring values, so results do not depend on how the work is
// cut.
//
// Letters: n rows of activations, r rows of weights, k columns of both.
#ifndef LLAMA_KERNELS_H
#define LLAMA_KERNELS_H

#include "cache.h"            // KEY_BLOCK, cached
#include "passes.h"           // pass_extremes, pass_likelihoods, pass_collect
#include "../weights/tiles.h" // Tensor, Rows

// One query head of one row, on its way through attention.
typedef struct {
    float *out;     // (head_dim) the sum of values, each times exp(score - max)
    const float *q; // (head_dim)
    float *scores;  // room for n of the longest query of the call, rounded up to KEY_BLOCK
    int32_t n;      // positions that it attends to
    float max, sum; // of the scores, and of exp(score - max)
} Query;

enum { MAX_QUERIES = 4 }; // that share keys and values in one call

// out[i * stride + r] = x row i . w row r, for 0 <= i < n and begin <= r < end.
typedef void MatmulKernel(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w, int32_t begin,
                          int32_t end);

// out / sum = softmax(q . keys / sqrt(head_dim)) . values over n positions, for each of 1 to MAX_QUERIES queries.
// keys and values: those of one head in the cache, of which the sequence has these pages.
typedef void AttendKernel(Query *queries, int32_t count, const void *keys, const void *values, const int32_t *pages,
                          int32_t head_dim);

// The outputs of 1 to PROMPT_QUERIES queries of one sequence, whole, where products have units of their own: what
// they read has 16 bits. head_dim: a multiple of PROMPT_STEP. room: PROMPT_ROOM x head_dim floats.
typedef void PromptKernel(const Query *queries, int32_t count, const void *keys, const void *values,
                          const int32_t *pages, int32_t head_dim, float *room);

enum { PROMPT_QUERIES = 192, PROMPT_STEP = 32, PROMPT_ROOM = 320 };

typedef struct {
    const char *name;
    bool (*available)(void);
    MatmulKernel *matmul[N_TYPES];
    // halves (n, and a zero if n is odd) = x (n) in bf16, for products with TILES_BF16; NULL where those take
    // floats
    void (*round)(uint16_t *halves, const float *x, int32_t n);
    // q (n), scales and sums (n / group_size) of x (n): quant.h
    void (*quantise)(int8_t *q, float *scales, int32_t *sums, const float *x, int32_t n, int32_t group_size);
    // out = x / sqrt(mean(x^2) + eps) * weight, all (k)
    void (*rmsnorm)(float *out, const float *x, const float *weight, int32_t k, float eps);
    // h1 = silu(h1) * h3 with silu(h) = h / (1 + exp(-h)), both (n)
    void (*swiglu)(float *h1, const float *h3, int32_t n);
    Store *store[N_KV]; // cache.h
    AttendKernel *attend[N_KV];
    PromptKernel *prompt[N_KV]; // of rows that want no logits; NULL where attend takes those too
    // over the logits of a vocabulary: passes.h
    Extremes (*extremes)(const float *x, int32_t n);
    double (*likelihoods)(float *x, double *mass, int32_t n, float max, float scale);
    int32_t (*collect)(float *out, const float *x, int32_t n, float low, float high);
} Kernels;

// ---------------------------------------------------------------------------------------------------------
// A loop from 0 to a constant, unrolled, so that the arrays it indexes live in registers; and one that stays a
// loop, as what its rounds load would not fit into registers together.
#ifdef __clang__
#define EACH(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < (n); i++)
#define LOOP(i, n) _Pragma("clang loop unroll(disable)") for (int i = 0; i < (n); i++)
#else
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#define LOOP(i, n) _Pragma("GCC unroll 1") for (int i = 0; i < (n); i++)
#endif

// ---------------------------------------------------------------------------------------------------------
// exp, for softmax and silu: 2^i x p(f) with x = i ln 2 + f and |f| <= ln 2 / 2. p is the Taylor polynomial of
// degree 7; error below 2e-7 relative. x is clamped to where the result is a normal number; NaN stays NaN.

#define EXP_MIN -87.0f
#define EXP_MAX 88.0f
#define EXP_LOG2E 1.442695041f
#define EXP_LN2_HIGH 0.693359375f // few bits, so that i x LN2_HIGH is exact
#define EXP_LN2_LOW -2.12194440e-4f

enum { EXP_DEGREE = 7 };
static const float EXP_TERMS[EXP_DEGREE + 1] = {1 / 5040.0f, 1 / 720.0f, 1 / 120.0f, 1 / 24.0f,
                                                1 / 6.0f,    1 / 2.0f,   1,          1};

static inline float exp_scalar(float x) {
    if (x != x) return x;
    x = fminf(fmaxf(x, EXP_MIN), EXP_MAX);
    float i = rintf(x * EXP_LOG2E);
    float f = x - i * EXP_LN2_HIGH - i * EXP_LN2_LOW;
    float p = EXP_TERMS[0];
    for (int t = 1; t <= EXP_DEGREE; t++) p = p * f + EXP_TERMS[t];
    return ldexpf(p, (int)i);
}

// ---------------------------------------------------------------------------------------------------------
// The scalar kernels

static void matmul_fp32_scalar(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w, int32_t begin,
                               int32_t end) {
    for (int32_t i = 0; i < n; i++) {
        const float *values = x->values + (int64_t)i * x->cols;
        for (int32_t r = begin; r < end; r++) {
            const float *row = tensor_row_fp32(w, r);
            float sum = 0;
            for (int32_t k = 0; k < w->cols; k++) sum += row[k] * values[k];
            out[i * stride + r] = sum;
        }
    }
}

static void matmul_int8_scalar(float *out, int64_t stride, const Rows *x, int32_t n, const Tensor *w, int32_t begin,
                               int32_t end) {
    int32_t size = w->group_size;
    for (int32_t i = 0; i < n; i++) {
        const float *x_scales = x->scales + (int64_t)i * x->groups;
        for (int32_t r = begin; r < end; r++) {
            const int8_t *q = tensor_row_int8(w, r), *x_q = x->quants + (int64_t)i * x->cols;
            const uint8_t *scales = tensor_row_scales(w, r);
            float sum = 0;
            for (int32_t g = 0; g < tensor_groups(w); g++, q += size, x_q += size) {
                int32_t dot = 0;
                for (int32_t k = 0; k < size; k++) dot += q[k] * x_q[k];
                sum += (float)dot * (load_f32(scales + 4 * g) * x_scales[g]);
            }
            out[i * stride + r] = sum;
        }
    }
}

static void rmsnorm_scalar(float *out, const float *x, const float *weight, int32_t k, float eps) {
    float sum = 0;
    for (int32_t i = 0; i < k; i++) sum += x[i] * x[i];
    float scale = 1 / sqrtf(sum / (float)k + eps);
    for (int32_t i = 0; i < k; i++) out[i] = weight[i] * (scale * x[i]);
}

static void swiglu_scalar(float *h1, const float *h3, int32_t n) {
    for (int32_t i = 0; i < n; i++) h1[i] = h1[i] / (1 + exp_scalar(-h1[i])) * h3[i];
}

static void attend_one_scalar(Query *query, const void *keys, const void *values, const int32_t *pages,
                              int32_t head_dim, int kv) {
    float scale = 1 / sqrtf((float)head_dim), max = -INFINITY, sum = 0, *scores = query->scores;
    for (int32_t t = 0; t < query->n; t++) {
        int64_t page = cached_page(pages, t, head_dim, kv), at = page + t % KEY_BLOCK;
        float dot = 0;
        for (int32_t d = 0; d < head_dim; d++) dot += query->q[d] * cached(keys, at + d * KEY_BLOCK, kv);
        scores[t] = dot * scale;
        if (kv == LLAMA_KV_INT8) scores[t] *= cached_scales(keys, page, head_dim)[t % KEY_BLOCK];
        max = fmaxf(max, scores[t]);
    }
    for (int32_t t = 0; t < query->n; t++) sum += scores[t] = exp_scalar(scores[t] - max);
    if (kv == LLAMA_KV_INT8) scale_scores(scores, query->n, values, pages, head_dim);
    for (int32_t d = 0; d < head_dim; d++) {
        float dot = 0;
        for (int32_t t = 0; t < query->n; t++)
            dot += scores[t] * cached(values, cached_row(pages, t, head_dim, kv) + d, kv);
        query->out[d] = dot;
    }
    query->max = max;
    query->sum = sum;
}

static void attend_fp32_scalar(Query *queries, int32_t count, const void *keys, const void *values,
                               const int32_t *pages, int32_t head_dim) {
    for (int32_t i = 0; i < count; i++)
        attend_one_scalar(&queries[i], keys, values, pages, head_dim, LLAMA_KV_FP32);
}

static void attend_bf16_scalar(Query *queries, int32_t count, const void *keys, const void *values,
                               const int32_t *pages, int32_t head_dim) {
    for (int32_t i = 0; i < count; i++)
        attend_one_scalar(&queries[i], keys, values, pages, head_dim, LLAMA_KV_BF16);
}

static void attend_fp16_scalar(Query *queries, int32_t count, const void *keys, const void *values,
                               const int32_t *pages, int32_t head_dim) {
    for (int32_t i = 0; i < count; i++)
        attend_one_scalar(&queries[i], keys, values, pages, head_dim, LLAMA_KV_FP16);
}

static void attend_int8_scalar(Query *queries, int32_t count, const void *keys, const void *values,
                               const int32_t *pages, int32_t head_dim) {
    for (int32_t i = 0; i < count; i++)
        attend_one_scalar(&queries[i], keys, values, pages, head_dim, LLAMA_KV_INT8);
}

// Positions that all queries attend to, and those of the one that attends to most.
static int32_t fewest_positions(const Query *queries, int32_t count) {
    int32_t n = queries[0].n;
    for (int32_t i = 1; i < count; i++) n = MIN(n, queries[i].n);
    return n;
}

static int32_t most_positions(const Query *queries, int32_t count) {
    int32_t n = queries[0].n;
    for (int32_t i = 1; i < count; i++) n = MAX(n, queries[i].n);
    return n;
}

static Extremes extremes_scalar(const float *x, int32_t n) {
    return pass_extremes(x, n);
}

static double likelihoods_scalar(float *x, double *mass, int32_t n, float max, float scale) {
    return pass_likelihoods(x, mass, n, max, scale);
}

static int32_t collect_scalar(float *out, const float *x, int32_t n, float low, float high) {
    return pass_collect(out, x, n, low, high);
}

static bool available_scalar(void) {
    return true;
}

static const Kernels kernels_scalar = {
    .name = "scalar",
    .available = available_scalar,
    .matmul = {[ROWS_FP32] = matmul_fp32_scalar,
               [ROWS_INT8] = matmul_int8_scalar,
               [TILES_FP32] = matmul_tiles_floats_scalar,
               [TILES_BF16] = matmul_tiles_floats_scalar,
               [TILES_INT8] = matmul_tiles_scalar,
               [TILES_INT4] = matmul_tiles_scalar},
    .quantise = quantise,
    .rmsnorm = rmsnorm_scalar,
    .swiglu = swiglu_scalar,
    .store = {[LLAMA_KV_FP32] = store_fp32,
              [LLAMA_KV_BF16] = store_bf16,
              [LLAMA_KV_FP16] = store_fp16_scalar,
              [LLAMA_KV_INT8] = store_int8},
    .attend = {[LLAMA_KV_FP32] = attend_fp32_scalar,
               [LLAMA_KV_BF16] = attend_bf16_scalar,
               [LLAMA_KV_FP16] = attend_fp16_scalar,
               [LLAMA_KV_INT8] = attend_int8_scalar},
    .extremes = extremes_scalar,
    .likelihoods = likelihoods_scalar,
    .collect = collect_scalar,
};

// ---------------------------------------------------------------------------------------------------------
// The choice

#if defined(__x86_64__)
#include "kernels_avx2.h"
#include "kernels_avx512.h"
#include "kernels_avx512bf16.h"
// What the compiler knows (gcc 11, clang 12), and the system lets a process use that asks for it.
#if defined(AMX_IN_C) || (defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11))
#define LLAMA_AMX
#include "kernels_amx.h"
#endif
#elif defined(__aarch64__)
#include "kernels_neon.h"
#endif

// From the best to the one that always runs.
static const Kernels *const all_kernels[] = {
#if defined(__x86_64__)
#ifdef LLAMA_AMX
    &kernels_amx,
#endif
    &kernels_avx512bf16, &kernels_avx512, &kernels_avx2,
#elif defined(__aarch64__)
    &kernels_i8mm,
    &kernels_dotprod,
    &kernels_neon,
#endif
    &kernels_scalar,
};

// Whether activations enter a product with weights of this type in fewer bits than they have.
static inline bool kernels_narrow(const Kernels *kernels, int32_t type) {
    return type_is_quantised(type) || (type == TILES_BF16 && kernels->round);
}

// The kernels of that name, or the best that this CPU runs for NULL.
static int kernels_find(const char *name, const Kernels **kernels, LlamaError *error) {
    char names[64] = "";
    for (size_t i = 0; i < COUNT(all_kernels); i++) {
        if (!all_kernels[i]->available()) continue;
        *kernels = all_kernels[i];
        if (!name || strcmp(name, all_kernels[i]->name) == 0) return LLAMA_OK;
        snprintf(names + strlen(names), sizeof names - strlen(names), " %s", all_kernels[i]->name);
    }
    return fail(error, LLAMA_ERROR_USAGE, "kernels = %.32s, this CPU has:%s", name, names);
}

#endif
