// What all kernels share: scalars, and the ways between registers, shared and global memory.
#pragma once
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

#if BULK
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
// the same place of another block of the cluster
DEVICE u32 in_block(u32 address, u32 rank) {
    u32 d;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(d) : "r"(address), "r"(rank));
    return d;
}
DEVICE float2 load_pair_in_block(u32 address, u32 rank) {
    float2 d;
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
                 : "=f"(d.x), "=f"(d.y)
                 : "r"(in_block(address, rank)));
    return d;
}
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
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

struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};

extern __shared__ __align__(1024) char memory[];
