// files.h: files that are opened and then run for a token: models of v0 to v3, adapters, saved sequences. Their
// checksums are made right where the first byte is odd, or nothing behind them would be reached.
#ifndef FUZZ_FILES_H
#define FUZZ_FILES_H

static LlamaContextOptions small_context(uint8_t choice) {
    return (LlamaContextOptions){
        .context = 3, .batch = 2, .threads = 1, .exact = choice >> 1 & 1, .kv = (choice >> 2) % 3};
}

static void run_tokens(LlamaContext *ctx, int32_t first) {
    int32_t vocab = llama_config(llama_context_model(ctx))->vocab_size;
    LlamaRow rows[] = {{.token = 0, .position = first, .wants_logits = 1},
                       {.token = vocab - 1, .position = first + 1, .wants_logits = 1}};
    float *logits = malloc(2 * (size_t)vocab * sizeof *logits);
    LlamaError error;
    PROMISE(logits);
    PROMISE(llama_forward(ctx, rows, 2, logits, &error) == LLAMA_OK);
    free(logits);
}

static void seal_v3(uint8_t *file, size_t size) {
    if (size < HEADER_V3 || load_i32(file + 4) != 3) return;
    uint64_t at = HEADER_V3 + (uint64_t)(uint32_t)load_i32(file + N_TENSORS_AT) * ENTRY_V3, texts = 0;
    uint64_t bytes = load_u64(file + TOKENIZER_BYTES_AT), total = size;
    memcpy(file + FILE_BYTES_AT, &total, sizeof total);
    memcpy(file + TOKENIZER_AT, &at, sizeof at);
    for (size_t i = 0; i < COUNT(v3_texts); i++) texts += (uint32_t)load_i32(file + v3_texts[i].at);
    if (!lies_within(at, bytes, HEADER_V3, size) || !lies_within(at + bytes, texts, at, size)) return;
    uint32_t crc = crc32_of(0, file, CHECKSUM_AT);
    crc = crc32_of(crc, file + HEADER_V3, at - HEADER_V3 + tokenizer_checked_v3(file + at, bytes));
    store_u32(file + CHECKSUM_AT, crc32_of(crc, file + at + bytes, texts));
}

// All that a program asks of a model once it is open.
static void use_model(const LlamaModel *model, uint8_t choice) {
    LlamaContextOptions options = small_context(choice);
    LlamaContext *ctx = NULL;
    LlamaTokenizer *tokenizer = NULL;
    LlamaError error;
    char text[4096];
    for (int32_t i = 0; llama_tensor(model, i).name; i++) llama_check_tensor(model, i, &error);
    int code = llama_has_tokenizer(model) ? llama_tokenizer_find(NULL, model, &tokenizer, &error) : LLAMA_OK;
    if (code != LLAMA_OK) check_error(code, &error);
    options.context = MIN(options.context, llama_config(model)->max_seq_len);
    code = llama_info(model, tokenizer, &options, text, sizeof text, &error);
    if (code != LLAMA_OK) check_error(code, &error);
    code = llama_context_init(model, &options, &ctx, &error);
    if (code != LLAMA_OK)
        check_error(code, &error);
    else if (options.context >= 2)
        run_tokens(ctx, 0);
    llama_context_free(ctx);
    llama_tokenizer_close(tokenizer);
}

static void fuzz_model(Input input) {
    uint8_t choice = take_byte(&input);
    uint8_t *bytes = copy_of(input, 0);
    if (choice & 1) seal_v3(bytes, input.size);
    MemoryFile file = file_of(bytes, input.size);
    LlamaModel *model;
    LlamaError error;
    int code = llama_open(file.path, &model, &error);
    if (code == LLAMA_OK)
        use_model(model, choice);
    else
        check_error(code, &error);
    llama_close(model);
    close(file.descriptor);
    free(bytes);
}

// ---------------------------------------------------------------------------------------------------------
// What is opened beside a model: v0, two layers of dim 4 and hidden_dim 6 with two heads, one of keys, 5 tokens, 8
// positions.

static const LlamaModel *small_model(void) {
    static LlamaModel *model;
    if (model) return model;
    int32_t header[] = {4, 6, 2, 2, 1, 5, 8};
    uint8_t bytes[sizeof header + 4 * (5 * 4 + 2 * (2 * 4 + 2 * 4 * 4 + 2 * 2 * 4 + 3 * 6 * 4) + 4 + 8 * 2)];
    memcpy(bytes, header, sizeof header);
    for (size_t at = sizeof header; at < sizeof bytes; at += 4) {
        float value = (float)(at * 7 % 13) / 13 - 0.4f;
        memcpy(bytes + at, &value, sizeof value);
    }
    MemoryFile file = file_of(bytes, sizeof bytes);
    PROMISE(llama_open(file.path, &model, NULL) == LLAMA_OK);
    close(file.descriptor);
    return model;
}

static void fuzz_adapter(Input input) {
    uint8_t choice = take_byte(&input);
    uint8_t *bytes = copy_of(input, 0);
    if (choice & 1 && input.size >= ADAPTER_HEADER) {
        uint64_t size = input.size;
        memcpy(bytes + ADAPTER_BYTES_AT, &size, sizeof size);
        uint32_t crc = crc32_of(0, bytes, ADAPTER_CRC_AT);
        store_u32(bytes + ADAPTER_CRC_AT, crc32_of(crc, bytes + ADAPTER_BYTES_AT, size - ADAPTER_BYTES_AT));
    }
    MemoryFile file = file_of(bytes, input.size);
    LlamaContextOptions options = small_context(choice);
    LlamaAdapter *adapter;
    LlamaContext *ctx = NULL;
    LlamaError error;
    int code = llama_adapter_open(file.path, 1, small_model(), &adapter, &error);
    options.adapter = adapter;
    if (code == LLAMA_OK) code = llama_context_init(small_model(), &options, &ctx, &error);
    if (code == LLAMA_OK)
        run_tokens(ctx, 0);
    else
        check_error(code, &error);
    llama_context_free(ctx);
    llama_adapter_close(adapter);
    close(file.descriptor);
    free(bytes);
}

// The bytes of a saved sequence of one position with the input written over them, or the input alone.
static void fuzz_restore(Input input) {
    uint8_t choice = take_byte(&input);
    LlamaContextOptions options = small_context(choice);
    LlamaContext *ctx;
    LlamaError error;
    PROMISE(llama_context_init(small_model(), &options, &ctx, &error) == LLAMA_OK);
    run_tokens(ctx, 0);
    int32_t ids[3] = {0, 4, 0}, n;
    uint64_t saved = llama_sequence_bytes(ctx, 0);
    uint8_t *bytes = copy_of(input, saved);
    uint64_t size = choice & 16 ? input.size : input.size + saved;
    if (!(choice & 16)) {
        PROMISE(llama_sequence_save(ctx, 0, ids, bytes, &error) == LLAMA_OK);
        for (size_t i = 0; i < input.size; i++) bytes[i] ^= input.data[i];
        if (choice & 32) size = saved;
    }
    if (choice & 1 && size >= sizeof(SavedHeader)) {
        memcpy(bytes + offsetof(SavedHeader, bytes), &size, sizeof size);
        store_u32(bytes + offsetof(SavedHeader, checksum),
                  crc32_of(0, bytes + SAVED_CHECKED, size - SAVED_CHECKED));
    }
    int code = llama_sequence_restore(ctx, 0, bytes, size, ids, &n, &error);
    if (code != LLAMA_OK) check_error(code, &error);
    int32_t held = llama_sequence_length(ctx, 0);
    PROMISE(held == (code == LLAMA_OK ? n : 2) && held <= 3);
    run_tokens(ctx, MIN(held, 1));
    llama_context_free(ctx);
    free(bytes);
}

#endif
