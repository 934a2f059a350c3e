#define HYBRIDFAST_VECTOR_BYTES 64
#define HYBRIDFAST_ROWS 12
#define HYBRIDFAST_VECTORS 2
#include "simd/amx-inl.h"
#include "simd/encoder-inl.h"
#include "simd/tile-inl.h"

static_assert(kTileColumns == kColumns);

const hybridfast::simd::TileKernels hybridfast::simd::amx_bf16_kernels = {
    "amx_bf16", kRows,           kColumns,  score_tile, multiply<false>,  multiply_tiles,
    pair_rows,  pair_neighbours, pair_tile, logits,     exponentials,     paired_exponentials,
    add_rows,   weigh,           survey,    select,     combine_rows,     combine_pairs,
    dot,        project,         transpose, softmax,    softmax_gradient, drop,
    true};
