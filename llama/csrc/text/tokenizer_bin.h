// tokenizer_bin.h: reads a tokenizer.bin as llama2.c writes it. u32 length of the longest piece (a hint, not
// used), then to the end of the file, for each token: f32 score, i32 length, bytes, in which a space stands for
// U+2581. The index is made when text is first encoded.
//
// A tokenizer.bin cannot say which of its pieces are user-defined, unused or control pieces besides BOS and EOS;
// they are text here.
#ifndef LLAMA_TOKENIZER_BIN_H
#define LLAMA_TOKENIZER_BIN_H

#include "pieces.h" // LlamaTokenizer

#include <ctype.h> // isalnum, isdigit
#include <math.h>  // isfinite

enum { HEADER_LLAMA2C = 4, RECORD_LLAMA2C = 8, PIECE_MAX = 16384 }; // bytes
enum { BYTES_BEGIN = 3 }; // the token of byte 0, in sentencepiece's models with byte fallback

// Checks every record and counts them.
static int records_count(const Mapping *file, const char *path, int32_t *count, LlamaError *error) {
    int32_t n = 0;
    for (uint64_t at = HEADER_LLAMA2C; at < file->size; n++) {
        uint64_t left = file->size - at;
        if (n == VOCABULARY_MAX) return fail(error, LLAMA_ERROR_FILE, "%s: has more than %d tokens", path, n);
        if (left < RECORD_LLAMA2C)
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has %d bytes of its record, needed are at least %d",
                        path, n, (int)left, RECORD_LLAMA2C);
        float score = load_f32(file->data + at);
        int32_t length = load_i32(file->data + at + 4);
        if (!isfinite(score))
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has score = %f, allowed are finite numbers", path, n,
                        (double)score);
        if (length < 0 || length > PIECE_MAX)
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has length = %d, allowed 0 to %d", path, n, length,
                        PIECE_MAX);
        if ((uint64_t)length > left - RECORD_LLAMA2C)
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has length = %d, but the file ends after %d bytes",
                        path, n, length, (int)(left - RECORD_LLAMA2C));
        at += RECORD_LLAMA2C + (uint64_t)length;
    }
    if (n == 0) return fail(error, LLAMA_ERROR_FILE, "%s: has no tokens", path);
    *count = n;
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// Unpacking

// The arrays of a tokenizer, to be written to. What they mean: pieces.h.
typedef struct {
    uint32_t *offsets, *specials;
    float *scores;
    int32_t *byte_ids;
    uint8_t *types;
    char *bytes;
} Unpacked;

static int unpacked_alloc(LlamaTokenizer *t, Unpacked *u, LlamaError *error) {
    size_t n = (size_t)t->vocab_size, room = (n + 1 + n + 256 + 2) * 4 + n + (size_t)t->file.size;
    t->unpacked = malloc(room);
    if (!t->unpacked) return fail_memory(error, room);
    u->offsets = t->unpacked;
    u->scores = (float *)(u->offsets + n + 1);
    u->byte_ids = (int32_t *)(u->scores + n);
    u->specials = (uint32_t *)(u->byte_ids + 256);
    u->types = (uint8_t *)(u->specials + 2);
    u->bytes = (char *)u->types + n;
    for (int b = 0; b < 256; b++) u->byte_ids[b] = -1;
    return LLAMA_OK;
}

typedef struct {
    const char *bytes;
    int32_t length;
} Piece;

static bool piece_is(Piece piece, const char *text) {
    return (size_t)piece.length == strlen(text) && memcmp(piece.bytes, text, strlen(text)) == 0;
}

// llama2.c writes "\n<s>\n" for "<s>".
static Piece piece_trim(Piece piece) {
    bool framed = piece_is(piece, "\n<s>\n") || piece_is(piece, "\n</s>\n");
    return framed ? (Piece){piece.bytes + 1, piece.length - 2} : piece;
}

static int hex_value(char digit) {
    static const char digits[] = "0123456789ABCDEF";
    const char *found = digit ? strchr(digits, digit) : NULL;
    return found ? (int)(found - digits) : -1;
}

// The byte that a piece such as <0x0A> stands for, -1 if it is none.
static int piece_byte(Piece piece) {
    const char *p = piece.bytes;
    if (piece.length != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>') return -1;
    int high = hex_value(p[3]), low = hex_value(p[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static void note_first(int32_t *first, int32_t id) {
    if (*first < 0) *first = id;
}

// Whether tokens 3 to 258 are the characters U+0000 to U+00FF: the first llama2.c (July and August 2023) wrote
// these for the byte tokens.
static bool bytes_are_characters(const Mapping *file, int32_t n_tokens) {
    if (n_tokens < BYTES_BEGIN + 256) return false;
    const uint8_t *record = file->data + HEADER_LLAMA2C;
    for (int32_t id = 0; id < BYTES_BEGIN; id++) record += RECORD_LLAMA2C + load_i32(record + 4);
    for (int b = 0; b < 256; b++) {
        const uint8_t *piece = record + RECORD_LLAMA2C;
        uint8_t spelt[] = {(uint8_t)(b < 0x80 ? b : 0xc0 | b >> 6), (uint8_t)(0x80 | (b & 0x3f))};
        int32_t length = b < 0x80 ? 1 : 2;
        if (load_i32(record + 4) != length || memcmp(piece, spelt, (size_t)length) != 0) return false;
        record += RECORD_LLAMA2C + length;
    }
    return true;
}

// Notes what a token is by its piece and returns its type. byte: that it stands for, -1 for none.
static int token_classify(LlamaTokenizer *t, Unpacked *u, int32_t id, Piece piece, int byte) {
    if (byte < 0 && (piece.length < 3 || !memchr("<\n", piece.bytes[0], 2))) return TOKEN_TEXT;
    Piece name = piece_trim(piece);
    bool bos = piece_is(name, "<s>"), eos = piece_is(name, "</s>");
    if (byte >= 0) note_first(&u->byte_ids[byte], id);
    if (bos) note_first(&t->bos, id);
    if (eos) note_first(&t->eos, id);
    if (piece_is(piece, "<unk>")) note_first(&t->unknown, id);
    return byte >= 0                  ? TOKEN_BYTE
           : bos || eos               ? TOKEN_CONTROL
           : piece_is(piece, "<unk>") ? TOKEN_UNKNOWN
                                      : TOKEN_TEXT;
}

// Unpacks records that records_count has checked.
static void records_unpack(LlamaTokenizer *t, Unpacked *u) {
    const uint8_t *record = t->file.data + HEADER_LLAMA2C;
    bool old = bytes_are_characters(&t->file, t->vocab_size);
    uint32_t at = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        Piece piece = {(const char *)record + RECORD_LLAMA2C, load_i32(record + 4)};
        int byte = old && id >= BYTES_BEGIN && id < BYTES_BEGIN + 256 ? id - BYTES_BEGIN : piece_byte(piece);
        int type = token_classify(t, u, id, piece, byte);
        u->offsets[id] = at;
        u->scores[id] = load_f32(record);
        u->types[id] = (uint8_t)type;
        record += RECORD_LLAMA2C + piece.length;
        piece = piece_trim(piece);
        if (type == TOKEN_BYTE)
            u->bytes[at++] = (char)byte;
        else
            memcpy(u->bytes + at, piece.bytes, (size_t)piece.length), at += (uint32_t)piece.length;
    }
    u->offsets[t->vocab_size] = at;
    t->specials.ids = u->specials;
    if (t->eos >= 0) u->specials[t->specials.n++] = (uint32_t)t->eos; // "</s>" sorts before "<s>"
    if (t->bos >= 0) u->specials[t->specials.n++] = (uint32_t)t->bos;
}

// Whether a file begins as one of tiktoken does: base64, a space, a number.
static bool is_tiktoken(const uint8_t *data, uint64_t size) {
    uint64_t n = 0;
    while (n < size && (isalnum(data[n]) || memchr("+/=", data[n], 3))) n++;
    return n > 0 && n + 1 < size && data[n] == ' ' && isdigit(data[n + 1]);
}

// What a file is that tokenizer.py makes a tokenizer.bin of, NULL if it is none.
static const char *tokenizer_kind(const uint8_t *data, uint64_t size) {
    if (is_tiktoken(data, size)) return "a tiktoken file, as of Llama 3";
    if (size < 16) return NULL;
    if (memcmp(data, "24ka", 4) == 0 || memcmp(data, "GGUF", 4) == 0) return "a model";
    if (data[0] == '{' && memchr("\r\n\t \"", data[1], 5)) return "a JSON file, such as a tokenizer.json";
    return data[0] == '\n' && data[2] == '\n' && data[1] >= data[3] + 2 ? "a sentencepiece model" : NULL;
}

// Reads the tokenizer at t->file. path: for messages.
static int llama2c_read(LlamaTokenizer *t, const char *path, LlamaError *error) {
    t->bos = t->eos = t->unknown = -1;
    int code = records_count(&t->file, path, &t->vocab_size, error);
    // Only now, since a right file may begin with any length, such as 123, which reads "{".
    const char *kind = code == LLAMA_OK ? NULL : tokenizer_kind(t->file.data, t->file.size);
    if (kind)
        return fail(error, code, "%s: is %s; for a tokenizer.bin made of it: python tokenizer.py export %s", path,
                    kind, path);
    kind = code == LLAMA_OK ? NULL : file_kind(t->file.data, t->file.size);
    if (kind) return fail(error, code, "%s: can't be read as a tokenizer: it is %s", path, kind);
    if (code == LLAMA_OK && t->file.size > UINT32_MAX)
        return fail(error, LLAMA_ERROR_FILE, "%s: has more than %u bytes", path, UINT32_MAX);
    Unpacked u = {0};
    if (code == LLAMA_OK) code = unpacked_alloc(t, &u, error);
    if (code != LLAMA_OK) return code;
    records_unpack(t, &u);
    t->flags = FLAG_PREFIX | FLAG_PREFIX_EACH | FLAG_STRIP;
    t->offsets = u.offsets, t->scores = u.scores, t->types = u.types, t->byte_ids = u.byte_ids;
    t->bytes = u.bytes, t->n_bytes = u.offsets[t->vocab_size];
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// The index

// Makes a piece findable. Of equal pieces the first counts; one without a free slot within reach, as only a file
// made for it has, is never found.
static void index_add(const LlamaTokenizer *t, Index *index, uint32_t *slots, int32_t id) {
    size_t length;
    const char *bytes = token_bytes(t, id, &length);
    index->longest = MAX(index->longest, (uint32_t)length);
    if (vocabulary_find(t, index, bytes, length) >= 0) return;
    uint64_t hash = hash_bytes(bytes, length);
    uint32_t i = 0;
    while (i < PROBES_MAX && slots[(hash + i) & index->mask]) i++;
    if (i < PROBES_MAX) slots[(hash + i) & index->mask] = (uint32_t)(hash >> 56) << 24 | (uint32_t)(id + 1);
}

static void index_join(const LlamaTokenizer *t, uint8_t *joined, int32_t id) {
    const uint8_t *bytes = (const uint8_t *)t->bytes;
    for (uint32_t i = t->offsets[id] + 1; i < t->offsets[id + 1]; i++)
        joined[32 * bytes[i - 1] + bytes[i] / 8] |= (uint8_t)(1 << bytes[i] % 8);
}

// A new index, at most half full, to be freed as one block. NULL: out of memory.
static Index *index_build(const LlamaTokenizer *t) {
    size_t n_slots = 2;
    while (n_slots < 2 * (size_t)t->vocab_size) n_slots *= 2;
    Index *index = calloc(1, sizeof *index + n_slots * 4 + 8192);
    if (!index) return NULL;
    uint32_t *slots = (uint32_t *)(index + 1);
    uint8_t *joined = (uint8_t *)(slots + n_slots);
    *index = (Index){.slots = slots, .joined = joined, .mask = (uint32_t)n_slots - 1};
    for (int32_t id = 0; id < t->vocab_size; id++) {
        if (t->types[id] != TOKEN_TEXT) continue;
        index_add(t, index, slots, id);
        index_join(t, joined, id);
    }
    return index;
}

// The index of a tokenizer, made by the first that asks; of threads that ask at once, one's counts.
static const Index *vocabulary_index(const LlamaTokenizer *tokenizer) {
    LlamaTokenizer *t = (LlamaTokenizer *)tokenizer; // all that changes is atomic
    Index *index = atomic_load(&t->index), *none = NULL;
    if (index) return index;
    index = index_build(t);
    if (!index || atomic_compare_exchange_strong(&t->index, &none, index)) return index;
    free(index);
    return none;
}

#endif
