// The selective scan of few images: what scan.cu computes, with each walk cut into segments.
//
// One image has too few channels to keep the device busy, and its walk of L steps, one behind the other,
// is what a block's time goes to. So a warp takes a segment of a walk, and all of them begin at once, from
// states of zero. A segment's last states e and its sum of steps S tell the next with what states h it
// really begins,
//   h' = 2^(S A) h + e,
// and what that adds to its own steps:
//   y_t += C_t 2^((s_1 + ... + s_t) A) h.
// This costs two thirds more than the walk alone. Every sum is in float32.
//
// A block is one image's CHANNELS channels, both directions: a warp for each segment of `steps_each`
// steps, a multiple of 8. All of it lies in shared memory. First each lane makes s, s u and the skip's part
// of y of other steps and channels; then SPLIT lanes share a channel and walk.
#include "common.cuh"
#if DTYPE == 0
#include "split.cuh"
#endif

// 8 or 16 bytes global -> shared, zeros where !valid
template <int BYTES>
DEVICE void copy_piece(u32 to, const void* from, bool valid) {
    if constexpr (BYTES == 16)
        copy16(to, from, valid);
    else {
        const int bytes = valid ? 8 : 0;
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes)
                     : "memory");
    }
}

// A segment's shared memory, its steps in the order of the walk; x begins three steps before.
template <int CHANNELS>
struct Segment {
    static constexpr int row = CHANNELS * (int)sizeof(T), piece = row < 16 ? 8 : 16;
    static constexpr int ends = CHANNELS * 17 * 4;  // bytes of the last states and the sum of steps
    int bc, y, pairs, end, s, x, size;  // pairs: of s and s u

    DEVICE Segment(int steps) {
        bc = 0, y = bc + steps * 128, pairs = y + steps * CHANNELS * 4;
        end = pairs + steps * CHANNELS * 8, s = end + ends, x = s + steps * row;
        size = (x + (steps + 3) * row + 15) / 16 * 16;
    }
};

template <int CHANNELS>
DEVICE void segment_scan(const T* xz, const float* bc, T* steps, const float* __restrict__ decay,
                         const float4* __restrict__ taps, const float2* __restrict__ vectors, int length,
                         int steps_each, u16* mixed = nullptr, int mixed_stride = 0) {
    constexpr int SPLIT = 32 / CHANNELS, N = 16 / SPLIT, BATCH = 8, fours = CHANNELS / 4;
    using M = Segment<CHANNELS>;
    const M m(steps_each);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, segments = blockDim.x / 64;
    const int direction = warp / segments, segment = warp % segments;
    const int c0 = blockIdx.x * CHANNELS, first = segment * steps_each;
    const size_t image = (size_t)blockIdx.y * length;
    char* const own = memory + warp * m.size;

    const auto token_of = [&](int step) { return direction ? length - 1 - step : step; };
    const auto fetch_rows = [&](int to, int begin, int rows, const T* from) {
        constexpr int pieces = M::row / M::piece;
        for (int i = lane; i < rows * pieces; i += 32) {
            const int step = begin + i / pieces, token = token_of(step);
            const bool valid = step >= 0 && step < length;
            const T* const at = from + (image + (valid ? token : 0)) * (2 * INNER) + c0;
            copy_piece<M::piece>(shared_address(own) + to + i * M::piece,
                                 (const char*)at + i % pieces * M::piece, valid);
        }
    };
    fetch_rows(m.x, first - 3, steps_each + 3, xz);
    fetch_rows(m.s, first, steps_each, steps + direction * INNER);
    for (int i = lane; i < steps_each * 8; i += 32) {
        const int step = first + i / 8, token = step < length ? token_of(step) : 0;
        copy16(shared_address(own) + m.bc + i * 16,
               (const char*)(bc + (image + token) * 64 + direction * 32) + i % 8 * 16, step < length);
    }
    commit();

    const int place = lane / SPLIT, part = lane % SPLIT;  // channel, states
    float A[N], h[N];
    load_float<N>(A, decay + (size_t)(direction * INNER + c0 + place) * 16 + part * N);
#pragma unroll
    for (int j = 0; j < N; j++) h[j] = 0.0f;
    float z[2][4];  // of what this thread finishes
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = threadIdx.x + i * blockDim.x, token = at / fours;
        if (token < length)
            load_row<4>(z[i], xz + (image + token) * (2 * INNER) + INNER + c0 + at % fours * 4);
    }
    {
        constexpr int rows = 32 / CHANNELS;
        const int c = lane % CHANNELS, channel = direction * INNER + c0 + c;
        float k[4];
        load_float<4>(k, (const float*)(taps + channel));
        const float2 vector = vectors[channel];
        wait_copies<0>();
        __syncwarp();
        const T* const x_at = (const T*)(own + m.x) + c;
        const T* const s_at = (const T*)(own + m.s) + c;
#pragma unroll 5
        for (int row = lane / CHANNELS; row < steps_each; row += rows) {
            float sum = vector.x;
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum = fmaf(k[i], x_of((const char*)(x_at + (row + i) * CHANNELS)), sum);
            const float u = gate_silu(sum), s = step_of((const char*)(s_at + row * CHANNELS));
            ((float2*)(own + m.pairs))[row * CHANNELS + c] = make_float2(s, s * u);
            ((float*)(own + m.y))[row * CHANNELS + c] = vector.y * u;
        }
        __syncwarp();
    }

    const float2* const pairs_at = (const float2*)(own + m.pairs) + place;
    const float* const bc_at = (const float*)(own + m.bc) + part * N;
    float* const y_at = (float*)(own + m.y) + part * CHANNELS + place;
    float total = 0.0f;
#pragma unroll 1
    for (int step0 = 0; step0 < steps_each; step0 += BATCH) {
        float y[BATCH];
#pragma unroll
        for (int t = 0; t < BATCH; t++) {
            const int row = step0 + t;
            const float2 step = pairs_at[row * CHANNELS];  // s and s u
            float B[N], C[N];
            load_float<N>(B, bc_at + row * 32);
            load_float<N>(C, bc_at + row * 32 + 16);
            total += step.x;
            y[t] = 0.0f;
#pragma unroll
            for (int j = 0; j < N; j++) {
                h[j] = fmaf(ex2(step.x * A[j]), h[j], step.y * B[j]);
                y[t] = fmaf(h[j], C[j], y[t]);
            }
        }
        sum_lanes<SPLIT, BATCH>(y, part);
#pragma unroll
        for (int i = 0; i < BATCH / SPLIT; i++) y_at[(step0 + SPLIT * i) * CHANNELS] += y[i];
    }
    float* const end = (float*)(own + m.end);
    store_float<N>(end + place * 16 + part * N, h);
    if (part == 0) end[CHANNELS * 16 + place] = total;
    __syncthreads();

    if (segment > 0) {
#pragma unroll
        for (int j = 0; j < N; j++) h[j] = 0.0f;
        for (int before = segment; before > 0; before--) {
            const float* const of = (const float*)(own - before * m.size + m.end);
            const float sum = of[CHANNELS * 16 + place];
            float e[N];
            load_float<N>(e, of + place * 16 + part * N);
#pragma unroll
            for (int j = 0; j < N; j++) h[j] = fmaf(ex2(sum * A[j]), h[j], e[j]);
        }
        float since = 0.0f;
#pragma unroll 1
        for (int step0 = 0; step0 < steps_each; step0 += BATCH) {
            float y[BATCH];
#pragma unroll
            for (int t = 0; t < BATCH; t++) {
                const int row = step0 + t;
                since += pairs_at[row * CHANNELS].x;
                float C[N];
                load_float<N>(C, bc_at + row * 32 + 16);
                y[t] = 0.0f;
#pragma unroll
                for (int j = 0; j < N; j++) y[t] = fmaf(ex2(since * A[j]) * h[j], C[j], y[t]);
            }
            sum_lanes<SPLIT, BATCH>(y, part);
#pragma unroll
            for (int i = 0; i < BATCH / SPLIT; i++) y_at[(step0 + SPLIT * i) * CHANNELS] += y[i];
        }
    }
    __syncthreads();

    const auto finish = [&](int i, const float* z) {
        const int token = i / fours, c = i % fours * 4, back = length - 1 - token;
        const auto of = [&](int warp0, int step) {
            const char* const there = memory + (warp0 + step / steps_each) * m.size + m.y;
            return *(const float4*)(there + (step % steps_each * CHANNELS + c) * 4);
        };
        const float4 f = of(0, token), b = of(segments, back);
        const float y[4] = {(f.x + b.x) * gate_silu(z[0]), (f.y + b.y) * gate_silu(z[1]),
                            (f.z + b.z) * gate_silu(z[2]), (f.w + b.w) * gate_silu(z[3])};
#if DTYPE == 0
        store_split<4>(mixed + (image + token) * mixed_stride, c0 + c, y);
#else
        store_row<4>(steps + (image + token) * (2 * INNER) + c0 + c, y);
#endif
    };
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (threadIdx.x + i * blockDim.x < length * fours) finish(threadIdx.x + i * blockDim.x, z[i]);
}

#if DTYPE == 0
#define SEGMENT_SCAN_KERNEL(CHANNELS)                                                                  \
    extern "C" __global__ void __launch_bounds__(512)                                                 \
        segment_scan_##CHANNELS(const float* xz, const float* bc, float* steps, u16* mixed,           \
                                const float* decay, const float4* taps, const float2* vectors,        \
                                int length, int steps_each, int mixed_stride) {                       \
        segment_scan<CHANNELS>(xz, bc, steps, decay, taps, vectors, length, steps_each, mixed,        \
                               mixed_stride);                                                         \
    }
#else
#define SEGMENT_SCAN_KERNEL(CHANNELS)                                                                  \
    extern "C" __global__ void __launch_bounds__(512)                                                 \
        segment_scan_##CHANNELS(const u16* xz, const float* bc, u16* steps, const float* decay,       \
                                const float4* taps, const float2* vectors, int length,                \
                                int steps_each) {                                                     \
        segment_scan<CHANNELS>(xz, bc, steps, decay, taps, vectors, length, steps_each);              \
    }
#endif
SEGMENT_SCAN_KERNEL(4)
SEGMENT_SCAN_KERNEL(8)
