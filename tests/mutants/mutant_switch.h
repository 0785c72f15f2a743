// mutant_switch.h: mutant(n) of C sources: whether mutant n is the one that the variable MUTANT of the environment
// names. With MUTANTS_REACHED, a file of a byte for each of them, it notes that its place was reached.
#ifndef MUTANT_SWITCH_H
#define MUTANT_SWITCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE // as run.c does, which comes after
#endif

#include <fcntl.h>    // open
#include <stdlib.h>   // getenv, atoi
#include <sys/mman.h> // mmap
#include <sys/stat.h> // fstat
#include <unistd.h>   // close

static int mutant_chosen = -1;
static unsigned char *mutants_reached;

__attribute__((constructor)) static void mutant_read(void) {
    const char *chosen = getenv("MUTANT"), *reached = getenv("MUTANTS_REACHED");
    struct stat status;
    int file = reached ? open(reached, O_RDWR | O_CLOEXEC) : -1;
    if (chosen) mutant_chosen = atoi(chosen);
    if (file < 0) return;
    if (fstat(file, &status) == 0)
        mutants_reached = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
}

static inline int mutant(int number) {
    if (mutants_reached) mutants_reached[number] = 1;
    return number == mutant_chosen;
}

#endif
