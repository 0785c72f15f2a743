// merge.h: byte pair encoding of a stretch of text: it is a linked list of symbols, at first characters or bytes,
// and a heap holds the pairs of neighbours that merge. The time is O(n log n) in the length of the stretch,
// whatever it is.
#ifndef LLAMA_MERGE_H
#define LLAMA_MERGE_H

#include "utf8.h"   // utf8_length
#include "pieces.h" // LlamaTokenizer, vocabulary_find

#define SPACE_SYMBOL "\xe2\x96\x81" // U+2581 is how sentencepiece writes a space

typedef struct {
    int32_t previous, next; // -1: none
    int32_t start, length;  // in bytes of the stretch; length 0: merged into the symbol to its left
    int32_t id;             // -1: a character that has not been looked up
} Symbol;

typedef struct {
    uint64_t key;   // order of merges: rank, then place of the symbol that merges with the next one
    int32_t length; // of the two together: tells a pair from what became of it
    int32_t id;     // what they become
} Merge;

static const uint32_t NO_RANK = UINT32_MAX; // a pair that does not merge

// A text being encoded.
typedef struct {
    const LlamaTokenizer *tokenizer;
    const Index *index;
    int32_t *ids;     // (n) so far
    size_t n, begin;  // ids[begin, n) are of the part of the text that is being encoded
    bool special;     // control tokens may be named in the text
    const char *text; // the stretch
    Symbol *symbols;  // (room)
    Merge *heap;      // (2 * room): each symbol opens a pair, each merge one more
    size_t heap_size; // the best merge is heap[0], the children of i are 2 i + 1 and 2 i + 2
    size_t room;
    bool bare; // no space goes in front of a text
} Encoder;

// Room for a stretch of n bytes.
static int encoder_reserve(Encoder *e, size_t n, LlamaError *error) {
    if (n <= e->room) return LLAMA_OK;
    size_t room = MAX(n, 64), bytes = room * (2 * sizeof(Merge) + sizeof(Symbol));
    free(e->heap);
    e->room = 0;
    e->heap = malloc(bytes);
    if (!e->heap) return fail_memory(error, bytes);
    e->symbols = (Symbol *)(e->heap + 2 * room);
    e->room = room;
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// The heap

static void heap_push(Encoder *e, Merge merge) {
    size_t i = e->heap_size++;
    for (; i > 0 && merge.key < e->heap[(i - 1) / 2].key; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = merge;
}

static Merge heap_pop(Encoder *e) {
    Merge best = e->heap[0], last = e->heap[--e->heap_size];
    size_t i = 0;
    for (size_t child = 1; child < e->heap_size; child = 2 * i + 1) {
        if (child + 1 < e->heap_size && e->heap[child + 1].key < e->heap[child].key) child++;
        if (e->heap[child].key >= last.key) break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return best;
}

// ---------------------------------------------------------------------------------------------------------
// Merging

// The rank of a score: the highest score has the lowest rank. A positive float's bits are ordered as it is, a
// negative one's the other way round.
static uint32_t score_rank(float score) {
    uint32_t bits;
    score += 0.0f; // -0 becomes 0
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7fffffff;
}

// Pushes the pair of symbol `left` and the next one, if they merge.
static void merge_consider(Encoder *e, int32_t left) {
    if (left < 0 || e->symbols[left].next < 0) return;
    const LlamaTokenizer *t = e->tokenizer;
    const Symbol *symbol = &e->symbols[left];
    int32_t length = symbol->length + e->symbols[symbol->next].length;
    int32_t id = vocabulary_find(t, e->index, e->text + symbol->start, (size_t)length);
    if (id < 0) return;
    uint32_t rank = t->ranks ? t->ranks[t->offsets[id] + (uint32_t)symbol->length] : score_rank(t->scores[id]);
    if (rank == NO_RANK) return;
    heap_push(e, (Merge){(uint64_t)rank << 32 | (uint32_t)left, length, id});
}

static void merge_apply(Encoder *e, Merge merge) {
    int32_t place = (int32_t)(uint32_t)merge.key;
    Symbol *left = &e->symbols[place];
    if (left->length == 0 || left->next < 0) return;
    Symbol *right = &e->symbols[left->next];
    if (left->length + right->length != merge.length) return;
    left->length = merge.length;
    left->id = merge.id;
    left->next = right->next;
    right->length = 0;
    if (left->next >= 0) e->symbols[left->next].previous = place;
    merge_consider(e, left->previous);
    merge_consider(e, place);
}

// Makes symbols of a stretch: bytes, or the characters of valid UTF-8.
static int32_t symbols_make(Encoder *e, int32_t length) {
    int32_t n = 0;
    const LlamaTokenizer *t = e->tokenizer;
    for (int32_t start = 0, bytes = 1; start < length; start += bytes, n++) {
        int32_t id = -1;
        if (t->kind == KIND_BYTES)
            id = t->byte_ids[(uint8_t)e->text[start]];
        else
            bytes = MAX(1, utf8_length(e->text + start, (size_t)(length - start)));
        e->symbols[n] = (Symbol){n - 1, n + 1, start, bytes, id};
    }
    e->symbols[n - 1].next = -1;
    return n;
}

// ---------------------------------------------------------------------------------------------------------
// What becomes of the symbols

static void emit(Encoder *e, int32_t id) {
    e->ids[e->n++] = id;
}

// The unknown token, one for a whole run unless each character is to have its own.
static void emit_unknown(Encoder *e) {
    const LlamaTokenizer *t = e->tokenizer;
    bool fused = !(t->flags & FLAG_UNKNOWN_EACH) && e->n > e->begin && e->ids[e->n - 1] == t->unknown;
    if (!fused) emit(e, t->unknown);
}

// A character that is no piece: its bytes, or unknown.
static void emit_character(Encoder *e, const char *bytes, size_t length) {
    const LlamaTokenizer *t = e->tokenizer;
    if (length == 1 && bytes[0] == ' ') bytes = SPACE_SYMBOL, length = strlen(SPACE_SYMBOL);
    if (!t->has_bytes) return emit_unknown(e);
    for (size_t i = 0; i < length; i++) emit(e, t->byte_ids[(uint8_t)bytes[i]]);
}

static void symbols_emit(Encoder *e) {
    for (int32_t i = 0; i >= 0; i = e->symbols[i].next) {
        const Symbol *symbol = &e->symbols[i];
        const char *bytes = e->text + symbol->start;
        int32_t id = symbol->id;
        if (id < 0) id = vocabulary_find(e->tokenizer, e->index, bytes, (size_t)symbol->length);
        if (id >= 0)
            emit(e, id);
        else
            emit_character(e, bytes, (size_t)symbol->length);
    }
}

// Appends the ids of a stretch of 1 to INT32_MAX bytes.
static int stretch_encode(Encoder *e, const char *text, size_t length, LlamaError *error) {
    int code = encoder_reserve(e, length, error);
    if (code != LLAMA_OK) return code;
    e->text = text;
    int32_t n = symbols_make(e, (int32_t)length);
    for (int32_t i = 0; i < n; i++) merge_consider(e, i);
    while (e->heap_size > 0) merge_apply(e, heap_pop(e));
    symbols_emit(e);
    return LLAMA_OK;
}

#endif
