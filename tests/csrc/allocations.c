// allocations.c: run.c, but its allocation number $FAIL_AT fails. test_host.py builds and runs it.
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static bool fails(void) {
    static long count;
    const char *at = getenv("FAIL_AT");
    return at && ++count == atol(at);
}

static void *fallible_malloc(size_t n) {
    return fails() ? NULL : malloc(n);
}

static void *fallible_calloc(size_t n, size_t size) {
    return fails() ? NULL : calloc(n, size);
}

static void *fallible_realloc(void *p, size_t n) {
    return fails() ? NULL : realloc(p, n);
}

static char *fallible_strdup(const char *text) {
    return fails() ? NULL : strdup(text);
}

static void *fallible_mmap(void *at, size_t n, int protection, int flags, int descriptor, off_t offset) {
    return fails() ? MAP_FAILED : mmap(at, n, protection, flags, descriptor, offset);
}

#define malloc fallible_malloc
#define calloc fallible_calloc
#define realloc fallible_realloc
#define mmap fallible_mmap
#define strdup fallible_strdup
#include "../../run.c"
