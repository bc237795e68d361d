// Convolution, SiLU, x_proj and dt_proj with softplus, of both directions: for what has no bulk copies,
// compute capability 8.x, and for float32, whose products are split (split.cuh).
//
// It computes what xproj.cu does, whose comment describes the work of a block and the order of rows and
// columns. Differences: copies are asynchronous ones of 16 bytes, of 32 channels at a time; where
// several warps share a row, each alone needs its weights and takes them from global memory; so does
// dt_proj. In float32 steps are float32, and `scales` undo those of the weights.
#include "common.cuh"
#include "shares.cuh"
#include "tensor_cores.cuh"
#if DTYPE == 0
#include "split.cuh"
#else
#include "taps.cuh"
#endif

#if DTYPE == 0
#define TERMS 2  // numbers that stand for one in a product
// log2(1 + 2^v), relative error below 2e-7: log2(1 + t) / t fitted on [0, 1]
DEVICE float softplus2_exact(float v) {
    const float t = ex2(-fabsf(v));
    float p = fmaf(t, 0.00754908845f, -0.042566698f);
    p = fmaf(t, p, 0.112855621f);
    p = fmaf(t, p, -0.197118506f);
    p = fmaf(t, p, 0.275641203f);
    p = fmaf(t, p, -0.358408421f);
    p = fmaf(t, p, 0.480692953f);
    p = fmaf(t, p, -0.721340179f);
    p = fmaf(t, p, 1.44269502f);
    return fmaf(t, p, fmaxf(v, 0.0f));
}
DEVICE float silu_exact(float v) {
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(1.0f + ex2(-1.44269504088896f * v)));
    return v * d;
}
#else
#define TERMS 1
#endif

template <int MT, int HALVES, int SPLITS>
struct Stage {  // bytes
    static constexpr int rows = 16 * MT * HALVES, x_rows = rows + 6;
    static constexpr int row = 32 * sizeof(T), parts = row / 16;  // of x
    static constexpr int wide = DTYPE == 1 ? 2 : 4;               // of a tap
    static constexpr int taps = NT * 512 * TERMS, bias = taps + 128 * wide, chunk = bias + 32 * wide;
    static constexpr int x = x_rows * row;
    static constexpr int box = x + (SPLITS == 1 ? 2 * chunk : 0), all = SPLITS * box;
    static constexpr int dt_bias = KR * 1024 * TERMS, dt = dt_bias + 256;  // dt_proj of 32 channels
    // Where a row's 16-byte part lies: the eight lanes that read at once meet in no bank.
    static DEVICE int place(int r, int part) {
        const int odd = r / (2 * MT) & 1;
        if (TERMS == 2) return r * row + (part ^ odd) * 16;
        return r / 2 * 128 + ((r ^ odd) & 1) * 64 + part * 16;
    }
    static_assert(x % 32 == 0 && chunk % 32 == 0);
};

template <int MT, int HALVES, int SPLITS, int BLOCKS = 1>
DEVICE void xproj_body(const T* __restrict__ xz, const char* __restrict__ weights,
                       const char* __restrict__ dt_weights, float* __restrict__ bc,
                       T* __restrict__ steps, int length, int rows, int only, float x_scale,
                       float dt_scale) {
    using S = Stage<MT, HALVES, SPLITS>;
    constexpr int threads = 64 * HALVES * SPLITS, own_rows = 16 * MT, STAGES = 2;
    constexpr int rounds = INNER / 32 / SPLITS / BLOCKS, chunks = rounds;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int direction = warp & 1, half = (warp >> 1) % HALVES, split = warp / (2 * HALVES);
    const int rank = BLOCKS > 1 ? blockIdx.x % BLOCKS : 0;  // in the cluster
    // what in_proj wrote last is cached
    const int v0 = (gridDim.x / BLOCKS - 1 - blockIdx.x / BLOCKS) * S::rows;
    const u32 stages = shared_address(memory);

    auto fetch = [&](int round) {
        if (round < rounds) {
            const u32 to = stages + round % STAGES * S::all;
            for (int i = threadIdx.x; i < SPLITS * S::x_rows * S::parts; i += threads) {
                const int part = i % S::parts, r = i / S::parts % S::x_rows;
                const int own = i / (S::parts * S::x_rows), row = v0 - 3 + r;
                const T* from = xz + (ptrdiff_t)row * (2 * INNER) +
                                ((rank * rounds + round) * SPLITS + own) * 32;
                copy16(to + own * S::box + S::place(r, part), (const char*)from + part * 16,
                       (u32)row < (u32)rows);
            }
            if constexpr (SPLITS == 1) {
                for (int i = threadIdx.x; i < 2 * S::chunk / 16; i += threads) {
                    const int d = i / (S::chunk / 16), at = i % (S::chunk / 16) * 16;
                    copy16(to + S::x + i * 16,
                           weights + (size_t)(d * (INNER / 32) + round) * S::chunk + at, true);
                }
            }
        }
        commit();
    };
    // Steps that this thread's first row, walking, is behind its image's first.
    const int first_row = v0 + half * own_rows + (direction ? own_rows - 1 - 2 * MT * g : 2 * MT * g);
    const int begun = direction ? length - 1 - first_row % length : first_row % length;
    const bool inside = begun >= 3 && begun + 2 * MT <= length;
    const bool edge = __any_sync(0xffffffffu, !inside && first_row < rows + 2 * MT);
    // a walk that ends with `only` needs nothing of what lies behind it
    const int steps_to_only = only < 0 ? length : direction ? length - 1 - only : only;
    const bool needed = __any_sync(0xffffffffu, begun <= steps_to_only || !inside);
    float acc[MT][NT][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[m][n][j] = 0.0f;
    fetch(0);
    const int row0 = half * own_rows + (direction ? own_rows + 5 - 2 * MT * g : 2 * MT * g);
    int x_at[2 * MT + 3];
#pragma unroll
    for (int i = 0; i < 2 * MT + 3; i++)
        x_at[i] = split * S::box + S::place(direction ? row0 - i : row0 + i, q * TERMS);

    // 32 channels: x in shared memory from `x_from` on, weights from `w` on
    auto project = [&](const char* x_from, const char* w) {
        const char* const taps_at = w + S::taps + q * 16;
        const char* const bias_at = w + S::bias + q * 8 * S::wide;
        const char* const w_at = w + lane * 8 * TERMS;
#if DTYPE != 0
        u32 x[2 * MT + 3][4];
#pragma unroll
        for (int r = 0; r < 2 * MT + 3; r++) *(uint4*)x[r] = *(const uint4*)(x_from + x_at[r]);
#endif
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 a[TERMS][MT][4];
#if DTYPE == 0
            float x[2 * MT + 3][4], bias[4];
#pragma unroll
            for (int r = 0; r < 2 * MT + 3; r++)
                *(float4*)x[r] = *(const float4*)(x_from + (x_at[r] ^ (s * 16)));
            *(float4*)bias = *(const float4*)(bias_at + s * 16);
            auto convolve = [&](auto at_edge) {
#pragma unroll
                for (int p = 0; p < 2; p++) {  // channels 4s + 2p, + 1
                    float k[2][4];
#pragma unroll
                    for (int c = 0; c < 2; c++)
                        *(float4*)k[c] = *(const float4*)(taps_at + (4 * s + 2 * p + c) * 64);
#pragma unroll
                    for (int t = 0; t < 2 * MT; t++) {
                        const int since = begun + t - (begun + t >= length ? length : 0);
                        float u[2];
#pragma unroll
                        for (int c = 0; c < 2; c++) {
                            float sum = bias[2 * p + c];
#pragma unroll
                            for (int i = 0; i < 4; i++)
                                if (!decltype(at_edge)::value || since >= 3 - i)
                                    sum = fmaf(k[c][i], x[t + i][2 * p + c], sum);
                            u[c] = silu_exact(sum);
                        }
                        const int j = 2 * p + (t & 1);
                        split_pair(u[0], u[1], a[0][t >> 1][j], a[1][t >> 1][j]);
                    }
                }
            };
#else
            u32 bias[S::wide];
#pragma unroll
            for (int i = 0; i < S::wide; i += 2)
                *(uint2*)(bias + i) = *(const uint2*)(bias_at + s * 4 * S::wide + i * 4);
            auto convolve = [&](auto at_edge) {
#pragma unroll
                for (int p = 0; p < 2; p++) {  // channels 4s + 2p, + 1
                    Taps taps(taps_at, 2 * s + p, bias + p * S::wide / 2);
#pragma unroll
                    for (int t = 0; t < 2 * MT; t++) {
                        const int since = begun + t - (begun + t >= length ? length : 0);
                        taps.start();
#pragma unroll
                        for (int k = 0; k < 4; k++)
                            if (!decltype(at_edge)::value || since >= 3 - k)
                                taps.add(k, x[t + k][2 * s + p]);
                        a[0][t >> 1][2 * p + (t & 1)] = taps.silu();
                    }
                }
            };
#endif
            if (edge)
                convolve(Yes());
            else
                convolve(No());
#pragma unroll
            for (int n = 0; n < NT; n++) {
#if DTYPE == 0
                u32 b[4];
                *(uint4*)b = *(const uint4*)(w_at + (2 * n + s) * 512);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_split(acc[m][n], a[0][m], a[1][m], b);
#else
                const uint2 b = *(const uint2*)(w_at + (2 * n + s) * 256);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_k16(acc[m][n], a[0][m], b.x, b.y, acc[m][n]);
#endif
            }
        }
    };
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        wait_copies<0>();
        __syncthreads();
        fetch(round + 1);
        if (!needed) continue;
        const char* const x_from = memory + round % STAGES * S::all;
        if constexpr (SPLITS == 1)
            project(x_from, x_from + S::x + direction * S::chunk);
        else
            project(x_from, weights + (size_t)(direction * (INNER / 32) +
                                               (rank * rounds + round) * SPLITS + split) *
                                          S::chunk);
    }
#if DTYPE == 0
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[m][n][j] *= x_scale;
#endif

    // The step sizes' ranks of this warp's rows as A operands, and where each row's steps go: B
    // and C leave on the way.
    u32 ranks[TERMS][MT][KR][4];
    T* to[MT][2];
    auto steps_at = [&](int row) -> T* {
        if (row >= rows) return nullptr;
        const int first = (rank * SPLITS + split) * chunks;
        return steps + ((size_t)row * 2 + direction) * INNER + first * 32 + q * 8;
    };
    auto ranks_of = [&](float a, float b, int m, int k, int j) {
#if DTYPE == 0
        split_pair(a, b, ranks[0][m][k][j], ranks[1][m][k][j]);
#else
        ranks[0][m][k][j] = pack(a, b);
#endif
    };
    if constexpr (SPLITS == 1) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int k = 0; k < KR; k++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int n = 2 * k + j / 2;
                    const float* c = acc[m][n < NT ? n : 0] + j % 2 * 2;
                    ranks_of(n < RP / 8 ? c[0] : 0.0f, n < RP / 8 ? c[1] : 0.0f, m, k, j);
                }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int local = 2 * MT * g + 2 * m + h;
                const int row = v0 + half * own_rows + (direction ? own_rows - 1 - local : local);
                to[m][h] = steps_at(row);
                if (row >= rows) continue;
                float* const at = bc + ((size_t)row * 2 + direction) * 32 + 2 * q;
#pragma unroll
                for (int n = RP / 8; n < NT; n++)
                    *(float2*)(at + n * 8 - RP) =
                        make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
            }
        }
    } else {
        __syncthreads();  // the stages become the partial sums: (split, direction, row, SUM_ROW)
        float* const all = (float*)memory;
        float* sums = all + ((split * 2 + direction) * S::rows + half * own_rows) * SUM_ROW;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int local = 2 * MT * g + 2 * m + h;
                    const int row = direction ? own_rows - 1 - local : local;
                    *(float2*)(sums + row * SUM_ROW + n * 8 + 2 * q) =
                        make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                }
        __syncthreads();
        // (direction, row, RANK_ROW) of float32, behind the sums
        float* const shared = all + (SPLITS + (BLOCKS > 1)) * 2 * S::rows * SUM_ROW;
        add_shares<S::rows, SPLITS, BLOCKS, threads>(
            all, v0, rows, rank, bc, [&](float2 sum, int at) { *(float2*)(shared + at) = sum; });
        __syncthreads();
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = half * own_rows + 16 * m + 8 * h + g;
                const float* from = shared + (direction * S::rows + r) * RANK_ROW + 2 * q;
#pragma unroll
                for (int k = 0; k < KR; k++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const bool real = 16 * k + 8 * j < RP;  // others were never written
                        const float2 v = real ? *(const float2*)(from + 16 * k + 8 * j)
                                              : make_float2(0.0f, 0.0f);
                        ranks_of(v.x, v.y, m, k, 2 * j + h);
                    }
                to[m][h] = steps_at(v0 + r);
            }
    }

    // dt_proj, and step sizes of channels 8q .. 8q + 7 of each 32
    const char* from = dt_weights + (size_t)(direction * (INNER / 32) +
                                             (rank * SPLITS + split) * chunks) * S::dt;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks && needed; chunk++, from += S::dt) {
        uint4 w[TERMS][KR][2];
        float bias[4][4];
#pragma unroll
        for (int i = 0; i < TERMS; i++)
#pragma unroll
            for (int k = 0; k < KR; k++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    w[i][k][j] = ((const uint4*)from)[((i * KR + k) * 2 + j) * 32 + lane];
#pragma unroll
        for (int n = 0; n < 4; n++)
            load_float<4>(bias[n], (const float*)(from + S::dt_bias + q * 64 + n * 16));
#pragma unroll
        for (int m = 0; m < MT; m++) {
#if DTYPE == 0
            float out[2][8];
#else
            u32 out[2][4];
#endif
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float v[4];
#if DTYPE == 0
                v[0] = v[1] = v[2] = v[3] = 0.0f;
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    const uint4 hi = w[0][k][n >> 1], lo = w[1][k][n >> 1];
                    const u32 b[4] = {n & 1 ? hi.z : hi.x, n & 1 ? hi.w : hi.y,
                                      n & 1 ? lo.z : lo.x, n & 1 ? lo.w : lo.y};
                    mma_split(v, ranks[0][m][k], ranks[1][m][k], b);
                }
#pragma unroll
                for (int j = 0; j < 4; j++)
                    out[j / 2][2 * n + j % 2] = softplus2_exact(fmaf(v[j], dt_scale, bias[n][j]));
#else
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    const uint4 f = w[0][k][n >> 1];
                    const u32 b0 = n & 1 ? f.z : f.x, b1 = n & 1 ? f.w : f.y;
                    const float* c = k ? v : bias[n];
                    if (RP % 16 && k == KR - 1)
                        mma_k8(v, ranks[0][m][k], b0, c);
                    else
                        mma_k16(v, ranks[0][m][k], b0, b1, c);
                }
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] = softplus2(v[j]);
                out[0][n] = pack_f16(v[0], v[1]);
                out[1][n] = pack_f16(v[2], v[3]);
#endif
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (!to[m][h]) continue;
#pragma unroll
                for (int i = 0; i < TERMS; i++)
                    store_global<16>(to[m][h] + chunk * 32 + i * 4, (const u32*)out[h] + i * 4);
            }
        }
    }
#if BULK
    if constexpr (BLOCKS > 1) cluster_wait();
#endif
}

#define XPROJ_KERNEL(MT, HALVES, SPLITS, BLOCKS)                                                  \
    extern "C" __global__ void __launch_bounds__(64 * HALVES * SPLITS, BLOCKS)                    \
        xproj_##MT##HALVES##SPLITS(const T* xz, const char* weights, const char* dt_weights,      \
                                   float* bc, T* steps, int length, int rows, int only,           \
                                   float x_scale, float dt_scale) {                               \
        xproj_body<MT, HALVES, SPLITS>(xz, weights, dt_weights, bc, steps, length, rows, only,    \
                                       x_scale, dt_scale);                                        \
    }
XPROJ_KERNEL(2, 2, 1, 3)
XPROJ_KERNEL(2, 1, 2, 3)
XPROJ_KERNEL(1, 1, 2, 4)
#if INNER % 128 == 0
XPROJ_KERNEL(1, 1, 4, 2)
#endif
#if BULK
#define XPROJ_CLUSTER_KERNEL(BLOCKS)                                                              \
    extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(256, 2)           \
        xproj_114_##BLOCKS(const T* xz, const char* weights, const char* dt_weights, float* bc,   \
                           T* steps, int length, int rows, int only, float x_scale,               \
                           float dt_scale) {                                                      \
        xproj_body<1, 1, 4, BLOCKS>(xz, weights, dt_weights, bc, steps, length, rows, only,       \
                                    x_scale, dt_scale);                                           \
    }
#if INNER % 384 == 0
XPROJ_CLUSTER_KERNEL(3)
#endif
#if INNER % 768 == 0
XPROJ_CLUSTER_KERNEL(6)
#endif
#endif
