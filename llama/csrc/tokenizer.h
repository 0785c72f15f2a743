// tokenizer.h: text to token ids and back, as the sentencepiece library does it for a BPE model with identity
// normalisation, add_dummy_prefix on and remove_extra_whitespaces off (whitespace is kept as it is). The time is
// O(n log n) in the longest stretch of text that can merge, whatever the text.
//
// Left out, because a tokenizer.bin cannot say it: other normalisations, user-defined and unused pieces, and
// control pieces besides BOS and EOS, which are text here.
#ifndef LLAMA_TOKENIZER_H
#define LLAMA_TOKENIZER_H

#include "util.h" // fail, Mapping

#include <math.h> // isfinite

enum { PIECE_MAX = 16384, VOCABULARY_MAX = 1 << 24 }; // bounds on what a file may claim: bytes, tokens

#define REPLACEMENT "\xef\xbf\xbd"  // U+FFFD stands for a byte that is not UTF-8
#define SPACE_SYMBOL "\xe2\x96\x81" // U+2581 is how sentencepiece writes a space

// ---------------------------------------------------------------------------------------------------------
// UTF-8

enum { UTF8_INVALID = 0, UTF8_UNFINISHED = -1 };

// Bytes of the character at p, of which n >= 1 bytes are known. UTF8_INVALID: p[0] cannot begin a character with
// what follows it; UTF8_UNFINISHED: it can, but more bytes are needed. The ranges are those of table 3-7 of the
// Unicode standard: no overlong forms, no surrogates, nothing past U+10FFFF.
static int utf8_length(const char *p, size_t n) {
    const uint8_t *b = (const uint8_t *)p;
    if (b[0] < 0x80) return 1;
    if (b[0] < 0xc2 || b[0] > 0xf4) return UTF8_INVALID;
    size_t length = b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : 4;
    uint8_t low = b[0] == 0xe0 ? 0xa0 : b[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t high = b[0] == 0xed ? 0x9f : b[0] == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < length; i++) {
        if (i == n) return UTF8_UNFINISHED;
        if (b[i] < low || b[i] > high) return UTF8_INVALID;
        low = 0x80, high = 0xbf;
    }
    return (int)length;
}

// ---------------------------------------------------------------------------------------------------------
// Vocabulary

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

static int tokenizer_init(LlamaTokenizer *t, const char *path, LlamaError *error) {
    t->bos = t->eos = t->unknown = -1;
    for (int b = 0; b < 256; b++) t->byte_values[b] = (char)b, t->byte_ids[b] = -1;
    int code = mapping_init(&t->file, path, error);
    if (code != LLAMA_OK) return code;
    code = records_count(&t->file, path, &t->vocab_size, error);
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
    mapping_free(&t->file);
    free(t);
}

int llama_tokenizer_open(const char *path, LlamaTokenizer **tokenizer, LlamaError *error) {
    *tokenizer = NULL;
    LlamaTokenizer *t = calloc(1, sizeof *t);
    if (!t) return fail_memory(error, sizeof *t);
    int code = tokenizer_init(t, path, error);
    if (code != LLAMA_OK) {
        llama_tokenizer_close(t);
        return code;
    }
    *tokenizer = t;
    return LLAMA_OK;
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

// ---------------------------------------------------------------------------------------------------------
// Decoding

const char *llama_token_bytes_of(const LlamaTokenizer *t, int32_t previous, int32_t token, size_t *length) {
    *length = 0;
    if (token < 0 || token >= t->vocab_size) return NULL;
    const Piece *piece = &t->pieces[token];
    bool starts_text = previous == -1 || previous == t->bos;
    bool drops_space = starts_text && piece->is_text && piece->length > 0 && piece->bytes[0] == ' ';
    *length = piece->length - (size_t)drops_space;
    return piece->bytes + drops_space;
}

// ---------------------------------------------------------------------------------------------------------
// Merging: a stretch of text is a linked list of symbols, at first one a character; a heap holds the pairs of
// neighbours that make a piece.

typedef struct {
    int32_t previous, next; // -1: none
    int32_t start, length;  // in bytes of the stretch; length 0: merged into the symbol to its left
} Symbol;

typedef struct {
    float score;
    int32_t left;   // symbol that merges with the next one
    int32_t length; // of the two together: tells a pair from what became of it
} Merge;

typedef struct {
    const LlamaTokenizer *tokenizer;
    const char *text;  // the stretch
    Symbol *symbols;   // (bytes of the longest stretch)
    Merge *heap;       // (2 * bytes of the longest stretch): each symbol opens a pair, each merge one more
    int32_t heap_size; // the best merge is heap[0], the children of i are 2 i + 1 and 2 i + 2
} Merger;

static bool merge_before(Merge a, Merge b) {
    return a.score > b.score || (a.score == b.score && a.left < b.left);
}

static void heap_push(Merger *m, Merge merge) {
    int32_t i = m->heap_size++;
    for (; i > 0 && merge_before(merge, m->heap[(i - 1) / 2]); i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = merge;
}

static Merge heap_pop(Merger *m) {
    Merge best = m->heap[0], last = m->heap[--m->heap_size];
    int32_t i = 0;
    for (int32_t child = 1; child < m->heap_size; child = 2 * i + 1) {
        if (child + 1 < m->heap_size && merge_before(m->heap[child + 1], m->heap[child])) child++;
        if (!merge_before(m->heap[child], last)) break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return best;
}

// Pushes the pair of symbol `left` and the next one, if it makes a piece.
static void merge_consider(Merger *m, int32_t left) {
    if (left < 0 || m->symbols[left].next < 0) return;
    const Symbol *symbol = &m->symbols[left];
    int32_t length = symbol->length + m->symbols[symbol->next].length;
    int32_t id = vocabulary_find(m->tokenizer, m->text + symbol->start, (size_t)length);
    if (id >= 0) heap_push(m, (Merge){m->tokenizer->pieces[id].score, left, length});
}

static void merge_apply(Merger *m, Merge merge) {
    Symbol *left = &m->symbols[merge.left];
    if (left->length == 0 || left->next < 0) return;
    Symbol *right = &m->symbols[left->next];
    if (left->length + right->length != merge.length) return;
    left->length = merge.length;
    left->next = right->next;
    right->length = 0;
    if (left->next >= 0) m->symbols[left->next].previous = merge.left;
    merge_consider(m, left->previous);
    merge_consider(m, merge.left);
}

// Makes symbols of a stretch of `length` bytes of valid UTF-8 and merges them until no pair makes a piece.
static void stretch_merge(Merger *m, int32_t length) {
    int32_t n = 0;
    for (int32_t start = 0; start < length; n++) {
        int32_t bytes = utf8_length(m->text + start, (size_t)(length - start));
        m->symbols[n] = (Symbol){n - 1, n + 1, start, bytes};
        start += bytes;
    }
    m->symbols[n - 1].next = -1;
    for (int32_t i = 0; i < n; i++) merge_consider(m, i);
    while (m->heap_size > 0) merge_apply(m, heap_pop(m));
}

// ---------------------------------------------------------------------------------------------------------
// Encoding

// Appends the ids of a character that is no piece: its bytes, or one unknown token for a whole run.
static void emit_unknown(const LlamaTokenizer *t, const char *bytes, size_t length, int32_t *ids, size_t *n) {
    if (length == 1 && bytes[0] == ' ') bytes = SPACE_SYMBOL, length = strlen(SPACE_SYMBOL);
    if (t->has_bytes) {
        for (size_t i = 0; i < length; i++) ids[(*n)++] = t->byte_ids[(uint8_t)bytes[i]];
    } else if (*n == 0 || ids[*n - 1] != t->unknown) {
        ids[(*n)++] = t->unknown;
    }
}

static void stretch_emit(const Merger *m, int32_t *ids, size_t *n) {
    for (int32_t i = 0; i >= 0; i = m->symbols[i].next) {
        const char *bytes = m->text + m->symbols[i].start;
        size_t length = (size_t)m->symbols[i].length;
        int32_t id = vocabulary_find(m->tokenizer, bytes, length);
        if (id >= 0) {
            ids[(*n)++] = id;
        } else {
            emit_unknown(m->tokenizer, bytes, length, ids, n);
        }
    }
}

// Writes the text as the pieces spell it to out, which has room for 3 * length + 1 bytes, and returns its length:
// a space in front, U+2581 as a space, U+FFFD for each invalid byte.
static size_t text_normalise(const char *text, size_t length, char *out) {
    size_t n = 0;
    out[n++] = ' ';
    for (size_t i = 0; i < length;) {
        int bytes = utf8_length(text + i, length - i);
        if (bytes <= 0) {
            memcpy(out + n, REPLACEMENT, 3);
            n += 3;
            i += 1;
        } else if (bytes == 3 && memcmp(text + i, SPACE_SYMBOL, 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            memcpy(out + n, text + i, (size_t)bytes);
            n += (size_t)bytes;
            i += (size_t)bytes;
        }
    }
    return n;
}

// The end of the stretch that begins at start. Where two bytes stand side by side in no piece, no merge crosses,
// so that each side merges as if it were alone: mostly a stretch is a word, and its heap stays in the cache.
static size_t stretch_end(const LlamaTokenizer *t, const char *text, size_t start, size_t length) {
    const uint8_t *b = (const uint8_t *)text;
    size_t end = start + 1;
    while (end < length && ((b[end] & 0xc0) == 0x80 || t->joined[b[end - 1]][b[end]])) end++;
    return end;
}

static int text_encode(const LlamaTokenizer *t, const char *text, size_t length, int32_t *ids, size_t *n,
                       LlamaError *error) {
    if (length > INT32_MAX)
        return fail(error, LLAMA_ERROR_USAGE, "text has more than %d bytes, as U+FFFD for each invalid one",
                    INT32_MAX);
    size_t longest = 0;
    for (size_t start = 0, end; start < length; start = end) {
        end = stretch_end(t, text, start, length);
        longest = MAX(longest, end - start);
    }
    size_t bytes = longest * (sizeof(Symbol) + 2 * sizeof(Merge));
    Symbol *symbols = malloc(bytes);
    if (!symbols) return fail_memory(error, bytes);
    for (size_t start = 0, end; start < length; start = end) {
        end = stretch_end(t, text, start, length);
        Merger merger = {t, text + start, symbols, (Merge *)(symbols + longest), 0};
        stretch_merge(&merger, (int32_t)(end - start));
        stretch_emit(&merger, ids, n);
    }
    free(symbols);
    return LLAMA_OK;
}

// Every byte may be invalid, three bytes as U+FFFD, each a byte token; so may the space in front; BOS; EOS.
size_t llama_encode_bound(size_t length) {
    return length > (SIZE_MAX - 5) / 3 ? SIZE_MAX : 3 * length + 5;
}

int llama_encode(const LlamaTokenizer *t, const char *text, size_t length, int bos, int eos, int32_t *ids,
                 size_t *n, LlamaError *error) {
    *n = 0;
    if ((bos && t->bos < 0) || (eos && t->eos < 0))
        return fail(error, LLAMA_ERROR_USAGE, "the vocabulary has no %s", bos && t->bos < 0 ? "BOS" : "EOS");
    if (length > INT32_MAX)
        return fail(error, LLAMA_ERROR_USAGE, "text has %zu bytes, allowed are %d", length, INT32_MAX);
    if (bos) ids[(*n)++] = t->bos;
    int code = LLAMA_OK;
    if (length > 0) {
        char *normal = malloc(3 * length + 1);
        if (!normal) return fail_memory(error, 3 * length + 1);
        code = text_encode(t, normal, text_normalise(text, length, normal), ids, n, error);
        free(normal);
    }
    if (eos) ids[(*n)++] = t->eos;
    return code;
}

#endif
