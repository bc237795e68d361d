// The selective scan of both directions with skip, gate and average.
//
// (y_forward + y_backward) * silu(z) from x and z in xz (B L, 2E), steps (B L, 2, E) and bc
// (B L, 2, 32) float32; the result replaces steps[:, 0]. Where `only` is no -1, only that token is
// needed: each walk ends with it. In float32 x, z and steps are float32, and the result goes to `mixed`
// as split rows (split.cuh), which may be where x is for warps of 32 channels.
//
// A block is two warps on the same channels of one image: one walks forward, one backward. Each
// leaves its y of the first half of its walk in place of its own step sizes, which it no longer
// needs; they meet at one barrier; in the second half each reads the other's y, adds, gates and
// writes.
//
// A thread holds the states of a channel in registers. A state's step is
//   h = 2^(s A) h + (s u) B, y += h C
// with s in log2 units: four instructions on the FMA pipe and one on the special-function unit,
// which takes eight issue slots and is the limit. To keep it busy the exponentials of the next
// four states are issued while four are updated, across the steps. x, s, B and C arrive in shared
// memory TILE steps at a time, two tiles ahead.
#include "common.cuh"
#if DTYPE == 0
#include "split.cuh"
#endif

DEVICE float low_f16(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(d) : "r"(v));
    return d;
}
// x, step sizes and gates as they lie in memory, and what is computed from them
#if DTYPE == 0
DEVICE float x_of(const char* from) { return *(const float*)from; }
DEVICE float step_of(const char* from) { return *(const float*)from; }
DEVICE float gate_silu(float v) {
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(1.0f + ex2(-1.44269504088896f * v)));
    return v * d;
}
#else
DEVICE float x_of(const char* from) { return low(*(const u16*)from); }
DEVICE float step_of(const char* from) { return low_f16(*(const u16*)from); }
DEVICE float gate_silu(float v) { return silu_of_half(v); }
#endif
// y[i], of step i of every lane of a channel's SPLIT, summed over these: y[i] is then of step
// SPLIT i + part.
template <int SPLIT, int STEPS>
DEVICE void sum_lanes(float* y, int part) {
#pragma unroll
    for (int m = 1, count = STEPS; m < SPLIT; m *= 2, count /= 2)
#pragma unroll
        for (int i = 0; i < count / 2; i++) {
            const bool odd = part & m;
            const float sent = odd ? y[2 * i] : y[2 * i + 1];
            const float kept = odd ? y[2 * i + 1] : y[2 * i];
            y[i] = kept + __shfl_xor_sync(0xffffffffu, sent, m);
        }
}

// A warp's walk over an image: its channels, and the tiles' way into its shared memory and back.
template <int CHANNELS, int TILE>
struct Walk {
    // bytes: three tiles of x, s, B and C; two of z and the other direction's y
    static constexpr int size = sizeof(T), row = size * CHANNELS, s = TILE * row, bc = 2 * TILE * row;
    static constexpr int data_size = bc + TILE * 128, gates = 3 * data_size, other = TILE * row;
    static constexpr int gate_size = 2 * TILE * row, warp_size = gates + 2 * gate_size;
    static constexpr int chunks = row / 16, parts = TILE * chunks;  // of 16 bytes, to be copied
    static constexpr int lanes = parts < 32 ? parts : 32, rounds = parts / lanes;
    static constexpr int lane_rows = lanes / chunks;  // that are copied at once
    static_assert(parts == lanes * rounds && TILE % 4 == 0);

    int length, direction, lane, c0, sign, tiles, first, enough;
    // Where this lane copies from next, and its row there; walking, they rise or fall by a tile.
    // B and C go by rows as they lie in memory.
    const char *x_from, *s_from, *bc_from, *z_from, *other_from;
    int token, bc_token, gate_token;
    ptrdiff_t step;  // of a tile, in bytes of xz or steps
    u32 now, before, end, bc_to, gate, both_gates;
#if DTYPE == 0
    char* mixed_to;  // where this lane's part of token 0's result goes
    int mixed_row;   // bytes
#endif

    DEVICE Walk(const T* xz, const float* all_bc, T* steps, int L, int only) {
        length = L, direction = threadIdx.x / 32, lane = threadIdx.x % 32;
        c0 = blockIdx.x * CHANNELS, sign = direction ? -1 : 1;
        tiles = (length + TILE - 1) / TILE;
        first = direction ? tiles / 2 : tiles - tiles / 2;  // tiles of the first half
        const int last = TILE * tiles - 1, walked = direction ? last - only : only;
        enough = only < 0 ? tiles : walked / TILE + 1;
        const u32 base = shared_address(memory) + direction * warp_size;
        now = base, before = base + 2 * data_size, end = base + 3 * data_size;
        gate = base + gates + (first & 1) * gate_size, both_gates = 2 * (base + gates) + gate_size;

        const size_t image = (size_t)blockIdx.y * length;
        const auto part = [&](const T* from, int at, int column) {  // may lie outside the image
            const ptrdiff_t to = ((ptrdiff_t)image + at) * (2 * INNER) + column;
            return (const char*)(from + to + c0 + lane % chunks * (16 / size));
        };
        token = (direction ? last : 0) + sign * (lane / chunks), step = sign * TILE * (2 * size * INNER);
        x_from = part(xz, token, 0), s_from = part(steps, token, direction * INNER);
        gate_token = token + sign * TILE * first;
        z_from = part(xz, gate_token, INNER);
        other_from = part(steps, gate_token, (1 - direction) * INNER);
        const int bc_row = lane / 8;  // and each fourth after it
        bc_token = (direction ? last + 1 - TILE : 0) + bc_row;
        bc_from = (const char*)all_bc + ((ptrdiff_t)image + bc_token) * 256 + direction * 128 +
                  lane % 8 * 16;
        bc_to = bc + (direction ? TILE - 1 - bc_row : bc_row) * 128 + lane % 8 * 16;
    }
    DEVICE void start() {
        fetch(now);
        commit();
        fetch(now + data_size);
        commit();
        wait_copies<1>();
        __syncwarp();
    }
    // Copies of rows after the last token read nothing and leave zeros.
    DEVICE void fetch(u32 to) {
        const bool valid = (u32)token < (u32)length;
        if (lanes == 32 || lane < lanes) {
            copy16(to + lane * 16, x_from, valid);
            copy16(to + lane * 16 + s, s_from, valid);
#pragma unroll
            for (int i = 1; i < rounds; i++) {
                const bool inside = (u32)(token + i * sign * lane_rows) < (u32)length;
                copy16(to + (i * lanes + lane) * 16, x_from + i * step / rounds, inside);
                copy16(to + (i * lanes + lane) * 16 + s, s_from + i * step / rounds, inside);
            }
        }
        to += bc_to;
#pragma unroll
        for (int i = 0; i < TILE / 4; i++, to += sign * 512)
            copy16(to, bc_from + i * 1024, (u32)(bc_token + 4 * i) < (u32)length);
        token += sign * TILE, x_from += step, s_from += step;
        bc_token += sign * TILE, bc_from += sign * TILE * 256;
    }
    // z and the other direction's y of the next tile of the second half
    DEVICE void fetch_gate(u32 to) {
        const bool valid = (u32)gate_token < (u32)length;
        if (lanes == 32 || lane < lanes) {
            copy16(to + lane * 16, z_from, valid);
            copy16(to + lane * 16 + other, other_from, valid);
#pragma unroll
            for (int i = 1; i < rounds; i++) {
                const bool inside = (u32)(gate_token + i * sign * lane_rows) < (u32)length;
                copy16(to + (i * lanes + lane) * 16, z_from + i * step / rounds, inside);
                copy16(to + (i * lanes + lane) * 16 + other, other_from + i * step / rounds, inside);
            }
        }
        gate_token += sign * TILE, z_from += step, other_from += step;
    }
    // At a tile's start: the next is there, its next on the way.
    DEVICE void turn(bool gated) {
        __syncwarp();
        fetch(before);
        if (gated) fetch_gate(both_gates - gate);
        commit();
        wait_copies<1>();
        __syncwarp();
    }
    // At its end: y, which lies in place of x, goes to `steps`, the result into the forward half.
    DEVICE void leave(bool gated) {
        __syncwarp();
#if DTYPE == 0
#pragma unroll
        for (int i = 0; i < rounds; i++) {
            const int at = token + sign * (i * lane_rows - 3 * TILE);
            if ((u32)at >= (u32)length) continue;
            u32 y[4];
            load_shared<16>(y, now + (i * lanes + lane) * 16);
            const char* const own = s_from - 3 * step + i * step / rounds;
            store_global<16>(gated ? mixed_to + (ptrdiff_t)at * mixed_row : (char*)own, y);
        }
#else
        const bool valid = (u32)(token - 3 * sign * TILE) < (u32)length;
        if (valid && (lanes == 32 || lane < lanes)) {
            u32 y[4];
            load_shared<16>(y, now + lane * 16);
            const ptrdiff_t back = 3 * step + (gated ? direction * (2 * INNER) : 0);
            store_global<16>((void*)(s_from - back), y);
        }
#endif
        before = now, now += data_size;
        if (now == end) now -= 3 * data_size;
        if (gated) gate = both_gates - gate;
    }
    template <class Steps>
    DEVICE void run(Steps& steps_of) {
#pragma unroll 1
        for (int tile = 0; tile < first; tile++) {
            turn(false);
            steps_of(No());
            leave(false);
        }
        __syncthreads();
        fetch_gate(gate);
        commit();
#pragma unroll 1
        for (int tile = first; tile < enough; tile++) {
            turn(true);
            steps_of(Yes());
            leave(true);
        }
    }
};

// A batch of steps is taken together, so that all but the recurrence itself, one FMA a step, is
// independent work. Where there are few warps, SPLIT lanes share a channel, and lane `part` of it
// finishes every SPLIT'th step of a batch. Rows beyond the image are zeros, and change no state.
template <int SPLIT, int TILE, int BATCH, int AHEAD>
DEVICE void scan_body(const T* xz, const float* bc, T* steps, const float* __restrict__ decay,
                      const float4* __restrict__ taps, const float2* __restrict__ vectors,
                      int length, int only, u16* mixed = nullptr, int mixed_stride = 0) {
    constexpr int N = 16 / SPLIT;
    using W = Walk<32 / SPLIT, TILE>;
    W walk(xz, bc, steps, length, only);
#if DTYPE == 0
    constexpr int half = W::chunks / 2;  // parts of hi, then as many of lo
    const int own_part = walk.lane % W::chunks;
    walk.mixed_row = 2 * mixed_stride;
    walk.mixed_to = (char*)mixed + (ptrdiff_t)blockIdx.y * length * walk.mixed_row +
                    walk.c0 / 32 * 128 + walk.c0 % 32 * 2 + own_part / half * 64 +
                    own_part % half * 16;
#endif
    const int place = walk.lane / SPLIT, part = walk.lane % SPLIT;  // channel, states
    const int at = walk.direction * INNER + walk.c0 + place;
    float A[N], h[N], k[4];
#pragma unroll
    for (int j = 0; j < N; j += 4) load_float<4>(A + j, decay + (size_t)at * 16 + part * N + j);
#pragma unroll
    for (int j = 0; j < N; j++) h[j] = 0.0f;
    load_float<4>(k, (const float*)(taps + at));
    const float bias = vectors[at].x, skip = part == 0 ? vectors[at].y : 0.0f;
    float tail[3] = {bias, bias, bias};
    walk.start();

    auto steps_of = [&](auto second) {
        constexpr bool gated = decltype(second)::value;
        char* const data = memory + (walk.now - shared_address(memory));
        const char* const gate = memory + (walk.gate - shared_address(memory)) + place * W::size;
#pragma unroll 1
        for (int row0 = 0; row0 < TILE; row0 += BATCH) {
            char* const x_at = data + row0 * W::row + place * W::size;
            const char* const bc_at = data + W::bc + row0 * 128 + part * (N * 4);
            float s[BATCH], su[BATCH], y[BATCH];
#pragma unroll
            for (int t = 0; t < BATCH; t++) {
                s[t] = step_of(x_at + W::s + t * W::row);
                const float x = x_of(x_at + t * W::row);
                const float u = gate_silu(fmaf(k[3], x, tail[0]));
                tail[0] = fmaf(k[2], x, tail[1]);
                tail[1] = fmaf(k[1], x, tail[2]);
                tail[2] = fmaf(k[0], x, bias);
                su[t] = s[t] * u;
                y[t] = skip * u;
            }
            // state i of the batch's N BATCH: step i / N, its state i % N; AHEAD exponentials wait
            auto exponential = [&](int i) { return ex2(s[i / N] * A[i % N]); };
            float e[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) e[i] = exponential(i);
#pragma unroll
            for (int i = 0; i < N * BATCH; i += 4) {
                const int t = i / N, j = i % N;
                float next[4], B[4], C[4];
                load_float<4>(B, (const float*)(bc_at + t * 128) + j);
                load_float<4>(C, (const float*)(bc_at + t * 128 + 64) + j);
#pragma unroll
                for (int m = 0; m < 4; m++)
                    if (i + AHEAD < N * BATCH) next[m] = exponential(i + AHEAD + m);
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    float& state = h[j + m];
                    float& decayed = e[(i + m) % AHEAD];
                    state = fmaf(decayed, state, su[t] * B[m]);
                    y[t] = fmaf(state, C[m], y[t]);
                    decayed = next[m];
                }
            }
            sum_lanes<SPLIT, BATCH>(y, part);
#pragma unroll
            for (int i = 0; i < BATCH / SPLIT && gated; i++) {
                const char* const from = gate + (row0 + SPLIT * i + part) * W::row;
                y[i] = (y[i] + x_of(from + W::other)) * gate_silu(x_of(from));
            }
#if DTYPE == 0
            if (gated) __syncwarp();  // a split number lies where another lane's x was
#pragma unroll
            for (int i = 0; i < BATCH / SPLIT; i++) {
                char* const to = data + (row0 + SPLIT * i + part) * W::row;
                if constexpr (gated) {
                    u32 hi, lo;
                    split_pair(y[i], 0.0f, hi, lo);
                    *(u16*)(to + place * 2) = (u16)hi;
                    *(u16*)(to + W::row / 2 + place * 2) = (u16)lo;
                } else
                    *(float*)(to + place * 4) = y[i];
            }
#else
#pragma unroll
            for (int i = 0; i < BATCH / SPLIT; i++)
                store_row<1>((u16*)(x_at + (SPLIT * i + part) * W::row), y + i);
#endif
        }
    };
    walk.run(steps_of);
}

#if DTYPE == 0
#define SCAN_KERNEL(CHANNELS, TILE, AHEAD)                                                        \
    extern "C" __global__ void __launch_bounds__(64, 8)                                           \
        scan_##CHANNELS(const float* xz, const float* bc, float* steps, u16* mixed,               \
                        const float* decay, const float4* taps, const float2* vectors,            \
                        int length, int mixed_stride, int only) {                                 \
        scan_body<32 / CHANNELS, TILE, 8, AHEAD>(xz, bc, steps, decay, taps, vectors, length,     \
                                                 only, mixed, mixed_stride);                      \
    }
#else
#define SCAN_KERNEL(CHANNELS, TILE, AHEAD)                                                        \
    extern "C" __global__ void __launch_bounds__(64, 8)                                           \
        scan_##CHANNELS(const u16* xz, const float* bc, u16* steps, const float* decay,           \
                        const float4* taps, const float2* vectors, int length, int only) {        \
        scan_body<32 / CHANNELS, TILE, 8, AHEAD>(xz, bc, steps, decay, taps, vectors, length,     \
                                                 only);                                           \
    }
#endif
SCAN_KERNEL(32, 8, 8)
SCAN_KERNEL(16, 8, 8)
SCAN_KERNEL(8, 16, 4)
