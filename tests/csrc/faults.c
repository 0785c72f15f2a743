// faults.c: a library to preload. Call number $FAULT_AT of the function $FAULT_CALL that has to do with a file in
// the folder $FAULT_FOLDER fails, and the file $FAULT_DONE says that it did. faults.py builds and uses it; memory
// that runs out is allocations.c.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// The function of the C library that one here stands in front of.
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static bool lies_in_folder(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

// Whether this call is the one. Sets errno.
static bool fails(const char *call, const char *path) {
    static int count;
    const char *name = getenv("FAULT_CALL"), *at = getenv("FAULT_AT"), *done = getenv("FAULT_DONE");
    if (!name || !at || !done || strcmp(name, call) != 0 || !lies_in_folder(path)) return false;
    if (__atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) != atoi(at)) return false;
    int file = NEXT(open)(done, O_CREAT | O_WRONLY, 0600);
    if (file >= 0) close(file);
    errno = strcmp(call, "write") == 0 ? ENOSPC : EIO;
    return true;
}

static bool fails_at(const char *call, int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return false;
    path[n] = 0;
    return fails(call, path);
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & O_CREAT ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                                                                 \
    int name(const char *path, int flags, ...) {                                                                   \
        va_list rest;                                                                                              \
        va_start(rest, flags);                                                                                     \
        mode_t mode = mode_of(flags, rest);                                                                        \
        va_end(rest);                                                                                              \
        return fails("open", path) ? -1 : NEXT(name)(path, flags, mode);                                           \
    }
OPEN(open)
OPEN(open64)

#define MMAP(name, offset_type)                                                                                    \
    void *name(void *at, size_t n, int protection, int flags, int descriptor, offset_type offset) {                \
        if (descriptor >= 0 && fails_at("mmap", descriptor)) return MAP_FAILED;                                    \
        return NEXT(name)(at, n, protection, flags, descriptor, offset);                                           \
    }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

ssize_t read(int descriptor, void *bytes, size_t n) {
    return fails_at("read", descriptor) ? -1 : NEXT(read)(descriptor, bytes, n);
}

ssize_t write(int descriptor, const void *bytes, size_t n) {
    return fails_at("write", descriptor) ? -1 : NEXT(write)(descriptor, bytes, n);
}

int fsync(int descriptor) {
    return fails_at("fsync", descriptor) ? -1 : NEXT(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
    return fails("rename", from) ? -1 : NEXT(rename)(from, to);
}
