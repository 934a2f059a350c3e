#define HYBRIDFAST_VECTOR_BYTES 64
#define HYBRIDFAST_ROWS 12
#define HYBRIDFAST_VECTORS 2
#include "simd/encoder-inl.h"
#include "simd/tile-inl.h"

const hybridfast::simd::TileKernels hybridfast::simd::avx512_kernels = {
    "avx512",     kRows,   kColumns,     score_tile, multiply<false>, nullptr, nullptr,          nullptr,
    nullptr,      logits,  exponentials, nullptr,    add_rows,        weigh,   survey,           select,
    combine_rows, nullptr, dot,          project,    transpose,       softmax, softmax_gradient, drop,
    false};
