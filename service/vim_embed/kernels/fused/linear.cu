// A linear layer in float32 on tensor cores, for encoders of transformers: rows are split (split_rows),
// multiplied with a split weight, and scaled back with the bias added (split_mm). Compiled by compile.py
// with DTYPE 0 and BULK and WGMMA as vim.cu has them.
#include "common.cuh"
#include "split_rows.cu"
#include "split_mm.cu"
#if WGMMA
#include "hopper_split_mm.cu"
#endif
