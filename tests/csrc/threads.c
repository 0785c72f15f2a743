// threads.c: how work is cut, and whether a team's barriers hold, for every number of threads up to 128.
// test_threads.py builds and runs it.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // sched_getaffinity
#endif
#pragma GCC diagnostic ignored "-Wunused-function" // of the headers, most is not used here
#include "../../llama/csrc/base/threads.h"

enum { MOST = 128, ROUNDS = 50 };

static int n_failed;

static void check(bool right, const char *what, int threads, int32_t n, int32_t step) {
    if (right) return;
    n_failed++;
    printf("%s is wrong: %d threads, n = %d, step = %d\n", what, threads, n, step);
}

// Ranges follow each other from 0 to n and begin at multiples of step, and no thread has more than one step above
// another.
static void check_ranges(int threads, int32_t n, int32_t step) {
    int32_t end = 0, fewest = INT32_MAX, most = 0;
    for (int t = 0; t < threads; t++) {
        Range range = team_range(&(Team){.thread = t, .threads = threads}, n, step);
        check(range.begin == end && range.begin <= range.end, "the order of ranges", threads, n, step);
        check(range.begin % step == 0 || range.begin == n, "where a range begins", threads, n, step);
        int32_t steps = (range.end - range.begin + step - 1) / step;
        fewest = MIN(fewest, steps);
        most = MAX(most, steps);
        end = range.end;
    }
    check(end == n, "the last range", threads, n, step);
    check(most - fewest <= 1, "the balance", threads, n, step);
}

// ---------------------------------------------------------------------------------------------------------

typedef struct {
    int turn[MOST]; // rounds that each thread has done
    int came[MOST]; // threads of the team that each found
    int late;       // times that a thread was met in another round
} Rounds;

// Each thread counts its rounds and, between two barriers, finds all others in the same one.
static void count_rounds(void *job, const Team *team) {
    Rounds *rounds = job;
    rounds->came[team->thread] = team->threads;
    for (int round = 1; round <= ROUNDS; round++) {
        rounds->turn[team->thread] = round;
        barrier_wait(team);
        for (int t = 0; t < team->threads; t++)
            if (rounds->turn[t] != round) __atomic_add_fetch(&rounds->late, 1, __ATOMIC_RELAXED);
        barrier_wait(team);
    }
}

static void check_barrier(int threads) {
    Rounds rounds = {0};
    team_run(threads, processors(), count_rounds, &rounds);
    int came = rounds.came[0];
    check(came >= 1 && came <= threads, "the size of a team", threads, 0, 0);
    for (int t = 0; t < came; t++)
        check(rounds.turn[t] == ROUNDS && rounds.came[t] == came, "a thread's rounds", threads, t, 0);
    check(rounds.late == 0, "a barrier", threads, rounds.late, 0);
}

int main(void) {
    static const int32_t sizes[] = {0, 1, 2, 7, 15, 16, 17, 36, 172, 448, 4096, 11008, 128256, 1 << 24};
    static const int32_t steps[] = {1, 2, 16, 32, 64};
    for (int threads = 1; threads <= MOST; threads++)
        for (size_t i = 0; i < COUNT(sizes); i++)
            for (size_t j = 0; j < COUNT(steps); j++) check_ranges(threads, sizes[i], steps[j]);
    for (int threads = 1; threads <= MOST; threads += threads < 8 ? 1 : 15) check_barrier(threads);
    return n_failed > 0;
}
