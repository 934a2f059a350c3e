#define HYBRIDFAST_VECTOR_BYTES 64
#define HYBRIDFAST_ROWS 12
#define HYBRIDFAST_VECTORS 2
#include "simd/encoder-inl.h"
#include "simd/tile-inl.h"

const hybridfast::simd::TileKernels hybridfast::simd::avx512bf16_kernels = {
    "avx512bf16", kRows,           kColumns,  score_tile, multiply<false>,  multiply<true>,
    pair_rows,    pair_neighbours, pair_tile, logits,     exponentials,     paired_exponentials,
    add_rows,     weigh,           survey,    select,     combine_rows,     combine_pairs,
    dot,          project,         transpose, softmax,    softmax_gradient, drop,
    false};
