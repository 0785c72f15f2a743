// half.h: floats of 16 bits, to float and back. Each function is the specification of what the instruction sets
// have instructions for, and has no branch, so that a compiler can vectorise a loop over it.
//
//     fp16    IEEE half precision: sign, 5 bits of exponent, 10 of fraction; 6e-8 to 65504
//     bf16    the upper half of a float: sign, 8 bits of exponent, 7 of fraction
#ifndef LLAMA_HALF_H
#define LLAMA_HALF_H

#include "util.h" // load_f32

static inline uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// All values exactly.
static inline float bf16_to_float(uint16_t half) {
    return load_f32(&(uint32_t){(uint32_t)half << 16});
}

// All values exactly. The bits of a half, moved to where a float has them, are the value x 2^-112, also of
// subnormal numbers; above 65504 all bits of the exponent are set.
static inline float half_to_float(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t infinite = -(uint32_t)(magnitude >= 0x7c00 << 13) & 0x7f800000;
    return load_f32(&(uint32_t){sign | infinite | float_bits(load_f32(&magnitude) * 0x1p112f)});
}

// Rounded to nearest, ties to even; NaN stays NaN.
static inline uint16_t float_to_bf16(float x) {
    uint32_t bits = float_bits(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : bits >> 16 | 0x40);
}

// Rounded to nearest, ties to even; what is beyond 65504 by half a step or more is infinite, NaN stays NaN. Below
// 2^-14 the last bit of a half is 2^-24, and so is that of a float from 0.5 to 1: an addition rounds to it.
static inline uint16_t float_to_half(float x) {
    uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = float_bits(load_f32(&magnitude) + 0.5f) - float_bits(0.5f);
    uint32_t small = -(uint32_t)(magnitude < 113u << 23), nan = -(uint32_t)(magnitude > 0x7f800000) & 0x7e00;
    return (uint16_t)(sign | nan | (subnormal & small) | (MIN(normal, 0x7c00u) & ~small));
}

#endif
