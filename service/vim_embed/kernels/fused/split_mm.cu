// The product of split matrices: in_proj and out_proj at float32's precision on tensor cores.
//
// c (rows, columns) float32 = scale a b^T, or c += that; a (rows, K) and b (columns, K) split (split.cuh).
// row_scales, bias: of rows and of columns, where they are not null; bias takes the place of c before.
// A block owns a tile of c, a warp MI x NI products of 16 rows and 8 columns; groups of 32 of the inner
// length come through shared memory, their 16-byte parts exchanged so that no two lanes meet in a bank.
// Tensor cores sum 16 HALVES of the inner length before they are added in float32.
// Addresses are stepped, not computed: the compiler keeps what does not change in registers, a hundred of
// them, which leave room for half as many warps.
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
    static constexpr int apart = threads / 8;  // rows between a thread's copies
    static_assert(NI % 2 == 0 && apart % 8 == 0 && rows % apart == 0 && columns % apart == 0);
};

template <int WARPS_M, int WARPS_N, int MI, int NI, int STAGES, int HALVES>
DEVICE void split_mm_body(const u16* __restrict__ a, const u16* __restrict__ b, float* __restrict__ c,
                          int rows, int columns, int groups, int a_stride, int c_stride, float scale,
                          int add, const float* __restrict__ row_scales,
                          const float* __restrict__ bias) {
    using Tile = MmTile<WARPS_M, WARPS_N, MI, NI, STAGES>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int across = (columns + Tile::columns - 1) / Tile::columns;
    const int m0 = blockIdx.x / across * Tile::rows, n0 = blockIdx.x % across * Tile::columns;
    const u32 base = shared_address(memory);

    constexpr int apart = Tile::apart, last = (STAGES - 1) * Tile::stage;
    const int first = threadIdx.x / 8, part = threadIdx.x % 8;
    const u32 own_to = base + first * 128 + (part ^ (first & 7)) * 16;
    const char* a_from = (const char*)(a + (size_t)(m0 + first) * a_stride + part * 8);
    const char* b_from = (const char*)(b + (size_t)(n0 + first) * groups * 64 + part * 8);
    const u32 a_step = apart * 2 * a_stride, b_step = apart * 128 * groups;
    const int a_rows = rows - m0 - first, b_rows = columns - n0 - first;
    u32 to = own_to;
    int waiting = groups;
    auto fetch = [&] {
        if (waiting > 0) {
            const char* from = a_from;
#pragma unroll
            for (int i = 0; i < Tile::rows; i += apart, from += a_step)
                copy16(to + i * 128, from, i < a_rows);
            from = b_from;
#pragma unroll
            for (int i = 0; i < Tile::columns; i += apart, from += b_step)
                copy16(to + (Tile::rows + i) * 128, from, i < b_rows);
            a_from += 128, b_from += 128, waiting--;
            to = to == own_to + last ? own_to : to + Tile::stage;
        }
        commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) fetch();

    float acc[MI][NI][4];
#pragma unroll
    for (int m = 0; m < MI; m++)
#pragma unroll
        for (int n = 0; n < NI; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[m][n][j] = 0.0f;
    const int own_m = warp / WARPS_N * (16 * MI), own_n = warp % WARPS_N * (8 * NI);
    const int turned = lane & 7;
    const u32 a_at = base + (own_m + lane % 16) * 128 + ((lane / 16) ^ turned) * 16;
    const u32 b_at = base + (Tile::rows + own_n + lane % 8 + lane / 16 * 8) * 128 +
                     ((lane / 8 % 2) ^ turned) * 16;
    u32 stage = last;
#pragma unroll 1
    for (int group = 0; group < groups; group++) {
        stage = stage == last ? 0 : stage + Tile::stage;
        wait_copies<STAGES - 2>();
        __syncthreads();
        fetch();
#pragma unroll
        for (int s = 0; s < 2; s += HALVES) {
            u32 hi[HALVES][MI][4], lo[HALVES][MI][4];
#pragma unroll
            for (int i = 0; i < HALVES; i++)
#pragma unroll
                for (int m = 0; m < MI; m++) {
                    const u32 from = (a_at + stage) ^ ((s + i) * 32);
                    load_matrices(hi[i][m], from + m * 2048);
                    load_matrices(lo[i][m], (from ^ 64) + m * 2048);
                }
#pragma unroll
            for (int n = 0; n < NI; n += 2) {
                u32 w[HALVES][2][4];  // of 16 columns: hi of 8, hi, lo, lo
#pragma unroll
                for (int i = 0; i < HALVES; i++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        load_matrices(w[i][h], ((b_at + stage) ^ ((s + i) * 32 + h * 64)) + n * 1024);
#pragma unroll
                for (int k = 0; k < 2; k++)
#pragma unroll
                    for (int m = 0; m < MI; m++) {
                        float t[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                        for (int term = 0; term < 3; term++)  // lo b_hi, hi b_lo, hi b_hi
#pragma unroll
                            for (int i = 0; i < HALVES; i++) {
                                const u32* const own = w[i][term == 1] + 2 * k;
                                mma_k16(t, term ? hi[i][m] : lo[i][m], own[0], own[1], t);
                            }
#pragma unroll
                        for (int j = 0; j < 4; j++) acc[m][n + k][j] += t[j];
                    }
            }
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

#define SPLIT_MM_KERNEL(NAME, WARPS_M, WARPS_N, MI, NI, STAGES, HALVES, BLOCKS)                   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS)                  \
        NAME(const u16* a, const u16* b, float* c, int rows, int columns, int groups,             \
             int a_stride, int c_stride, float scale, int add, const float* row_scales,           \
             const float* bias) {                                                                 \
        split_mm_body<WARPS_M, WARPS_N, MI, NI, STAGES, HALVES>(                                  \
            a, b, c, rows, columns, groups, a_stride, c_stride, scale, add, row_scales, bias);    \
    }
// Mirrored by SPLIT_MM in split_mm.py.
SPLIT_MM_KERNEL(split_mm_96_96, 2, 2, 3, 6, 2, 2, 2)
SPLIT_MM_KERNEL(split_mm_64_64, 2, 2, 2, 4, 2, 1, 4)
SPLIT_MM_KERNEL(split_mm_32_32, 2, 2, 1, 2, 4, 1, 6)
