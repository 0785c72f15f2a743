// vocabulary.h: the tokens of a tokenizer.bin, checked, and the index that finds a piece of text among them.
//
// A tokenizer.bin cannot say which of its pieces are user-defined, unused or control pieces besides BOS and EOS;
// they are text here.
#ifndef LLAMA_VOCABULARY_H
#define LLAMA_VOCABULARY_H

#include "util.h" // fail, Mapping

#include <math.h> // isfinite

enum { PIECE_MAX = 16384, VOCABULARY_MAX = 1 << 24 }; // bounds on what a file may claim: bytes, tokens

typedef struct {
    const char *bytes; // (length) what the token prints, in the mapped file for text
    float score;       // the pair that makes the piece with the highest score merges first
    uint16_t length;
    bool is_text; // neither BOS, EOS, unknown nor a byte: these never match text
} Piece;

typedef struct {
    uint32_t hash;
    int32_t id; // -1: empty
} Slot;

struct LlamaTokenizer {
    Mapping file;
    bool borrowed;         // the file is a model's
    Piece *pieces;         // (vocab_size)
    Slot *slots;           // (slot_mask + 1) index of the text pieces: open addressing, at most half full
    bool joined[256][256]; // [a][b]: some text piece has byte b right after byte a
    char byte_values[256]; // what the byte tokens print
    int32_t byte_ids[256]; // -1 where there is none
    int32_t vocab_size, bos, eos, unknown;
    uint32_t slot_mask;
    uint32_t longest; // bytes of the longest text piece
    bool has_bytes;   // all 256 byte tokens: a character without a piece is spelt in bytes
};

// FNV-1a.
static uint32_t hash_bytes(const char *bytes, size_t length) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)bytes[i]) * 16777619u;
    return hash;
}

// The slot that holds these bytes, or the empty one where they belong.
static Slot *vocabulary_slot(const LlamaTokenizer *t, const char *bytes, size_t length, uint32_t hash) {
    for (uint32_t i = hash & t->slot_mask;; i = (i + 1) & t->slot_mask) {
        Slot *slot = &t->slots[i];
        if (slot->id < 0) return slot;
        const Piece *piece = &t->pieces[slot->id];
        if (slot->hash == hash && piece->length == length && memcmp(piece->bytes, bytes, length) == 0) return slot;
    }
}

// The id of a piece of text, -1 if there is none.
static int32_t vocabulary_find(const LlamaTokenizer *t, const char *bytes, size_t length) {
    if (length > t->longest) return -1;
    return vocabulary_slot(t, bytes, length, hash_bytes(bytes, length))->id;
}

// Makes a piece of text findable. Of equal pieces the first counts.
static void vocabulary_add(LlamaTokenizer *t, int32_t id) {
    const Piece *piece = &t->pieces[id];
    uint32_t hash = hash_bytes(piece->bytes, piece->length);
    Slot *slot = vocabulary_slot(t, piece->bytes, piece->length, hash);
    if (slot->id < 0) *slot = (Slot){hash, id};
    t->longest = MAX(t->longest, piece->length);
    for (uint32_t i = 1; i < piece->length; i++)
        t->joined[(uint8_t)piece->bytes[i - 1]][(uint8_t)piece->bytes[i]] = true;
}

// ---------------------------------------------------------------------------------------------------------
// Reading tokenizer.bin: u32 length of the longest piece (a hint, not used), then to the end of the file, for each
// token: f32 score, i32 length, bytes, in which a space stands for U+2581.

enum { HEADER_BYTES = 4, RECORD_BYTES = 8 };

// Checks every record and counts them.
static int records_count(const Mapping *file, const char *path, int32_t *count, LlamaError *error) {
    int32_t n = 0;
    for (uint64_t at = HEADER_BYTES; at < file->size; n++) {
        uint64_t left = file->size - at;
        if (n == VOCABULARY_MAX) return fail(error, LLAMA_ERROR_FILE, "%s: has more than %d tokens", path, n);
        if (left < RECORD_BYTES)
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has %d bytes of its record, needed are at least %d",
                        path, n, (int)left, RECORD_BYTES);
        float score = load_f32(file->data + at);
        int32_t length = load_i32(file->data + at + 4);
        if (!isfinite(score))
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has score = %f, allowed are finite numbers", path, n,
                        (double)score);
        if (length < 0 || length > PIECE_MAX)
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has length = %d, allowed 0 to %d", path, n, length,
                        PIECE_MAX);
        if ((uint64_t)length > left - RECORD_BYTES)
            return fail(error, LLAMA_ERROR_FILE, "%s: token %d has length = %d, but the file ends after %d bytes",
                        path, n, length, (int)(left - RECORD_BYTES));
        at += RECORD_BYTES + (uint64_t)length;
    }
    if (n == 0) return fail(error, LLAMA_ERROR_FILE, "%s: has no tokens", path);
    *count = n;
    return LLAMA_OK;
}

// Points the pieces at their bytes, in a file that records_count has checked.
static void records_read(LlamaTokenizer *t) {
    const uint8_t *at = t->file.data + HEADER_BYTES;
    for (int32_t i = 0; i < t->vocab_size; i++) {
        uint16_t length = (uint16_t)load_i32(at + 4);
        t->pieces[i] = (Piece){(const char *)at + RECORD_BYTES, load_f32(at), length, true};
        at += RECORD_BYTES + length;
    }
}

static bool piece_is(const Piece *piece, const char *text) {
    return piece->length == strlen(text) && memcmp(piece->bytes, text, piece->length) == 0;
}

static int hex_value(char digit) {
    static const char digits[] = "0123456789ABCDEF";
    const char *found = digit ? strchr(digits, digit) : NULL;
    return found ? (int)(found - digits) : -1;
}

// The byte that a piece such as <0x0A> stands for, -1 if it is none.
static int piece_byte(const Piece *piece) {
    const char *p = piece->bytes;
    if (piece->length != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>') return -1;
    int high = hex_value(p[3]), low = hex_value(p[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static void piece_make_special(Piece *piece, int32_t id, int32_t *first, const char *bytes, uint16_t length) {
    piece->is_text = false;
    piece->bytes = bytes;
    piece->length = length;
    if (*first < 0) *first = id;
}

// Sorts the tokens into special ones, which get the bytes they print, and text, which gets into the index.
static void vocabulary_index(LlamaTokenizer *t) {
    for (int32_t id = 0; id < t->vocab_size; id++) {
        Piece *piece = &t->pieces[id];
        int byte = piece_byte(piece);
        if (piece_is(piece, "<unk>")) {
            piece_make_special(piece, id, &t->unknown, " \xe2\x81\x87 ", 5); // sentencepiece's unk_surface
        } else if (piece_is(piece, "\n<s>\n") || piece_is(piece, "<s>")) {
            piece_make_special(piece, id, &t->bos, "", 0);
        } else if (piece_is(piece, "\n</s>\n") || piece_is(piece, "</s>")) {
            piece_make_special(piece, id, &t->eos, "", 0);
        } else if (byte >= 0) {
            piece_make_special(piece, id, &t->byte_ids[byte], &t->byte_values[byte], 1);
        } else {
            vocabulary_add(t, id);
        }
    }
    t->has_bytes = true;
    for (int b = 0; b < 256; b++) t->has_bytes &= t->byte_ids[b] >= 0;
}

static int vocabulary_alloc(LlamaTokenizer *t, LlamaError *error) {
    uint32_t n_slots = 2;
    while (n_slots < 2 * (uint32_t)t->vocab_size) n_slots *= 2;
    t->pieces = calloc((size_t)t->vocab_size, sizeof *t->pieces);
    t->slots = malloc(n_slots * sizeof *t->slots);
    if (!t->pieces || !t->slots) return fail_memory(error, (uint64_t)t->vocab_size * 32);
    memset(t->slots, 0xff, n_slots * sizeof *t->slots); // every id -1
    t->slot_mask = n_slots - 1;
    return LLAMA_OK;
}

// Reads the tokenizer at t->file. path: for messages.
static int tokenizer_read(LlamaTokenizer *t, const char *path, LlamaError *error) {
    t->bos = t->eos = t->unknown = -1;
    for (int b = 0; b < 256; b++) t->byte_values[b] = (char)b, t->byte_ids[b] = -1;
    int code = records_count(&t->file, path, &t->vocab_size, error);
    // Only now, since a right file may begin with any length, such as 123, which reads "{".
    const char *kind = code == LLAMA_OK ? NULL : file_kind(t->file.data, t->file.size);
    if (kind) return fail(error, code, "%s: can't be read as a tokenizer: it is %s", path, kind);
    if (code == LLAMA_OK) code = vocabulary_alloc(t, error);
    if (code != LLAMA_OK) return code;
    records_read(t);
    vocabulary_index(t);
    if (!t->has_bytes && t->unknown < 0)
        return fail(error, LLAMA_ERROR_FILE, "%s: has neither <unk> nor the byte tokens <0x00> to <0xFF>", path);
    return LLAMA_OK;
}

void llama_tokenizer_close(LlamaTokenizer *t) {
    if (!t) return;
    free(t->slots);
    free(t->pieces);
    if (!t->borrowed) mapping_free(&t->file);
    free(t);
}

// Opens the file at path, or for path NULL the part of another one, which must stay.
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
