// split.h: the words that text is split into before the bytes of each merge. The patterns are regular expressions
// in the models' own files; here they are written out, one alternative after the other. Text is valid UTF-8.
#ifndef LLAMA_SPLIT_H
#define LLAMA_SPLIT_H

#include "unicode.h" // unicode_ranges
#include "utf8.h"    // utf8_length

enum {
    PATTERN_NONE, // a text is one word
    PATTERN_LLAMA3,
    PATTERN_GPT2,
    PATTERN_GPT2_DIGITS, // numbers are cut out first, each character a word; then PATTERN_GPT2 on what is between
                         // them
    PATTERN_SPACE,       // each space begins a word
    PATTERNS
};

typedef enum { OTHER, LETTER, NUMBER, SPACE, END } Class;

typedef struct {
    Class class;
    size_t next; // where the next character begins
} Character;

static Class unicode_class(uint32_t code) {
    uint32_t low = 0, n = COUNT(unicode_ranges); // the entry of `code` is one of [low, low + n)
    while (n > 1) {
        uint32_t half = n / 2;
        low = unicode_ranges[low + half] >> 2 <= code ? low + half : low;
        n -= half;
    }
    return (Class)(unicode_ranges[low] & 3);
}

// The class of an ASCII character: two bits of these words.
static Class ascii_class(uint8_t c) {
    static const uint64_t letters[2] = {0, 0x07fffffe07fffffeu}, numbers = 0x03ff000000000000u;
    static const uint64_t spaces = 0x0000000100003e00u;
    if (letters[c >> 6] >> (c & 63) & 1) return LETTER;
    if (c >= 64) return OTHER;
    return spaces >> c & 1 ? SPACE : numbers >> c & 1 ? NUMBER : OTHER;
}

// The character at text[at]. END at the end.
static Character character_at(const char *text, size_t at, size_t end) {
    if (at >= end) return (Character){END, end};
    const uint8_t *b = (const uint8_t *)text + at;
    if (b[0] < 0x80) return (Character){ascii_class(b[0]), at + 1};
    if (b[0] < 0xe0) return (Character){unicode_class((b[0] & 0x1fu) << 6 | (b[1] & 0x3fu)), at + 2};
    uint32_t code = (b[0] & 0x0fu) << 12 | (b[1] & 0x3fu) << 6 | (b[2] & 0x3fu);
    if (b[0] < 0xf0) return (Character){unicode_class(code), at + 3};
    return (Character){unicode_class((code & 0x7fffu) << 6 | (b[3] & 0x3fu)), at + 4};
}

// Where the characters of a class end, from `at` on.
static size_t run_end(const char *text, size_t at, size_t end, Class class) {
    for (Character c = character_at(text, at, end); c.class == class; c = character_at(text, at, end)) at = c.next;
    return at;
}

static bool is_newline(char c) {
    return c == '\n' || c == '\r';
}

// 's 't 're 've 'm 'll 'd: its length at the beginning of text, 0 if there is none. folded: in upper case as well,
// and with U+017F, which is an s to a pattern that ignores case.
static size_t contraction(const char *text, size_t n, bool folded) {
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (n < 2 || text[0] != '\'') return 0;
    if (folded && n >= 3 && memcmp(text + 1, "\xc5\xbf", 2) == 0) return 3;
    for (size_t i = 0; i < COUNT(endings); i++) {
        size_t length = strlen(endings[i]), same = 0;
        while (same < length && same + 1 < n && (text[same + 1] | (folded ? 0x20 : 0)) == endings[i][same]) same++;
        if (same == length) return 1 + length;
    }
    return 0;
}

// \s+(?!\S)|\s+ : whitespace that ends at `stop`, but for its last character if something follows it.
static size_t whitespace_end(const char *text, size_t at, size_t stop, bool followed) {
    size_t last = stop - 1;
    while (((uint8_t)text[last] & 0xc0) == 0x80) last--;
    return followed && last > at ? last : stop;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
static size_t word_end_llama3(const char *text, size_t at, size_t end) {
    size_t short_form = contraction(text + at, end - at, true);
    if (short_form) return at + short_form;
    Character first = character_at(text, at, end), second = character_at(text, first.next, end);
    if (first.class == LETTER) return run_end(text, first.next, end, LETTER);
    if (first.class == NUMBER) {
        size_t third = second.class == NUMBER ? second.next : first.next;
        Character last = character_at(text, third, end);
        return second.class == NUMBER && last.class == NUMBER ? last.next : third;
    }
    if (second.class == LETTER && !is_newline(text[at])) return run_end(text, second.next, end, LETTER);
    if (first.class == OTHER || (text[at] == ' ' && second.class == OTHER)) {
        size_t stop = run_end(text, first.next, end, OTHER);
        while (stop < end && is_newline(text[stop])) stop++;
        return stop;
    }
    size_t stop = run_end(text, at, end, SPACE), line = stop;
    while (line > at && !is_newline(text[line - 1])) line--;
    return line > at ? line : whitespace_end(text, at, stop, stop < end);
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
static size_t word_end_gpt2(const char *text, size_t at, size_t end, bool digits) {
    size_t short_form = contraction(text + at, end - at, false);
    if (short_form) return at + short_form;
    Character first = character_at(text, at, end), c = first;
    if (text[at] == ' ') c = character_at(text, first.next, end);
    if (digits && first.class == NUMBER) return first.next;
    if (c.class == LETTER || c.class == OTHER || (c.class == NUMBER && !digits))
        return run_end(text, c.next, end, c.class);
    size_t stop = run_end(text, at, end, SPACE);
    return whitespace_end(text, at, stop, stop < end && !(digits && character_at(text, stop, end).class == NUMBER));
}

static size_t word_end_space(const char *text, size_t at, size_t end) {
    const char *space = memchr(text + at + 1, ' ', end - at - 1);
    return space ? (size_t)(space - text) : end;
}

// The end of the word that begins at text[at], after it and at most at `end`.
static size_t word_end(int32_t pattern, const char *text, size_t at, size_t end) {
    if (pattern == PATTERN_LLAMA3) return word_end_llama3(text, at, end);
    if (pattern == PATTERN_SPACE) return word_end_space(text, at, end);
    if (pattern != PATTERN_NONE) return word_end_gpt2(text, at, end, pattern == PATTERN_GPT2_DIGITS);
    return end;
}

#endif
