// tokenizer.h: text to token ids and back, as the sentencepiece library does it for a BPE model with identity
// normalisation, add_dummy_prefix on and remove_extra_whitespaces off (whitespace is kept as it is). The time is
// O(n log n) in the longest stretch of text that can merge, whatever the text.
//
// Left out, because a tokenizer.bin cannot say it: other normalisations, and the types of pieces (vocabulary.h).
#ifndef LLAMA_TOKENIZER_H
#define LLAMA_TOKENIZER_H

#include "utf8.h"       // utf8_length, REPLACEMENT
#include "vocabulary.h" // LlamaTokenizer, vocabulary_find

#define SPACE_SYMBOL "\xe2\x96\x81" // U+2581 is how sentencepiece writes a space

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
