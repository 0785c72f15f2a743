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
// ChatML and Zephyr are of Llama 3's form, Mistral of Llama 2's. A model may have a system text of its own for a
// conversation without one, and one that goes in front of any: they are in its file.
//
// Special tokens are those of the template, never of the text: a user who writes their names gets the characters.
// Left out: templates that are none of these, which Python runs (llama/templates.py).
#ifndef LLAMA_CHAT_H
#define LLAMA_CHAT_H

#include "tokenizer.h" // llama_encode_spans

#include <time.h> // strftime

static const LlamaChatTemplate chat_templates[] = {
    [LLAMA_CHAT_NONE] = {.name = "none"},
    [LLAMA_CHAT_LLAMA2] = {"llama2", "<s>[INST] ", "</s><s>[INST] ", "<<SYS>>\n%\n<</SYS>>\n\n", "% [/INST]", " % ",
                           LLAMA_STRIP_WHOLE, 0},
    [LLAMA_CHAT_LLAMA3] = {"llama3", "<s>", "<|eot_id|>",
                           "<|start_header_id|>system<|end_header_id|>\n\n%<|eot_id|>",
                           "<|start_header_id|>user<|end_header_id|>\n\n%<|eot_id|>"
                           "<|start_header_id|>assistant<|end_header_id|>\n\n",
                           "%", LLAMA_STRIP_EACH, 1},
    [LLAMA_CHAT_OTHER] = {.name = "other"},
    [LLAMA_CHAT_CHATML] = {"chatml", "", "<|im_end|>\n", "<|im_start|>system\n%<|im_end|>\n",
                           "<|im_start|>user\n%<|im_end|>\n<|im_start|>assistant\n", "%", LLAMA_STRIP_NOTHING, 1},
    [LLAMA_CHAT_ZEPHYR] = {"zephyr", "", "</s>\n", "<|system|>\n%</s>\n", "<|user|>\n%</s>\n<|assistant|>\n", "%",
                           LLAMA_STRIP_NOTHING, 0},
    [LLAMA_CHAT_MISTRAL] = {"mistral", "<s> [INST] ", "</s> [INST] ", "%\n\n", "% [/INST]", " %",
                            LLAMA_STRIP_NOTHING, 0},
    [LLAMA_CHAT_PLAIN] = {"plain", "", "", "%\n\n", "%", "%", LLAMA_STRIP_NOTHING, 0},
};
enum { CHAT_TEMPLATE_BYTES = 256, CHAT_SPANS = 16 }; // more than the parts of any template have together

const LlamaChatTemplate *llama_chat_template(int32_t kind) {
    return kind >= 0 && kind < (int32_t)COUNT(chat_templates) ? &chat_templates[kind] : NULL;
}

typedef struct {
    const char *text;
    size_t length;
} Text;

// In the model's own texts \x02{form}\x03 stands for today's date, in a form of strftime.
enum { DATE_BEGIN = 2, DATE_END = 3, DATE_BYTES = 64 };

static size_t end_stripped(const char *text, size_t length) {
    while (length > 0 && text[length - 1] && strchr(" \t\n\v\f\r", text[length - 1])) length--;
    return length;
}

static Text text_strip(const char *text, size_t length) {
    length = end_stripped(text, length);
    while (length > 0 && text[0] && strchr(" \t\n\v\f\r", text[0])) text++, length--;
    return (Text){text, length};
}

// A turn being written, as text with spans: a byte for each special token of the template, and what people wrote.
typedef struct {
    const LlamaTokenizer *tokenizer;
    const LlamaChatTemplate *template;
    char *text;
    size_t length;
    LlamaSpan spans[CHAT_SPANS];
    size_t n_spans;
} Turn;

static void turn_append(Turn *turn, Text text) {
    if (text.length > 0) memcpy(turn->text + turn->length, text.text, text.length);
    turn->length += text.length;
}

// Appends a byte that stands for a token, or plain text for token -1.
static void turn_span(Turn *turn, Text text, int32_t token) {
    if (text.length == 0) return;
    turn->spans[turn->n_spans++] = (LlamaSpan){turn->length, turn->length + text.length, token};
    turn_append(turn, text);
}

// Appends a text of the model's own, with the day's date where it asks for it.
static void turn_append_own(Turn *turn, Text own) {
    time_t now = time(NULL);
    struct tm today;
    localtime_r(&now, &today);
    for (size_t i = 0; i < own.length; i++) {
        char form[DATE_BYTES] = {0};
        size_t n = 0;
        while (own.text[i] == DATE_BEGIN && i + 1 + n < own.length && n < DATE_BYTES &&
               own.text[i + 1 + n] != DATE_END)
            form[n] = own.text[i + 1 + n], n++;
        bool dated = n > 0 && n < DATE_BYTES && i + 1 + n < own.length;
        if (dated) turn->length += strftime(turn->text + turn->length, DATE_BYTES, form, &today);
        if (dated) i += n + 1;
        if (!dated) turn_append(turn, (Text){own.text + i, 1});
    }
}

// The bytes that a model's own texts have at most.
static size_t own_bound(const LlamaChat *chat) {
    size_t bytes = chat->system_length + chat->preamble_length;
    for (size_t i = 0; i < chat->system_length; i++) bytes += chat->system[i] == DATE_BEGIN ? DATE_BYTES : 0;
    for (size_t i = 0; i < chat->preamble_length; i++) bytes += chat->preamble[i] == DATE_BEGIN ? DATE_BYTES : 0;
    return bytes;
}

// The bytes of a name in a template that stands for a token, 0 where none begins.
static size_t chat_token_length(const LlamaChatTemplate *t, const char *part) {
    if (strncmp(part, "<s>", 3) == 0) return 3;
    if (strncmp(part, "</s>", 4) == 0) return 4;
    return t->needs_names && strncmp(part, "<|", 2) == 0 ? (size_t)(strchr(part, '>') - part) + 1 : 0;
}

static int turn_token(Turn *turn, const char *name, size_t length, LlamaError *error) {
    const LlamaTokenizer *t = turn->tokenizer;
    int32_t id = length == 3 ? t->bos : length == 4 ? t->eos : -1;
    if (length > 4 && special_match(t, name, length, CONTROL_BIT | USER_BIT, &id) != length) id = -1;
    if (id < 0)
        return fail(error, LLAMA_ERROR_FILE, "the tokenizer has no %.*s, which the chat template needs",
                    (int)length, name);
    turn_span(turn, (Text){"", 1}, id);
    return LLAMA_OK;
}

// Writes a part of a template; in the place of its % what goes in front of a text, and the text.
static int turn_write(Turn *turn, const char *part, Text preamble, Text text, LlamaError *error) {
    int code = LLAMA_OK;
    while (*part && code == LLAMA_OK) {
        size_t length = chat_token_length(turn->template, part);
        if (length > 0) {
            code = turn_token(turn, part, length, error);
        } else if (*part == '%') {
            turn_append_own(turn, preamble);
            turn_span(turn, text, -1);
        } else {
            turn_append(turn, (Text){part, 1});
        }
        part += MAX(length, 1);
    }
    return code;
}

// Writes the system text, the conversation's or else the model's own, which is a part of the template.
static int turn_system(Turn *turn, const LlamaChat *chat, const char *system, size_t length, LlamaError *error) {
    const LlamaChatTemplate *t = turn->template;
    Text preamble = {chat->preamble, chat->preamble_length}, own = {chat->system, chat->system_length}, none = {0};
    if (!system) return own.length > 0 ? turn_write(turn, t->system, own, none, error) : LLAMA_OK;
    Text text = t->strip == LLAMA_STRIP_EACH ? text_strip(system, length) : (Text){system, length};
    return turn_write(turn, t->system, preamble, text, error);
}

// Writes the user's text, after what the turn has had since `begin`. A whole turn that is stripped may lose white
// space of the template too, where the text is empty.
static int turn_user(Turn *turn, Text user, size_t begin, LlamaError *error) {
    const LlamaChatTemplate *t = turn->template;
    Text stripped = text_strip(user.text, user.length);
    if (t->strip == LLAMA_STRIP_EACH || (t->strip == LLAMA_STRIP_WHOLE && turn->length == begin)) user = stripped;
    if (t->strip == LLAMA_STRIP_WHOLE) user.length = end_stripped(user.text, user.length);
    if (t->strip == LLAMA_STRIP_WHOLE && user.length == 0)
        turn->length = begin + end_stripped(turn->text + begin, turn->length - begin);
    return turn_write(turn, t->user, (Text){0}, user, error);
}

// A special token takes one id and one byte, room enough for it and for what the text around it needs.
size_t llama_chat_bound(const LlamaChat *chat, size_t system_length, size_t user_length) {
    return llama_encode_bound(CHAT_TEMPLATE_BYTES + own_bound(chat) + system_length + user_length);
}

// Whether a chat has a template that is built in. name: of the model, for messages.
static int chat_known(const char *name, const LlamaChat *chat, LlamaError *error) {
    const LlamaChatTemplate *t = llama_chat_template(chat->kind);
    if (t && t->begin) return LLAMA_OK;
    if (chat->kind == LLAMA_CHAT_OTHER)
        return fail(
            error, LLAMA_ERROR_USAGE,
            "%.512s: its chat template is none that is built in: python -m llama.run -m chat, or cria chat, "
            "runs it; --template chooses another",
            name);
    return fail(error, LLAMA_ERROR_USAGE,
                "%.512s: has no chat template: choose one with --template, llama2, llama3, chatml, zephyr, mistral "
                "or plain",
                name);
}

// Whether a turn can be written. What a later turn lacks is told at the first one.
static int chat_check(Turn *turn, const LlamaChat *chat, LlamaError *error) {
    int code = chat_known("the model", chat, error);
    if (code != LLAMA_OK) return code;
    code = turn_write(turn, turn->template->next, (Text){0}, (Text){0}, error);
    turn->length = turn->n_spans = 0;
    return code;
}

static int turn_begin(Turn *turn, const LlamaChat *chat, bool first, LlamaError *error) {
    const LlamaChatTemplate *t = turn->template;
    bool bos = first && chat->kind == LLAMA_CHAT_PLAIN && chat->bos && turn->tokenizer->bos >= 0;
    if (bos) turn_span(turn, (Text){"", 1}, turn->tokenizer->bos);
    return turn_write(turn, first ? t->begin : t->next, (Text){0}, (Text){0}, error);
}

int llama_chat_turn(const LlamaTokenizer *tokenizer, const LlamaChat *chat, const char *system,
                    size_t system_length, const char *user, size_t user_length, int first, int32_t *ids, size_t *n,
                    LlamaError *error) {
    size_t room = CHAT_TEMPLATE_BYTES + own_bound(chat) + user_length;
    if (system) room += system_length;
    Turn turn = {.tokenizer = tokenizer, .template = llama_chat_template(chat->kind), .text = malloc(room)};
    *n = 0;
    if (!turn.text) return fail_memory(error, room);
    int code = chat_check(&turn, chat, error);
    if (code == LLAMA_OK) code = turn_begin(&turn, chat, first, error);
    size_t begin = turn.length;
    if (code == LLAMA_OK && first) code = turn_system(&turn, chat, system, system_length, error);
    if (code == LLAMA_OK) code = turn_user(&turn, (Text){user, user_length}, begin, error);
    if (code == LLAMA_OK)
        code = llama_encode_spans(tokenizer, turn.text, turn.length, turn.spans, turn.n_spans, ids, n, error);
    free(turn.text);
    return code;
}

#endif
