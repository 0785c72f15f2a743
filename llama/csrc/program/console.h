// console.h: bytes of any length, from standard input or a file and to standard output, for the command line.
#ifndef LLAMA_CONSOLE_H
#define LLAMA_CONSOLE_H

#include "../base/util.h" // fail, fail_memory

#include <errno.h>
#include <stdio.h>

// Bytes of any length, NUL included.
typedef struct {
    char *bytes; // NULL: none
    size_t length;
} Buffer;

static int write_out(const char *bytes, size_t n, LlamaError *error) {
    if (n == 0 || (fwrite(bytes, 1, n, stdout) == n && fflush(stdout) == 0)) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_RESOURCE, "standard output: %s", strerror(errno));
}

// Reads up to the delimiter, which is dropped, or with EOF as delimiter all there is. bytes stays NULL at the end
// of the file.
static int read_until(FILE *file, int delimiter, Buffer *buffer, LlamaError *error) {
    size_t room = 0;
    *buffer = (Buffer){0};
    for (int c; (c = getc(file)) != EOF;) {
        if (buffer->length + 1 >= room) {
            room = room ? 2 * room : 256;
            char *bytes = realloc(buffer->bytes, room);
            if (!bytes) return fail_memory(error, room);
            buffer->bytes = bytes;
        }
        if (c == delimiter) return LLAMA_OK;
        buffer->bytes[buffer->length++] = (char)c;
    }
    return LLAMA_OK;
}

static int read_file(const char *path, Buffer *buffer, LlamaError *error) {
    bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    int code = file ? read_until(file, EOF, buffer, error) : LLAMA_ERROR_FILE;
    if (code == LLAMA_ERROR_FILE || (file && ferror(file)))
        code = fail(error, LLAMA_ERROR_FILE, "%s: %s", standard ? "standard input" : path, strerror(errno));
    if (file && !standard) fclose(file);
    if (buffer->length > 0 && buffer->bytes[buffer->length - 1] == '\n') buffer->length--;
    return code;
}

#endif
