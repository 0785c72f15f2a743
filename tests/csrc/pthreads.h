// pthreads.h: a team of POSIX threads in the place of OpenMP's, in front of run.c where make tsan builds it.
//
// The thread sanitizer sees what was compiled with it and the C library's threads. How threads of OpenMP's library
// wait for each other it does not see, so each pass would race with the one before. What a team does between its
// begin and its end, and the barriers inside, are threads.h's as ever.
#define _GNU_SOURCE 1
#pragma GCC diagnostic ignored "-Wunused-function" // the team that is replaced
#define team_run team_run_by_openmp
#include "../../llama/csrc/base/threads.h"
#undef team_run
#include <pthread.h> // pthread_create, pthread_join

typedef struct {
    Team team;
    pthread_t id;
    void (*work)(void *job, const Team *team);
    void *job;
} Member;

static void *member_run(void *argument) {
    Member *member = argument;
    member->work(member->job, &member->team);
    barrier_wait(&member->team);
    return NULL;
}

static double team_run(int threads, int processors, void (*work)(void *job, const Team *team), void *job) {
    Barrier barrier = {.spins = threads > processors ? 0 : 1000};
    Member *members = calloc((size_t)threads, sizeof *members);
    if (!members) abort();
    for (int i = 0; i < threads; i++) {
        members[i] = (Member){.team = {i, threads, &barrier}, .work = work, .job = job};
        if (i > 0 && pthread_create(&members[i].id, NULL, member_run, &members[i]) != 0) abort();
    }
    member_run(&members[0]);
    for (int i = 1; i < threads; i++) pthread_join(members[i].id, NULL);
    free(members);
    return 1e-6 * atomic_load(&barrier.waited);
}
