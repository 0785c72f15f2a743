// converse.h: a chat by a template that the host runs. It renders the whole conversation anew at each turn; what
// the sequence holds of it already stays, the rest is run again, since a template may change what lies behind.
#ifndef LLAMA_CONVERSE_H
#define LLAMA_CONVERSE_H

#include "run.h" // Run, write_text, rewind_to

typedef struct {
    LlamaMessage *messages; // (n), their texts are its own
    size_t n;
    int32_t *ids; // (n_ids) of all messages, as they were rendered last
    size_t n_ids;
} Conversation;

static void conversation_free(Conversation *c) {
    for (size_t i = 0; i < c->n; i++) free((char *)c->messages[i].text);
    free(c->messages);
    free(c->ids);
    *c = (Conversation){0};
}

static int conversation_add(Conversation *c, const char *role, const Buffer *text, LlamaError *error) {
    size_t bytes = (c->n + 1) * sizeof *c->messages;
    LlamaMessage *messages = realloc(c->messages, bytes);
    if (!messages) return fail_memory(error, bytes);
    c->messages = messages;
    Buffer copy = {0};
    int code = buffer_append(&copy, text->bytes, text->length, error);
    if (code == LLAMA_OK) c->messages[c->n++] = (LlamaMessage){role, copy.bytes, copy.length};
    return code;
}

// Lets the host render the conversation. known: how many ids from the first on are as they were.
static int conversation_render(const Run *run, Conversation *c, size_t *known, LlamaError *error) {
    const LlamaHost *host = &run->console.host;
    size_t room = (size_t)llama_context_options(run->ctx)->context;
    int32_t *ids = malloc(room * sizeof *ids);
    if (!ids) return fail_memory(error, room * sizeof *ids);
    int64_t n = host->converse(host->user, run->model, run->tokenizer, c->messages, c->n, ids, room);
    size_t held = MIN(MIN((size_t)MAX(n, 0), room), c->n_ids);
    for (*known = 0; *known < held && ids[*known] == c->ids[*known];) ++*known;
    free(c->ids);
    c->ids = ids;
    c->n_ids = (size_t)MAX(n, 0);
    if (n > 0) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_USAGE, "the chat template made nothing of the conversation");
}

// Appends the model's answer to what its template rendered, and notes it.
static int conversation_answer(Run *run, Conversation *c, size_t known, int32_t *finish, LlamaError *error) {
    Buffer answer = {0};
    known = MIN(known, c->n_ids - 1); // one id is run at least
    int code = rewind_to(run, c->ids, known, error);
    if (code == LLAMA_OK) code = llama_generation_feed(run->generation, c->ids + known, c->n_ids - known, 0, error);
    if (code == LLAMA_OK) code = console_write(&run->console, "Assistant: ", 11, error);
    run->heard = &answer;
    if (code == LLAMA_OK) code = write_text(run, finish, error);
    run->heard = NULL;
    if (code == LLAMA_OK) code = conversation_add(c, "assistant", &answer, error);
    buffer_free(&answer);
    return code;
}

// One question and its answer. A first question that does not fit is an error, a later one the end of the chat.
static int converse(Run *run, Conversation *c, const Buffer *system, const Buffer *user, int32_t *finish,
                    LlamaError *error) {
    bool first = c->n == 0;
    size_t known = 0, context = (size_t)llama_context_options(run->ctx)->context;
    int code = first && system->length > 0 ? conversation_add(c, "system", system, error) : LLAMA_OK;
    if (code == LLAMA_OK) code = conversation_add(c, "user", user, error);
    if (code == LLAMA_OK) code = conversation_render(run, c, &known, error);
    if (code == LLAMA_OK && first) code = run_check_room(run, c->n_ids, error);
    *finish = LLAMA_STOP_LENGTH;
    if (code != LLAMA_OK || c->n_ids > context) return code;
    return conversation_answer(run, c, known, finish, error);
}

#endif
