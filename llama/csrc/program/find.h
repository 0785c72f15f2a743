// find.h: the tokenizer that belongs to a model: the one inside its file, or one that lies beside it or here.
#ifndef LLAMA_FIND_H
#define LLAMA_FIND_H

#include "../text/tokenizer.h" // tokenizer_open
#include "../weights/model.h"  // LlamaModel

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
// Without memory nothing more is looked for.
static int find_in_folder(const char *folder, size_t length, const LlamaModel *model, LlamaTokenizer **tokenizer,
                          LlamaError *error) {
    static const char *const names[] = {"tokenizer.bin", "tok%d.bin"};
    size_t room = length + 32;
    char *path = malloc(room);
    if (!path) return fail_memory(error, room);
    int code = LLAMA_ERROR_FILE;
    for (size_t i = 0; i < COUNT(names) && code == LLAMA_ERROR_FILE; i++) {
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
         "no tokenizer for %s: neither tokenizer.bin nor tok%d.bin is beside it or in the working directory; "
         "give its path (-z)",
         model->path, model->config.vocab_size);
    const char *slash = strrchr(model->path, '/');
    size_t length = slash ? (size_t)(slash - model->path) + 1 : 0;
    int code = find_in_folder(model->path, length, model, tokenizer, error);
    if (code == LLAMA_ERROR_FILE && length > 0) code = find_in_folder("", 0, model, tokenizer, error);
    return code;
}

#endif
