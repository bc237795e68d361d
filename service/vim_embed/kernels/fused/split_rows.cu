// Rows of float32 as split rows (split.cuh), each scaled by a power of two of its own: its largest number
// becomes 2^13 to 2^14, so nothing overflows and low parts stay normal numbers.
#include "split.cuh"

// x (rows, width) -> out (rows, 2 width); undo (rows): what undoes the scales. A block a row; width is a
// multiple of 32. A row with an infinity or a NaN becomes NaN.
extern "C" __global__ void __launch_bounds__(128)
    split_rows(const float* __restrict__ x, u16* __restrict__ out, float* __restrict__ undo, int width) {
    __shared__ float of_warps[4];
    const size_t row = blockIdx.x;
    const float* const from = x + row * width;
    float largest = 0.0f;
    for (int at = threadIdx.x * 4; at < width; at += 512) {
        float v[4];
        load_float<4>(v, from + at);
#pragma unroll
        for (int j = 0; j < 4; j++) largest = fmaxf(largest, fabsf(v[j]));
    }
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, m));
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
    largest = fmaxf(fmaxf(of_warps[0], of_warps[1]), fmaxf(of_warps[2], of_warps[3]));
    // exponents as float32 has them, 127 for 2^0; the smallest whose factor and its inverse are normal
    const int exponent = max((int)(__float_as_uint(largest) >> 23), 14);
    const float factor = __uint_as_float((u32)(267 - exponent) << 23);
    if (threadIdx.x == 0) undo[row] = __uint_as_float((u32)(exponent - 13) << 23);
    for (int at = threadIdx.x * 4; at < width; at += 512) {
        float v[4];
        load_float<4>(v, from + at);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] *= factor;
        store_split<4>(out + row * 2 * width, at, v);
    }
}
