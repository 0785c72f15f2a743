// guard.h: model files that shrink while they are mapped. To read what is gone raises SIGBUS, which ends the
// process and all else that it does. A process that asks for it reads zeros there instead. The texts that come of
// them are nonsense: who guards a model looks at the size of its file before it believes one.
#ifndef LLAMA_GUARD_H
#define LLAMA_GUARD_H

#include "model.h" // LlamaModel

#include <signal.h> // sigaction

enum { GUARDS = 16 }; // models of a process that can be guarded

// A handler knows nothing but what is global. A slot without a size is free.
static struct {
    struct sigaction before; // what other faults get
    uintptr_t page;          // bytes of one, 0 until the handler is there
    volatile uintptr_t begin[GUARDS], size[GUARDS];
} guard;

// Puts zeros where the rest of a file was. mmap is a system call, and a fault interrupts nothing that it needs.
static void guard_fault(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    uintptr_t at = (uintptr_t)info->si_addr;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, error = errno;
    for (int i = 0; i < GUARDS; i++) {
        if (at < guard.begin[i] || at - guard.begin[i] >= guard.size[i]) continue;
        uintptr_t first = at - at % guard.page, end = guard.begin[i] + guard.size[i];
        if (mmap((void *)first, end - first, PROT_READ, flags, -1, 0) == MAP_FAILED) break;
        errno = error;
        return;
    }
    sigaction(SIGBUS, &guard.before, NULL); // the fault comes again, and is another's
}

static int guard_start(LlamaError *error) {
    struct sigaction action = {.sa_sigaction = guard_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (guard.page) return LLAMA_OK;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, &guard.before) != 0)
        return fail(error, LLAMA_ERROR_RESOURCE, "SIGBUS can't be handled: %s", strerror(errno));
    guard.page = (uintptr_t)sysconf(_SC_PAGESIZE);
    return LLAMA_OK;
}

int llama_guard(const LlamaModel *m, LlamaError *error) {
    int code = guard_start(error);
    if (code != LLAMA_OK) return code;
    for (int i = 0; i < GUARDS; i++) {
        if (guard.size[i]) continue;
        guard.begin[i] = (uintptr_t)m->file.data;
        guard.size[i] = (uintptr_t)m->file.size;
        return LLAMA_OK;
    }
    return fail(error, LLAMA_ERROR_RESOURCE, "%s: %d models are guarded already", m->path, GUARDS);
}

void llama_unguard(const LlamaModel *m) {
    for (int i = 0; i < GUARDS; i++)
        if (guard.begin[i] == (uintptr_t)m->file.data) guard.size[i] = 0;
}

#endif
