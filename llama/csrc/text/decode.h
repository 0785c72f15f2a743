// decode.h: token ids to the bytes that they print, and to their names.
#ifndef LLAMA_DECODE_H
#define LLAMA_DECODE_H

#include "vocabulary.h" // token_bytes

const char *llama_token_bytes_of(const LlamaTokenizer *t, int32_t previous, int32_t token, size_t *length) {
    *length = 0;
    if (token < 0 || token >= t->vocab_size) return NULL;
    if (t->types[token] == TOKEN_CONTROL) return "";
    if (t->types[token] == TOKEN_UNKNOWN) return *length = 5, " \xe2\x81\x87 "; // sentencepiece's unk_surface
    const char *bytes = token_bytes(t, token, length);
    bool starts_text = t->flags & FLAG_STRIP && (previous == -1 || previous == t->bos);
    bool drops_space = starts_text && t->types[token] != TOKEN_BYTE && *length > 0 && bytes[0] == ' ';
    *length -= (size_t)drops_space;
    return bytes + drops_space;
}

const char *llama_token_name(const LlamaTokenizer *t, int32_t token, size_t *length) {
    *length = 0;
    return token < 0 || token >= t->vocab_size ? NULL : token_bytes(t, token, length);
}

int llama_token_is_special(const LlamaTokenizer *t, int32_t token) {
    return token >= 0 && token < t->vocab_size && t->types[token] == TOKEN_CONTROL;
}

#endif
