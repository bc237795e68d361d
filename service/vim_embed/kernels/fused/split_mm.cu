// The product of split matrices: in_proj and out_proj at float32's precision on tensor cores.
//
// c (rows, columns) float32 = scale a b^T, or c += that; a (rows, K) and b (columns, K) split (split.cuh).
// row_scales, bias: of rows and of columns, where they are not null; bias takes the place of c before.
// A block owns a tile of c, a warp MI x NI products of 16 rows and 8 columns; groups of 32 of the inner
// length come through shared memory, their 16-byte parts exchanged so that no two lanes meet in a bank.
#include "split.cuh"

DEVICE void load_matrices(u32* d, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address));
}

template <int WARPS_M, int WARPS_N, int MI, int NI, int STAGES>
struct MmTile {
    static constexpr int rows = 16 * MI * WARPS_M, columns = 8 * NI * WARPS_N;
    static constexpr int threads = 32 * WARPS_M * WARPS_N, stage = (rows + columns) * 128;
    static_assert(NI % 2 == 0 && (rows + columns) * 8 % threads == 0);
};

template <int WARPS_M, int WARPS_N, int MI, int NI, int STAGES>
DEVICE void split_mm_body(const u16* __restrict__ a, const u16* __restrict__ b, float* __restrict__ c,
                          int rows, int columns, int groups, int a_stride, int c_stride, float scale,
                          int add, const float* __restrict__ row_scales,
                          const float* __restrict__ bias) {
    using Tile = MmTile<WARPS_M, WARPS_N, MI, NI, STAGES>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int across = (columns + Tile::columns - 1) / Tile::columns;
    const int m0 = blockIdx.x / across * Tile::rows, n0 = blockIdx.x % across * Tile::columns;
    const u32 base = shared_address(memory);

    auto fetch = [&](int group) {
        if (group < groups) {
            const u32 to = base + group % STAGES * Tile::stage;
#pragma unroll
            for (int i = 0; i < (Tile::rows + Tile::columns) * 8 / Tile::threads; i++) {
                const int at = i * Tile::threads + threadIdx.x, row = at / 8, part = at % 8;
                const bool left = row < Tile::rows;
                const int own = left ? m0 + row : n0 + row - Tile::rows;
                const u16* from = left ? a + (size_t)own * a_stride : b + (size_t)own * groups * 64;
                copy16(to + row * 128 + (part ^ (row & 7)) * 16, from + group * 64 + part * 8,
                       own < (left ? rows : columns));
            }
        }
        commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) fetch(i);

    float acc[MI][NI][4];
#pragma unroll
    for (int m = 0; m < MI; m++)
#pragma unroll
        for (int n = 0; n < NI; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[m][n][j] = 0.0f;
    const int own_m = warp / WARPS_N * (16 * MI), own_n = warp % WARPS_N * (8 * NI);
    const u32 a_row = base + (own_m + lane % 16) * 128;
    const u32 b_row = base + (Tile::rows + own_n + lane % 8 + lane / 16 * 8) * 128;
    const int a_part = lane / 16, b_part = lane / 8 % 2, turned = lane & 7;
#pragma unroll 1
    for (int group = 0; group < groups; group++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        fetch(group + STAGES - 1);
        const u32 stage = group % STAGES * Tile::stage;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 hi[MI][4], lo[MI][4], w[NI][4];  // w: hi, hi, lo, lo
            const int own = 2 * s + a_part;
#pragma unroll
            for (int m = 0; m < MI; m++) {
                load_matrices(hi[m], a_row + stage + m * 2048 + (own ^ turned) * 16);
                load_matrices(lo[m], a_row + stage + m * 2048 + ((own + 4) ^ turned) * 16);
            }
#pragma unroll
            for (int n = 0; n < NI; n += 2)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u32 four[4];
                    load_matrices(four, b_row + stage + n * 1024 +
                                            ((4 * h + 2 * s + b_part) ^ turned) * 16);
                    w[n][2 * h] = four[0], w[n][2 * h + 1] = four[1];
                    w[n + 1][2 * h] = four[2], w[n + 1][2 * h + 1] = four[3];
                }
#pragma unroll
            for (int n = 0; n < NI; n++)
#pragma unroll
                for (int m = 0; m < MI; m++) mma_split(acc[m][n], hi[m], lo[m], w[n]);
        }
    }
#pragma unroll
    for (int m = 0; m < MI; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = m0 + own_m + 16 * m + 8 * h + lane / 4;
            if (row >= rows) continue;
            const int column = n0 + own_n + lane % 4 * 2;
            float* const to = c + (size_t)row * c_stride + column;
            const float* const from = add ? to : bias ? bias + column : nullptr;
            const float factor = row_scales ? scale * row_scales[row] : scale;
            float2 before[NI];  // all on their way at once
#pragma unroll
            for (int n = 0; n < NI; n++) {
                before[n] = make_float2(0.0f, 0.0f);
                if (from && n0 + own_n + 8 * n < columns) before[n] = *(const float2*)(from + 8 * n);
            }
#pragma unroll
            for (int n = 0; n < NI; n++)
                if (n0 + own_n + 8 * n < columns)
                    *(float2*)(to + 8 * n) =
                        make_float2(fmaf(acc[m][n][2 * h], factor, before[n].x),
                                    fmaf(acc[m][n][2 * h + 1], factor, before[n].y));
        }
}

#define SPLIT_MM_KERNEL(NAME, WARPS_M, WARPS_N, MI, NI, STAGES, BLOCKS)                           \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS)                  \
        NAME(const u16* a, const u16* b, float* c, int rows, int columns, int groups,             \
             int a_stride, int c_stride, float scale, int add, const float* row_scales,           \
             const float* bias) {                                                                 \
        split_mm_body<WARPS_M, WARPS_N, MI, NI, STAGES>(a, b, c, rows, columns, groups, a_stride, \
                                                        c_stride, scale, add, row_scales, bias);  \
    }
// Mirrored by SPLIT_MM in split_mm.py.
SPLIT_MM_KERNEL(split_mm_128_64, 2, 2, 4, 4, 2, 2)
SPLIT_MM_KERNEL(split_mm_64_128, 2, 4, 2, 4, 4, 2)
SPLIT_MM_KERNEL(split_mm_64_64, 2, 2, 2, 4, 4, 3)
SPLIT_MM_KERNEL(split_mm_32_32, 2, 2, 1, 2, 6, 4)
