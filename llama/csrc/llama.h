// llama.h: the public interface of the engine. Open a checkpoint, make a context, feed it rows of tokens,
// sample, turn tokens into text.
//
// Every function that can fail returns LLAMA_OK or one of the codes below and says why in `error`, in one line
// that names the file or field, what was found and what is allowed. No function prints, exits or keeps global
// state. A model and a tokenizer are read-only after they are opened and may be shared between threads; a
// context, a sampler, a stream and a generation belong to one thread at a time.
//
// The parts between the two `cdef` lines of these headers are also what the Python extension compiles against
// (build_engine.py). The command line has a header of its own, program/llama_run.h.
#ifndef LLAMA_H
#define LLAMA_H

#include "api/error.h"      // LlamaError
#include "api/model.h"      // LlamaModel: a checkpoint, mapped
#include "api/adapter.h"    // LlamaAdapter: LoRA beside a model
#include "api/context.h"    // LlamaContext: the cache, and rows of tokens through the model
#include "api/sequence.h"   // what the cache holds of each sequence: sharing, saving
#include "api/tokenizer.h"  // LlamaTokenizer: text to token ids and back
#include "api/info.h"       // what a model is
#include "api/stream.h"     // LlamaStream: bytes of tokens to whole characters
#include "api/sampling.h"   // LlamaSampler: logits to a token
#include "api/generation.h" // LlamaGeneration: texts being written
#include "api/pack.h"       // floats to tiles
#include "api/chat.h"       // turns of a conversation as token ids

#endif
