// llama_run.h: the public interface of the command line. ./run and python -m llama.run are a few lines around it:
// they parse, find the model that is meant, and run. As the rest of the library it neither prints nor exits by
// itself: what it reads and writes goes through the host.
//
// The part between the two `cdef` lines is also what the Python extension compiles against (build_engine.py).
#ifndef LLAMA_RUN_H
#define LLAMA_RUN_H

#include "../llama.h" // LlamaSampling, LlamaError

// cdef begin
typedef struct {
    const char *model;       // path of the checkpoint, NULL: not given
    const char *tokenizer;   // -z, NULL: looked for beside the model and in the working directory
    const char *lora;        // --lora, FILE or FILE:SCALE, NULL: not given
    const char *prompt;      // -i, NULL: not given
    const char *prompt_file; // -f, "-" for standard input, NULL: not given
    const char *system;      // -y, NULL: not given
    int32_t template_kind;   // --template, LLAMA_CHAT_LLAMA2 ..., LLAMA_CHAT_NONE: not given
    const char **stops;      // --stop, (n_stops)
    int32_t n_stops;
    int32_t escape;  // -e
    int32_t steps;   // -n, 0: to the end of the context
    int32_t context; // -c, 0: not given
    int32_t threads; // -j, 0: not given
    int32_t kv;      // --kv, LLAMA_KV_FP32 ...
    int32_t samples; // --samples
    int32_t exact;   // --exact
    int32_t chat;    // -m chat
    int32_t echo, stats, help;
    int32_t info;           // --info
    const char *perplexity; // --perplexity, "-" for standard input, NULL: not given
    float rope_theta;       // --rope-theta, 0: not given
    int32_t dtype; // --dtype, LLAMA_INT8 ...: what a host makes of a model of another format; -1: it chooses
    int32_t cache; // 0: --no-cache, it keeps none; llama_run opens checkpoints alone
    LlamaSampling sampling; // seed 0: take the clock
} LlamaRunOptions;

// Reads the options. Strings stay the caller's argv. llama_run_options_free frees the rest.
int llama_run_parse(int argc, char **argv, LlamaRunOptions *options, LlamaError *error);
void llama_run_options_free(LlamaRunOptions *options);
const char *llama_run_help(void);

typedef struct {
    const char *role; // "system", "user", "assistant"
    const char *text;
    size_t length;
} LlamaMessage;

// What a run reads, writes and asks of the program around it. NULL for a function: that of the standard
// descriptors; nothing interrupts; a template that is not built in is refused.
typedef struct {
    void *user; // handed to each function
    // Writes text, which is to be seen at once. The bytes written, at least one, or a negative errno.
    int64_t (*write)(void *user, const char *bytes, size_t n);
    // Writes n bytes for people, whole lines with their newline, that are not part of the text.
    void (*note)(void *user, const char *bytes, size_t n);
    // Reads up to `room` bytes of input. Their number, 0 at the end, or a negative errno.
    int64_t (*read)(void *user, char *bytes, size_t room);
    // 1: end the run with LLAMA_ERROR_INTERRUPTED. Asked before each piece of text and each read or write, so also
    // after one that came back with -EINTR.
    int (*interrupted)(void *user);
    // The ids of n messages by the model's own template, up to where the next answer begins. Their number, of which
    // the first `room` are written to ids; 0 or less: none, the run ends.
    int64_t (*converse)(void *user, const LlamaModel *model, const LlamaTokenizer *tokenizer,
                        const LlamaMessage *messages, size_t n, int32_t *ids, size_t room);
} LlamaHost;

// Does what the options say: writes help, what a model is, how well it predicts a file, a text or a chat. host:
// NULL for the standard descriptors.
int llama_run(const LlamaRunOptions *options, const LlamaHost *host, LlamaError *error);
// cdef end

#endif
