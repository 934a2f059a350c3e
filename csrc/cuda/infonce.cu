#include <cuda.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/ampere.h"
#include "cuda/hopper.h"
#include "cuda/infonce.h"
#include "cuda/sums.h"
#include "cuda/weights.h"

namespace hybridfast::cuda {

namespace {

// Hopper's instructions exist in code for sm_90a only. What is not launched on a GPU is empty there.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HYBRIDFAST_HOPPER 1
#elif defined(__CUDA_ARCH__)
#define HYBRIDFAST_AMPERE 1
#else  // on the host
#define HYBRIDFAST_HOPPER 1
#define HYBRIDFAST_AMPERE 1
#endif

template <Element E, class Epilogue>
__global__ void __launch_bounds__(Ampere::kThreads, Ampere::kBlocks)
    on_ampere([[maybe_unused]] Rows queries, [[maybe_unused]] Rows passages, [[maybe_unused]] int dim,
              [[maybe_unused]] Sweep sweep, [[maybe_unused]] typename Epilogue::Arguments arguments) {
#ifdef HYBRIDFAST_AMPERE
  walk_on_ampere<E, Epilogue>(queries, passages, dim, sweep, arguments);
#endif
}

template <Element E, class Epilogue>
__global__ void __launch_bounds__(Hopper::kThreads, 1)
    on_hopper([[maybe_unused]] const __grid_constant__ CUtensorMap queries,
              [[maybe_unused]] const __grid_constant__ CUtensorMap passages, [[maybe_unused]] int count,
              [[maybe_unused]] int dim, [[maybe_unused]] Sweep sweep,
              [[maybe_unused]] typename Epilogue::Arguments arguments) {
#ifdef HYBRIDFAST_HOPPER
  walk_on_hopper<E, Epilogue>(queries, passages, count, dim, sweep, arguments);
#endif
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

bool hopper(int device) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  return major == 9;
}

// Rows as TMA reads them, in boxes of 128 rows and 64 dimensions; outside there are zeros.
CUtensorMap tensor_map(const Rows& rows, int dim, Element element) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                           &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("cuTensorMapEncodeTiled: the driver has none; Hopper needs 12.0 or newer");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  const cuuint64_t size[] = {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(rows.count)};
  const cuuint64_t stride[] = {static_cast<cuuint64_t>(rows.stride) * 2};
  const cuuint32_t box[] = {Hopper::kDims, Hopper::kBoxRows}, step[] = {1, 1};
  const auto type =
      element == Element::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  CUtensorMap map;
  const CUresult status = encode(&map, type, 2, const_cast<void*>(rows.data), size, stride, box, step,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(status)));
  return map;
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, int blocks, int threads, int shared_bytes, int cluster, cudaStream_t stream,
            Arguments&&... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "shared memory");
  cudaLaunchAttribute attributes[1];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "launch");
}

template <Element, bool COLUMNS>
struct SumsOn {
  template <class Engine>
  using Epilogue = Sums<Engine, COLUMNS>;
};

template <Element E, bool COLUMNS>
struct FormedOn {
  template <class Engine>
  using Epilogue = Formed<E, Engine, COLUMNS>;
};

struct ExpsOn {
  template <class Engine>
  using Epilogue = Exps<Element::bfloat16, Engine>;
};

template <Element E, class On, class Arguments>
void run(const Block& block, const Sweep& sweep, const Arguments& arguments, cudaStream_t stream) {
  const int tiles = (sweep.last - sweep.first + kTileRows - 1) / kTileRows;
  check(cudaSetDevice(block.device), "cudaSetDevice");
  if (hopper(block.device)) {
    using Epilogue = typename On::template Epilogue<Hopper>;
    const int whole_clusters = (tiles + Hopper::kCluster - 1) / Hopper::kCluster * Hopper::kCluster;
    launch(on_hopper<E, Epilogue>, whole_clusters * sweep.splits, Hopper::kThreads,
           Hopper::shared_bytes(Epilogue::kSharedFloats), Hopper::kCluster, stream,
           tensor_map(block.queries, block.dim, E), tensor_map(block.passages, block.dim, E),
           block.passages.count, block.dim, sweep, arguments);
  } else {
    using Epilogue = typename On::template Epilogue<Ampere>;
    launch(on_ampere<E, Epilogue>, tiles * sweep.splits, Ampere::kThreads,
           Ampere::shared_bytes(Epilogue::kSharedFloats), 1, stream, block.queries, block.passages, block.dim,
           sweep, arguments);
  }
}

template <template <Element, bool> class On, class Arguments>
void run(const Block& block, bool columns, const Sweep& sweep, const Arguments& arguments,
         cudaStream_t stream) {
  constexpr auto kBfloat16 = Element::bfloat16, kFloat16 = Element::float16;
  if (block.element == kBfloat16) {
    if (columns)
      run<kBfloat16, On<kBfloat16, true>>(block, sweep, arguments, stream);
    else
      run<kBfloat16, On<kBfloat16, false>>(block, sweep, arguments, stream);
  } else {
    if (columns)
      run<kFloat16, On<kFloat16, true>>(block, sweep, arguments, stream);
    else
      run<kFloat16, On<kFloat16, false>>(block, sweep, arguments, stream);
  }
}

}  // namespace

Shape shape(int device) {
  if (hopper(device)) return {Hopper::kColumns, kTileRows / Hopper::kGroups};
  return {Ampere::kColumns, kTileRows};
}

void negative_sums(const Block& block, const Sweep& sweep, float* row_parts, float* column_parts,
                   cudaStream_t stream) {
  const SumsArguments arguments{block.pairs, block.inverse, row_parts, column_parts};
  run<SumsOn>(block, column_parts != nullptr, sweep, arguments, stream);
}

void form_exps(const Block& block, const Sweep& sweep, const float* wanted, void* out,
               std::int64_t out_stride, float* row_parts, cudaStream_t stream) {
  const ExpsArguments arguments{
      block.pairs, block.inverse, wanted, {static_cast<unsigned char*>(out), out_stride}, row_parts};
  if (block.element != Element::bfloat16)
    throw std::invalid_argument("form_exps needs the range of bfloat16, got float16");
  run<Element::bfloat16, ExpsOn>(block, sweep, arguments, stream);
}

void form_weights(const Block& block, const Sweep& sweep, const Weights& weights, void* out,
                  std::int64_t out_stride, cudaStream_t stream) {
  const FormedArguments arguments{
      block.pairs, block.inverse, weights, {static_cast<unsigned char*>(out), out_stride}};
  run<FormedOn>(block, weights.column_sums != nullptr, sweep, arguments, stream);
}

}  // namespace hybridfast::cuda
