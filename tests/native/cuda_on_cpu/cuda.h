// Matrices as TMA sees them, on a CPU.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

using cuuint64_t = std::uint64_t;
using cuuint32_t = std::uint32_t;
enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

// Of elements of two bytes, in boxes whose rows are 128 bytes.
struct CUtensorMap {
  const unsigned char* data;
  std::int64_t width, height, stride;
  int box_height;
};

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                                       const cuuint64_t* size, const cuuint64_t* stride,
                                       const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                                       CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride[0] % 16 == 0;
  if (rank != 2 || !aligned || stride[0] < 2 * size[0] || box[0] != 64 || box[1] > 256)
    return CUDA_ERROR_INVALID_VALUE;
  *map = {static_cast<const unsigned char*>(data), static_cast<std::int64_t>(size[0]),
          static_cast<std::int64_t>(size[1]), static_cast<std::int64_t>(stride[0]), static_cast<int>(box[1])};
  return CUDA_SUCCESS;
}

inline void* driver_entry_point() {
  return reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
}
