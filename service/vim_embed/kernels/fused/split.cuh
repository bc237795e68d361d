// float32 numbers as sums of two float16 ones, and products of such sums on tensor cores.
//
// x = hi + lo, hi = x rounded to float16, lo = the rest rounded likewise: 22 bits. A product takes three
// of the four terms, lo b_hi + hi b_lo + hi b_hi, with float32 accumulation. Tensor cores truncate as they
// accumulate, so sums leave them after 16 or 32 elements of the inner length and are added in float32.
//
// A split row of K numbers is K / 32 groups of 64 float16: hi of 32 numbers, then their lo. It takes the
// memory of the float32 row, and a number's group is where the number was.
#pragma once
#include "common.cuh"
#include "tensor_cores.cuh"

DEVICE float low_of(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(d) : "r"(v));
    return d;
}
DEVICE float high_of(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(d) : "r"(v));
    return d;
}
DEVICE void split_pair(float a, float b, u32& hi, u32& lo) {
    hi = pack_f16(a, b);
    lo = pack_f16(a - low_of(hi), b - high_of(hi));
}
// V numbers from column `at` of a split row on
template <int V>
DEVICE void store_split(u16* row, int at, const float* d) {
    u16* const to = row + at / 32 * 64 + at % 32;
    u32 hi[2], lo[2];
#pragma unroll
    for (int i = 0; i < (V + 1) / 2; i++)
        split_pair(d[2 * i], V == 1 ? 0.0f : d[2 * i + 1], hi[i], lo[i]);
    if constexpr (V == 1)
        to[0] = (u16)hi[0], to[32] = (u16)lo[0];
    else {
        store_global<2 * V>(to, hi);
        store_global<2 * V>(to + 32, lo);
    }
}
// d += a b of 16 rows, 8 columns and 16 of the inner length; b = {hi, hi, lo, lo}
DEVICE void mma_split(float* d, const u32* hi, const u32* lo, const u32* b) {
    const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    float t[4];
    mma_k16(t, lo, b[0], b[1], zero);
    mma_k16(t, hi, b[2], b[3], t);
    mma_k16(t, hi, b[0], b[1], t);
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] += t[i];
}
