// threads.h: one OpenMP team for a whole forward pass, a spinning barrier inside it.
//
// A parallel region costs a fork and a join (half a microsecond, a hundred on a busy machine); a forward pass has a
// hundred steps that must wait for each other. So the team is made once a pass and its threads meet at barriers.
// One thread runs inline, without OpenMP; so does a build without it.
#ifndef LLAMA_THREADS_H
#define LLAMA_THREADS_H

#include "util.h"

#include <sched.h>     // sched_yield, sched_getaffinity
#include <stdatomic.h> // atomic_int

#ifdef _OPENMP
#include <omp.h> // omp_get_num_threads
#endif

// Where a thread stands in its team.
typedef struct {
    int thread;  // 0 <= thread < threads
    int threads; // those that really came, which may be fewer than were asked for
    struct Barrier *barrier;
} Team;

typedef struct Barrier {
    int spins;                       // before a waiting thread gives up its processor
    _Alignas(64) atomic_int arrived; // threads that wait
    _Alignas(64) atomic_int round;   // barriers passed; apart from `arrived`, as all waiting threads read it
    atomic_int waited;               // microseconds that threads spent here after their spins
} Barrier;

static inline void cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Waits for the whole team. Spins, as the others are mostly less than a microsecond away, and gives up the
// processor if they are not: then another thread of the team may be waiting for this very core.
static void barrier_wait(const Team *team) {
    if (team->threads == 1) return;
    Barrier *barrier = team->barrier;
    int round = atomic_load_explicit(&barrier->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == team->threads - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; spins < barrier->spins; spins++) {
        if (atomic_load_explicit(&barrier->round, memory_order_acquire) != round) return;
        cpu_relax();
    }
    double start = seconds();
    while (atomic_load_explicit(&barrier->round, memory_order_acquire) == round) sched_yield();
    atomic_fetch_add_explicit(&barrier->waited, (int)(1e6 * (seconds() - start)), memory_order_relaxed);
}

#ifdef _OPENMP
// OpenMP's threads do not survive a fork, and a child that asks for them waits for ever: it runs on one thread.
// Which process they belong to is a fact of the process, the only one kept here.
static bool may_fork_a_team(void) {
    static atomic_int owner; // 0: no team yet
    int nobody = 0, self = (int)getpid();
    return atomic_compare_exchange_strong(&owner, &nobody, self) || nobody == self;
}
#endif

// Runs work(job, team) on each thread of a new team and returns when all are done: the seconds that its threads
// waited for each other, but for the first tens of microseconds of each wait.
static double team_run(int threads, int processors, void (*work)(void *job, const Team *team), void *job) {
    Barrier barrier = {.spins = threads > processors ? 0 : 1000}; // tens of microseconds
#ifdef _OPENMP
    if (threads > 1 && may_fork_a_team()) {
#pragma omp parallel num_threads(threads)
        {
            Team team = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
            work(job, &team);
            barrier_wait(&team); // not only OpenMP's, which does not say how long it took
        }
        return 1e-6 * atomic_load(&barrier.waited);
    }
#endif
    work(job, &(Team){0, 1, &barrier});
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// A thread whose processor another program has comes back after milliseconds, and all others wait for it at every
// barrier: two threads that share two processors with two busy programs run at a twentieth of the speed of one. So
// when passes are spent waiting, work goes on with one thread, and now and then it is tried with all.

#define ALONE_TRIAL 0.02 // seconds of passes that decide it
#define ALONE_FIRST 0.1  // seconds on one thread then, doubled each time that all meet the same again
#define ALONE_MOST 2.0

typedef struct {
    double spent, waited; // seconds of the passes of all threads since the last decision
    double length, until; // of the last time on one thread, 0: never, or all went well since
} Alone;

// Threads of the next pass.
static int alone_or(const Alone *alone, int threads) {
    return alone->until > 0 && seconds() < alone->until ? 1 : threads;
}

// Takes note of a pass of all threads.
static void alone_note(Alone *alone, double spent, double waited) {
    alone->spent += spent;
    alone->waited += waited;
    if (alone->spent < ALONE_TRIAL) return;
    bool late = alone->waited > alone->spent / 2;
    double length = late ? MIN(MAX(2 * alone->length, ALONE_FIRST), ALONE_MOST) : 0;
    *alone = (Alone){.length = length, .until = late ? seconds() + length : 0};
}

// The part [begin, end) of n items that falls to this thread, cut at multiples of `step`.
typedef struct {
    int32_t begin, end;
} Range;

static Range team_range(const Team *team, int32_t n, int32_t step) {
    int64_t steps = ((int64_t)n + step - 1) / step;
    int64_t begin = steps * team->thread / team->threads * step;
    int64_t end = steps * (team->thread + 1) / team->threads * step;
    return (Range){(int32_t)MIN(begin, n), (int32_t)MIN(end, n)};
}

// Whether n equal pieces of work keep all threads busy until the end, or nearly so.
static bool team_divides(const Team *team, int32_t n) {
    return n % team->threads == 0 || n >= 16 * team->threads;
}

#ifdef __linux__
// Processors that the quota of a container is worth, rounded up; INT32_MAX where there is none.
static int processors_of_quota(void) {
    long quota = 0, period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r"); // "150000 100000", or "max 100000"
    bool limited = file && fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0;
    if (file) fclose(file);
    return limited ? (int)((quota + period - 1) / period) : INT32_MAX;
}
#endif

// Processors that this process may use.
static int processors(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return MAX(1, MIN(CPU_COUNT(&set), processors_of_quota()));
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

#endif
