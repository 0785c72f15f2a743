// chat.h: a turn of a conversation as token ids. The Llama 2 template, which Code Llama Instruct shares:
//
//     <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {answer} </s><s>[INST] {user} [/INST] ...
//
// <s> and </s> are ids, never text: a user who writes them gets their characters. System and user text are
// stripped.
#ifndef LLAMA_CHAT_H
#define LLAMA_CHAT_H

#include "tokenizer.h" // llama_encode

static const char chat_format[] = "[INST] <<SYS>>\n\n<</SYS>>\n\n [/INST]"; // all of the template's own characters

typedef struct {
    const char *text;
    size_t length;
} Text;

static Text text_strip(const char *text, size_t length) {
    const char *space = " \t\n\v\f\r";
    while (length > 0 && text[length - 1] && strchr(space, text[length - 1])) length--;
    while (length > 0 && text[0] && strchr(space, text[0])) text++, length--;
    return (Text){text, length};
}

static char *text_append(char *out, const char *text, size_t length) {
    if (length > 0) memcpy(out, text, length);
    return out + length;
}

// Writes the turn as text, without BOS and EOS, and returns its end.
static char *chat_render(char *out, const char *system, size_t system_length, Text user) {
    out = text_append(out, "[INST] ", 7);
    if (system) {
        Text stripped = text_strip(system, system_length);
        out = text_append(out, "<<SYS>>\n", 8);
        out = text_append(out, stripped.text, stripped.length);
        out = text_append(out, "\n<</SYS>>\n\n", 11);
    }
    out = text_append(out, user.text, user.length);
    return text_append(out, " [/INST]", 8);
}

static size_t chat_length(size_t system_length, size_t user_length) {
    return sizeof chat_format + system_length + user_length;
}

size_t llama_chat_bound(size_t system_length, size_t user_length) {
    return 1 + llama_encode_bound(chat_length(system_length, user_length));
}

int llama_chat_turn(const LlamaTokenizer *tokenizer, const char *system, size_t system_length, const char *user,
                    size_t user_length, int first, int32_t *ids, size_t *n, LlamaError *error) {
    if (llama_bos(tokenizer) < 0 || llama_eos(tokenizer) < 0)
        return fail(error, LLAMA_ERROR_FILE, "the tokenizer has no BOS or no EOS, which the chat template needs");
    char *text = malloc(chat_length(system ? system_length : 0, user_length));
    if (!text) return fail_memory(error, chat_length(system_length, user_length));
    size_t closing = first ? 0 : 1; // the answer before ends with EOS
    if (closing) ids[0] = llama_eos(tokenizer);
    char *end = chat_render(text, system, system_length, text_strip(user, user_length));
    int code = llama_encode(tokenizer, text, (size_t)(end - text), 1, 0, ids + closing, n, error);
    *n += closing;
    free(text);
    return code;
}

#endif
