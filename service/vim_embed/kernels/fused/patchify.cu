// Images to rows of patches.
#include "common.cuh"

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

// Where the eight pixels of a thread begin, and their channel.
struct Eight {
    long long at;
    int channel;
};
DEVICE Eight eight_of(long long index, int height, int width, int rows, int columns, int patch,
                      int stride) {
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
    const long long plane = rest / rows * 3 + channel;
    return {(plane * height + row * stride + py) * width + column * stride + px, channel};
}

// pixels (B, 3, H, W), times `scale` plus `offset` of their channel -> rows (B rows columns, 3 P P),
// 8 pixels a thread.
template <class Pixel>
DEVICE void patchify_body(const Pixel* __restrict__ pixels, T* __restrict__ out, int height,
                          int width, int rows, int columns, int patch, int stride,
                          const PerChannel& scale, const PerChannel& offset, long long total) {
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= total) return;
    const auto [at, channel] = eight_of(index, height, width, rows, columns, patch, stride);
    const bool aligned = width % 8 == 0 && stride % 8 == 0;
    float v[8];
    load_pixels(v, pixels + at, aligned);
    const float a = channel == 0 ? scale.of[0] : channel == 1 ? scale.of[1] : scale.of[2];
    const float b = channel == 0 ? offset.of[0] : channel == 1 ? offset.of[1] : offset.of[2];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = fmaf(v[i], a, b);
    store_row<4>(out + index * 8, v);
    store_row<4>(out + index * 8 + 4, v + 4);
}
#if DTYPE != 0
// The same of pixels that the host has made such numbers.
DEVICE void patchify_body(const T* __restrict__ pixels, T* __restrict__ out, int height, int width,
                          int rows, int columns, int patch, int stride, const PerChannel&,
                          const PerChannel&, long long total) {
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= total) return;
    const T* const from =
        pixels + eight_of(index, height, width, rows, columns, patch, stride).at;
    if (width % 8 == 0 && stride % 8 == 0)
        *(uint4*)(out + index * 8) = *(const uint4*)from;
    else {
#pragma unroll
        for (int i = 0; i < 8; i++) out[index * 8 + i] = from[i];
    }
}
#endif
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
#if DTYPE != 0
PATCHIFY_KERNEL(patchify_rounded, T)
#endif
