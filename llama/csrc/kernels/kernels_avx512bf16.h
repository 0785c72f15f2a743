// kernels_avx512bf16.h: the kernels for AVX-512 with VNNI and the bf16 dot product: those of kernels_avx512.h, but
// for weights of bf16.
#ifndef LLAMA_KERNELS_AVX512BF16_H
#define LLAMA_KERNELS_AVX512BF16_H

#include "kernels_avx512.h"   // KERNELS_AVX512
#include "tiles_avx512bf16.h" // AVX512BF16, matmul_tiles_bf16_avx512bf16

// A NaN stays one, as vcvtneps2bf16 has it.
AVX512BF16 static void round_avx512bf16(uint16_t *halves, const float *x, int32_t n) {
    for (int32_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_avx512(n - i), pairs = mask_avx512((n - i + 1) / 2 * 2);
        __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
        _mm256_mask_storeu_epi16(halves + i, pairs, (__m256i)half);
    }
}

static bool available_avx512bf16(void) {
    return available_avx512() && __builtin_cpu_supports("avx512bf16");
}

static const Kernels kernels_avx512bf16 = {
    .name = "avx512bf16",
    .available = available_avx512bf16,
    .matmul[TILES_BF16] = matmul_tiles_bf16_avx512bf16,
    .matmul[TILES_INT8] = matmul_tiles_int8_avx512,
    .matmul[TILES_INT4] = matmul_tiles_int4_avx512,
    .round = round_avx512bf16,
    KERNELS_AVX512,
};

#endif
