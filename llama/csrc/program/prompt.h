// prompt.h: what people type or keep in files, as the text that they mean: escapes of an option's text, the byte
// order mark and the ends of lines of files that were written on Windows.
#ifndef LLAMA_PROMPT_H
#define LLAMA_PROMPT_H

#include "console.h" // Buffer, read_file

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32; // lower case
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The character that the escape at text, which begins behind its backslash, stands for; -1: none. used: its bytes.
static int unescape(const char *text, size_t length, size_t *used) {
    static const char letters[] = "nrt\\\"'", characters[] = "\n\r\t\\\"'";
    const char *letter = length > 0 && text[0] ? strchr(letters, text[0]) : NULL;
    *used = 1;
    if (letter) return characters[letter - letters];
    if (length < 3 || text[0] != 'x' || hex_digit(text[1]) < 0 || hex_digit(text[2]) < 0) return -1;
    *used = 3;
    return hex_digit(text[1]) * 16 + hex_digit(text[2]);
}

// Turns the escapes \n \r \t \\ \" \' and \xHH into their characters. What is none stays as it is.
static void unescape_all(Buffer *text) {
    size_t n = 0;
    for (size_t i = 0, used; i < text->length; i++) {
        int c = text->bytes[i] == '\\' ? unescape(text->bytes + i + 1, text->length - i - 1, &used) : -1;
        text->bytes[n++] = c < 0 ? text->bytes[i] : (char)c;
        if (c >= 0) i += used;
    }
    text->length = n;
}

// The text of -i or -y. The caller frees it.
static int option_text(const LlamaRunOptions *options, const char *value, Buffer *text, LlamaError *error) {
    int code = buffer_append(text, value, strlen(value), error);
    if (code == LLAMA_OK && options->escape) unescape_all(text);
    return code;
}

static void drop_mark(Buffer *text) {
    if (text->length < 3 || memcmp(text->bytes, "\xef\xbb\xbf", 3) != 0) return;
    text->length -= 3;
    memmove(text->bytes, text->bytes + 3, text->length);
}

// Turns CRLF into LF.
static void join_lines(Buffer *text) {
    size_t n = 0;
    for (size_t i = 0; i < text->length; i++) {
        bool ends = text->bytes[i] == '\r' && i + 1 < text->length && text->bytes[i + 1] == '\n';
        if (!ends) text->bytes[n++] = text->bytes[i];
    }
    text->length = n;
}

// A file's text, without the newline that ends its last line. The caller frees it, of an error too.
static int file_text(const Console *console, const char *path, Buffer *text, LlamaError *error) {
    int code = read_file(console, path, text, error);
    if (code != LLAMA_OK) return code;
    drop_mark(text);
    join_lines(text);
    if (text->length > 0 && text->bytes[text->length - 1] == '\n') text->length--;
    return LLAMA_OK;
}

// The next line that is typed, NULL at the end of the input. The caller frees it, of an error too.
static int typed_line(Console *console, Buffer *line, LlamaError *error) {
    int code = read_line(console, line, error);
    if (code != LLAMA_OK || !line->bytes) return code;
    if (!console->has_line) drop_mark(line);
    console->has_line = true;
    if (line->length > 0 && line->bytes[line->length - 1] == '\r') line->length--;
    return LLAMA_OK;
}

#endif
