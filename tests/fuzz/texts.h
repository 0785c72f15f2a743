// texts.h: text on its way out, drawing from any logits, and command lines.
#ifndef FUZZ_TEXTS_H
#define FUZZ_TEXTS_H

enum { FUZZ_STOPS = 3, STOP_ROOM = 8, PIECE_ROOM = 4 };

// Pushes a text in pieces of up to `piece` bytes. What came out, which the caller frees.
static char *push_all(const char *const *stops, int32_t n_stops, Input text, size_t piece, size_t *length) {
    LlamaStream *stream;
    LlamaError error;
    char *out = calloc(1, 3 * text.size + 1);
    const char *part;
    size_t n;
    int stopped = 0;
    PROMISE(out && llama_stream_init(stops, n_stops, &stream, &error) == LLAMA_OK);
    *length = 0;
    for (size_t at = 0; at < text.size && !stopped; at += piece) {
        const char *bytes = (const char *)text.data + at;
        PROMISE(llama_stream_push(stream, bytes, MIN(piece, text.size - at), &part, &n, &stopped, &error) ==
                LLAMA_OK);
        PROMISE(*length + n <= 3 * text.size);
        if (n > 0) memcpy(out + *length, part, n);
        *length += n;
    }
    PROMISE(llama_stream_flush(stream, &part, &n, &error) == LLAMA_OK);
    PROMISE(*length + n <= 3 * text.size);
    if (n > 0) memcpy(out + *length, part, n);
    *length += n;
    llama_stream_free(stream);
    return out;
}

// The same text comes out however it was cut, is whole characters, and has no stop string in it, except for those
// that U+FFFD may hold.
static void fuzz_stream(Input input) {
    char room[FUZZ_STOPS][STOP_ROOM + 1] = {{0}};
    const char *stops[FUZZ_STOPS];
    int32_t n_stops = take_byte(&input) % (FUZZ_STOPS + 1);
    size_t piece = 1 + take_byte(&input) % PIECE_ROOM, whole, cut;
    for (int32_t i = 0; i < n_stops; i++) {
        size_t length = 1 + take_byte(&input) % STOP_ROOM;
        take_bytes(&input, room[i], length);
        if (!room[i][0]) room[i][0] = 'a';
        stops[i] = room[i];
    }
    char *at_once = push_all(stops, n_stops, input, input.size + 1, &whole);
    char *in_parts = push_all(stops, n_stops, input, piece, &cut);
    PROMISE(whole == cut && memcmp(at_once, in_parts, whole) == 0);
    PROMISE(is_whole(at_once, whole));
    for (int32_t i = 0; i < n_stops; i++)
        if (is_whole(stops[i], strlen(stops[i])) && !strstr(stops[i], "\xef\xbf\xbd"))
            PROMISE(!memmem(at_once, whole, stops[i], strlen(stops[i])));
    free(at_once);
    free(in_parts);
}

// ---------------------------------------------------------------------------------------------------------

enum { MOST_LOGITS = 300 };

static void fuzz_sampler(Input input) {
    LlamaSampling sampling;
    LlamaSampler *sampler;
    LlamaError error;
    uint32_t allowed[(MOST_LOGITS + 31) / 32], drawn = 0;
    uint8_t choice = take_byte(&input);
    int32_t vocab = 1 + (take_byte(&input) | (choice & 1) << 8) % MOST_LOGITS, token = -1;
    take_bytes(&input, &sampling, sizeof sampling);
    if (choice & 2) sampling = (LlamaSampling){.temperature = 1, .top_p = 0.9f, .repeat_penalty = 1.1f, .seed = 1};
    if (choice & 4) sampling.min_p = 0.05f, sampling.top_k = 7;
    take_bytes(&input, allowed, sizeof allowed);
    int code = llama_sampler_init(vocab, &sampling, &sampler, &error);
    if (code != LLAMA_OK) {
        check_error(code, &error);
        return;
    }
    if (choice & 8) llama_sampler_mask(sampler, allowed);
    if (choice & 16) PROMISE(llama_sampler_bias(sampler, take_byte(&input) % vocab, -INFINITY, &error) == LLAMA_OK);
    float *logits = malloc((size_t)vocab * sizeof *logits), value = 0;
    PROMISE(logits);
    for (; drawn < 4; drawn++) {
        bool finite = true;
        for (int32_t i = 0; i < vocab; i++) {
            take_bytes(&input, &value, sizeof value);
            finite &= isfinite(value) != 0;
            logits[i] = value;
        }
        code = llama_sample(sampler, logits, &token, &error);
        if (code != LLAMA_OK) {
            check_error(code, &error);
            continue;
        }
        PROMISE(finite && token >= 0 && token < vocab);
        PROMISE(!(choice & 8) || allowed[token / 32] >> token % 32 & 1);
        PROMISE(llama_sampler_accept(sampler, token, 1, &error) == LLAMA_OK);
    }
    free(logits);
    llama_sampler_free(sampler);
}

// ---------------------------------------------------------------------------------------------------------

enum { MOST_ARGUMENTS = 12 };

// Arguments end at a NUL. What is read is within its bounds, and an escaped text does not grow.
static void fuzz_options(Input input) {
    char *bytes = (char *)copy_of(input, 1), *arguments[MOST_ARGUMENTS + 2] = {"run"};
    int n = 1;
    for (size_t at = 0; at < input.size && n <= MOST_ARGUMENTS; at += strlen(bytes + at) + 1)
        arguments[n++] = bytes + at;
    LlamaRunOptions options;
    LlamaError error;
    int code = llama_run_parse(n, arguments, &options, &error);
    if (code != LLAMA_OK) {
        check_error(code, &error);
    } else {
        PROMISE(options.steps >= 0 && options.samples >= 1 && options.n_stops <= n);
        PROMISE(options.sampling.top_p >= 0 && options.sampling.top_p <= 1);
        PROMISE(options.sampling.temperature >= 0 && isfinite(options.sampling.temperature));
        PROMISE(options.threads >= 0 && options.threads <= 1024 && options.kv >= 0 && options.kv < N_KV);
        Buffer text = {0};
        if (options.prompt && option_text(&options, options.prompt, &text, &error) == LLAMA_OK)
            PROMISE(text.length <= strlen(options.prompt));
        free(text.bytes);
    }
    llama_run_options_free(&options);
    free(bytes);
}

#endif
