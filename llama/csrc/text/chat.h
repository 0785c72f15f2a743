// chat.h: a turn of a conversation as token ids, by the template that a model was trained with. Llama 2's, which
// Code Llama Instruct shares:
//
//     <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {answer} </s><s>[INST] {user} [/INST] ...
//
// Llama 3's, each part a message and the last one open for the answer:
//
//     <|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>...user...{user}<|eot_id|>
//     <|start_header_id|>assistant<|end_header_id|>\n\n{answer}<|eot_id|>...user...{user}<|eot_id|>...
//
// Special tokens are those of the template, never of the text: a user who writes their names gets the characters.
// System and user text are stripped. Left out: the date that transformers puts into the system text of Llama 3.1.
#ifndef LLAMA_CHAT_H
#define LLAMA_CHAT_H

#include "tokenizer.h" // llama_encode_special

// The parts of a turn. % is the system's or the user's text; <s> and </s> are BOS and EOS whatever their names are,
// <|name|> is a special token.
typedef struct {
    const char *begin, *next; // before the first turn, before a later one
    const char *system, *user;
} ChatTemplate;

static const ChatTemplate chat_templates[] = {
    [LLAMA_CHAT_LLAMA2] = {"<s>[INST] ", "</s><s>[INST] ", "<<SYS>>\n%\n<</SYS>>\n\n", "% [/INST]"},
    [LLAMA_CHAT_LLAMA3] = {"<|begin_of_text|>", "<|eot_id|>",
                           "<|start_header_id|>system<|end_header_id|>\n\n%<|eot_id|>",
                           "<|start_header_id|>user<|end_header_id|>\n\n%<|eot_id|>"
                           "<|start_header_id|>assistant<|end_header_id|>\n\n"},
};
enum { CHAT_TEMPLATE_BYTES = 256 }; // more than the parts of any template have together

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

// A turn being written: its ids, and the text since the last special token, which is encoded as a whole.
typedef struct {
    const LlamaTokenizer *tokenizer;
    int32_t *ids;
    size_t n;
    char *text;
    size_t length;
} Turn;

static void turn_append(Turn *turn, Text text) {
    if (text.length > 0) memcpy(turn->text + turn->length, text.text, text.length);
    turn->length += text.length;
}

// Encodes the text that waits.
static int turn_encode(Turn *turn, LlamaError *error) {
    size_t n = 0;
    int code = llama_encode(turn->tokenizer, turn->text, turn->length, 0, 0, turn->ids + turn->n, &n, error);
    turn->n += n;
    turn->length = 0;
    return code;
}

// The bytes of a template's special token, 0 where none begins.
static size_t chat_token_length(const char *part) {
    if (strncmp(part, "<s>", 3) == 0) return 3;
    if (strncmp(part, "</s>", 4) == 0) return 4;
    return strncmp(part, "<|", 2) == 0 ? (size_t)(strchr(part, '>') - part) + 1 : 0;
}

static int turn_token(Turn *turn, const char *name, size_t length, LlamaError *error) {
    const LlamaTokenizer *t = turn->tokenizer;
    int32_t id = length == 3 ? t->bos : length == 4 ? t->eos : -1;
    if (length > 4 && special_match(t, name, length, 1u << TOKEN_CONTROL, &id) != length) id = -1;
    if (id < 0)
        return fail(error, LLAMA_ERROR_FILE, "the tokenizer has no %.*s, which the chat template needs",
                    (int)length, name);
    int code = turn_encode(turn, error);
    turn->ids[turn->n++] = id;
    return code;
}

// Writes a part of a template with a text in the place of its %.
static int turn_write(Turn *turn, const char *part, Text text, LlamaError *error) {
    int code = LLAMA_OK;
    while (*part && code == LLAMA_OK) {
        size_t length = chat_token_length(part);
        if (length > 0)
            code = turn_token(turn, part, length, error);
        else
            turn_append(turn, *part == '%' ? text : (Text){part, 1});
        part += MAX(length, 1);
    }
    return code;
}

// A special token takes one id and has three bytes or more, room enough for what the text before it needs.
size_t llama_chat_bound(size_t system_length, size_t user_length) {
    return llama_encode_bound(CHAT_TEMPLATE_BYTES + system_length + user_length);
}

int llama_chat_turn(const LlamaTokenizer *tokenizer, int32_t chat_template, const char *system,
                    size_t system_length, const char *user, size_t user_length, int first, int32_t *ids, size_t *n,
                    LlamaError *error) {
    const ChatTemplate *t = &chat_templates[chat_template == LLAMA_CHAT_LLAMA3 ? chat_template : LLAMA_CHAT_LLAMA2];
    size_t room = CHAT_TEMPLATE_BYTES + (system ? system_length : 0) + user_length;
    Turn turn = {.tokenizer = tokenizer, .ids = ids, .text = malloc(room)};
    if (!turn.text) return fail_memory(error, room);
    Text none = {"", 0};
    int code = turn_write(&turn, t->next, none, error); // the first turn too: what is missing is told at once
    if (first) turn.n = turn.length = 0;
    if (code == LLAMA_OK && first) code = turn_write(&turn, t->begin, none, error);
    if (code == LLAMA_OK && system) code = turn_write(&turn, t->system, text_strip(system, system_length), error);
    if (code == LLAMA_OK) code = turn_write(&turn, t->user, text_strip(user, user_length), error);
    if (code == LLAMA_OK) code = turn_encode(&turn, error);
    free(turn.text);
    *n = turn.n;
    return code;
}

#endif
