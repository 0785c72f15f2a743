// tokenizer.h: sentencepiece BPE with byte fallback, as Llama 2 has it, or byte-level BPE, as Llama 3 has it, from
// a tokenizer.bin of llama2.c or a file of our own (docs/format.md).
#ifndef LLAMA_API_TOKENIZER_H
#define LLAMA_API_TOKENIZER_H

#include "model.h"

// cdef begin
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
// The bytes of its file, or of its part of one, of which a copy can be opened: a file may shrink.
const void *llama_tokenizer_data(const LlamaTokenizer *tokenizer, uint64_t *size);
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
// cdef end

#endif
