// utf8.h: where the characters of a text end.
#ifndef LLAMA_UTF8_H
#define LLAMA_UTF8_H

#include "../base/util.h" // size_t, uint8_t

#define REPLACEMENT "\xef\xbf\xbd" // U+FFFD stands for a byte that is not UTF-8

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

#endif
