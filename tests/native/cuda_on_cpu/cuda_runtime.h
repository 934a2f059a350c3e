// What of CUDA's runtime the kernels and their launches use, on a CPU. HYBRIDFAST_CPU_CAPABILITY is the major
// compute capability of the GPU that there is not: 8, or 9 for Hopper.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "threads.h"

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (cuda_on_cpu::self().thread)
#define blockIdx (cuda_on_cpu::self().block->index)

using std::min;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned width) : x(width) {}
};

inline int block_threads() {
  return static_cast<int>(cuda_on_cpu::self().block->warps.size()) * 32;
}

inline void __syncthreads() {
  cuda_on_cpu::meet(cuda_on_cpu::self().block->named[0], block_threads(), [] {});
}

template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int distance) {
  struct Lane {
    Value given, got;
  } own{value, value};
  cuda_on_cpu::together(own, [distance](auto of) {
    for (int lane = 0; lane < 32; ++lane) of(lane).got = of(lane ^ distance).given;
  });
  return own.got;
}

namespace cuda_on_cpu {

inline bool any(int barrier, int threads, bool value) {
  struct Vote {
    bool open = false, result = false;
  };
  static std::map<std::pair<Block*, int>, Vote> votes;
  Block* block = self().block;
  Vote& vote = votes[{block, barrier}];
  vote.open |= value;
  meet(block->named[barrier], threads, [&] {
    vote.result = vote.open;
    vote.open = false;
  });
  const bool result = vote.result;
  meet(block->named[barrier], threads, [] {});  // nobody votes again before all have read
  return result;
}

}  // namespace cuda_on_cpu

inline int __syncthreads_or(int value) {
  return cuda_on_cpu::any(0, block_threads(), value);
}

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) {
  return "no error";
}

enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
inline cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* setting = std::getenv("HYBRIDFAST_CPU_CAPABILITY");
  *value = setting ? std::atoi(setting) : 8;
  return cudaSuccess;
}

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };
void* driver_entry_point();  // cuda.h
inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
  *function = driver_entry_point();
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, int, int bytes) {
  if (bytes > 227 << 10) cuda_on_cpu::fail("more shared memory than a block can have");
  return cudaSuccess;
}

enum { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  int id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  cuda_on_cpu::launch(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes,
                      config->numAttrs ? config->attrs->val.clusterDim.x : 1, [&] { kernel(arguments...); });
  return cudaSuccess;
}
