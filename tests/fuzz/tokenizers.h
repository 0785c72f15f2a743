// tokenizers.h: vocabularies of strangers, and text of strangers for those that are right.
#ifndef FUZZ_TOKENIZERS_H
#define FUZZ_TOKENIZERS_H

// The ids of a text: no more than were promised, all in the vocabulary. Their number; the caller frees them.
static size_t encode_checked(const LlamaTokenizer *t, const char *text, size_t length, int special, int32_t **ids) {
    LlamaError error;
    size_t n;
    *ids = malloc(llama_encode_bound(length) * sizeof **ids);
    PROMISE(*ids);
    PROMISE(llama_encode_special(t, text, length, llama_bos(t) >= 0, llama_eos(t) >= 0, special, *ids, &n,
                                 &error) == LLAMA_OK);
    PROMISE(n <= llama_encode_bound(length));
    for (size_t i = 0; i < n; i++) PROMISE((*ids)[i] >= 0 && (*ids)[i] < llama_vocab_size(t));
    return n;
}

// Whether n ids spell a text. An invalid byte of it counts as U+FFFD.
static bool spell(const LlamaTokenizer *t, const int32_t *ids, size_t n, const char *text, size_t length) {
    size_t at = 0, left = 0;
    const char *expected = NULL;
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = llama_token_bytes_of(t, i > 0 ? ids[i - 1] : -1, ids[i], &bytes);
        for (size_t b = 0; b < bytes; b++, expected++, left--) {
            if (left == 0) {
                if (at == length) return false;
                size_t valid = character_length(text + at, length - at);
                expected = valid ? text + at : "\xef\xbf\xbd";
                left = valid ? valid : 3;
                at += valid ? valid : 1;
            }
            if (piece[b] != *expected) return false;
        }
    }
    return at == length && left == 0;
}

static void fuzz_tokenizer(Input input) {
    static const char text[] = "abab <s>\xc3\xa9!<sep> \xff\r\n 12345's\0<|eot|>   aaaaaaaaaaaaaaaaaaaa";
    uint8_t *bytes = copy_of(input, 0);
    LlamaTokenizer *t;
    LlamaError error;
    int code = llama_tokenizer_open_bytes(bytes, input.size, "fuzz", &t, &error);
    if (code != LLAMA_OK) check_error(code, &error);
    for (int special = 0; t && special < 2; special++) {
        int32_t *ids;
        size_t n = encode_checked(t, text, sizeof text, special, &ids), length;
        for (size_t i = 0; i < n; i++) {
            PROMISE(llama_token_bytes_of(t, i > 0 ? ids[i - 1] : -1, ids[i], &length));
            PROMISE(llama_token_name(t, ids[i], &length));
        }
        free(ids);
    }
    llama_tokenizer_close(t);
    free(bytes);
}

// ---------------------------------------------------------------------------------------------------------
// Text

enum { KEPT_TOKENIZERS = 5, MOST_SLOW_BYTES = 400 };

// One of the tokenizers of tests/data, or that of the model that ships, which is opened once.
static const LlamaTokenizer *kept_tokenizer(uint8_t choice) {
    static const char *const paths[] = {"tests/data/sample_characters.bin", "tests/data/sample_bytes.bin",
                                        "tests/data/sample_edges.bin", "tests/data/sample_unigram.bin",
                                        "llama/models/stories.bin"};
    static LlamaTokenizer *kept[KEPT_TOKENIZERS];
    static LlamaModel *model; // whose file holds the last of them
    size_t i = choice % KEPT_TOKENIZERS;
    LlamaError error;
    if (kept[i]) return kept[i];
    int code = i < KEPT_TOKENIZERS - 1 ? llama_tokenizer_open(paths[i], &kept[i], &error)
                                       : llama_open(paths[i], &model, &error);
    if (i == KEPT_TOKENIZERS - 1 && code == LLAMA_OK) code = llama_tokenizer_find(NULL, model, &kept[i], &error);
    if (code != LLAMA_OK) fprintf(stderr, "%s\n", error.text);
    PROMISE(code == LLAMA_OK);
    return kept[i];
}

// The ids that merging as sentencepiece describes it comes to: of all neighbours that make a piece, those with the
// best score merge, the left ones first, until there are none. ends: (length) where symbols end. Their number.
static size_t merge_slowly(const LlamaTokenizer *t, const char *text, size_t *ends, size_t n) {
    for (;;) {
        size_t best = n;
        float best_score = -INFINITY;
        for (size_t i = 0; i + 1 < n; i++) {
            size_t begin = i > 0 ? ends[i - 1] : 0;
            int32_t id = vocabulary_find(t, vocabulary_index(t), text + begin, ends[i + 1] - begin);
            if (id < 0 || t->scores[id] <= best_score) continue;
            best = i;
            best_score = t->scores[id];
        }
        if (best == n) return n;
        memmove(ends + best, ends + best + 1, (n - best - 1) * sizeof *ends);
        n--;
    }
}

// Compares with merge_slowly. text: valid UTF-8 without special tokens, which begins with the space put in front.
static void check_merges(const LlamaTokenizer *t, const char *text, size_t length, const int32_t *ids,
                         size_t n_ids) {
    size_t *ends = malloc((length + 1) * sizeof *ends), n = 0, k = 0;
    PROMISE(ends);
    for (size_t at = 0; at < length;) ends[n++] = at += character_length(text + at, length - at);
    n = merge_slowly(t, text, ends, n);
    for (size_t i = 0; i < n; i++) {
        size_t begin = i > 0 ? ends[i - 1] : 0, bytes = ends[i] - begin;
        int32_t id = vocabulary_find(t, vocabulary_index(t), text + begin, bytes);
        if (id >= 0) {
            PROMISE(k < n_ids && ids[k++] == id);
            continue;
        }
        for (size_t b = 0; b < bytes; b++) PROMISE(k < n_ids && ids[k++] == t->byte_ids[(uint8_t)text[begin + b]]);
    }
    PROMISE(k == n_ids);
    free(ends);
}

// Without names of special tokens, and without U+2581, which sentencepiece takes for a space.
static bool is_plain(const char *text, size_t length) {
    return !memchr(text, '<', length) && !memmem(text, length, "\xe2\x96\x81", 3);
}

static void fuzz_encode(Input input) {
    uint8_t choice = take_byte(&input);
    const LlamaTokenizer *t = kept_tokenizer(choice);
    char *text = (char *)copy_of(input, 1), *spaced = (char *)copy_of(input, 2);
    int special = choice / KEPT_TOKENIZERS % 2;
    int32_t *ids;
    size_t n = encode_checked(t, text, input.size, special, &ids);
    if (!special && t->has_bytes && is_plain(text, input.size)) PROMISE(spell(t, ids, n, text, input.size));
    if (!special && t->kind == KIND_CHARACTERS && is_plain(text, input.size) && is_whole(text, input.size) &&
        input.size > 0 && input.size < MOST_SLOW_BYTES) {
        spaced[0] = ' ';
        memcpy(spaced + 1, text, input.size);
        check_merges(t, spaced, input.size + 1, ids + 1, n - 2); // without BOS and EOS
    }
    free(ids);
    free(spaced);
    free(text);
}

#endif
