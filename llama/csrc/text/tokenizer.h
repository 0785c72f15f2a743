// tokenizer.h: text to token ids. Of KIND_CHARACTERS and KIND_UNIGRAM as the sentencepiece library does it
// for BPE and UNIGRAM with identity normalisation and remove_extra_whitespaces off (whitespace is kept as it is);
// of KIND_BYTES as tiktoken does it; with a table of pairs as the tokenizers library does it.
//
// Left out: other normalisations. Meta cuts text for tiktoken every 400,000 characters, and runs of letters or of
// whitespace every 25,000, since the library's pattern may fail on longer ones; nothing fails here, nothing is cut.
#ifndef LLAMA_TOKENIZER_H
#define LLAMA_TOKENIZER_H

#include "merge.h"      // Encoder, stretch_encode
#include "specials.h"   // special_find, special_taken
#include "split.h"      // word_end
#include "unigram.h"    // unigram_encode
#include "vocabulary.h" // vocabulary_index

// ---------------------------------------------------------------------------------------------------------
// Encoding what holds no special tokens

// The end of the stretch that begins at start. Where two bytes stand side by side in no piece, no merge crosses,
// so that each side merges as if it were alone: mostly a stretch is a word, and its heap stays in the cache.
static size_t stretch_end(const Index *index, const char *text, size_t start, size_t length) {
    const uint8_t *b = (const uint8_t *)text;
    size_t end = start + 1;
    while (end < length && ((b[end] & 0xc0) == 0x80 || index_joins(index, b[end - 1], b[end]))) end++;
    return end;
}

static int stretches_encode(Encoder *e, const char *text, size_t length, LlamaError *error) {
    int code = LLAMA_OK;
    for (size_t start = 0, end; start < length && code == LLAMA_OK; start = end) {
        end = stretch_end(e->index, text, start, length);
        code = stretch_encode(e, text + start, end - start, error);
    }
    return code;
}

// The bytes of what begins at text, a byte or a character, and whether it has a token of its own.
static size_t unit_length(const Encoder *e, const char *text, size_t length, bool *known) {
    const LlamaTokenizer *t = e->tokenizer;
    size_t bytes = t->kind == KIND_BYTES ? 1 : (size_t)MAX(1, utf8_length(text, length));
    *known =
        t->kind == KIND_BYTES ? t->byte_ids[(uint8_t)text[0]] >= 0 : vocabulary_find(t, e->index, text, bytes) >= 0;
    return bytes;
}

// Of a vocabulary without an unknown token: as if what has no token were not there, so that its neighbours merge.
static int known_encode(Encoder *e, const char *text, size_t length, LlamaError *error) {
    char *kept = malloc(length);
    if (!kept) return fail_memory(error, length);
    size_t n = 0;
    for (size_t at = 0, bytes; at < length; at += bytes) {
        bool known;
        bytes = unit_length(e, text + at, length - at, &known);
        if (known) memcpy(kept + n, text + at, bytes), n += bytes;
    }
    int code = stretches_encode(e, kept, n, error);
    free(kept);
    return code;
}

// Of a vocabulary of bytes with an unknown token, which nothing merges with: it stands for bytes without a token.
static int known_parts_encode(Encoder *e, const char *text, size_t length, LlamaError *error) {
    int code = LLAMA_OK;
    for (size_t start = 0, end; start < length && code == LLAMA_OK; start = end) {
        bool known, first;
        end = start + unit_length(e, text + start, length - start, &first);
        while (end < length && (unit_length(e, text + end, length - end, &known), known == first && first)) end++;
        if (first)
            code = stretches_encode(e, text + start, end - start, error);
        else
            emit_unknown(e);
    }
    return code;
}

static int word_encode(Encoder *e, const char *word, size_t length, LlamaError *error) {
    const LlamaTokenizer *t = e->tokenizer;
    int32_t id = -1;
    e->begin = e->n;
    if (t->kind == KIND_UNIGRAM) return unigram_encode(e, word, length, error);
    if (t->flags & FLAG_WHOLE_WORDS) id = vocabulary_find(t, e->index, word, length);
    if (id >= 0) return emit(e, id), LLAMA_OK;
    if (t->has_bytes || (t->unknown >= 0 && t->kind == KIND_CHARACTERS))
        return stretches_encode(e, word, length, error);
    return (t->unknown < 0 ? known_encode : known_parts_encode)(e, word, length, error);
}

static int plain_encode(Encoder *e, const char *text, size_t length, LlamaError *error) {
    Pieces pieces = {{0}};
    int code = LLAMA_OK;
    for (size_t at = 0, end; at < length && code == LLAMA_OK; at = end) {
        end = word_end(e->tokenizer->pattern, &pieces, text, at, length);
        code = word_encode(e, text + at, end - at, error);
    }
    return code;
}

// ---------------------------------------------------------------------------------------------------------
// Text is encoded in parts between special tokens

// spans: those of the part, and behind it.
typedef int PartEncoder(Encoder *e, const char *text, Stretch part, Spans spans, LlamaError *error);

// Encodes a part of a text, in which names of these types (bits) stand for themselves; what is between them by
// encode_part.
static int parts_encode(Encoder *e, const char *text, Stretch part, const Names *names, uint32_t types, Spans spans,
                        PartEncoder *encode_part, LlamaError *error) {
    const LlamaTokenizer *t = e->tokenizer;
    Spans of_part = spans;
    size_t begin = part.begin, at = types & names->types || spans.n > 0 ? begin : part.end;
    for (Found found; special_find(t, names, text, at, part, types, &spans, &found); at = found.end) {
        Stretch taken = special_taken(t, names, text, begin, part.end, spans, found);
        if (taken.begin >= taken.end) continue;
        int code = encode_part(e, text, (Stretch){begin, MAX(begin, taken.begin)}, of_part, error);
        of_part = spans;
        if (code != LLAMA_OK) return code;
        emit(e, found.id);
        e->begin = e->n;
        begin = taken.end;
    }
    return encode_part(e, text, (Stretch){begin, part.end}, of_part, error);
}

static int plain_part(Encoder *e, const char *text, Stretch part, Spans spans, LlamaError *error) {
    (void)spans;
    return plain_encode(e, text + part.begin, part.end - part.begin, error);
}

// ---------------------------------------------------------------------------------------------------------
// Encoding any bytes

static bool utf8_is_valid(const char *text, size_t length) {
    for (size_t i = 0; i < length;) {
        int bytes = (uint8_t)text[i] < 0x80 ? 1 : utf8_length(text + i, length - i);
        if (bytes <= 0) return false;
        i += (size_t)bytes;
    }
    return true;
}

// Whether a space goes in front of a part of a text.
static bool part_has_prefix(const LlamaTokenizer *t, const char *text, size_t length, bool first) {
    if (!(t->flags & FLAG_PREFIX) || !(first || t->flags & FLAG_PREFIX_EACH)) return false;
    bool symbol = t->kind != KIND_BYTES && length >= 3 && memcmp(text, SPACE_SYMBOL, 3) == 0;
    bool space = text[0] == ' ' || symbol;
    return !(t->flags & FLAG_PREFIX_UNLESS_SPACE && space);
}

// Writes text as the pieces spell it to out, which has room for 3 * length + 1 bytes, and returns its length: a
// space in front if there is to be one, U+FFFD for each invalid byte; where characters merge, U+2581 is a space.
static size_t text_normalise(const LlamaTokenizer *t, const char *text, size_t length, bool prefix, char *out) {
    size_t n = 0;
    if (prefix) out[n++] = ' ';
    for (size_t i = 0; i < length;) {
        int bytes = utf8_length(text + i, length - i);
        if (bytes <= 0) {
            memcpy(out + n, REPLACEMENT, 3);
            n += 3;
            i += 1;
        } else if (bytes == 3 && t->kind != KIND_BYTES && memcmp(text + i, SPACE_SYMBOL, 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            for (int end = bytes; end > 0; end--) out[n++] = text[i++];
        }
    }
    return n;
}

// The types of late tokens that a text is searched for.
static uint32_t late_types(const Encoder *e) {
    return USER_BIT | (e->special ? CONTROL_BIT : 0u);
}

// Encodes text that is spelt as the pieces are. forged: names in it are text, as one of them is a user's.
static int normal_encode(Encoder *e, const char *text, size_t length, bool forged, LlamaError *error) {
    const LlamaTokenizer *t = e->tokenizer;
    bool late = late_is_spelt(t), user = t->kind == KIND_CHARACTERS && !(t->flags & FLAG_USER_FIRST);
    if (late && forged) return plain_encode(e, text, length, error);
    const Names *names = late ? &t->late : &t->specials;
    uint32_t types = late ? late_types(e) : user ? USER_BIT : 0;
    return parts_encode(e, text, (Stretch){0, length}, names, types, (Spans){0}, plain_part, error);
}

static int part_encode(Encoder *e, const char *text, Stretch part, Spans spans, LlamaError *error) {
    const LlamaTokenizer *t = e->tokenizer;
    bool forged = part_forges(t, text, part, spans);
    size_t length = part.end - part.begin;
    e->begin = e->n;
    if (length == 0) return LLAMA_OK;
    text += part.begin;
    bool prefix = !e->bare && part_has_prefix(t, text, length, part.begin == 0);
    if (t->kind == KIND_BYTES && !prefix && utf8_is_valid(text, length))
        return plain_encode(e, text, length, error);
    char *normal = malloc(3 * length + 1);
    if (!normal) return fail_memory(error, 3 * length + 1);
    size_t n = text_normalise(t, text, length, prefix, normal);
    int code = n >= INT32_MAX ? fail(error, LLAMA_ERROR_USAGE,
                                     "text has more than %d bytes, as U+FFFD for each invalid one", INT32_MAX - 1)
                              : normal_encode(e, normal, n, forged, error);
    free(normal);
    return code;
}

// Encodes what is between special tokens, in which late ones are found as it is given.
static int given_encode(Encoder *e, const char *text, Stretch part, Spans spans, LlamaError *error) {
    return parts_encode(e, text, part, &e->tokenizer->late, late_types(e), spans, part_encode, error);
}

// Every byte may be invalid, three bytes as U+FFFD, each a byte token; so may the space in front; BOS; EOS. A
// special token of one byte and a space in front of what follows it, a byte at least, are four.
size_t llama_encode_bound(size_t length) {
    return length > (SIZE_MAX - 5) / 4 ? SIZE_MAX : 3 * length + length / 2 + 5;
}

// Appends the ids of text to those of an encoder.
static int text_encode(Encoder *e, const char *text, size_t length, bool special, Spans spans, LlamaError *error) {
    const LlamaTokenizer *t = e->tokenizer;
    if (length == 0) return LLAMA_OK;
    if (length > INT32_MAX)
        return fail(error, LLAMA_ERROR_USAGE, "text has %zu bytes, allowed are %d", length, INT32_MAX);
    e->index = vocabulary_index(t);
    if (!e->index) return fail_memory(error, 8 * (uint64_t)t->vocab_size);
    bool user = t->flags & FLAG_USER_FIRST || t->kind == KIND_BYTES;
    uint32_t types = (special ? CONTROL_BIT : 0u) | (user ? USER_BIT : 0u);
    PartEncoder *encode_part = t->flags & FLAG_LATE_AS_GIVEN ? given_encode : part_encode;
    int code = parts_encode(e, text, (Stretch){0, length}, &t->specials, types, spans, encode_part, error);
    free(e->heap);
    e->heap = NULL;
    e->room = 0;
    return code;
}

int llama_encode_special(const LlamaTokenizer *t, const char *text, size_t length, int bos, int eos, int special,
                         int32_t *ids, size_t *n, LlamaError *error) {
    *n = 0;
    if ((bos && t->bos < 0) || (eos && t->eos < 0))
        return fail(error, LLAMA_ERROR_USAGE, "the vocabulary has no %s", bos && t->bos < 0 ? "BOS" : "EOS");
    Encoder e = {.tokenizer = t, .ids = ids, .special = special};
    if (bos) emit(&e, t->bos);
    int code = text_encode(&e, text, length, special, (Spans){0}, error);
    if (code != LLAMA_OK) return code;
    if (eos) emit(&e, t->eos);
    *n = e.n;
    return LLAMA_OK;
}

int llama_encode_spans(const LlamaTokenizer *t, const char *text, size_t length, const LlamaSpan *spans,
                       size_t n_spans, int32_t *ids, size_t *n, LlamaError *error) {
    Encoder e = {.tokenizer = t, .ids = ids, .special = true};
    int code = text_encode(&e, text, length, true, (Spans){spans, n_spans}, error);
    *n = code == LLAMA_OK ? e.n : 0;
    return code;
}

int llama_encode(const LlamaTokenizer *t, const char *text, size_t length, int bos, int eos, int32_t *ids,
                 size_t *n, LlamaError *error) {
    return llama_encode_special(t, text, length, bos, eos, 0, ids, n, error);
}

int llama_encode_prompt(const LlamaModel *model, const LlamaTokenizer *t, const char *text, size_t length,
                        int32_t *ids, size_t *n, LlamaError *error) {
    return llama_encode(t, text, length, llama_config(model)->add_bos || length == 0, 0, ids, n, error);
}

#endif
