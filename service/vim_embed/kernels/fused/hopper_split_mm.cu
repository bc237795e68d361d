// The product of split matrices on Hopper's wgmma: what split_mm.cu computes, for many rows.
//
// A block takes tiles of 128 rows and 192 columns, one after the other; two warpgroups of 64 rows each
// multiply, and while one adds its sums of 32 of the inner length in float32, the other has the tensor
// cores. A group of 32, high and low parts, is a box of the copy engine for a and one for b.
//
// Few rows have few tiles. The inner length then goes in parts, to as many blocks as there are: each part
// of a tile is a piece of work of its own and writes a matrix of its own, and sum_parts adds these.
#include "split.cuh"
#include "wgmma.cuh"

struct HopperMm {  // bytes of shared memory
    static constexpr int stages = 5, left = 128 * 128, stage = left + 192 * 128;
    static constexpr int full = stages * stage, empty = full + 8 * stages;
};

// WHOLE: whole tiles of columns, the inner length in one part, and no more factors than `scale`.
template <bool WHOLE>
DEVICE void split_mm_wgmma_body(const TensorMap& a, const TensorMap& b, float* __restrict__ c, int rows,
                                int columns, int groups, int c_stride, float scale, int add,
                                const float* __restrict__ row_scales, const float* __restrict__ bias,
                                int given_parts) {
    using S = HopperMm;
    const int parts = WHOLE ? 1 : given_parts;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int across = (columns + 191) / 192, pieces = (rows + 127) / 128 * across * parts;
    const u32 base = shared_address(memory), full = base + S::full, empty = base + S::empty;
    if (threadIdx.x == 0)
        for (int i = 0; i < S::stages; i++) init_barrier(full + 8 * i, 1), init_barrier(empty + 8 * i, 8);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    // by one thread: what is fetched next
    int next = blockIdx.x, next_slot = 0, next_phase = 1;
    int next_group = next % parts * groups / parts, next_end = (next % parts + 1) * groups / parts;
    auto fetch = [&] {
        if (next >= pieces) return;
        const int next_tile = next / parts;
        const u32 to = base + next_slot * S::stage, barrier = full + 8 * next_slot;
        wait_barrier(empty + 8 * next_slot, next_phase);
        expect_bytes(barrier, S::stage);
        copy_tile(to, &a, next_group * 64, next_tile / across * 128, barrier);
        copy_tile(to + S::left, &b, next_group * 64, next_tile % across * 192, barrier);
        if (++next_slot == S::stages) next_slot = 0, next_phase ^= 1;
        if (++next_group == next_end) {
            next += gridDim.x;
            next_group = next % parts * groups / parts;
            next_end = (next % parts + 1) * groups / parts;
        }
    };
    if (threadIdx.x == 0)
        for (int i = 0; i < S::stages - 1; i++) fetch();
    int slot = 0, phase = 0;
#pragma unroll 1
    for (int piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        const int tile = piece / parts, part = piece % parts;
        const int count = (part + 1) * groups / parts - part * groups / parts;
        float sum[96], acc[96];
#pragma unroll
        for (int i = 0; i < 96; i++) sum[i] = 0.0f;
#pragma unroll 1
        for (int k = 0; k < count; k++) {
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
        const int column = tile % across * 192 + lane % 4 * 2;
        float* const to = c + ((size_t)part * rows + row) * c_stride + column;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (row + 8 * h >= rows) continue;
            float* const own = to + (size_t)h * 8 * c_stride;
            const float factor = !WHOLE && row_scales ? scale * row_scales[row + 8 * h] : scale;
#pragma unroll
            for (int n = 0; n < 24; n++) {
                if (!WHOLE && column + 8 * n >= columns) continue;
                float x = sum[4 * n + 2 * h] * factor, y = sum[4 * n + 2 * h + 1] * factor;
                if (!WHOLE && bias) {
                    const float2 more = *(const float2*)(bias + column + 8 * n);
                    x += more.x, y += more.y;
                }
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

extern "C" __global__ void __launch_bounds__(256, 1)
    split_mm_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c,
                   int rows, int columns, int groups, int c_stride, float scale, int add) {
    split_mm_wgmma_body<true>(a, b, c, rows, columns, groups, c_stride, scale, add, nullptr, nullptr, 1);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    split_mm_wgmma_parts(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c,
                         int rows, int columns, int groups, int c_stride, float scale, int add,
                         const float* row_scales, const float* bias, int parts) {
    split_mm_wgmma_body<false>(a, b, c, rows, columns, groups, c_stride, scale, add, row_scales, bias, parts);
}

// c = scale times the sum of `count` matrices (rows, columns), or c += that; otherwise as split_mm.cu has
// it. The order of the sum is fixed. A thread has four columns.
extern "C" __global__ void __launch_bounds__(256)
    sum_parts(const float* __restrict__ matrices, float* __restrict__ c, int rows, int columns,
              int c_stride, float scale, int add, const float* __restrict__ row_scales,
              const float* __restrict__ bias, int count) {
    const size_t at = ((size_t)blockIdx.x * 256 + threadIdx.x) * 4, size = (size_t)rows * columns;
    if (at >= size) return;
    const int row = at / columns, column = at % columns;
    float* const to = c + (size_t)row * c_stride + column;
    const float* const from = add ? to : bias ? bias + column : nullptr;
    const float factor = row_scales ? scale * row_scales[row] : scale;
    float sum[4], before[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (from) load_float<4>(before, from);
    load_float<4>(sum, matrices + at);
    for (int i = 1; i < count; i++) {
        float more[4];
        load_float<4>(more, matrices + i * size + at);
#pragma unroll
        for (int j = 0; j < 4; j++) sum[j] += more[j];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) sum[j] = fmaf(sum[j], factor, before[j]);
    store_float<4>(to, sum);
}
