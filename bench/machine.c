// machine.c: what this machine does at best. Bytes read per second, and the arithmetic that kernels are made of.
//
//     cc -O3 -march=native -fopenmp machine.c -o machine
//     ./machine 3 0.1 1,2 1048576,1073741824
//
// The arguments are repeats, seconds of a turn, numbers of threads, bytes that all threads read together, each in
// a part of its own, again and again. A line of output is a turn:
//
//     read 1048576 2 131.4     GB/s of 2 threads within 1 MiB
//     int8 0 2 612.0           1e9 operations a second of 2 threads; a product and a sum are two
//
// Kinds that the processor has no instruction for have no lines. Left out on purpose: writing, latency.
#include <stdint.h> // uint64_t
#include <stdio.h>  // printf
#include <stdlib.h> // malloc, strtod
#include <string.h> // memset
#include <time.h>   // clock_gettime

#include <omp.h> // omp_get_thread_num

#if defined(__x86_64__)
#include <immintrin.h> // _mm512_dpbusd_epi32
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h> // vdotq_s32
#endif

#if defined(__AVX512F__)
#define WIDTH 64 // bytes of a register
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

enum {
    CHAINS = 12,          // sums side by side: enough to hide the latency, few enough for 16 registers
    LINES = 8,            // registers that a step of reading fills
    STEP = LINES * WIDTH, // bytes
    ROUNDS = 20000,       // of arithmetic between two looks at the clock
    LONGEST = 16,         // numbers in a list
};

// A loop from begin to CHAINS, unrolled, so that the array of sums lives in registers.
#ifdef __clang__
#define EACH(i, begin) _Pragma("clang loop unroll(full)") for (int i = begin; i < CHAINS; i++)
#else
#define EACH(i, begin) _Pragma("GCC unroll 16") for (int i = begin; i < CHAINS; i++)
#endif

typedef float Floats __attribute__((vector_size(WIDTH)));
typedef uint64_t Words __attribute__((vector_size(WIDTH)));

static volatile double sink; // results go here, or the compiler would leave out the work

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---------------------------------------------------------------------------------------------------------
// Passes: each does a piece of work and returns how much, in bytes or operations.

typedef double (*Pass)(const char *memory, size_t bytes);

static double pass_read(const char *memory, size_t bytes) {
    Words sums[LINES] = {0};
    for (size_t at = 0; at + STEP <= bytes; at += STEP)
        for (int i = 0; i < LINES; i++) sums[i] ^= *(const Words *)(memory + at + i * WIDTH);
    for (int i = 1; i < LINES; i++) sums[0] ^= sums[i];
    sink = (double)sums[0][0];
    return (double)bytes;
}

static double pass_fp32(const char *memory, size_t bytes) {
    (void)memory, (void)bytes;
    Floats sums[CHAINS], x = {0}, y = {0};
    x += 0.999f, y += 1e-5f;
    for (int i = 0; i < CHAINS; i++) sums[i] = x * (float)i; // equal ones would be computed once
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * x + y; // becomes a fused multiply-add
    for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];
    sink = (double)sums[0][0];
    return 2.0 * ROUNDS * CHAINS * WIDTH / sizeof(float);
}

// DOT adds to each int32 lane of `sum` four products of int8; KEEP hides from the compiler what a
// register holds: that x never changes, that all sums are equal.
#if defined(__AVX512VNNI__)
typedef __m512i Sums;
#define DOT(sum, x, y) _mm512_dpbusd_epi32(sum, x, y)
#define KEEP(x) __asm__ volatile("" : "+v"(x))
#elif defined(__AVXVNNI__)
typedef __m256i Sums;
#define DOT(sum, x, y) _mm256_dpbusd_avx_epi32(sum, x, y)
#define KEEP(x) __asm__ volatile("" : "+x"(x))
#elif defined(__AVX2__)
typedef __m256i Sums;
#define PAIRS(x, y) _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1))
#define DOT(sum, x, y) _mm256_add_epi32(sum, PAIRS(x, y))
#define KEEP(x) __asm__ volatile("" : "+x"(x))
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int32x4_t Sums;
#define DOT(sum, x, y) vdotq_s32(sum, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y))
#define KEEP(x) __asm__ volatile("" : "+w"(x))
#endif

#ifdef DOT
static double pass_int8(const char *memory, size_t bytes) {
    (void)memory, (void)bytes;
    Sums sums[CHAINS], x, y;

    EACH (i, 0) sums[i] = (Sums){0};
    memset(&x, 1, sizeof x);
    memset(&y, 1, sizeof y);
    for (int round = 0; round < ROUNDS; round++)
        EACH (i, 0) {
            KEEP(x);
            sums[i] = DOT(sums[i], x, y);
            KEEP(sums[i]);
        }
    EACH (i, 1) sums[0] ^= sums[i];
    sink = (double)sums[0][0];
    return 2.0 * ROUNDS * CHAINS * sizeof(Sums);
}
#endif

#ifdef __AVX512BF16__
static double pass_bf16(const char *memory, size_t bytes) {
    (void)memory, (void)bytes;
    __m512 sums[CHAINS];
    __m512i x = _mm512_setzero_si512();

    EACH (i, 0) sums[i] = _mm512_setzero_ps();
    for (int round = 0; round < ROUNDS; round++)
        EACH (i, 0) {
            sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)x, (__m512bh)x);
            KEEP(sums[i]);
        }
    EACH (i, 1) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    sink = sums[0][0];
    return 2.0 * ROUNDS * CHAINS * 32;
}
#endif

// ---------------------------------------------------------------------------------------------------------
// Turns

// 1e9 per second of all threads together, each busy for `least` seconds.
static double rate(Pass pass, int threads, double least, const char *memory, size_t bytes) {
    size_t part = bytes / (size_t)threads / STEP * STEP;
    double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        const char *mine = memory + part * (size_t)omp_get_thread_num();
        double done = 0, spent = 0;
        pass(mine, part); // fills the caches
#pragma omp barrier
        double start = now();
        do {
            done += pass(mine, part);
            spent = now() - start;
        } while (spent < least);
        sum += done / spent / 1e9;
    }
    return sum;
}

// The numbers of "1,2,4", and how many they are.
static int list(const char *text, size_t *numbers) {
    int n = 0;
    for (char *end; n < LONGEST && *text; text = *end == ',' ? end + 1 : "")
        numbers[n++] = strtoull(text, &end, 10);
    return n;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        Pass pass;
    } kinds[] = {
        {"fp32", pass_fp32},
#ifdef __AVX512BF16__
        {"bf16", pass_bf16},
#endif
#ifdef DOT
        {"int8", pass_int8},
#endif
    };
    if (argc != 5) return fprintf(stderr, "usage: %s REPEATS SECONDS THREADS,... BYTES,...\n", argv[0]), 2;
    size_t threads[LONGEST], sizes[LONGEST], largest = WIDTH;
    int n_threads = list(argv[3], threads), n_sizes = list(argv[4], sizes);
    double least = strtod(argv[2], NULL);
    for (int i = 0; i < n_sizes; i++) largest = sizes[i] > largest ? sizes[i] : largest;
    char *memory = aligned_alloc(4096, (largest + 4095) / 4096 * 4096);
    if (!memory) return fprintf(stderr, "error: %zu bytes of memory are not to be had\n", largest), 4;
    memset(memory, 1, largest);
    for (long repeat = strtol(argv[1], NULL, 10); repeat > 0; repeat--)
        for (int t = 0; t < n_threads; t++) {
            int team = (int)threads[t];
            for (int i = 0; i < n_sizes; i++)
                printf("read %zu %d %.2f\n", sizes[i], team, rate(pass_read, team, least, memory, sizes[i]));
            for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
                printf("%s 0 %d %.2f\n", kinds[k].name, team, rate(kinds[k].pass, team, least, memory, 0));
            fflush(stdout);
        }
    free(memory);
    return 0;
}
