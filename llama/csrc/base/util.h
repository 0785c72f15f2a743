// util.h: errors, aligned memory, file mapping, clock. The platform (POSIX) lives here and in threads.h.
#ifndef LLAMA_UTIL_H
#define LLAMA_UTIL_H

#include "../llama.h"

#include <errno.h>    // errno
#include <fcntl.h>    // open
#include <stdarg.h>   // va_list
#include <stdbool.h>  // bool
#include <stdio.h>    // vsnprintf
#include <stdlib.h>   // calloc
#include <string.h>   // memcpy, strerror
#include <sys/mman.h> // mmap
#include <sys/stat.h> // fstat
#include <time.h>     // clock_gettime
#include <unistd.h>   // close, sysconf

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define COUNT(array) (sizeof(array) / sizeof *(array))

// ---------------------------------------------------------------------------------------------------------
// Errors

// Puts the end of a message, where the reason is, into the place of what did not fit: a path may be longer than a
// line.
__attribute__((format(printf, 3, 0))) static void keep_end(LlamaError *error, size_t length, const char *format,
                                                           va_list arguments) {
    enum { END = sizeof error->text / 2 };
    char *text = malloc(length + 1);
    if (!text) return;
    vsnprintf(text, length + 1, format, arguments);
    memcpy(error->text + sizeof error->text - END - 3, "...", 3);
    memcpy(error->text + sizeof error->text - END, text + length + 1 - END, END);
    free(text);
}

// Puts ? in the place of what a terminal would obey: the name of a file may hold newlines and escape sequences.
static void mask_controls(char *text) {
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        bool wide = c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0; // U+0080 to U+009F
        if (wide) *c++ = '?';
        if (wide || *c < ' ' || *c == 127) *c = '?';
    }
}

// Fills in the error and returns its code, so that a check reads `return fail(error, CODE, "...")`.
__attribute__((format(printf, 3, 4))) static int fail(LlamaError *error, int code, const char *format, ...) {
    if (!error) return code;
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    error->code = code;
    int length = vsnprintf(error->text, sizeof error->text, format, arguments);
    if (length >= (int)sizeof error->text) keep_end(error, (size_t)length, format, again);
    va_end(again);
    va_end(arguments);
    mask_controls(error->text);
    return code;
}

static int fail_memory(LlamaError *error, uint64_t bytes) {
    return fail(error, LLAMA_ERROR_RESOURCE, "out of memory: %.1f MiB more are needed", (double)bytes / (1 << 20));
}

// ---------------------------------------------------------------------------------------------------------
// Memory

static uint64_t round_up(uint64_t n, uint64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

// Zeroed pages, aligned to at least 4096 bytes, that cost memory only once they are touched. NULL if there are
// none. Freed by pages_free with the same size.
static void *pages_alloc(uint64_t bytes) {
    if (bytes == 0 || bytes > SIZE_MAX / 2) return NULL;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *pages = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static void pages_free(void *pages, uint64_t bytes) {
    if (pages) munmap(pages, (size_t)bytes);
}

static uint64_t physical_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : UINT64_MAX;
}

// ---------------------------------------------------------------------------------------------------------
// Files

typedef struct {
    const uint8_t *data; // (size)
    uint64_t size;
} Mapping;

static void mapping_free(Mapping *file) {
    if (file->data) munmap((void *)file->data, (size_t)file->size);
    *file = (Mapping){0};
}

// Maps a whole regular file for reading. Opens without blocking, so that a FIFO is refused and not waited for.
static int mapping_init(Mapping *file, const char *path, LlamaError *error) {
    *file = (Mapping){0};
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return fail(error, LLAMA_ERROR_FILE, "%s: %s", path, strerror(errno));
    struct stat status;
    int code = LLAMA_OK;
    if (fstat(fd, &status) != 0) {
        code = fail(error, LLAMA_ERROR_FILE, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        const char *kind = S_ISDIR(status.st_mode) ? "a directory" : "a pipe or a device";
        code = fail(error, LLAMA_ERROR_FILE, "%s: is %s, not a file", path, kind);
    } else if (status.st_size == 0) {
        code = fail(error, LLAMA_ERROR_FILE, "%s: is empty", path);
    } else {
        void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            code = fail(error, LLAMA_ERROR_RESOURCE, "%s: can't be mapped: %s", path, strerror(errno));
        } else {
            *file = (Mapping){data, (uint64_t)status.st_size};
        }
    }
    close(fd);
    return code;
}

// Values at any address: fields of the formats are not always aligned.
static inline int32_t load_i32(const void *p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline float load_f32(const void *p) {
    float value;
    memcpy(&value, p, sizeof value);
    return value;
}

// What a file of another kind is, by its first bytes, for the error message; NULL if it is none of these.
static const char *file_kind(const uint8_t *data, uint64_t size) {
    static const struct {
        uint64_t offset;
        const char *magic, *kind;
    } kinds[] = {
        {0, "GGUF", "a GGUF file"},
        {0, "PK\3\4", "a zip archive, such as a PyTorch checkpoint (.pt, .pth)"},
        {0, "\x80\2", "a Python pickle, such as an old PyTorch checkpoint"},
        {0, "\x80\4", "a Python pickle"},
        {0, "\x80\5", "a Python pickle"},
        {8, "{\"", "a safetensors file"},
        {0, "version https://git-lfs", "a Git LFS pointer: run git lfs pull"},
        {0, "<!DOCTYPE", "an HTML page"},
        {0, "<!doctype", "an HTML page"},
        {0, "<html", "an HTML page"},
        {0, "{", "a JSON file"},
        {0, "\x1f\x8b", "a gzip archive"},
        {0,
         "\x7f"
         "ELF",
         "a program"},
        {0, "\n\x0e\n\5<unk>", "a sentencepiece model, not a tokenizer.bin"},
    };
    for (size_t i = 0; i < COUNT(kinds); i++) {
        size_t n = strlen(kinds[i].magic);
        if (size >= kinds[i].offset + n && memcmp(data + kinds[i].offset, kinds[i].magic, n) == 0)
            return kinds[i].kind;
    }
    return NULL;
}

// ---------------------------------------------------------------------------------------------------------
// Clock

static double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
