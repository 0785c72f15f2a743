// vocabulary.h: opens a tokenizer. Our own file has the arrays of pieces.h ready, and is mapped and used
// as it lies; docs/format.md has it byte by byte. Without its magic number a file is a tokenizer.bin of llama2.c.
#ifndef LLAMA_VOCABULARY_H
#define LLAMA_VOCABULARY_H

#include "split.h"         // PATTERNS
#include "pieces.h"        // LlamaTokenizer
#include "tokenizer_bin.h" // llama2c_read
#include "unigram.h"       // scores_note

enum { VOCABULARY_VERSION = 1, JOINED_BYTES = 8192 };

typedef struct {
    uint32_t magic, version, kind, pattern, flags;
    int32_t vocab_size, bos, eos, unknown;
    uint32_t n_specials, n_slots, longest, n_bytes, n_words, n_late, checksum;
} VocabularyHeader;

static int check_field(const char *path, const char *name, int64_t value, int64_t min, int64_t max,
                       LlamaError *error) {
    if (value >= min && value <= max) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_FILE, "%s: tokenizer: %s = %lld, allowed %lld to %lld", path, name,
                (long long)value, (long long)min, (long long)max);
}

static int check_header(const char *path, const VocabularyHeader *h, LlamaError *error) {
    int64_t last = (int64_t)h->vocab_size - 1;
    struct {
        const char *name;
        int64_t value, min, max;
    } fields[] = {
        {"version", h->version, VOCABULARY_VERSION, VOCABULARY_VERSION},
        {"kind", h->kind, KIND_CHARACTERS, KINDS - 1},
        {"pattern", h->pattern, PATTERN_NONE, PATTERNS - 1},
        {"flags", h->flags, 0, FLAGS_ALL},
        {"vocab_size", h->vocab_size, 1, VOCABULARY_MAX},
        {"bos", h->bos, -1, last},
        {"eos", h->eos, -1, last},
        {"unknown", h->unknown, -1, last},
        {"number of special tokens", h->n_specials, 0, h->vocab_size},
        {"number of sorted pieces", h->n_words, 0, h->vocab_size},
        {"number of late special tokens", h->n_late, 0, h->vocab_size},
    };
    int code = LLAMA_OK;
    for (size_t i = 0; i < COUNT(fields) && code == LLAMA_OK; i++)
        code = check_field(path, fields[i].name, fields[i].value, fields[i].min, fields[i].max, error);
    if (code != LLAMA_OK) return code;
    if (h->n_slots > 1u << 26 || h->n_slots == 0 || h->n_slots & (h->n_slots - 1))
        return fail(error, LLAMA_ERROR_FILE,
                    "%s: tokenizer: number of slots = %u, allowed are powers of two up to %u", path, h->n_slots,
                    1u << 26);
    return LLAMA_OK;
}

// The next n values of `size` bytes each.
static const void *section(const uint8_t **at, uint64_t n, uint64_t size) {
    const uint8_t *begin = *at;
    *at += n * size;
    return begin;
}

static uint64_t sections_bytes(const VocabularyHeader *h) {
    uint64_t n = (uint64_t)h->vocab_size;
    uint64_t words = 256 + (n + 1) + n + h->n_specials + h->n_late + h->n_words + h->n_slots;
    if (h->flags & FLAG_RANKED) words += h->n_bytes;
    if (h->flags & FLAG_DOUBLES) words += 2 * n;
    uint64_t bytes = n * (h->flags & FLAG_EDGES ? 2 : 1) + h->n_bytes;
    return VOCABULARY_HEADER + JOINED_BYTES + 4 * words + bytes;
}

// Points the arrays into the file.
static void sections_map(LlamaTokenizer *t, const VocabularyHeader *h) {
    const uint8_t *at = t->file.data + VOCABULARY_HEADER;
    uint64_t n = (uint64_t)h->vocab_size;
    t->byte_ids = section(&at, 256, 4);
    t->stored.joined = section(&at, JOINED_BYTES, 1);
    t->offsets = section(&at, n + 1, 4);
    t->scores = section(&at, n, 4);
    t->specials = (Names){.ids = section(&at, h->n_specials, 4), .n = h->n_specials};
    t->late = (Names){.ids = section(&at, h->n_late, 4), .n = h->n_late};
    t->words = (Names){.ids = section(&at, h->n_words, 4), .n = h->n_words};
    t->stored.slots = section(&at, h->n_slots, 4);
    if (h->flags & FLAG_RANKED) t->ranks = section(&at, h->n_bytes, 4);
    if (h->flags & FLAG_DOUBLES) t->doubles = section(&at, n, 8);
    if (h->flags & FLAG_EDGES) t->edges = section(&at, n, 1);
    t->types = section(&at, n, 1);
    t->bytes = section(&at, h->n_bytes, 1);
    t->stored.mask = h->n_slots - 1;
    t->stored.longest = h->longest;
    t->index = &t->stored;
}

static bool names_outside(const LlamaTokenizer *t, const Names *names) {
    int outside = 0;
    for (uint32_t i = 0; i < names->n; i++) outside |= names->ids[i] >= (uint32_t)t->vocab_size;
    return outside;
}

// Whether a score is NaN or infinite: pieces would be chosen by it, and the text then depend on which came first.
static bool scores_endless(const LlamaTokenizer *t) {
    int endless = 0;
    for (int32_t i = 0; i < t->vocab_size; i++) {
        double score = t->scores[i];
        if (t->doubles) memcpy(&score, t->doubles + 8 * (size_t)i, sizeof score);
        endless |= !isfinite(score);
    }
    return endless;
}

// Scores, and the arrays whose values are places in others. The long loops have no way out, so that they become
// vectors.
static int check_sections(const LlamaTokenizer *t, const char *path, LlamaError *error) {
    const uint32_t *offsets = t->offsets;
    const uint8_t *types = t->types;
    int32_t n = t->vocab_size, falls = offsets[0] != 0 || offsets[n] != t->n_bytes, strange = 0;
    bool outside = names_outside(t, &t->specials) || names_outside(t, &t->late) || names_outside(t, &t->words);
    for (int32_t i = 0; i < n; i++) falls |= offsets[i] > offsets[i + 1];
    for (int32_t i = 0; i < n; i++) strange |= types[i] >= TOKEN_TYPES;
    for (int32_t i = 0; t->edges && i < n; i++) strange |= t->edges[i] > EDGES_ALL;
    for (int b = 0; b < 256; b++) outside |= t->byte_ids[b] < -1 || t->byte_ids[b] >= n;
    if (scores_endless(t))
        return fail(error, LLAMA_ERROR_FILE, "%s: tokenizer: scores of tokens, allowed are finite numbers", path);
    if (!falls && !strange && !outside) return LLAMA_OK;
    return fail(error, LLAMA_ERROR_FILE, "%s: tokenizer: %s", path,
                falls     ? "offsets of tokens, allowed are ascending ones from 0 to the number of bytes"
                : strange ? "types of tokens, allowed are 0 to 4, or edges, allowed are 0 to 7"
                          : "special or byte tokens, allowed are ids of the vocabulary");
}

static int stored_read(LlamaTokenizer *t, const char *path, LlamaError *error) {
    VocabularyHeader h;
    if (t->file.size < VOCABULARY_HEADER)
        return fail(error, LLAMA_ERROR_FILE, "%s: tokenizer: has %d bytes, needed are at least %d", path,
                    (int)t->file.size, VOCABULARY_HEADER);
    memcpy(&h, t->file.data, sizeof h);
    int code = check_header(path, &h, error);
    if (code != LLAMA_OK) return code;
    if (t->file.size != sections_bytes(&h))
        return fail(error, LLAMA_ERROR_FILE, "%s: tokenizer: has %llu bytes, its header says %llu", path,
                    (unsigned long long)t->file.size, (unsigned long long)sections_bytes(&h));
    t->kind = (int32_t)h.kind, t->pattern = (int32_t)h.pattern, t->flags = h.flags;
    t->vocab_size = h.vocab_size, t->bos = h.bos, t->eos = h.eos, t->unknown = h.unknown;
    t->n_bytes = h.n_bytes;
    sections_map(t, &h);
    return check_sections(t, path, error);
}

// ---------------------------------------------------------------------------------------------------------
// Either file

// Whether some text could not be spelt. The tokenizers library leaves out what it has no token for, but not where
// pieces are chosen by their sum.
static bool lacks_tokens(const LlamaTokenizer *t, bool stored) {
    return !t->has_bytes && t->unknown < 0 && (!stored || t->kind == KIND_UNIGRAM);
}

static int tokenizer_read(LlamaTokenizer *t, const char *path, LlamaError *error) {
    bool stored = t->file.size >= 4 && load_i32(t->file.data) == VOCABULARY_MAGIC;
    int code = stored ? stored_read(t, path, error) : llama2c_read(t, path, error);
    if (code != LLAMA_OK) return code;
    t->has_bytes = true;
    for (int b = 0; b < 256; b++) t->has_bytes &= t->byte_ids[b] >= 0;
    if (lacks_tokens(t, stored))
        return fail(error, LLAMA_ERROR_FILE, "%s: has neither <unk> nor the byte tokens <0x00> to <0xFF>", path);
    names_note(t, &t->specials);
    names_note(t, &t->late);
    names_note(t, &t->words);
    if (t->kind == KIND_UNIGRAM) scores_note(t);
    return LLAMA_OK;
}

void llama_tokenizer_close(LlamaTokenizer *t) {
    if (!t) return;
    if (t->index != &t->stored) free(t->index);
    free(t->unpacked);
    if (!t->borrowed) mapping_free(&t->file);
    free(t);
}

// Opens the file at path, or for path NULL a part of another one, which must stay.
static int tokenizer_open(const char *path, const Mapping *part, const char *name, LlamaTokenizer **tokenizer,
                          LlamaError *error) {
    *tokenizer = NULL;
    LlamaTokenizer *t = calloc(1, sizeof *t);
    if (!t) return fail_memory(error, sizeof *t);
    t->borrowed = !path;
    if (!path) t->file = *part;
    int code = path ? mapping_init(&t->file, path, error) : LLAMA_OK;
    if (code == LLAMA_OK) code = tokenizer_read(t, name, error);
    if (code == LLAMA_OK)
        *tokenizer = t;
    else
        llama_tokenizer_close(t);
    return code;
}

int llama_tokenizer_open(const char *path, LlamaTokenizer **tokenizer, LlamaError *error) {
    return tokenizer_open(path, NULL, path, tokenizer, error);
}

int llama_tokenizer_open_bytes(const void *data, uint64_t size, const char *name, LlamaTokenizer **tokenizer,
                               LlamaError *error) {
    *tokenizer = NULL;
    if (size == 0) return fail(error, LLAMA_ERROR_FILE, "%s: is empty", name);
    if ((uintptr_t)data % sizeof(uint32_t))
        return fail(error, LLAMA_ERROR_USAGE, "%s: bytes of a tokenizer must be aligned to 4", name);
    return tokenizer_open(NULL, &(Mapping){data, size}, name, tokenizer, error);
}

const void *llama_tokenizer_data(const LlamaTokenizer *t, uint64_t *size) {
    *size = t->file.size;
    return t->file.data;
}

int32_t llama_vocab_size(const LlamaTokenizer *t) {
    return t->vocab_size;
}

int32_t llama_bos(const LlamaTokenizer *t) {
    return t->bos;
}

int32_t llama_eos(const LlamaTokenizer *t) {
    return t->eos;
}

#endif
