// kernels_amx.h: the kernels for AMX: those of kernels_avx512bf16.h, but for products with tiles of int8, int4 and
// bf16, and for attention of prompts.
#ifndef LLAMA_KERNELS_AMX_H
#define LLAMA_KERNELS_AMX_H

#include "attention_amx.h"      // prompt_fp16_amx ...
#include "kernels_avx512bf16.h" // KERNELS_AVX512, round_avx512bf16
#include "tiles_amx.h"          // matmul_tiles_int8_amx, matmul_tiles_int4_amx
#include "tiles_amx_bf16.h"     // matmul_tiles_bf16_amx

static const Kernels kernels_amx = {
    .name = "amx",
    .available = available_amx,
    .matmul[TILES_BF16] = matmul_tiles_bf16_amx,
    .matmul[TILES_INT8] = matmul_tiles_int8_amx,
    .matmul[TILES_INT4] = matmul_tiles_int4_amx,
    .round = round_avx512bf16,
    .prompt[LLAMA_KV_BF16] = prompt_bf16_amx,
    .prompt[LLAMA_KV_FP16] = prompt_fp16_amx,
    .prompt[LLAMA_KV_INT8] = prompt_int8_amx,
    KERNELS_AVX512,
};

#endif
