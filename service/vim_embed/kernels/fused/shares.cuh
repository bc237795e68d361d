// How the warps and blocks that share a row of `xproj` add what each has of its channels.
#pragma once
#include "common.cuh"

#define NT (ROW / 8)
#define SUM_ROW (ROW + 2)
#define RANK_ROW (16 * KR + 8)

// Sums in shared memory, `all` (SPLITS, direction, ROWS, SUM_ROW), of this block's warps; of a cluster,
// those of its other blocks are added as well. Step sizes' ranks go to leave(sum, place), place in
// (direction, ROWS, RANK_ROW), B and C of the block's rows from v0 on to bc. By all threads; a block of a
// cluster must wait for it (cluster_wait) before it ends, since others read its sums.
template <int ROWS, int SPLITS, int BLOCKS, int THREADS, class Leave>
DEVICE void add_shares(float* all, int v0, int rows, int rank, float* bc, Leave leave_ranks) {
    auto sum_up = [&](auto part_of, int parts, auto take) {
        for (int i = threadIdx.x; i < ROWS * ROW; i += THREADS) {
            const int pair = i % (ROW / 2) * 2, d = i / (ROW / 2) % 2, r = i / ROW;
            float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
            for (int s = 0; s < parts; s++) {
                const float2 part = part_of(s, (d * ROWS + r) * SUM_ROW + pair);
                sum.x += part.x, sum.y += part.y;
            }
            take(sum, d, r, pair);
        }
    };
    auto of_split = [&](int s, int at) {
        return *(const float2*)(all + s * 2 * ROWS * SUM_ROW + at);
    };
    auto leave = [&](float2 sum, int d, int r, int pair) {
        const int row = v0 + r;
        if (pair < RP)
            leave_ranks(sum, (d * ROWS + r) * RANK_ROW + pair);
        else if (row < rows && rank == 0)
            *(float2*)(bc + ((size_t)row * 2 + d) * 32 + pair - RP) = sum;
    };
    if constexpr (BLOCKS == 1)
        sum_up(of_split, SPLITS, leave);
#if BULK
    else {
        float* const mine = all + SPLITS * 2 * ROWS * SUM_ROW;
        sum_up(of_split, SPLITS, [&](float2 sum, int d, int r, int pair) {
            *(float2*)(mine + (d * ROWS + r) * SUM_ROW + pair) = sum;
        });
        cluster_arrive();
        cluster_wait();
        const u32 sums_at = shared_address(mine);
        auto of_block = [&](int b, int at) { return load_pair_in_block(sums_at + at * 4, b); };
        sum_up(of_block, BLOCKS, leave);
        cluster_arrive();
    }
#endif
}
