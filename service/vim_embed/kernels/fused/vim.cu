// Vim inference kernels: one program, a file a kernel. Compiled by compile.py with these macros:
//   DTYPE 0 float32, 1 float16, 2 bfloat16     DIM  model width D
//   INNER inner width E                        RP   step-size rank, rounded up to 8
//   SPLIT_PRODUCTS 1: float32 with split products on tensor cores (split.cuh); 0: with plain ones
//   BULK 1: with bulk copies (compute capability 9.0 and above)
//   WGMMA 1: with what takes Hopper's wgmma (sm_90a): `out_norm` in half precision, for a width of 192
//   or 384, and split products
// All activations are channels-last.
//
// Names: B images, L tokens, E channels, N = 16 states. A projected row ("dbc") is
// [step RP | B 16 | C 16]. Step sizes are kept in log2 units, s = log2(1 + 2^v) = delta * log2(e),
// so that exp(delta A) = 2^(s A); the packed weights absorb the factor in B.

#include "common.cuh"
#include "patchify.cu"
#include "norm.cu"
#if DTYPE == 0 && !SPLIT_PRODUCTS
#include "plain.cu"
#else
#if WGMMA && DTYPE != 0
#include "out_norm.cu"
#endif
#if BULK && DTYPE != 0
#include "xproj.cu"
#else
#include "portable_xproj.cu"
#endif
#include "scan.cu"
#include "segment_scan.cu"
#if BULK && (DIM == 192 || DIM == 384) && INNER == 2 * DIM
#include "out_in.cu"
#endif
#if SPLIT_PRODUCTS
#include "split_mm.cu"
#if WGMMA
#include "hopper_split_mm.cu"
#endif
#endif
#endif
