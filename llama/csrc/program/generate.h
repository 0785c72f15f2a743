// generate.h: the texts that follow a prompt.
#ifndef LLAMA_GENERATE_H
#define LLAMA_GENERATE_H

#include "prompt.h" // option_text, file_text
#include "run.h"    // Run, write_text

// The text of -i or -f, empty without either. The caller frees it, of an error too.
static int read_prompt(const Run *run, Buffer *prompt, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    if (o->prompt_file) return file_text(&run->console, o->prompt_file, prompt, error);
    return option_text(o, o->prompt ? o->prompt : "", prompt, error);
}

// One text after the other from the same prompt, which is run once: each later text goes back to its last token.
static int write_samples(Run *run, const Buffer *prompt, const int32_t *ids, size_t n, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    int32_t finish;
    for (int32_t sample = 0; sample < o->samples; sample++) {
        bool again = sample > 0;
        int code = again ? console_write(&run->console, "---\n", 4, error) : LLAMA_OK;
        if (code == LLAMA_OK && again) code = rewind_to(run, ids, n - 1, error);
        size_t from = again ? n - 1 : 0;
        if (code == LLAMA_OK) code = llama_generation_feed(run->generation, ids + from, n - from, 0, error);
        if (code == LLAMA_OK && o->echo) code = console_write(&run->console, prompt->bytes, prompt->length, error);
        if (code == LLAMA_OK) code = write_text(run, &finish, error);
        if (code != LLAMA_OK) return code;
    }
    return LLAMA_OK;
}

static int generate(Run *run, LlamaError *error) {
    Buffer prompt = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    int code = read_prompt(run, &prompt, error);
    size_t bytes = llama_encode_bound(prompt.length) * sizeof *ids;
    if (code == LLAMA_OK && !(ids = malloc(bytes))) code = fail_memory(error, bytes);
    if (code == LLAMA_OK)
        code = llama_encode_prompt(run->model, run->tokenizer, prompt.bytes, prompt.length, ids, &n, error);
    if (code == LLAMA_OK) code = run_check_room(run, n, error);
    if (code == LLAMA_OK) code = write_samples(run, &prompt, ids, n, error);
    if (code == LLAMA_OK) note_stats(run);
    if (code == LLAMA_OK) note_speed(run);
    free(ids);
    buffer_free(&prompt);
    return code;
}

#endif
