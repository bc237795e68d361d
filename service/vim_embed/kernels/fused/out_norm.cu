// out_proj, residual add and RMS norm in one kernel.
//
// residual (rows, D) += mixed (rows, E) out_proj^T, out = its RMS norm. A cluster owns 128 rows, each
// of its blocks 192 columns; they exchange the sums of squares. Two warpgroups of 64 rows multiply on
// wgmma, while the residual waits in registers and a thread has rows and weights copied ahead.
// Column 8 j + 2 q + r of 16 is the model's 4 q + 2 j + r: a thread's accumulators are adjacent.
#include "common.cuh"
#include "wgmma.cuh"

#define RANKS (DIM / 192)
#define OUT_ROWS 128


struct Out {  // bytes of shared memory
    static constexpr int stages = 4, rows = OUT_ROWS * 128, stage = rows + 192 * 128;
    static constexpr int sums = stages * stage, sums_size = RANKS * OUT_ROWS * 4;  // twice
    static constexpr int full = sums + 2 * sums_size, empty = full + 8 * stages;
    static constexpr int summed = empty + 8 * stages, all = summed + 16;
};

extern "C" __global__ void __cluster_dims__(RANKS, 1, 1) __launch_bounds__(256, 1)
    out_norm(const __grid_constant__ TensorMap mixed, const __grid_constant__ TensorMap weights,
             float* __restrict__ residual, const float* __restrict__ norm, u16* __restrict__ out,
             int rows, float eps) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int rank = blockIdx.x % RANKS, columns = rank * 192, rounds = INNER / 64;
    const int tiles = (rows + OUT_ROWS - 1) / OUT_ROWS, step = gridDim.x / RANKS;
    const int turns = (tiles - 1 - (int)blockIdx.x / RANKS) / step + 1;
    // from the last rows on: the scan wrote them last, they are cached
    auto tile_of = [&](int turn) { return tiles - 1 - (int)blockIdx.x / RANKS - turn * step; };
    const u32 base = shared_address(memory), full = base + Out::full, empty = base + Out::empty;
    if (threadIdx.x == 0) {
        for (int i = 0; i < Out::stages; i++)
            init_barrier(full + 8 * i, 1), init_barrier(empty + 8 * i, OUT_ROWS / 16);
        for (int i = 0; i < 2; i++) init_barrier(base + Out::summed + 8 * i, 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    auto fetch = [&](int i) {  // by one thread; round i of all turns
        if (i >= turns * rounds) return;
        const int slot = i % Out::stages, tile = tile_of(i / rounds), k = i % rounds;
        const u32 to = base + slot * Out::stage, barrier = full + 8 * slot;
        if (i >= Out::stages) wait_barrier(empty + 8 * slot, (i / Out::stages - 1) & 1);
        expect_bytes(barrier, Out::stage);
        copy_tile(to, &mixed, k * 64, tile * OUT_ROWS, barrier);
        copy_tile(to + Out::rows, &weights, k * 64, columns, barrier);
    };
    if (threadIdx.x == 0)
        for (int i = 0; i < Out::stages - 1; i++) fetch(i);
    int slot = 0, phase = 0;
    for (int turn = 0; turn < turns; turn++) {
        const int tile = tile_of(turn);
        const int local = warp * 16 + g;  // and + 8
        float r[2][48], acc[96];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = tile * OUT_ROWS + local + 8 * h;
            const float* from = residual + (size_t)row * DIM + columns + 4 * q;
#pragma unroll
            for (int c = 0; c < 12; c++)
                if (row < rows)
                    load_float<4>(r[h] + 4 * c, from + 16 * c);
                else
                    r[h][4 * c] = r[h][4 * c + 1] = r[h][4 * c + 2] = r[h][4 * c + 3] = 0.0f;
        }
        int before = 0;
#pragma unroll 1
        for (int k = 0; k < rounds; k++) {
            wait_barrier(full + 8 * slot, phase);
            const u32 at = base + slot * Out::stage;
            const unsigned long long a = descriptor(at + warp / 4 * 8192);
            const unsigned long long b = descriptor(at + Out::rows);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_192(acc, a + 2 * i, b + 2 * i, k + i);
            asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" :::
                             "memory");
            if (lane == 0 && k > 0) arrive(empty + 8 * before);
            if (threadIdx.x == 0) fetch(turn * rounds + k + Out::stages - 1);
            before = slot;
            if (++slot == Out::stages) slot = 0, phase ^= 1;
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0) arrive(empty + 8 * before);

        const u32 summed = base + Out::summed + 8 * (turn & 1);
        const u32 sums = Out::sums + (turn & 1) * Out::sums_size;
        if (threadIdx.x == 0) expect_bytes(summed, Out::sums_size);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = tile * OUT_ROWS + local + 8 * h;
            float* const to = residual + (size_t)row * DIM + columns + 4 * q;
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < 12; c++) {
                float* const v = r[h] + 4 * c;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    v[j] += acc[8 * c + 4 * (j / 2) + 2 * h + j % 2];
                    sum = fmaf(v[j], v[j], sum);
                }
                if (row < rows) store_float<4>(to + 16 * c, v);
            }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (q == 0)
#pragma unroll
                for (int i = 0; i < RANKS; i++)
                    asm volatile(
                        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, "
                        "[%2];" ::"r"(in_block(base + sums + (rank * OUT_ROWS + local + 8 * h) * 4, i)),
                        "f"(sum), "r"(in_block(summed, i))
                        : "memory");
        }
        wait_barrier(summed, turn / 2 & 1);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = tile * OUT_ROWS + local + 8 * h;
            if (row >= rows) continue;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < RANKS; i++)
                sum += *(const float*)(memory + sums + (i * OUT_ROWS + local + 8 * h) * 4);
            const float scale = rsqrtf(sum * (1.0f / DIM) + eps);
            u16* const to = out + (size_t)row * DIM + columns + 4 * q;
#pragma unroll
            for (int c = 0; c < 12; c++) {
                float w[4], y[4];
                load_float<4>(w, norm + columns + 16 * c + 4 * q);
#pragma unroll
                for (int j = 0; j < 4; j++) y[j] = r[h][4 * c + j] * scale * w[j];
                store_row<4>(to + 16 * c, y);
            }
        }
    }
}
