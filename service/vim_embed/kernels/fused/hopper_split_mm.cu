// The product of split matrices on Hopper's wgmma: what split_mm.cu computes, for many rows.
//
// A block takes tiles of 128 rows and 192 columns, one after the other; two warpgroups of 64 rows each
// multiply, and while one adds its sums of 32 of the inner length in float32, the other has the tensor
// cores. A group of 32, high and low parts, is a box of the copy engine for a and one for b.
#include "split.cuh"
#include "wgmma.cuh"

struct HopperMm {  // bytes of shared memory
    static constexpr int stages = 5, left = 128 * 128, stage = left + 192 * 128;
    static constexpr int full = stages * stage, empty = full + 8 * stages;
};

extern "C" __global__ void __launch_bounds__(256, 1)
    split_mm_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                   float* __restrict__ c, int rows, int columns, int groups, int c_stride,
                   float scale, int add) {
    using S = HopperMm;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int across = columns / 192, tiles = (rows + 127) / 128 * across;
    const int turns = (tiles - 1 - (int)blockIdx.x) / (int)gridDim.x + 1;
    const u32 base = shared_address(memory), full = base + S::full, empty = base + S::empty;
    if (threadIdx.x == 0)
        for (int i = 0; i < S::stages; i++) init_barrier(full + 8 * i, 1), init_barrier(empty + 8 * i, 8);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    // by one thread: what is fetched next
    int next = 0, next_group = 0, next_tile = blockIdx.x, next_slot = 0, next_phase = 1;
    auto fetch = [&] {
        if (next++ >= turns * groups) return;
        const u32 to = base + next_slot * S::stage, barrier = full + 8 * next_slot;
        wait_barrier(empty + 8 * next_slot, next_phase);
        expect_bytes(barrier, S::stage);
        copy_tile(to, &a, next_group * 64, next_tile / across * 128, barrier);
        copy_tile(to + S::left, &b, next_group * 64, next_tile % across * 192, barrier);
        if (++next_slot == S::stages) next_slot = 0, next_phase ^= 1;
        if (++next_group == groups) next_group = 0, next_tile += gridDim.x;
    };
    if (threadIdx.x == 0)
        for (int i = 0; i < S::stages - 1; i++) fetch();
    int slot = 0, phase = 0;
#pragma unroll 1
    for (int turn = 0; turn < turns; turn++) {
        const int tile = blockIdx.x + turn * gridDim.x;
        float sum[96], acc[96];
#pragma unroll
        for (int i = 0; i < 96; i++) sum[i] = 0.0f;
#pragma unroll 1
        for (int k = 0; k < groups; k++) {
            wait_barrier(full + 8 * slot, phase);
            const u32 at = base + slot * S::stage;
            const unsigned long long left = descriptor(at + warp / 4 * 8192);
            const unsigned long long right = descriptor(at + S::left);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int s = 0; s < 4; s += 2) {  // high parts at s, low ones at s + 4
                wgmma_192(acc, left + s + 4, right + s, s);
                wgmma_192(acc, left + s, right + s + 4, 1);
                wgmma_192(acc, left + s, right + s, 1);
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            if (threadIdx.x == 0) fetch();
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (lane == 0) arrive(empty + 8 * slot);
#pragma unroll
            for (int i = 0; i < 96; i++) sum[i] += acc[i];
            if (++slot == S::stages) slot = 0, phase ^= 1;
        }
        const int row = tile / across * 128 + warp * 16 + lane / 4;
        float* const to = c + (size_t)row * c_stride + tile % across * 192 + lane % 4 * 2;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (row + 8 * h >= rows) continue;
            float* const own = to + (size_t)h * 8 * c_stride;
#pragma unroll
            for (int n = 0; n < 24; n++) {
                const float x = sum[4 * n + 2 * h] * scale, y = sum[4 * n + 2 * h + 1] * scale;
                if (add)  // one addition an element: the order of blocks changes nothing
                    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(own + 8 * n), "f"(x),
                                 "f"(y)
                                 : "memory");
                else
                    *(float2*)(own + 8 * n) = make_float2(x, y);
            }
        }
    }
}
