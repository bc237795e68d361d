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
DEVICE float tanh_fast(float x) {
    float d;
    asm("tanh.approx.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
// silu(2 a) for a halved argument: one special-function instruction
DEVICE float silu_of_half(float a) { return fmaf(a, tanh_fast(a), a); }

// 2^x for x <= 0 on the FMA pipe, relative error 1e-4, exact at 0
DEVICE float ex2_poly(float x) {
    x = fmaxf(x, -126.0f);
    const float shifted = x + 12582912.0f;
    const float f = x - (shifted - 12582912.0f);
    const float p = fmaf(f, fmaf(f, fmaf(f, 0.05500896f, 0.24221101f), 0.69328293f), 1.0f);
    return __int_as_float((__float_as_int(shifted) << 23) + __float_as_int(p));
}

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

// residual (rows, D) += hidden (rows, D); out = its RMS norm. out may be hidden. One warp a row.
extern "C" __global__ void __launch_bounds__(256)
    add_norm(const T* hidden, float* __restrict__ residual, const float* __restrict__ weight,
             T* out, int rows, float eps, int keep) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t base = (size_t)row * DIM;
    float v[PARTS][VEC];
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const size_t at = base + (i * 32 + lane) * VEC;
        float h[VEC];
        load_row<VEC>(h, hidden + at);
        load_float<VEC>(v[i], residual + at);
#pragma unroll
        for (int j = 0; j < VEC; j++) v[i][j] += h[j];
        if (keep) store_float<VEC>(residual + at, v[i]);
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
DEVICE void mma_k8(float* c, u32 a0, u32 a1, u32 b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." MMA_TYPE "." MMA_TYPE
        ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// ---------------------------------------------------------------- conv + SiLU + x_proj
// dbc (B L, 2, ROW) = x_proj(silu(conv(x))), both directions; u never reaches memory.
//
// Time is padded to `padded` = L + 3 rounded up to 4 rows an image; the extra rows are zeros and
// end one image's convolution and begin the next one's. A block owns 64 of these rows: warp
// (direction, half of the rows, split) sums its share of the channels, 32 at a time; shared memory
// adds the shares. Weights and x come through shared memory, two chunks ahead.
// A thread holds 4 adjacent rows and channels 8q .. 8q+7: the order of the rows and columns of a
// product is free as long as weights and outputs use the same one. The backward direction takes
// its rows in falling order, so both are causal.
#define NT (ROW / 8)
#define SPLITS (RP > 32 && INNER % 96 == 0 ? 3 : 2)
#define CHUNKS (INNER / 32 / SPLITS)
#define BLOCK_ROWS 64
#define X_ROWS (BLOCK_ROWS + 6)
#define SUM_ROW (ROW + 2)

struct Stage {  // of one split, bytes
    static constexpr int taps = NT * 512, bias = taps + 512;  // weights come first
    static constexpr int direction = bias + 128;              // one bulk copy
    static constexpr int x_row = 64 + 16;
    static constexpr int x = 2 * direction, bytes = x + X_ROWS * x_row;
};

extern __shared__ __align__(1024) char memory[];

extern "C" __global__ void __launch_bounds__(128 * SPLITS, SPLITS == 2 ? 2 : 1)
    xproj(const u16* __restrict__ xz, const char* __restrict__ weights, u16* __restrict__ dbc,
          int length, int padded, int total) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int direction = warp & 1, half = (warp >> 1) & 1, split = warp >> 2;
    const int v0 = blockIdx.x * BLOCK_ROWS;
    constexpr int stage_bytes = SPLITS * Stage::bytes;
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
        const int v = v0 - 3 + x_row + 32 * i, image = v / padded, token = v - image * padded;
        valid[i] = v >= 0 && v < total && token < length;
        const size_t row = valid[i] ? (size_t)image * length + token : 0;
        source[i] = xz + row * (2 * INNER) + x_chunk / 4 * (INNER / SPLITS) + x_chunk % 4 * 8;
    }
    const u32 x_to = stages + x_chunk / 4 * Stage::bytes + Stage::x + x_row * Stage::x_row +
                     x_chunk % 4 * 16;
    auto fetch = [&](int chunk, int slot) {
        if (chunk < CHUNKS) {
            const u32 stage = slot * stage_bytes;
#pragma unroll
            for (int i = 0; i < 3; i++) {
                if (i < 2 || x_row < X_ROWS - 64)
                    copy16(x_to + stage + 32 * i * Stage::x_row, source[i], valid[i]);
                source[i] += 32;
            }
            if (threadIdx.x == 0) {
                const u32 barrier = barriers + slot * 8;
                expect_bytes(barrier, SPLITS * 2 * Stage::direction);
#pragma unroll
                for (int i = 0; i < 2 * SPLITS; i++) {
                    const int at = (i & 1) * (INNER / 32) + (i >> 1) * CHUNKS + chunk;
                    bulk_copy(stages + stage + (i >> 1) * Stage::bytes + (i & 1) * Stage::direction,
                              weights + (size_t)at * Stage::direction, Stage::direction, barrier);
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
    const int pitch = direction ? -Stage::x_row : Stage::x_row;
    const u32 own = stages + split * Stage::bytes;
    int slot = 0, phase = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        wait_copies<1>();
        wait_barrier(barriers + slot * 8, phase);
        __syncthreads();
        fetch(chunk + 2, slot == 0 ? 2 : slot - 1);
        const u32 stage = own + slot * stage_bytes, mine = stage + direction * Stage::direction;
        const u32 x_at = stage + Stage::x + row0 * Stage::x_row + q * 16;
        const u32 w_at = mine + lane * 8;
        const u32 taps_at = mine + Stage::taps + q * 16;
        const u32 bias_at = mine + Stage::bias + q * 32;
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
    float* sums = (float*)memory + ((split * 2 + direction) * BLOCK_ROWS + half * 32) * SUM_ROW;
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
    for (int i = threadIdx.x; i < BLOCK_ROWS * ROW; i += 128 * SPLITS) {
        const int pair = i % (ROW / 2), d = i / (ROW / 2) % 2, r = i / ROW;
        const int v = v0 + r, image = v / padded, token = v - image * padded;
        if (v >= total || token >= length) continue;
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int s = 0; s < SPLITS; s++) {
            const float2 part = *(const float2*)((const float*)memory +
                                                 ((s * 2 + d) * BLOCK_ROWS + r) * SUM_ROW + pair * 2);
            sum.x += part.x, sum.y += part.y;
        }
        const size_t row = (size_t)image * length + token;
        *(u32*)(dbc + (row * 2 + d) * ROW + pair * 2) = pack(sum.x, sum.y);
    }
}

// ---------------------------------------------------------------- scan
// out (B, L, E) = (y_forward + y_backward) * silu(z), from x and z in xz (B, L, 2E) and dbc.
//
// A block is 16 MT channels of PAIRS images, two warps an image: one walks forward, one
// backward. Each leaves its y of the first half of its walk in `out`; they meet at one barrier;
// in the second half each reads the other's y, adds, gates and writes.
//
// A tile is 8 steps in walking order. Thread (g, q) owns channels g 2MT .. and prepares steps 2q
// and 2q + 1 of the tile (step size, conv, u, D u, gate): just the layout of an A fragment with
// k = step and of a C fragment with columns = step. In a step it holds states 2q, 2q+1, 2q+8,
// 2q+9 of its channels: a C fragment with columns = state. So, on the tensor cores:
//   step sizes  v (channel x step) = W (channel x rank) dt (rank x step)
//   h (channel x state) += s u (channel x step) B (step x state), B masked to the current step
//   y (channel x step) += h (channel x state) C (state x step), C masked to the current step
// POLY of every 8 exponentials run on the FMA pipe, the rest on the special-function unit.
// The exponents come from the tensor cores too: s A (channel x state) = diag(s) (channel x channel)
// A (channel x state), in float16 (2^-11 of a time constant).
#define PAIRS 2  // images a block, to share the weights

// barrier of a forward and a backward warp
DEVICE void meet(int pair) {
    if (pair == 0)
        asm volatile("bar.sync 1, 64;" ::: "memory");
    else
        asm volatile("bar.sync 2, 64;" ::: "memory");
}
DEVICE u32 pack_f16(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
// d = a b
DEVICE void mma_f16(float* d, const u32* a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

template <int MT>
struct Layout {  // of shared memory, in bytes: weights of both directions, zeros, a region a warp
    static constexpr int channels = 16 * MT, mine = 2 * MT, row = channels * 2;
    static constexpr int vectors = channels * 16, dt = vectors + channels * 16;
    static constexpr int weights = dt + MT * KR * 512;  // taps come first
    static constexpr int x_row = row + 16;              // of x, z and y
    static constexpr int projected_row = ROW % 16 ? ROW * 2 : ROW * 2 + 16;
    static constexpr int step_row = MT * 128 + 16;
    static constexpr int x = 0, projected = x + 24 * x_row;  // x: last, this and next tile
    static constexpr int steps = projected + 16 * projected_row, gate = steps + 8 * step_row;
    static constexpr int other = gate + 8 * x_row, warp = other + 8 * x_row;
    static constexpr int zeros = 8 * step_row;
};

// taps and vectors as (channel of a thread, g), dt_weight as (pair, k, g, q): no bank conflicts
template <int MT>
DEVICE void load_weights(u32 to, const uint4* taps, const uint4* vectors, const uint4* dt_weight,
                         int index, int threads) {
    using S = Layout<MT>;
    for (int i = index; i < S::channels; i += threads) {
        const int from = (i % 8) * S::mine + i / 8;
        copy16(to + i * 16, taps + from, true);
        copy16(to + S::vectors + i * 16, vectors + from, true);
    }
    for (int i = index; i < MT * KR * 32; i += threads) {
        const int q = i % 4, g = i / 4 % 8, k = i / 32 % KR, pair = i / (32 * KR);
        copy16(to + S::dt + i * 16, dt_weight + ((g * MT + pair) * KR + k) * 4 + q, true);
    }
}

template <int MT, int POLY, int UNROLL>
DEVICE void scan_body(const u16* __restrict__ xz, const u16* __restrict__ dbc,
                      const float* __restrict__ decay, const float4* __restrict__ taps,
                      const float4* __restrict__ vectors, const uint4* __restrict__ dt_weight,
                      u16* out, int length, int batch) {
    using S = Layout<MT>;
    constexpr int mine = S::mine;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int direction = warp & 1;
    const int c0 = blockIdx.x * S::channels;
    const u32 weights = shared_address(memory) + direction * S::weights;
    const u32 zeros = shared_address(memory) + 2 * S::weights;
    const u32 base = zeros + S::zeros + warp * S::warp;
    const u32 nothing[4] = {0, 0, 0, 0};
    {
        const int first = direction * INNER + c0;
        load_weights<MT>(weights, (const uint4*)taps + first, (const uint4*)vectors + first,
                         dt_weight + first / 2 * KR * 4, (warp >> 1) * 32 + lane, 32 * PAIRS);
        commit();
        for (int i = threadIdx.x; i < S::zeros / 16; i += 64 * PAIRS)
            store_shared<16>(zeros + i * 16, nothing);
        wait_copies<0>();
        __syncthreads();
    }
    const int image = blockIdx.y * PAIRS + (warp >> 1);
    if (image >= batch) return;
    const int tiles = (length + 7) / 8, last = 8 * tiles - 1;
    const int first = direction ? tiles / 2 : tiles - tiles / 2;  // tiles of the first half
    const int sign = direction ? -1 : 1;
    xz += (size_t)image * length * (2 * INNER) + c0;
    dbc += ((size_t)image * length * 2 + direction) * ROW;
    out += (size_t)image * length * INNER + c0;

    u32 A[MT][4];  // B fragments: channels 2q, 2q + 1 (and those of r = 1), states g, g + 8
    float h[MT][8];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int c = direction * INNER + c0 + 2 * q * mine + 2 * i + (j & 1);
            const int n = (j >> 1) * 8 + g;
            A[i][j] = pack_f16(decay[(size_t)c * 16 + n], decay[(size_t)(c + mine) * 16 + n]);
            h[i][2 * j] = h[i][2 * j + 1] = 0.0f;
        }

    // 16-byte copies: lane takes column lane % chunks of rows lane / chunks, ... of x, z and y
    constexpr int chunks = S::row / 16, copies = (8 * chunks + 31) / 32;
    constexpr int projected_copies = (ROW + 31) / 32;
    const int copy_row = lane / chunks, copy_column = lane % chunks;
    const bool copies_x = 8 * chunks >= 32 || lane < 8 * chunks;
    const u32 x_to = base + copy_row * S::x_row + copy_column * 16;
    xz += copy_column * 8;
    const u16* const other_y = out + copy_column * 8;
    auto start_of = [&](int tile) { return direction ? last - 8 * tile : 8 * tile; };
    auto fetch = [&](int tile, int slot) {
        if (tile < tiles) {
            const int start = start_of(tile);
            const u32 x = x_to + S::x + slot * (8 * S::x_row);
#pragma unroll
            for (int i = 0; i < copies; i++) {
                const int token = start + sign * (copy_row + 32 / chunks * i);
                if (copies_x)
                    copy16(x + 32 / chunks * i * S::x_row, xz + (size_t)token * (2 * INNER),
                           token < length);
            }
            const u32 projected = base + S::projected + (tile & 1) * (8 * S::projected_row);
#pragma unroll
            for (int i = 0; i < projected_copies; i++) {
                const int index = lane + 32 * i, row = index / (ROW / 8);
                const int column = index % (ROW / 8), token = start + sign * row;
                if (index < ROW)
                    copy16(projected + row * S::projected_row + column * 16,
                           dbc + (size_t)token * (2 * ROW) + column * 8, token < length);
            }
        }
        commit();
    };
    auto fetch_gate = [&](int tile) {  // z and the other direction's y
        const int start = start_of(tile);
#pragma unroll
        for (int i = 0; i < copies; i++) {
            const int token = start + sign * (copy_row + 32 / chunks * i);
            const u32 to = x_to + S::gate + 32 / chunks * i * S::x_row;
            if (copies_x) {
                copy16(to, xz + (size_t)token * (2 * INNER) + INNER, token < length);
                copy16(to + S::other - S::gate, other_y + (size_t)token * INNER, token < length);
            }
        }
    };

    // the rows before the first step are zeros
    for (int i = lane; i < 8 * S::x_row / 16; i += 32)
        store_shared<16>(base + S::x + 16 * S::x_row + i * 16, nothing);
    fetch(0, 0);
    const bool diagonal = (g >> 1) == q;
    const u32 diagonal_mask = g & 1 ? 0xffff0000u : 0x0000ffffu;
    const u32 step_at = diagonal ? base + S::steps + g * 16 : zeros;

    int slot = 0;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        if (tile == first) meet(warp >> 1);
        __syncwarp();
        const int next_slot = slot == 2 ? 0 : slot + 1;
        if (tile >= first) fetch_gate(tile);
        commit();
        fetch(tile + 1, next_slot);
        wait_copies<2>();
        __syncwarp();

        // ---- prepare: step sizes, u, s u, D u for my channels and steps 2q, 2q + 1
        float y[MT][4];
        u32 su[MT][2], B[2], C[2];
        {
            u32 dt[KR][2];
            const u32 projected = base + S::projected + (tile & 1) * (8 * S::projected_row);
            const u32 mine_row = projected + g * S::projected_row + q * 4;
#pragma unroll
            for (int k = 0; k < KR; k++) load_shared<8>(dt[k], mine_row + k * 32 + q * 4);
            load_shared<4>(&C[0], mine_row + (RP + 16) * 2);
            load_shared<4>(&C[1], mine_row + (RP + 24) * 2);
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                         : "=r"(B[0]), "=r"(B[1])
                         : "r"(projected + (lane & 7) * S::projected_row + RP * 2 +
                               ((lane >> 3) & 1) * 16));
            u32 x[5][MT];
#pragma unroll
            for (int j = 0; j < 5; j++) {
                int row = slot * 8 + 2 * q + j - 3;
                if (j < 3 && row < 0) row += 24;
                load_shared<4 * MT>(x[j], base + S::x + row * S::x_row + g * (mine * 2));
            }
#pragma unroll
            for (int i = 0; i < MT; i++) {
                float v[4], vec[2][2];  // step size; conv bias and D of two channels
                load_shared<16>((u32*)v, weights + S::vectors + (2 * i * 8 + g) * 16);
                load_shared<16>((u32*)vec, weights + S::vectors + ((2 * i + 1) * 8 + g) * 16);
                u32 s[2][2];
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    u32 w[4];
                    load_shared<16>(w, weights + S::dt + ((i * KR + k) * 32 + lane) * 16);
                    mma_k16(v, w[0], w[1], w[2], w[3], dt[k][0], dt[k][1]);
                }
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float k[4];
                    load_shared<16>((u32*)k, weights + ((2 * i + r) * 8 + g) * 16);
                    float f[5], u[2], size[2];
#pragma unroll
                    for (int j = 0; j < 5; j++) f[j] = r ? high(x[j][i]) : low(x[j][i]);
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float a = fmaf(k[0], f[j], vec[r][0]);
                        a = fmaf(k[1], f[j + 1], a);
                        a = fmaf(k[2], f[j + 2], a);
                        a = fmaf(k[3], f[j + 3], a);
                        u[j] = silu_of_half(a);
                        size[j] = lg2(1.0f + ex2(fminf(v[2 * r + j], 126.0f)));
                        s[j][r] = pack_f16(size[j], size[j]) & diagonal_mask;
                        y[i][2 * r + j] = vec[r][1] * u[j];
                    }
                    su[i][r] = pack(size[0] * u[0], size[1] * u[1]);
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const u32 quad[4] = {s[j][0], 0, 0, s[j][1]};
                    store_shared<16>(
                        base + S::steps + (2 * q + j) * S::step_row + i * 128 + g * 16, quad);
                }
            }
        }
        __syncwarp();

        // ---- walk the 8 steps
#pragma unroll UNROLL
        for (int pair = 0; pair < 4; pair++) {
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const u32 row = step_at + (2 * pair + odd) * S::step_row;
                const u32 half_mask = odd ? 0xffff0000u : 0x0000ffffu;
                const u32 b0 = q == pair ? B[0] & half_mask : 0u;
                const u32 b1 = q == pair ? B[1] & half_mask : 0u;
                const u32 k0 = g == 2 * pair + odd ? C[0] : 0u;
                const u32 k1 = g == 2 * pair + odd ? C[1] : 0u;
#pragma unroll
                for (int i = 0; i < MT; i++) {
                    u32 s[4];
                    float e[8];
                    load_shared<16>(s, row + i * 128);
                    mma_f16(e, s, A[i][0], A[i][1]);
                    mma_f16(e + 4, s, A[i][2], A[i][3]);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        h[i][j] *= j >= 8 - POLY ? ex2_poly(e[j]) : ex2(e[j]);
                    mma_k8(&h[i][0], su[i][0], su[i][1], b0);
                    mma_k8(&h[i][4], su[i][0], su[i][1], b1);
                    mma_k16(y[i], pack(h[i][0], h[i][1]), pack(h[i][2], h[i][3]),
                            pack(h[i][4], h[i][5]), pack(h[i][6], h[i][7]), k0, k1);
                }
            }
        }

        // ---- finish steps 2q, 2q + 1: first half y alone, second half the gated sum
        const bool second = tile >= first;
        wait_copies<1>();
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int step = 2 * q + j, token = start_of(tile) + sign * step;
            u32 result[MT];
            if (second) {
                u32 z[MT], p[MT];
                const u32 at = base + step * S::x_row + g * (mine * 2);
                load_shared<4 * MT>(z, at + S::gate);
                load_shared<4 * MT>(p, at + S::other);
#pragma unroll
                for (int i = 0; i < MT; i++)
                    result[i] = pack((y[i][j] + low(p[i])) * silu_of_half(low(z[i])),
                                     (y[i][2 + j] + high(p[i])) * silu_of_half(high(z[i])));
            } else {
#pragma unroll
                for (int i = 0; i < MT; i++) result[i] = pack(y[i][j], y[i][2 + j]);
            }
            if (token < length)
                store_global<4 * MT>(out + (size_t)token * INNER + g * mine, result);
        }
        slot = next_slot;
    }
    if (first == tiles) meet(warp >> 1);
}

#define SCAN_KERNEL(NAME, MT, POLY, BLOCKS, UNROLL)                                               \
    extern "C" __global__ void __launch_bounds__(64 * PAIRS, BLOCKS)                              \
        NAME(const u16* xz, const u16* dbc, const float* decay, const float4* taps,               \
             const float4* vectors, const uint4* dt_weight, u16* out, int length, int batch) {    \
        scan_body<MT, POLY, UNROLL>(xz, dbc, decay, taps, vectors, dt_weight, out, length,        \
                                    batch);                                                       \
    }
SCAN_KERNEL(scan_4, 4, 1, 3, 1)
SCAN_KERNEL(scan_2, 2, 1, 5, 2)
SCAN_KERNEL(scan_1, 1, 0, 4, 4)

#else
// ---------------------------------------------------------------- float32
#define TILE 4

DEVICE float silu(float v) { return v / (1.0f + __expf(-v)); }

// u (2, B L, E) = silu(conv(x)): both directions of 4 channels of one token a thread.
extern "C" __global__ void conv_silu(const float* __restrict__ xz,
                                     const float4* __restrict__ taps,
                                     const float4* __restrict__ vectors, float* __restrict__ u,
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
         const float4* __restrict__ decay, const float4* __restrict__ vectors, float* out,
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
    const float skip = vectors[direction * INNER + c].z;
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
