#define HYBRIDFAST_VECTOR_BYTES 16
#define HYBRIDFAST_ROWS 6
#define HYBRIDFAST_VECTORS 2
#include "simd/encoder-inl.h"
#include "simd/tile-inl.h"

const hybridfast::simd::TileKernels hybridfast::simd::baseline_kernels = {
    "baseline",   kRows,   kColumns,     score_tile, multiply<false>, nullptr, nullptr,          nullptr,
    nullptr,      logits,  exponentials, nullptr,    add_rows,        weigh,   survey,           select,
    combine_rows, nullptr, dot,          project,    transpose,       softmax, softmax_gradient, drop,
    false};
