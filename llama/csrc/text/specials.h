// specials.h: special tokens in a text: where one stands, by its name or given by a span, and the white space that
// goes with it, as in the tokenizers library (its AddedVocabulary). Text may hold any bytes.
#ifndef LLAMA_SPECIALS_H
#define LLAMA_SPECIALS_H

#include "characters.h" // character_at
#include "pieces.h"     // Names, names_match
#include "utf8.h"       // utf8_length
#include "words.h"      // word_codes

typedef struct {
    const LlamaSpan *next;
    size_t n;
} Spans;

// Bytes [begin, end) of a text: the whole of it, what lies between tokens, or what one takes.
typedef struct {
    size_t begin, end;
} Stretch;

// A token that is found: its name, or the span that it is given by.
typedef struct {
    size_t begin, end;
    int32_t id;
} Found;

// ---------------------------------------------------------------------------------------------------------
// What is beside a name

static uint8_t edges_of(const LlamaTokenizer *t, int32_t id) {
    return t->edges && id < t->vocab_size ? t->edges[id] : 0;
}

// Where the character begins that ends at `at`; `at` itself if it does not begin after `begin`, or is no character.
static size_t whole_character_before(const char *text, size_t begin, size_t at) {
    size_t n = 1;
    while (n < 4 && n < at - begin && ((uint8_t)text[at - n] & 0xc0) == 0x80) n++;
    return n <= at - begin && utf8_length(text + at - n, n) == (int)n ? at - n : at;
}

// The character at `at`, END where bytes are none.
static Character whole_character_at(const char *text, size_t at, size_t end) {
    bool whole = at < end && utf8_length(text + at, end - at) > 0;
    return whole ? character_at(text, at, end) : (Character){END, 0, at};
}

// White space, as a pattern's \s; in text that is spelt as pieces are, a space is U+2581, which is none.
static bool is_white(Character c, bool spelt) {
    return c.class == SPACE && !(spelt && c.code == ' ');
}

// Where the white space begins that ends at `at`.
static size_t white_begin(const char *text, size_t begin, size_t at, bool spelt) {
    for (size_t before; (before = whole_character_before(text, begin, at)) < at; at = before)
        if (!is_white(character_at(text, before, at), spelt)) break;
    return at;
}

// Where the white space ends that begins at `at`.
static size_t white_end(const char *text, size_t at, size_t end, bool spelt) {
    for (Character c; is_white(c = whole_character_at(text, at, end), spelt);) at = c.next;
    return at;
}

// A character of a word, as a pattern's \w.
static bool is_word(Character c) {
    static const Set words = SET(LETTER | MARK, word_codes);
    return set_has(&words, c);
}

// Whether a name has no letters and the like beside it in a part of a text.
static bool stands_alone(const char *text, size_t begin, size_t end, Stretch part) {
    size_t before = whole_character_before(text, part.begin, begin);
    return !is_word(character_at(text, before, begin)) && !is_word(whole_character_at(text, end, part.end));
}

// ---------------------------------------------------------------------------------------------------------
// Finding

// Whether late names are looked for in text that is spelt as pieces are, with a space in front.
static bool late_is_spelt(const LlamaTokenizer *t) {
    return t->late.n > 0 && !(t->flags & FLAG_LATE_AS_GIVEN);
}

// Whether a name is one that no plain text may mean: a control token's, or <|im_end|> and the like, which some
// files call user-defined.
static bool is_special_name(const LlamaTokenizer *t, const char *name, size_t length, int32_t id) {
    return t->types[id] == TOKEN_CONTROL || (length > 1 && name[0] == '<' && name[1] == '|');
}

// The bytes of the token that stands at a place of a text, 0 for none: of a span, or of a name that does not reach
// into one. Spans that end before are dropped.
static size_t token_match(const LlamaTokenizer *t, const Names *names, const char *text, size_t at, size_t length,
                          uint32_t types, Spans *spans, int32_t *id) {
    while (spans->n > 0 && spans->next->end <= at) spans->next++, spans->n--;
    bool inside = spans->n > 0 && spans->next->begin <= at;
    if (inside && (*id = spans->next->token) >= 0) return spans->next->end - at;
    size_t end = spans->n > 0 && !inside ? MIN(length, spans->next->begin) : length;
    if (inside) types &= ~(uint32_t)CONTROL_BIT;
    size_t matched = names_match(t, names, text + at, end - at, types, id);
    return inside && matched > 0 && is_special_name(t, text + at, matched, *id) ? 0 : matched;
}

// Whether a span gives the token at a place of a text, to which spans before it were dropped.
static bool is_given(const Spans *spans, size_t at) {
    return spans->n > 0 && spans->next->begin <= at && spans->next->token >= 0;
}

// Finds the first token from `at` on that names of these types (bits), or spans, mean in a part of a text; false if
// there is none. Late tokens have a space in front of their name, if one was put in front of the text.
static bool special_find(const LlamaTokenizer *t, const Names *names, const char *text, size_t at, Stretch part,
                         uint32_t types, Spans *spans, Found *found) {
    size_t space = names == &t->late && late_is_spelt(t) && t->flags & FLAG_PREFIX ? 1 : 0;
    *found = (Found){part.end, part.end, -1};
    for (; at + space < part.end; at++) {
        if (space > 0 && text[at] != ' ') continue;
        size_t matched = token_match(t, names, text, at + space, part.end, types, spans, &found->id);
        if (matched == 0) continue;
        found->begin = at, found->end = at + space + matched;
        bool alone = !(edges_of(t, found->id) & EDGE_WORD) || is_given(spans, at);
        if (alone || stands_alone(text, found->begin, found->end, part)) return true;
        at = found->end - 1; // no other name begins in one that is text
    }
    return false;
}

// What a token takes of a text: its name, and white space that has no token yet. begin: where that is to be looked
// for; past the beginning of the token, if it is white space that went with the one before. Nothing is left of such
// a token if it takes what is before it. spans: from the token on.
static Stretch special_taken(const LlamaTokenizer *t, const Names *names, const char *text, size_t begin,
                             size_t length, Spans spans, Found found) {
    Stretch taken = {found.begin, found.end};
    uint8_t edges = edges_of(t, found.id);
    bool spelt = names == &t->late && late_is_spelt(t);
    if (edges & EDGE_LEFT) taken.begin = begin < found.begin ? white_begin(text, begin, found.begin, spelt) : begin;
    if (!(edges & EDGE_RIGHT)) return taken;
    taken.end = white_end(text, MAX(begin, found.end), length, spelt);
    for (; spans.n > 0 && spans.next->begin < taken.end; spans.next++, spans.n--)
        if (spans.next->token >= 0 && spans.next->begin >= found.end) taken.end = spans.next->begin;
    return taken;
}

// Whether plain text in a part of a text has special names that are found when spans are forgotten.
static bool part_forges(const LlamaTokenizer *t, const char *text, Stretch part, Spans spans) {
    size_t matched;
    int32_t id;
    for (; late_is_spelt(t) && spans.n > 0 && spans.next->begin < part.end; spans.next++, spans.n--)
        for (size_t at = MAX(part.begin, spans.next->begin); at < MIN(part.end, spans.next->end); at++)
            if ((matched = names_match(t, &t->late, text + at, part.end - at, CONTROL_BIT | USER_BIT, &id)) > 0 &&
                is_special_name(t, text + at, matched, id))
                return true;
    return false;
}

#endif
