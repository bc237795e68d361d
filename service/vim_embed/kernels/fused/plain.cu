// The float32 kernels around plain float32 products.
#include "common.cuh"

#define TILE 4

DEVICE float silu(float v) { return v / (1.0f + __expf(-v)); }

// u (2, B L, E) = silu(conv(x)): both directions of 4 channels of one token a thread.
extern "C" __global__ void conv_silu(const float* __restrict__ xz,
                                     const float4* __restrict__ taps,
                                     const float2* __restrict__ vectors, float* __restrict__ u,
                                     int length, int rows) {
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (long long)rows * (INNER / 4)) return;
    const int c = (int)(index % (INNER / 4)) * 4, row = (int)(index / (INNER / 4));
    const int token = row % length;
    float x[7][4];
#pragma unroll
    for (int r = 0; r < 7; r++) {
        const int t = token + r - 3;
        if (t >= 0 && t < length)
            load_float<4>(x[r], xz + (size_t)(row + r - 3) * (2 * INNER) + c);
        else
            x[r][0] = x[r][1] = x[r][2] = x[r][3] = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < 2; d++) {
        float out[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 k = taps[d * INNER + c + j];
            float a = vectors[d * INNER + c + j].x;
            a = fmaf(k.x, x[d ? 6 : 0][j], a);
            a = fmaf(k.y, x[d ? 5 : 1][j], a);
            a = fmaf(k.z, x[d ? 4 : 2][j], a);
            a = fmaf(k.w, x[3][j], a);
            out[j] = silu(a);
        }
        store_float<4>(u + ((size_t)d * rows + row) * INNER + c, out);
    }
}

// out (B, L, E) = (y_forward + y_backward) * silu(z). u, delta (2, B L, E), delta before softplus;
// dbc (2, B L, ROW). One thread a channel and direction; halves meet as in the half kernels.
extern "C" __global__ void __launch_bounds__(64)
    scan(const float* __restrict__ xz, const float* __restrict__ u,
         const float* __restrict__ delta, const float* __restrict__ dbc,
         const float4* __restrict__ decay, const float2* __restrict__ vectors, float* out,
         int length, int rows) {
    const int direction = threadIdx.x / 32, c = blockIdx.x * 32 + threadIdx.x % 32;
    const size_t image = (size_t)blockIdx.y * length;
    const int first = direction ? length / 2 : length - length / 2;
    const size_t shift = (size_t)direction * rows + image;
    xz += image * (2 * INNER) + INNER + c;
    out += image * INNER + c;
    u += shift * INNER + c;
    delta += shift * INNER + c;
    dbc += shift * ROW + RP;
    const float skip = vectors[direction * INNER + c].y;
    float A[16], h[16];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float4 a = decay[(size_t)(direction * INNER + c) * 4 + j];
        A[4 * j] = a.x, A[4 * j + 1] = a.y, A[4 * j + 2] = a.z, A[4 * j + 3] = a.w;
    }
#pragma unroll
    for (int j = 0; j < 16; j++) h[j] = 0.0f;
    auto token_of = [&](int step) { return direction ? length - 1 - step : step; };
    float next_u[TILE], next_v[TILE];
    auto fetch = [&](int step) {
#pragma unroll
        for (int j = 0; j < TILE; j++)
            if (step + j < length) {
                next_u[j] = u[(size_t)token_of(step + j) * INNER];
                next_v[j] = delta[(size_t)token_of(step + j) * INNER];
            }
    };
    fetch(0);
#pragma unroll 1
    for (int start = 0; start < length; start += TILE) {
        float now_u[TILE], now_v[TILE];
#pragma unroll
        for (int j = 0; j < TILE; j++) now_u[j] = next_u[j], now_v[j] = next_v[j];
        fetch(start + TILE);
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            const int step = start + j;
            if (step >= length) break;
            if (step == first) __syncthreads();
            const int token = token_of(step);
            const float v = now_v[j], d = v > 20.0f ? v : log1pf(expf(v)), du = d * now_u[j];
            const float s = d * 1.44269504088896f;
            const float4* bc = (const float4*)(dbc + (size_t)token * ROW);
            float y = skip * now_u[j], y2 = 0.0f;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float4 b = bc[k], cc = bc[k + 4];
                h[4 * k] = fmaf(ex2(s * A[4 * k]), h[4 * k], du * b.x);
                h[4 * k + 1] = fmaf(ex2(s * A[4 * k + 1]), h[4 * k + 1], du * b.y);
                h[4 * k + 2] = fmaf(ex2(s * A[4 * k + 2]), h[4 * k + 2], du * b.z);
                h[4 * k + 3] = fmaf(ex2(s * A[4 * k + 3]), h[4 * k + 3], du * b.w);
                y = fmaf(h[4 * k], cc.x, y), y2 = fmaf(h[4 * k + 1], cc.y, y2);
                y = fmaf(h[4 * k + 2], cc.z, y), y2 = fmaf(h[4 * k + 3], cc.w, y2);
            }
            y += y2;
            float* to = out + (size_t)token * INNER;
            if (step >= first) y = (y + *(volatile float*)to) * silu(xz[(size_t)token * 2 * INNER]);
            *to = y;
        }
    }
    if (first == length) __syncthreads();
}
