// Vim inference kernels. Compiled by build.py with these macros:
//   DTYPE 0 float32, 1 float16, 2 bfloat16     DIM  model width D
//   INNER inner width E                        RP   step-size rank, rounded up to 8
// All activations are channels-last. Needs compute capability 9.0 (bulk copies).
//
// Names: B images, L tokens, E channels, N = 16 states. A projected row ("dbc") is
// [step RP | B 16 | C 16]. Step sizes are kept in log2 units, s = log2(1 + 2^v) = delta * log2(e),
// so that exp(delta A) = 2^(s A); the packed weights absorb the factor in B.

typedef unsigned int u32;
typedef unsigned short u16;

#define ROW (RP + 32)
#define KR ((RP + 15) / 16)
#define DEVICE __device__ __forceinline__

// ---------------------------------------------------------------- scalars
#if DTYPE == 0
typedef float T;
#else
typedef u16 T;
#endif

#if DTYPE == 2
#define MMA_TYPE "bf16"
DEVICE float low(u32 v) { return __uint_as_float(v << 16); }
DEVICE float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }
DEVICE u32 pack(float lo, float hi) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
#else
#define MMA_TYPE "f16"
DEVICE float low(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(d) : "r"(v));
    return d;
}
DEVICE float high(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(d) : "r"(v));
    return d;
}
DEVICE u32 pack(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
#endif

DEVICE float ex2(float x) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
DEVICE float lg2(float x) {
    float d;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
// log2(1 + 2^v), relative error below 6e-5: log2(1 + t) / t fitted on [0, 1]
DEVICE float softplus2(float v) {
    const float t = ex2(-fabsf(v));
    float p = fmaf(t, 0.05965084f, -0.22711803f);
    p = fmaf(t, p, 0.44189793f);
    p = fmaf(t, p, -0.71698725f);
    p = fmaf(t, p, 1.44261324f);
    return fmaf(t, p, fmaxf(v, 0.0f));
}
DEVICE float tanh_fast(float x) {
    float d;
    asm("tanh.approx.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
// silu(2 a) for a halved argument: one special-function instruction
DEVICE float silu_of_half(float a) { return fmaf(a, tanh_fast(a), a); }

// ---------------------------------------------------------------- memory
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes global -> shared, zeros where !valid
DEVICE void copy16(u32 to, const void* from, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}
DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#if DTYPE != 0
// bulk copies: a barrier's phase ends when as many bytes as expected have arrived
DEVICE void expect_bytes(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
DEVICE void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(to), "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}
DEVICE void wait_barrier(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(barrier), "r"(parity)
        : "memory");
}
#endif

template <int BYTES>
DEVICE void load_shared(u32* d, u32 a) {
    if constexpr (BYTES == 16)
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(a));
    else if constexpr (BYTES == 8)
        asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(a));
    else
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(d[0]) : "r"(a));
}
template <int BYTES>
DEVICE void store_shared(u32 a, const u32* d) {
    if constexpr (BYTES == 16)
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(d[0]), "r"(d[1]),
                     "r"(d[2]), "r"(d[3])
                     : "memory");
    else if constexpr (BYTES == 8)
        asm volatile("st.shared.v2.b32 [%0], {%1,%2};" ::"r"(a), "r"(d[0]), "r"(d[1]) : "memory");
    else
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(d[0]) : "memory");
}
template <int BYTES>
DEVICE void store_global(void* p, const u32* d) {
    if constexpr (BYTES == 16)
        *(uint4*)p = make_uint4(d[0], d[1], d[2], d[3]);
    else if constexpr (BYTES == 8)
        *(uint2*)p = make_uint2(d[0], d[1]);
    else
        *(u32*)p = d[0];
}

// V consecutive elements as float32
template <int V>
DEVICE void load_row(float* d, const T* p) {
#if DTYPE == 0
    if constexpr (V == 4) {
        const float4 v = *(const float4*)p;
        d[0] = v.x, d[1] = v.y, d[2] = v.z, d[3] = v.w;
    } else if constexpr (V == 2) {
        const float2 v = *(const float2*)p;
        d[0] = v.x, d[1] = v.y;
    } else
        d[0] = *p;
#else
    if constexpr (V == 4) {
        const uint2 v = *(const uint2*)p;
        d[0] = low(v.x), d[1] = high(v.x), d[2] = low(v.y), d[3] = high(v.y);
    } else if constexpr (V == 2) {
        const u32 v = *(const u32*)p;
        d[0] = low(v), d[1] = high(v);
    } else
        d[0] = low(*p);
#endif
}
template <int V>
DEVICE void store_row(T* p, const float* d) {
#if DTYPE == 0
#pragma unroll
    for (int i = 0; i < V; i++) p[i] = d[i];
#else
    if constexpr (V == 4)
        *(uint2*)p = make_uint2(pack(d[0], d[1]), pack(d[2], d[3]));
    else if constexpr (V == 2)
        *(u32*)p = pack(d[0], d[1]);
    else
        *p = (u16)pack(d[0], 0.0f);
#endif
}
template <int V>
DEVICE void load_float(float* d, const float* p) {
    if constexpr (V == 4) {
        const float4 v = *(const float4*)p;
        d[0] = v.x, d[1] = v.y, d[2] = v.z, d[3] = v.w;
    } else if constexpr (V == 2) {
        const float2 v = *(const float2*)p;
        d[0] = v.x, d[1] = v.y;
    } else
        d[0] = *p;
}
template <int V>
DEVICE void store_float(float* p, const float* d) {
    if constexpr (V == 4)
        *(float4*)p = make_float4(d[0], d[1], d[2], d[3]);
    else if constexpr (V == 2)
        *(float2*)p = make_float2(d[0], d[1]);
    else
        *p = d[0];
}

// ---------------------------------------------------------------- patches
// pixels (B, 3, H, W) float32 -> rows (B rows columns, 3 P P), 8 pixels a thread.
extern "C" __global__ void patchify(const float* __restrict__ pixels, T* __restrict__ out,
                                    int height, int width, int rows, int columns, int patch,
                                    int stride, long long total) {
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= total) return;
    const int eighths = patch / 8;
    long long rest = index;
    const int px = (int)(rest % eighths) * 8;
    rest /= eighths;
    const int py = (int)(rest % patch);
    rest /= patch;
    const int channel = (int)(rest % 3);
    rest /= 3;
    const int column = (int)(rest % columns);
    rest /= columns;
    const int row = (int)(rest % rows);
    const long long image = rest / rows;
    const float* from = pixels + ((image * 3 + channel) * height + row * stride + py) * width +
                        column * stride + px;
    float v[8];
    if (width % 4 == 0 && stride % 4 == 0) {
        load_float<4>(v, from);
        load_float<4>(v + 4, from + 4);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = from[i];
    }
    store_row<4>(out + index * 8, v);
    store_row<4>(out + index * 8 + 4, v + 4);
}

// ---------------------------------------------------------------- add and RMS norm
#define VEC (DIM % 128 == 0 ? 4 : DIM % 64 == 0 ? 2 : 1)
#define PARTS (DIM / 32 / VEC)

DEVICE void norm_row(float (*v)[VEC], const float* weight, T* out, float eps, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS; i++)
#pragma unroll
        for (int j = 0; j < VEC; j++) sum = fmaf(v[i][j], v[i][j], sum);
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    const float scale = rsqrtf(sum * (1.0f / DIM) + eps);
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int at = (i * 32 + lane) * VEC;
        float w[VEC], y[VEC];
        load_float<VEC>(w, weight + at);
#pragma unroll
        for (int j = 0; j < VEC; j++) y[j] = v[i][j] * scale * w[j];
        store_row<VEC>(out + at, y);
    }
}

// residual (rows, D) += hidden (rows, D) if there is one, out = its RMS norm; out may be hidden.
// One warp a row.
extern "C" __global__ void __launch_bounds__(256)
    add_norm(const T* hidden, float* __restrict__ residual, const float* __restrict__ weight,
             T* out, int rows, float eps) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t base = (size_t)row * DIM;
    float v[PARTS][VEC];
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const size_t at = base + (i * 32 + lane) * VEC;
        load_float<VEC>(v[i], residual + at);
        if (hidden) {
            float h[VEC];
            load_row<VEC>(h, hidden + at);
#pragma unroll
            for (int j = 0; j < VEC; j++) v[i][j] += h[j];
            store_float<VEC>(residual + at, v[i]);
        }
    }
    norm_row(v, weight, out + base, eps, lane);
}

// patches (B, M, D) and start (L, D) (position + patch bias; class token in the middle row) ->
// residual (B, L, D) and its RMS norm.
extern "C" __global__ void __launch_bounds__(256)
    first_norm(const T* __restrict__ patches, const float* __restrict__ start,
               float* __restrict__ residual, const float* __restrict__ weight,
               T* __restrict__ out, int rows, int length, float eps) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const int image = row / length, token = row % length, middle = (length - 1) / 2;
    const size_t base = (size_t)row * DIM;
    const int patch = token - (token > middle);
    const T* from = patches + ((size_t)image * (length - 1) + patch) * DIM;
    float v[PARTS][VEC];
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int at = (i * 32 + lane) * VEC;
        load_float<VEC>(v[i], start + (size_t)token * DIM + at);
        if (token != middle) {
            float h[VEC];
            load_row<VEC>(h, from + at);
#pragma unroll
            for (int j = 0; j < VEC; j++) v[i][j] += h[j];
        }
        store_float<VEC>(residual + base + at, v[i]);
    }
    norm_row(v, weight, out + base, eps, lane);
}

#if DTYPE != 0
// ---------------------------------------------------------------- tensor cores
// Fragments of mma.sync: g = lane / 4, q = lane % 4. A rows g, g + 8; B columns g;
// C rows g, g + 8 and columns 2q, 2q + 1. k columns are 2q, 2q + 1 (and + 8 where K = 16).
DEVICE void mma_k16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE
        ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE u32 pack_f16(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// ---------------------------------------------------------------- conv + SiLU + x_proj + dt_proj
// bc (B L, 2, 32) float32 and steps (B L, 2, E) float16 from x, both directions; u never reaches
// memory. steps = log2(1 + 2^v), v = dt_proj.
//
// Time is padded to `padded` = L + 3 rounded up to 4 rows an image; the extra rows are zeros and
// end one image's convolution and begin the next one's. A block owns 32 HALVES of these rows: warp
// (direction, half of the rows, split) sums its share of the channels, 32 at a time; shared memory
// adds the shares. Weights and x come through shared memory, two chunks ahead.
// A thread holds 4 adjacent rows and channels 8q .. 8q+7: the order of the rows and columns of a
// product is free as long as weights and outputs use the same one. The backward direction takes
// its rows in falling order, so both are causal.
// Then the same warp multiplies its 32 rows' step sizes with dt_proj for its share of channels.
#define NT (ROW / 8)
#define SUM_ROW (ROW + 2)
#define RANK_ROW (16 * KR + 8)

template <int HALVES, int SPLITS>
struct Stage {  // of one split, bytes
    static constexpr int taps = NT * 512, bias = taps + 512;  // weights come first
    static constexpr int direction = bias + 128;              // one bulk copy
    static constexpr int rows = 32 * HALVES, x_rows = rows + 6, x_row = 64 + 16;
    static constexpr int x = 2 * direction, bytes = x + x_rows * x_row;
};

extern __shared__ __align__(1024) char memory[];

template <int HALVES, int SPLITS>
DEVICE void xproj_body(const u16* __restrict__ xz, const char* __restrict__ weights,
                       const uint4* __restrict__ dt_weight, const float* __restrict__ dt_bias,
                       float* __restrict__ bc, u16* __restrict__ steps, int length, int padded,
                       int total) {
    using S = Stage<HALVES, SPLITS>;
    constexpr int chunks = INNER / 32 / SPLITS, threads = 64 * HALVES * SPLITS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int direction = warp & 1, half = (warp >> 1) % HALVES, split = warp / (2 * HALVES);
    const int v0 = blockIdx.x * S::rows;
    constexpr int stage_bytes = SPLITS * S::bytes;
    const u32 barriers = shared_address(memory), stages = barriers + 128;
    if (threadIdx.x < 3)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers + threadIdx.x * 8)
                     : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    const int x_chunk = threadIdx.x % (4 * SPLITS), x_row = threadIdx.x / (4 * SPLITS);
    const u16* source[3];
    bool valid[3];
#pragma unroll
    for (int i = 0; i < 3; i++) {
        const int v = v0 - 3 + x_row + 16 * HALVES * i, image = v / padded;
        const int token = v - image * padded;
        valid[i] = v >= 0 && v < total && token < length;
        const size_t row = valid[i] ? (size_t)image * length + token : 0;
        source[i] = xz + row * (2 * INNER) + x_chunk / 4 * (INNER / SPLITS) + x_chunk % 4 * 8;
    }
    const u32 x_to = stages + x_chunk / 4 * S::bytes + S::x + x_row * S::x_row + x_chunk % 4 * 16;
    auto fetch = [&](int chunk, int slot) {
        if (chunk < chunks) {
            const u32 stage = slot * stage_bytes;
#pragma unroll
            for (int i = 0; i < 3; i++) {
                if (i < 2 || x_row < S::x_rows - S::rows)
                    copy16(x_to + stage + 16 * HALVES * i * S::x_row, source[i], valid[i]);
                source[i] += 32;
            }
            if (threadIdx.x == 0) {
                const u32 barrier = barriers + slot * 8;
                expect_bytes(barrier, SPLITS * 2 * S::direction);
#pragma unroll
                for (int i = 0; i < 2 * SPLITS; i++) {
                    const int at = (i & 1) * (INNER / 32) + (i >> 1) * chunks + chunk;
                    bulk_copy(stages + stage + (i >> 1) * S::bytes + (i & 1) * S::direction,
                              weights + (size_t)at * S::direction, S::direction, barrier);
                }
            }
        }
        commit();
    };
    float acc[2][NT][4];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[m][n][j] = 0.0f;
    fetch(0, 0);
    fetch(1, 1);
    const int row0 = half * 32 + (direction ? 37 - 4 * g : 4 * g);
    const int pitch = direction ? -S::x_row : S::x_row;
    const u32 own = stages + split * S::bytes;
    int slot = 0, phase = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
        wait_copies<1>();
        wait_barrier(barriers + slot * 8, phase);
        __syncthreads();
        fetch(chunk + 2, slot == 0 ? 2 : slot - 1);
        const u32 stage = own + slot * stage_bytes, mine = stage + direction * S::direction;
        const u32 x_at = stage + S::x + row0 * S::x_row + q * 16;
        const u32 w_at = mine + lane * 8;
        const u32 taps_at = mine + S::taps + q * 16;
        const u32 bias_at = mine + S::bias + q * 32;
        u32 x[7][4];
#pragma unroll
        for (int r = 0; r < 7; r++) load_shared<16>(x[r], x_at + pitch * r);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 a[2][4];
            float b[4];
            load_shared<16>((u32*)b, bias_at + s * 16);
#pragma unroll
            for (int p = 0; p < 2; p++) {  // channels 4s + 2p, + 1
                float k0[4], k1[4], x0[7], x1[7];
                load_shared<16>((u32*)k0, taps_at + (4 * s + 2 * p) * 64);
                load_shared<16>((u32*)k1, taps_at + (4 * s + 2 * p + 1) * 64);
#pragma unroll
                for (int r = 0; r < 7; r++)
                    x0[r] = low(x[r][2 * s + p]), x1[r] = high(x[r][2 * s + p]);
#pragma unroll
                for (int t = 0; t < 4; t++) {
                    float u0 = b[2 * p], u1 = b[2 * p + 1];
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        u0 = fmaf(k0[k], x0[t + k], u0), u1 = fmaf(k1[k], x1[t + k], u1);
                    a[t >> 1][2 * p + (t & 1)] = pack(silu_of_half(u0), silu_of_half(u1));
                }
            }
#pragma unroll
            for (int n = 0; n < NT; n++) {
                u32 w[2];
                load_shared<8>(w, w_at + (2 * n + s) * 256);
#pragma unroll
                for (int m = 0; m < 2; m++)
                    mma_k16(acc[m][n], a[m][0], a[m][1], a[m][2], a[m][3], w[0], w[1]);
            }
        }
        phase ^= slot == 2;
        slot = slot == 2 ? 0 : slot + 1;
    }
    wait_copies<0>();
    __syncthreads();  // the stages become the partial sums: (split, direction, row, ROW)
    float* const all = (float*)memory;
    float* sums = all + ((split * 2 + direction) * S::rows + half * 32) * SUM_ROW;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int local = 4 * g + 2 * m + h, row = direction ? 31 - local : local;
                *(float2*)(sums + row * SUM_ROW + n * 8 + 2 * q) =
                    make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
            }
    __syncthreads();
    u16* const ranks = (u16*)(all + SPLITS * 2 * S::rows * SUM_ROW);  // (direction, row, RANK_ROW)
    for (int i = threadIdx.x; i < S::rows * ROW; i += threads) {
        const int pair = i % (ROW / 2) * 2, d = i / (ROW / 2) % 2, r = i / ROW;
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int s = 0; s < SPLITS; s++) {
            const float2 part = *(const float2*)(all + ((s * 2 + d) * S::rows + r) * SUM_ROW + pair);
            sum.x += part.x, sum.y += part.y;
        }
        if (pair < RP) {
            *(u32*)(ranks + (d * S::rows + r) * RANK_ROW + pair) = pack(sum.x, sum.y);
            continue;
        }
        const int v = v0 + r, image = v / padded, token = v - image * padded;
        if (v < total && token < length) {
            const size_t row = (size_t)image * length + token;
            *(float2*)(bc + (row * 2 + d) * 32 + pair - RP) = sum;
        }
    }
    if (RP % 16)  // the last 8 ranks of the last k tile
        for (int i = threadIdx.x; i < S::rows * 2 * 4; i += threads)
            *(u32*)(ranks + i / 4 * RANK_ROW + RP + i % 4 * 2) = 0;
    __syncthreads();

    // rows 16 m + g, 16 m + g + 8 of this warp's 32; channels 8q .. 8q + 7 of each chunk
    u32 a[2][KR][4];
    u16* to[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = half * 32 + 16 * m + 8 * h + g;
            const u16* from = ranks + (direction * S::rows + r) * RANK_ROW + 2 * q;
#pragma unroll
            for (int k = 0; k < KR; k++) {
                a[m][k][h] = *(const u32*)(from + 16 * k);
                a[m][k][2 + h] = *(const u32*)(from + 16 * k + 8);
            }
            const int v = v0 + r, image = v / padded, token = v - image * padded;
            const size_t row = (size_t)image * length + token;
            const size_t at = (row * 2 + direction) * INNER + split * (chunks * 32) + q * 8;
            to[m][h] = v < total && token < length ? steps + at : nullptr;
        }
    const int first = direction * (INNER / 32) + split * chunks;
    const uint4* from = dt_weight + (size_t)first * KR * 64 + lane;
    const float* bias_from = dt_bias + first * 32 + q * 8;
    uint4 next[KR][2];
    auto load = [&](int chunk) {
        if (chunk < chunks)
#pragma unroll
            for (int k = 0; k < KR; k++)
#pragma unroll
                for (int j = 0; j < 2; j++) next[k][j] = from[(chunk * KR + k) * 64 + j * 32];
    };
    load(0);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
        uint4 w[KR][2];
#pragma unroll
        for (int k = 0; k < KR; k++) w[k][0] = next[k][0], w[k][1] = next[k][1];
        load(chunk + 1);
        float b[8];
        load_float<4>(b, bias_from + chunk * 32);
        load_float<4>(b + 4, bias_from + chunk * 32 + 4);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            u32 packed[2][4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float v[4] = {b[2 * n], b[2 * n + 1], b[2 * n], b[2 * n + 1]};
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    const uint4 f = w[k][n >> 1];
                    mma_k16(v, a[m][k][0], a[m][k][1], a[m][k][2], a[m][k][3], n & 1 ? f.z : f.x,
                            n & 1 ? f.w : f.y);
                }
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] = softplus2(v[j]);
                packed[0][n] = pack_f16(v[0], v[1]);
                packed[1][n] = pack_f16(v[2], v[3]);
            }
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (to[m][h]) store_global<16>(to[m][h] + chunk * 32, packed[h]);
        }
    }
}

#define XPROJ_KERNEL(NAME, HALVES, SPLITS, BLOCKS)                                                \
    extern "C" __global__ void __launch_bounds__(64 * HALVES * SPLITS, BLOCKS)                    \
        NAME(const u16* xz, const char* weights, const uint4* dt_weight, const float* dt_bias,    \
             float* bc, u16* steps, int length, int padded, int total) {                          \
        xproj_body<HALVES, SPLITS>(xz, weights, dt_weight, dt_bias, bc, steps, length, padded,    \
                                   total);                                                        \
    }
XPROJ_KERNEL(xproj_21, 2, 1, 4)
XPROJ_KERNEL(xproj_12, 1, 2, 3)
#if INNER % 128 == 0
XPROJ_KERNEL(xproj_14, 1, 4, 1)
#endif

// ---------------------------------------------------------------- scan
// (y_forward + y_backward) * silu(z) from x and z in xz (B L, 2E), steps (B L, 2, E) and bc
// (B L, 2, 32) float32; the result replaces steps[:, 0]. Where `only` is no -1, only that token is
// needed: each walk ends with it.
//
// A block is two warps on the same channels of one image: one walks forward, one backward. Each
// leaves its y of the first half of its walk in place of its own step sizes, which it no longer
// needs; they meet at one barrier; in the second half each reads the other's y, adds, gates and
// writes.
//
// A thread holds 16 / SPLIT states of CH channels in registers. A state's step is
//   h = 2^(s A) h + (s u) B, y += h C
// with s in log2 units: four instructions on the FMA pipe and one on the special-function unit,
// which takes eight issue slots and is the limit. To keep it busy the exponentials of the next
// four states are issued while four are updated, across the steps. x, s, B and C arrive in shared
// memory TILE steps at a time, two tiles ahead.
struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};

DEVICE float low_f16(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(d) : "r"(v));
    return d;
}
DEVICE float high_f16(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(d) : "r"(v));
    return d;
}
// the CH 16-bit elements of a thread
template <int CH>
DEVICE u32 load_pair(u32 a) {
    u32 v;
    if constexpr (CH == 2)
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(a));
    else
        asm volatile("{.reg .b16 h; ld.shared.b16 h, [%1]; mov.b32 %0, {h, h};}" : "=r"(v) : "r"(a));
    return v;
}

// A warp's walk over an image: its channels, and the tiles' way into its shared memory.
template <int CHANNELS, int TILE>
struct Walk {
    // bytes: three tiles of x, s, B and C; two of z and the other direction's y
    static constexpr int row = 2 * CHANNELS, s = TILE * row, bc = 2 * TILE * row;
    static constexpr int data_size = bc + TILE * 128, gates = 3 * data_size, other = TILE * row;
    static constexpr int gate_size = 2 * TILE * row, warp_size = gates + 2 * gate_size;
    static constexpr int chunks = row / 16, copies = (TILE * chunks + 31) / 32;
    static constexpr bool all_lanes = TILE * chunks >= 32;

    int length, direction, lane, c0, sign, tiles, last, first, enough, slot;
    // Of this lane's first row of the tile to be fetched next: token, and where it lies in a row of
    // xz or steps and of bc. Walking, they rise or fall by a tile.
    int token, offset, bc_token, bc_offset;
    const u16* xz;
    const float* projected;
    u16 *steps, *own;  // `own`: the step sizes of this direction
    u32 base;

    DEVICE Walk(const u16* all_xz, const float* all_bc, u16* all_steps, int L, int only) {
        length = L, direction = threadIdx.x / 32, lane = threadIdx.x % 32, slot = 0;
        c0 = blockIdx.x * CHANNELS, base = shared_address(memory) + direction * warp_size;
        sign = direction ? -1 : 1, tiles = (length + TILE - 1) / TILE, last = TILE * tiles - 1;
        first = direction ? tiles / 2 : tiles - tiles / 2;  // tiles of the first half
        enough = only < 0 ? tiles : (direction ? last - only : only) / TILE + 1;
        const size_t image = (size_t)blockIdx.y * length;
        xz = all_xz + image * (2 * INNER) + c0;
        projected = all_bc + (image * 2 + direction) * 32;
        steps = all_steps + image * (2 * INNER) + c0, own = steps + direction * INNER;
        token = start_of(0) + sign * (lane / chunks), bc_token = start_of(0) + sign * (lane / 8);
        offset = token * (2 * INNER) + lane % chunks * 8, bc_offset = bc_token * 64 + lane % 8 * 4;
        fetch(0);
        commit();
        fetch(1);
        commit();
    }
    DEVICE int start_of(int tile) const { return direction ? last - TILE * tile : TILE * tile; }
    DEVICE int end_of(int tile) const {
        return direction ? TILE : min(TILE, length - TILE * tile);
    }
    DEVICE int skipped() const { return direction ? last + 1 - length : 0; }  // before any token
    DEVICE u32 data(int ahead) const {
        const int to = slot + ahead;
        return base + (to >= 3 ? to - 3 : to) * data_size;
    }
    DEVICE u32 gate(int tile) const { return base + gates + (tile & 1) * gate_size; }

    // Copies of rows after the last token read nothing and leave zeros.
    DEVICE void fetch(int ahead) {
        const u32 to = data(ahead) + lane * 16;
#pragma unroll
        for (int i = 0; i < copies; i++) {
            const int rows = sign * (32 / chunks) * i, at = offset + rows * (2 * INNER);
            const bool valid = (u32)(token + rows) < (u32)length;
            if (all_lanes || lane < TILE * chunks) {
                copy16(to + i * 512, xz + at, valid);
                copy16(to + s + i * 512, own + at, valid);
            }
        }
#pragma unroll
        for (int i = 0; i < TILE / 4; i++) {
            const int rows = sign * 4 * i;
            const bool valid = (u32)(bc_token + rows) < (u32)length;
            copy16(to + bc + i * 512, projected + (bc_offset + rows * 64), valid);
        }
        token += sign * TILE, offset += sign * (TILE * 2 * INNER);
        bc_token += sign * TILE, bc_offset += sign * (TILE * 64);
    }
    // z and the other direction's y of the tile that lies `back` tiles before the next fetch
    DEVICE void fetch_gate(int tile, int back) const {
        const u32 to = gate(tile) + lane * 16;
#pragma unroll
        for (int i = 0; i < copies; i++) {
            const int rows = sign * ((32 / chunks) * i - TILE * back);
            const int at = offset + rows * (2 * INNER);
            const bool valid = (u32)(token + rows) < (u32)length;
            if (all_lanes || lane < TILE * chunks) {
                copy16(to + i * 512, xz + (at + INNER), valid);
                copy16(to + other + i * 512, own + (at + sign * INNER), valid);
            }
        }
    }
    DEVICE void turn(int tile) {  // at a tile's start: the next is there, its next on the way
        __syncwarp();
        fetch(2);
        if (tile >= first) fetch_gate(tile + 1, 2);
        commit();
        wait_copies<1>();
        __syncwarp();
    }
    template <class Steps>
    DEVICE void run(Steps& steps_of) {
#pragma unroll 1
        for (int tile = 0; tile < first; tile++) {
            turn(tile);
            steps_of(tile, No());
            slot = slot == 2 ? 0 : slot + 1;
        }
        __syncthreads();
        fetch_gate(first, 2);
        commit();
#pragma unroll 1
        for (int tile = first; tile < enough; tile++) {
            turn(tile);
            steps_of(tile, Yes());
            slot = slot == 2 ? 0 : slot + 1;
        }
    }
};

template <int CH, int SPLIT, int TILE, int UNROLL>
DEVICE void scan_body(const u16* xz, const float* bc, u16* steps, const float* __restrict__ decay,
                      const float4* __restrict__ taps, const float2* __restrict__ vectors,
                      int length, int only) {
    constexpr int N = 16 / SPLIT, GROUPS = N / 4;
    using W = Walk<32 * CH / SPLIT, TILE>;
    W walk(xz, bc, steps, length, only);
    const int place = walk.lane / SPLIT * CH, part = walk.lane % SPLIT;  // channels and states
    float A[CH][N], h[CH][N], k[CH][4], bias[CH], skip[CH], tail[CH][3];
#pragma unroll
    for (int i = 0; i < CH; i++) {
        const int at = walk.direction * INNER + walk.c0 + place + i;
#pragma unroll
        for (int j = 0; j < GROUPS; j++)
            load_float<4>(&A[i][4 * j], decay + (size_t)at * 16 + part * N + 4 * j);
#pragma unroll
        for (int j = 0; j < N; j++) h[i][j] = 0.0f;
        const float4 t = taps[at];
        k[i][0] = t.x, k[i][1] = t.y, k[i][2] = t.z, k[i][3] = t.w;
        bias[i] = vectors[at].x, skip[i] = vectors[at].y;
        tail[i][0] = tail[i][1] = tail[i][2] = bias[i];
    }
    wait_copies<1>();
    __syncwarp();

    // carried from step to step: the step's x and s, and the first four exponentials
    u32 x = 0;
    float s[CH], e[CH][4];
    auto load_step = [&](u32 at, u32& x_to, float* s_to) {
        x_to = load_pair<CH>(at + place * 2);
        const u32 v = load_pair<CH>(at + W::s + place * 2);
        s_to[0] = low_f16(v);
        if (CH == 2) s_to[CH - 1] = high_f16(v);
    };
    auto exponentials = [&](float (*to)[4], const float* size, int group) {
#pragma unroll
        for (int i = 0; i < CH; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) to[i][j] = ex2(size[i] * A[i][4 * group + j]);
    };
    const int skipped = walk.skipped() / UNROLL * UNROLL;
    load_step(walk.data(0) + skipped * W::row, x, s);
    exponentials(e, s, 0);

    auto steps_of = [&](int tile, auto second) {
        constexpr bool gated = decltype(second)::value;
        const int start = walk.start_of(tile), end = walk.end_of(tile);
        const u32 data = walk.data(0), next_data = walk.data(1), gate = walk.gate(tile) + place * 2;
        const int begin = tile == 0 ? skipped : 0, side = gated ? 0 : walk.direction;
        u16* to = walk.steps + side * INNER + place +
                  (ptrdiff_t)(start + walk.sign * begin) * (2 * INNER);
#pragma unroll 1
        for (int row = begin; row < end; row += UNROLL) {
#pragma unroll
            for (int r = 0; r < UNROLL; r++) {
                const u32 at = data + (row + r) * W::row, bc_at = data + W::bc + (row + r) * 128;
                u32 next_x;
                float next_s[CH], u[CH], su[CH], y[CH], f[CH];
                const u32 next_at = r + 1 < UNROLL || row + UNROLL < TILE ? at + W::row : next_data;
                load_step(next_at, next_x, next_s);
                f[0] = low(x);
                if (CH == 2) f[CH - 1] = high(x);
#pragma unroll
                for (int i = 0; i < CH; i++) {
                    const float a = fmaf(k[i][3], f[i], tail[i][0]);
                    tail[i][0] = fmaf(k[i][2], f[i], tail[i][1]);
                    tail[i][1] = fmaf(k[i][1], f[i], tail[i][2]);
                    tail[i][2] = fmaf(k[i][0], f[i], bias[i]);
                    u[i] = silu_of_half(a);
                    su[i] = s[i] * u[i];
                    y[i] = part == 0 ? skip[i] * u[i] : 0.0f;
                }
#pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                    float next_e[CH][4], B[4], C[4];
                    load_shared<16>((u32*)B, bc_at + part * (N * 4) + group * 16);
                    load_shared<16>((u32*)C, bc_at + 64 + part * (N * 4) + group * 16);
                    if (group + 1 < GROUPS)
                        exponentials(next_e, s, group + 1);
                    else
                        exponentials(next_e, next_s, 0);
#pragma unroll
                    for (int i = 0; i < CH; i++)
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            float& state = h[i][4 * group + j];
                            state = fmaf(e[i][j], state, su[i] * B[j]);
                            y[i] = fmaf(state, C[j], y[i]);
                            e[i][j] = next_e[i][j];
                        }
                }
                x = next_x;
#pragma unroll
                for (int i = 0; i < CH; i++) {
                    s[i] = next_s[i];
#pragma unroll
                    for (int m = 1; m < SPLIT; m *= 2)
                        y[i] += __shfl_xor_sync(0xffffffffu, y[i], m);
                }
                if (gated) {
                    const u32 z = load_pair<CH>(gate + (row + r) * W::row);
                    const u32 p = load_pair<CH>(gate + W::other + (row + r) * W::row);
                    y[0] = (y[0] + low(p)) * silu_of_half(low(z));
                    if (CH == 2) y[CH - 1] = (y[CH - 1] + high(p)) * silu_of_half(high(z));
                }
                if (start + walk.sign * (row + r) < length && part == 0) store_row<CH>(to, y);
                to += walk.sign * (2 * INNER);
            }
        }
    };
    walk.run(steps_of);
}

#define SCAN_KERNEL(CHANNELS, CH, SPLIT, TILE, UNROLL, BLOCKS)                                    \
    extern "C" __global__ void __launch_bounds__(64, BLOCKS)                                      \
        scan_##CHANNELS(const u16* xz, const float* bc, u16* steps, const float* decay,           \
                        const float4* taps, const float2* vectors, int length, int only) {        \
        static_assert(CHANNELS * SPLIT == 32 * CH && TILE % UNROLL == 0, "");                     \
        scan_body<CH, SPLIT, TILE, UNROLL>(xz, bc, steps, decay, taps, vectors, length, only);    \
    }
SCAN_KERNEL(64, 2, 1, 8, 4, 6)
SCAN_KERNEL(32, 1, 1, 8, 4, 10)
SCAN_KERNEL(16, 1, 2, 8, 8, 8)
SCAN_KERNEL(8, 1, 4, 16, 8, 8)

#else
// ---------------------------------------------------------------- float32
#define TILE 4

DEVICE float silu(float v) { return v / (1.0f + __expf(-v)); }

// u (2, B L, E) = silu(conv(x)): both directions of 4 channels of one token a thread.
extern "C" __global__ void conv_silu(const float* __restrict__ xz,
                                     const float4* __restrict__ taps,
                                     const float2* __restrict__ vectors, float* __restrict__ u,
                                     int length, int rows) {
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (long long)rows * (INNER / 4)) return;
    const int c = (int)(index % (INNER / 4)) * 4, row = (int)(index / (INNER / 4));
    const int token = row % length;
    float x[7][4];
#pragma unroll
    for (int r = 0; r < 7; r++) {
        const int t = token + r - 3;
        if (t >= 0 && t < length)
            load_float<4>(x[r], xz + (size_t)(row + r - 3) * (2 * INNER) + c);
        else
            x[r][0] = x[r][1] = x[r][2] = x[r][3] = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < 2; d++) {
        float out[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 k = taps[d * INNER + c + j];
            float a = vectors[d * INNER + c + j].x;
            a = fmaf(k.x, x[d ? 6 : 0][j], a);
            a = fmaf(k.y, x[d ? 5 : 1][j], a);
            a = fmaf(k.z, x[d ? 4 : 2][j], a);
            a = fmaf(k.w, x[3][j], a);
            out[j] = silu(a);
        }
        store_float<4>(u + ((size_t)d * rows + row) * INNER + c, out);
    }
}

// out (B, L, E) = (y_forward + y_backward) * silu(z). u, delta (2, B L, E), delta before softplus;
// dbc (2, B L, ROW). One thread a channel and direction; halves meet as in the half kernels.
extern "C" __global__ void __launch_bounds__(64)
    scan(const float* __restrict__ xz, const float* __restrict__ u,
         const float* __restrict__ delta, const float* __restrict__ dbc,
         const float4* __restrict__ decay, const float2* __restrict__ vectors, float* out,
         int length, int rows) {
    const int direction = threadIdx.x / 32, c = blockIdx.x * 32 + threadIdx.x % 32;
    const size_t image = (size_t)blockIdx.y * length;
    const int first = direction ? length / 2 : length - length / 2;
    const size_t shift = (size_t)direction * rows + image;
    xz += image * (2 * INNER) + INNER + c;
    out += image * INNER + c;
    u += shift * INNER + c;
    delta += shift * INNER + c;
    dbc += shift * ROW + RP;
    const float skip = vectors[direction * INNER + c].y;
    float A[16], h[16];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float4 a = decay[(size_t)(direction * INNER + c) * 4 + j];
        A[4 * j] = a.x, A[4 * j + 1] = a.y, A[4 * j + 2] = a.z, A[4 * j + 3] = a.w;
    }
#pragma unroll
    for (int j = 0; j < 16; j++) h[j] = 0.0f;
    auto token_of = [&](int step) { return direction ? length - 1 - step : step; };
    float next_u[TILE], next_v[TILE];
    auto fetch = [&](int step) {
#pragma unroll
        for (int j = 0; j < TILE; j++)
            if (step + j < length) {
                next_u[j] = u[(size_t)token_of(step + j) * INNER];
                next_v[j] = delta[(size_t)token_of(step + j) * INNER];
            }
    };
    fetch(0);
#pragma unroll 1
    for (int start = 0; start < length; start += TILE) {
        float now_u[TILE], now_v[TILE];
#pragma unroll
        for (int j = 0; j < TILE; j++) now_u[j] = next_u[j], now_v[j] = next_v[j];
        fetch(start + TILE);
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            const int step = start + j;
            if (step >= length) break;
            if (step == first) __syncthreads();
            const int token = token_of(step);
            const float v = now_v[j], d = v > 20.0f ? v : log1pf(expf(v)), du = d * now_u[j];
            const float s = d * 1.44269504088896f;
            const float4* bc = (const float4*)(dbc + (size_t)token * ROW);
            float y = skip * now_u[j], y2 = 0.0f;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float4 b = bc[k], cc = bc[k + 4];
                h[4 * k] = fmaf(ex2(s * A[4 * k]), h[4 * k], du * b.x);
                h[4 * k + 1] = fmaf(ex2(s * A[4 * k + 1]), h[4 * k + 1], du * b.y);
                h[4 * k + 2] = fmaf(ex2(s * A[4 * k + 2]), h[4 * k + 2], du * b.z);
                h[4 * k + 3] = fmaf(ex2(s * A[4 * k + 3]), h[4 * k + 3], du * b.w);
                y = fmaf(h[4 * k], cc.x, y), y2 = fmaf(h[4 * k + 1], cc.y, y2);
                y = fmaf(h[4 * k + 2], cc.z, y), y2 = fmaf(h[4 * k + 3], cc.w, y2);
            }
            y += y2;
            float* to = out + (size_t)token * INNER;
            if (step >= first) y = (y + *(volatile float*)to) * silu(xz[(size_t)token * 2 * INNER]);
            *to = y;
        }
    }
    if (first == length) __syncthreads();
}
#endif
