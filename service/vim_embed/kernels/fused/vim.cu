// Vim inference kernels. Compiled by compile.py with these macros:
//   DTYPE 0 float32, 1 float16, 2 bfloat16     DIM  model width D
//   INNER inner width E                        RP   step-size rank, rounded up to 8
//   OUT_NORM 1: with `out_norm` (sm_90a, a width of 192 to 1536 in steps of 192, half precision)
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
// of two float16 numbers at once
DEVICE u32 fma_pair(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE u32 silu_of_half_pair(u32 a) {
    u32 d;
    asm("tanh.approx.f16x2 %0, %1;" : "=r"(d) : "r"(a));
    return fma_pair(a, d, a);
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
DEVICE void init_barrier(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
DEVICE void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
struct __align__(64) TensorMap {
    unsigned long long words[16];
};
// a map's box at (column, row); what lies outside the array is zero
DEVICE void copy_tile(u32 to, const TensorMap* map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
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
struct PerChannel {
    float of[3];
};
DEVICE void load_pixels(float* d, const float* p, bool aligned) {
    if (aligned) {
        load_float<4>(d, p);
        load_float<4>(d + 4, p + 4);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) d[i] = p[i];
    }
}
DEVICE void load_pixels(float* d, const unsigned char* p, bool aligned) {
    unsigned char v[8];
    if (aligned)
        *(uint2*)v = *(const uint2*)p;
    else {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = p[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) d[i] = v[i];
}

// pixels (B, 3, H, W), times `scale` plus `offset` of their channel -> rows (B rows columns, 3 P P),
// 8 pixels a thread.
template <class Pixel>
DEVICE void patchify_body(const Pixel* __restrict__ pixels, T* __restrict__ out, int height,
                          int width, int rows, int columns, int patch, int stride,
                          const PerChannel& scale, const PerChannel& offset, long long total) {
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
    const Pixel* from = pixels + ((image * 3 + channel) * height + row * stride + py) * width +
                        column * stride + px;
    float v[8];
    load_pixels(v, from, width % 8 == 0 && stride % 8 == 0);
    const float a = channel == 0 ? scale.of[0] : channel == 1 ? scale.of[1] : scale.of[2];
    const float b = channel == 0 ? offset.of[0] : channel == 1 ? offset.of[1] : offset.of[2];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = fmaf(v[i], a, b);
    store_row<4>(out + index * 8, v);
    store_row<4>(out + index * 8 + 4, v + 4);
}
#define PATCHIFY_KERNEL(NAME, PIXEL)                                                              \
    extern "C" __global__ void NAME(const PIXEL* pixels, T* out, int height, int width, int rows, \
                                    int columns, int patch, int stride, float scale0,             \
                                    float scale1, float scale2, float offset0, float offset1,     \
                                    float offset2, long long total) {                             \
        patchify_body(pixels, out, height, width, rows, columns, patch, stride,                   \
                      {scale0, scale1, scale2}, {offset0, offset1, offset2}, total);              \
    }
PATCHIFY_KERNEL(patchify, float)
PATCHIFY_KERNEL(patchify_bytes, unsigned char)

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
// PERMUTED: hidden's columns are in the order of `out_norm`'s weights. One warp a row.
template <bool PERMUTED>
DEVICE void add_norm_body(const T* hidden, float* __restrict__ residual,
                          const float* __restrict__ weight, T* out, int rows, float eps) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t base = (size_t)row * DIM;
    float v[PARTS][VEC];
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int at = (i * 32 + lane) * VEC;
        load_float<VEC>(v[i], residual + base + at);
        if (hidden) {
            float h[VEC];
            if constexpr (PERMUTED) {
                const T* from = hidden + base + at / 16 * 16 + at % 16 / 4 * 2 + at % 4 / 2 * 8;
#pragma unroll
                for (int j = 0; j < VEC; j += 2) load_row<2>(h + j, from + 4 * j);
            } else
                load_row<VEC>(h, hidden + base + at);
#pragma unroll
            for (int j = 0; j < VEC; j++) v[i][j] += h[j];
            store_float<VEC>(residual + base + at, v[i]);
        }
    }
    norm_row(v, weight, out + base, eps, lane);
}
#define ADD_NORM_KERNEL(NAME, PERMUTED)                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                             \
        NAME(const T* hidden, float* residual, const float* weight, T* out, int rows, float eps) { \
        add_norm_body<PERMUTED>(hidden, residual, weight, out, rows, eps);                        \
    }
ADD_NORM_KERNEL(add_norm, false)
#if OUT_NORM
ADD_NORM_KERNEL(add_permuted_norm, true)
#endif

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
struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};

extern __shared__ __align__(1024) char memory[];

// ---------------------------------------------------------------- tensor cores
// Fragments of mma.sync: g = lane / 4, q = lane % 4. A rows g, g + 8; B columns g;
// C rows g, g + 8 and columns 2q, 2q + 1. k columns are 2q, 2q + 1 (and + 8 where K = 16).
// d = a b + c; d may be c
DEVICE void mma_k16(float* d, const u32* a, u32 b0, u32 b1, const float* c) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE
        ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
}
DEVICE void mma_k8(float* d, const u32* a, u32 b, const float* c) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." MMA_TYPE "." MMA_TYPE
        ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
DEVICE u32 pack_f16(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

#if OUT_NORM
// ---------------------------------------------------------------- out_proj, residual add and norm
// residual (rows, D) += mixed (rows, E) out_proj^T, out = its RMS norm. A cluster owns 128 rows, each
// of its blocks 192 columns; they exchange the sums of squares. Two warpgroups of 64 rows multiply on
// wgmma, while the residual waits in registers and a thread has rows and weights copied ahead.
// Column 8 j + 2 q + r of 16 is the model's 4 q + 2 j + r: a thread's accumulators are adjacent.
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
#endif

// ---------------------------------------------------------------- conv + SiLU + x_proj + dt_proj
// bc (B L, 2, 32) float32 and steps (B L, 2, E) float16 from x, both directions; u never reaches
// memory. steps = log2(1 + 2^v), v = dt_proj.
//
// A block owns 16 MT HALVES of the B L rows: warp (direction, half of the rows, split) sums its
// share of the channels, and shared memory adds the shares. x and the weights of 64 channels are a
// box; boxes come through shared memory by the copy engine, one ahead, and so do dt_proj's weights
// after them if there are no splits. Of several splits, an even one takes a box's first 32 channels
// and the odd one its last.
// A thread holds 2 MT adjacent rows and channels 8q .. 8q+7 of 32: the order of the rows and columns
// of a product is free as long as weights and outputs use the same one. The backward direction
// takes its rows in falling order, so both are causal. Where a warp's rows begin or end an image,
// taps that reach into the neighbour image are left out.
// Then the same warp multiplies its rows' step sizes with dt_proj for its share of channels.
#define NT (ROW / 8)
#define SUM_ROW (ROW + 2)
#define RANK_ROW (16 * KR + 8)

template <int MT, int HALVES, int SPLITS>
struct Stage {  // bytes
    static constexpr int rows = 16 * MT * HALVES, x_rows = rows + 6, boxes = (SPLITS + 1) / 2;
    static constexpr int wide = DTYPE == 1 ? 2 : 4;  // bytes of a tap
    static constexpr int taps = NT * 512, bias = taps + 128 * wide;  // of 32 channels, behind weights
    static constexpr int chunk = bias + 32 * wide;
    static constexpr int x = (x_rows * 128 + 1023) / 1024 * 1024;  // the swizzle wants 1 KiB steps
    static constexpr int box = (x + 4 * chunk + 1023) / 1024 * 1024, all = boxes * box;
    static constexpr int dt_bias = KR * 1024, dt = dt_bias + 256;  // dt_proj of 32 channels
    static_assert(4 * dt <= all);
};

// The convolution of two channels. float16 goes by pairs: u is rounded to it for the product anyway,
// and neighbours do not mind (docs/gpu.md). bfloat16 is too coarse for that.
struct Taps {
#if DTYPE == 1
    u32 k[4], bias, sum;
    DEVICE Taps(u32 from, int pair, const u32* b) : bias(b[0]) {
        load_shared<16>(k, from + pair * 64);
    }
    DEVICE void start() { sum = bias; }
    DEVICE void add(int i, u32 x) { sum = fma_pair(k[i], x, sum); }
    DEVICE u32 silu() const { return silu_of_half_pair(sum); }
#else
    float k0[4], k1[4], bias0, bias1, u0, u1;
    DEVICE Taps(u32 from, int pair, const u32* b)
        : bias0(__uint_as_float(b[0])), bias1(__uint_as_float(b[1])) {
        load_shared<16>((u32*)k0, from + 2 * pair * 64);
        load_shared<16>((u32*)k1, from + (2 * pair + 1) * 64);
    }
    DEVICE void start() { u0 = bias0, u1 = bias1; }
    DEVICE void add(int i, u32 x) { u0 = fmaf(k0[i], low(x), u0), u1 = fmaf(k1[i], high(x), u1); }
    DEVICE u32 silu() const { return pack(silu_of_half(u0), silu_of_half(u1)); }
#endif
};

template <int MT, int HALVES, int SPLITS>
DEVICE void xproj_body(const TensorMap* x_map, const char* __restrict__ weights,
                       const char* __restrict__ dt_weights, float* __restrict__ bc,
                       u16* __restrict__ steps, int length, int rows, int only) {
    using S = Stage<MT, HALVES, SPLITS>;
    constexpr int chunks = INNER / 32 / SPLITS, threads = 64 * HALVES * SPLITS, own_rows = 16 * MT;
    constexpr int rounds = INNER / 64 / S::boxes, dt_rounds = SPLITS == 1 ? rounds : 0, STAGES = 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int direction = warp & 1, half = (warp >> 1) % HALVES, split = warp / (2 * HALVES);
    const int v0 = (gridDim.x - 1 - blockIdx.x) * S::rows;  // what in_proj wrote last is cached
    const u32 stages = shared_address(memory), barriers = stages + STAGES * S::all;
    if (threadIdx.x < STAGES) init_barrier(barriers + threadIdx.x * 8, 1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    auto fetch = [&](int round, int slot) {
        if (threadIdx.x != 0 || round >= rounds + dt_rounds) return;
        const u32 barrier = barriers + slot * 8;
        if (round >= rounds) {
            expect_bytes(barrier, 4 * S::dt);
#pragma unroll
            for (int d = 0; d < 2; d++)
                bulk_copy(stages + slot * S::all + d * 2 * S::dt,
                          dt_weights + (d * (INNER / 32) + (round - rounds) * 2) * S::dt, 2 * S::dt,
                          barrier);
            return;
        }
        expect_bytes(barrier, S::boxes * (S::x_rows * 128 + 4 * S::chunk));
#pragma unroll
        for (int i = 0; i < S::boxes; i++) {
            const int box = round * S::boxes + i;
            const u32 to = stages + slot * S::all + i * S::box;
            copy_tile(to, x_map, box * 64, v0 - 3, barrier);
#pragma unroll
            for (int d = 0; d < 2; d++)
                bulk_copy(to + S::x + d * 2 * S::chunk,
                          weights + (size_t)(d * (INNER / 32) + box * 2) * S::chunk, 2 * S::chunk,
                          barrier);
        }
    };
    // Steps that this thread's first row, walking, is behind its image's first.
    const int first_row = v0 + half * own_rows + (direction ? own_rows - 1 - 2 * MT * g : 2 * MT * g);
    const int begun = direction ? length - 1 - first_row % length : first_row % length;
    const bool inside = begun >= 3 && begun + 2 * MT <= length;
    const bool edge = __any_sync(0xffffffffu, !inside && first_row < rows + 2 * MT);
    // a walk that ends with `only` needs nothing of what lies behind it
    const int steps_to_only = only < 0 ? length : direction ? length - 1 - only : only;
    const bool needed = __any_sync(0xffffffffu, begun <= steps_to_only || !inside);
    float acc[MT][NT][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[m][n][j] = 0.0f;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) fetch(i, i);
    // where the window's rows lie in the first stage; 16-byte parts are swizzled by the copy engine
    const int row0 = half * own_rows + (direction ? own_rows + 5 - 2 * MT * g : 2 * MT * g);
    const u32 own = stages + split / 2 * S::box, odd = split & 1;
    u32 x_at[2 * MT + 3];
#pragma unroll
    for (int i = 0; i < 2 * MT + 3; i++) {
        const int r = direction ? row0 - i : row0 + i;
        x_at[i] = own + r * 128 + ((4 * odd + q) ^ (r & 7)) * 16;
    }
    const u32 weights_at = own + S::x + (direction * 2 + odd) * S::chunk;
    auto project = [&](u32 stage, int next) {  // 32 channels
        const u32 w_at = weights_at + stage + next * S::chunk + lane * 8;
        const u32 taps_at = weights_at + stage + next * S::chunk + S::taps + q * 16;
        const u32 bias_at = weights_at + stage + next * S::chunk + S::bias + q * 8 * S::wide;
        u32 x[2 * MT + 3][4];
#pragma unroll
        for (int r = 0; r < 2 * MT + 3; r++) load_shared<16>(x[r], (x_at[r] ^ (next * 64)) + stage);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 a[MT][4];
            u32 bias[S::wide];
            load_shared<4 * S::wide>(bias, bias_at + s * 4 * S::wide);
            auto convolve = [&](auto at_edge) {
#pragma unroll
                for (int p = 0; p < 2; p++) {  // channels 4s + 2p, + 1
                    Taps taps(taps_at, 2 * s + p, bias + p * S::wide / 2);
#pragma unroll
                    for (int t = 0; t < 2 * MT; t++) {
                        const int since = begun + t - (begun + t >= length ? length : 0);
                        taps.start();
#pragma unroll
                        for (int k = 0; k < 4; k++)
                            if (!decltype(at_edge)::value || since >= 3 - k)
                                taps.add(k, x[t + k][2 * s + p]);
                        a[t >> 1][2 * p + (t & 1)] = taps.silu();
                    }
                }
            };
            if (edge)
                convolve(Yes());
            else
                convolve(No());
#pragma unroll
            for (int n = 0; n < NT; n++) {
                u32 w[2];
                load_shared<8>(w, w_at + (2 * n + s) * 256);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_k16(acc[m][n], a[m], w[0], w[1], acc[m][n]);
            }
        }
    };
    constexpr int unroll = rounds % STAGES == 0 ? STAGES : 1;  // then a slot's addresses are constants
#pragma unroll 1
    for (int first = 0; first < rounds; first += unroll)
#pragma unroll
        for (int i = 0; i < unroll; i++) {
            const int round = first + i, slot = unroll == STAGES ? i : round % STAGES;
            wait_barrier(barriers + slot * 8, round / STAGES & 1);
            __syncthreads();
            fetch(round + STAGES - 1, (slot + STAGES - 1) % STAGES);
            if (!needed) continue;
            project(slot * S::all, 0);
            if (SPLITS == 1) project(slot * S::all, 1);
        }

    // The step sizes' ranks of this warp's rows as A operands, and where each row's steps go: B
    // and C leave on the way.
    u32 ranks[MT][KR][4];
    u16* to[MT][2];
    auto steps_at = [&](int row) -> u16* {
        if (row >= rows) return nullptr;
        return steps + ((size_t)row * 2 + direction) * INNER + split * (chunks * 32) + q * 8;
    };
    if constexpr (SPLITS == 1) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int k = 0; k < KR; k++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int n = 2 * k + j / 2;
                    const float* c = acc[m][n] + j % 2 * 2;
                    ranks[m][k][j] = n < RP / 8 ? pack(c[0], c[1]) : 0;
                }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int local = 2 * MT * g + 2 * m + h;
                const int row = v0 + half * own_rows + (direction ? own_rows - 1 - local : local);
                to[m][h] = steps_at(row);
                if (row >= rows) continue;
                float* const at = bc + ((size_t)row * 2 + direction) * 32 + 2 * q;
#pragma unroll
                for (int n = RP / 8; n < NT; n++)
                    *(float2*)(at + n * 8 - RP) =
                        make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
            }
        }
    } else {
        __syncthreads();  // the stages become the partial sums: (split, direction, row, ROW)
        float* const all = (float*)memory;
        float* sums = all + ((split * 2 + direction) * S::rows + half * own_rows) * SUM_ROW;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int local = 2 * MT * g + 2 * m + h;
                    const int row = direction ? own_rows - 1 - local : local;
                    *(float2*)(sums + row * SUM_ROW + n * 8 + 2 * q) =
                        make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                }
        __syncthreads();
        u16* const shared = (u16*)(all + SPLITS * 2 * S::rows * SUM_ROW);  // (direction, row, RANK_ROW)
        for (int i = threadIdx.x; i < S::rows * ROW; i += threads) {
            const int pair = i % (ROW / 2) * 2, d = i / (ROW / 2) % 2, r = i / ROW;
            float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
            for (int s = 0; s < SPLITS; s++) {
                const int at = ((s * 2 + d) * S::rows + r) * SUM_ROW + pair;
                const float2 part = *(const float2*)(all + at);
                sum.x += part.x, sum.y += part.y;
            }
            const int row = v0 + r;
            if (pair < RP)
                *(u32*)(shared + (d * S::rows + r) * RANK_ROW + pair) = pack(sum.x, sum.y);
            else if (row < rows)
                *(float2*)(bc + ((size_t)row * 2 + d) * 32 + pair - RP) = sum;
        }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = half * own_rows + 16 * m + 8 * h + g;
                const u16* from = shared + (direction * S::rows + r) * RANK_ROW + 2 * q;
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    ranks[m][k][h] = *(const u32*)(from + 16 * k);
                    ranks[m][k][2 + h] = *(const u32*)(from + 16 * k + 8);
                }
                to[m][h] = steps_at(v0 + r);
            }
    }

    // dt_proj of a chunk, and step sizes of its channels 8q .. 8q + 7
    auto load = [&](const char* from, uint4 (*w)[2], float (*bias)[4]) {
#pragma unroll
        for (int k = 0; k < KR; k++)
#pragma unroll
            for (int j = 0; j < 2; j++) w[k][j] = ((const uint4*)from)[(k * 2 + j) * 32 + lane];
#pragma unroll
        for (int n = 0; n < 4; n++)
            load_float<4>(bias[n], (const float*)(from + S::dt_bias + q * 64 + n * 16));
    };
    auto spread = [&](int chunk, const uint4 (*w)[2], const float (*bias)[4]) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
            u32 packed[2][4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float v[4];
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    const uint4 f = w[k][n >> 1];
                    const u32 b0 = n & 1 ? f.z : f.x, b1 = n & 1 ? f.w : f.y;
                    const float* c = k ? v : bias[n];
                    if (RP % 16 && k == KR - 1)
                        mma_k8(v, ranks[m][k], b0, c);
                    else
                        mma_k16(v, ranks[m][k], b0, b1, c);
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
    };
    if constexpr (SPLITS == 1) {
#pragma unroll 1
        for (int i = 0; i < dt_rounds; i++) {
            const int round = rounds + i, slot = round % STAGES;
            wait_barrier(barriers + slot * 8, round / STAGES & 1);
            __syncthreads();
            fetch(round + STAGES - 1, (slot + STAGES - 1) % STAGES);
            if (!needed) continue;
            const char* const own = memory + slot * S::all + direction * 2 * S::dt;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint4 w[KR][2];
                float bias[4][4];
                load(own + half * S::dt, w, bias);
                spread(2 * i + half, w, bias);
            }
        }
    } else {
        const char* const own = dt_weights + (direction * (INNER / 32) + split * chunks) * S::dt;
        uint4 next[KR][2];
        float next_bias[4][4];
        load(own, next, next_bias);
#pragma unroll 1
        for (int chunk = 0; chunk < chunks && needed; chunk++) {
            uint4 w[KR][2];
            float bias[4][4];
#pragma unroll
            for (int k = 0; k < KR; k++) w[k][0] = next[k][0], w[k][1] = next[k][1];
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) bias[n][j] = next_bias[n][j];
            if (chunk + 1 < chunks) load(own + (chunk + 1) * S::dt, next, next_bias);
            spread(chunk, w, bias);
        }
    }
}

#define XPROJ_KERNEL(MT, HALVES, SPLITS, BLOCKS)                                                  \
    extern "C" __global__ void __launch_bounds__(64 * HALVES * SPLITS, BLOCKS)                    \
        xproj_##MT##HALVES##SPLITS(                                                               \
            const __grid_constant__ TensorMap x_map, const char* weights, const char* dt_weights, \
            float* bc, u16* steps, int length, int rows, int only) {                              \
        xproj_body<MT, HALVES, SPLITS>(&x_map, weights, dt_weights, bc, steps, length, rows,      \
                                       only);                                                     \
    }
XPROJ_KERNEL(2, 2, 1, 3)
XPROJ_KERNEL(2, 1, 2, 3)
XPROJ_KERNEL(1, 1, 2, 4)
#if INNER % 128 == 0
XPROJ_KERNEL(1, 1, 4, 2)
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
// A thread holds the states of a channel in registers. A state's step is
//   h = 2^(s A) h + (s u) B, y += h C
// with s in log2 units: four instructions on the FMA pipe and one on the special-function unit,
// which takes eight issue slots and is the limit. To keep it busy the exponentials of the next
// four states are issued while four are updated, across the steps. x, s, B and C arrive in shared
// memory TILE steps at a time, two tiles ahead.
DEVICE float low_f16(u32 v) {
    float d;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(d) : "r"(v));
    return d;
}
// A warp's walk over an image: its channels, and the tiles' way into its shared memory and back.
template <int CHANNELS, int TILE>
struct Walk {
    // bytes: three tiles of x, s, B and C; two of z and the other direction's y
    static constexpr int row = 2 * CHANNELS, s = TILE * row, bc = 2 * TILE * row;
    static constexpr int data_size = bc + TILE * 128, gates = 3 * data_size, other = TILE * row;
    static constexpr int gate_size = 2 * TILE * row, warp_size = gates + 2 * gate_size;
    static constexpr int chunks = row / 16, lanes = TILE * chunks;  // one 16-byte part a lane
    static_assert(lanes <= 32 && TILE % 4 == 0);

    int length, direction, lane, c0, sign, tiles, first, enough;
    // Where this lane copies from next, and its row there; walking, they rise or fall by a tile.
    // B and C go by rows as they lie in memory.
    const char *x_from, *s_from, *bc_from, *z_from, *other_from;
    int token, bc_token, gate_token;
    ptrdiff_t step;  // of a tile, in bytes of xz or steps
    u32 now, before, end, bc_to, gate, both_gates;

    DEVICE Walk(const u16* xz, const float* all_bc, u16* steps, int L, int only) {
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
        const auto part = [&](const u16* from, int at, int column) {  // may lie outside the image
            const ptrdiff_t to = ((ptrdiff_t)image + at) * (2 * INNER) + column;
            return (const char*)(from + to + c0 + lane % chunks * 8);
        };
        token = (direction ? last : 0) + sign * (lane / chunks), step = sign * TILE * (4 * INNER);
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
        const bool valid = (u32)(token - 3 * sign * TILE) < (u32)length;
        if (valid && (lanes == 32 || lane < lanes)) {
            u32 y[4];
            load_shared<16>(y, now + lane * 16);
            const ptrdiff_t back = 3 * step + (gated ? direction * (2 * INNER) : 0);
            store_global<16>((void*)(s_from - back), y);
        }
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
DEVICE void scan_body(const u16* xz, const float* bc, u16* steps, const float* __restrict__ decay,
                      const float4* __restrict__ taps, const float2* __restrict__ vectors,
                      int length, int only) {
    constexpr int N = 16 / SPLIT;
    using W = Walk<32 / SPLIT, TILE>;
    W walk(xz, bc, steps, length, only);
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
        const char* const gate = memory + (walk.gate - shared_address(memory)) + place * 2;
        auto element = [](const char* from) { return (u32) * (const u16*)from; };
#pragma unroll 1
        for (int row0 = 0; row0 < TILE; row0 += BATCH) {
            char* const x_at = data + row0 * W::row + place * 2;
            const char* const bc_at = data + W::bc + row0 * 128 + part * (N * 4);
            float s[BATCH], su[BATCH], y[BATCH];
#pragma unroll
            for (int t = 0; t < BATCH; t++) {
                s[t] = low_f16(element(x_at + W::s + t * W::row));
                const float x = low(element(x_at + t * W::row));
                const float u = silu_of_half(fmaf(k[3], x, tail[0]));
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
            // sums over the lanes of a channel; each keeps the steps SPLIT i + part
            if constexpr (SPLIT > 1) {
#pragma unroll
                for (int m = 1, count = BATCH; m < SPLIT; m *= 2, count /= 2)
#pragma unroll
                    for (int i = 0; i < count / 2; i++) {
                        const bool odd = part & m;
                        const float sent = odd ? y[2 * i] : y[2 * i + 1];
                        const float kept = odd ? y[2 * i + 1] : y[2 * i];
                        y[i] = kept + __shfl_xor_sync(0xffffffffu, sent, m);
                    }
            }
#pragma unroll
            for (int i = 0; i < BATCH / SPLIT && gated; i++) {
                const char* const from = gate + (row0 + SPLIT * i + part) * W::row;
                const float z = low(element(from));
                y[i] = (y[i] + low(element(from + W::other))) * silu_of_half(z);
            }
#pragma unroll
            for (int i = 0; i < BATCH / SPLIT; i++)
                store_row<1>((u16*)(x_at + (SPLIT * i + part) * W::row), y + i);
        }
    };
    walk.run(steps_of);
}

#define SCAN_KERNEL(CHANNELS, TILE, AHEAD)                                                        \
    extern "C" __global__ void __launch_bounds__(64, 8)                                           \
        scan_##CHANNELS(const u16* xz, const float* bc, u16* steps, const float* decay,           \
                        const float4* taps, const float2* vectors, int length, int only) {        \
        scan_body<32 / CHANNELS, TILE, 8, AHEAD>(xz, bc, steps, decay, taps, vectors, length,     \
                                                 only);                                           \
    }
SCAN_KERNEL(32, 8, 8)
SCAN_KERNEL(16, 8, 8)
SCAN_KERNEL(8, 16, 4)

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
