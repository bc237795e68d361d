// Residual add and RMS norm.
#include "common.cuh"
#if DTYPE == 0
#include "split.cuh"
#endif

#define VEC (DIM % 128 == 0 ? 4 : DIM % 64 == 0 ? 2 : 1)
#define PARTS (DIM / 32 / VEC)

// SPLIT: into a split row (split.cuh) of the same memory.
template <bool SPLIT>
DEVICE void norm_row(float (*v)[VEC], const float* weight, T* out, float eps, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS; i++)
#pragma unroll
        for (int j = 0; j < VEC; j++) sum = fmaf(v[i][j], v[i][j], sum);
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    const float scale = rsqrtf(sum * (1.0f / DIM) + eps);
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int at = (i * 32 + lane) * VEC;
        float w[VEC], y[VEC];
        load_float<VEC>(w, weight + at);
#pragma unroll
        for (int j = 0; j < VEC; j++) y[j] = v[i][j] * scale * w[j];
#if DTYPE == 0
        if constexpr (SPLIT)
            store_split<VEC>((u16*)out, at, y);
        else
#endif
            store_row<VEC>(out + at, y);
    }
}

// residual (rows, D) += hidden (rows, D) if there is one, out = its RMS norm; out may be hidden.
// PERMUTED: hidden's columns are in the order of `out_norm`'s weights. One warp a row.
template <bool PERMUTED, bool SPLIT>
DEVICE void add_norm_body(const T* hidden, float* __restrict__ residual,
                          const float* __restrict__ weight, T* out, int rows, float eps) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t base = (size_t)row * DIM;
    float v[PARTS][VEC];
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int at = (i * 32 + lane) * VEC;
        load_float<VEC>(v[i], residual + base + at);
        if (hidden) {
            float h[VEC];
            if constexpr (PERMUTED) {
                const T* from = hidden + base + at / 16 * 16 + at % 16 / 4 * 2 + at % 4 / 2 * 8;
#pragma unroll
                for (int j = 0; j < VEC; j += 2) load_row<2>(h + j, from + 4 * j);
            } else
                load_row<VEC>(h, hidden + base + at);
#pragma unroll
            for (int j = 0; j < VEC; j++) v[i][j] += h[j];
            store_float<VEC>(residual + base + at, v[i]);
        }
    }
    norm_row<SPLIT>(v, weight, out + base, eps, lane);
}
#define ADD_NORM_KERNEL(NAME, PERMUTED, SPLIT)                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                             \
        NAME(const T* hidden, float* residual, const float* weight, T* out, int rows, float eps) { \
        add_norm_body<PERMUTED, SPLIT>(hidden, residual, weight, out, rows, eps);                 \
    }
ADD_NORM_KERNEL(add_norm, false, false)
#if WGMMA && DTYPE != 0
ADD_NORM_KERNEL(add_permuted_norm, true, false)
#endif
#if DTYPE == 0
ADD_NORM_KERNEL(add_split_norm, false, true)
#endif

// patches (B, M, D) and start (L, D) (position + patch bias, or a token that is no patch) -> residual
// (B, L, D) and its RMS norm. sources (L): which patch is added to a token's start, or -1.
template <bool SPLIT>
DEVICE void first_norm_body(const T* __restrict__ patches, const float* __restrict__ start,
                            const int* __restrict__ sources, float* __restrict__ residual,
                            const float* __restrict__ weight, T* __restrict__ out, int rows,
                            int length, int count, float eps) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const int image = row / length, token = row % length, patch = sources[token];
    const size_t base = (size_t)row * DIM;
    const T* from = patches + ((size_t)image * count + patch) * DIM;
    float v[PARTS][VEC];
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int at = (i * 32 + lane) * VEC;
        load_float<VEC>(v[i], start + (size_t)token * DIM + at);
        if (patch >= 0) {
            float h[VEC];
            load_row<VEC>(h, from + at);
#pragma unroll
            for (int j = 0; j < VEC; j++) v[i][j] += h[j];
        }
        store_float<VEC>(residual + base + at, v[i]);
    }
    norm_row<SPLIT>(v, weight, out + base, eps, lane);
}
#define FIRST_NORM_KERNEL(NAME, SPLIT)                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                             \
        NAME(const T* patches, const float* start, const int* sources, float* residual,           \
             const float* weight, T* out, int rows, int length, int count, float eps) {           \
        first_norm_body<SPLIT>(patches, start, sources, residual, weight, out, rows, length,      \
                               count, eps);                                                       \
    }
FIRST_NORM_KERNEL(first_norm, false)
#if DTYPE == 0
FIRST_NORM_KERNEL(first_split_norm, true)
#endif
