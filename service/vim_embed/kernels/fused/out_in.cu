// out_proj, residual add, RMS norm and the next block's in_proj in one kernel, for few rows.
//
// residual (rows, D) += mixed (rows, E) out_proj^T, xz (rows, 2E) = its RMS norm in_proj^T. A cluster owns
// 16 rows; each of its blocks has an equal share of the columns of both products, and reads the others'
// columns of the residual in between. A warp has 16 columns at a time; of out_proj, several warps share
// the inner length, and shared memory adds their sums.
// Operands come straight from memory: a lane takes 16 bytes of a row, 8 of 32 numbers of the inner length.
// Their order is free as long as both operands have the same. So is the order of a product's columns:
// column g of the j-th of two products is 4 (g / 2) + 2 j + g % 2, so that a lane's results are adjacent.
// In float32 operands are split (split.cuh).
#include "common.cuh"
#include "tensor_cores.cuh"
#if DTYPE == 0
#include "split.cuh"
#endif

struct OutIn {
    static constexpr int blocks = DIM == 192 ? 6 : 8, columns = DIM / blocks, threads = 8 * columns;
    static constexpr int warps = threads / 32, groups = columns / 16, shares = warps / groups;
    static constexpr int terms = DTYPE == 0 ? 2 : 1, resident = DIM == 192 && terms == 1 ? 2 : 1;
    // groups of 32 of the inner length: of a warp, and of those that are in registers at once
    static constexpr int out_chunks = INNER / 32 / shares, in_chunks = DIM / 32;
    static constexpr int out_part = terms == 1 ? out_chunks : 3;
    static constexpr int in_part = terms == 1 || DIM == 192 ? in_chunks : 3, in_parts = in_chunks / in_part;
    // numbers of a row in shared memory: where lanes of two rows meet, these lie in different banks
    static constexpr int sum_row = columns % 32 ? columns : columns + 16, normed_row = DIM * terms + 32;
    static_assert(16 * warps * blocks == 2 * INNER && 16 * groups == columns && shares * groups == warps);
    static_assert(out_chunks % out_part == 0 && in_chunks % in_part == 0);
};

// Of two rows, 8 numbers of each: of the operand's rows g and g + 8, or of a warp's two columns g.
struct Pieces {
    uint4 of[2][OutIn::terms];
};
DEVICE uint4 load_weights(const u16* from) {
    uint4 d;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
                 : "l"(from));
    return d;
}
DEVICE void load_columns(Pieces& d, const u16* first, const u16* second) {
#pragma unroll
    for (int t = 0; t < OutIn::terms; t++)
        d.of[0][t] = load_weights(first + 32 * t), d.of[1][t] = load_weights(second + 32 * t);
}
DEVICE void load_rows(Pieces& d, const u16* first, const u16* second) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int t = 0; t < OutIn::terms; t++) {
        d.of[0][t] = first ? *(const uint4*)(first + 32 * t) : zero;
        d.of[1][t] = second ? *(const uint4*)(second + 32 * t) : zero;
    }
}
// 16 rows by twice 8 columns; in half precision as two sums, which do not wait for each other
struct Sums {
    float of[2][OutIn::terms == 1 ? 2 : 1][4] = {};

    // over 32 more of the inner length
    DEVICE void add(const Pieces& rows, const Pieces& columns) {
        const auto product = [&](float* even, float* odd, int j, int row_term, int column_term) {
            const uint4 a = rows.of[0][row_term], b = rows.of[1][row_term], w = columns.of[j][column_term];
            const u32 low[4] = {a.x, b.x, a.y, b.y}, high[4] = {a.z, b.z, a.w, b.w};
            mma_k16(even, low, w.x, w.y, even);
            mma_k16(odd, high, w.z, w.w, odd);
        };
#pragma unroll
        for (int j = 0; j < 2; j++)
            if constexpr (OutIn::terms == 1)
                product(of[j][0], of[j][1], j, 0, 0);
            else {
                float sum[4] = {};
                product(sum, sum, j, 1, 0), product(sum, sum, j, 0, 1), product(sum, sum, j, 0, 0);
#pragma unroll
                for (int i = 0; i < 4; i++) of[j][0][i] += sum[i];
            }
    }
    // a lane's four adjacent columns of row g + 8 h
    DEVICE void row(float* d, int h, float factor) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const auto& own = of[i / 2];
            float sum = own[0][2 * h + i % 2];
            if constexpr (OutIn::terms == 1) sum += own[1][2 * h + i % 2];
            d[i] = sum * factor;
        }
    }
};

extern "C" __global__ void __cluster_dims__(OutIn::blocks, 1, 1)
    __launch_bounds__(OutIn::threads, OutIn::resident)
        out_in(const u16* mixed, const u16* __restrict__ w_out, float* residual,
               const float* __restrict__ norm, const u16* __restrict__ w_in, T* xz, int rows,
               int mixed_stride, float out_scale, float in_scale, float eps) {
    using S = OutIn;
    __shared__ __align__(16) float sums[S::shares * 16 * S::sum_row], stream[16 * S::columns];
    __shared__ __align__(16) u16 normed[16 * S::normed_row];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int rank = blockIdx.x % S::blocks, row0 = blockIdx.x / S::blocks * 16;
    const int group = warp % S::groups, share = warp / S::groups;
    constexpr int step = 32 * S::terms;  // memory of 32 of the inner length
    const int column = g / 2 * 4 + g % 2;  // of the first of two products; the second's is 2 further

    // the two numbers of the residual that this thread adds to
    const int own_row = threadIdx.x / (S::columns / 2), own_column = threadIdx.x % (S::columns / 2) * 2;
    float2* const own =
        (float2*)(residual + (size_t)(row0 + own_row) * DIM + rank * S::columns + own_column);
    const bool valid = row0 + own_row < rows;
    float2 v = valid ? *own : make_float2(0.0f, 0.0f);
    float2 weights[DIM / 64];
#pragma unroll
    for (int k = 0; k < DIM / 64; k++) weights[k] = ((const float2*)norm)[k * 32 + lane];

    Sums out;
    {
#if WGMMA && DTYPE != 0
        const int first_row = g, second_row = 8 + g;  // in the order of `out_norm`
#else
        const int first_row = column, second_row = column + 2;
#endif
        const int begin = share * S::out_chunks * step + 8 * q;
        const u16* const of = w_out + (size_t)(rank * S::columns + group * 16) * INNER * S::terms + begin;
        const u16* const first = of + first_row * INNER * S::terms;
        const u16* const second = of + second_row * INNER * S::terms;
        const auto row_at = [&](int row) {
            return row < rows ? mixed + (size_t)row * mixed_stride + begin : nullptr;
        };
        const u16 *const upper = row_at(row0 + g), *const lower = row_at(row0 + g + 8);
#pragma unroll
        for (int part = 0; part < S::out_chunks; part += S::out_part) {
            Pieces columns[S::out_part], rows_of[S::out_part];
#pragma unroll
            for (int k = 0; k < S::out_part; k++) {
                const int at = (part + k) * step;
                load_columns(columns[k], first + at, second + at);
                load_rows(rows_of[k], upper ? upper + at : nullptr, lower ? lower + at : nullptr);
            }
#pragma unroll
            for (int k = 0; k < S::out_part; k++) out.add(rows_of[k], columns[k]);
        }
    }
    // in_proj's first weights travel meanwhile
    const int in_column = rank * (2 * INNER / S::blocks) + warp * 16;
    const u16* const w_from = w_in + (size_t)(in_column + column) * DIM * S::terms + 8 * q;
    Pieces w[S::in_parts > 1 ? 2 : 1][S::in_part];
    const auto load_part = [&](int part) {
#pragma unroll
        for (int k = 0; k < S::in_part; k++) {
            const u16* const from = w_from + (part * S::in_part + k) * step;
            load_columns(w[part % 2][k], from, from + 2 * DIM * S::terms);
        }
    };
    load_part(0);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float d[4];
        out.row(d, h, out_scale);
        store_float<4>(sums + (share * 16 + g + 8 * h) * S::sum_row + group * 16 + 4 * q, d);
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < S::shares; s++) {
        const float2 sum = *(const float2*)(sums + (s * 16 + own_row) * S::sum_row + own_column);
        v.x += sum.x, v.y += sum.y;
    }
    if (valid) *own = v;
    *(float2*)(stream + own_row * S::columns + own_column) = v;
    cluster_arrive();
    cluster_wait();

    const u32 stream_at = shared_address(stream);
    for (int row = warp; row < 16; row += S::warps) {
        float2 r[DIM / 64];
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < DIM / 64; k++) {
            const int at = (k * 32 + lane) * 2;
            r[k] = load_pair_in_block(stream_at + (row * S::columns + at % S::columns) * 4, at / S::columns);
            sum = fmaf(r[k].x, r[k].x, fmaf(r[k].y, r[k].y, sum));
        }
#pragma unroll
        for (int m = 16; m > 0; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
        const float scale = rsqrtf(sum * (1.0f / DIM) + eps);
        u16* const to = normed + row * S::normed_row;
#pragma unroll
        for (int k = 0; k < DIM / 64; k++) {
            const int at = (k * 32 + lane) * 2;
            const float y[2] = {r[k].x * scale * weights[k].x, r[k].y * scale * weights[k].y};
#if DTYPE == 0
            store_split<2>(to, at, y);
#else
            store_row<2>(to + at, y);
#endif
        }
    }
    cluster_arrive();  // the others' shared memory has been read
    __syncthreads();
    Sums in;
    const u16* const from = normed + g * S::normed_row + 8 * q;
#pragma unroll
    for (int part = 0; part < S::in_parts; part++) {
        if (part + 1 < S::in_parts) load_part(part + 1);
#pragma unroll
        for (int k = 0; k < S::in_part; k++) {
            Pieces rows_of;
            const int at = (part * S::in_part + k) * step;
            load_rows(rows_of, from + at, from + 8 * S::normed_row + at);
            in.add(rows_of, w[part % 2][k]);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = row0 + g + 8 * h;
        float d[4];
        in.row(d, h, in_scale);
        if (row < rows) store_row<4>(xz + (size_t)row * 2 * INNER + in_column + 4 * q, d);
    }
    cluster_wait();
}
