// chat.h: a turn of a conversation as token ids, by the template that the model was trained with.
#ifndef LLAMA_API_CHAT_H
#define LLAMA_API_CHAT_H

#include "tokenizer.h"

// cdef begin
enum { // templates; OTHER: one in Jinja that is none of those built in
    LLAMA_CHAT_NONE = 0,
    LLAMA_CHAT_LLAMA2 = 1,
    LLAMA_CHAT_LLAMA3 = 2,
    LLAMA_CHAT_OTHER = 3,
    LLAMA_CHAT_CHATML = 4,
    LLAMA_CHAT_ZEPHYR = 5,
    LLAMA_CHAT_MISTRAL = 6,
    LLAMA_CHAT_PLAIN = 7 // the texts as they are
};
enum { LLAMA_STRIP_NOTHING = 0, LLAMA_STRIP_EACH = 1, LLAMA_STRIP_WHOLE = 2 };

// A template that is built in. % is a text; <s> and </s> are BOS and EOS whatever their names are.
typedef struct {
    const char *name;          // "llama2" ...
    const char *begin, *next;  // before the first turn, before a later one; NULL: this is NONE or OTHER
    const char *system, *user; // of the first turn, and of each
    const char *answer;        // the model's, up to where the next turn begins
    int32_t strip; // white space around each text goes, or around a whole turn (system and user's, and the answer)
    int32_t needs_names; // <|names|> must be tokens
} LlamaChatTemplate;

// Of LLAMA_CHAT_NONE ..., NULL beyond the last one.
const LlamaChatTemplate *llama_chat_template(int32_t kind);

// How a model chats. Texts are UTF-8, NULL where their length is 0.
typedef struct {
    int32_t kind; // LLAMA_CHAT_NONE ...
    int32_t bos;  // of LLAMA_CHAT_PLAIN: a conversation begins with BOS
    const char *text, *system, *preamble;
    size_t text_length;     // the model's own template, in Jinja
    size_t system_length;   // the system text of a conversation that has none
    size_t preamble_length; // what goes in front of one that has
} LlamaChat;

// What the model's file says. Files of v0, v1 and v2 say nothing, and chat as llama2.c does: Llama 2.
LlamaChat llama_chat_of(const LlamaModel *model);
// Room that the ids of a turn need at most.
size_t llama_chat_bound(const LlamaChat *chat, size_t system_length, size_t user_length);
// The ids of one user turn. system: NULL for none, only for the first turn. first = 0: closes the answer before. An
// error without a template that is built in.
int llama_chat_turn(const LlamaTokenizer *tokenizer, const LlamaChat *chat, const char *system,
                    size_t system_length, const char *user, size_t user_length, int first, int32_t *ids, size_t *n,
                    LlamaError *error);

// Room that the ids of what is between two texts need at most.
size_t llama_infill_bound(size_t prefix_length, size_t suffix_length);
// The ids from which Code Llama writes what is between two texts. An error for a tokenizer without its tokens.
int llama_encode_infill(const LlamaTokenizer *tokenizer, const char *prefix, size_t prefix_length,
                        const char *suffix, size_t suffix_length, int32_t *ids, size_t *n, LlamaError *error);
// cdef end

#endif
