// run.c: inference of Llama models in C. Load a checkpoint, run rows of tokens through it, write text.
//
//     cc -O3 -fopenmp run.c -o run -lm
//     ./run stories15M.bin -t 0.8 -i "Once upon a time"
//
// The story is told here: the forward pass, a text being written, the command line. The machinery it calls is in
// llama/csrc/, included below in reading order. The Python extension compiles this file too, with LLAMA_LIBRARY
// defined and main left out; what it may call is llama/csrc/llama.h and program/llama_run.h.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // sched_getaffinity
#endif

#include "llama/csrc/llama.h"              // the public interface: what every function below promises
#include "llama/csrc/program/llama_run.h"  // that of the command line
#include "llama/csrc/base/util.h"          // fail, pages_alloc, mapping_init, seconds
#include "llama/csrc/base/threads.h"       // team_run, barrier_wait, team_range
#include "llama/csrc/base/half.h"          // half_to_float, float_to_half: floats of 16 bits
#include "llama/csrc/weights/quant.h"      // Tensor, Rows: weights and activations, fp32 or int8
#include "llama/csrc/weights/tiles.h"      // int8 and int4 weights in tiles of 16 rows, as v3 files have them
#include "llama/csrc/kernels/cache.h"      // what the KV cache is made of: fp32, bf16, fp16 or int8
#include "llama/csrc/kernels/passes.h"     // pass_max, pass_likelihoods: over all logits of a vocabulary
#include "llama/csrc/kernels/kernels.h"    // Kernels: matmul, rmsnorm, swiglu, attend, for this CPU
#include "llama/csrc/kernels/spans.h"      // attend_spans: attention over long texts, a part at a time
#include "llama/csrc/weights/model.h"      // LlamaModel, Layer: tensors in the mapped file
#include "llama/csrc/weights/rope.h"       // rope_frequency: how far a position turns a pair
#include "llama/csrc/weights/rope_v3.h"    // read_scaling_v3
#include "llama/csrc/weights/guard.h"      // llama_guard: files that shrink while they are mapped
#include "llama/csrc/weights/checkpoint.h" // llama_open: v0, v1, v2 and v3
#include "llama/csrc/weights/adapter.h"    // LlamaAdapter: LoRA beside a model
#include "llama/csrc/kernels/pages.h"      // Pool: which pages of the cache are whose
#include "llama/csrc/kernels/context.h"    // LlamaContext: the cache and the scratch memory of forward
#include "llama/csrc/kernels/sequence.h"   // llama_sequence_copy, llama_sequence_trim
#include "llama/csrc/kernels/attention.h"  // Pass, attend_all: which threads have which heads, rows and positions
#include "llama/csrc/kernels/saved.h"      // llama_sequence_save, llama_sequence_restore
#include "llama/csrc/text/utf8.h"          // utf8_length: where characters end
#include "llama/csrc/text/pieces.h"        // the tokens of a model, and how a piece of text is found among them
#include "llama/csrc/text/split.h"         // text into words, by the patterns of Llama 3 and GPT-2
#include "llama/csrc/text/vocabulary.h"    // LlamaTokenizer: llama_tokenizer_open
#include "llama/csrc/text/merge.h"         // byte pair encoding
#include "llama/csrc/text/specials.h"      // special tokens in a text, and the white space that goes with them
#include "llama/csrc/text/tokenizer.h"     // llama_encode
#include "llama/csrc/text/decode.h"        // llama_token_bytes_of
#include "llama/csrc/text/stream.h"        // LlamaStream: bytes of tokens to whole characters
#include "llama/csrc/sampling/select.h"    // Selection: the most likely tokens, without sorting the vocabulary
#include "llama/csrc/sampling/sampler.h"   // llama_sample
#include "llama/csrc/sampling/score.h"     // llama_score: how likely a text is
#include "llama/csrc/generation/queue.h"   // LlamaGeneration: tokens that wait to be run, how a text stands
#include "llama/csrc/generation/guesses.h" // go_ahead, forget_guesses: tokens that may come next
#include "llama/csrc/weights/pack_group.h" // PackGroup: which scale 32 weights share as int8 or int4
#include "llama/csrc/weights/pack.h"       // llama_pack: floats to tiles, as export.py writes them
#include "llama/csrc/text/chat.h"          // llama_chat_turn
#include "llama/csrc/text/infill.h"        // llama_encode_infill
#include "llama/csrc/program/find.h"       // llama_tokenizer_find
#include "llama/csrc/program/info.h"       // llama_tensor, llama_info
#include "llama/csrc/program/help.h"       // llama_run_help
#include "llama/csrc/program/options.h"    // llama_run_parse
#include "llama/csrc/program/console.h"    // Console: what the host of the command line writes and reads
#include "llama/csrc/program/prompt.h"     // texts of options, files and typed lines
#include "llama/csrc/program/run.h"        // Run: what the options name, opened; write_text, write_info
#include "llama/csrc/program/generate.h"   // texts after a prompt
#include "llama/csrc/program/dialogue.h"   // -m chat
#include "llama/csrc/program/perplexity.h" // --perplexity

// ---------------------------------------------------------------------------------------------------------
// Forward: a pass takes up to B rows through the layers. Every thread of the team runs forward_pass; each step is
// cut into ranges of rows or of output columns, and ends at a barrier where the next one needs all of its results.

static void embed(const Pass *pass, const Team *team) {
    LlamaContext *ctx = pass->ctx;
    Range range = team_range(team, pass->n, 1);
    for (int32_t i = range.begin; i < range.end; i++)
        tensor_row(ctx->x + (int64_t)i * ctx->model->config.dim, &ctx->model->tok_embeddings, pass->rows[i].token);
    barrier_wait(team);
}

// Whether activations enter a product with w in fewer bits than they have.
static bool narrows(const LlamaContext *ctx, const Tensor *w) {
    return kernels_narrow(ctx->kernels, w->type) && !ctx->options.exact;
}

// Brings values [begin, end) of row i of an input into the form that the weights w are multiplied with. A group of
// w begins at begin; one ends at end, or the row does.
static void rows_narrow(const LlamaContext *ctx, const Rows *x, int32_t i, int32_t begin, int32_t end,
                        const Tensor *w) {
    if (!narrows(ctx, w)) return;
    int64_t at = (int64_t)i * x->cols + begin;
    if (w->type == TILES_BF16) {
        ctx->kernels->round(x->halves + at, x->values + at, end - begin);
        return;
    }
    int32_t size = w->group_size, n = (end - begin) / size * size, left = end - begin - n;
    int64_t group = at / size;
    ctx->kernels->quantise(x->quants + at, x->scales + group, x->sums + group, x->values + at, n, size);
    if (left == 0) return;
    float last[TILE_GROUP] = {0}; // only tiles have groups that are longer than what is left of the row
    memcpy(last, x->values + at + n, (size_t)left * sizeof *last);
    group += n / size;
    ctx->kernels->quantise(x->quants + at + n, x->scales + group, x->sums + group, last, size, size);
}

// Rows on their way into a matmul are shared by the team, and so is the work to prepare them. A single one is
// prepared by every thread for itself, in a place of its own: that takes less time than to wait for another.
static Rows input_rows(const Pass *pass, const Team *team, int32_t n) {
    const LlamaContext *ctx = pass->ctx;
    return n > 1 ? ctx->input : rows_from(&ctx->input, ctx->options.batch + team->thread);
}

static Range input_range(const Team *team, int32_t n) {
    return n > 1 ? team_range(team, n, 1) : (Range){0, n};
}

// Row i of the result = rmsnorm(x row from[i]), for the matmul with w. from: (n), NULL for the rows as they stand.
static Rows normalise(const Pass *pass, const Team *team, const Tensor *norm, const Tensor *w, const int32_t *from,
                      int32_t n) {
    LlamaContext *ctx = pass->ctx;
    const LlamaConfig *c = &ctx->model->config;
    Rows input = input_rows(pass, team, n);
    Range range = input_range(team, n);
    for (int32_t i = range.begin; i < range.end; i++) {
        const float *x = ctx->x + (int64_t)(from ? from[i] : i) * c->dim;
        float *out = input.values + (int64_t)i * input.cols;
        ctx->kernels->rmsnorm(out, x, tensor_row_fp32(norm, 0), c->dim, c->norm_eps);
        rows_narrow(ctx, &input, i, 0, c->dim, w);
    }
    if (n > 1) barrier_wait(team);
    return input;
}

// What the heads gave, for the matmul with w.
static Rows heads_output(const Pass *pass, const Team *team, const Tensor *w) {
    Rows input = input_rows(pass, team, pass->n);
    input.values = pass->ctx->input.values; // where attend has put it
    if (!narrows(pass->ctx, w)) return input;
    Range range = input_range(team, pass->n);
    for (int32_t i = range.begin; i < range.end; i++) rows_narrow(pass->ctx, &input, i, 0, w->cols, w);
    if (pass->n > 1) barrier_wait(team);
    return input;
}

// The product with weights that are turned into floats, a few rows at a time.
static void matmul_exact(const LlamaContext *ctx, const Team *team, float *out, int32_t stride, const Rows *x,
                         int32_t n, const Tensor *w, Range range) {
    int64_t cols = MAX(ctx->input.cols, ctx->hidden.cols);
    float *rows = ctx->weights + team->thread * TILE_ROWS * cols;
    for (int32_t r = range.begin; r < range.end; r += TILE_ROWS) {
        Tensor floats = {.type = ROWS_FP32, .rows = MIN(TILE_ROWS, range.end - r), .cols = w->cols, .data = rows};
        for (int32_t i = 0; i < floats.rows; i++) tensor_row(rows + (int64_t)i * w->cols, w, r + i);
        ctx->kernels->matmul[ROWS_FP32](out + r, stride, x, n, &floats, 0, floats.rows);
    }
}

// Columns `range` of out (n, w->rows), with rows `stride` apart, = x (n, w->cols) . w^T
static void matmul(const LlamaContext *ctx, const Team *team, float *out, int32_t stride, const Rows *x, int32_t n,
                   const Tensor *w, Range range) {
    if (kernels_narrow(ctx->kernels, w->type) && ctx->options.exact)
        matmul_exact(ctx, team, out, stride, x, n, w, range);
    else
        ctx->kernels->matmul[w->type](out, stride, x, n, w, range.begin, range.end);
}

// Makes A x of the `count` matrices from w on, which all have x for input: the first half of what the adapter adds.
static void adapt(const Pass *pass, const Team *team, const Rows *x, const Tensor *w, int32_t count) {
    const LlamaContext *ctx = pass->ctx;
    const LlamaAdapter *adapter = ctx->options.adapter;
    if (!adapter) return;
    const Pair *first = adapter_pair(adapter, w), *last = first + count - 1;
    if (last->at + last->a.rows == 0) return; // of none of them
    for (const Pair *pair = first; pair <= last; pair++) {
        Range range = team_range(team, pair->a.rows, 1);
        ctx->kernels->matmul[ROWS_FP32](ctx->adapted + pair->at, adapter->width, x, pass->n, &pair->a, range.begin,
                                        range.end);
    }
    barrier_wait(team);
}

// The matmul of a layer, and the other half: what the adapter made of x comes to it.
static void product(const Pass *pass, const Team *team, float *out, int32_t stride, const Rows *x, const Tensor *w,
                    Range range) {
    const LlamaContext *ctx = pass->ctx;
    const LlamaAdapter *adapter = ctx->options.adapter;
    matmul(ctx, team, out, stride, x, pass->n, w, range);
    for (int32_t i = 0; adapter && i < pass->n; i++) {
        const Pair *pair = adapter_pair(adapter, w);
        const float *adapted = ctx->adapted + (int64_t)i * adapter->width + pair->at;
        pair_add(pair, adapter->scale, adapted, out + (int64_t)i * stride, w->rows, range.begin, range.end);
    }
}

// x (n, dim) += y (n, hidden or heads) . w^T
static void add_matmul(const Pass *pass, const Team *team, const Rows *y, const Tensor *w) {
    LlamaContext *ctx = pass->ctx;
    Range range = team_range(team, w->rows, TILE_ROWS);
    adapt(pass, team, y, w, 1);
    product(pass, team, ctx->delta, w->rows, y, w, range);
    for (int32_t i = 0; i < pass->n; i++) {
        float *x = ctx->x + (int64_t)i * w->rows;
        const float *delta = ctx->delta + (int64_t)i * w->rows;
        for (int32_t r = range.begin; r < range.end; r++) x[r] += delta[r];
    }
    barrier_wait(team);
}

// Rotates the pairs (2 j, 2 j + 1) of a head by the angles of a position. The difference is written as a sum, as
// gcc fuses a difference beside a sum (vfmaddsub), and so rounds it otherwise, even with -ffp-contract=off.
static void rotate(float *head, const float *rope, int32_t head_dim) {
    for (int32_t j = 0; j < head_dim; j += 2) {
        float a = head[j], b = head[j + 1], cosine = rope[j], sine = rope[j + 1];
        head[j] = a * cosine + b * -sine;
        head[j + 1] = a * sine + b * cosine;
    }
}

// Rotates the queries and keys of one row and head group and puts keys and values into the cache.
static void cache_head(const Pass *pass, int32_t layer, int32_t i, int32_t head) {
    LlamaContext *ctx = pass->ctx;
    const LlamaConfig *c = &ctx->model->config;
    const LlamaRow *row = &pass->rows[i];
    const float *rope = ctx->rope + (int64_t)row->position * c->head_dim;
    int32_t share = c->n_heads / c->n_kv_heads;
    float *q = ctx->q + ((int64_t)i * c->n_heads + (int64_t)head * share) * c->head_dim;
    for (int32_t h = 0; h < share; h++) rotate(q + (int64_t)h * c->head_dim, rope, c->head_dim);
    int64_t at = ((int64_t)i * c->n_kv_heads + head) * c->head_dim;
    rotate(ctx->k + at, rope, c->head_dim);
    const int32_t *pages = pool_table(&ctx->pool, row->sequence);
    void *keys = cache_plane(ctx, ctx->keys, layer, head), *values = cache_plane(ctx, ctx->values, layer, head);
    int32_t kv = ctx->options.kv, place = row->position % KEY_BLOCK;
    int64_t page = cached_page(pages, row->position, c->head_dim, kv);
    float *key_scale = scale_of(keys, page, place, c->head_dim, kv);
    float *value_scale = scale_of(values, page, place, c->head_dim, kv);
    Store *store = ctx->kernels->store[kv];
    store(keys, page + place, KEY_BLOCK, key_scale, ctx->k + at, c->head_dim);
    store(values, page + (int64_t)place * c->head_dim, 1, value_scale, ctx->v + at, c->head_dim);
}

// out (n, w->rows) = x . w^T, where `rows` rows of w belong to a kv head.
static void project(const Pass *pass, const Team *team, const Deal *deal, float *out, const Rows *x,
                    const Tensor *w, int32_t rows) {
    Range own = {deal->heads.begin * rows, deal->heads.end * rows};
    product(pass, team, out, w->rows, x, w, deal->own ? own : team_range(team, w->rows, TILE_ROWS));
}

static void cache_all(const Pass *pass, const Deal *deal, int32_t layer) {
    int32_t heads = deal->heads.end - deal->heads.begin;
    for (int32_t i = deal->first; i < pass->n * heads; i += deal->stride)
        cache_head(pass, layer, i / heads, deal->heads.begin + i % heads);
}

// x += wo . heads(rope(wq . norm(x)), rope(wk . norm(x)), wv . norm(x))
static void attention(const Pass *pass, const Team *team, int32_t layer) {
    LlamaContext *ctx = pass->ctx;
    const LlamaConfig *c = &ctx->model->config;
    const Layer *w = &ctx->model->layers[layer];
    Deal deal = deal_heads(c, team);
    Rows x = normalise(pass, team, &w->attention_norm, &w->wq, NULL, pass->n);
    adapt(pass, team, &x, &w->wq, 3); // wq, wk, wv
    project(pass, team, &deal, ctx->q, &x, &w->wq, c->n_heads / c->n_kv_heads * c->head_dim);
    project(pass, team, &deal, ctx->k, &x, &w->wk, c->head_dim);
    project(pass, team, &deal, ctx->v, &x, &w->wv, c->head_dim);
    if (!deal.own || pass->n > 1) barrier_wait(team); // shared rows: attend puts its output in the place of x
    cache_all(pass, &deal, layer);
    if (!deal.own) barrier_wait(team);
    attend_all(pass, team, &deal, layer);
    barrier_wait(team);
    Rows heads = heads_output(pass, team, &w->wo);
    add_matmul(pass, team, &heads, &w->wo);
}

// This thread's rows of w1 and w3: whole groups of w2's columns, so that it can quantise what it has computed.
static Range hidden_range(const Team *team, const Tensor *w2) {
    return team_range(team, w2->cols, type_is_quantised(w2->type) ? w2->group_size : TILE_ROWS);
}

// x += w2 . (silu(w1 . norm(x)) * (w3 . norm(x)))
static void feed_forward(const Pass *pass, const Team *team, int32_t layer) {
    LlamaContext *ctx = pass->ctx;
    const Layer *w = &ctx->model->layers[layer];
    Rows x = normalise(pass, team, &w->ffn_norm, &w->w1, NULL, pass->n);
    adapt(pass, team, &x, &w->w1, 2); // w1, w3
    int32_t stride = ctx->hidden.cols;
    Range range = hidden_range(team, &w->w2);
    product(pass, team, ctx->hidden.values, stride, &x, &w->w1, range);
    product(pass, team, ctx->gate, stride, &x, &w->w3, range);
    for (int32_t i = 0; i < pass->n; i++) {
        int64_t at = (int64_t)i * stride + range.begin;
        ctx->kernels->swiglu(ctx->hidden.values + at, ctx->gate + at, range.end - range.begin);
        rows_narrow(ctx, &ctx->hidden, i, range.begin, range.end, &w->w2);
    }
    barrier_wait(team);
    add_matmul(pass, team, &ctx->hidden, &w->w2);
}

// Writes the hidden states that rows want: what the classifier is multiplied with, in fp32 whatever its type.
static void show(const Pass *pass, const Team *team) {
    const LlamaContext *ctx = pass->ctx;
    const LlamaConfig *c = &ctx->model->config;
    Range range = team_range(team, pass->n_shown, 1);
    for (int32_t i = range.begin; i < range.end; i++)
        ctx->kernels->rmsnorm(pass->hidden + (int64_t)i * c->dim, ctx->x + (int64_t)ctx->shown[i] * c->dim,
                              tensor_row_fp32(&ctx->model->norm, 0), c->dim, c->norm_eps);
}

static void forward_pass(void *job, const Team *team) {
    const Pass *pass = job;
    LlamaContext *ctx = pass->ctx;
    const LlamaModel *m = ctx->model;
    embed(pass, team);
    for (int32_t layer = 0; layer < m->config.n_layers; layer++) {
        attention(pass, team, layer);
        feed_forward(pass, team, layer);
    }
    show(pass, team);
    if (pass->n_wanted == 0) return;
    Rows x = normalise(pass, team, &m->norm, &m->output, ctx->wanted, pass->n_wanted);
    Range range = team_range(team, m->output.rows, TILE_ROWS);
    matmul(ctx, team, pass->logits, m->output.rows, &x, pass->n_wanted, &m->output, range);
}

static int check_row(const LlamaContext *ctx, const LlamaRow *row, LlamaError *error) {
    const struct {
        const char *name;
        int32_t value, end;
    } fields[] = {
        {"token", row->token, ctx->model->config.vocab_size},
        {"sequence", row->sequence, ctx->options.sequences},
        {"position", row->position, ctx->options.context},
    };
    for (size_t i = 0; i < COUNT(fields); i++) {
        if (fields[i].value < 0 || fields[i].value >= fields[i].end)
            return fail(error, LLAMA_ERROR_USAGE, "%s = %d, allowed 0 to %d", fields[i].name, fields[i].value,
                        fields[i].end - 1);
    }
    if (row->position > ctx->lengths[row->sequence])
        return fail(error, LLAMA_ERROR_USAGE, "position = %d, sequence %d holds only %d", row->position,
                    row->sequence, ctx->lengths[row->sequence]);
    return LLAMA_OK;
}

// Whether the row may have the outputs that it wants.
static int check_wants(const Pass *pass, const LlamaRow *row, LlamaError *error) {
    if (row->wants_logits && !pass->logits)
        return fail(error, LLAMA_ERROR_USAGE, "logits = NULL, but a row wants them");
    if (row->wants_hidden && !pass->hidden)
        return fail(error, LLAMA_ERROR_USAGE, "hidden = NULL, but a row wants it");
    return LLAMA_OK;
}

// Takes as many of n rows into the pass as go through the layers together: at most B, and a sequence may not go
// back to a position that it has in the same pass.
static int pass_take_rows(Pass *pass, int32_t n, LlamaError *error) {
    LlamaContext *ctx = pass->ctx;
    ctx->pass++;
    for (pass->n = pass->n_wanted = pass->n_shown = 0; pass->n < MIN(n, ctx->options.batch); pass->n++) {
        const LlamaRow *row = &pass->rows[pass->n];
        int code = check_row(ctx, row, error);
        if (code == LLAMA_OK) code = check_wants(pass, row, error);
        if (code != LLAMA_OK) return code;
        bool back = row->position < ctx->lengths[row->sequence];
        if (back && ctx->pass_of[row->sequence] == ctx->pass) break;
        ctx->pass_of[row->sequence] = ctx->pass;
        ctx->lengths[row->sequence] = row->position + 1;
        if (row->wants_logits) ctx->wanted[pass->n_wanted++] = pass->n;
        if (row->wants_hidden) ctx->shown[pass->n_shown++] = pass->n;
    }
    return LLAMA_OK;
}

// Finds a page for each row, and gives back those of what sequences forget. After an error all are as before.
static int pass_take(Pass *pass, int32_t n, LlamaError *error) {
    LlamaContext *ctx = pass->ctx;
    size_t bytes = (size_t)ctx->options.sequences * sizeof *ctx->before;
    memcpy(ctx->before, ctx->lengths, bytes);
    int code = pass_take_rows(pass, n, error);
    int32_t placed = 0;
    for (; placed < pass->n && code == LLAMA_OK; placed++)
        code = sequence_place(ctx, pass->rows[placed].sequence, pass->rows[placed].position, error);
    if (code != LLAMA_OK) memcpy(ctx->lengths, ctx->before, bytes);
    for (int32_t i = 0; i < placed; i++) sequence_fit(ctx, pass->rows[i].sequence);
    return code;
}

static void run_pass(Pass *pass) {
    LlamaContext *ctx = pass->ctx;
    int threads = alone_or(&ctx->alone, ctx->options.threads);
    double start = seconds(), waited = team_run(threads, ctx->processors, forward_pass, pass);
    if (threads > 1) alone_note(&ctx->alone, seconds() - start, waited);
}

static bool cancelled(const LlamaContext *ctx) {
    return ctx->cancel && __atomic_load_n(ctx->cancel, __ATOMIC_RELAXED) != 0;
}

int llama_forward_hidden(LlamaContext *ctx, const LlamaRow *rows, int32_t n, float *logits, float *hidden,
                         LlamaError *error) {
    const LlamaConfig *c = &ctx->model->config;
    Pass pass = {.ctx = ctx, .rows = rows, .logits = logits, .hidden = hidden};
    for (; n > 0; n -= pass.n, pass.rows += pass.n) {
        if (cancelled(ctx)) return fail(error, LLAMA_ERROR_CANCELLED, "cancelled");
        int code = pass_take(&pass, n, error);
        if (code != LLAMA_OK) return code;
        run_pass(&pass);
        if (logits) pass.logits += (int64_t)pass.n_wanted * c->vocab_size;
        if (hidden) pass.hidden += (int64_t)pass.n_shown * c->dim;
    }
    return LLAMA_OK;
}

int llama_forward(LlamaContext *ctx, const LlamaRow *rows, int32_t n, float *logits, LlamaError *error) {
    return llama_forward_hidden(ctx, rows, n, logits, NULL, error);
}

// ---------------------------------------------------------------------------------------------------------
// Generation: tokens wait in a queue until they are run; the logits of the last one give the next token. A step
// takes rows of many generations through one forward, then draws for all whose queue is empty.

// Whether a token ends the text: EOS, BOS of the next one, or what the model's file says.
static bool ends_text(const LlamaGeneration *g, int32_t token) {
    const LlamaConfig *c = &g->ctx->model->config;
    bool ends = token == llama_eos(g->tokenizer) || token == llama_bos(g->tokenizer);
    for (int32_t i = 0; i < c->n_stops; i++) ends |= token == c->stops[i];
    return ends;
}

// Draws a token from the logits. raw: (vocab_size) scratch, for their log-probabilities before anything is done to
// them.
static int draw(LlamaGeneration *g, LlamaPiece *piece, float *raw, LlamaError *error) {
    int32_t vocab_size = g->ctx->model->config.vocab_size;
    if (g->n_top >= 0) memcpy(raw, g->logits, (size_t)vocab_size * sizeof *raw);
    int code = llama_sample(g->sampler, g->logits, &piece->token, error);
    if (code == LLAMA_OK && g->n_top >= 0) {
        double logprob = 0;
        piece->top = g->top;
        piece->n_top = MIN(g->n_top, vocab_size);
        code = llama_logprobs(g->ctx, raw, piece->token, &logprob, piece->top, piece->n_top, error);
        piece->logprob = (float)logprob;
    }
    if (code == LLAMA_ERROR_FILE) {
        LlamaError why = *error;
        fail(error, code, "%s: %s", g->ctx->model->path, why.text);
    }
    return code == LLAMA_OK ? llama_sampler_accept(g->sampler, piece->token, 1, error) : code;
}

// Takes note of a token drawn: the queue is empty, time has passed, and a guess was right or none is left.
static void note_token(LlamaGeneration *g, int32_t token) {
    if (g->ahead > 0 && token != g->guesses[g->n_guessed - g->ahead]) g->ahead = 0;
    double now = seconds();
    if (g->stats.generated_tokens++ == 0) g->stats.prompt_seconds = (g->first = now) - g->start;
    g->stats.generate_seconds = now - g->first;
    g->n_queue = g->next = 0;
    if (ends_text(g, token)) g->finish = LLAMA_STOP_TOKEN;
}

// Turns the token drawn into text and decides whether the text goes on.
static int write_token(LlamaGeneration *g, LlamaPiece *piece, LlamaError *error) {
    size_t length;
    int stopped;
    const char *bytes = llama_token_bytes_of(g->tokenizer, g->previous, piece->token, &length);
    int code = llama_stream_push(g->stream, bytes, length, &piece->text, &piece->length, &stopped, error);
    queue_push(g, piece->token);
    if (stopped)
        piece->finish = g->finish = LLAMA_STOP_STRING;
    else if (g->position == g->limit)
        g->finish = LLAMA_STOP_LENGTH; // the next piece is the last
    return code;
}

// The piece of a generation after the rows of a step have run: nothing while its prompt is read.
static int write_piece(LlamaGeneration *g, LlamaPiece *piece, float *raw, LlamaError *error) {
    if (g->finish == LLAMA_RUNNING) {
        if (g->next < g->n_queue) return LLAMA_OK;
        int code = draw(g, piece, raw, error);
        if (code != LLAMA_OK) return code;
        note_token(g, piece->token);
        if (g->finish == LLAMA_RUNNING) return write_token(g, piece, error);
    }
    piece->finish = g->finish;
    return llama_stream_flush(g->stream, &piece->text, &piece->length, error);
}

typedef struct {
    LlamaGeneration *const *generations; // (n)
    LlamaPiece *pieces;                  // (n)
    int32_t n;
} Step;

// Every thread takes some of the generations. One that fails ends, and the others go on.
static void write_pieces(void *job, const Team *team) {
    const Step *step = job;
    for (int32_t i = team->thread; i < step->n; i += team->threads) {
        LlamaGeneration *g = step->generations[i];
        LlamaPiece *piece = &step->pieces[i];
        float *raw = g->ctx->raw + (int64_t)team->thread * g->ctx->model->config.vocab_size;
        *piece = (LlamaPiece){.text = "", .token = -1};
        if (g->finish != LLAMA_STOP_ERROR && write_piece(g, piece, raw, &g->error) != LLAMA_OK) {
            *piece = (LlamaPiece){.text = "", .token = -1};
            g->finish = LLAMA_STOP_ERROR;
        }
        if (g->finish == LLAMA_STOP_ERROR) {
            piece->finish = LLAMA_STOP_ERROR;
            piece->error = &g->error;
        }
    }
}

// Whether the generations go together: of one context, each with a sequence of its own.
static int check_step(LlamaGeneration *const *generations, int32_t n, LlamaError *error) {
    LlamaContext *ctx = generations[0]->ctx;
    ctx->pass++; // marks the sequences of this step
    for (int32_t i = 0; i < n; i++) {
        int32_t sequence = generations[i]->sequence;
        if (generations[i]->ctx != ctx)
            return fail(error, LLAMA_ERROR_USAGE, "generation %d is of another context than the first", i);
        if (ctx->pass_of[sequence] == ctx->pass)
            return fail(error, LLAMA_ERROR_USAGE, "generation %d: another one has its sequence %d", i, sequence);
        ctx->pass_of[sequence] = ctx->pass;
    }
    return LLAMA_OK;
}

// How many tokens a generation has waiting; none when its text has ended.
static int32_t waiting(const LlamaGeneration *g) {
    return g->finish == LLAMA_RUNNING ? g->n_queue - g->next : 0;
}

// Says which rows run: the newest token of every text, and of prompts, in their order, as many as `prefill` allows.
// Behind a newest token its guesses, as far as there is room for their logits and before the limit.
static void plan_step(LlamaGeneration *const *generations, int32_t n, int32_t prefill) {
    int32_t single = 0, guesses = LLAMA_MAX_GUESSES;
    for (int32_t i = 0; i < n; i++) single += waiting(generations[i]) == 1;
    if (prefill == 0) prefill = MAX(1, generations[0]->ctx->options.batch - single);
    for (int32_t i = 0; i < n; i++) {
        LlamaGeneration *g = generations[i];
        g->running = waiting(g) == 1 ? 1 : MIN(waiting(g), prefill);
        if (waiting(g) > 1) prefill -= g->running;
        g->n_guessed = waiting(g) == 1 ? MIN(MIN(g->n_guesses, guesses), g->limit - 1 - g->position) : 0;
        guesses -= g->n_guessed;
    }
}

// Runs the rows of the plan. The last one of a queue has its logits computed, and so have guesses.
static int run_step(LlamaContext *ctx, LlamaGeneration *const *generations, int32_t n, LlamaError *error) {
    int32_t n_rows = 0;
    float *logits = ctx->logits;
    for (int32_t i = 0; i < n; i++) {
        LlamaGeneration *g = generations[i];
        if (g->start == 0) g->start = seconds();
        if (g->running == 0) continue;
        memcpy(ctx->rows + n_rows, g->queue + g->next, (size_t)g->running * sizeof *g->queue);
        n_rows += g->running;
        if (g->running < waiting(g)) continue;
        LlamaRow *last = &ctx->rows[n_rows - 1];
        last->wants_logits = 1;
        for (int32_t j = 0; j < g->n_guessed; j++, n_rows++)
            ctx->rows[n_rows] = (LlamaRow){g->guesses[j], last->position + 1 + j, g->sequence, .wants_logits = 1};
        g->logits = logits;
        logits += (int64_t)(1 + g->n_guessed) * ctx->model->config.vocab_size;
    }
    ctx->forward++;
    int code = llama_forward(ctx, ctx->rows, n_rows, ctx->logits, error);
    if (code != LLAMA_OK) return code;
    for (int32_t i = 0; i < n; i++) {
        LlamaGeneration *g = generations[i];
        g->position += g->running;
        g->next += g->running;
        g->ahead = g->n_guessed;
        g->n_guesses = 0;
        g->forward = ctx->forward;
    }
    return LLAMA_OK;
}

// A forward of all generations. Guesses are left out where the cache has no room for them.
static int plan_and_run(LlamaContext *ctx, LlamaGeneration *const *generations, int32_t n, int32_t prefill,
                        LlamaError *error) {
    plan_step(generations, n, prefill);
    int code = run_step(ctx, generations, n, error);
    if (code != LLAMA_ERROR_RESOURCE) return code;
    int32_t guesses = 0;
    for (int32_t i = 0; i < n; i++) {
        guesses += generations[i]->n_guesses;
        generations[i]->n_guesses = 0;
    }
    if (guesses == 0) return code;
    plan_step(generations, n, prefill);
    return run_step(ctx, generations, n, error);
}

int llama_generation_step(LlamaGeneration *const *generations, int32_t n, int32_t prefill, LlamaPiece *pieces,
                          LlamaError *error) {
    if (n == 0) return LLAMA_OK;
    LlamaContext *ctx = generations[0]->ctx;
    if (prefill < 0 || prefill > ctx->options.batch)
        return fail(error, LLAMA_ERROR_USAGE, "prefill = %d, allowed 0 to %d, the batch", prefill,
                    ctx->options.batch);
    int code = check_step(generations, n, error);
    if (code != LLAMA_OK) return code;
    if (!go_ahead(generations, n)) code = plan_and_run(ctx, generations, n, prefill, error);
    if (code != LLAMA_OK) return code;
    Step step = {generations, pieces, n};
    // all threads or one: OpenMP makes a team of another size anew
    team_run(n > 1 ? alone_or(&ctx->alone, ctx->options.threads) : 1, ctx->processors, write_pieces, &step);
    return forget_guesses(ctx, generations, n, error);
}

int llama_generation_next(LlamaGeneration *g, LlamaPiece *piece, LlamaError *error) {
    int code = llama_generation_step(&g, 1, 0, piece, error);
    if (code != LLAMA_OK || !piece->error) return code;
    if (error) *error = *piece->error;
    return piece->error->code;
}

// ---------------------------------------------------------------------------------------------------------
// Command line: one of the things that its options name. ./run and python -m llama.run are hosts of it.

static int start(Run *run, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    if (o->help) return console_write(&run->console, run_help, strlen(run_help), error);
    if (!o->model) return fail(error, LLAMA_ERROR_USAGE, "no model is given");
    if (o->info) return write_info(run, error);
    int code = run_open(run, error);
    if (code != LLAMA_OK) return code;
    if (o->perplexity) return perplexity(run, error);
    return o->chat ? chat(run, error) : generate(run, error);
}

int llama_run(const LlamaRunOptions *options, const LlamaHost *host, LlamaError *error) {
    Run run = {.options = options};
    console_init(&run.console, host);
    int code = start(&run, error);
    run_close(&run);
    return code;
}

#ifndef LLAMA_LIBRARY

#include <signal.h> // SIGPIPE

// Names the model that ships where none is given. It lies in the folder of the program, which is that of the
// checkout it was built in. The caller frees its path.
static int find_shipped(const char *program, LlamaRunOptions *options, char **path, LlamaError *error) {
    static const char name[] = "llama/models/stories.bin";
    if (options->model) return LLAMA_OK;
    const char *slash = strrchr(program, '/');
    size_t folder = slash ? (size_t)(slash - program) + 1 : 0;
    *path = malloc(folder + sizeof name);
    if (!*path) return fail_memory(error, folder + sizeof name);
    memcpy(*path, program, folder);
    memcpy(*path + folder, name, sizeof name);
    options->model = *path;
    return LLAMA_OK;
}

// What only a host that converts can do.
static int refuse_dtype(const LlamaRunOptions *options, LlamaError *error) {
    if (options->dtype < 0) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "--dtype: a model runs here as it is; python -m llama.run converts it");
}

int main(int argc, char **argv) {
    LlamaRunOptions options;
    LlamaError error = {0};
    char *shipped = NULL;
    signal(SIGPIPE, SIG_IGN); // a closed pipe is an error of standard output
    int code = llama_run_parse(argc, argv, &options, &error);
    if (code == LLAMA_OK && !options.help) code = refuse_dtype(&options, &error);
    if (code == LLAMA_OK) code = find_shipped(argv[0], &options, &shipped, &error);
    if (code == LLAMA_OK) code = llama_run(&options, NULL, &error);
    if (code != LLAMA_OK && code != LLAMA_ERROR_CLOSED) fprintf(stderr, "error: %s\n", error.text);
    llama_run_options_free(&options);
    free(shipped);
    return code;
}

#endif
