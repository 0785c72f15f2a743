// pieces.h: the tokens of a model, and how a piece of text is found among them. The arrays are read as they lie
// in a file of our own (vocabulary.h), or are made from a tokenizer.bin of llama2.c (tokenizer_bin.h).
// What they hold is not trusted: ids and lengths are checked where they are used, and no search is longer than
// PROBES_MAX.
#ifndef LLAMA_PIECES_H
#define LLAMA_PIECES_H

#include "../base/util.h" // fail, Mapping

#include <stdatomic.h> // _Atomic

enum { VOCABULARY_MAGIC = 0x6b6f746c, VOCABULARY_HEADER = 64 }; // what a file with the arrays begins with
enum { VOCABULARY_MAX = (1 << 24) - 1, PROBES_MAX = 256 };      // tokens; slots that a search looks at

enum {
    KIND_CHARACTERS, // sentencepiece: characters merge, one without a piece is spelt in byte tokens
    KIND_BYTES,      // tiktoken: text is split into words by a pattern, their bytes merge
    KIND_UNIGRAM,    // sentencepiece: the pieces that make up the text and whose scores have the largest sum
    KINDS
};

enum {
    TOKEN_TEXT,
    TOKEN_UNKNOWN, // stands for characters that can't be spelt
    TOKEN_CONTROL, // BOS and the like: prints nothing, found in text only where the caller asks for it
    TOKEN_USER,    // found in every text, before anything merges
    TOKEN_BYTE,    // spells a character that has no piece
    TOKEN_TYPES
};
enum { CONTROL_BIT = 1 << TOKEN_CONTROL, USER_BIT = 1 << TOKEN_USER };

enum {
    FLAG_PREFIX = 1,              // a space is put in front of a text
    FLAG_PREFIX_EACH = 2,         // and in front of what follows a special token
    FLAG_PREFIX_UNLESS_SPACE = 4, // but not in front of a space
    FLAG_WHOLE_WORDS = 8,         // a word that is a token is that token, whatever merges lead to
    FLAG_USER_FIRST = 16,         // TOKEN_USER is found before a space is put in front, else after
    FLAG_RANKED = 32,             // the file lists the pairs that merge, and in which order
    FLAG_STRIP = 64,              // a text that begins with a space is printed without it
    FLAG_UNKNOWN_EACH = 128,   // each character that can't be spelt is an unknown token, else a run of them is one
    FLAG_DOUBLES = 256,        // KIND_UNIGRAM: scores are doubles and summed up as such (tokenizers), else floats
    FLAG_EDGES = 512,          // the file says what special tokens ask of the text beside them
    FLAG_LATE_AS_GIVEN = 1024, // late tokens are found before a space is put in front
    FLAGS_ALL = 2047,
};

enum {
    EDGE_LEFT = 1,  // white space before the token goes with it
    EDGE_RIGHT = 2, // and behind it
    EDGE_WORD = 4,  // the token is text where it is a part of a word
    EDGES_ALL = 7,
};

// How a piece is found. slots are open addressing: 0 is empty, else 8 bits of the hash and the id + 1.
typedef struct {
    const uint32_t *slots; // (mask + 1)
    const uint8_t *joined; // (256, 256) bits [a][b]: some piece has byte b right after byte a
    uint32_t mask;
    uint32_t longest; // bytes of the longest piece
} Index;

// Tokens sorted by their bytes.
typedef struct {
    const uint32_t *ids; // (n)
    uint32_t n;
    uint32_t first[257]; // ids[first[b], first[b + 1]) begin with byte b
    uint32_t types;      // bits of the types that they have
} Names;

struct LlamaTokenizer {
    Mapping file;
    bool borrowed; // the file is a model's, or the caller's
    int32_t kind, pattern, vocab_size, bos, eos, unknown;
    uint32_t flags, n_bytes;
    bool has_bytes;          // all 256 byte tokens: any character can be spelt
    const char *bytes;       // (n_bytes) of all tokens, one after the other
    const uint32_t *offsets; // (vocab_size + 1) token i is bytes[offsets[i], offsets[i + 1])
    const float *scores;     // (vocab_size) the pair that makes the piece with the highest score merges first
    const uint8_t *types;    // (vocab_size)
    const int32_t *byte_ids; // (256) -1 where there is none
    const uint32_t *ranks;  // (n_bytes) [offsets[i] + n] of the pair that token i is of, cut after n bytes; or NULL
    const uint8_t *doubles; // (vocab_size) scores as f64, not aligned; or NULL
    const uint8_t *edges;   // (vocab_size) bits; or NULL
    double lowest;          // score, of KIND_UNIGRAM
    Names specials;         // control and user-defined tokens
    Names late;             // those that are found in what is between the others
    Names words;            // of KIND_UNIGRAM: what a text is made up of
    void *unpacked;         // what the arrays of a tokenizer.bin lie in
    _Atomic(Index *) index; // NULL until a tokenizer.bin is first encoded with
    Index stored;
};

// ---------------------------------------------------------------------------------------------------------
// Tokens. Callers see to it that 0 <= id < vocab_size.

// The bytes that spell a token: what it prints, or its name.
static const char *token_bytes(const LlamaTokenizer *t, int32_t id, size_t *length) {
    *length = t->offsets[id + 1] - t->offsets[id];
    return t->bytes + t->offsets[id];
}

static bool token_is(const LlamaTokenizer *t, int32_t id, const char *bytes, size_t length) {
    return t->offsets[id + 1] - t->offsets[id] == length && memcmp(t->bytes + t->offsets[id], bytes, length) == 0;
}

// ---------------------------------------------------------------------------------------------------------
// Finding a piece

static uint64_t hash_word(uint64_t hash, uint64_t word) {
    return (hash ^ word) * 0x9e3779b97f4a7c15u;
}

// Up to eight bytes as a number, little-endian, filled up with zeros.
static uint64_t load_partial(const char *p, size_t n) {
    uint32_t first = 0, last = 0;
    if (n >= 4) {
        memcpy(&first, p, 4);
        memcpy(&last, p + n - 4, 4);
        return first | (uint64_t)last << 8 * (n - 4);
    }
    if (n == 0) return 0;
    const uint8_t *b = (const uint8_t *)p;
    return b[0] | (uint64_t)b[n / 2] << 8 * (n / 2) | (uint64_t)b[n - 1] << 8 * (n - 1);
}

static uint64_t hash_bytes(const char *bytes, size_t length) {
    uint64_t hash = length;
    for (; length > 8; length -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = hash_word(hash, word);
        hash ^= hash >> 32;
    }
    hash = hash_word(hash, load_partial(bytes, length));
    return hash ^ hash >> 32;
}

// The id of a piece of text, -1 if there is none.
static int32_t vocabulary_find(const LlamaTokenizer *t, const Index *index, const char *bytes, size_t length) {
    if (length > index->longest) return -1;
    uint64_t hash = hash_bytes(bytes, length);
    for (uint32_t i = 0; i < PROBES_MAX; i++) {
        uint32_t slot = index->slots[(hash + i) & index->mask];
        if (slot == 0) return -1;
        if (slot >> 24 != hash >> 56) continue;
        int32_t id = (int32_t)(slot & 0xffffff) - 1;
        if (id >= 0 && id < t->vocab_size && token_is(t, id, bytes, length)) return id;
    }
    return -1;
}

static bool index_joins(const Index *index, uint8_t a, uint8_t b) {
    return index->joined[32 * a + b / 8] >> b % 8 & 1;
}

// ---------------------------------------------------------------------------------------------------------
// Finding names: they are sorted, so those that begin as the text does lie side by side, and each byte of the text
// leaves a smaller range of them.

// The first of ids[low, high) whose byte at `depth` is `byte` or more. They agree in the bytes before.
static uint32_t names_bound(const LlamaTokenizer *t, const Names *names, uint32_t low, uint32_t high, size_t depth,
                            int byte) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        size_t length;
        const char *name = token_bytes(t, (int32_t)names->ids[middle], &length);
        if (depth >= length || (uint8_t)name[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Notes with what the names begin, and the types they have.
static void names_note(const LlamaTokenizer *t, Names *names) {
    names->types = 0;
    for (int b = 0; b < 257; b++) names->first[b] = names_bound(t, names, 0, names->n, 0, b);
    for (uint32_t i = 0; i < names->n; i++) names->types |= 1u << t->types[names->ids[i]];
}

// Names that begin as a text does, shorter ones first.
typedef struct {
    uint32_t low, high; // ids[low, high) agree in `depth` bytes with the text
    size_t depth;
} Walk;

// The walk that begins with the text's first byte.
static Walk walk_begin(const Names *names, const char *text) {
    uint8_t first = (uint8_t)text[0];
    return (Walk){names->first[first], names->first[first + 1], 0};
}

// The next name that text begins with, longer than those before, -1 if there is none.
static int32_t walk_next(const LlamaTokenizer *t, const Names *names, Walk *walk, const char *text, size_t n) {
    while (walk->depth < n && walk->low < walk->high) {
        size_t depth = walk->depth++, length;
        if (depth > 0) {
            walk->low = names_bound(t, names, walk->low, walk->high, depth, (uint8_t)text[depth]);
            walk->high = names_bound(t, names, walk->low, walk->high, depth, (uint8_t)text[depth] + 1);
            if (walk->low == walk->high) break;
        }
        int32_t id = (int32_t)names->ids[walk->low];
        token_bytes(t, id, &length);
        if (length == walk->depth) return id;
    }
    return -1;
}

// The length of the longest name of these types (bits) that text begins with, 0 if it begins with none.
static size_t names_match(const LlamaTokenizer *t, const Names *names, const char *text, size_t n, uint32_t types,
                          int32_t *id) {
    Walk walk = walk_begin(names, text);
    size_t best = 0;
    for (int32_t next; (next = walk_next(t, names, &walk, text, n)) >= 0;)
        if (types >> t->types[next] & 1) *id = next, best = walk.depth;
    return best;
}

// The same of a special token, wherever in a text it is found.
static size_t special_match(const LlamaTokenizer *t, const char *text, size_t n, uint32_t types, int32_t *id) {
    size_t length = names_match(t, &t->specials, text, n, types, id);
    return length > 0 ? length : names_match(t, &t->late, text, n, types, id);
}

#endif
