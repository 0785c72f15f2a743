// info.h: what a model is, for programs and people who look at a file: its tensors and their checksums, the memory
// that a run of it takes, and all of that in a few lines of text.
#ifndef LLAMA_INFO_H
#define LLAMA_INFO_H

#include "../kernels/context.h" // context_place
#include "../weights/model.h"   // LlamaModel, Layer
#include "../text/chat.h"       // llama_chat_template
#include "../text/vocabulary.h" // llama_bos, llama_eos

// ---------------------------------------------------------------------------------------------------------
// Tensors, in the order of the table of v3

static const struct {
    const char *name;
    size_t field; // in Layer
} layer_tensors[] = {
    {"attention_norm", offsetof(Layer, attention_norm)},
    {"wq", offsetof(Layer, wq)},
    {"wk", offsetof(Layer, wk)},
    {"wv", offsetof(Layer, wv)},
    {"wo", offsetof(Layer, wo)},
    {"ffn_norm", offsetof(Layer, ffn_norm)},
    {"w1", offsetof(Layer, w1)},
    {"w3", offsetof(Layer, w3)},
    {"w2", offsetof(Layer, w2)},
};

enum { LAYER_TENSORS = COUNT(layer_tensors) };

int32_t llama_n_tensors(const LlamaModel *m) {
    return m->config.n_layers * LAYER_TENSORS + (m->config.tied ? 2 : 3);
}

// The tensor at an index below llama_n_tensors, its name and its layer.
static const Tensor *tensor_at(const LlamaModel *m, int32_t index, const char **name, int32_t *layer) {
    int32_t of_layers = m->config.n_layers * LAYER_TENSORS, i = index - 1;
    bool in_layer = i >= 0 && i < of_layers;
    *layer = in_layer ? i / LAYER_TENSORS : -1;
    *name = in_layer         ? layer_tensors[i % LAYER_TENSORS].name
            : i < 0          ? "tok_embeddings"
            : i == of_layers ? "norm"
                             : "output";
    if (in_layer)
        return (const Tensor *)((const char *)&m->layers[*layer] + layer_tensors[i % LAYER_TENSORS].field);
    return i < 0 ? &m->tok_embeddings : i == of_layers ? &m->norm : &m->output;
}

static int32_t tensor_type(const Tensor *w) {
    switch (w->type) {
    case ROWS_FP32:
    case TILES_FP32: return LLAMA_FP32;
    case TILES_BF16: return LLAMA_BF16;
    case TILES_INT4: return LLAMA_INT4;
    default: return LLAMA_INT8;
    }
}

LlamaTensor llama_tensor(const LlamaModel *m, int32_t index) {
    if (index < 0 || index >= llama_n_tensors(m)) return (LlamaTensor){0};
    LlamaTensor tensor;
    const Tensor *w = tensor_at(m, index, &tensor.name, &tensor.layer);
    tensor.type = tensor_type(w);
    tensor.rows = w->rows;
    tensor.cols = w->cols;
    tensor.bytes = tensor_bytes(w);
    return tensor;
}

int llama_check_tensor(const LlamaModel *m, int32_t index, LlamaError *error) {
    if (index < 0 || index >= llama_n_tensors(m))
        return fail(error, LLAMA_ERROR_USAGE, "tensor %d, allowed 0 to %d", index, llama_n_tensors(m) - 1);
    if (m->config.version != 3) return LLAMA_OK;
    const char *name;
    int32_t layer;
    const Tensor *w = tensor_at(m, index, &name, &layer);
    uint32_t stored = (uint32_t)load_i32(m->file.data + HEADER_V3 + (uint64_t)index * ENTRY_V3 + 12);
    uint32_t crc = crc32_of(0, w->data, tensor_bytes(w));
    if (crc == stored) return LLAMA_OK;
    char place[32] = "";
    if (layer >= 0) snprintf(place, sizeof place, " of layer %d", layer);
    return fail(error, LLAMA_ERROR_FILE, "%s: checksum of %s%s = %08x, stored is %08x", m->path, name, place, crc,
                stored);
}

int llama_has_tokenizer(const LlamaModel *m) {
    return m->tokenizer.size > 0;
}

const char *llama_tokenizer_kind(const LlamaTokenizer *tokenizer) {
    return tokenizer->kind == KIND_BYTES ? "byte-level BPE" : "sentencepiece BPE";
}

// ---------------------------------------------------------------------------------------------------------
// Memory

int llama_context_measure(const LlamaModel *m, const LlamaContextOptions *options, LlamaMemory *memory,
                          LlamaError *error) {
    LlamaContext ctx = {.model = m, .processors = processors()};
    int code = resolve_options(&ctx, options, error);
    if (code != LLAMA_OK) return code;
    Arena arena = {0};
    context_place(&ctx, &arena);
    memory->context = ctx.options.context;
    memory->weights = 0;
    for (int32_t i = 0; i < llama_n_tensors(m); i++) memory->weights += llama_tensor(m, i).bytes;
    memory->cache = (uint64_t)cache_bytes(&ctx);
    memory->scratch = arena.used - memory->cache;
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// Text

typedef struct {
    char *text;
    size_t room, length; // what does not fit is cut off
} Lines;

__attribute__((format(printf, 2, 3))) static void say(Lines *lines, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(lines->text + lines->length, lines->room - lines->length, format, arguments);
    va_end(arguments);
    lines->length = MIN(lines->length + (size_t)MAX(n, 0), lines->room - 1);
}

static void say_bytes(Lines *lines, uint64_t bytes) {
    static const char *const units[] = {"kB", "MB", "GB"};
    double n = (double)bytes / 1e3;
    size_t unit = 0;
    for (; n >= 1e3 && unit + 1 < COUNT(units); unit++) n /= 1e3;
    say(lines, "%.1f %s", n, units[unit]);
}

static void say_scaling(Lines *lines, const LlamaConfig *c) {
    static const char *const names[] = {"", "linear", "llama3", "yarn"};
    if (c->rope_scaling == LLAMA_ROPE_PLAIN) return;
    say(lines, ", %s scaling: factor %g", names[c->rope_scaling], (double)c->rope_factor);
    if (c->rope_scaling == LLAMA_ROPE_LLAMA3)
        say(lines, ", low %g, high %g", (double)c->rope_low_freq_factor, (double)c->rope_high_freq_factor);
    if (c->rope_scaling == LLAMA_ROPE_YARN)
        say(lines, ", beta_fast %g, beta_slow %g, attention factor %.7g%s", (double)c->rope_beta_fast,
            (double)c->rope_beta_slow, rope_magnitude(c), c->rope_truncate ? "" : ", no whole pairs");
    if (c->rope_scaling != LLAMA_ROPE_LINEAR) say(lines, ", original context %d", c->rope_original_max_seq_len);
}

static void say_config(Lines *lines, const LlamaModel *m) {
    const LlamaConfig *c = &m->config;
    say(lines, "%s: v%d, %s, ", m->path, c->version, llama_type_name(c->weight_type));
    say_bytes(lines, m->file.size);
    say(lines, ", %.1f M parameters\n", (double)llama_parameters(m) / 1e6);
    const struct {
        const char *name;
        int32_t value;
    } fields[] = {
        {"dim", c->dim},
        {"hidden_dim", c->hidden_dim},
        {"n_layers", c->n_layers},
        {"n_heads", c->n_heads},
        {"n_kv_heads", c->n_kv_heads},
        {"head_dim", c->head_dim},
        {"vocab_size", c->vocab_size},
        {"max_seq_len", c->max_seq_len},
    };
    for (size_t i = 0; i < COUNT(fields); i++) say(lines, "%-13s %d\n", fields[i].name, fields[i].value);
    say(lines, "%-13s %s\n", "tied", c->tied ? "yes" : "no");
    say(lines, "%-13s %g\n%-13s theta %g", "norm_eps", (double)c->norm_eps, "rope", (double)c->rope_theta);
    say_scaling(lines, c);
    say(lines, "\n");
}

static void say_tokens(Lines *lines, const LlamaModel *m, const LlamaTokenizer *tokenizer) {
    const LlamaConfig *c = &m->config;
    if (tokenizer)
        say(lines, "%-13s %s: %s, %d tokens, bos %d, eos %d\n", "tokenizer",
            tokenizer->borrowed ? "in the file" : "a file of its own", llama_tokenizer_kind(tokenizer),
            llama_vocab_size(tokenizer), llama_bos(tokenizer), llama_eos(tokenizer));
    else
        say(lines, "%-13s not found\n", "tokenizer");
    say(lines, "%-13s %s\n%-13s", "template", llama_chat_template(c->chat_template)->name, "stop ids");
    for (int32_t i = 0; i < c->n_stops; i++) say(lines, " %d", c->stops[i]);
    say(lines, c->n_stops ? "\n" : " eos\n");
}

// Bytes of the tensors of each type.
static void say_types(Lines *lines, const LlamaModel *m) {
    uint64_t bytes[4] = {0}; // LLAMA_FP32 ...
    for (int32_t i = 0; i < llama_n_tensors(m); i++) {
        LlamaTensor tensor = llama_tensor(m, i);
        bytes[tensor.type] += tensor.bytes;
    }
    say(lines, "%-13s %d", "tensors", llama_n_tensors(m));
    for (int32_t type = 0; type < (int32_t)COUNT(bytes); type++)
        if (bytes[type] > 0) say(lines, ", %s ", llama_type_name(type)), say_bytes(lines, bytes[type]);
    say(lines, "\n");
}

static void say_memory(Lines *lines, const LlamaMemory *memory) {
    say(lines, "%-13s weights ", "memory");
    say_bytes(lines, memory->weights);
    say(lines, ", mapped; cache for %d positions ", memory->context);
    say_bytes(lines, memory->cache);
    say(lines, ", scratch ");
    say_bytes(lines, memory->scratch);
    say(lines, "\n");
}

enum { FEW_BYTES = 64 << 20 }; // that a token reads: below, no other type is felt

// What a token costs, as decoding is as fast as its weights are read, and what it would cost in fewer bits or in
// tiles.
static void say_reads(Lines *lines, const LlamaModel *m) {
    uint64_t reads = llama_token_bytes(m);
    uint32_t width = m->config.weight_type == LLAMA_FP32 ? 4 : m->config.weight_type == LLAMA_BF16 ? 2 : 1;
    say(lines, "%-13s read ", "tokens");
    say_bytes(lines, reads);
    say(lines, " of weights each");
    if (width > 1 && reads > FEW_BYTES) {
        say(lines, "; python -m llama.convert --dtype int8 makes that ");
        say_bytes(lines, reads / width * (TILE_GROUP + 2) / TILE_GROUP);
    } else if (m->config.version == 2 && reads > FEW_BYTES) {
        say(lines, "; python -m llama.convert makes v3 of them, which reads prompts in half the time");
    }
    say(lines, "\n");
}

int llama_info(const LlamaModel *m, const LlamaTokenizer *tokenizer, const LlamaContextOptions *options, char *text,
               size_t room, LlamaError *error) {
    LlamaMemory memory;
    int code = llama_context_measure(m, options, &memory, error);
    if (code != LLAMA_OK) return code;
    Lines lines = {text, room, 0};
    say_config(&lines, m);
    say_tokens(&lines, m, tokenizer);
    say_types(&lines, m);
    say_memory(&lines, &memory);
    say_reads(&lines, m);
    return LLAMA_OK;
}

#endif
