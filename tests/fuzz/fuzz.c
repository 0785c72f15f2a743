// fuzz.c: entries for libFuzzer, one binary with all of them; $FUZZ names the one that runs. make fuzz builds it
// with the address and undefined-behaviour sanitizers, makes a few seeds (seeds.py) and runs each entry for a
// while:
//
//     FUZZ=model build/fuzz/fuzz -max_total_time=60 build/fuzz/corpus/model build/fuzz/seeds/model
//
// Each entry aborts where a promise is broken: an id outside the vocabulary, a text that comes out otherwise.
#define LLAMA_LIBRARY
#include "heap_maps.h"  // run.c
#include "input.h"      // Input: what an entry takes from the fuzzer's bytes; files in memory
#include "files.h"      // model, adapter, restore
#include "tokenizers.h" // tokenizer, encode
#include "texts.h"      // stream, sampler, options

static const struct {
    const char *name;
    void (*run)(Input input);
} entries[] = {
    {"model", fuzz_model},   {"adapter", fuzz_adapter}, {"restore", fuzz_restore}, {"tokenizer", fuzz_tokenizer},
    {"encode", fuzz_encode}, {"stream", fuzz_stream},   {"sampler", fuzz_sampler}, {"options", fuzz_options},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *name = getenv("FUZZ");
    for (size_t i = 0; name && i < COUNT(entries); i++)
        if (strcmp(name, entries[i].name) == 0) {
            entries[i].run((Input){data, size});
            return 0;
        }
    fprintf(stderr, "FUZZ names no entry: model, adapter, restore, tokenizer, encode, stream, sampler, options\n");
    exit(2);
}
