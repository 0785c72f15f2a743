// options.h: the options of ./run and of python -m llama.run, which --help lists (help.h).
#ifndef LLAMA_OPTIONS_H
#define LLAMA_OPTIONS_H

#include "../kernels/cache.h" // llama_kv_name
#include "llama_run.h"        // LlamaRunOptions

#include <math.h> // isfinite

typedef enum { TEXT, TEXTS, INT, SEED, FLOAT, ON, OFF, MODE, KV, TEMPLATE, DTYPE } OptionKind;

typedef struct {
    const char *letter, *name; // -t, --temperature; letter "" for none
    OptionKind kind;
    size_t field;    // in LlamaRunOptions
    double min, max; // of numbers
} Option;

#define FIELD(name) offsetof(LlamaRunOptions, name)

static const Option run_options[] = {
    {"-i", "--prompt", TEXT, FIELD(prompt), 0, 0},
    {"-f", "--prompt-file", TEXT, FIELD(prompt_file), 0, 0},
    {"-e", "--escape", ON, FIELD(escape), 0, 0},
    {"-n", "--steps", INT, FIELD(steps), 0, INT32_MAX},
    {"", "--samples", INT, FIELD(samples), 1, INT32_MAX},
    {"", "--stop", TEXTS, FIELD(stops), 0, 0},
    {"", "--echo", ON, FIELD(echo), 0, 0},
    {"", "--no-echo", OFF, FIELD(echo), 0, 0},
    {"-t", "--temperature", FLOAT, FIELD(sampling.temperature), 0, 1e9},
    {"-p", "--top-p", FLOAT, FIELD(sampling.top_p), 0, 1},
    {"", "--top-k", INT, FIELD(sampling.top_k), 0, INT32_MAX},
    {"", "--min-p", FLOAT, FIELD(sampling.min_p), 0, 1},
    {"", "--repeat-penalty", FLOAT, FIELD(sampling.repeat_penalty), 0.001, 1000},
    {"", "--presence-penalty", FLOAT, FIELD(sampling.presence_penalty), -1000, 1000},
    {"", "--frequency-penalty", FLOAT, FIELD(sampling.frequency_penalty), -1000, 1000},
    {"-s", "--seed", SEED, FIELD(sampling.seed), 0, 0},
    {"-m", "--mode", MODE, FIELD(chat), 0, 0},
    {"-y", "--system", TEXT, FIELD(system), 0, 0},
    {"", "--template", TEMPLATE, FIELD(template_kind), 0, 0},
    {"-z", "--tokenizer", TEXT, FIELD(tokenizer), 0, 0},
    {"", "--lora", TEXT, FIELD(lora), 0, 0},
    {"-c", "--context", INT, FIELD(context), 1, INT32_MAX},
    {"", "--kv", KV, FIELD(kv), 0, 0},
    {"-j", "--threads", INT, FIELD(threads), 1, 1024},
    {"", "--exact", ON, FIELD(exact), 0, 0},
    {"", "--rope-theta", FLOAT, FIELD(rope_theta), 1, 1e9},
    {"", "--dtype", DTYPE, FIELD(dtype), 0, 0},
    {"", "--no-cache", OFF, FIELD(cache), 0, 0},
    {"", "--stats", ON, FIELD(stats), 0, 0},
    {"", "--info", ON, FIELD(info), 0, 0},
    {"", "--perplexity", TEXT, FIELD(perplexity), 0, 0},
    {"-h", "--help", ON, FIELD(help), 0, 0},
};

static const LlamaRunOptions run_defaults = {
    .steps = -1,
    .samples = 1,
    .echo = 1,
    .dtype = -1,
    .cache = 1,
    .sampling = {.temperature = 1, .top_p = 0.9f, .repeat_penalty = 1},
};

static int set_number(const Option *option, const char *value, void *field, LlamaError *error) {
    char *end;
    double number = strtod(value, &end);
    bool whole = option->kind == FLOAT || number == rint(number);
    if (end == value || *end || !isfinite(number) || !whole || number < option->min || number > option->max)
        return fail(error, LLAMA_ERROR_USAGE, "%s = %.64s, allowed %s from %.10g to %.10g", option->name, value,
                    option->kind == FLOAT ? "numbers" : "whole numbers", option->min, option->max);
    if (option->kind == FLOAT)
        *(float *)field = (float)number;
    else
        *(int32_t *)field = (int32_t)number;
    return LLAMA_OK;
}

static int set_seed(const char *value, uint64_t *seed, LlamaError *error) {
    char *end;
    errno = 0;
    *seed = strtoull(value, &end, 10);
    if (value[0] >= '0' && value[0] <= '9' && *end == 0 && errno == 0) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "--seed = %.64s, allowed whole numbers from 0 to %llu", value,
                (unsigned long long)UINT64_MAX);
}

static int set_kv(const char *value, int32_t *kv, LlamaError *error) {
    for (*kv = 0; *kv < N_KV; ++*kv)
        if (strcmp(value, llama_kv_name(*kv)) == 0) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "--kv = %.64s, allowed fp32, bf16, fp16 and int8", value);
}

static int set_dtype(const char *value, int32_t *dtype, LlamaError *error) {
    for (*dtype = LLAMA_FP32; *dtype <= LLAMA_INT4; ++*dtype)
        if (strcmp(value, llama_type_name(*dtype)) == 0) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "--dtype = %.64s, allowed int8, int4, bf16 and fp32", value);
}

static int set_template(const char *value, int32_t *kind, LlamaError *error) {
    const LlamaChatTemplate *t;
    for (*kind = 0; (t = llama_chat_template(*kind)); ++*kind)
        if (t->begin && strcmp(value, t->name) == 0) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE,
                "--template = %.64s, allowed llama2, llama3, chatml, zephyr, mistral and plain", value);
}

static int set_option(const Option *option, LlamaRunOptions *options, const char *value, LlamaError *error) {
    void *field = (char *)options + option->field;
    switch (option->kind) {
    case TEXT: *(const char **)field = value; return LLAMA_OK;
    case TEXTS: options->stops[options->n_stops++] = value; return LLAMA_OK;
    case INT:
    case FLOAT: return set_number(option, value, field, error);
    case SEED: return set_seed(value, field, error);
    case KV: return set_kv(value, field, error);
    case TEMPLATE: return set_template(value, field, error);
    case DTYPE: return set_dtype(value, field, error);
    case ON: *(int32_t *)field = 1; return LLAMA_OK;
    case OFF: *(int32_t *)field = 0; return LLAMA_OK;
    case MODE: *(int32_t *)field = strcmp(value, "chat") == 0;
    }
    if (strcmp(value, "chat") == 0 || strcmp(value, "generate") == 0) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "--mode = %.64s, allowed generate and chat", value);
}

// The option of an argument that begins with a dash; `value` is what stands behind a = sign, NULL for none.
static const Option *find_option(const char *argument, const char **value) {
    size_t length = strcspn(argument, "=");
    *value = argument[length] ? argument + length + 1 : NULL;
    for (size_t i = 0; i < COUNT(run_options); i++) {
        const Option *option = &run_options[i];
        bool is_name = strlen(option->name) == length && memcmp(argument, option->name, length) == 0;
        if (is_name || (!*value && strcmp(argument, option->letter) == 0)) return option;
    }
    return NULL;
}

void llama_run_options_free(LlamaRunOptions *options) {
    free(options->stops);
    options->stops = NULL;
}

int llama_run_parse(int argc, char **argv, LlamaRunOptions *options, LlamaError *error) {
    *options = run_defaults;
    options->stops = calloc((size_t)argc + 1, sizeof *options->stops);
    if (!options->stops) return fail_memory(error, (uint64_t)argc * sizeof *options->stops);
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') {
            if (!*argv[i]) return fail(error, LLAMA_ERROR_USAGE, "the name of the model is empty");
            if (options->model)
                return fail(error, LLAMA_ERROR_USAGE, "two models are given: %.256s and %.256s", options->model,
                            argv[i]);
            options->model = argv[i];
            continue;
        }
        const char *value;
        const Option *option = find_option(argv[i], &value);
        if (!option) return fail(error, LLAMA_ERROR_USAGE, "unknown option %.64s, --help lists them", argv[i]);
        bool takes_value = option->kind != ON && option->kind != OFF;
        if (!takes_value && value) return fail(error, LLAMA_ERROR_USAGE, "%s takes no value", option->name);
        if (takes_value && !value && ++i < argc) value = argv[i];
        if (takes_value && !value) return fail(error, LLAMA_ERROR_USAGE, "%s needs a value", option->name);
        int code = set_option(option, options, value, error);
        if (code != LLAMA_OK) return code;
    }
    if (options->prompt && options->prompt_file)
        return fail(error, LLAMA_ERROR_USAGE, "--prompt and --prompt-file are both given");
    if (options->chat && options->prompt_file)
        return fail(error, LLAMA_ERROR_USAGE, "--prompt-file is not for a chat, which reads standard input");
    bool no_text = options->info || options->perplexity;
    if ((options->info && options->perplexity) || (no_text && options->chat))
        return fail(error, LLAMA_ERROR_USAGE, "only one of --info, --perplexity and --mode chat can be given");
    const char *extension = options->perplexity ? strrchr(options->perplexity, '.') : NULL;
    if (extension && (strcmp(extension, ".json") == 0 || strcmp(extension, ".jsonl") == 0))
        return fail(error, LLAMA_ERROR_USAGE,
                    "--perplexity = %.256s, allowed plain text; python -m llama.perplexity "
                    "reads lists of documents",
                    options->perplexity);
    if (options->steps < 0) options->steps = options->chat || no_text ? 0 : 256;
    return LLAMA_OK;
}

#endif
