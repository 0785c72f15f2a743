// stream.h: bytes of tokens in, whole UTF-8 characters out, up to the first stop string. Stop strings are looked
// for in the bytes as they came, so they may be any bytes; where several match, the one that begins first counts.
// Each costs O(1) amortised for each byte of the text (Knuth, Morris, Pratt 1977).
#ifndef LLAMA_STREAM_H
#define LLAMA_STREAM_H

#include "utf8.h"         // utf8_length, REPLACEMENT
#include "../base/util.h" // fail

// ---------------------------------------------------------------------------------------------------------
// Stop strings

typedef struct {
    char *bytes;    // (length)
    size_t *border; // (length) of the first i bytes: the longest proper prefix that is a suffix as well
    size_t length;
    size_t matched; // bytes of the stop string that the text ends in now, less than length
} Stop;

// Bytes matched after one more byte, when `matched` < length were before.
static size_t stop_next(const Stop *stop, size_t matched, char byte) {
    while (matched > 0 && stop->bytes[matched] != byte) matched = stop->border[matched];
    return matched + (stop->bytes[matched] == byte);
}

static void stop_free(Stop *stop) {
    free(stop->bytes);
    free(stop->border);
}

static int stop_init(Stop *stop, const char *bytes, LlamaError *error) {
    stop->length = strlen(bytes);
    stop->bytes = malloc(stop->length);
    stop->border = calloc(stop->length, sizeof *stop->border);
    if (!stop->bytes || !stop->border) return fail_memory(error, stop->length * (1 + sizeof *stop->border));
    memcpy(stop->bytes, bytes, stop->length);
    for (size_t i = 2; i < stop->length; i++) stop->border[i] = stop_next(stop, stop->border[i - 1], bytes[i - 1]);
    return LLAMA_OK;
}

// ---------------------------------------------------------------------------------------------------------
// Stream

static const size_t NO_CUT = SIZE_MAX;

struct LlamaStream {
    Stop *stops; // (n_stops)
    int32_t n_stops;
    char *held; // (capacity) held[begin, end) came in and is not given out yet
    size_t begin, end, capacity;
    size_t open;  // where in held the earliest unfinished stop string may begin, as of the last push
    size_t cut;   // where in held the earliest complete stop string begins, NO_CUT if there is none
    char *text;   // (3 * capacity) given out by the last call; a byte becomes three at most
    bool stopped; // the cut is final
};

void llama_stream_free(LlamaStream *s) {
    if (!s) return;
    for (int32_t i = 0; s->stops && i < s->n_stops; i++) stop_free(&s->stops[i]);
    free(s->stops);
    free(s->held);
    free(s->text);
    free(s);
}

// Forgets what is held; a stream that has stopped stays so.
static void stream_clear(LlamaStream *s) {
    s->begin = s->end = s->open = 0;
    s->cut = NO_CUT;
    for (int32_t i = 0; i < s->n_stops; i++) s->stops[i].matched = 0;
}

void llama_stream_reset(LlamaStream *s) {
    stream_clear(s);
    s->stopped = false;
}

static int stops_init(LlamaStream *s, const char *const *stops, int32_t n_stops, LlamaError *error) {
    if (n_stops < 0) return fail(error, LLAMA_ERROR_USAGE, "n_stops = %d, allowed are 0 and more", n_stops);
    s->stops = calloc((size_t)n_stops + 1, sizeof *s->stops);
    if (!s->stops) return fail_memory(error, (uint64_t)n_stops * sizeof *s->stops);
    for (s->n_stops = 0; s->n_stops < n_stops;) {
        int32_t i = s->n_stops++;
        if (!stops[i] || !stops[i][0]) return fail(error, LLAMA_ERROR_USAGE, "stop string %d is empty", i + 1);
        int code = stop_init(&s->stops[i], stops[i], error);
        if (code != LLAMA_OK) return code;
    }
    return LLAMA_OK;
}

int llama_stream_init(const char *const *stops, int32_t n_stops, LlamaStream **stream, LlamaError *error) {
    *stream = NULL;
    LlamaStream *s = calloc(1, sizeof *s);
    if (!s) return fail_memory(error, sizeof *s);
    int code = stops_init(s, stops, n_stops, error);
    if (code != LLAMA_OK) {
        llama_stream_free(s);
        return code;
    }
    llama_stream_reset(s);
    *stream = s;
    return LLAMA_OK;
}

// Moves what is held to the front.
static void stream_compact(LlamaStream *s) {
    memmove(s->held, s->held + s->begin, s->end - s->begin);
    if (s->cut != NO_CUT) s->cut -= s->begin;
    s->end -= s->begin;
    s->begin = 0;
}

// Makes room for n more bytes. After a move or a growth at least half of the room is free, so that the next one
// is as many bytes away as this one cost.
static int stream_reserve(LlamaStream *s, size_t n, LlamaError *error) {
    if (s->text && n <= s->capacity - s->end) return LLAMA_OK;
    if (n > SIZE_MAX / 16) return fail_memory(error, n);
    size_t capacity = 2 * (s->end - s->begin + n) + 64;
    if (s->begin > 0) stream_compact(s);
    if (s->text && capacity <= s->capacity) return LLAMA_OK;
    char *text = realloc(s->text, 3 * capacity);
    if (text) s->text = text;
    char *held = text ? realloc(s->held, capacity) : NULL;
    if (!held) return fail_memory(error, 4 * capacity);
    s->held = held;
    s->capacity = capacity;
    return LLAMA_OK;
}

// Moves the stop strings on by the byte held[i].
static void stream_match(LlamaStream *s, size_t i) {
    s->open = i + 1;
    for (int32_t j = 0; j < s->n_stops; j++) {
        Stop *stop = &s->stops[j];
        stop->matched = stop_next(stop, stop->matched, s->held[i]);
        if (stop->matched == stop->length) {
            s->cut = MIN(s->cut, i + 1 - stop->length);
            stop->matched = 0; // from here on it could only begin after the cut
        }
        s->open = MIN(s->open, i + 1 - stop->matched);
    }
    s->stopped = s->cut <= s->open; // else a longer one that began earlier may still become complete
}

// Gives out the whole characters of held[begin, limit). final: nothing that comes later can complete one.
static size_t stream_give(LlamaStream *s, size_t limit, bool final) {
    size_t n = 0, known = final ? limit : s->end;
    while (s->begin < limit) {
        int bytes = utf8_length(s->held + s->begin, known - s->begin);
        if (bytes == UTF8_UNFINISHED && !final) break;
        if (bytes > 0 && s->begin + (size_t)bytes > limit) break;
        memcpy(s->text + n, bytes > 0 ? s->held + s->begin : REPLACEMENT, bytes > 0 ? (size_t)bytes : 3);
        n += bytes > 0 ? (size_t)bytes : 3;
        s->begin += bytes > 0 ? (size_t)bytes : 1;
    }
    return n;
}

int llama_stream_push(LlamaStream *s, const char *bytes, size_t n, const char **text, size_t *length, int *stopped,
                      LlamaError *error) {
    *text = "";
    *length = 0;
    *stopped = s->stopped;
    if (s->stopped || n == 0) return LLAMA_OK;
    int code = stream_reserve(s, n, error);
    if (code != LLAMA_OK) return code;
    memcpy(s->held + s->end, bytes, n);
    size_t i = s->end;
    s->end += n;
    while (i < s->end && !s->stopped) stream_match(s, i++);
    *text = s->text;
    *length = stream_give(s, MIN(s->open, s->cut), s->stopped);
    *stopped = s->stopped;
    return LLAMA_OK;
}

// After it the stream goes on as if it were new, unless a stop string was found.
int llama_stream_flush(LlamaStream *s, const char **text, size_t *length, LlamaError *error) {
    (void)error; // push made the room
    *length = stream_give(s, MIN(s->end, s->cut), true);
    *text = *length > 0 ? s->text : "";
    s->stopped |= s->cut != NO_CUT;
    stream_clear(s);
    return LLAMA_OK;
}

#endif
