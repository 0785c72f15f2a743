// console.h: how the command line reads and writes: bytes of any length to the host's output, lines and whole files
// in.
#ifndef LLAMA_CONSOLE_H
#define LLAMA_CONSOLE_H

#include "../base/util.h" // fail, fail_memory
#include "llama_run.h"    // LlamaHost

// Bytes of any length, NUL included.
typedef struct {
    char *bytes; // (room) NULL: none
    size_t length, room;
} Buffer;

static void buffer_free(Buffer *buffer) {
    free(buffer->bytes);
    *buffer = (Buffer){0};
}

// Room for n more bytes, and for one in any case, so that a text without bytes differs from none.
static int buffer_reserve(Buffer *buffer, size_t n, LlamaError *error) {
    if (buffer->bytes && buffer->room - buffer->length >= n) return LLAMA_OK;
    size_t room = MAX(2 * buffer->room, buffer->length + n + 1);
    char *bytes = realloc(buffer->bytes, room);
    if (!bytes) return fail_memory(error, room);
    buffer->bytes = bytes;
    buffer->room = room;
    return LLAMA_OK;
}

static int buffer_append(Buffer *buffer, const char *bytes, size_t n, LlamaError *error) {
    int code = buffer_reserve(buffer, n, error);
    if (code != LLAMA_OK) return code;
    memcpy(buffer->bytes + buffer->length, bytes, n);
    buffer->length += n;
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// The standard descriptors, for the functions that a host leaves out

static int64_t standard_write(void *user, const char *bytes, size_t n) {
    (void)user;
    ssize_t written = write(STDOUT_FILENO, bytes, n);
    return written < 0 ? -errno : written;
}

static void standard_note(void *user, const char *bytes, size_t n) {
    (void)user;
    for (ssize_t written; n > 0; bytes += written, n -= (size_t)written) {
        written = write(STDERR_FILENO, bytes, n);
        if (written < 0) return; // there is nobody left to tell
    }
}

static int64_t descriptor_read(void *descriptor, char *bytes, size_t room) {
    ssize_t got = read(*(int *)descriptor, bytes, room);
    return got < 0 ? -errno : got;
}

static int64_t standard_read(void *user, char *bytes, size_t room) {
    (void)user;
    int descriptor = STDIN_FILENO;
    return descriptor_read(&descriptor, bytes, room);
}

static int never_interrupted(void *user) {
    (void)user;
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Console

typedef struct {
    LlamaHost host;   // with all of its functions
    char input[4096]; // what was read and belongs to the next line: input[begin, end)
    size_t begin, end;
    bool has_line; // one was taken
} Console;

static void console_init(Console *console, const LlamaHost *host) {
    *console = (Console){0};
    if (host) console->host = *host;
    LlamaHost *h = &console->host;
    if (!h->write) h->write = standard_write;
    if (!h->note) h->note = standard_note;
    if (!h->read) h->read = standard_read;
    if (!h->interrupted) h->interrupted = never_interrupted;
}

// Whether the run goes on.
static int console_check(const Console *console, LlamaError *error) {
    if (!console->host.interrupted(console->host.user)) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_INTERRUPTED, "interrupted");
}

static int console_write(const Console *console, const char *bytes, size_t n, LlamaError *error) {
    while (n > 0) {
        int code = console_check(console, error);
        if (code != LLAMA_OK) return code;
        int64_t written = console->host.write(console->host.user, bytes, n);
        if (written == -EINTR) continue;
        if (written <= 0)
            return fail(error, written == -EPIPE ? LLAMA_ERROR_CLOSED : LLAMA_ERROR_RESOURCE, "standard output: %s",
                        strerror(written ? (int)-written : EIO));
        bytes += written;
        n -= (size_t)written;
    }
    return LLAMA_OK;
}

// Writes a line, its newline part of the format, that is not part of the text. Without memory for it there is none.
__attribute__((format(printf, 2, 3))) static void console_note(const Console *console, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int n = vsnprintf(NULL, 0, format, arguments);
    char *line = n < 0 ? NULL : malloc((size_t)n + 1);
    if (line) {
        vsnprintf(line, (size_t)n + 1, format, again);
        console->host.note(console->host.user, line, (size_t)n);
    }
    free(line);
    va_end(again);
    va_end(arguments);
}

// ---------------------------------------------------------------------------------------------------------
// Input

// Where bytes come from. read: as that of LlamaHost.
typedef struct {
    const char *name; // for messages
    int64_t (*read)(void *user, char *bytes, size_t room);
    void *user;
} Source;

static Source console_source(const Console *console) {
    return (Source){"standard input", console->host.read, console->host.user};
}

// Reads up to `room` bytes. n: their number, 0 at the end.
static int read_some(const Console *console, Source source, char *bytes, size_t room, size_t *n,
                     LlamaError *error) {
    int64_t got;
    do {
        int code = console_check(console, error);
        if (code != LLAMA_OK) return code;
        got = source.read(source.user, bytes, room);
    } while (got == -EINTR);
    if (got < 0) return fail(error, LLAMA_ERROR_FILE, "%s: %s", source.name, strerror((int)-got));
    *n = (size_t)got;
    return LLAMA_OK;
}

// Reads all that is left. The caller frees the buffer, of an error too.
static int read_all(const Console *console, Source source, Buffer *buffer, LlamaError *error) {
    for (size_t n = 1; n > 0; buffer->length += n) {
        int code = buffer_reserve(buffer, 4096, error);
        char *end = buffer->bytes + buffer->length;
        if (code == LLAMA_OK) code = read_some(console, source, end, buffer->room - buffer->length, &n, error);
        if (code != LLAMA_OK) return code;
    }
    return LLAMA_OK;
}

// The bytes of a file, of the input for "-". The caller frees the buffer, of an error too.
static int read_file(const Console *console, const char *path, Buffer *buffer, LlamaError *error) {
    if (strcmp(path, "-") == 0) return read_all(console, console_source(console), buffer, error);
    int descriptor, code;
    do {
        code = console_check(console, error);
        if (code != LLAMA_OK) return code;
        descriptor = open(path, O_RDONLY | O_CLOEXEC); // of a pipe: waits for a writer
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) return fail(error, LLAMA_ERROR_FILE, "%s: %s", path, strerror(errno));
    code = read_all(console, (Source){path, descriptor_read, &descriptor}, buffer, error);
    close(descriptor);
    return code;
}

// Reads a line of the input without its newline. bytes stays NULL at the end of the input, which one that is closed
// or can't be read is at. The caller frees the line, of an error too.
static int read_line(Console *console, Buffer *line, LlamaError *error) {
    const char *newline = NULL;
    while (!newline) {
        if (console->begin == console->end) {
            size_t n = 0;
            int code =
                read_some(console, console_source(console), console->input, sizeof console->input, &n, error);
            if (code == LLAMA_ERROR_FILE || (code == LLAMA_OK && n == 0)) return LLAMA_OK;
            if (code != LLAMA_OK) return code;
            console->begin = 0;
            console->end = n;
        }
        const char *begin = console->input + console->begin;
        size_t left = console->end - console->begin;
        newline = memchr(begin, '\n', left);
        size_t n = newline ? (size_t)(newline - begin) : left;
        int code = buffer_append(line, begin, n, error);
        if (code != LLAMA_OK) return code;
        console->begin += newline ? n + 1 : n;
    }
    return LLAMA_OK;
}

#endif
