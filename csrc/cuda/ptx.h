// One function for each instruction that CUDA C++ has no name for. The tests put other definitions in the
// place of these, which do the same on a CPU.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/infonce.h"

namespace hybridfast::cuda::ptx {

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two rounded values in one word, the first in its lower half.
template <Element E>
__device__ inline std::uint32_t pack(float first, float second) {
  std::uint32_t word;
  if constexpr (E == Element::bfloat16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

// Barriers of so many threads; `any` tells whether `value` holds for one of them.
__device__ inline void meet(int barrier, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ inline bool any(int barrier, int threads, bool value) {
  int result;
  asm volatile(
      "{\n .reg .pred one, all;\n setp.ne.s32 one, %3, 0;\n barrier.red.or.pred all, %1, %2, one;\n"
      " selp.s32 %0, 1, 0, all;\n}"
      : "=r"(result)
      : "r"(barrier), "r"(threads), "r"(static_cast<int>(value))
      : "memory");
  return result != 0;
}

// 16 bytes into shared memory, or as many zeros.
__device__ inline void copy(std::uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most so many of the thread's latest groups of copies are under way.
template <int PENDING>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices; each lane gives the address of one of their 32 rows.
__device__ inline void load_matrices(std::uint32_t (&matrices)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

// A warp's 16 x 8 sums over 16 dimensions.
template <Element E>
__device__ inline void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  if constexpr (E == Element::bfloat16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The rest is Hopper's.

__device__ inline std::uint32_t rank_in_cluster() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;" ::: "memory");
}

template <int REGISTERS>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Barriers in shared memory, whose phases end when all have arrived and all expected bytes are there.
__device__ inline void make_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// At the barrier of the same address in another block of the cluster, or in this one.
__device__ inline void arrive_at(std::uint32_t barrier, std::uint32_t rank) {
  asm volatile(
      "{\n .reg .b32 there;\n mapa.shared::cluster.u32 there, %0, %1;\n"
      " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Until the phase of this parity has ended.
__device__ inline void wait_for_phase(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n .reg .pred done;\n again:\n"
      " mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n @!done bra again;\n}" ::
          "r"(barrier),
      "r"(parity)
      : "memory");
}

// A box of a matrix into shared memory, and its bytes to the barrier.
__device__ inline void copy_box(std::uint32_t to, const CUtensorMap& map, int x, int y,
                                std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// The same in every block of the cluster that `blocks` has a bit for.
__device__ inline void copy_box_to(std::uint16_t blocks, std::uint32_t to, const CUtensorMap& map, int x,
                                   int y, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}

// Rows of 128 bytes from here on, as copy_box lays them out with 128-byte swizzling.
__device__ inline std::uint64_t rows_at(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle128 = 1, kEightRows = 1024 >> 4;
  return (address & 0x3ffff) >> 4 | std::uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

#define HYBRIDFAST_FOUR(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define HYBRIDFAST_SUMS                                                                                   \
  HYBRIDFAST_FOUR(0), HYBRIDFAST_FOUR(1), HYBRIDFAST_FOUR(2), HYBRIDFAST_FOUR(3), HYBRIDFAST_FOUR(4),     \
      HYBRIDFAST_FOUR(5), HYBRIDFAST_FOUR(6), HYBRIDFAST_FOUR(7), HYBRIDFAST_FOUR(8), HYBRIDFAST_FOUR(9), \
      HYBRIDFAST_FOUR(10), HYBRIDFAST_FOUR(11), HYBRIDFAST_FOUR(12), HYBRIDFAST_FOUR(13),                 \
      HYBRIDFAST_FOUR(14), HYBRIDFAST_FOUR(15), HYBRIDFAST_FOUR(16), HYBRIDFAST_FOUR(17),                 \
      HYBRIDFAST_FOUR(18), HYBRIDFAST_FOUR(19), HYBRIDFAST_FOUR(20), HYBRIDFAST_FOUR(21),                 \
      HYBRIDFAST_FOUR(22), HYBRIDFAST_FOUR(23), HYBRIDFAST_FOUR(24), HYBRIDFAST_FOUR(25),                 \
      HYBRIDFAST_FOUR(26), HYBRIDFAST_FOUR(27), HYBRIDFAST_FOUR(28), HYBRIDFAST_FOUR(29),                 \
      HYBRIDFAST_FOUR(30), HYBRIDFAST_FOUR(31)
#define HYBRIDFAST_WGMMA(type)                                                                            \
  asm volatile(                                                                                           \
      "{\n .reg .pred add;\n setp.ne.b32 add, %130, 0;\n"                                                 \
      " wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                       \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "   \
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "   \
      "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "   \
      "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "   \
      "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "     \
      "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "       \
      "%128, %129, add, 1, 1, 0, 0;\n}"                                                                   \
      : HYBRIDFAST_SUMS                                                                                   \
      : "l"(a), "l"(b), "r"(static_cast<int>(add))                                                        \
      : "memory")

// Four warps' 64 x 256 sums over 16 dimensions, in the background; without `add`, sums begin here.
template <Element E>
__device__ inline void multiply_in_background(float (&sums)[32][4], std::uint64_t a, std::uint64_t b,
                                              bool add) {
  if constexpr (E == Element::bfloat16)
    HYBRIDFAST_WGMMA("bf16");
  else
    HYBRIDFAST_WGMMA("f16");
}

// Until at most so many of the latest committed groups are under way.
template <int PENDING>
__device__ inline void wait_for_products(float (&sums)[32][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %128;" : HYBRIDFAST_SUMS : "n"(PENDING) : "memory");
}

#undef HYBRIDFAST_FOUR
#undef HYBRIDFAST_SUMS
#undef HYBRIDFAST_WGMMA

}  // namespace hybridfast::cuda::ptx
