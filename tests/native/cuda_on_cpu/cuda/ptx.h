// The instructions of csrc/cuda/ptx.h on a CPU, as the PTX manual describes them: which lane holds what of a
// matrix, how rows are swizzled, what a barrier counts.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/infonce.h"

namespace hybridfast::cuda::ptx {

namespace cpu = cuda_on_cpu;

template <Element E>
float widen(std::uint16_t bits) {
  if constexpr (E == Element::bfloat16)
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  else
    return static_cast<float>(std::bit_cast<_Float16>(bits));
}

template <Element E>
std::uint16_t narrow(float value) {
  if constexpr (E == Element::float16) return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <Element E>
float element(const std::uint32_t* words, int at) {
  return widen<E>(static_cast<std::uint16_t>(words[at / 2] >> 16 * (at % 2)));
}

inline unsigned char* shared_memory() {
  return cpu::self().block->shared;
}

inline std::uint32_t shared_address(const void* pointer) {
  const auto* block = cpu::self().block;
  return cpu::Block::kBase +
         static_cast<std::uint32_t>(static_cast<const unsigned char*>(pointer) - block->shared);
}

inline float exp2(float x) {
  return x < -126 ? 0 : ::exp2f(x);
}

template <Element E>
std::uint32_t pack(float first, float second) {
  return narrow<E>(first) | static_cast<std::uint32_t>(narrow<E>(second)) << 16;
}

inline void meet(int barrier, int threads) {
  cpu::meet(cpu::self().block->named[barrier], threads, [] {});
}

inline bool any(int barrier, int threads, bool value) {
  return cpu::any(barrier, threads, value);
}

inline void copy(std::uint32_t to, const void* from, bool inside) {
  if (to % 16 || (inside && reinterpret_cast<std::uintptr_t>(from) % 16)) cpu::fail("copy is not aligned");
  unsigned char* there = cpu::self().block->at(to, 16);
  cpu::in_background(cpu::self().copies, [=] {
    if (inside)
      std::memcpy(there, from, 16);
    else
      std::memset(there, 0, 16);
  });
}

inline void commit_copies() {
  cpu::commit(cpu::self().copies);
}

template <int PENDING>
void wait_for_copies() {
  cpu::settle(cpu::self().copies, PENDING);
}

inline void load_matrices(std::uint32_t (&matrices)[4], std::uint32_t row) {
  struct Lane {
    std::uint32_t (&matrices)[4];
    const unsigned char* row;
  } own{matrices, cpu::self().block->at(row, 16)};
  if (row % 16) cpu::fail("row of a matrix is not aligned");
  cpu::together(own, [](auto of) {
    for (int lane = 0; lane < 32; ++lane)
      for (int at = 0; at < 4; ++at)
        std::memcpy(&of(lane).matrices[at], of(8 * at + lane / 4).row + 4 * (lane % 4), 4);
  });
}

template <Element E>
void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Lane {
    float* sums;
    const std::uint32_t* a;
    std::uint32_t b[2];
  } own{sums, a, {b0, b1}};
  cpu::together(own, [](auto of) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane)
      for (int at = 0; at < 8; ++at) {
        const int row = lane / 4 + at / 2 % 2 * 8, k = lane % 4 * 2 + at % 2 + at / 4 * 8;
        left[row][k] = element<E>(of(lane).a, at);
        if (at < 4) right[lane % 4 * 2 + at % 2 + at / 2 * 8][lane / 4] = element<E>(of(lane).b, at);
      }
    for (int lane = 0; lane < 32; ++lane)
      for (int at = 0; at < 4; ++at)
        for (int k = 0; k < 16; ++k)
          of(lane).sums[at] += left[lane / 4 + at / 2 * 8][k] * right[k][lane % 4 * 2 + at % 2];
  });
}

inline std::uint32_t rank_in_cluster() {
  return cpu::self().block->rank;
}

inline void meet_cluster() {
  cpu::Cluster* cluster = cpu::self().block->cluster;
  cpu::meet(cluster->all, static_cast<int>(cluster->fibers.size()), [] {});
}

template <int REGISTERS>
void give_registers() {}

template <int REGISTERS>
void take_registers() {}

inline void make_barrier(std::uint32_t barrier, int arrivals) {
  cpu::self().block->at(barrier, 8);
  cpu::self().block->barriers[barrier] = {arrivals, arrivals, 0, 0};
}

inline void publish_barriers() {}

inline void arrive_expecting(std::uint32_t barrier, int bytes) {
  auto& there = cpu::self().block->barrier(barrier);
  there.bytes += bytes;
  --there.missing;
  there.settle();
}

inline void arrive_at(std::uint32_t barrier, std::uint32_t rank) {
  auto& there = cpu::self().block->cluster->blocks[rank].barrier(barrier);
  --there.missing;
  there.settle();
}

inline void wait_for_phase(std::uint32_t barrier, std::uint32_t parity) {
  auto& there = cpu::self().block->barrier(barrier);
  if (there.parity == parity) cpu::wait([&there, parity] { return there.parity != parity; });
}

inline std::uint32_t swizzle(std::uint32_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

inline void copy_box_to(std::uint16_t blocks, std::uint32_t to, const CUtensorMap& map, int x, int y,
                        std::uint32_t barrier) {
  if (to % 1024) cpu::fail("a swizzled box is not aligned");
  cpu::Cluster* cluster = cpu::self().block->cluster;
  auto copy = [=, &map] {
    for (auto& block : cluster->blocks) {
      if (!(blocks >> block.rank & 1)) continue;
      for (int row = 0; row < map.box_height; ++row)
        for (int at = 0; at < 64; ++at) {
          std::uint16_t value = 0;
          if (x + at < map.width && y + row < map.height)
            std::memcpy(&value, map.data + (y + row) * map.stride + 2 * (x + at), 2);
          std::memcpy(block.at(swizzle(to + 128 * row + 2 * at), 2), &value, 2);
        }
      auto& there = block.barrier(barrier);
      there.bytes -= 128 * map.box_height;
      there.settle();
    }
  };
  if (cpu::late())
    cluster->boxes.push_back(copy);
  else
    copy();
}

inline void copy_box(std::uint32_t to, const CUtensorMap& map, int x, int y, std::uint32_t barrier) {
  copy_box_to(static_cast<std::uint16_t>(1 << cpu::self().block->rank), to, map, x, y, barrier);
}

inline std::uint64_t rows_at(std::uint32_t address) {
  return address >> 4;
}

inline void begin_products() {}

inline void commit_products() {
  cpu::commit(cpu::self().products);
}

template <Element E>
void multiply_in_background(float (&sums)[32][4], std::uint64_t a, std::uint64_t b, bool add) {
  cpu::Block* block = cpu::self().block;
  const int lane = cpu::lane(), warp = cpu::self().thread.x / 32 % 4;
  const auto read = [block](std::uint64_t rows, int row, int k) {
    const auto address = static_cast<std::uint32_t>(rows << 4) + 128 * row + 2 * k;
    std::uint16_t value;
    std::memcpy(&value, block->at(swizzle(address), 2), 2);
    return widen<E>(value);
  };
  cpu::in_background(cpu::self().products, [=, &sums] {
    for (int j = 0; j < 32; ++j)
      for (int at = 0; at < 4; ++at) {
        float sum = add ? sums[j][at] : 0;
        for (int k = 0; k < 16; ++k)
          sum += read(a, 16 * warp + lane / 4 + at / 2 * 8, k) * read(b, 8 * j + lane % 4 * 2 + at % 2, k);
        sums[j][at] = sum;
      }
  });
}

template <int PENDING>
void wait_for_products(float (&)[32][4]) {
  cpu::settle(cpu::self().products, PENDING);
  cpu::meet(cpu::warp(), 32, [] {});  // the lanes of a warp go on together
}

}  // namespace hybridfast::cuda::ptx
