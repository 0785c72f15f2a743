// kernels.c: the kernels of every instruction set against the scalar ones, which are the specification.
//
//     make kernels     those of this machine's CPU
//     make neon        those of ARM, under an emulator
//
//     kernels [NAME ...]     checks the tables of these names, which the CPU must have; without a name, all it has
//
// Inputs are random, and shapes fill neither vectors nor tiles. Every array ends where memory ends that may not be
// read or written, so a kernel that goes too far is killed. Left out on purpose: how fast they are.
#define LLAMA_LIBRARY
#define _GNU_SOURCE // as run.c has it
#ifdef AMX_IN_C
#include "amx_in_c.h"
#endif
#include "../../run.c"

#include <signal.h> // sigaltstack

enum { MAX_ROWS = 37, MAX_ARRAYS = 32 };

static int n_failed;

static void check(bool right, const char *kernels, const char *what, int64_t a, int64_t b, int64_t c) {
    if (right) return;
    n_failed++;
    printf("FAILED: %s: %s: %lld, %lld, %lld\n", kernels, what, (long long)a, (long long)b, (long long)c);
}

// ---------------------------------------------------------------------------------------------------------
// Inputs

static uint64_t state = 1;

static uint32_t random_bits(void) { // Knuth's linear congruential generator, MMIX
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float uniform(float min, float max) {
    return min + (max - min) * (float)(random_bits() >> 8) / (1 << 24);
}

static struct {
    uint8_t *pages;
    size_t bytes;
} arrays[MAX_ARRAYS];
static int n_arrays;

// n bytes, all 255 (NaN as floats), that end where a page begins that may not be touched.
static void *array(int64_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = round_up((uint64_t)n, page) + page;
    uint8_t *pages = n_arrays < MAX_ARRAYS ? pages_alloc(bytes) : NULL;
    if (!pages || mprotect(pages + bytes - page, page, PROT_NONE) != 0) abort();
    arrays[n_arrays].pages = pages;
    arrays[n_arrays++].bytes = bytes;
    return memset(pages + bytes - page - n, 255, (size_t)n);
}

// All but the first ones.
static void free_arrays(int kept) {
    while (n_arrays > kept) {
        n_arrays--;
        pages_free(arrays[n_arrays].pages, arrays[n_arrays].bytes);
    }
}

static float *floats(int64_t n, float min, float max) {
    float *x = array(n * (int64_t)sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = uniform(min, max);
    return x;
}

static uint16_t *bf16s(int64_t n) {
    uint16_t *x = array(n * (int64_t)sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        float value = uniform(-1, 1);
        memcpy(&x[i], (uint8_t *)&value + 2, sizeof *x);
    }
    return x;
}

// From min to max, or only these two.
static int8_t *bytes(int64_t n, int min, int max, bool extreme) {
    int8_t *x = array(n);
    uint32_t count = (uint32_t)(max - min + 1);
    for (int64_t i = 0; i < n; i++)
        x[i] = (int8_t)(extreme ? random_bits() >> 31 ? min : max : min + (int)(random_bits() % count));
    return x;
}

// ---------------------------------------------------------------------------------------------------------
// Comparisons

static bool same_bits(const float *a, const float *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

// |a - b| <= absolute + relative x |b|. Equal infinities are near, as are two NaN.
static bool near(const float *a, const float *b, int64_t n, float absolute, float relative) {
    for (int64_t i = 0; i < n; i++) {
        if (a[i] == b[i] || (isnan(a[i]) && isnan(b[i]))) continue;
        if (!(fabsf(a[i] - b[i]) <= absolute + relative * fabsf(b[i]))) return false;
    }
    return true;
}

#define ROUNDING 0x1p-24f // largest relative error of one rounded operation

// ---------------------------------------------------------------------------------------------------------
// Floats of 16 bits: every one of them, what lies halfway to its neighbour, and what lies just beside that.

static float float_of(uint32_t bits) {
    return load_f32(&bits);
}

static void check_fp16(void) {
    for (int32_t half = 0; half < 0x7c00; half++) {
        int32_t exponent = half >> 10, fraction = half & 1023;
        float low = half_to_float((uint16_t)half),
              high = half == 0x7bff ? 65536 : half_to_float((uint16_t)(half + 1));
        float middle = (low + high) / 2,
              value = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
        check(low == value && half_to_float((uint16_t)(half | 0x8000)) == -value, "fp16", "to float", half, 0, 0);
        check(float_to_half(low) == half && float_to_half(-low) == (half | 0x8000) &&
                  float_to_half(middle) == half + half % 2 && float_to_half(nextafterf(middle, 0)) == half &&
                  float_to_half(nextafterf(middle, INFINITY)) == half + 1,
              "fp16", "from float", half, 0, 0);
    }
    check(float_to_half(INFINITY) == 0x7c00 && float_to_half(-1e30f) == 0xfc00, "fp16", "infinity", 0, 0, 0);
    check(half_to_float(0xfc00) == -INFINITY && isnan(half_to_float(0x7c01)), "fp16", "infinity or NaN", 0, 0, 0);
}

static void check_bf16(void) {
    for (uint32_t half = 0; half < 0x7f80; half++) {
        uint32_t low = half << 16;
        check(float_to_bf16(float_of(low)) == half && float_to_bf16(float_of(low | 0x7fff)) == half &&
                  float_to_bf16(float_of(low | 0x8000)) == half + half % 2 &&
                  float_to_bf16(-float_of(low | 0x8001)) == (half + 1) + 0x8000,
              "bf16", "from float", half, 0, 0);
    }
    for (uint32_t bits = 0x7f800001; bits < 0x7fffff00; bits += 255) // only the last bits may say that it is a NaN
        check(isnan(bf16_to_float(float_to_bf16(float_of(bits)))) &&
                  isnan(half_to_float(float_to_half(float_of(bits)))),
              "bf16 or fp16", "loses a NaN", bits, 0, 0);
}

// ---------------------------------------------------------------------------------------------------------
// Matmul. Weights and activations, or their quants x scales, are at most 1 each, and either kernel rounds a sum at
// most once a column.

static const int32_t sizes[] = {1, 2, 3, 5, 7, 8, 15, 16, 17, 48, 100, 172, 288, 1000};

// alone (MAX_ROWS, rows) are the results for each row of x by itself; expected are those of the scalar kernel.
static void check_matmul(const Kernels *kernels, const Rows *x, const Tensor *w, float tolerance) {
    int32_t r = w->rows;
    int64_t n = (int64_t)MAX_ROWS * r;
    float *alone = floats(n, 0, 0), *expected = floats(n, 0, 0);
    int32_t kept = n_arrays, step = w->type >= TILES_FP32 ? TILE_ROWS : 1;
    for (int32_t i = 0; i < MAX_ROWS; i++) {
        Rows row = rows_from(x, i);
        kernels->matmul[w->type](alone + (int64_t)i * r, r, &row, 1, w, 0, r);
    }
    kernels_scalar.matmul[w->type](expected, r, x, MAX_ROWS, w, 0, r);
    check(near(alone, expected, n, tolerance, 0), kernels->name, "matmul differs: type, rows, columns", w->type, r,
          w->cols);
    for (int32_t i = 1; i <= MAX_ROWS; i++) {
        float *out = array((int64_t)i * r * 4), *untouched = array(r * 4);
        int32_t cut = (int32_t)(random_bits() % (uint32_t)(r + 1)) / step * step;
        kernels->matmul[w->type](out, r, x, i, w, cut, r);
        for (int32_t j = 0; j < i; j++)
            check(same_bits(out + (int64_t)j * r, untouched, cut), kernels->name,
                  "matmul writes outside its range: type, rows, columns", w->type, r, w->cols);
        kernels->matmul[w->type](out, r, x, i, w, 0, cut);
        check(same_bits(out, alone, (int64_t)i * r), kernels->name,
              "matmul of n rows is not that of each row: type, n, columns", w->type, i, w->cols);
        free_arrays(kept);
    }
    free_arrays(0);
}

static void check_matmul_floats(const Kernels *kernels, int32_t rows, int32_t cols) {
    Rows x = {.cols = cols};
    Tensor w = {.type = ROWS_FP32, .rows = rows, .cols = cols};
    x.values = floats((int64_t)MAX_ROWS * cols, -1, 1);
    w.data = floats((int64_t)rows * cols, -1, 1);
    check_matmul(kernels, &x, &w, 2 * (float)cols * ROUNDING);
}

// The specification of tiles is exact to the last bit.
static void check_matmul_tiles_floats(const Kernels *kernels, int32_t type, int32_t rows, int32_t cols) {
    Tensor w = {.type = type, .rows = rows, .cols = cols};
    Rows x = {.cols = cols};
    x.values = floats((int64_t)MAX_ROWS * cols, -1, 1);
    int64_t n = (int64_t)tensor_bytes(&w);
    w.data = type == TILES_FP32 ? (void *)floats(n / 4, -1, 1) : bf16s(n / 2);
    check_matmul(kernels, &x, &w, 0);
}

// x row i . w row r in the order of AMX: 32 columns at a time, those with even numbers and those with odd ones
// apart.
static float bf16_in_order_of_amx(const Rows *x, int32_t i, const Tensor *w, int32_t r) {
    float sum = 0;
    for (int32_t begin = 0; begin < w->cols; begin += 32) {
        float some[2] = {0};
        for (int32_t k = begin; k < MIN(begin + 32, w->cols); k++)
            some[k % 2] = fmaf(x->values[(int64_t)i * x->cols + k],
                               tile_float(tensor_tile(w, r), r % TILE_ROWS, k, TILES_BF16), some[k % 2]);
        sum += some[0] + some[1];
    }
    return sum;
}

static void check_order_of_amx(const Kernels *kernels, const Rows *x, const Tensor *w) {
    float *out = array(w->rows * 4);
    kernels->matmul[TILES_BF16](out, w->rows, x, 1, w, 0, w->rows);
    for (int32_t r = 0; r < w->rows; r++)
        check(out[r] == bf16_in_order_of_amx(x, 0, w, r), kernels->name, "order of bf16: rows, row, columns",
              w->rows, r, w->cols);
}

// Where activations are rounded to bf16 too, products of two columns are added at a time.
static void check_matmul_tiles_bf16(const Kernels *kernels, int32_t rows, int32_t cols) {
    if (!kernels->round) {
        check_matmul_tiles_floats(kernels, TILES_BF16, rows, cols);
        return;
    }
    Tensor w = {.type = TILES_BF16, .rows = rows, .cols = cols};
    Rows x = {.cols = cols + cols % 2};
    int32_t n = MAX_ROWS * x.cols;
    x.halves = bf16s(n);
    x.values = floats(n, 0, 0);
    for (int32_t i = cols; i < n; i += x.cols)
        if (cols % 2) x.halves[i] = 0;
    for (int32_t i = 0; i < n; i++) x.values[i] = bf16_to_float(x.halves[i]);
    w.data = bf16s((int64_t)tensor_bytes(&w) / 2);
    if (strcmp(kernels->name, "amx") == 0) check_order_of_amx(kernels, &x, &w);
    check_matmul(kernels, &x, &w, 2 * (float)cols * ROUNDING);
}

// With scales of 1 all sums are whole numbers below 2^24 and so exact, even of the most extreme weights.
static void check_matmul_int8(const Kernels *kernels, int32_t rows, int32_t cols, int32_t group_size) {
    for (int variant = 0; variant < 3; variant++) {
        bool exact = variant < 2, extreme = variant == 1;
        float max_w = exact ? 1 : 1 / 128.0f, max_x = exact ? 1 : 1 / 127.0f;
        int32_t groups = cols / group_size;
        Rows x = {.cols = cols, .groups = groups};
        x.values = floats((int64_t)MAX_ROWS * cols, -1, 1);
        Tensor w = {.type = ROWS_INT8, .rows = rows, .cols = cols, .group_size = group_size};
        x.quants = bytes((int64_t)MAX_ROWS * cols, -127, 127, extreme);
        x.scales = floats((int64_t)MAX_ROWS * groups, exact ? 1 : 0, max_x);
        x.sums = array((int64_t)MAX_ROWS * groups * 4);
        w.data = bytes((int64_t)rows * cols, -128, 127, extreme);
        w.scales = (uint8_t *)floats((int64_t)rows * groups, exact ? 1 : 0, max_w);
        check_matmul(kernels, &x, &w, exact ? 0 : 2 * (float)cols * ROUNDING);
    }
}

// Any bytes as weights, and as scales half floats from 0 to 1, among them subnormal ones.
static void fill_tiles(Tensor *w) {
    w->data = bytes((int64_t)tensor_bytes(w), -128, 127, false);
    for (int32_t r = 0; r < w->rows; r += TILE_ROWS)
        for (int32_t g = 0; g < tile_groups(w); g++) {
            uint8_t *scales = (uint8_t *)group_scales(tensor_tile(w, r), g, w->type);
            for (int32_t i = 0; i < TILE_ROWS; i++) scales[2 * i + 1] = (uint8_t)(random_bits() % 0x3c);
        }
}

// So is that of tiles of whole numbers.
static void check_matmul_tiles(const Kernels *kernels, int32_t type, int32_t rows, int32_t cols) {
    Tensor w = {.type = type, .rows = rows, .cols = cols, .group_size = TILE_GROUP};
    int32_t groups = tile_groups(&w), n = MAX_ROWS * groups;
    Rows x = {.cols = groups * TILE_GROUP, .groups = groups};
    x.values = floats(n * TILE_GROUP, -1, 1);
    x.quants = bytes(n * TILE_GROUP, -127, 127, random_bits() % 2);
    x.scales = floats(n, 0, 1);
    x.sums = array((int64_t)n * 4);
    memset(x.sums, 0, (size_t)n * sizeof *x.sums);
    for (int32_t k = 0; k < n * TILE_GROUP; k++) x.sums[k / TILE_GROUP] += x.quants[k];
    fill_tiles(&w);
    check_matmul(kernels, &x, &w, 0);
}

static void check_all_matmul(const Kernels *kernels) {
    static const int32_t rows[] = {1, 2, 3, 4, 5, 7, 8, 13, 48, 70};
    static const int32_t groups[] = {1, 3, 4, 5, 8, 16, 24, 32, 43, 48, 64, 86, 96, 128, 172, 250, 512};
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (size_t j = 0; j < COUNT(sizes); j++) {
            check_matmul_floats(kernels, rows[i], sizes[j]);
            check_matmul_tiles_floats(kernels, TILES_FP32, rows[i], sizes[j]);
            check_matmul_tiles_bf16(kernels, rows[i], sizes[j]);
            check_matmul_tiles(kernels, TILES_INT8, rows[i], sizes[j]);
            check_matmul_tiles(kernels, TILES_INT4, rows[i], sizes[j]);
        }
        for (size_t j = 0; j < COUNT(groups); j++) {
            check_matmul_int8(kernels, rows[i], groups[j], groups[j]);
            check_matmul_int8(kernels, rows[i], 1000 / groups[j] * groups[j], groups[j]);
        }
    }
    check_matmul_tiles_bf16(kernels, 70, 2000); // 280 KB, which AMD's CPUs read tile by tile
}

// ---------------------------------------------------------------------------------------------------------
// The rest of the table

// Groups of all kinds: of every magnitude, zeros, too small, halfway between two quants, broken by NaN or infinity.
static void fill_group(float *x, int32_t size, int32_t group) {
    float magnitude = ldexpf(1, (int)(random_bits() % 250) - 125), broken[] = {NAN, INFINITY, -INFINITY};
    for (int32_t i = 0; i < size; i++) x[i] = uniform(-magnitude, magnitude);
    for (int32_t i = 0; i < size && group % 8 == 0; i++) x[i] = 0;
    for (int32_t i = 0; i < size && group % 8 == 1; i++) x[i] = uniform(0, 1) * QUANTISE_MIN;
    for (int32_t i = 0; i < size && group % 8 == 2; i++) x[i] = i ? (float)(random_bits() % 254) - 126.5f : 127;
    if (group % 8 == 3) x[random_bits() % (uint32_t)size] = broken[group / 8 % 3];
}

static void check_quantise(const Kernels *kernels, int32_t group_size) {
    int32_t groups = 24, n = groups * group_size;
    float *x = floats(n, 0, 0), *scales = floats(groups, 0, 0), *expected_scales = floats(groups, 0, 0);
    int8_t *q = array(n), *expected = array(n);
    int32_t *sums = array(groups * 4), *expected_sums = array(groups * 4);
    for (int32_t g = 0; g < groups; g++) fill_group(x + g * group_size, group_size, g);
    kernels->quantise(q, scales, sums, x, n, group_size);
    quantise(expected, expected_scales, expected_sums, x, n, group_size);
    for (int32_t i = 0; i < n; i++) // those of a broken group do not matter
        check(q[i] == expected[i] || isnan(expected_scales[i / group_size]), kernels->name,
              "quants differ: group size, value", group_size, i, 0);
    for (int32_t g = 0; g < groups; g++)
        check(sums[g] == expected_sums[g] || isnan(expected_scales[g]), kernels->name,
              "sums differ: group size, group", group_size, g, 0);
    check(near(scales, expected_scales, groups, 0, 0), kernels->name, "scales differ: group size", group_size, 0,
          0);
    free_arrays(0);
}

// As float_to_bf16, but that subnormal numbers are zeros of their sign.
static void check_round(const Kernels *kernels, int32_t n) {
    static const float special[] = {0,      -0.0f,   INFINITY,      -INFINITY,   NAN,
                                    1e-40f, -1e-40f, 3.3961775e38f, 0x1.01p-126f};
    float *x = floats(n, -3, 3);
    uint16_t *halves = array((int64_t)(n + n % 2) * 2);
    for (int32_t i = 0; i < n; i += 3) x[i] = special[random_bits() % COUNT(special)];
    kernels->round(halves, x, n);
    for (int32_t i = 0; i < n; i++) {
        uint16_t expected = float_to_bf16(isnormal(x[i]) ? x[i] : x[i] * 0 == 0 ? copysignf(0, x[i]) : x[i]);
        check(halves[i] == expected || (isnan(x[i]) && isnan(bf16_to_float(halves[i]))), kernels->name,
              "round differs: values, place", n, i, 0);
    }
    check(n % 2 == 0 || halves[n] == 0, kernels->name, "round leaves no zero behind: values", n, 0, 0);
    free_arrays(0);
}

static void check_rmsnorm(const Kernels *kernels, int32_t k) {
    float *x = floats(k, -3, 3), *weight = floats(k, -2, 2), *out = floats(k, 0, 0), *expected = floats(k, 0, 0);
    kernels->rmsnorm(out, x, weight, k, 1e-5f);
    kernels_scalar.rmsnorm(expected, x, weight, k, 1e-5f);
    check(near(out, expected, k, 0, 16 * ROUNDING), kernels->name, "rmsnorm differs: columns", k, 0, 0);
    kernels->rmsnorm(x, x, weight, k, 1e-5f);
    check(same_bits(x, out, k), kernels->name, "rmsnorm in place differs: columns", k, 0, 0);
    free_arrays(0);
}

// h1 from -limit to limit: to 100, where exp is cut off, and around 0.
static void check_swiglu(const Kernels *kernels, int32_t n, float limit) {
    static const float special[] = {0, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 87.5f, -88.5f};
    float *h1 = floats(n, -limit, limit), *h3 = floats(n, -2, 2), *expected = floats(n, 0, 0);
    for (int32_t i = 0; i < n; i += 5) h1[i] = special[random_bits() % COUNT(special)];
    memcpy(expected, h1, (size_t)n * sizeof *h1);
    kernels->swiglu(h1, h3, n);
    kernels_scalar.swiglu(expected, h3, n);
    check(near(h1, expected, n, 0, 16 * ROUNDING), kernels->name, "swiglu differs: values", n, 0, 0);
    free_arrays(0);
}

// As scalar, side by side and apart, and nothing else is written. What is NaN stays so.
static void check_store(const Kernels *kernels, int32_t n, int32_t stride, int32_t kv) {
    static const float special[] = {0, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 6e-8f, 65519, 65520, -1e9f};
    int64_t places = (int64_t)(n - 1) * stride + 1;
    float *x = floats(n, -4, 4), found_scale = 1, expected_scale = 1;
    for (int32_t i = 0; i < n; i += 3) x[i] = special[random_bits() % COUNT(special)];
    size_t bytes = (size_t)places * kv_size(kv);
    void *found = memset(array((int64_t)bytes), 0, bytes), *expected = memset(array((int64_t)bytes), 0, bytes);
    kernels->store[kv](found, 0, stride, &found_scale, x, n);
    kernels_scalar.store[kv](expected, 0, stride, &expected_scale, x, n);
    for (int64_t i = 0; i < places; i++) {
        float a = cached(found, i, kv) * found_scale, b = cached(expected, i, kv) * expected_scale;
        check(same_bits(&a, &b, 1) || (isnan(a) && isnan(b)), kernels->name, "store differs: type, values, stride",
              kv, n, stride);
    }
    free_arrays(0);
}

// The pages of n positions in any order.
static const int32_t *shuffled_pages(int32_t n) {
    int32_t *pages = array((int64_t)pages_for(n) * 4);
    for (int32_t i = 0; i < pages_for(n); i++) {
        int32_t j = (int32_t)(random_bits() % (uint32_t)(i + 1));
        pages[i] = pages[j];
        pages[j] = i;
    }
    return pages;
}

// Keys and values of n positions in pages of any order. Those of positions that are not there yet are NaN, as
// array() leaves them.
static HeadCache filled_cache(const Kernels *kernels, int32_t n, int32_t head_dim, int32_t kv) {
    int64_t bytes = pages_for(n) * page_stride(head_dim, kv) * (int64_t)kv_size(kv);
    const int32_t *pages = shuffled_pages(n);
    void *keys = array(bytes), *values = array(bytes);
    float *key = floats(head_dim, 0, 0), *value = floats(head_dim, 0, 0);
    for (int32_t t = 0; t < n; t++) {
        int64_t page = cached_page(pages, t, head_dim, kv), row = cached_row(pages, t, head_dim, kv);
        float *key_scale = scale_of(keys, page, t % KEY_BLOCK, head_dim, kv);
        float *value_scale = scale_of(values, page, t % KEY_BLOCK, head_dim, kv);
        for (int32_t d = 0; d < head_dim; d++) {
            key[d] = uniform(-2, 2);
            value[d] = uniform(-1, 1);
        }
        kernels_scalar.store[kv](keys, page + t % KEY_BLOCK, KEY_BLOCK, key_scale, key, head_dim);
        kernels_scalar.store[kv](values, row, 1, value_scale, value, head_dim);
    }
    return (HeadCache){kernels, keys, values, pages, head_dim, kv};
}

// Queries of n, n - 1 ... positions, which share keys and values: as scalar, and together as alone.
static void check_attend(const Kernels *kernels, int32_t n, int32_t head_dim, int32_t kv) {
    HeadCache head = filled_cache(kernels, n, head_dim, kv), scalar = head;
    scalar.kernels = &kernels_scalar;
    float *expected = floats(head_dim, 0, 0), *alone = floats(head_dim, 0, 0), *q = floats(head_dim, -2, 2);
    int32_t count = 1 + (int32_t)(random_bits() % MAX_QUERIES);
    Query queries[MAX_QUERIES];
    for (int32_t i = 0; i < count; i++) {
        queries[i] = (Query){.out = floats(head_dim, 0, 0), .n = MAX(1, n - (i * 5 + 3) % 7 % n)};
        queries[i].q = i == 0 ? q : floats(head_dim, -2, 2);
    }
    float *room = array(spans_room(head_dim) * 4);
    attend_spans(&head, queries, count, room);
    for (int32_t i = 0; i < count; i++) {
        Query query = queries[i];
        query.out = expected;
        attend_spans(&scalar, &query, 1, room);
        check(near(queries[i].out, expected, head_dim, 32 * ROUNDING, 0), kernels->name,
              "attend differs: type, positions, head_dim", kv, query.n, head_dim);
        query.out = alone;
        attend_spans(&head, &query, 1, room);
        check(same_bits(alone, queries[i].out, head_dim), kernels->name,
              "attend depends on the queries beside it: type, positions, head_dim", kv, query.n, head_dim);
    }
    q[random_bits() % (uint32_t)head_dim] = NAN;
    attend_spans(&head, queries, count, room);
    for (int32_t d = 0; d < head_dim; d++)
        check(isnan(queries[0].out[d]), kernels->name, "attend loses a NaN: type, positions, head_dim", kv, n,
              head_dim);
    free_arrays(0);
}

// The kernel for prompts: near scalar, as 16 bits of a float are, and together as alone.
static void check_prompt(const Kernels *kernels, int32_t n, int32_t count, int32_t head_dim, int32_t kv) {
    HeadCache head = filled_cache(kernels, n, head_dim, kv), scalar = head;
    scalar.kernels = &kernels_scalar;
    float *q = floats((int64_t)count * head_dim, -2, 2), *outs = array((int64_t)count * head_dim * 4);
    float *room = array((int64_t)PROMPT_ROOM * head_dim * 4), *spans = array(spans_room(head_dim) * 4);
    float *expected = floats(head_dim, 0, 0), *alone = floats(head_dim, 0, 0);
    Query queries[PROMPT_QUERIES];
    for (int32_t i = 0; i < count; i++) {
        int32_t positions = n - count + i - (int32_t)(random_bits() % 9);
        queries[i] = (Query){.out = outs + i * head_dim, .q = q + i * head_dim, .n = MAX(1, positions)};
    }
    q[(count - 1) * head_dim] = n % 3 ? q[(count - 1) * head_dim] : NAN;
    kernels->prompt[kv](queries, count, head.keys, head.values, head.pages, head_dim, room);
    for (int32_t i = 0; i < count; i++) {
        Query query = queries[i];
        query.out = expected;
        attend_spans(&scalar, &query, 1, spans);
        check(near(queries[i].out, expected, head_dim, 0x1p-14f, 0), kernels->name,
              "prompt differs: type, positions, head_dim", kv, query.n, head_dim);
        if (i % 16 != 15) continue;
        query.out = alone;
        kernels->prompt[kv](&query, 1, head.keys, head.values, head.pages, head_dim, room);
        check(memcmp(alone, queries[i].out, (size_t)head_dim * 4) == 0, kernels->name,
              "prompt depends on the queries beside it: type, positions, head_dim", kv, query.n, head_dim);
    }
    free_arrays(0);
}

// The passes over a vocabulary, which are the same bits everywhere. Values on a grid, so that there are ties.
static void check_passes(const Kernels *kernels, int32_t n) {
    float *x = floats(n, -30, 30), *y = array((int64_t)n * 4), *some = array((int64_t)(n + PASS_ROOM) * 4);
    size_t blocks = (size_t)(n + PASS_BLOCK - 1) / PASS_BLOCK, bytes = (size_t)n * 4;
    double *mass = array((int64_t)blocks * 8), *expected = array((int64_t)blocks * 8);
    for (int32_t i = 0; i < n; i++) x[i] = rintf(x[i] * 16) / 16;
    memcpy(y, x, bytes);
    Extremes found = kernels->extremes(x, n), right = kernels_scalar.extremes(x, n);
    check(found.min == right.min && found.max == right.max && found.argmax == right.argmax, kernels->name,
          "extremes", n, found.argmax, right.argmax);
    double sum = kernels->likelihoods(x, mass, n, found.max, 1.25f);
    double same = kernels_scalar.likelihoods(y, expected, n, found.max, 1.25f);
    check(sum == same && memcmp(x, y, bytes) == 0 && memcmp(mass, expected, blocks * 8) == 0, kernels->name,
          "likelihoods", n, 0, 0);
    for (int i = 0; i < 8; i++) {
        float one = x[random_bits() % (uint32_t)n], other = x[random_bits() % (uint32_t)n];
        float low = MIN(one, other), high = i % 2 ? MAX(one, other) : INFINITY;
        int32_t wanted = kernels_scalar.collect(y, x, n, low, high);
        const float *from = i / 4 ? memcpy(some, x, bytes) : x; // in place
        int32_t count = kernels->collect(some, from, n, low, high);
        check(count == wanted && memcmp(some, y, (size_t)wanted * 4) == 0, kernels->name, "collect", n, count,
              wanted);
    }
    free_arrays(0);
}

// A number that is not finite shows in the smallest or the largest, wherever it is.
static void check_not_finite(const Kernels *kernels, int32_t n) {
    const float wrong[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < COUNT(wrong); i++) {
        float *x = floats(n, -30, 30);
        int32_t at = (int32_t)(random_bits() % (uint32_t)n);
        x[at] = wrong[i];
        Extremes found = kernels->extremes(x, n);
        check(!isfinite(found.min) || !isfinite(found.max), kernels->name, "extremes lose what is not finite", n,
              at, (int32_t)i);
    }
    free_arrays(0);
}

static void check_kernels(const Kernels *kernels) {
    static const int32_t groups[] = {1, 2, 3, 4, 7, 8, 12, 16, 24, 32, 43, 64, 86, 128, 172};
    static const int32_t head_dims[] = {2, 4, 6, 8, 14, 16, 18, 30, 48, 64, 80, 100, 128};
    static const int32_t longer[] = {SPAN, SPAN + 1, 3 * SPAN + 5};
    static const int32_t blocks[] = {1, 20, 64, 66, 71, 140}; // of 64 positions, for 1 to 37 queries
    int before = n_failed;
    check_all_matmul(kernels);
    for (size_t i = 0; i < COUNT(groups); i++) check_quantise(kernels, groups[i]);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        check_passes(kernels, sizes[i]);
        check_not_finite(kernels, sizes[i]);
        if (kernels->round) check_round(kernels, sizes[i]);
        check_rmsnorm(kernels, sizes[i]);
        check_swiglu(kernels, sizes[i], 100);
        check_swiglu(kernels, sizes[i], 2);
        for (int32_t kv = 0; kv < N_KV; kv++) {
            check_store(kernels, sizes[i], 1, kv);
            check_store(kernels, sizes[i], KEY_BLOCK, kv);
        }
    }
    for (int32_t n = 1; n <= 100; n++)
        for (size_t i = 0; i < COUNT(head_dims); i++)
            for (int32_t kv = 0; kv < N_KV; kv++) check_attend(kernels, n, head_dims[i], kv);
    for (size_t i = 0; i < COUNT(longer); i++)
        for (int32_t kv = 0; kv < N_KV; kv++) check_attend(kernels, longer[i], 64, kv);
    for (size_t i = 0; i < COUNT(blocks); i++)
        for (int32_t kv = 0; kv < N_KV; kv++)
            for (int32_t head_dim = PROMPT_STEP; kernels->prompt[kv] && head_dim <= 4 * PROMPT_STEP; head_dim *= 2)
                check_prompt(kernels, blocks[i], 1 + blocks[i] % 37, head_dim, kv);
    if (n_failed == before) printf("%s: all as scalar\n", kernels->name);
}

// ---------------------------------------------------------------------------------------------------------
// Threads: a team that mostly waits leaves the work to one thread, for longer each time, until all goes well.

static void check_alone(void) {
    Alone alone = {0};
    alone_note(&alone, ALONE_TRIAL / 2, ALONE_TRIAL / 2);
    check(alone_or(&alone, 4) == 4, "threads", "one late pass decides", 0, 0, 0);
    double expected = ALONE_FIRST;
    for (int i = 0; i < 8; i++, expected = MIN(2 * expected, ALONE_MOST)) {
        alone_note(&alone, ALONE_TRIAL, 0.6 * ALONE_TRIAL);
        check(alone_or(&alone, 4) == 1 && alone.length == expected, "threads", "late passes are not seen", i, 0, 0);
    }
    alone.until = seconds() - 1;
    check(alone_or(&alone, 4) == 4, "threads", "all are not tried again", 0, 0, 0);
    alone_note(&alone, ALONE_TRIAL, 0.4 * ALONE_TRIAL);
    check(alone_or(&alone, 4) == 4 && alone.length == 0, "threads", "passes in time count as late", 0, 0, 0);
}

// A process whose signals have no room for tiles is refused them, and the next best kernels are chosen.
static void check_refused(void) {
#if defined(LLAMA_AMX) && !defined(AMX_IN_C)
    static char small[4096];
    stack_t room = {.ss_sp = small, .ss_size = sizeof small}, none = {.ss_flags = SS_DISABLE};
    const Kernels *kernels;
    sigaltstack(&room, NULL);
    check(kernels_find(NULL, &kernels, NULL) == LLAMA_OK && strcmp(kernels->name, "amx") != 0, "amx",
          "chosen though it is refused", 0, 0, 0);
    sigaltstack(&none, NULL);
#endif
}

int main(int argc, char **argv) {
    check_refused();
    check_alone();
    check_fp16();
    check_bf16();
    for (size_t i = 0; argc == 1 && i < COUNT(all_kernels); i++)
        if (all_kernels[i]->available()) check_kernels(all_kernels[i]);
    for (int i = 1; i < argc; i++) {
        const Kernels *kernels;
        LlamaError error;
        if (kernels_find(argv[i], &kernels, &error) != LLAMA_OK) {
            printf("error: %s\n", error.text);
            return 2;
        }
        check_kernels(kernels);
    }
    return n_failed > 0;
}
