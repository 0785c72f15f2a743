// split.h: the words that text is split into before the bytes of each merge. The patterns are regular expressions
// in the models' own files; here they are written out. A pattern is a sequence of cutters: the first cuts the
// text into pieces, the next one each piece for itself, and the pieces of the last are the words.
#ifndef LLAMA_SPLIT_H
#define LLAMA_SPLIT_H

#include "characters.h" // character_at, run_end, Set
#include "deepseek.h"   // deepseek_letters

enum {
    PATTERN_NONE, // a text is one word
    PATTERN_LLAMA3,
    PATTERN_GPT2,
    PATTERN_GPT2_DIGITS, // each number a word, GPT-2's on what is between them
    PATTERN_SPACE,       // each space begins a word
    PATTERN_QWEN2,
    PATTERN_TEKKEN,
    PATTERN_DEEPSEEK_LLM,
    PATTERN_DEEPSEEK_CODER,
    PATTERN_GPT2_NUMBERS,     // each run of numbers, GPT-2's on what is between them
    PATTERN_LLAMACPP_DEFAULT, // what llama.cpp does for a file that does not say
    PATTERNS
};
enum { CUTTERS_MAX = 6 };

// Cuts pieces off a text: the matches of an expression, and what is between them.
typedef struct Cutter {
    // The end of the piece that begins at text[at], after it and at most at `end`.
    size_t (*piece_end)(const struct Cutter *c, const char *text, size_t at, size_t end);
    Set set;
    bool spaced;        // cut_runs: one character of whitespace may stand in front
    size_t least, most; // characters of the set in a match
} Cutter;

// ---------------------------------------------------------------------------------------------------------
// Expressions that match any text, so that nothing is between the matches

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
    size_t last = character_before(text, stop);
    return followed && last > at ? last : stop;
}

// \s*[\r\n]+|\s+(?!\S)|\s+
static size_t lines_end(const char *text, size_t at, size_t end) {
    size_t stop = run_end(text, at, end, SPACE), line = stop;
    while (line > at && !is_newline(text[line - 1])) line--;
    return line > at ? line : whitespace_end(text, at, stop, stop < end);
}

// At most `most` numbers, the first of which ends at `at`.
static size_t numbers_end(const char *text, size_t at, size_t end, size_t most) {
    for (Character c; most > 1 && (c = character_at(text, at, end)).class == NUMBER; most--) at = c.next;
    return at;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,most}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
static size_t cut_llama3(const Cutter *c, const char *text, size_t at, size_t end) {
    size_t short_form = contraction(text + at, end - at, true);
    if (short_form) return at + short_form;
    Character first = character_at(text, at, end);
    if (first.class & LETTER) return run_end(text, first.next, end, LETTER);
    if (first.class == NUMBER) return numbers_end(text, first.next, end, c->most);
    Character second = character_at(text, first.next, end);
    if (second.class & LETTER && !is_newline(text[at])) return run_end(text, second.next, end, LETTER);
    if (first.class & SYMBOL || (text[at] == ' ' && second.class & SYMBOL)) {
        size_t stop = run_end(text, first.next, end, SYMBOL);
        while (stop < end && is_newline(text[stop])) stop++;
        return stop;
    }
    return lines_end(text, at, end);
}

// [upper]*[lower]+ from `at` on, where letters without case and marks are both; 0 if there is none. *upper: where
// the run of upper ends.
static size_t cased_end(const char *text, size_t at, size_t end, size_t *upper) {
    size_t both = 0; // the end of the last one that is both
    Character c = character_at(text, at, end);
    for (; c.class & UPPER_LETTER; c = character_at(text, at, end)) {
        at = c.next;
        if (c.class != UPPER) both = at;
    }
    *upper = at;
    return c.class == LOWER ? run_end(text, c.next, end, LOWER_LETTER) : both;
}

// [^\r\n\p{L}\p{N}]?[upper]*[lower]+|[^\r\n\p{L}\p{N}]?[upper]+[lower]*|\p{N}|
// ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
static size_t cut_tekken(const Cutter *c, const char *text, size_t at, size_t end) {
    (void)c;
    Character first = character_at(text, at, end);
    size_t begin = first.class & SYMBOL_OR_SPACE && !is_newline(text[at]) ? first.next : at, upper;
    size_t cased = cased_end(text, begin, end, &upper);
    if (cased > 0) return cased;
    if (first.class == MARK) return first.next; // a letter itself, as the one in front it leads to none
    if (upper > begin) return upper;
    if (first.class == NUMBER) return first.next;
    if (first.class & SYMBOL || (text[at] == ' ' && character_at(text, first.next, end).class & SYMBOL)) {
        size_t stop = run_end(text, first.next, end, SYMBOL);
        while (stop < end && (is_newline(text[stop]) || text[stop] == '/')) stop++;
        return stop;
    }
    return lines_end(text, at, end);
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
static size_t cut_gpt2(const Cutter *c, const char *text, size_t at, size_t end) {
    (void)c;
    size_t short_form = contraction(text + at, end - at, false);
    if (short_form) return at + short_form;
    Character first = character_at(text, at, end);
    if (text[at] == ' ') first = character_at(text, first.next, end);
    if (first.class & LETTER) return run_end(text, first.next, end, LETTER);
    if (first.class & (NUMBER | SYMBOL))
        return run_end(text, first.next, end, first.class & SYMBOL ? SYMBOL : NUMBER);
    size_t stop = run_end(text, at, end, SPACE);
    return whitespace_end(text, at, stop, stop < end);
}

// ---------------------------------------------------------------------------------------------------------
// Expressions that match here and there

// The end of the match of set{least,most} that begins at text[at], 0 if there is none.
static size_t set_match(const Cutter *c, const char *text, size_t at, size_t end) {
    size_t n = 0;
    for (Character x; n < c->most && set_has(&c->set, x = character_at(text, at, end)); n++) at = x.next;
    return n >= c->least ? at : 0;
}

// The same with \s? in front, if the cutter is spaced.
static size_t run_match(const Cutter *c, const char *text, size_t at, size_t end) {
    Character first = character_at(text, at, end);
    size_t behind = c->spaced && first.class == SPACE ? set_match(c, text, first.next, end) : 0;
    return behind > 0 ? behind : set_match(c, text, at, end);
}

static size_t cut_runs(const Cutter *c, const char *text, size_t at, size_t end) {
    for (size_t begin = at; begin < end; begin = character_at(text, begin, end).next) {
        size_t stop = run_match(c, text, begin, end);
        if (stop > 0) return begin > at ? begin : stop;
    }
    return end;
}

// \s+$
static size_t cut_last_spaces(const Cutter *c, const char *text, size_t at, size_t end) {
    (void)c;
    size_t begin = end;
    while (begin > at) {
        size_t before = character_before(text, begin);
        if (character_at(text, before, end).class != SPACE) break;
        begin = before;
    }
    return begin > at ? begin : end;
}

static size_t cut_spaces(const Cutter *c, const char *text, size_t at, size_t end) {
    (void)c;
    const char *space = memchr(text + at + 1, ' ', end - at - 1);
    return space ? (size_t)(space - text) : end;
}

// ---------------------------------------------------------------------------------------------------------
// The patterns

#define RUN(...) {cut_runs, __VA_ARGS__, false, 1, SIZE_MAX}
#define RUN_WITH_SPACE(...) {cut_runs, __VA_ARGS__, true, 1, SIZE_MAX}
#define EACH_OF(...) {cut_runs, __VA_ARGS__, false, 1, 1}
#define WORDS(function) {.piece_end = function}

static const Codes newlines[] = {{'\n', '\n'}, {'\r', '\r'}};
// Numbers of Unicode 17.0, which the tokenizers library knows where it cuts them out.
static const Codes new_numbers[] = {{0x11de0, 0x11de9}, {0x16ff4, 0x16ff6}};
static const Codes deepseek_signs[] = {{'!', '/'},       {':', '~'},       {0x2018, 0x201f},
                                       {0x3000, 0x3002}, {0xff01, 0xff0f}, {0xff1a, 0xff5e}};
static const Codes deepseek_cjk[] = {{0x800, 0x9fa5}, {0xac00, 0xd7ff}};
static const Codes signs[] = {{'$', '$'}, {'+', '+'}, {'<', '>'}, {'^', '^'}, {'|', '|'}, {'~', '~'}};
static const Codes ascii_digits[] = {{'0', '9'}};

static const Cutter cutters[PATTERNS][CUTTERS_MAX] = {
    [PATTERN_LLAMA3] = {{.piece_end = cut_llama3, .most = 3}},
    [PATTERN_QWEN2] = {{.piece_end = cut_llama3, .most = 1}},
    [PATTERN_TEKKEN] = {WORDS(cut_tekken)},
    [PATTERN_GPT2] = {WORDS(cut_gpt2)},
    [PATTERN_GPT2_DIGITS] = {EACH_OF(SET(NUMBER, new_numbers)), WORDS(cut_gpt2)},
    [PATTERN_GPT2_NUMBERS] = {RUN(SET(NUMBER, new_numbers)), WORDS(cut_gpt2)},
    [PATTERN_SPACE] = {WORDS(cut_spaces)},
    [PATTERN_DEEPSEEK_LLM] = {EACH_OF(SET(END, newlines)), RUN_WITH_SPACE(SET(END, deepseek_letters)),
                              RUN_WITH_SPACE(SET(END, deepseek_signs)), WORDS(cut_last_spaces),
                              RUN(SET(END, deepseek_cjk)), EACH_OF(SET(NUMBER, new_numbers))},
    [PATTERN_DEEPSEEK_CODER] = {EACH_OF(SET(END, newlines)), RUN_WITH_SPACE({.classes = LETTER}),
                                RUN_WITH_SPACE({.classes = PUNCTUATION}), RUN(SET(END, deepseek_cjk)),
                                EACH_OF(SET(NUMBER, new_numbers))},
    [PATTERN_LLAMACPP_DEFAULT] = {RUN(SET(PUNCTUATION, signs)),
                                  WORDS(cut_gpt2),
                                  RUN({.classes = NUMBER}),
                                  {cut_runs, SET(END, ascii_digits), false, 3, 3}},
};

// Where the pieces of each cutter end in which the next word begins; zeros before the first.
typedef struct {
    size_t ends[CUTTERS_MAX];
} Pieces;

// The end of the word that begins at text[at], after it and at most at `end`.
static size_t word_end(int32_t pattern, Pieces *pieces, const char *text, size_t at, size_t end) {
    const Cutter *c = cutters[pattern];
    for (size_t i = 0; i < CUTTERS_MAX && c[i].piece_end; i++) {
        if (pieces->ends[i] <= at) pieces->ends[i] = c[i].piece_end(&c[i], text, at, end);
        end = pieces->ends[i];
    }
    return end;
}

#endif
