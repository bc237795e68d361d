// out_proj, residual add and RMS norm in one kernel.
//
// residual (rows, D) += mixed (rows, E) out_proj^T, out = its RMS norm. A cluster owns 128 rows, each
// of its blocks 192 columns; they exchange the sums of squares. Two warpgroups of 64 rows multiply on
// wgmma, while the residual waits in registers and a thread has rows and weights copied ahead.
// Column 8 j + 2 q + r of 16 is the model's 4 q + 2 j + r: a thread's accumulators are adjacent.
#include "common.cuh"

#define RANKS (DIM / 192)
#define OUT_ROWS 128

// d (64, 192) += a (64, 16) b (192, 16)^T, or = where !add
DEVICE void wgmma_192(float* d, unsigned long long a, unsigned long long b, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32." MMA_TYPE "." MMA_TYPE " {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
        "}, %96, %97, add, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
          "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]),
          "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
          "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]),
          "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
          "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]),
          "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
        : "l"(a), "l"(b), "r"(add));
}
// of rows of 64 elements, 128-byte swizzled
DEVICE unsigned long long descriptor(u32 address) {
    const unsigned long long fixed = 1ull << 62 | 64ull << 32 | 1ull << 16;
    return fixed | (address & 0x3ffff) >> 4;
}
DEVICE u32 in_block(u32 address, u32 rank) {  // the same place of another block of the cluster
    u32 d;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(d) : "r"(address), "r"(rank));
    return d;
}

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
