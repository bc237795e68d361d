// The convolution of half precision, two channels at a time.
#pragma once
#include "common.cuh"

// 16 bytes from shared memory by address, or from wherever a pointer leads
DEVICE void load_16(u32* d, u32 from) { load_shared<16>(d, from); }
DEVICE void load_16(u32* d, const char* from) { *(uint4*)d = *(const uint4*)from; }

// The convolution of two channels. float16 goes by pairs: u is rounded to it for the product anyway,
// and neighbours do not mind (docs/gpu.md). bfloat16 is too coarse for that.
struct Taps {
#if DTYPE == 1
    u32 k[4], bias, sum;
    template <class From>
    DEVICE Taps(From from, int pair, const u32* b) : bias(b[0]) {
        load_16(k, from + pair * 64);
    }
    DEVICE void start() { sum = bias; }
    DEVICE void add(int i, u32 x) { sum = fma_pair(k[i], x, sum); }
    DEVICE u32 silu() const { return silu_of_half_pair(sum); }
#else
    float k0[4], k1[4], bias0, bias1, u0, u1;
    template <class From>
    DEVICE Taps(From from, int pair, const u32* b)
        : bias0(__uint_as_float(b[0])), bias1(__uint_as_float(b[1])) {
        load_16((u32*)k0, from + 2 * pair * 64);
        load_16((u32*)k1, from + (2 * pair + 1) * 64);
    }
    DEVICE void start() { u0 = bias0, u1 = bias1; }
    DEVICE void add(int i, u32 x) { u0 = fmaf(k0[i], low(x), u0), u1 = fmaf(k1[i], high(x), u1); }
    DEVICE u32 silu() const { return pack(silu_of_half(u0), silu_of_half(u1)); }
#endif
};
