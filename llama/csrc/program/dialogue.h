// dialogue.h: -m chat, turn by turn until the input ends or the context is full. What a turn is as token ids:
// ../text/chat.h.
#ifndef LLAMA_DIALOGUE_H
#define LLAMA_DIALOGUE_H

#include "../text/chat.h" // llama_chat_turn
#include "prompt.h"       // option_text, typed_line
#include "run.h"          // Run, write_text

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

// The ids of the next turn, by the model's template. system: empty for none. The caller frees ids.
static int turn_ids(const Run *run, const Buffer *system, const Buffer *user, bool first, int32_t **ids, size_t *n,
                    LlamaError *error) {
    const char *instructions = first && system->length > 0 ? system->bytes : NULL;
    LlamaChat said = llama_chat_of(run->model);
    size_t bytes = llama_chat_bound(&said, system->length, user->length) * sizeof **ids;
    *ids = malloc(bytes);
    if (!*ids) return fail_memory(error, bytes);
    return llama_chat_turn(run->tokenizer, &said, instructions, system->length, user->bytes, user->length, first,
                           *ids, n, error);
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
static int take_turn(Run *run, const Buffer *system, const Buffer *user, bool first, int32_t *finish,
                     LlamaError *error) {
    int32_t *ids = NULL;
    size_t n = 0;
    int code = turn_ids(run, system, user, first, &ids, &n, error);
    if (code == LLAMA_OK && first) code = run_check_room(run, n, error);
    if (code == LLAMA_OK) code = write_answer(run, ids, n, finish, error);
    free(ids);
    return code;
}

// Turn after turn, -i the first. An input that ended instead of a system prompt still leaves that one to answer.
static int take_turns(Run *run, const Buffer *system, Buffer *user, int32_t *finish, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    int code = o->prompt ? option_text(o, o->prompt, user, error) : LLAMA_OK;
    for (bool first = true; code == LLAMA_OK && *finish != LLAMA_STOP_LENGTH; first = false) {
        if (!user->bytes && (system->bytes || !first)) code = ask(run, "User: ", false, user, error);
        if (code != LLAMA_OK || !user->bytes) break;
        code = take_turn(run, system, user, first, finish, error);
        buffer_free(user);
    }
    return code;
}

static int chat(Run *run, LlamaError *error) {
    const LlamaRunOptions *o = run->options;
    Buffer system = {0}, user = {0};
    int32_t finish = LLAMA_RUNNING;
    int code = o->system ? option_text(o, o->system, &system, error)
                         : ask(run, "Enter system prompt (optional): ", true, &system, error);
    if (code == LLAMA_OK) code = take_turns(run, &system, &user, &finish, error);
    if (code == LLAMA_OK && finish == LLAMA_STOP_LENGTH)
        console_note(&run->console, "the conversation fills the context of %d positions\n",
                     llama_context_options(run->ctx)->context);
    else if (code == LLAMA_OK)
        code = console_write(&run->console, "\n", 1, error);
    buffer_free(&system);
    buffer_free(&user);
    return code;
}

#endif
