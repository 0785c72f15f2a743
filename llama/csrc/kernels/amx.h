// amx.h: the tile instructions of AMX (Sapphire Rapids and later), and whether this process may use them.
//
// Eight tiles, registers of up to 16 rows of 64 bytes, whose shapes a thread configures before it uses them:
//
//     sums (m, 16)      += a (m, 4 k)  . b (k, 16, 4)     of int8, sums of int32
//     sums (m, 16)      += a (m, 2 k)  . b (k, 16, 2)     of bf16, sums of fp32
//
// b lies as the tiles of tiles.h do, of which one chunk of 64 bytes is a row. The instructions take max(m, k)
// cycles. Written in assembly, as the intrinsics of gcc 12 do not say that they read memory. tests/csrc/amx_in_c.h
// has them a second time in C, under the same names.
#ifndef LLAMA_AMX_H
#define LLAMA_AMX_H

#include "tiles_avx512bf16.h" // matmul_tiles_bf16_avx512bf16

#ifdef AMX_IN_C
#define AMX AVX512BF16
#else
#define AMX                                                                                                        \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,"                \
                          "amx-tile,amx-int8,amx-bf16")))
#endif
#define AMX_INLINE AMX __attribute__((always_inline)) static inline

// What LDTILECFG loads.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16]; // of each tile
    uint8_t rows[16];
} TileShapes;

enum { AMX_ROWS = 16 }; // of activations, at most

// How many rows of n go at a time: as few times as can be, and all times as many, as the shapes of tiles are
// configured once. A few rows, fewer than there are times, may be left over.
static inline int32_t amx_rows(int32_t n) {
    return n / ((n + AMX_ROWS - 1) / AMX_ROWS);
}

#ifdef AMX_IN_C

static bool available_amx(void) {
    return available_avx512bf16();
}

#else

#include <cpuid.h>       // __get_cpuid_count
#include <sys/syscall.h> // SYS_arch_prctl

#define TILE_CONFIGURE(shapes) __asm__ volatile("ldtilecfg %0" ::"m"(shapes)) // all 64 bytes of it
#define TILE_RELEASE() __asm__ volatile("tilerelease")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile::)
#define TILE_LOAD(tile, from, stride)                                                                              \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(tile, to, stride)                                                                               \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define TILE_INT8(sums, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sums::)
#define TILE_BF16(sums, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums::)

// Linux gives a process the room for tiles when it asks for it (arch_prctl, ARCH_REQ_XCOMP_PERM,
// XFEATURE_XTILEDATA). Without that, or on an older kernel, the first tile instruction would end the process.
static bool available_amx(void) {
    uint32_t eax, ebx, ecx, edx = 0, tile_bf16_int8 = 1u << 24 | 1u << 22 | 1u << 25;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & tile_bf16_int8) != tile_bf16_int8) return false;
    return available_avx512bf16() && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

#endif

#endif
