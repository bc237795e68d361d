// Convolution, SiLU, x_proj and dt_proj with softplus, of both directions.
//
// bc (B L, 2, 32) float32 and steps (B L, 2, E) float16 from x, both directions; u never reaches
// memory. steps = log2(1 + 2^v), v = dt_proj.
//
// A block owns 16 MT HALVES of the B L rows: warp (direction, half of the rows, split) sums its
// share of the channels, and shared memory adds the shares. x and the weights of 64 channels are a
// box; boxes come through shared memory by the copy engine, one ahead, and so do dt_proj's weights
// after them if there are no splits. Of several splits, an even one takes a box's first 32 channels
// and the odd one its last.
// A thread holds 2 MT adjacent rows and channels 8q .. 8q+7 of 32: the order of the rows and columns
// of a product is free as long as weights and outputs use the same one. The backward direction
// takes its rows in falling order, so both are causal. Where a warp's rows begin or end an image,
// taps that reach into the neighbour image are left out.
// Then the same warp multiplies its rows' step sizes with dt_proj for its share of channels.
// Where there are few rows, BLOCKS blocks, a cluster, share the channels of 16 of them.
#include "common.cuh"
#include "shares.cuh"
#include "taps.cuh"
#include "tensor_cores.cuh"

template <int MT, int HALVES, int SPLITS>
struct Stage {  // bytes
    static constexpr int rows = 16 * MT * HALVES, x_rows = rows + 6, boxes = (SPLITS + 1) / 2;
    static constexpr int wide = DTYPE == 1 ? 2 : 4;  // bytes of a tap
    static constexpr int taps = NT * 512, bias = taps + 128 * wide;  // of 32 channels, behind weights
    static constexpr int chunk = bias + 32 * wide;
    static constexpr int x = (x_rows * 128 + 1023) / 1024 * 1024;  // the swizzle wants 1 KiB steps
    static constexpr int box = (x + 4 * chunk + 1023) / 1024 * 1024, all = boxes * box;
    static constexpr int dt_bias = KR * 1024, dt = dt_bias + 256;  // dt_proj of 32 channels
    static_assert(4 * dt <= all);
};

template <int MT, int HALVES, int SPLITS, int BLOCKS = 1>
DEVICE void xproj_body(const TensorMap* x_map, const char* __restrict__ weights,
                       const char* __restrict__ dt_weights, float* __restrict__ bc,
                       u16* __restrict__ steps, int length, int rows, int only) {
    using S = Stage<MT, HALVES, SPLITS>;
    constexpr int chunks = INNER / 32 / SPLITS / BLOCKS, threads = 64 * HALVES * SPLITS;
    constexpr int own_rows = 16 * MT, rounds = INNER / 64 / S::boxes / BLOCKS, dt_rounds = SPLITS == 1 ? rounds : 0, STAGES = 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int direction = warp & 1, half = (warp >> 1) % HALVES, split = warp / (2 * HALVES);
    const int rank = BLOCKS > 1 ? blockIdx.x % BLOCKS : 0;  // in the cluster
    // what in_proj wrote last is cached
    const int v0 = (gridDim.x / BLOCKS - 1 - blockIdx.x / BLOCKS) * S::rows;
    const u32 stages = shared_address(memory), barriers = stages + STAGES * S::all;
    if (threadIdx.x < STAGES) init_barrier(barriers + threadIdx.x * 8, 1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    auto fetch = [&](int round, int slot) {
        if (threadIdx.x != 0 || round >= rounds + dt_rounds) return;
        const u32 barrier = barriers + slot * 8;
        if (round >= rounds) {
            expect_bytes(barrier, 4 * S::dt);
#pragma unroll
            for (int d = 0; d < 2; d++)
                bulk_copy(stages + slot * S::all + d * 2 * S::dt,
                          dt_weights + (d * (INNER / 32) + (round - rounds) * 2) * S::dt, 2 * S::dt,
                          barrier);
            return;
        }
        expect_bytes(barrier, S::boxes * (S::x_rows * 128 + 4 * S::chunk));
#pragma unroll
        for (int i = 0; i < S::boxes; i++) {
            const int box = (rank * rounds + round) * S::boxes + i;
            const u32 to = stages + slot * S::all + i * S::box;
            copy_tile(to, x_map, box * 64, v0 - 3, barrier);
#pragma unroll
            for (int d = 0; d < 2; d++)
                bulk_copy(to + S::x + d * 2 * S::chunk,
                          weights + (size_t)(d * (INNER / 32) + box * 2) * S::chunk, 2 * S::chunk,
                          barrier);
        }
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
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) fetch(i, i);
    // where the window's rows lie in the first stage; 16-byte parts are swizzled by the copy engine
    const int row0 = half * own_rows + (direction ? own_rows + 5 - 2 * MT * g : 2 * MT * g);
    const u32 own = stages + split / 2 * S::box, odd = split & 1;
    u32 x_at[2 * MT + 3];
#pragma unroll
    for (int i = 0; i < 2 * MT + 3; i++) {
        const int r = direction ? row0 - i : row0 + i;
        x_at[i] = own + r * 128 + ((4 * odd + q) ^ (r & 7)) * 16;
    }
    const u32 weights_at = own + S::x + (direction * 2 + odd) * S::chunk;
    auto project = [&](u32 stage, int next) {  // 32 channels
        const u32 w_at = weights_at + stage + next * S::chunk + lane * 8;
        const u32 taps_at = weights_at + stage + next * S::chunk + S::taps + q * 16;
        const u32 bias_at = weights_at + stage + next * S::chunk + S::bias + q * 8 * S::wide;
        u32 x[2 * MT + 3][4];
#pragma unroll
        for (int r = 0; r < 2 * MT + 3; r++) load_shared<16>(x[r], (x_at[r] ^ (next * 64)) + stage);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 a[MT][4];
            u32 bias[S::wide];
            load_shared<4 * S::wide>(bias, bias_at + s * 4 * S::wide);
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
                        a[t >> 1][2 * p + (t & 1)] = taps.silu();
                    }
                }
            };
            if (edge)
                convolve(Yes());
            else
                convolve(No());
#pragma unroll
            for (int n = 0; n < NT; n++) {
                u32 w[2];
                load_shared<8>(w, w_at + (2 * n + s) * 256);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_k16(acc[m][n], a[m], w[0], w[1], acc[m][n]);
            }
        }
    };
    constexpr int unroll = rounds % STAGES == 0 ? STAGES : 1;  // then a slot's addresses are constants
#pragma unroll 1
    for (int first = 0; first < rounds; first += unroll)
#pragma unroll
        for (int i = 0; i < unroll; i++) {
            const int round = first + i, slot = unroll == STAGES ? i : round % STAGES;
            wait_barrier(barriers + slot * 8, round / STAGES & 1);
            __syncthreads();
            fetch(round + STAGES - 1, (slot + STAGES - 1) % STAGES);
            if (!needed) continue;
            project(slot * S::all, 0);
            if (SPLITS == 1) project(slot * S::all, 1);
        }

    // The step sizes' ranks of this warp's rows as A operands, and where each row's steps go: B
    // and C leave on the way.
    u32 ranks[MT][KR][4];
    u16* to[MT][2];
    auto steps_at = [&](int row) -> u16* {
        if (row >= rows) return nullptr;
        const int first = (rank * SPLITS + split) * chunks;
        return steps + ((size_t)row * 2 + direction) * INNER + first * 32 + q * 8;
    };
    if constexpr (SPLITS == 1) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int k = 0; k < KR; k++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int n = 2 * k + j / 2;
                    const float* c = acc[m][n] + j % 2 * 2;
                    ranks[m][k][j] = n < RP / 8 ? pack(c[0], c[1]) : 0;
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
        __syncthreads();  // the stages become the partial sums: (split, direction, row, ROW)
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
        u16* const shared =  // (direction, row, RANK_ROW), behind the sums
            (u16*)(all + (SPLITS + (BLOCKS > 1)) * 2 * S::rows * SUM_ROW);
        add_shares<S::rows, SPLITS, BLOCKS, threads>(
            all, v0, rows, rank, bc, [&](float2 sum, int at) { *(u32*)(shared + at) = pack(sum.x, sum.y); });
        __syncthreads();
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = half * own_rows + 16 * m + 8 * h + g;
                const u16* from = shared + (direction * S::rows + r) * RANK_ROW + 2 * q;
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    ranks[m][k][h] = *(const u32*)(from + 16 * k);
                    ranks[m][k][2 + h] = *(const u32*)(from + 16 * k + 8);
                }
                to[m][h] = steps_at(v0 + r);
            }
    }

    // dt_proj of a chunk, and step sizes of its channels 8q .. 8q + 7
    auto load = [&](const char* from, uint4 (*w)[2], float (*bias)[4]) {
#pragma unroll
        for (int k = 0; k < KR; k++)
#pragma unroll
            for (int j = 0; j < 2; j++) w[k][j] = ((const uint4*)from)[(k * 2 + j) * 32 + lane];
#pragma unroll
        for (int n = 0; n < 4; n++)
            load_float<4>(bias[n], (const float*)(from + S::dt_bias + q * 64 + n * 16));
    };
    auto spread = [&](int chunk, const uint4 (*w)[2], const float (*bias)[4]) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
            u32 packed[2][4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float v[4];
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    const uint4 f = w[k][n >> 1];
                    const u32 b0 = n & 1 ? f.z : f.x, b1 = n & 1 ? f.w : f.y;
                    const float* c = k ? v : bias[n];
                    if (RP % 16 && k == KR - 1)
                        mma_k8(v, ranks[m][k], b0, c);
                    else
                        mma_k16(v, ranks[m][k], b0, b1, c);
                }
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] = softplus2(v[j]);
                packed[0][n] = pack_f16(v[0], v[1]);
                packed[1][n] = pack_f16(v[2], v[3]);
            }
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (to[m][h]) store_global<16>(to[m][h] + chunk * 32, packed[h]);
        }
    };
    if constexpr (SPLITS == 1) {
#pragma unroll 1
        for (int i = 0; i < dt_rounds; i++) {
            const int round = rounds + i, slot = round % STAGES;
            wait_barrier(barriers + slot * 8, round / STAGES & 1);
            __syncthreads();
            fetch(round + STAGES - 1, (slot + STAGES - 1) % STAGES);
            if (!needed) continue;
            const char* const own = memory + slot * S::all + direction * 2 * S::dt;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint4 w[KR][2];
                float bias[4][4];
                load(own + half * S::dt, w, bias);
                spread(2 * i + half, w, bias);
            }
        }
    } else {
        const int first = (rank * SPLITS + split) * chunks;
        const char* const own = dt_weights + (direction * (INNER / 32) + first) * S::dt;
        uint4 next[KR][2];
        float next_bias[4][4];
        load(own, next, next_bias);
#pragma unroll 1
        for (int chunk = 0; chunk < chunks && needed; chunk++) {
            uint4 w[KR][2];
            float bias[4][4];
#pragma unroll
            for (int k = 0; k < KR; k++) w[k][0] = next[k][0], w[k][1] = next[k][1];
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) bias[n][j] = next_bias[n][j];
            if (chunk + 1 < chunks) load(own + (chunk + 1) * S::dt, next, next_bias);
            spread(chunk, w, bias);
        }
    }
    if constexpr (BLOCKS > 1) cluster_wait();
}

#define XPROJ_KERNEL(MT, HALVES, SPLITS, BLOCKS)                                                  \
    extern "C" __global__ void __launch_bounds__(64 * HALVES * SPLITS, BLOCKS)                    \
        xproj_##MT##HALVES##SPLITS(                                                               \
            const __grid_constant__ TensorMap x_map, const char* weights, const char* dt_weights, \
            float* bc, u16* steps, int length, int rows, int only) {                              \
        xproj_body<MT, HALVES, SPLITS>(&x_map, weights, dt_weights, bc, steps, length, rows,      \
                                       only);                                                     \
    }
XPROJ_KERNEL(2, 2, 1, 3)
XPROJ_KERNEL(2, 1, 2, 3)
XPROJ_KERNEL(1, 1, 2, 4)
#if INNER % 128 == 0
XPROJ_KERNEL(1, 1, 4, 2)
#endif
#define XPROJ_CLUSTER_KERNEL(BLOCKS)                                                              \
    extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(256, 2)           \
        xproj_114_##BLOCKS(                                                                       \
            const __grid_constant__ TensorMap x_map, const char* weights, const char* dt_weights, \
            float* bc, u16* steps, int length, int rows, int only) {                              \
        xproj_body<1, 1, 4, BLOCKS>(&x_map, weights, dt_weights, bc, steps, length, rows, only);  \
    }
#if INNER % 384 == 0
XPROJ_CLUSTER_KERNEL(3)
#endif
#if INNER % 768 == 0
XPROJ_CLUSTER_KERNEL(6)
#endif
