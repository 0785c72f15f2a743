// infill.h: the prompt from which Code Llama writes what is missing between two texts. Special tokens say where
// they lie; the text that follows MID is the middle, up to EOT:
//
//     <s> PRE {prefix} SUF {suffix} MID
//
// Left out: Meta's other order, which begins with the suffix.
#ifndef LLAMA_INFILL_H
#define LLAMA_INFILL_H

#include "tokenizer.h" // Encoder, text_encode

// U+2581 in their names is a space where characters merge; a tokenizer.json has them as they are spelt.
static const char *const infill_names[][2] = {
    {"\xe2\x96\x81<PRE>", " <PRE>"}, {"\xe2\x96\x81<SUF>", " <SUF>"}, {"\xe2\x96\x81<MID>", " <MID>"}};

static int32_t token_named(const LlamaTokenizer *t, const char *name) {
    for (int32_t i = 0; i < t->vocab_size; i++) {
        size_t length;
        const char *bytes = token_bytes(t, i, &length);
        if (length == strlen(name) && memcmp(bytes, name, length) == 0) return i;
    }
    return -1;
}

static int find_infill(const LlamaTokenizer *t, int32_t tokens[3], LlamaError *error) {
    for (size_t i = 0; i < 3; i++) {
        tokens[i] = token_named(t, infill_names[i][0]);
        if (tokens[i] < 0) tokens[i] = token_named(t, infill_names[i][1]);
        if (tokens[i] < 0)
            return fail(error, LLAMA_ERROR_USAGE, "the tokenizer has no %s: only Code Llama fills in",
                        infill_names[i][0]);
    }
    return LLAMA_OK;
}

size_t llama_infill_bound(size_t prefix_length, size_t suffix_length) {
    return llama_encode_bound(prefix_length + suffix_length + 1);
}

int llama_encode_infill(const LlamaTokenizer *t, const char *prefix, size_t prefix_length, const char *suffix,
                        size_t suffix_length, int32_t *ids, size_t *n, LlamaError *error) {
    int32_t tokens[3]; // PRE, SUF, MID
    Encoder e = {.tokenizer = t, .ids = ids};
    *n = 0;
    int code = find_infill(t, tokens, error);
    if (code == LLAMA_OK && t->bos < 0) code = fail(error, LLAMA_ERROR_USAGE, "the vocabulary has no BOS");
    if (code != LLAMA_OK) return code;
    emit(&e, t->bos);
    emit(&e, tokens[0]);
    code = text_encode(&e, prefix, prefix_length, false, (Spans){0}, error);
    if (code != LLAMA_OK) return code;
    emit(&e, tokens[1]);
    e.bare = true; // the suffix goes on in the middle of a text
    code = text_encode(&e, suffix, suffix_length, false, (Spans){0}, error);
    if (code != LLAMA_OK) return code;
    emit(&e, tokens[2]);
    *n = e.n;
    return LLAMA_OK;
}

#endif
