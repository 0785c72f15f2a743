// options.h: the command line of ./run and of python -m llama.run: its help, its options, the tokenizer it means.
#ifndef LLAMA_OPTIONS_H
#define LLAMA_OPTIONS_H

#include "../kernels/cache.h"  // llama_kv_name
#include "../weights/model.h"  // LlamaModel
#include "../text/tokenizer.h" // llama_tokenizer_open

#include <math.h> // isfinite

static const char run_help[] =
    "Run a Llama: a checkpoint and a prompt go in, text comes out.\n"
    "\n"
    "    ./run [MODEL.bin] [options]\n"
    "    python -m llama.run [MODEL.bin] [options]\n"
    "\n"
    "Without a model, the small one that ships in llama/models/ tells a story.\n"
    "\n"
    "text\n"
    "  -i, --prompt TEXT          go on from TEXT; in a chat, the first message\n"
    "  -f, --prompt-file FILE     read the prompt from FILE, from standard input for -\n"
    "  -n, --steps N              run N positions, prompt included; 0 for the whole context\n"
    "                             (default 256, in a chat the whole context)\n"
    "      --samples N            write N texts (default 1)\n"
    "      --stop TEXT            end before TEXT; may be given more than once\n"
    "      --echo, --no-echo      write the prompt before the text, or not (default --echo)\n"
    "\n"
    "sampling\n"
    "  -t, --temperature T        0 takes the most likely token (default 1.0)\n"
    "  -p, --top-p P              draw from the most likely tokens that reach P; 0 or 1: off (default 0.9)\n"
    "      --top-k K              draw from the K most likely tokens; 0: off (default)\n"
    "      --min-p P              draw from tokens at least P times as likely as the best; 0: off (default)\n"
    "      --repeat-penalty R     divide the logits of tokens seen by R; 1: off (default)\n"
    "      --presence-penalty R   take R once from the logits of tokens generated; 0: off (default)\n"
    "      --frequency-penalty R  take R each time a token is generated; 0: off (default)\n"
    "  -s, --seed S               seed of the random numbers; 0 for the clock (default)\n"
    "\n"
    "chat\n"
    "  -m, --mode MODE            generate (default) or chat, as Llama 2 or Llama 3 does, whichever the file says\n"
    "  -y, --system TEXT          system prompt of the chat\n"
    "\n"
    "machine\n"
    "  -z, --tokenizer FILE       default: the model's own, else tokenizer.bin or tok<vocabulary>.bin beside it,\n"
    "                             then here\n"
    "  -c, --context N            keep at most N positions (default: what the model was trained for)\n"
    "      --kv TYPE              keep keys and values as fp32 (default), fp16 or bf16: half the memory\n"
    "  -j, --threads N            default: by the size of the model and the processors at hand\n"
    "      --exact                keep activations in fp32 beside int8 and int4 weights: slower, closer to fp32\n"
    "      --rope-theta X         base of RoPE's angles, for old files of Code Llama: 1e6 (default: the file's)\n"
    "      --stats                say more about the model and the run\n"
    "\n"
    "instead of a text\n"
    "      --info                 what the model is, and the memory that it takes; python -m llama.info says more\n"
    "      --perplexity FILE      how well the model predicts FILE, plain text, - for standard input\n"
    "  -h, --help                 this help\n"
    "\n"
    "Examples\n"
    "  ./run\n"
    "  ./run stories15M.bin\n"
    "  ./run stories15M.bin -t 0.8 -n 200 -i \"One day, a baby llama\"\n"
    "  ./run stories15M.bin -t 0 -f opening.txt --no-echo > story.txt\n"
    "  ./run llama2_7b_chat.bin -m chat -y \"You are a kind poet.\"\n"
    "\n"
    "The text goes to standard output, its speed and what went wrong to standard error. Exit status: 0 all is "
    "well,\n"
    "2 the command line is wrong, 3 a file is bad, 4 memory, disk or output failed.\n"
    "LLAMA_ISA=scalar|avx2|avx512|avx512bf16|neon|dotprod|i8mm chooses the kernels.\n";

const char *llama_run_help(void) {
    return run_help;
}

// ---------------------------------------------------------------------------------------------------------
// The options

typedef enum { TEXT, TEXTS, INT, SEED, FLOAT, ON, OFF, MODE, KV } OptionKind;

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
    {"-z", "--tokenizer", TEXT, FIELD(tokenizer), 0, 0},
    {"-c", "--context", INT, FIELD(context), 1, INT32_MAX},
    {"", "--kv", KV, FIELD(kv), 0, 0},
    {"-j", "--threads", INT, FIELD(threads), 1, 1024},
    {"", "--exact", ON, FIELD(exact), 0, 0},
    {"", "--rope-theta", FLOAT, FIELD(rope_theta), 1, 1e9},
    {"", "--stats", ON, FIELD(stats), 0, 0},
    {"", "--info", ON, FIELD(info), 0, 0},
    {"", "--perplexity", TEXT, FIELD(perplexity), 0, 0},
    {"-h", "--help", ON, FIELD(help), 0, 0},
};

static const LlamaRunOptions run_defaults = {
    .steps = -1,
    .samples = 1,
    .echo = 1,
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
    return fail(error, LLAMA_ERROR_USAGE, "--kv = %.64s, allowed fp32, fp16 and bf16", value);
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

int llama_run_context(const LlamaRunOptions *options, const LlamaModel *model, LlamaContextOptions *context,
                      LlamaError *error) {
    int32_t max = llama_config(model)->max_seq_len, wanted = options->context ? options->context : max;
    if (wanted > max)
        return fail(error, LLAMA_ERROR_USAGE, "--context = %d, allowed 1 to %d, the model's max_seq_len", wanted,
                    max);
    if (options->steps > 0) wanted = MIN(wanted, options->steps);
    *context = (LlamaContextOptions){.context = wanted,
                                     .threads = options->threads,
                                     .exact = options->exact,
                                     .kv = options->kv,
                                     .rope_theta = options->rope_theta};
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// The tokenizer that belongs to a model

static int check_vocabulary(const char *path, LlamaTokenizer *tokenizer, int32_t vocab_size, LlamaError *error) {
    int32_t size = llama_vocab_size(tokenizer);
    if (size == vocab_size) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_FILE, "%s: has %d tokens, the model's vocab_size = %d", path, size, vocab_size);
}

// Opens the tokenizer at path, for path NULL the one inside the model's file. Where it has no BOS, the model's is
// it.
static int open_checked(const char *path, const LlamaModel *model, LlamaTokenizer **tokenizer, LlamaError *error) {
    const char *name = path ? path : model->path;
    int code = tokenizer_open(path, &model->tokenizer, name, tokenizer, error);
    if (code == LLAMA_OK) code = check_vocabulary(name, *tokenizer, model->config.vocab_size, error);
    if (code == LLAMA_OK && (*tokenizer)->bos < 0) (*tokenizer)->bos = model->config.bos;
    if (code == LLAMA_OK) return LLAMA_OK;
    llama_tokenizer_close(*tokenizer);
    *tokenizer = NULL;
    return code;
}

// Looks in one folder, which ends in / or is empty. A file that is there but does not fit is passed over, so that
// tokenizer.bin of one model does not hide tok512.bin of another; its error is what is said if nothing fits.
static int find_in_folder(const char *folder, size_t length, const LlamaModel *model, LlamaTokenizer **tokenizer,
                          LlamaError *error) {
    static const char *const names[] = {"tokenizer.bin", "tok%d.bin"};
    size_t room = length + 32;
    char *path = malloc(room);
    if (!path) return fail_memory(error, room);
    int code = LLAMA_ERROR_FILE;
    for (size_t i = 0; i < COUNT(names) && code != LLAMA_OK; i++) {
        char name[32];
        snprintf(name, sizeof name, names[i], model->config.vocab_size);
        snprintf(path, room, "%.*s%s", (int)length, folder, name);
        if (access(path, F_OK) == 0) code = open_checked(path, model, tokenizer, error);
    }
    free(path);
    return code;
}

int llama_tokenizer_find(const char *path, const LlamaModel *model, LlamaTokenizer **tokenizer, LlamaError *error) {
    *tokenizer = NULL;
    if (path || model->tokenizer.size > 0) return open_checked(path, model, tokenizer, error);
    fail(error, LLAMA_ERROR_FILE,
         "no tokenizer for %.256s: neither tokenizer.bin nor tok%d.bin is beside it or in the working directory; "
         "give its path (-z)",
         model->path, model->config.vocab_size);
    const char *slash = strrchr(model->path, '/');
    size_t length = slash ? (size_t)(slash - model->path) + 1 : 0;
    int code = find_in_folder(model->path, length, model, tokenizer, error);
    if (code != LLAMA_OK && length > 0) code = find_in_folder("", 0, model, tokenizer, error);
    return code;
}

#endif
