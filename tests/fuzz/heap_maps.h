// heap_maps.h: run.c, with the scalar kernels alone, and what it maps in the heap, so that one byte behind a file
// or a cache is an error for the address sanitizer. Included first, as it includes all that run.c does.
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST_BYTES = 1 << 28, PAGE = 4096 }; // of one mapping, and what it is aligned to

static void *heap_mmap(void *at, size_t n, int protection, int flags, int descriptor, off_t offset) {
    void *bytes;
    if (at) return mmap(at, n, protection, flags, descriptor, offset);
    if (n > MOST_BYTES || posix_memalign(&bytes, PAGE, n) != 0) return MAP_FAILED;
    memset(bytes, 0, n);
    if (descriptor >= 0 && pread(descriptor, bytes, n, offset) != (ssize_t)n) abort();
    return bytes;
}

static int heap_munmap(void *at, size_t n) {
    (void)n;
    free(at);
    return 0;
}

#define mmap heap_mmap
#define munmap heap_munmap
// clang takes many minutes to put sanitizers into the other kernels, which make sanitize has.
#undef __x86_64__
#undef __aarch64__
#pragma GCC diagnostic ignored "-Wunused-function" // what only they call
#ifdef __clang__
// Loops over bytes and numbers that lead nowhere else: to note each of their comparisons takes most of the time.
#define NOT_COUNTED __attribute__((no_sanitize("coverage"))) static
NOT_COUNTED uint32_t crc32_of(uint32_t crc, const uint8_t *data, uint64_t n);
NOT_COUNTED double likelihoods_scalar(float *x, double *mass, int32_t n, float max, float scale);
#endif
#include "../../run.c"
#undef mmap
#undef munmap
