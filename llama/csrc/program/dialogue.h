// dialogue.h: -m chat, turn by turn until the input ends or the context is full. What a turn is as token ids:
// ../text/chat.h.
#ifndef LLAMA_DIALOGUE_H
#define LLAMA_DIALOGUE_H

#include "../text/chat.h" // llama_chat_turn
#include "converse.h"     // converse
#include "prompt.h"       // option_text, typed_line
#include "run.h"          // Run, write_text

typedef struct {
    LlamaChat chat;    // the template: the model's, or the one that --template names
    Conversation said; // by a template that the host runs
    Buffer system;     // empty for none
    Buffer user;       // the next question
    bool first;        // no turn has been taken
    int32_t finish;    // why the last answer ended
} Dialogue;

// Asks until there is an answer that is not empty. bytes stays NULL at the end of the input.
static int ask(Run *run, const char *question, bool may_be_empty, Buffer *answer, LlamaError *error) {
    do {
        buffer_free(answer);
        int code = console_write(&run->console, question, strlen(question), error);
        if (code == LLAMA_OK) code = typed_line(&run->console, answer, error);
        if (code != LLAMA_OK) return code;
    } while (answer->bytes && answer->length == 0 && !may_be_empty);
    return LLAMA_OK;
}

// The ids of the next turn, by a template that is built in. The caller frees ids.
static int turn_ids(const Run *run, const Dialogue *d, int32_t **ids, size_t *n, LlamaError *error) {
    const char *instructions = d->first && d->system.length > 0 ? d->system.bytes : NULL;
    size_t bytes = llama_chat_bound(&d->chat, d->system.length, d->user.length) * sizeof **ids;
    *ids = malloc(bytes);
    if (!*ids) return fail_memory(error, bytes);
    return llama_chat_turn(run->tokenizer, &d->chat, instructions, d->system.length, d->user.bytes, d->user.length,
                           d->first, *ids, n, error);
}

// Feeds a turn and writes its answer. finish: LLAMA_STOP_LENGTH where the context is full, after the answer or
// already with the turn.
static int write_answer(Run *run, const int32_t *ids, size_t n, int32_t *finish, LlamaError *error) {
    size_t context = (size_t)llama_context_options(run->ctx)->context;
    *finish = LLAMA_STOP_LENGTH;
    if ((size_t)llama_generation_position(run->generation) + n > context) return LLAMA_OK;
    int code = llama_generation_feed(run->generation, ids, n, 0, error);
    if (code == LLAMA_OK) code = console_write(&run->console, "Assistant: ", 11, error);
    return code == LLAMA_OK ? write_text(run, finish, error) : code;
}

// One question and its answer. A first question that does not fit is an error, a later one the end of the chat.
static int take_turn(Run *run, Dialogue *d, LlamaError *error) {
    int32_t *ids = NULL;
    size_t n = 0;
    if (d->chat.kind == LLAMA_CHAT_OTHER) return converse(run, &d->said, &d->system, &d->user, &d->finish, error);
    int code = turn_ids(run, d, &ids, &n, error);
    if (code == LLAMA_OK && d->first) code = run_check_room(run, n, error);
    if (code == LLAMA_OK) code = write_answer(run, ids, n, &d->finish, error);
    free(ids);
    return code;
}

// Turn after turn, -i the first. An input that ended instead of a system prompt still leaves that one to answer.
static int take_turns(Run *run, Dialogue *d, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    int code = o->prompt ? option_text(o, o->prompt, &d->user, error) : LLAMA_OK;
    for (d->first = true; code == LLAMA_OK && d->finish != LLAMA_STOP_LENGTH; d->first = false) {
        if (!d->user.bytes && (d->system.bytes || !d->first)) code = ask(run, "User: ", false, &d->user, error);
        if (code != LLAMA_OK || !d->user.bytes) break;
        code = take_turn(run, d, error);
        buffer_free(&d->user);
    }
    return code;
}

// The template of the chat. An error where there is none, or none that this program runs.
static int find_template(const Run *run, LlamaChat *chat, LlamaError *error) {
    *chat = llama_chat_of(run->model);
    if (run->options->template_kind != LLAMA_CHAT_NONE)
        *chat = (LlamaChat){.kind = run->options->template_kind, .bos = chat->bos};
    bool hosted = chat->kind == LLAMA_CHAT_OTHER && run->console.host.converse;
    return hosted ? LLAMA_OK : chat_known(run->options->model, chat, error);
}

static int chat(Run *run, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    Dialogue d = {.finish = LLAMA_RUNNING};
    int code = find_template(run, &d.chat, error);
    if (code == LLAMA_OK)
        code = o->system ? option_text(o, o->system, &d.system, error)
                         : ask(run, "Enter system prompt (optional): ", true, &d.system, error);
    if (code == LLAMA_OK) code = take_turns(run, &d, error);
    if (code == LLAMA_OK && d.finish == LLAMA_STOP_LENGTH)
        console_note(&run->console, "the conversation fills the context of %d positions\n",
                     llama_context_options(run->ctx)->context);
    else if (code == LLAMA_OK)
        code = console_write(&run->console, "\n", 1, error);
    conversation_free(&d.said);
    buffer_free(&d.system);
    buffer_free(&d.user);
    return code;
}

#endif
