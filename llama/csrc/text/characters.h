// characters.h: the characters of a text and what they are to the patterns that split it. Text is valid UTF-8, but
// for what a name that is none, in a file made for it, was cut out of: nothing is read past its end.
#ifndef LLAMA_CHARACTERS_H
#define LLAMA_CHARACTERS_H

#include "unicode.h" // unicode_ranges, unicode_ascii

// What a character is: a bit, so that sets of classes are sums. END is in none.
typedef enum {
    END = 0,
    OTHER = 1,
    UPPER = 2, // and title case
    LOWER = 4,
    CASELESS = 8, // other letters
    MARK = 16,
    NUMBER = 32,
    SPACE = 64,
    PUNCTUATION = 128,
    LETTER = UPPER | LOWER | CASELESS,      // \p{L}
    SYMBOL = OTHER | MARK | PUNCTUATION,    // [^\s\p{L}\p{N}]
    SYMBOL_OR_SPACE = SYMBOL | SPACE,       // [^\p{L}\p{N}]
    UPPER_LETTER = UPPER | CASELESS | MARK, // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
    LOWER_LETTER = LOWER | CASELESS | MARK, // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
} Class;

typedef struct {
    Class class;
    uint32_t code;
    size_t next; // where the next character begins
} Character;

static Class unicode_class(uint32_t code) {
    uint32_t low = 0, n = COUNT(unicode_ranges); // the entry of `code` is one of [low, low + n)
    while (n > 1) {
        uint32_t half = n / 2;
        low = unicode_ranges[low + half] >> 3 <= code ? low + half : low;
        n -= half;
    }
    return (Class)(1 << (unicode_ranges[low] & 7));
}

static Character character_of(uint32_t code, size_t next) {
    return (Character){unicode_class(code), code, next};
}

// The character at text[at]. END at the end.
static Character character_at(const char *text, size_t at, size_t end) {
    if (at >= end) return (Character){END, 0, end};
    const uint8_t *b = (const uint8_t *)text + at;
    if (b[0] < 0x80) return (Character){(Class)unicode_ascii[b[0]], b[0], at + 1};
    if (end - at < (b[0] < 0xe0 ? 2u : b[0] < 0xf0 ? 3u : 4u)) return (Character){OTHER, 0, end};
    if (b[0] < 0xe0) return character_of((b[0] & 0x1fu) << 6 | (b[1] & 0x3fu), at + 2);
    uint32_t code = (b[0] & 0x0fu) << 12 | (b[1] & 0x3fu) << 6 | (b[2] & 0x3fu);
    if (b[0] < 0xf0) return character_of(code, at + 3);
    return character_of((code & 0x7fffu) << 6 | (b[3] & 0x3fu), at + 4);
}

// Where the character before text[at] begins.
static size_t character_before(const char *text, size_t at) {
    at--;
    while (((uint8_t)text[at] & 0xc0) == 0x80) at--;
    return at;
}

// Where the characters of some classes end, from `at` on.
static size_t run_end(const char *text, size_t at, size_t end, Class classes) {
    for (Character c = character_at(text, at, end); c.class & classes; c = character_at(text, at, end)) at = c.next;
    return at;
}

static bool is_newline(char c) {
    return c == '\n' || c == '\r';
}

// ---------------------------------------------------------------------------------------------------------
// Sets of characters that are no sum of classes

typedef uint32_t Codes[2]; // with both ends in it

typedef struct {
    Class classes;
    const Codes *ranges; // (n) ascending
    size_t n;
} Set;

#define SET(classes, ranges) {classes, ranges, COUNT(ranges)}

static bool set_has(const Set *set, Character c) {
    if (c.class & set->classes) return true;
    size_t low = 0, n = c.class == END ? 0 : set->n;
    while (n > 1) {
        size_t half = n / 2;
        low = set->ranges[low + half][0] <= c.code ? low + half : low;
        n -= half;
    }
    return n > 0 && set->ranges[low][0] <= c.code && c.code <= set->ranges[low][1];
}

#endif
