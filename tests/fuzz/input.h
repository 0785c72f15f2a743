// input.h: what an entry takes from the fuzzer's bytes, and files in memory that the engine opens by a path.
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#define PROMISE(what)                                                                                              \
    do {                                                                                                           \
        if (!(what)) {                                                                                             \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #what);                                     \
            abort();                                                                                               \
        }                                                                                                          \
    } while (0)

typedef struct {
    const uint8_t *data; // (size) that are left
    size_t size;
} Input;

// The next byte, 0 behind the last one.
static uint8_t take_byte(Input *input) {
    if (input->size == 0) return 0;
    input->size--;
    return *input->data++;
}

// The next n bytes into `to`, with zeros for those that are not there.
static void take_bytes(Input *input, void *to, size_t n) {
    size_t there = MIN(n, input->size);
    memset(to, 0, n);
    if (there > 0) memcpy(to, input->data, there);
    input->data += there;
    input->size -= there;
}

// A copy whose end is the end of its memory, with `more` zeros behind it. The caller frees it.
static uint8_t *copy_of(Input input, size_t more) {
    uint8_t *copy = calloc(1, input.size + more);
    PROMISE(copy);
    if (input.size > 0) memcpy(copy, input.data, input.size);
    return copy;
}

typedef struct {
    int descriptor;
    char path[32];
} MemoryFile;

static MemoryFile file_of(const void *bytes, size_t n) {
    MemoryFile file = {.descriptor = memfd_create("fuzz", 0)};
    PROMISE(file.descriptor >= 0 && write(file.descriptor, bytes, n) == (ssize_t)n);
    snprintf(file.path, sizeof file.path, "/proc/self/fd/%d", file.descriptor);
    return file;
}

// Bytes of the character that a text of n > 0 bytes begins with, 0 where it is none.
static size_t character_length(const char *text, size_t n) {
    int length = utf8_length(text, n);
    return length > 0 ? (size_t)length : 0;
}

// Whether a text is whole characters.
static bool is_whole(const char *text, size_t length) {
    for (size_t at = 0, n; at < length; at += n)
        if (!(n = character_length(text + at, length - at))) return false;
    return true;
}

static void store_u32(uint8_t *at, uint32_t value) {
    memcpy(at, &value, sizeof value);
}

// An error has a code that is none of success, and one line.
static void check_error(int code, const LlamaError *error) {
    PROMISE(code == LLAMA_ERROR_USAGE || code == LLAMA_ERROR_FILE || code == LLAMA_ERROR_RESOURCE);
    PROMISE(error->code == code && error->text[0] && !strchr(error->text, '\n'));
    PROMISE(strlen(error->text) < sizeof error->text);
}

#endif
