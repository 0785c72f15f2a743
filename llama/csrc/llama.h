// llama.h: the public interface of the engine. Open a checkpoint, make a context, feed it rows of tokens,
// sample, turn tokens into text.
//
// Every function that can fail returns LLAMA_OK or one of the codes below and says why in `error`, in one line
// that names the file or field, what was found and what is allowed. No function prints, exits or keeps global
// state. A model and a tokenizer are read-only after they are opened and may be shared between threads; a
// context, a sampler, a stream and a generation belong to one thread at a time.
//
// The part between the two `cdef` lines is also what the Python extension compiles against (build_engine.py). The
// command line has a header of its own, program/llama_run.h.
#ifndef LLAMA_H
#define LLAMA_H

#include <stddef.h>
#include <stdint.h>

// cdef begin
// ---------------------------------------------------------------------------------------------------------
// Errors. The codes are the exit codes of the command line; it alone is interrupted.

enum {
    LLAMA_OK = 0,
    LLAMA_ERROR_USAGE = 2,
    LLAMA_ERROR_FILE = 3,
    LLAMA_ERROR_RESOURCE = 4,
    LLAMA_ERROR_INTERRUPTED = 130
};

typedef struct {
    int code;
    char text[1024]; // one line, no newline
} LlamaError;

// ---------------------------------------------------------------------------------------------------------
// Model: a checkpoint of the llama2.c family (v0, v1: fp32, v2: int8) or of our own (v3: any type, with its
// tokenizer), mapped into memory and never copied.

typedef struct LlamaModel LlamaModel;

enum { LLAMA_FP32 = 0, LLAMA_INT8 = 1, LLAMA_BF16 = 2, LLAMA_INT4 = 3 };     // types of weights
enum { LLAMA_ROPE_PLAIN = 0, LLAMA_ROPE_LINEAR = 1, LLAMA_ROPE_LLAMA3 = 2 }; // how RoPE is scaled
enum { LLAMA_MAX_STOPS = 8 };

typedef struct {
    int32_t version;    // of the file format: 0, 1, 2 or 3
    int32_t dim;        // width of the residual stream
    int32_t hidden_dim; // width of the feed-forward layers
    int32_t n_layers;
    int32_t n_heads;    // query heads
    int32_t n_kv_heads; // key and value heads, each shared by n_heads / n_kv_heads query heads
    int32_t head_dim;   // width of a head
    int32_t vocab_size;
    int32_t max_seq_len; // positions the model was trained for
    int32_t tied;        // 1: the classifier is the token embedding
    int32_t weight_type; // LLAMA_FP32 ..., of the matrices of the layers
    int32_t group_size;  // weights that share a scale, 0 where there are no scales
    float norm_eps;
    float rope_theta;
    int32_t rope_scaling; // LLAMA_ROPE_PLAIN ...
    float rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    int32_t rope_original_max_seq_len;
    int32_t bos;           // for a tokenizer that has none, -1: none
    int32_t n_stops;       // ids that end a text, besides the tokenizer's EOS
    int32_t stops[8];      // (LLAMA_MAX_STOPS)
    int32_t chat_template; // LLAMA_CHAT_NONE ...
    int32_t add_bos;       // 1: BOS goes in front of a text (v0, v1, v2: always)
    int32_t add_eos;       // 1: the model's tokenizer puts EOS behind one; the engine does where it is asked to
} LlamaConfig;

int llama_open(const char *path, LlamaModel **model, LlamaError *error);
void llama_close(LlamaModel *model);
const LlamaConfig *llama_config(const LlamaModel *model);
const char *llama_type_name(int32_t type);           // "fp32", "int8", "bf16", "int4"
uint64_t llama_parameters(const LlamaModel *model);  // number of weights
uint64_t llama_token_bytes(const LlamaModel *model); // bytes of weights that one decoded token reads
int llama_has_tokenizer(const LlamaModel *model);    // 1: its file holds one

typedef struct {
    const char *name; // "tok_embeddings", "wq", "norm" ...
    int32_t layer;    // -1: of none
    int32_t type;     // LLAMA_FP32 ...
    int32_t rows, cols;
    uint64_t bytes; // in the file
} LlamaTensor;

int32_t llama_n_tensors(const LlamaModel *model);
// The tensor at an index below llama_n_tensors, in the order of a v3 file's table; name NULL for any other.
LlamaTensor llama_tensor(const LlamaModel *model, int32_t index);
// Compares a tensor with the checksum that its file has of it. LLAMA_OK where a file has none: v0, v1, v2.
int llama_check_tensor(const LlamaModel *model, int32_t index, LlamaError *error);

// ---------------------------------------------------------------------------------------------------------
// Context: the KV cache of one or more sequences and the scratch memory of forward.

typedef struct LlamaContext LlamaContext;

enum { LLAMA_KV_FP32 = 0, LLAMA_KV_BF16 = 1, LLAMA_KV_FP16 = 2 }; // types of the cache's keys and values

typedef struct {         // 0 in any field: the default
    int32_t context;     // positions a sequence may have, at most (and by default) max_seq_len
    int32_t sequences;   // sequences held side by side (1)
    int32_t batch;       // rows that go through the layers at once (128)
    int32_t threads;     // OpenMP threads (chosen from the size of the model and the processors at hand)
    int32_t exact;       // 1: activations stay fp32, also where int8 or int4 weights would have them as int8 (0)
    const char *kernels; // "scalar", "avx2" ... (NULL: $LLAMA_ISA, else the best this CPU runs)
    float rope_theta;    // base of RoPE's angles (the file's, 10000 for v0, v1 and v2, which can't say it)
    int32_t kv;          // LLAMA_KV_FP32 ...
} LlamaContextOptions;

int llama_context_init(const LlamaModel *model, const LlamaContextOptions *options, LlamaContext **context,
                       LlamaError *error);
void llama_context_free(LlamaContext *context);
// The options as they were resolved: every field is filled in.
const LlamaContextOptions *llama_context_options(const LlamaContext *context);
const char *llama_kv_name(int32_t kv);                     // "fp32", "bf16", "fp16"
uint64_t llama_context_bytes(const LlamaContext *context); // memory of the cache and the scratch

typedef struct {
    int32_t context;                  // positions
    uint64_t weights, cache, scratch; // bytes; the weights are mapped and shared between processes
} LlamaMemory;

// The memory that a context with these options takes, without making it.
int llama_context_measure(const LlamaModel *model, const LlamaContextOptions *options, LlamaMemory *memory,
                          LlamaError *error);

// One row of a forward pass. One row is decoding; many rows of one sequence are prefill or the check of a
// speculation; rows of many sequences are batched serving.
typedef struct {
    int32_t token;        // 0 <= token < vocab_size
    int32_t position;     // at most the number of positions its sequence holds; a lower one overwrites
                          // what is there and forgets what came after
    int32_t sequence;     // 0 <= sequence < options.sequences
    int32_t wants_logits; // 1: the next row of `logits` is for this row
} LlamaRow;

// Runs n rows through the model. logits: (rows that want them, vocab_size), NULL if none does.
// The result does not depend on the number of threads nor on how rows are grouped into calls.
int llama_forward(LlamaContext *context, const LlamaRow *rows, int32_t n, float *logits, LlamaError *error);

// Runs one text of n ids as sequence 0. scores: (n - 1), the log-probability in nats of each id but the first after
// those before it.
int llama_score(LlamaContext *context, const int32_t *ids, int32_t n, double *scores, LlamaError *error);

// ---------------------------------------------------------------------------------------------------------
// Tokenizer: sentencepiece BPE with byte fallback, as Llama 2 has it, or byte-level BPE, as Llama 3 has it, from a
// tokenizer.bin of llama2.c or a file of our own (docs/format.md).

typedef struct LlamaTokenizer LlamaTokenizer;

int llama_tokenizer_open(const char *path, LlamaTokenizer **tokenizer, LlamaError *error);
// From a file in memory, which must stay, aligned to 4 bytes. name: for messages.
int llama_tokenizer_open_bytes(const void *data, uint64_t size, const char *name, LlamaTokenizer **tokenizer,
                               LlamaError *error);
// Opens the tokenizer at path, or for path NULL the one that belongs to the model, and checks that it has as many
// tokens. That is the one inside the model's file (the model must outlive it), else tokenizer.bin or
// tok<vocab_size>.bin beside the model, then in the working directory.
int llama_tokenizer_find(const char *path, const LlamaModel *model, LlamaTokenizer **tokenizer, LlamaError *error);
void llama_tokenizer_close(LlamaTokenizer *tokenizer);
int32_t llama_vocab_size(const LlamaTokenizer *tokenizer);
int32_t llama_bos(const LlamaTokenizer *tokenizer); // -1 where the vocabulary has none
int32_t llama_eos(const LlamaTokenizer *tokenizer); // -1 where the vocabulary has none
// What it is, in words: "sentencepiece BPE", "byte-level BPE".
const char *llama_tokenizer_kind(const LlamaTokenizer *tokenizer);

// Room that the ids of a text of `length` bytes need at most, BOS and EOS included.
size_t llama_encode_bound(size_t length);
// Writes the ids of text to ids, which has room for llama_encode_bound(length), and their number to n. Text is
// UTF-8 and may hold any byte, NUL included; an invalid byte counts as U+FFFD.
int llama_encode(const LlamaTokenizer *tokenizer, const char *text, size_t length, int bos, int eos, int32_t *ids,
                 size_t *n, LlamaError *error);
// The same; special: names of special tokens in the text, such as <|eot_id|>, mean the tokens. Otherwise they are
// plain text, so that no user of a chat can forge a message.
int llama_encode_special(const LlamaTokenizer *tokenizer, const char *text, size_t length, int bos, int eos,
                         int special, int32_t *ids, size_t *n, LlamaError *error);

// A part of a text, bytes [begin, end), one at least: a token that stands in its place, or plain text, token -1, in
// which names of special tokens mean nothing.
typedef struct {
    size_t begin, end;
    int32_t token;
} LlamaSpan;

// As llama_encode_special with special tokens, but for those in spans, which are ascending and do not overlap.
int llama_encode_spans(const LlamaTokenizer *tokenizer, const char *text, size_t length, const LlamaSpan *spans,
                       size_t n_spans, int32_t *ids, size_t *n, LlamaError *error);
// The ids of a text as the model's tokenizer begins one: after BOS, or not (add_bos). Of an empty text BOS in any
// case, since a generation goes on from a token. ids: room for llama_encode_bound(length).
int llama_encode_prompt(const LlamaModel *model, const LlamaTokenizer *tokenizer, const char *text, size_t length,
                        int32_t *ids, size_t *n, LlamaError *error);
// The bytes of a token that follows `previous` (-1 for none: the token starts a text). Where the vocabulary puts a
// space in front of text, it is dropped after BOS and at the start of a text; a byte token is its byte; special
// tokens, BOS and EOS among them, are empty. The bytes belong to the tokenizer and live as long as it. NULL and
// length 0 for an id outside the vocabulary.
const char *llama_token_bytes_of(const LlamaTokenizer *tokenizer, int32_t previous, int32_t token, size_t *length);
// The bytes that spell a token: as above with every space, and the name of a special token. NULL as above.
const char *llama_token_name(const LlamaTokenizer *tokenizer, int32_t token, size_t *length);
int llama_token_is_special(const LlamaTokenizer *tokenizer, int32_t token); // 1: its text is empty, 0: it is not

// Writes what the model is, and the memory that a context takes, into text, which has room for `room` bytes; what
// does not fit is cut off. tokenizer: NULL where there is none.
int llama_info(const LlamaModel *model, const LlamaTokenizer *tokenizer, const LlamaContextOptions *options,
               char *text, size_t room, LlamaError *error);

// Stream: bytes of tokens in, whole UTF-8 characters out. An unfinished character is held back until it is whole;
// a byte that can't be part of one becomes U+FFFD. Text that may be the beginning of a stop string is held back
// too; where a stop string is complete, it and what follows is dropped.
typedef struct LlamaStream LlamaStream;

int llama_stream_init(const char *const *stops, int32_t n_stops, LlamaStream **stream, LlamaError *error);
void llama_stream_free(LlamaStream *stream);
void llama_stream_reset(LlamaStream *stream);
// Appends bytes. Sets text and length to what may be printed now (valid until the next call) and stopped to 1 once
// a stop string was found.
int llama_stream_push(LlamaStream *stream, const char *bytes, size_t n, const char **text, size_t *length,
                      int *stopped, LlamaError *error);
// The end of the text: gives out what was held back.
int llama_stream_flush(LlamaStream *stream, const char **text, size_t *length, LlamaError *error);

// ---------------------------------------------------------------------------------------------------------
// Sampler: logits in, a token out.

typedef struct LlamaSampler LlamaSampler;

typedef struct {
    float temperature;       // 0: greedy, the most likely token
    float top_p;             // keep the most likely tokens whose probabilities reach top_p; 0 or 1: off
    float min_p;             // keep tokens at least min_p times as likely as the most likely one; 0: off
    int32_t top_k;           // keep the top_k most likely tokens; 0: off
    float repeat_penalty;    // divide (multiply if negative) the logits of tokens seen, prompt included; 1: off
    float presence_penalty;  // subtracted once from the logits of tokens generated; 0: off
    float frequency_penalty; // subtracted for every time a token was generated; 0: off
    uint64_t seed;           // of the xorshift generator; any value but 0
} LlamaSampling;

int llama_sampler_init(int32_t vocab_size, const LlamaSampling *sampling, LlamaSampler **sampler,
                       LlamaError *error);
void llama_sampler_free(LlamaSampler *sampler);
// Adds bias to the logit of a token before every sample; -INFINITY forbids the token.
int llama_sampler_bias(LlamaSampler *sampler, int32_t token, float bias, LlamaError *error);
// Draws a token from logits (vocab_size), which it overwrites with what it made of them. A NaN or an infinity is an
// error.
int llama_sample(LlamaSampler *sampler, float *logits, int32_t *token, LlamaError *error);
// Tells the penalties of a token: generated = 0 for the prompt's, 1 for those drawn.
int llama_sampler_accept(LlamaSampler *sampler, int32_t token, int generated, LlamaError *error);
// Forgets the tokens told; the generator goes on.
void llama_sampler_reset(LlamaSampler *sampler);

// ---------------------------------------------------------------------------------------------------------
// Generation: one sequence being written. Feed it token ids, then take piece after piece.

typedef struct LlamaGeneration LlamaGeneration;

enum { LLAMA_RUNNING = 0, LLAMA_STOP_TOKEN = 1, LLAMA_STOP_STRING = 2, LLAMA_STOP_LENGTH = 3 };

typedef struct {
    const char *text; // whole UTF-8 characters, valid until the next call; empty while the prompt is read
    size_t length;
    int32_t token;  // drawn by this call, -1 for none
    int32_t finish; // LLAMA_RUNNING, or why this piece is the last
} LlamaPiece;

typedef struct {
    int32_t prompt_tokens, generated_tokens;
    double prompt_seconds;   // until the first token was drawn
    double generate_seconds; // from the first token drawn to the last
} LlamaStats;

// The context, tokenizer and sampler stay the caller's and outlive the generation; stop strings are copied.
int llama_generation_init(LlamaContext *context, const LlamaTokenizer *tokenizer, LlamaSampler *sampler,
                          int32_t sequence, const char *const *stops, int32_t n_stops, LlamaGeneration **generation,
                          LlamaError *error);
void llama_generation_free(LlamaGeneration *generation);
// Appends ids to what the sequence holds. Tokens are run at positions before `limit` (0: the end of the context);
// the last one drawn is not, so n ids leave limit - n + 1 tokens to draw. An error if the ids do not fit.
int llama_generation_feed(LlamaGeneration *generation, const int32_t *ids, size_t n, int32_t limit,
                          LlamaError *error);
int llama_generation_next(LlamaGeneration *generation, LlamaPiece *piece, LlamaError *error);
// Goes back to the first n positions of the sequence, to go on from there in another way.
int llama_generation_rewind(LlamaGeneration *generation, int32_t n, LlamaError *error);
// Positions that the sequence holds, the newest token drawn included.
int32_t llama_generation_position(const LlamaGeneration *generation);
const LlamaStats *llama_generation_stats(const LlamaGeneration *generation); // since the last feed

// ---------------------------------------------------------------------------------------------------------
// Packing: rows of floats to the tiles of a v3 file (docs/format.md), of any type.

enum { LLAMA_FP16 = 4 }; // of values that are packed; no file holds it

typedef struct {
    const void *values;  // (rows, cols)
    int32_t values_type; // LLAMA_FP32, LLAMA_BF16 or LLAMA_FP16
    int32_t rows, cols;
    int64_t first_row; // the number that messages give the first row
} LlamaStrip;

typedef struct {
    double squares;       // sum over the values
    double error_squares; // sum over what packing changed in them
} LlamaPacked;

// Bytes of a matrix in tiles of a type, LLAMA_FP32 ...; 0 for one that can't be.
uint64_t llama_packed_bytes(int32_t type, int32_t rows, int32_t cols);
// Packs a strip of rows of a matrix, all but its last strip a multiple of 16. out: llama_packed_bytes. threads, 0:
// the processors at hand; the result does not depend on them, nor on the CPU. An error where a value is not finite,
// or too large for the type; out then holds nothing of use.
int llama_pack(const LlamaStrip *strip, int32_t type, int32_t threads, uint8_t *out, LlamaPacked *packed,
               LlamaError *error);

// ---------------------------------------------------------------------------------------------------------
// Chat: a turn of a conversation as token ids, by the template that the model was trained with.

enum { // templates; OTHER: one in Jinja that is none of those built in
    LLAMA_CHAT_NONE = 0,
    LLAMA_CHAT_LLAMA2 = 1,
    LLAMA_CHAT_LLAMA3 = 2,
    LLAMA_CHAT_OTHER = 3,
    LLAMA_CHAT_CHATML = 4,
    LLAMA_CHAT_ZEPHYR = 5,
    LLAMA_CHAT_MISTRAL = 6,
    LLAMA_CHAT_PLAIN = 7 // the texts as they are
};
enum { LLAMA_STRIP_NOTHING = 0, LLAMA_STRIP_EACH = 1, LLAMA_STRIP_WHOLE = 2 };

// A template that is built in. % is a text; <s> and </s> are BOS and EOS whatever their names are.
typedef struct {
    const char *name;          // "llama2" ...
    const char *begin, *next;  // before the first turn, before a later one; NULL: this is NONE or OTHER
    const char *system, *user; // of the first turn, and of each
    const char *answer;        // the model's, up to where the next turn begins
    int32_t strip; // white space around each text goes, or around a whole turn (system and user's, and the answer)
    int32_t needs_names; // <|names|> must be tokens
} LlamaChatTemplate;

// Of LLAMA_CHAT_NONE ..., NULL beyond the last one.
const LlamaChatTemplate *llama_chat_template(int32_t kind);

// How a model chats. Texts are UTF-8, NULL where their length is 0.
typedef struct {
    int32_t kind; // LLAMA_CHAT_NONE ...
    int32_t bos;  // of LLAMA_CHAT_PLAIN: a conversation begins with BOS
    const char *text, *system, *preamble;
    size_t text_length;     // the model's own template, in Jinja
    size_t system_length;   // the system text of a conversation that has none
    size_t preamble_length; // what goes in front of one that has
} LlamaChat;

// What the model's file says. Files of v0, v1 and v2 say nothing, and chat as llama2.c does: Llama 2.
LlamaChat llama_chat_of(const LlamaModel *model);
// Room that the ids of a turn need at most.
size_t llama_chat_bound(const LlamaChat *chat, size_t system_length, size_t user_length);
// The ids of one user turn. system: NULL for none, only for the first turn. first = 0: closes the answer before. An
// error without a template that is built in.
int llama_chat_turn(const LlamaTokenizer *tokenizer, const LlamaChat *chat, const char *system,
                    size_t system_length, const char *user, size_t user_length, int first, int32_t *ids, size_t *n,
                    LlamaError *error);

// Room that the ids of what is between two texts need at most.
size_t llama_infill_bound(size_t prefix_length, size_t suffix_length);
// The ids from which Code Llama writes what is between two texts. An error for a tokenizer without its tokens.
int llama_encode_infill(const LlamaTokenizer *tokenizer, const char *prefix, size_t prefix_length,
                        const char *suffix, size_t suffix_length, int32_t *ids, size_t *n, LlamaError *error);
// cdef end

#endif
